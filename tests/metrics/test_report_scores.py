"""The words and order of scores: claims that their intervals allow, numbers people can read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musictune.metrics.base import About, Score
from musictune.metrics.report_scores import changes, headline, number, score_names, sections
from musictune.metrics.suite import Evaluation


def test_headline_claims_only_what_the_interval_allows():
    def claim(low: float, high: float, name: str = "audio_alignment", p: float = 0.01) -> str:
        score = Score((low + high) / 2, low, high, 8, "higher")
        result = Evaluation({f"difference/{name}": score})
        result.p[f"difference/{name}"] = p
        return headline(result, "tuned", "base")[0][0]

    assert claim(0.1, 0.3) == "tuned sounds closer to the reference than base."
    assert claim(-0.3, -0.1) == "tuned sounds less like the reference than base."
    unclear = "Whether tuned sounds closer to the reference than base is not clear."
    assert claim(-0.1, 0.3) == unclear
    assert claim(math.nan, math.nan) == unclear
    assert claim(0.1, 0.3, p=0.09) == unclear
    same = claim(-0.1, 0.1, "text_alignment")
    assert same == "Whether tuned follows its prompts better than base is not clear."
    assert headline(Evaluation(), "tuned", "base") == []


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9), st.sampled_from(["higher", "lower"]))
def test_right_of_the_middle_is_better_in_spreads_of_the_differences(
    differences: list[float], better: str
):
    found = np.array(differences)
    spread = found.std(ddof=1)
    if spread < 1e-6 or abs(found.mean()) > 3 * spread:
        return
    value = Score(found.mean(), found.mean() - spread, found.mean() + spread, len(found), better)
    evaluation = Evaluation(
        scores={"difference/x": value},
        about={"x": About("X", "", better)},
        made={"x": found},
        against={"x": np.zeros(len(found))},
        pairs=[(i, i) for i in range(len(found))],
    )
    (change,) = changes(evaluation)
    assert change.plot
    mark = change.plot.marks[0]
    assert mark.start is not None
    assert mark.end is not None
    # The interval is two spreads wide, wherever it lies: that gives the scale.
    per_spread = (mark.end - mark.start) / 2
    sign = 1 if better == "higher" else -1
    if not mark.cut:
        assert mark.at == pytest.approx(50 + sign * per_spread * found.mean() / spread, abs=0.05)
    assert change.verdict in ("better", "worse", "unclear")


def test_differences_without_clips_are_drawn_by_their_interval_or_not_at_all():
    scores = {
        "difference/tempo_steered": Score(0.2, 0.1, 0.3, 25, "higher"),
        "difference/other": Score(0.2, math.nan, math.nan, 25, "higher"),
        "difference/same": Score(0.0, 0.0, 0.0, 25, "higher"),
    }
    drawn, other, same = changes(Evaluation(scores=scores))
    assert drawn.plot
    assert drawn.verdict == "better"
    assert (other.plot, other.verdict) == (None, "unclear")
    assert same.plot
    assert same.plot.marks[0].at == 50


def test_scores_are_grouped_by_what_they_tell():
    names = ("frechet_distance_debiased", "kl_made_to_reference", "silence", "tempo_agreement")
    names += ("key_followed", "key_steered", "copying/clap", "fadtk_frechet_distance", "own/thing")
    evaluation = Evaluation({n: Score(0.5, 0.4, 0.6, 5, "higher") for n in names})
    evaluation.made["silence"] = np.zeros(5)
    found = {s.title: [e.name for e in s.entries] for s in sections(evaluation, "made", "")}
    assert found == {
        "Sets as wholes": ["frechet_distance_debiased", "kl_made_to_reference"],
        "Signal health": ["silence"],
        "Musical agreement": ["tempo_agreement", "key_followed"],
        "Copying": ["copying/clap"],
        "Steerability": ["key_steered"],
        "As other tools count": ["fadtk_frechet_distance"],
        "Own": ["own/thing"],
    }
    assert set(score_names(evaluation)) == set(names)


def test_one_reason_for_many_scores_is_said_once():
    evaluation = Evaluation(not_computed=dict.fromkeys(("precision", "recall"), "too few clips"))
    (section,) = sections(evaluation, "made", "")
    assert section.missing == [("Precision, Recall", "too few clips")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.4567, "0.457"),
        (-0.4567, "−0.457"),
        (-18.345, "−18.34"),
        (1234.5, "1234"),
        (98765.0, "98765"),
        (0.0000213, "2.1e−05"),
        (math.nan, "not known"),
    ],
)
def test_numbers_have_the_digits_that_people_read(value: float, text: str):
    assert number(value) == text
