"""The kernel distance against plain loops and closed forms, and how often its interval is right."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.metrics import kernel_distance as module
from musictune.metrics.base import Score
from musictune.metrics.features import Features
from musictune.metrics.kernel_distance import KernelDistance, kernel_distance, median_distance


def draw(seed: int, lengths: list[int], width: int = 6, shift: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    return Features(rng.standard_normal((sum(lengths), width)) + shift, np.array(lengths))


def plain(made: Features, reference: Features, sigma: float) -> float:
    """The definition, pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-np.square(a - b).sum() / (2 * sigma**2))

    def within(features: Features) -> float:
        found = [
            kernel(a, b)
            for one, other in itertools.permutations(range(len(features)), 2)
            for a in features[one]
            for b in features[other]
        ]
        return float(np.mean(found))

    across = np.mean([kernel(a, b) for a in made.points for b in reference.points])
    return 100 * (within(made) + within(reference) - 2 * float(across))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 2),
    mine=st.lists(st.integers(1, 4), min_size=2, max_size=6),
    theirs=st.lists(st.integers(1, 4), min_size=2, max_size=6),
    shift=st.floats(-3, 3),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_equals_the_definition_and_is_symmetric(
    seed: int, mine: list[int], theirs: list[int], shift: float, scale: float
):
    made, reference = draw(seed, mine, shift=shift), draw(seed + 1, theirs)
    made = Features(made.points * scale, made.lengths)
    reference = Features(reference.points * scale, reference.lengths)
    result = kernel_distance(made, reference)
    assert result.value == pytest.approx(plain(made, reference, result.bandwidth), abs=2e-4)
    turned = kernel_distance(reference, made, result.bandwidth)
    # Single precision sums in another order, as far off as the definition may be.
    assert turned.value == pytest.approx(result.value, rel=2e-6, abs=1e-4)
    assert result.bandwidth == pytest.approx(median_of(reference.points), rel=1e-4)


def median_of(points: np.ndarray) -> float:
    pairs = itertools.combinations(points, 2)
    return float(np.median([np.sqrt(np.square(a - b).sum()) for a, b in pairs]))


def test_two_shifted_gaussians_in_closed_form():
    """E exp(-|u|² / 2s²) of u ~ N(m, 2I) is (1 + 2 / s²)^(-d/2) exp(-|m|² / (2 (s² + 2)))."""
    width, sigma, gap = 3, 1.5, 1.0
    made, reference = draw(0, [1] * 5000, width, gap), draw(1, [1] * 5000, width)
    peak = (1 + 2 / sigma**2) ** (-width / 2)
    truth = 200 * peak * (1 - math.exp(-width * gap**2 / (2 * (sigma**2 + 2))))
    result = kernel_distance(made, reference, sigma)
    assert result.low < truth < result.high
    assert result.value == pytest.approx(truth, rel=0.05)


def test_pairs_of_one_clip_do_not_count():
    """Copies of a clip's row add nothing: the distance is that of one row each."""
    one_each, reference = draw(0, [1] * 12), draw(1, [1] * 15)
    copies = Features(np.repeat(one_each.points, 7, axis=0), np.full(12, 7))
    wanted = kernel_distance(one_each, reference)
    found = kernel_distance(copies, reference)
    assert found.value == pytest.approx(wanted.value, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-3)


def test_a_large_offset_or_a_far_set_costs_no_digits():
    made, reference = draw(0, [2] * 30, shift=0.3), draw(1, [3] * 30)
    wanted = kernel_distance(made, reference).value
    moved = [Features(f.points + 1e5, f.lengths) for f in (made, reference)]
    assert kernel_distance(*moved).value == pytest.approx(wanted, abs=1e-3)
    far = Features(made.points + 1e5, made.lengths)
    sigma = median_distance(reference)
    assert kernel_distance(far, reference, sigma).value == pytest.approx(
        plain(far, reference, sigma), abs=1e-2
    )


def test_blocks_agree_with_one_block(monkeypatch: pytest.MonkeyPatch):
    made, reference = draw(0, [3, 40, 1, 20] * 3), draw(1, [7] * 20, shift=0.4)
    whole = kernel_distance(made, reference)
    monkeypatch.setattr(module, "_BLOCK", 17)
    cut = kernel_distance(made, reference)
    for name in ("value", "low", "high", "bandwidth"):
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), abs=1e-4)


