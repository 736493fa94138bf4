"""Which files belong to which set, and a single recording as several clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from musictune.evaluation.plan import Plan
from musictune.evaluation.sets import in_pieces, made_sets
from musictune.metrics.features import Features
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.listening import Heard
from musictune.metrics.suite import EMBEDDER, HeardSet


def recordings(lengths: list[int]) -> HeardSet:
    points = np.arange(2 * sum(lengths), dtype=np.float32).reshape(-1, 2)
    features = {EMBEDDER: Features(points, np.array(lengths), "clap")}
    files = tuple(ClipFile(Path(f"{i}.wav"), f"{i}.wav") for i in range(len(lengths)))
    return HeardSet(ClipSet("mine", files), Heard(features, ("",) * len(lengths)))


def test_one_recording_becomes_pieces_that_hold_all_of_it():
    one = recordings([7])
    pieces, (warning,) = in_pieces(one)
    assert pieces.points.lengths.tolist() == [2, 2, 3]
    assert pieces.points.key == "clap"
    assert np.array_equal(pieces.points.points, one.points.points)
    assert "mine is one recording, taken here as 3 pieces" in warning
    assert len(one.points) == 1


def test_several_recordings_and_short_ones_stay_as_they_are():
    for lengths in ([7, 2], [3]):
        same = recordings(lengths)
        assert in_pieces(same) == (same, [])


def music(folder: Path, prompts: dict[str, str]) -> Path:
    """A folder as `generate` leaves it, of prompts and what they say to a judge."""
    folder.mkdir()
    lines = []
    for seed, (prompt, text) in enumerate(prompts.items()):
        (folder / f"{seed}.wav").touch()
        line = {"file": f"{seed}.wav", "prompt": prompt, "text": text, "seed": seed}
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_plain_prompts_beside_a_concept_s_count_for_forgetting_alone(tmp_path: Path):
    tuned = music(
        tmp_path / "tuned", {"a <x>": "a harp", "slow drums": "slow drums", "<x>": "harp"}
    )
    base = music(
        tmp_path / "base", {"a harp": "a harp", "slow drums": "slow drums", "bass": "bass"}
    )
    sets, (warning,) = made_sets(Plan(tuned, tmp_path, against=base))
    assert [file.prompt for file in sets.made.files] == ["a <x>", "<x>"]
    assert sets.against is not None
    assert [file.prompt for file in sets.against.files] == ["a harp", "bass"]
    assert sets.pairs == [(0, 0)]
    assert [(a.prompt, b.prompt) for a, b in sets.plain] == [("slow drums", "slow drums")]
    assert "1 of 3 prompts of tuned do not call the concept" in warning


def test_where_no_prompt_calls_a_concept_all_count(tmp_path: Path):
    one = music(tmp_path / "one", {"drums": "drums", "bass": "bass"})
    other = music(tmp_path / "other", {"drums": "drums"})
    sets, warnings = made_sets(Plan(one, tmp_path, against=other))
    assert len(sets.made.files) == 2
    assert (sets.pairs, sets.plain, warnings) == ([(0, 0)], (), [])
