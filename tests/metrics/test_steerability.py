"""Steerability of made-up hearings that follow their prompts, go against them, or ignore them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.compose.instruments import INSTRUMENTS
from musictune.errors import InputError
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.features import Features
from musictune.metrics.musical import KEYS, NO_KEY, Heard
from musictune.metrics.musical_asked import asked
from musictune.metrics.steerability import (
    STEERED,
    Steering,
    contrast_pairs,
    steerability,
    steering_difference,
)

PROMPTS = [
    f"{lead} solo in {key}, {bpm} bpm"
    for lead, key, bpm in itertools.product(
        ("piano", "french horn"), ("A minor", "D# major"), (70, 100)
    )
]
SEEDS = [3] * len(PROMPTS)


def heard(tempo: float = math.nan, key: str = NO_KEY) -> Heard:
    return Heard(tempo, key, 1.0, 2.0, np.zeros(12))


def faithful(prompts: list[str]) -> list[Heard]:
    found = [asked(prompt) for prompt in prompts]
    return [heard(one.tempo or math.nan, one.key or NO_KEY) for one in found]


def points(prompts: list[str]) -> np.ndarray:
    """One direction for each text, those of one instrument alike."""
    names = sorted({prompt.split(" solo")[0] for prompt in prompts})
    rng = np.random.default_rng(0)
    own = 0.1 * rng.standard_normal((len(prompts), 6))
    own[range(len(prompts)), [names.index(p.split(" solo")[0]) for p in prompts]] += 1
    return own


def values(steering: Steering) -> list[float]:
    found = [score for score in steering.scores.values() if isinstance(score, Score)]
    return [score.value for score in found]


def test_a_block_of_eight_prompts_has_four_pairs_of_each_kind():
    pairs = contrast_pairs(PROMPTS, SEEDS)
    assert Counter(pair.kind for pair in pairs) == {"tempo": 4, "key": 4, "instrument": 4}
    for pair in pairs:
        first, second = (prompt.split() for prompt in pair.prompts)
        assert pair.prompts == (PROMPTS[pair.i], PROMPTS[pair.j]) and pair.seed == 3
        assert pair.kind != "tempo" or first[:-2] == second[:-2]
        assert pair.kind != "instrument" or first[-6:] == second[-6:]
    contexts = Counter((pair.kind, pair.context) for pair in pairs)
    assert set(contexts.values()) == {1}


def test_only_clips_of_one_seed_are_pairs():
    both = contrast_pairs(PROMPTS * 2, [3] * 8 + [4] * 8)
    assert len(both) == 24
    assert all(pair.i // 8 == pair.j // 8 for pair in both)
    assert contrast_pairs(PROMPTS, range(8)) == []
    assert contrast_pairs(PROMPTS, [None] * 8) == []
    assert contrast_pairs([], []) == []


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ("slow piano, 70 bpm", "slow piano, 100 bpm", "tempo"),
        ("70 bpm piano", "100 BPM  Piano", "tempo"),
        ("piano, 70 bpm", "piano, 140 bpm", None),  # an octave apart: nobody hears which is meant
        ("piano, 100 bpm", "piano, 105 bpm", None),
        ("piano, 70 bpm", "piano", None),
        ("slow piano, 70 bpm", "fast piano, 100 bpm", None),
        ("piano in C major", "piano in C minor", "key"),
        ("piano in D# major", "piano in Eb major", None),
        ("piano in C major, 70 bpm", "piano in D major, 100 bpm", None),
        ("piano", "flute", "instrument"),
        ("a nylon guitar solo", "a church organ solo", "instrument"),
        ("rock with organ and drums", "rock with piano and drums", "instrument"),
        ("a sad piano", "a happy piano", None),
        ("sad piano", "happy flute", None),
        ("piano solo", "piano solo", None),
        ("", "", None),
    ],
)
def test_what_differs_in_one_fact(a: str, b: str, kind: str | None):
    pairs = contrast_pairs([a, b], [0, 0])
    assert [pair.kind for pair in pairs] == ([kind] if kind else [])


def test_every_instrument_of_the_composer_makes_a_pair():
    names = [name for item in INSTRUMENTS.values() for name in item.names]
    for name in names:
        other = "harp" if "tuba" in name else "tuba"
        pairs = contrast_pairs([f"a {name} solo", f"a {other} solo"], [0, 0])
        assert len(name.split()) > 2 or [pair.kind for pair in pairs] == ["instrument"], name


def test_who_follows_has_one_and_who_goes_against_has_nothing():
    texts = points(PROMPTS)
    right = steerability(PROMPTS, SEEDS, faithful(PROMPTS), texts[:, None], texts)
    assert list(right.scores) == list(STEERED) and values(right) == [1, 1, 1]
    assert len(right.outcomes) == len(right.pairs) == 12
    for score in right.scores.values():
        assert isinstance(score, Score) and (score.n, score.better) == (4, "higher")
        assert score.low > 0.5 and "p 0.125 against luck" in score.note  # 2 of 2 ** 4 swaps
    # Everything the other way round: each prompt's opposite in all three facts.
    wrong = [PROMPTS[7 - i] for i in range(8)]
    against = steerability(PROMPTS, SEEDS, faithful(wrong), texts[::-1][:, None], texts)
    assert values(against) == [0, 0, 0]


def test_octaves_of_the_tempo_do_not_matter():
    doubled = [heard(h.tempo * 2 ** (i % 3 - 1), h.key) for i, h in enumerate(faithful(PROMPTS))]
    assert values(steerability(PROMPTS, SEEDS, doubled)) == [1, 1]


def test_who_ignores_the_prompt_is_at_luck_whatever_it_plays():
    for one in (heard(70, "A minor"), heard(100, "D# major"), heard(83, "C major"), heard()):
        same = steerability(PROMPTS, SEEDS, [one] * 8, [np.ones((2, 6))] * 8, points(PROMPTS))
        assert values(same) == [0.5, 0.5, 0.5]
        assert set(same.outcomes) == {0.5}
        for score in same.scores.values():
            assert isinstance(score, Score) and "p 1 against luck" in score.note
            assert "4 of 4 pairs undecided" in score.note


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.data())
def test_swapping_what_was_heard_turns_every_outcome(random, data):
    tempo = [random.uniform(60, 180) for _ in PROMPTS]
    key = [random.choice(KEYS) for _ in PROMPTS]
    hearings = [heard(*pair) for pair in zip(tempo, key, strict=True)]
    before = steerability(PROMPTS, SEEDS, hearings)
    pair = data.draw(st.sampled_from([p for p in before.pairs if p.kind != "instrument"]))
    swapped = list(hearings)
    swapped[pair.i], swapped[pair.j] = hearings[pair.j], hearings[pair.i]
    after = steerability(PROMPTS, SEEDS, swapped)
    place = before.pairs.index(pair)
    assert before.outcomes[place] + after.outcomes[place] == 1


def test_one_clip_that_is_silent_leaves_the_other_to_decide():
    prompts = ["piano, 70 bpm", "piano, 100 bpm"]
    for tempi, wanted in (((70, math.nan), 1), ((100, math.nan), 0), ((math.nan, math.nan), 0.5)):
        found = steerability(prompts, [0, 0], [heard(tempo) for tempo in tempi])
        assert found.outcomes.tolist() == [wanted]
        score = found.scores["tempo_steered"]
        assert isinstance(score, Score) and math.isnan(score.low)  # one context


def test_what_is_missing_is_said():
    bare = steerability(PROMPTS, SEEDS, faithful(PROMPTS))
    missing = bare.scores["instrument_steered"]
    assert isinstance(missing, NotComputed) and "reads text" in missing.reason
    assert np.isnan(bare.outcomes).sum() == 4
    for prompts in ([], ["a tune"], ["a tune", "another tune"]):
        none = steerability(prompts, [0] * len(prompts), [heard()] * len(prompts))
        for score in none.scores.values():
            assert isinstance(score, NotComputed) and "configs/steering.txt" in score.reason


def test_bad_input_is_refused():
    texts = points(PROMPTS)
    with pytest.raises(InputError, match="7 seeds do not fit 8"):
        contrast_pairs(PROMPTS, SEEDS[1:])
    with pytest.raises(InputError, match="1 hearings do not fit 8"):
        steerability(PROMPTS, SEEDS, [heard()])
    with pytest.raises(InputError, match="7 texts do not fit 8"):
        steerability(PROMPTS, SEEDS, faithful(PROMPTS), texts[:, None], texts[1:])
    with pytest.raises(InputError, match="6 and texts of 5 dimensions"):
        steerability(PROMPTS, SEEDS, faithful(PROMPTS), texts[:, None], texts[:, 1:])
    texts[2, 1] = math.nan
    with pytest.raises(InputError, match="not finite"):
        steerability(PROMPTS, SEEDS, faithful(PROMPTS), Features.of(list(texts[:, None])), texts)


def test_the_difference_of_two_models_is_over_shared_pairs():
    right = steerability(PROMPTS, SEEDS, faithful(PROMPTS))
    luck = steerability(PROMPTS[::-1], SEEDS, [heard(70, "A minor")] * 8)
    # The base's clips come in another order, so the pairs have to be found by their prompts.
    found = steering_difference(right, luck)
    for name in ("tempo_steered", "key_steered"):
        score = found[name]
        assert isinstance(score, Score)
        assert (score.value, score.n) == (0.5, 4) and "p 0.125" in score.note
    assert isinstance(found["instrument_steered"], NotComputed)
    other = steerability(PROMPTS, [9] * 8, faithful(PROMPTS))
    assert all(isinstance(one, NotComputed) for one in steering_difference(right, other).values())


def test_the_prompts_of_the_repository_are_pairs_of_all_kinds():
    prompts = (Path(__file__).parents[2] / "configs" / "steering.txt").read_text().splitlines()
    pairs = contrast_pairs(prompts, [0] * len(prompts))
    assert len(set(prompts)) == len(prompts) == 32
    assert Counter(pair.kind for pair in pairs) == {"tempo": 16, "key": 16, "instrument": 16}
    # Within a kind no clip is in two pairs, so that pairs are independent.
    assert set(Counter((p.kind, i) for p in pairs for i in (p.i, p.j)).values()) == {1}
