"""`musictune evaluate` from folders to a report, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune.__main__ import main
from musictune.audio import Clip, write
from musictune.errors import CheckFailed, InputError
from musictune.metrics.embedders import ClapEmbedder
from musictune.verbs.evaluate import Layout, Peer, evaluate


def music(folder: Path, low: float, text: str = "piano", *, listed: bool = True) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for i in range(3):
        time = torch.arange(16_000) / 8000
        wave = 0.3 * torch.sin(2 * math.pi * (low + 60 * i) * time)[None]
        write(Clip(wave, 8000), folder / f"{i:03d}.wav")
        line = {"file": f"{i:03d}.wav", "prompt": f"<x> tune {i}", "text": f"{text} tune {i}"}
        lines.append(json.dumps(line | {"seed": i, "base": "mini", "adapters": []}))
    if listed:
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "clap"
    ClapEmbedder.toy().save(folder)
    return str(folder)


def test_tuned_beside_base(tmp_path: Path, clap: str, capsys: pytest.CaptureFixture[str]):
    tuned = music(tmp_path / "tuned", 220)
    base = music(tmp_path / "base", 2000, text="<x>")
    reference = music(tmp_path / "mine", 230, listed=False)
    evaluate(tuned, reference, tmp_path / "report", against=base, embedder=clap)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.html", "metrics.json", "clips.csv"}
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert numbers["scores"]["difference/text_alignment"]["n"] == 3
    assert numbers["made_with"]["name"] == "tuned"
    assert numbers["made_with"]["checkpoint_hashes"]["embedder"] == ClapEmbedder.load(clap).hash
    shown = capsys.readouterr().out
    assert "Audio alignment" in shown
    assert "tuned" in shown.splitlines()[0]
    assert "base" in shown.splitlines()[0]
    assert f"{abs(numbers['scores']['audio_alignment']['value']):.3f}" in shown
    assert str(tmp_path / "report" / "report.html") in shown


def test_the_judge_reads_the_same_text_for_both_of_a_pair(tmp_path: Path, clap: str):
    tuned = music(tmp_path / "tuned", 220)
    base = music(tmp_path / "base", 220, text="<x>")  # the same sound, the trigger unresolved
    evaluate(tuned, tuned / "000.wav", tmp_path / "report", against=base, embedder=clap)
    scores = json.loads((tmp_path / "report" / "metrics.json").read_text())["scores"]
    assert scores["difference/text_alignment"]["value"] == 0
    assert scores["text_alignment"]["value"] == scores["against/text_alignment"]["value"]


def test_any_folder_of_audio_can_be_measured(
    tmp_path: Path, clap: str, capsys: pytest.CaptureFixture[str]
):
    made = music(tmp_path / "made", 220, listed=False)
    evaluate(made, made, tmp_path / "report", embedder=clap)
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "text_alignment" not in numbers["scores"]
    assert "no prompt" in numbers["not_computed"]["text_alignment"]
    assert "not computed: text_alignment, concept_score: no prompt" in capsys.readouterr().err


def test_bad_input_leaves_no_report(tmp_path: Path, clap: str):
    good = music(tmp_path / "good", 220)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "song.wav").write_text("these are words")
    out = tmp_path / "report"
    cases = [
        (tmp_path / "missing", good, None, "missing does not exist"),
        (tmp_path / "empty", good, None, "holds no audio"),
        (tmp_path / "text", good, None, "song.wav"),
        (good, tmp_path / "missing", None, "missing"),
        (good, tmp_path / "empty", None, "empty"),
        (good, tmp_path / "text", None, "song.wav"),
        (good, good, tmp_path / "missing", "missing"),
    ]
    for made, reference, against, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            evaluate(made, reference, out, against=against, embedder=clap)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    with pytest.raises(InputError, match="unknown embedder"):
        evaluate(good, good, out, embedder="nowhere at all")
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="unknown classifier"):
        evaluate(good, good, out, embedder=clap, classifier="nowhere at all", cache=cache)
    assert not cache.exists()  # refused before anything was heard
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "good", "text"]


def test_existing_report_and_inputs_are_kept(tmp_path: Path, clap: str):
    made = music(tmp_path / "out" / "made", 220)
    evaluate(made, made, tmp_path / "report", embedder=clap)
    with pytest.raises(InputError, match="already exists"):
        evaluate(made, made, tmp_path / "report", embedder=clap)
    evaluate(made, made, tmp_path / "report", embedder=clap, overwrite=True)
    for out in (made, tmp_path / "out"):
        with pytest.raises(InputError, match="would replace"):
            evaluate(made, made, out, embedder=clap, overwrite=True)
    assert len(list(made.iterdir())) == 4


def test_statistics_can_be_written_and_be_the_reference(tmp_path: Path, clap: str):
    made, mine = music(tmp_path / "made", 220), music(tmp_path / "mine", 300)
    fadtk = {"embedder": clap, "compat": [Peer.fadtk], "overwrite": True}
    evaluate(made, mine, tmp_path / "whole", **fadtk)
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    for layout in Layout:
        file = tmp_path / f"{layout}.npz"
        evaluate(
            mine, made, tmp_path / "own", embedder=clap, overwrite=True,
            save_statistics=file, layout=layout,
        )  # fmt: skip
        evaluate(made, file, tmp_path / "report", **fadtk)
        numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
        name = "fadtk_frechet_distance" if layout is Layout.fadtk else "frechet_distance"
        ours = numbers["scores"][name]["value"]
        assert ours == pytest.approx(whole["scores"][name]["value"], rel=1e-6)
        assert "statistics" in numbers["not_computed"]["audio_alignment"]
        unlike = [warning for warning in numbers["warnings"] if "like with like" in warning]
        assert len(unlike) == (layout is Layout.fadtk)


def test_statistics_of_another_embedder_or_none_are_refused(tmp_path: Path, clap: str):
    made = music(tmp_path / "made", 220)
    out = tmp_path / "report"
    np.savez(tmp_path / "big.npz", mu_ref=np.zeros(512), sigma_ref=np.eye(512))
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=r"big have 512 dimensions.*--embedder"):
        evaluate(made, tmp_path / "big.npz", out, embedder=clap, cache=cache)
    assert not out.exists()
    assert not cache.exists()  # refused before anything was heard
    (tmp_path / "no.npz").write_text("words")
    for name in ("no.npz", "missing.npz", "big.npz.npz:vggish"):
        with pytest.raises(InputError):
            evaluate(made, tmp_path / name, tmp_path / "other", embedder=clap)
    assert not (tmp_path / "other").exists()


def test_clips_that_cannot_be_scored_well_are_said(
    tmp_path: Path, clap: str, capsys: pytest.CaptureFixture[str]
):
    made = music(tmp_path / "made", 220, listed=False)
    write(Clip(torch.zeros(1, 8000), 8000), made / "silent.wav")
    write(Clip(0.1 * torch.rand(1, 1000), 16_000), made / "short.wav")
    evaluate(made, music(tmp_path / "mine", 300), tmp_path / "report", embedder=clap)
    shown = capsys.readouterr().err
    assert "mixes sample rates" in shown
    assert "1 of 5 made clips are silent" in shown
    for path in made.iterdir():
        path.unlink()
    write(Clip(torch.zeros(1, 8000), 8000), made / "silent.wav")
    with pytest.raises(InputError, match="all 1 made clips are silent"):
        evaluate(made, tmp_path / "mine", tmp_path / "none", embedder=clap)
    assert not (tmp_path / "none").exists()


def test_one_clip_is_scored_as_far_as_it_goes(tmp_path: Path, clap: str):
    made, mine = music(tmp_path / "made", 220, listed=False), music(tmp_path / "mine", 300)
    for extra in ("001.wav", "002.wav"):
        (made / extra).unlink()
    evaluate(made, mine, tmp_path / "report", embedder=clap)
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert numbers["scores"]["audio_alignment"]["low"] is None
    assert "kernel_distance" in numbers["not_computed"]


@pytest.mark.slow  # tests/metrics/test_listening.py has it for the features they come from
def test_scores_are_the_same_to_the_bit_for_any_number_of_workers(tmp_path: Path, clap: str):
    made, mine = music(tmp_path / "made", 220), music(tmp_path / "mine", 300)
    for name in ("000.wav", "001.wav"):  # heard already: other processes start for one set only
        shutil.copy(made / name, mine / name)
    found = []
    for index, workers in enumerate((1, 2)):
        out = tmp_path / f"report{index}"
        evaluate(made, mine, out, embedder=clap, workers=workers, cache=tmp_path / f"cache{index}")
        found.append(json.loads((out / "metrics.json").read_text())["scores"])
    assert found[0] == found[1]


def test_a_damaged_cache_is_said_and_heard_anew(
    tmp_path: Path, clap: str, capsys: pytest.CaptureFixture[str]
):
    made, mine = music(tmp_path / "made", 220), music(tmp_path / "mine", 300)
    cache = tmp_path / "cache"
    evaluate(made, mine, tmp_path / "first", embedder=clap, cache=cache)
    for entry in cache.rglob("*.rows"):
        entry.write_bytes(entry.read_bytes()[:-4])
    capsys.readouterr()
    evaluate(made, mine, tmp_path / "second", embedder=clap, cache=cache)
    assert "is damaged; hearing the audio again" in capsys.readouterr().err
    scores = [
        json.loads((tmp_path / name / "metrics.json").read_text())["scores"]
        for name in ("first", "second")
    ]
    assert scores[0] == scores[1]


def test_each_clip_has_its_own_distance(tmp_path: Path, clap: str):
    made, mine = music(tmp_path / "made", 220), music(tmp_path / "mine", 300)
    evaluate(made, mine, tmp_path / "report", against=mine, embedder=clap, compat=[Peer.fadtk])
    with (tmp_path / "report" / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(float(row["frechet_to_reference"]) >= 0 for row in rows)
    assert [bool(row["fadtk_frechet_distance"]) for row in rows] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("peer", list(Peer))
def test_the_numbers_of_other_tools_stand_beside_ours(tmp_path: Path, clap: str, peer: Peer):
    made, mine = music(tmp_path / "made", 220), music(tmp_path / "mine", 300)
    evaluate(made, mine, tmp_path / "report", embedder=clap, compat=[peer])
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    theirs = [name for name in numbers["scores"] if name.startswith(peer.value)]
    assert theirs
    assert all(math.isfinite(numbers["scores"][name]["value"]) for name in theirs)


def test_usage_errors_are_one_line_and_exit_with_2(
    tmp_path: Path, clap: str, capsys: pytest.CaptureFixture[str]
):
    made = music(tmp_path / "made", 220)
    given = ["evaluate", str(made), "--reference", str(made), "--out", str(tmp_path / "report")]
    for more in (
        ["--workers", "0"],
        ["--held-out", str(made)],
        ["--embedder", "vggish"],
        ["--save-statistics", "somewhere.txt"],
        ["--compat", "tfgan"],
        ["--fail-on-copying"],
        ["--base", "mini"],
        ["--save-statistics", str(tmp_path / "nowhere" / "a.npz")],
        ["--save-statistics", str(tmp_path / "report" / "a.npz")],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*given, *more])
        assert ended.value.code == 2
        shown = capsys.readouterr().err.strip()
        assert shown.startswith("musictune: error: ")
        assert len(shown.splitlines()) == 1
        assert not (tmp_path / "report").exists()


def test_training_clips_are_looked_at_before_hours_of_listening(tmp_path: Path, clap: str):
    made, cache = music(tmp_path / "made", 220), tmp_path / "cache"
    bad = music(tmp_path / "bad", 300, listed=False)
    (bad / "001.wav").write_text("words")
    sets = {"training": bad}, {"training": made, "held_out": bad}
    for given in sets:
        with pytest.raises(InputError, match=r"001\.wav is not audio"):
            evaluate(made, made, tmp_path / "out", embedder=clap, cache=cache, **given)
    assert not cache.exists()


def test_statistics_do_not_replace_an_input(tmp_path: Path, clap: str):
    made, file = music(tmp_path / "made", 220), tmp_path / "mine.npz"
    evaluate(made, made, tmp_path / "out", embedder=clap, save_statistics=file)
    before = file.read_bytes()
    with pytest.raises(InputError, match="would replace an input"):
        evaluate(made, file, tmp_path / "other", embedder=clap, save_statistics=file)
    assert file.read_bytes() == before


def test_copying_that_cannot_be_looked_for_does_not_pass(tmp_path: Path, clap: str):
    made, out = music(tmp_path / "made", 220, listed=False), tmp_path / "report"
    silent = tmp_path / "silent"
    silent.mkdir()
    write(Clip(torch.zeros(1, 80_000), 8000), silent / "a.wav")
    mine = music(tmp_path / "mine", 300, listed=False)
    given = {"embedder": clap, "training": mine, "held_out": silent, "overwrite": True}
    evaluate(made, mine, out, **given)
    with pytest.raises(CheckFailed, match=r"copying could not be looked for: .*silent"):
        evaluate(made, mine, out, fail_on_copying=True, **given)
    assert (out / "report.html").is_file()


def test_a_single_short_clip_beside_another_is_scored(tmp_path: Path, clap: str):
    for name in ("made", "mine"):
        (tmp_path / name).mkdir()
        write(Clip(0.1 * torch.rand(1, 1000), 8000), tmp_path / name / f"{name}.wav")
    evaluate(tmp_path / "made", tmp_path / "mine", tmp_path / "report", embedder=clap)
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "audio_alignment" in numbers["scores"]
    assert "frechet_distance" in numbers["not_computed"]
