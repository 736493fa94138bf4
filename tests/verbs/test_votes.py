"""``musictune votes`` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musictune.__main__ import main
from musictune.data.preferences import Pair, read_ratings, read_votes
from musictune.data.vote_store import VoteStore


@pytest.fixture
def store(tmp_path: Path) -> Path:
    pairs = []
    for index in range(3):
        paths = [tmp_path / f"{system}{index}.wav" for system in ("old", "new")]
        for number, path in enumerate(paths):
            soundfile.write(path, np.full(800, 0.01 * (2 * index + number + 1)), 8_000)
        pairs.append(Pair(str(index), f"piece {index}", *paths, "old", "new"))
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pairs(pairs)
        store.add_clips([(pairs[0].a, "piece 0", "old")])
        for rater in ("Ana", "Ben"):
            while trial := store.next_trial(rater):
                newer = store.sound(trial.first) in [pair.b for pair in pairs]
                store.vote(trial.id, "first" if newer else "second", ["mix"], 1.0)
            clip = store.next_clip(rater)
            assert clip is not None
            store.rate(clip.id, 40)
    return tmp_path / "votes.db"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["votes", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_report_names_what_was_found(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(store, "--json", tmp_path / "votes.json") == 0
    out = capsys.readouterr().out
    assert "6 votes on 3 pairs: 0 a, 6 b, 0 ties, 0 skipped" in out
    assert "2 raters" in out
    assert "not computed, all values are the same" in out
    rows = [line.split() for line in out.splitlines()]
    assert next(row for row in rows if row[:1] == ["new"])[5:8] == ["6", "0", "0"]
    figures = json.loads((tmp_path / "votes.json").read_text())
    assert figures["counts"]["votes"] == 6
    assert figures["ranking"][0]["system"] == "new"
    assert figures["ratings"]["old"]["value"] == 40


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_an_export_can_be_read_reported_and_imported(
    store: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    votes, ratings = tmp_path / f"out{suffix}", tmp_path / f"out-ratings{suffix}"
    assert run(store, "--export", votes) == 0
    assert read_votes(votes) == read_votes(store)
    assert read_ratings(ratings) == read_ratings(store)
    assert run(store, "--export", votes) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert run(store, "--export", votes, "--overwrite") == 0
    assert run(votes) == 0
    assert run(ratings) == 0
    assert "2 ratings of 1 clips" in capsys.readouterr().out
    new = tmp_path / "new.db"
    assert run(new, "--import", votes) == 0
    assert run(new, "--import", ratings) == 0
    assert run(new, "--import", store) == 0
    assert "0 of 6 votes and 0 of 2 ratings" in capsys.readouterr().err
    assert read_votes(new) == read_votes(store)
    assert read_ratings(new) == read_ratings(store)


def test_bad_input_is_one_line_and_leaves_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "out.csv"
    assert run(store, "--export", export) == 0
    empty = tmp_path / "empty.db"
    VoteStore(empty).close()
    (tmp_path / "old0.wav").unlink()
    before = set(tmp_path.iterdir())
    capsys.readouterr()
    for arguments, complaint in [
        ((tmp_path / "none.db",), "do not exist"),
        ((empty,), "no votes and no ratings"),
        ((tmp_path / "new.db", "--import", export), "does not exist; put it back"),
        ((tmp_path / "new.db", "--import", empty), "nothing was imported"),
        ((export, "--import", store), "--import needs a store"),
        ((store, "--export", tmp_path / "out.txt"), "must end in .jsonl or .csv"),
        ((store, "--export", tmp_path), "name a file in a folder that exists"),
        ((store, "--json", tmp_path / "nowhere" / "x.json"), "name a file in a folder"),
    ]:
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert len(error.strip().splitlines()) == 1
    assert set(tmp_path.iterdir()) == before
