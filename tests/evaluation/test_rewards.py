"""Rewards by name: what is typed, what is needed, and that clips are heard once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musictune import audio
from musictune.audio import Clip
from musictune.errors import CheckFailed, InputError
from musictune.evaluation import rewards
from musictune.evaluation.rewards import REWARDS, load_reward, parse_reward
from musictune.metrics.alignment import AudioAlignment, TextAlignment
from musictune.metrics.embedders import ClapEmbedder

RATE = 16_000


def tone(pitch: float, seconds: float = 2.0) -> Clip:
    time = np.arange(round(seconds * RATE)) / RATE
    wave = 0.4 * np.sin(2 * np.pi * pitch * time) * np.exp(-4 * (time % 0.5))
    return Clip(torch.from_numpy(wave)[None].float(), RATE, "piano in A minor, 120 bpm", "tone")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ClapEmbedder:
    toy = ClapEmbedder.toy()
    monkeypatch.setattr(rewards, "load_embedder", lambda spec: toy)
    return toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(2):
        audio.write(tone(330.0 + 50 * index), tmp_path / f"{index}.wav")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("quality", "quality", 1.0),
        ("quality=0.5", "quality", 0.5),
        (" key=-2 ", "key", -2.0),
        ("aesthetics:CE=3", "aesthetics:CE", 3.0),
        ("reward:runs/mine", "reward:runs/mine", 1.0),
        ("reward:runs/lr=1e-4=2", "reward:runs/lr=1e-4", 2.0),
        ("reward:runs/lr=fast", "reward:runs/lr=fast", 1.0),
    ],
)
def test_names_and_weights(text: str, name: str, weight: float) -> None:
    assert parse_reward(text) == (name, weight)


@pytest.mark.parametrize("text", ["beauty", "", "quality:CE", "aesthetics:XX", "reward:", "=1"])
def test_what_is_not_known_is_refused_with_all_that_is(text: str) -> None:
    with pytest.raises(InputError, match="not known") as refused:
        parse_reward(text)
    assert all(name in str(refused.value) for name in REWARDS)


@pytest.mark.parametrize(
    "text", ["quality=", "quality=much", "quality=0", "quality=nan", "key=inf"]
)
def test_a_weight_is_a_number_other_than_0(text: str) -> None:
    with pytest.raises(InputError, match="finite number other than 0"):
        parse_reward(text)


def test_the_names_given_are_the_parts(toy: ClapEmbedder, folder: Path) -> None:
    names = ["text_alignment", "audio_alignment=2", "quality=0.5", "tempo", "key=-1", "novelty",
             "originality"]  # fmt: skip
    reward = load_reward(names, reference=folder, training=folder)
    assert {name: weight for name, (_, weight) in reward.parts.items()} == {
        "text_alignment": 1.0, "audio_alignment": 2.0, "quality": 0.5, "tempo": 1.0, "key": -1.0,
        "novelty": 1.0, "originality": 1.0,
    }  # fmt: skip
    clips = [tone(220.0, 3.0), tone(440.0, 3.0)]
    each = reward.each(clips)
    assert torch.equal(each["text_alignment"], TextAlignment(toy)(clips))
    reference = [audio.read(folder / f"{index}.wav") for index in range(2)]
    torch.testing.assert_close(each["audio_alignment"], AudioAlignment(toy, reference)(clips))
    expected = sum(weight * each[name] for name, (_, weight) in reward.parts.items())
    torch.testing.assert_close(reward(clips), expected)


def test_each_clip_is_heard_once(
    toy: ClapEmbedder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = load_reward(["text_alignment", "audio_alignment"], reference=folder)
    heard = []
    embed = ClapEmbedder.embed
    monkeypatch.setattr(
        ClapEmbedder, "embed", lambda self, windows: heard.append(1) or embed(self, windows)
    )
    clips = [tone(220.0), tone(440.0)]
    first = reward(clips)
    assert len(heard) == 2
    assert torch.equal(reward(clips), first)
    assert len(heard) == 2
    # By identity: an equal clip may have other samples by then.
    reward([tone(220.0), tone(440.0)])
    assert len(heard) == 4


def test_what_is_remembered_has_an_end(toy: ClapEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "_REMEMBERED", 2)
    remembering = rewards._Remembering(toy)
    clips = [tone(100.0 * i) for i in range(1, 6)]
    found = remembering.audio(clips)
    assert len(remembering._heard) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, toy.audio(clips), strict=True))
    assert remembering.key == toy.key
    found[-1].zero_()
    assert torch.equal(remembering.audio(clips[-1:])[0], toy.audio(clips[-1:])[0])


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([], "choose from"),
        (["quality", "quality=2"], "quality is given twice"),
        (["audio_alignment"], "audio_alignment needs --reference"),
        (["novelty"], "novelty needs --training"),
        (["originality"], "originality needs --training"),
        (["reward:nowhere"], "nowhere"),
    ],
)
def test_what_is_missing_is_said(toy: ClapEmbedder, names: list[str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_reward(names)


def test_text_needs_a_clap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "load_embedder", lambda spec: object())
    with pytest.raises(InputError, match="text_alignment needs a CLAP, and --embedder encodec"):
        load_reward(["text_alignment"], embedder="encodec")


def test_every_part_is_checked_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(clips: Any) -> Tensor:
        raise ValueError("no")

    monkeypatch.setattr(rewards, "SignalQuality", lambda: failing)
    with pytest.raises(CheckFailed, match="reward quality failed with ValueError: no"):
        load_reward(["quality"])([tone(220.0)])
    uncaptioned = Clip(tone(220.0).wave, RATE)
    with pytest.raises(InputError, match=r"reward tempo: .*120 bpm"):
        load_reward(["tempo"])([uncaptioned])


def test_a_learned_reward_hears_by_the_shared_clap(
    toy: ClapEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Learned:
        @staticmethod
        def load(folder: Path, *, embedder: Any, model: Any) -> Any:
            assert folder == Path("runs/mine")
            assert (embedder.key, model) == (toy.key, None)
            return lambda clips: torch.ones(len(clips))

    module = ModuleType("musictune.training.reward")
    module.LearnedReward = Learned  # type: ignore[attr-defined]
    module.reward_needs = lambda folder: ("", None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert load_reward(["reward:runs/mine=3"])([tone(220.0)]).tolist() == [3.0]


def test_all_names_are_explained() -> None:
    for about in REWARDS.values():
        assert about.title
        assert about.meaning.endswith(".")
        assert about.better == "higher"
