"""``generate``, ``merge``, ``export`` and ``overlap`` with one adapter and with several."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from musictune.__main__ import main
from musictune.data.concepts import Concept
from musictune.methods import load_adapter, methods, save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.combined import Combined
from musictune.methods.composition import Depth
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen


def batch(text: str = "a koto and a reggae") -> Batch:
    codes = torch.randint(0, 64, (1, 4, 10), generator=torch.Generator().manual_seed(1))
    return Batch(codes, torch.tensor([10]), (text,))


def saved(base: Path, folder: Path, method: TuningMethod, word: str = "") -> Path:
    model = MusicGen.load(base)
    whole = Combined([ConceptTokens([Concept(word, "piano")]), method]) if word else method
    whole.prepare(model, itertools.repeat(batch()))
    whole.attach(model)
    torch.manual_seed(len(folder.name))
    with torch.no_grad():
        for p in trained_parameters(model).values():
            p.add_(0.1 * torch.randn(p.shape))
    save_adapter(model, whole, folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    pivotal = {"koto": 0.3, "reggae": 0.2}
    made = {
        word: saved(base, root / word, Pivotal(fraction=share, selection="random"), word)
        for word, share in pivotal.items()
    }
    made["again"] = saved(base, root / "again", Peft.toy(), "koto")
    made["live"] = saved(base, root / "live", methods()["bottleneck"].toy())
    return made


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return int(stop.value.code or 0)


def test_merging_several_is_loading_several(
    base: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    both = [runs["koto"], f"{runs['reggae']}=0.5"]
    assert run("merge", *both, "--base", base, "--depth", "0.4:1", "--out", out) == 0
    said = capsys.readouterr()
    assert "masks of koto and reggae: " in said.err and "expected by chance" in said.err
    assert "<koto>" in said.out and "<reggae>" in said.out
    expected = MusicGen.load(base)
    load_adapter(expected, runs["koto"], 1.0, Depth(0.4, 1))
    load_adapter(expected, runs["reggae"], 0.5, Depth(0.4, 1))
    with torch.no_grad():
        assert torch.allclose(MusicGen.load(out).nll(batch()), expected.nll(batch()), atol=1e-6)


def test_generate_mixes_live_and_merged_and_notes_the_overlap(
    base: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = [("--adapter", f"{runs[name]}=0.5") for name in ("live", "koto", "reggae")]
    options = [*itertools.chain(*adapters), "--base", base, "--seconds", 0.2]
    assert run("generate", "a koto", *options, "--out", tmp_path / "out") == 0
    assert "masks of koto and reggae: " in capsys.readouterr().err
    (line,) = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [a["weight"] for a in json.loads(line)["adapters"]] == [0.5] * 3
    adapters = [*itertools.chain(*adapters[1:])]
    options = [*adapters, "--base", base, "--seconds", 0.2, "--depth", "0.5:1"]
    assert run("generate", "a koto", *options, "--out", tmp_path / "deep") == 0
    (line,) = (tmp_path / "deep" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["adapters"][0]["depth"] == [0.5, 1.0]


def test_export_writes_a_peft_folder_and_says_what_is_left_out(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "peft"
    assert run("export", runs["koto"], "--format", "peft", "--out", out) == 0
    said = capsys.readouterr()
    assert "SUPERTUNING adapter" in said.out and "614 trained weights" in said.out
    assert "left out: the meaning of <koto>" in said.err
    assert (out / "adapter_model.safetensors").is_file()
    assert run("export", runs["koto"], "--out", out) == 2
    assert "already exists" in capsys.readouterr().err
    assert run("export", runs["live"], "--out", tmp_path / "none") == 2
    assert "cannot be exported" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_overlap_says_writes_and_draws(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, plot = tmp_path / "overlap.json", tmp_path / "overlap.png"
    assert run("overlap", runs["koto"], runs["reggae"], "--json", file, "--plot", plot) == 0
    assert "koto & reggae: " in capsys.readouterr().out
    content = json.loads(file.read_text())
    (pair,) = content["pairs"]
    assert content["adapters"] == ["koto", "reggae"] == pair["adapters"]
    assert pair["of_smaller"] == pytest.approx(pair["shared"] / min(pair["first"], pair["second"]))
    assert plot.read_bytes()[:4] == b"\x89PNG" and plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["overlap", "koto"], "two adapters or more"),
        (["overlap", "koto", "koto"], "given twice"),
        (["overlap", "koto", "again"], "no pivotal weights"),
        (["overlap", "koto", "reggae", "--plot", "x.txt"], "must end in .png"),
        (["overlap", "koto", "reggae", "--json", "."], "is a folder"),
        (["overlap", "koto", "reggae", "--plot", "none/x.png"], "folder none of output"),
        (["merge", "koto", "again", "--out", "OUT"], "both teach <koto>"),
        (["merge", "koto", "koto", "--out", "OUT"], "given twice"),
        (["merge", "live", "--out", "OUT"], "cannot be merged: bottleneck"),
        (["merge", "koto", "--depth", "1", "--out", "OUT"], "FIRST:LAST"),
        (["merge", "koto", "--weight", "nan", "--out", "OUT"], "must be a number"),
        (
            ["generate", "x", "--adapter", "koto", "--adapter", "again", "--out", "OUT"],
            "both teach",
        ),
        (["generate", "x", "--adapter", "koto", "--depth", "x:1", "--out", "OUT"], "FIRST:LAST"),
        (["generate", "x", "--adapter", "live", "--depth", "0:1", "--out", "OUT"], "by depth"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], says: str, base: Path, runs: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [str(runs.get(word, tmp_path / "out" if word == "OUT" else word)) for word in arguments]
    if arguments[0] in ("merge", "generate"):
        given += ["--base", str(base)]
    assert run(*given) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("musictune: error: ") and says in error[-1]
    assert not list(tmp_path.iterdir())
