"""The concept benchmark as a person runs it, on a toy base and two synthetic sounds."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from musictune.bench import concepts as bench_concepts
from musictune.errors import CheckFailed, InputError
from musictune.models.musicgen import MusicGen

LORA = "lora:method.options={r: 2}"


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "table.json").read_text())


def test_two_concepts_two_methods_and_a_pair(
    bench: Any, toys: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    out = bench("--pairs=zing+bop", methods=(LORA, "concept_tokens"))
    assert bench.code == 0
    tables = read(out)
    labels = ["none", LORA, "concept_tokens"]
    assert [row["method"] for row in tables["table"]] == labels
    assert set(tables["concepts"]) == {"zing", "bop"}
    cells = {(c["concept"], c["method"]): c for c in tables["cells"]}
    assert len(cells) == 6

    # Base and tuned are asked the same with equal seeds; the judge reads one text for both.
    tuned, base = cells["zing", LORA], cells["zing", "none"]
    assert [c["prompt"] for c in tuned["clips"]] == ["a slow <zing> solo", "<zing> with drums"]
    assert [c["prompt"] for c in base["clips"]] == ["a slow piano solo", "piano with drums"]
    for ours, theirs in zip(tuned["clips"], base["clips"], strict=True):
        assert ours["text"] == theirs["text"] == theirs["prompt"]
        assert (ours["seed"], ours["part"]) == (theirs["seed"], theirs["part"])

    # Every figure in the table is what the clips and files say.
    def mean(cell: dict[str, Any], name: str) -> float:
        return sum(clip[name] for clip in cell["clips"]) / len(cell["clips"])

    row = tables["table"][1]["values"]
    gains = [
        mean(cells[name, LORA], "audio_alignment") - mean(cells[name, "none"], "audio_alignment")
        for name in ("zing", "bop")
    ]
    assert row["audio_gain"]["value"] == pytest.approx(sum(gains) / 2, abs=2e-6)
    assert row["audio_gain"]["low"] <= row["audio_gain"]["high"]
    assert tables["table"][0]["values"]["audio_gain"]["value"] is None
    kept = [c["clips"][0]["text_alignment"] for c in (cells["zing", LORA], cells["bop", LORA])]
    assert row["text_alignment_keep"]["value"] == pytest.approx(sum(kept) / 2, abs=2e-6)
    slug = next(p.name for p in (out / "cells/zing").iterdir() if p.name.startswith("lora"))
    adapter = out / "cells/zing" / slug / "seed0/run/adapter"
    size = sum(p.stat().st_size for p in adapter.rglob("*") if p.is_file())
    assert tuned["facts"]["adapter_bytes"] == size
    assert row["trained_parameters"]["value"] > 16
    assert row["loss_change"]["value"] != 0
    assert len(tuned["forgetting"]["losses"]) == 2
    assert tables["table"][2]["values"]["loss_change"]["value"] == pytest.approx(0, abs=1e-6)
    assert tuned["made_with"]["base_hash"] == tables["made_with"]["base_hash"]

    (pair,) = [c for c in tables["pair_cells"] if c["method"] == LORA]
    assert pair["pair"] == "bop+zing"  # the style first
    scores, cases = pair["scores"], pair["cases"]
    assert scores["conflict_second"] == pytest.approx(
        cases["second_alone"]["second"] - cases["both"]["second"]
    )
    lines = (out / "pairs/bop+zing" / slug / "seed0/music/manifest.jsonl").read_text()
    assert '"<bop> with <zing>"' in lines and '"rock with piano"' in lines

    with (out / "table.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(r["concept"], r["method"]) for r in found[:3]] == [("all", label) for label in labels]
    assert float(found[1]["audio_gain"]) == row["audio_gain"]["value"]
    assert "conflict" in (out / "pairs.csv").read_text().splitlines()[0]
    page = (out / "table.html").read_text()
    assert "musictune bench concepts --data" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    shown = capsys.readouterr().out
    assert LORA in shown and "conflict" in shown and "table.html" in shown
    assert not list(out.rglob(".*"))


def test_only_the_loss_of_general_clips_and_a_shorter_reference(bench: Any) -> None:
    method = "concept_tokens:reference.seconds=3"
    out = bench("--concept=zing", "--general-music=0", methods=(method,))
    base, tuned = read(out)["cells"]
    for cell in (base, tuned):
        assert "loss_change" in cell["forgetting"] and "frechet" not in cell["forgetting"]
    assert tuned["settings"]["reference_seconds"] == 3
    reports = [json.loads(p.read_text())["seconds"] for p in out.glob("prepared/*/report.json")]
    assert sorted(reports) == [3, 6]
    assert {clip["nearest_clap"]["training_clip"] for clip in tuned["clips"]} == {0}


def test_finished_cells_are_used_again_and_more_can_be_added(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bench("--concept=zing", methods=("concept_tokens",))
    first = read(out)
    made = []
    real = bench_concepts.tune
    monkeypatch.setattr(bench_concepts, "tune", lambda *a, **k: made.append(a[2]) or real(*a, **k))
    bench("--concept=zing", methods=("concept_tokens",))
    assert bench.code == 0 and not made
    assert read(out)["cells"] == first["cells"]
    bench("--concept=zing", "--seed=0", "--seed=1", methods=("concept_tokens",))
    assert [recipe.training.seed for recipe in made] == [1]
    assert read(out)["table"][1]["cells"] == 2


def test_other_settings_in_the_same_folder_are_refused(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = bench("--concept=zing", methods=("concept_tokens",))
    before = read(out)
    capsys.readouterr()
    bench("--concept=zing", methods=("concept_tokens",), steps="3")
    said = capsys.readouterr().err.splitlines()[-1]
    assert bench.code == 2
    assert "cells/zing/concept_tokens/seed0" in said and "recipe.training.steps 2, not 3" in said
    assert read(out) == before
    bench("--concept=zing", "--overwrite", methods=("none",), seconds="0.3")
    assert bench.code == 0
    (cell,) = read(out)["cells"]
    assert cell["settings"]["seconds"] == 0.3 and not list(out.glob("cells/*/concept_tokens"))


def test_stopped_and_run_again(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = bench_concepts.play

    def stopping(model: MusicGen, prompts: list[str], *rest: Any) -> Any:
        if any("<zing>" in prompt for prompt in prompts):
            raise KeyboardInterrupt
        return real(model, prompts, *rest)

    monkeypatch.setattr(bench_concepts, "play", stopping)
    out = bench("--concept=zing", methods=("concept_tokens",))
    assert bench.code == 130
    assert "run the same command" in capsys.readouterr().err
    assert [p.parent.parent.name for p in out.glob("cells/*/*/seed0/cell.json")] == ["none"]
    assert not list(out.rglob(".*")) and not (out / "table.json").exists()
    monkeypatch.setattr(bench_concepts, "play", real)
    bench("--concept=zing", methods=("concept_tokens",))
    assert bench.code == 0 and (out / "table.json").exists()


def test_a_failed_cell_is_told_and_left_out(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverging(*_: Any, **__: Any) -> Any:
        raise CheckFailed("the loss is no number at step 2")

    monkeypatch.setattr(bench_concepts, "tune", diverging)
    out = bench("--concept=zing", "--pairs=zing+bop", methods=("concept_tokens",))
    assert bench.code == 1
    assert "cells failed" in capsys.readouterr().err.splitlines()[-1]
    row = read(out)["table"][1]
    assert (row["cells"], row["failed"]) == (0, 2)
    assert row["values"]["audio_alignment"]["value"] is None
    assert "the loss is no number at step 2" in (out / "table.html").read_text()


def test_without_a_soundfont_forgetting_is_named_as_missing(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise InputError("SoundFont x.sf2 not found; install it")

    monkeypatch.setattr("musictune.compose.render.render_many", missing)
    out = bench("--concept=zing", methods=("none",))
    assert bench.code == 0
    tables = read(out)
    assert tables["notes"] == ["forgetting: SoundFont x.sf2 not found; install it"]
    assert tables["table"][0]["values"]["general_frechet"]["value"] is None
    assert tables["cells"][0]["not_computed"]["forgetting"].startswith("SoundFont")


def test_a_full_disk_leaves_no_half_cell(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench_concepts, "write_clips", full)
    out = bench("--concept=zing", methods=("none",))
    assert bench.code == 2
    assert "disk full while writing" in capsys.readouterr().err
    assert not list(out.glob("cells/*/*/*")) and not list(out.rglob(".*"))


@pytest.mark.parametrize(
    ("options", "more", "says"),
    [
        ({"methods": ("magic",)}, [], "method 'magic' is unknown; choose from"),
        ({"methods": ()}, [], "no --method given"),
        ({"methods": ("pivotal:",)}, [], "method 'pivotal:' cannot be read"),
        ({"methods": ("pivotal:method.nothing=1",)}, [], "nothing"),
        ({"methods": ("missing.yaml",)}, [], "recipe missing.yaml does not exist"),
        ({}, ["--concept=flute"], "concept 'flute' is not in"),
        ({}, ["--pairs=zing"], "pair 'zing' cannot be read"),
        ({}, ["--pairs=zing+flute"], "'flute' is not known"),
        ({}, ["--seed=-1"], "seed -1 must be 0 or more"),
        ({"base": "no base at all"}, [], "unknown base"),
        ({"embedder": "nothing here"}, [], "unknown embedder"),
        ({"prompts": "0"}, [], "0 prompts are too few"),
        ({"seconds": "0"}, [], "0 seconds cannot be made"),
        ({"seconds": "60"}, [], "60 seconds is too long"),
        ({"general": "1"}, [], "1 general clips cannot be used"),
        ({"steps": "0"}, [], "steps 0 must be at least 1"),
        ({}, ["--general-music=3"], "music of 3 general clips cannot be made; give 0, or 2 to 2"),
        ({}, ["--general-music=1"], "music of 1 general clips cannot be made"),
        ({}, ["--jobs=0"], "0 jobs cannot work"),
        ({}, ["--joint=1"], "--joint is about pairs"),
        ({}, ["--joint=99", "--pairs=zing+bop"], "99 tokens cannot carry a concept"),
        ({"methods": ("lora:reference.seconds=60",)}, [], "bop has only 6 seconds to learn from"),
        ({"methods": ("lora:reference.seconds=0",)}, [], "must be a number of seconds"),
        ({"data": None}, [], "no --data given"),
    ],
)
def test_bad_input_is_one_line(
    bench: Any,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    more: list[str],
    says: str,
) -> None:
    out = bench(*more, **options)
    assert bench.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and says in said[0]
    assert not (out / "cells").exists()


def test_folders_that_are_something_else(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for data, says in ((tmp_path / "empty", "holds no concept set"), (tmp_path / "x", "exist")):
        bench(data=data)
        assert bench.code == 2 and says in capsys.readouterr().err
    out = tmp_path / "out"
    out.mkdir()
    (out / "song.txt").write_text("mine")
    bench(methods=("none",))
    assert bench.code == 2 and "already exists" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["song.txt"]
    (out / "song.txt").unlink()
    out.rmdir()
    out.write_text("a file")
    bench(methods=("none",))
    assert bench.code == 2 and "is a file" in capsys.readouterr().err
    assert out.read_text() == "a file"


def test_out_may_not_hold_the_data(
    bench: Any, toys: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    bench("--overwrite", methods=("none",), out=toys.set)
    assert bench.code == 2 and "would replace" in capsys.readouterr().err
    assert (toys.set / "zing" / "concept.json").is_file()
