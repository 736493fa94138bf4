"""``musictune generate --prompts jobs.jsonl``: each line its own adapter and length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch

from musictune.__main__ import main
from musictune.data.concepts import Concept
from musictune.methods import save_adapter
from musictune.methods.base import trained_parameters
from musictune.methods.bottleneck import Bottleneck
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.pivotal import Pivotal
from musictune.models.musicgen import MusicGen


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    MusicGen.toy().save(folder)
    return folder


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for seed, name in enumerate(("koto", "banjo")):
        model = MusicGen.load(base)
        words = ConceptTokens([Concept(name, "piano")])
        method = Combined([words, Pivotal(0.2, selection="random", seed=seed)])
        method.prepare(model, iter(()))
        method.attach(model)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in trained_parameters(model).values():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        found[name] = tmp_path_factory.mktemp(name)
        save_adapter(model, method, found[name] / "adapter")
    return found


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, arguments)])
    return int(stop.value.code or 0)


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def jobs(folder: Path, *lines: dict[str, object]) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_line_is_played_as_alone(base: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    koto, banjo = runs["koto"], runs["banjo"]
    path = jobs(
        tmp_path,
        {"prompt": "slow <koto>", "adapter": str(koto), "seconds": 0.4, "seed": 7, "count": 2},
        {"prompt": "slow <koto>"},
        {"prompt": "fast <banjo>", "adapter": f"{banjo}=0.5"},
    )
    common = ["--base", base, "--precision", "float32"]
    assert run("piano", "--prompts", path, "--seconds", 0.3, *common, "--out", tmp_path / "o") == 0
    lines = manifest(tmp_path / "o")
    assert [line["prompt"] for line in lines] == [
        "piano",
        *["slow <koto>"] * 3,
        "fast <banjo>",
    ]
    assert [line["seconds"] for line in lines] == [0.3, 0.4, 0.4, 0.3, 0.3]
    assert [line["seed"] for line in lines] == [0, 7, 8, 0, 0]
    expected = ["piano", "slow piano", "slow piano", "slow <koto>", "fast piano"]
    assert [line["text"] for line in lines] == expected
    used = [[(each["path"], each["weight"]) for each in line["adapters"]] for line in lines]
    of_koto, of_banjo = (str(koto / "adapter"), 1.0), (str(banjo / "adapter"), 0.5)
    assert used == [[], [of_koto], [of_koto], [], [of_banjo]]

    # The same clips by the way that has one adapter for all.
    single = [
        ("piano", [], 0.3, 0),
        ("slow <koto>", ["--adapter", koto], 0.4, 7),
        ("slow <koto>", ["--adapter", koto], 0.4, 8),
        ("slow <koto>", [], 0.3, 0),
        ("fast <banjo>", ["--adapter", f"{banjo}=0.5"], 0.3, 0),
    ]
    for index, (prompt, adapter, seconds, seed) in enumerate(single):
        out = tmp_path / str(index)
        options = ["--seconds", seconds, "--seed", seed, *adapter, *common, "--out", out]
        assert run(prompt, *options) == 0
        (line,) = manifest(out)
        ours, _ = soundfile.read(tmp_path / "o" / lines[index]["file"])
        theirs, _ = soundfile.read(out / line["file"])
        assert ours.shape == theirs.shape and abs(ours - theirs).max() < 1e-3, prompt
        assert line["adapters"] == lines[index]["adapters"]


def test_an_adapter_of_a_line_that_is_never_called_is_remarked(
    base: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another line's word does not count."""
    path = jobs(
        tmp_path,
        {"prompt": "slow piano", "adapter": str(runs["koto"])},
        {"prompt": "slow koto"},
        {"prompt": "slow banjo", "adapter": str(runs["banjo"])},
    )
    options = ["--seconds", 0.1, "--base", base, "--out", tmp_path / "o"]
    assert run("--prompts", path, *options) == 0
    said = capsys.readouterr().err
    assert "no prompt says <koto>" in said and "<banjo>" not in said


def test_what_cannot_be_is_one_line_and_writes_nothing(
    base: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = tmp_path / "live"
    model, method = MusicGen.load(base), Bottleneck.toy()
    method.attach(model)
    save_adapter(model, method, live)
    own = {"prompt": "slow koto", "adapter": str(runs["koto"])}
    cases: list[tuple[dict[str, object], list[object], str]] = [
        ({"prompt": "a", "seconds": 0}, [], "line 1 of"),
        ({"prompt": "a", "seconds": 4000}, [], "4000"),
        (own | {"seconds": 12}, [], "adapters of single lines are for clips"),
        (own | {"adapter": str(live)}, [], "cannot play beside others: bottleneck"),
        (own, ["--adapter", runs["koto"]], "is given twice"),
    ]
    for line, options, says in cases:
        path = jobs(tmp_path, line)
        common = ["--seconds", 0.1, "--base", base, "--out", tmp_path / "o"]
        assert run("--prompts", path, *options, *common) == 2
        said = capsys.readouterr().err.strip()
        assert says in said, said
        assert said.splitlines()[-1].startswith("musictune: error:")
        assert not (tmp_path / "o").exists()
