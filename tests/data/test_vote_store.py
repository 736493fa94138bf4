"""Votes are dealt blind, kept at once and never lost."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musictune.data.preferences import Pair, Rating, Vote
from musictune.data.vote_store import VoteStore
from musictune.errors import InputError
from tests.data.vote_sounds import put_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return put_pairs(tmp_path / "sounds", 4)


@pytest.fixture
def store(tmp_path: Path, pairs: list[Pair]) -> VoteStore:
    store = VoteStore(tmp_path / "votes.db")
    assert store.add_pairs(pairs) == len(pairs)
    return store


def test_each_rater_meets_every_pair_once_and_the_votes_say_what_was_chosen(
    store: VoteStore, pairs: list[Pair]
) -> None:
    wanted = {}
    while trial := store.next_trial(" Ana "):
        pair = next(p for p in pairs if p.prompt == trial.prompt)
        first = store.sound(trial.first)
        assert {first, store.sound(trial.second)} == {pair.a, pair.b}
        store.vote(trial.id, "first", ["rhythm"], 2.5)
        wanted[pair.id] = "a" if first == pair.a else "b"
    votes = store.votes()
    assert {vote.pair.id: vote.choice for vote in votes} == wanted
    assert [vote.pair for vote in votes] == [
        next(p for p in pairs if p.id == vote.pair.id) for vote in votes
    ]
    assert len(wanted) == 4
    for vote in votes:
        assert (vote.rater, vote.why, vote.seconds) == ("Ana", ("rhythm",), 2.5)
        assert vote.choice == vote.first
    assert store.progress("Ana") == (4, 4)
    assert store.progress("Ben") == (0, 4)


def test_an_open_trial_is_given_again_until_it_is_answered(store: VoteStore) -> None:
    trial = store.next_trial("Ana")
    assert trial is not None
    assert store.next_trial("Ana") == trial
    other = store.next_trial("Ben")
    assert other is not None
    assert other.id != trial.id
    assert {trial.first, trial.second}.isdisjoint({other.first, other.second})
    store.vote(trial.id, "tie")
    following = store.next_trial("Ana")
    assert following is not None
    assert following.id != trial.id


def test_pairs_with_fewer_answers_come_first(store: VoteStore) -> None:
    for _ in range(3):
        trial = store.next_trial("Ana")
        assert trial is not None
        store.vote(trial.id, "skip")
    answered = {vote.pair.prompt for vote in store.votes()}
    trial = store.next_trial("Ben")
    assert trial is not None
    assert trial.prompt not in answered


def test_the_order_is_each_raters_own_and_both_positions_are_used(tmp_path: Path) -> None:
    pairs = put_pairs(tmp_path / "many", 24)
    orders, firsts = [], Counter[str]()
    for name in ("one.db", "two.db"):
        with VoteStore(tmp_path / name) as store:
            store.add_pairs(pairs)
            for rater in ("Ana", "Ben"):
                order = []
                for _ in pairs:
                    trial = store.next_trial(rater)
                    assert trial is not None
                    order.append(trial.prompt)
                    store.vote(trial.id, "skip")
                orders.append(order)
            firsts.update(vote.first for vote in store.votes())
    assert orders[0] == orders[2]
    assert orders[1] == orders[3]
    assert orders[0] != orders[1]
    assert min(firsts.values()) > 20  # of 96: over five deviations off


def test_the_same_answer_twice_is_one_and_another_is_refused(store: VoteStore) -> None:
    trial = store.next_trial("Ana")
    assert trial is not None
    store.vote(trial.id, "second", ["sound"], 3.0)
    before = store.votes()
    store.vote(trial.id, "second", ["sound"], 9.0)
    assert store.votes() == before
    with pytest.raises(InputError, match="already been answered otherwise"):
        store.vote(trial.id, "first", ["sound"])
    with pytest.raises(InputError, match="already been answered otherwise"):
        store.vote(trial.id, "second", [])
    assert store.votes() == before


def test_undo_opens_the_last_answers_again_one_by_one(store: VoteStore) -> None:
    given = []
    for _ in range(2):
        trial = store.next_trial("Ana")
        assert trial is not None
        store.vote(trial.id, "first")
        given.append(trial)
    waiting = store.next_trial("Ana")
    assert waiting is not None
    assert store.undo("Ben") is None
    assert store.undo("Ana") == given[1].id
    assert store.undo("Ana") == given[0].id
    assert store.undo("Ana") is None
    assert store.votes() == []
    for expected in (*given, waiting):
        assert store.next_trial("Ana") == expected
        store.vote(expected.id, "second")
    assert store.progress("Ana") == (3, 4)


def test_ratings_are_kept_and_undone_like_votes(store: VoteStore, pairs: list[Pair]) -> None:
    clips = [(pair.a, pair.prompt, "old") for pair in pairs[:2]]
    assert store.add_clips(clips) == 2
    assert store.add_clips(clips) == 0
    heard = set()
    while trial := store.next_clip("Ana"):
        assert store.next_clip("Ana") == trial
        heard.add(store.sound(trial.sound))
        store.rate(trial.id, 70, ["warm"])
        store.rate(trial.id, 70.0, ["warm"])
        last = trial
    assert heard == {path for path, _, _ in clips}
    assert [(r.value, r.why, r.system) for r in store.ratings()] == [(70.0, ("warm",), "old")] * 2
    assert store.progress("Ana", rating=True) == (2, 2)
    with pytest.raises(InputError, match="already been answered otherwise"):
        store.rate(last.id, 71)
    vote = store.next_trial("Ana")
    assert vote is not None
    store.vote(vote.id, "tie")
    assert store.undo("Ana") == vote.id
    assert store.undo("Ana") == last.id
    assert store.next_clip("Ana") == last


def test_what_cannot_be_an_answer_is_refused(store: VoteStore, pairs: list[Pair]) -> None:
    trial = store.next_trial("Ana")
    assert trial is not None
    with pytest.raises(InputError, match="'third' is unknown"):
        store.vote(trial.id, "third")  # type: ignore[arg-type]
    for seconds in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InputError, match="seconds"):
            store.vote(trial.id, "first", seconds=seconds)
    for tags in ([""], ["x" * 81], ["a\nb"], ["x"] * 33):
        with pytest.raises(InputError, match="tag"):
            store.vote(trial.id, "first", tags)
    with pytest.raises(InputError, match="not in this store"):
        store.vote("nothing", "first")
    store.add_clips([(pairs[0].a, "piece", "old")])
    clip = store.next_clip("Ana")
    assert clip is not None
    for value in (-1, 100.5, float("nan")):
        with pytest.raises(InputError, match="from 0 to 100"):
            store.rate(clip.id, value)
    with pytest.raises(InputError, match="not in this store"):
        store.rate(trial.id, 50)
    for rater in ("", "  ", "x" * 81, "a\0b", "a\nb"):
        with pytest.raises(InputError, match="rater name"):
            store.next_trial(rater)
    assert store.votes() == []
    assert store.ratings() == []
    assert store.sound(trial.id) is None
    assert store.sound("../votes.db") is None


def test_the_same_name_written_otherwise_is_the_same_rater(store: VoteStore) -> None:
    assert store.next_trial("Zoe\u0308") == store.next_trial("Zo\u00eb")


def test_an_empty_store_has_nothing_to_ask(tmp_path: Path) -> None:
    with VoteStore(tmp_path / "votes.db") as store:
        assert store.next_trial("Ana") is None
        assert store.next_clip("Ana") is None
        assert store.progress("Ana") == (0, 0)
        assert store.votes() == []
        assert store.ratings() == []


def test_a_store_moved_with_its_sounds_still_plays_them(
    store: VoteStore, tmp_path: Path, pairs: list[Pair]
) -> None:
    trial = store.next_trial("Ana")
    assert trial is not None
    store.vote(trial.id, "first")
    store.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("votes.db", "sounds"):
        shutil.move(tmp_path / name, elsewhere / name)
    with VoteStore(elsewhere / "votes.db") as moved:
        path = moved.sound(trial.first)
        assert path is not None
        assert path.is_relative_to(elsewhere)
        assert moved.votes()[0].pair.a.is_relative_to(elsewhere)


def test_sounds_moved_by_themselves_are_found_once_their_pairs_are_added_again(
    store: VoteStore, tmp_path: Path, pairs: list[Pair]
) -> None:
    trial = store.next_trial("Ana")
    assert trial is not None
    shutil.move(tmp_path / "sounds", tmp_path / "better")
    assert store.sound(trial.first) is None
    found = [
        replace(
            pair,
            a=tmp_path / "better" / "old" / pair.a.name,
            b=tmp_path / "better" / "new" / pair.b.name,
        )
        for pair in pairs
    ]
    assert store.add_pairs(found) == 0
    path = store.sound(trial.first)
    assert path is not None
    assert path.is_relative_to(tmp_path / "better")


def test_a_sound_that_was_replaced_is_not_played(store: VoteStore) -> None:
    trial = store.next_trial("Ana")
    assert trial is not None
    path = store.sound(trial.first)
    assert path is not None
    soundfile.write(path, np.zeros(900), 8_000)
    assert store.sound(trial.first) is None


def test_pairs_are_added_all_or_none(store: VoteStore, tmp_path: Path, pairs: list[Pair]) -> None:
    more = put_pairs(tmp_path / "more", 6)[4:]
    with pytest.raises(InputError, match="does not exist"):
        store.add_pairs([*more, replace(more[0], id="gone", a=tmp_path / "gone.wav")])
    with pytest.raises(InputError, match="another prompt, sound or system"):
        store.add_pairs([*more, replace(pairs[0], prompt="other")])
    with pytest.raises(InputError, match="another prompt, sound or system"):
        store.add_pairs([*more, replace(pairs[0], a=pairs[1].a)])
    with pytest.raises(InputError, match="not Unicode"):
        store.add_pairs([*more, replace(pairs[0], id="odd", prompt="\udcff")])
    assert store.progress("Ana") == (0, 4)
    assert store.add_pairs(iter(more)) == 2


def test_votes_of_another_store_are_taken_over_once(
    store: VoteStore, tmp_path: Path, pairs: list[Pair]
) -> None:
    while trial := store.next_trial("Ana"):
        store.vote(trial.id, "second", ["mix"], 1.5)
    store.add_clips([(pairs[0].b, "piece 0", "new")])
    clip = store.next_clip("Ana")
    assert clip is not None
    store.rate(clip.id, 12.5)
    with VoteStore(tmp_path / "other.db") as other:
        assert other.add_votes(store.votes()) == 4
        assert other.add_votes(store.votes()) == 0
        assert other.add_ratings(store.ratings()) == 1
        assert other.add_ratings(store.ratings()) == 0
        assert other.votes() == store.votes()
        assert other.ratings() == store.ratings()
        assert other.next_trial("Ana") is None
        opposite = replace(store.votes()[0], choice="tie")
        assert other.add_votes([opposite]) == 1
        with pytest.raises(InputError, match="rater name"):
            other.add_votes([Vote(pairs[0], "a", "", "a")])
        with pytest.raises(InputError, match="does not exist"):
            other.add_ratings([Rating(tmp_path / "gone.wav", "", "", "Ana", 5)])
        assert len(other.votes()) == 5
