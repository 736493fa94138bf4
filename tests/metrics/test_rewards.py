"""Every value of a single clip can be a reward: what all rewards in the package have in common."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import musictune.metrics
from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.alignment import AudioAlignment, TextAlignment
from musictune.metrics.base import About, ClipMetric, Reward
from musictune.metrics.combined import Ensemble, OneScale, Weighted
from musictune.metrics.copying import Originality
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.novelty import Novelty
from musictune.metrics.quality import SignalQuality

CAPTION = "piano in A minor, 120 bpm"


def classes() -> Iterator[type]:
    """Every public class that a module of ``musictune.metrics`` defines."""
    package = musictune.metrics
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == info.name and not name.startswith("_"):
                yield kind


def is_reward(kind: type) -> bool:
    """Whether its instances turn clips alone into a tensor."""
    call = vars(kind).get("__call__")
    if call is None or kind is Reward:
        return False
    signature = inspect.signature(call)
    return list(signature.parameters)[1:] == ["clips"] and signature.return_annotation == "Tensor"


METRICS = {
    kind.__name__: kind
    for kind in classes()
    if issubclass(kind, ClipMetric) and not inspect.isabstract(kind)
}
OWN = {kind.__name__: kind for kind in classes() if is_reward(kind)}


def playing(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Clip:
    """Notes of A minor with a click on every beat, 120 to the minute."""
    time = np.arange(round(seconds * rate)) / rate
    notes = np.random.default_rng(seed).choice([220.0, 261.63, 329.63, 440.0], 64)
    pitch = notes[(time * 2).astype(int) % 64]
    wave = 0.3 * np.sin(2 * np.pi * pitch * time) * np.exp(-4 * (time % 0.5))
    wave += 0.3 * np.random.default_rng(seed).standard_normal(len(time)) * (time % 0.5 < 0.01)
    rows = [wave * (1 - 0.2 * channel) for channel in range(channels)]
    return Clip(torch.from_numpy(np.stack(rows)).float(), rate, CAPTION)


def level(value: float, seconds: float = 2.0) -> Clip:
    return Clip(torch.full((1, round(16_000 * seconds)), value), 16_000, CAPTION)


def built(kind: type) -> Reward:
    """A reward that is a class of its own, as its users build it."""
    if kind is AudioAlignment:
        return AudioAlignment(ClapEmbedder.toy(), [playing(2.0, seed=5)])
    if kind is TextAlignment:
        return TextAlignment(ClapEmbedder.toy())
    if kind is Originality:
        return Originality([playing(2.0, seed=5)])
    if kind is Novelty:
        return Novelty(ClapEmbedder.toy(), [playing(2.0, seed=5)])
    if kind is OneScale:
        return OneScale(SignalQuality(), 0.5, 0.1)
    if kind is Weighted:
        return Weighted({"quality": (SignalQuality(), 2.0)})
    if kind is Ensemble:
        return Ensemble([SignalQuality(), OneScale(SignalQuality(), 0.5, 0.1)])
    reward: Reward = kind()
    return reward


# What has no weights here; tests/metrics/test_aesthetics.py gives it some.
ELSEWHERE = {"Aesthetics"}


def value_reward(kind: type[ClipMetric], name: str) -> Callable[[], Reward]:
    return lambda: kind.toy().reward(name)


def given_as_rewards() -> dict[str, Callable[[], Reward]]:
    """How to build each reward, by a name for people."""
    makers: dict[str, Callable[[], Reward]] = {
        name: lambda kind=kind: built(kind)  # type: ignore[misc]
        for name, kind in OWN.items()
        if name not in ELSEWHERE
    }
    for metric, kind in METRICS.items():
        for name, about in kind.values.items():
            if about.better != "neither":
                makers[f"{metric}.{name}"] = value_reward(kind, name)
    return makers


MAKERS = given_as_rewards()
ORDINARY = [playing(3.0), playing(4.0, seed=1), playing(3.0, rate=22_050, channels=2, seed=2)]


@pytest.fixture(scope="module", params=sorted(MAKERS))
def reward(request: pytest.FixtureRequest) -> Reward:
    return MAKERS[request.param]()


def test_the_scan_finds_what_is_there() -> None:
    assert {"AudioAlignment", "TextAlignment"} <= set(OWN)
    assert METRICS
    assert any(name.startswith(f"{metric}.") for metric in METRICS for name in MAKERS)


def test_one_finite_number_for_each_ordinary_clip(reward: Reward) -> None:
    found = reward(ORDINARY)
    assert found.shape == (len(ORDINARY),)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    assert found.isfinite().all()
    assert not found.requires_grad


def test_the_same_clips_have_the_same_rewards_in_any_company(reward: Reward) -> None:
    found = reward(ORDINARY)
    assert torch.equal(reward(ORDINARY), found)
    assert torch.equal(torch.cat([reward([clip]) for clip in ORDINARY]), found)
    assert torch.equal(reward(ORDINARY[::-1]), found.flip(0))


@pytest.mark.parametrize(
    "clip",
    [level(0.0), level(1.0), playing(0.02), Clip(torch.zeros(1, 1), 16_000, CAPTION)],
    ids=["silent", "constant", "very short", "one silent sample"],
)
def test_odd_clips_have_a_number_or_no_praise(reward: Reward, clip: Clip) -> None:
    found = reward([clip, ORDINARY[0]])
    assert found.shape == (2,)
    assert not found.isnan().any()
    assert (found < math.inf).all()
    assert found[1].isfinite()
    # An odd neighbour changes nothing.
    assert torch.equal(found[1:], reward(ORDINARY[:1]))


def test_no_clips_are_no_rewards_or_refused(reward: Reward) -> None:
    try:
        found = reward([])
    except InputError as refused:
        assert "clip" in str(refused)
        return
    assert found.shape == (0,)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_says_which_way_is_better(name: str) -> None:
    metric = METRICS[name].toy()
    assert metric.key
    for about in metric.values.values():
        assert about.better in ("higher", "lower", "neither")
        assert about.title
        assert about.meaning.endswith(".")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_hears_one_row_that_its_rewards_sign(name: str) -> None:
    metric = METRICS[name].toy()
    rows = [metric.hear(clip) for clip in ORDINARY]
    assert all(row.shape == (1, len(metric.values)) for row in rows)
    for column, (value, about) in enumerate(metric.values.items()):
        heard = torch.tensor([float(row[0, column]) for row in rows])
        if about.better != "neither":
            found = metric.reward(value)(ORDINARY)
            assert torch.equal(found, heard if about.better == "higher" else -heard)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_what_is_unknown_or_has_no_better_way_is_no_reward(name: str) -> None:
    metric = METRICS[name].toy()
    useful = [value for value, about in metric.values.items() if about.better != "neither"]
    for value in ["beauty", *(set(metric.values) - set(useful))]:
        with pytest.raises(InputError, match=f"'{value}'") as refused:
            metric.reward(value)
        assert all(other in str(refused.value) for other in useful)


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_reward_of_its_own_says_what_is_high(name: str) -> None:
    text = (inspect.getdoc(OWN[name]) or "").lower()
    assert text.startswith("reward:"), "its first words say that it is one, and what it praises"


def test_what_is_not_known_is_no_praise() -> None:
    class Half(ClipMetric):
        """Knows the level of the first of two channels only."""

        key = "half"
        values = {"level": About("Level", "Mean of the samples.", "lower")}

        def hear(self, clip: Clip) -> np.ndarray:
            known = clip.channels == 2
            return np.array([[float(clip.wave[0].abs().mean()) if known else np.nan]])

    found = Half().reward("level")([level(0.5), Clip(torch.full((2, 9), 0.5), 16_000)])
    assert found.tolist() == [-math.inf, -0.5]