def test_the_interval_is_that_of_leaving_out_each_clip():
    made, reference = draw(0, [2, 1, 3, 1, 2], shift=0.5), draw(1, [1, 2, 2, 1])
    result = kernel_distance(made, reference)
    variance, weights = 0.0, []
    for features, turned in ((made, False), (reference, True)):
        without = []
        for clip in range(len(features)):
            rest = features.select([i for i in range(len(features)) if i != clip])
            pair = (made, rest) if turned else (rest, reference)
            without.append(kernel_distance(*pair, result.bandwidth).value)
        count = len(features)
        part = (count - 1) * float(np.var(without))
        variance += part
        weights.append(part**2 / (count - 1))
    from scipy.stats import t

    half = t.ppf(0.975, variance**2 / sum(weights)) * math.sqrt(variance)
    assert (result.low, result.high) == pytest.approx(
        (result.value - half, result.value + half), rel=1e-3
    )


def test_equal_draws_are_near_nil_and_a_set_is_further_the_more_it_is_moved():
    reference = draw(1, [2] * 200)
    values = [kernel_distance(draw(0, [2] * 200, shift=s), reference).value for s in (0, 0.5, 1)]
    assert abs(values[0]) < 0.5
    assert values == sorted(values)


def test_the_median_of_many_rows_is_that_of_a_seeded_sample(monkeypatch: pytest.MonkeyPatch):
    features = draw(3, [1] * 900)
    exact = median_distance(features)
    assert exact == pytest.approx(median_of(features.points[:400]), rel=0.03)
    monkeypatch.setattr(module, "_EXACT", 300)
    sampled = median_distance(features)
    assert sampled == pytest.approx(exact, rel=0.05)
    assert sampled == median_distance(features) != exact


@pytest.mark.parametrize("count", [1, 2, 3, 10, 4001, 50_000])
@pytest.mark.parametrize("order", ["drawn", "sorted", "equal"])
def test_the_middle_is_exact_whatever_the_sample_says(
    count: int, order: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_SAMPLE", 50)
    values = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    if order == "sorted":
        values.sort()
        values[:: count // 50 + 1] = 9  # all that the sample sees misleads
    values = np.zeros_like(values) if order == "equal" else values
    low, high = module._middle([values[: count // 3], values[count // 3 :]])
    ordered = np.sort(values)
    assert (low, high) == (ordered[(count - 1) // 2], ordered[count // 2])


def test_thinned_sets_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST", 100)
    score = KernelDistance()(draw(0, [4] * 50), draw(1, [1] * 60))["kernel_distance"]
    assert isinstance(score, Score)
    assert "100 of 200 made rows" in score.note
    assert "reference rows" not in score.note


def test_memory_stays_flat_for_rows_on_disk(tmp_path: Path):
    peaks = []
    for rows in (25_000, 100_000):
        points = np.lib.format.open_memmap(tmp_path / f"{rows}.npy", "w+", np.float32, (rows, 4))
        for start in range(0, rows, 25_000):
            points[start : start + 25_000] = draw(start, [25_000], 4).points
        made = Features(points, np.full(rows // 5, 5))
        tracemalloc.start()
        kernel_distance(made, draw(9, [2] * 20, 4))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000 * 40  # some bytes a row for whose it is


def test_the_score_keeps_its_bandwidth():
    made, reference = draw(0, [2] * 9), draw(1, [2] * 8)
    score = KernelDistance()(made, reference)["kernel_distance"]
    result = kernel_distance(made, reference)
    assert isinstance(score, Score)
    assert (score.value, score.low, score.high) == (result.value, result.low, result.high)
    assert score.n == 9
    assert score.note == f"bandwidth {result.bandwidth:.6g}"
    assert KernelDistance()(made, reference)["kernel_distance"] == score


def test_two_clips_have_a_value_but_no_interval():
    result = kernel_distance(draw(0, [3, 3]), draw(1, [2] * 6))
    assert math.isfinite(result.value)
    assert math.isnan(result.low) and math.isnan(result.high)


def test_a_collapsed_made_set_is_measured():
    silent = Features(np.full((10, 6), 0.1), np.full(5, 2))
    reference = draw(1, [2] * 20)
    result = kernel_distance(silent, reference)
    assert result.value == pytest.approx(plain(silent, reference, result.bandwidth), abs=1e-4)


def test_what_cannot_be_computed_says_why():
    good, silent = draw(0, [2] * 5), Features(np.full((10, 6), 0.1), np.full(5, 2))
    for made, reference, why in (
        (draw(1, [5]), good, "2 made clips or more, not 1"),
        (good, draw(1, [5]), "2 reference clips or more, not 1"),
        (Features(np.empty((0, 6)), np.array([], dtype=int)), good, "not 0"),
        (good, silent, "alike"),
    ):
        with pytest.raises(InputError, match=why):
            KernelDistance()(made, reference)


def test_bad_input_is_refused():
    good = draw(0, [2] * 5)
    broken = Features(
        np.where(np.arange(60).reshape(10, 6) == 7, np.nan, good.points), good.lengths
    )
    with pytest.raises(InputError, match="not finite"):
        KernelDistance()(broken, good)
    with pytest.raises(InputError, match="dimensions"):
        KernelDistance()(good, draw(0, [2] * 5, width=4))
    for bandwidth in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="above 0"):
            kernel_distance(good, good, bandwidth)
    assert math.isfinite(kernel_distance(good, draw(1, [2] * 5), 1e-30).value)


def test_a_reference_all_alike_is_out_of_reach_and_said_to_be():
    """Its own bandwidth tells nothing of music elsewhere: near and far score the same."""
    rng = np.random.default_rng(0)
    reference = Features(rng.standard_normal((20, 8)) * 0.01, np.full(10, 2))
    near, far = (Features(rng.standard_normal((8, 8)) + at, np.ones(8, int)) for at in (1, 9))
    for made in (near, far):
        assert kernel_distance(made, reference).across < 1e-6
        score = KernelDistance()(made, reference)["kernel_distance"]
        assert isinstance(score, Score) and "out of reach" in score.note
    assert kernel_distance(near, far, bandwidth=5.0).across == pytest.approx(
        np.mean([np.exp(-((a - b) @ (a - b)) / 50) for a in near.points for b in far.points])
    )


@pytest.mark.slow
@pytest.mark.parametrize(("clips", "rows", "alike"), [(500, 1, 0.0), (100, 10, 0.8)])
def test_the_interval_holds_the_truth(clips: int, rows: int, alike: float):
    """Gaussians of 48 dimensions, rows of a clip correlated; 300 trials against the closed form."""
    width, trials = 48, 300
    rng = np.random.default_rng(0)
    one = rng.standard_normal((width, width)) / math.sqrt(width)
    other = one * rng.uniform(0.7, 1.3, width)
    gap = rng.standard_normal(width) * 0.2

    def features(rng: np.random.Generator, root: np.ndarray, mean: np.ndarray) -> Features:
        centre = rng.standard_normal((clips, 1, width)) * math.sqrt(alike)
        noise = rng.standard_normal((clips, rows, width)) * math.sqrt(1 - alike)
        points = ((centre + noise) @ root.T + mean).reshape(-1, width)
        return Features(points, np.full(clips, rows))

    def expected(covariance: np.ndarray, mean: np.ndarray, sigma: float) -> float:
        wide = np.eye(width) + covariance / sigma**2
        exponent = -0.5 / sigma**2 * mean @ np.linalg.solve(wide, mean)
        return float(np.linalg.det(wide) ** -0.5 * np.exp(exponent))

    def truth(sigma: float) -> float:
        a, b = one @ one.T, other @ other.T
        alike_pairs = expected(2 * a, 0 * gap, sigma) + expected(2 * b, 0 * gap, sigma)
        return 100 * (alike_pairs - 2 * expected(a + b, gap, sigma))

    held, errors = 0, []
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        result = kernel_distance(features(rng, one, gap), features(rng, other, 0 * gap))
        right = truth(result.bandwidth)
        held += result.low <= right <= result.high
        errors.append(result.value - right)
    assert 0.90 <= held / trials <= 0.98, f"coverage {held / trials:.3f}"
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(trials)
