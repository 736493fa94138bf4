"""A second judge: what prompts name, and whether it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from musictune.audio import Clip
from musictune.bench.judged import JudgedText, Named, named
from musictune.errors import InputError
from musictune.models.judge import KEYS, Heard, Judge


@pytest.mark.parametrize(
    ("prompt", "families", "drums", "key"),
    [
        ("a slow piano solo in D# major, 84 bpm", ("piano",), None, "D# major"),
        ("fast rock with bass guitar, electric guitar and drums",
         ("bass", "guitar", "drums"), True, None),
        ("Violin melody over STRINGS, no drums", ("strings",), False, None),
        ("voices with piano, without percussion", ("choir", "piano"), False, None),
        ("solo drums", ("drums",), True, None),
        ("film music with bass lead, pizzicato strings", ("synth lead", "plucked"), None, None),
        ("a koto in A minor", ("plucked",), None, "A minor"),
        ("pianola for a flautist", (), None, None),
    ],
)  # fmt: skip
def test_what_a_prompt_names(
    prompt: str, families: tuple[str, ...], drums: bool | None, key: str | None
) -> None:
    assert named(prompt) == Named(families, drums, key)


class Sure:
    """A judge that has been told."""

    config = Judge.load().config

    def __init__(self, lead: str, present: Sequence[str], key: str) -> None:
        leads = {family: 0.9 if family == lead else 0.0 for family in self.config.families}
        there = {family: 0.8 if family in present else 0.1 for family in self.config.families}
        self.said = Heard(lead, leads, there, key, tuple(0.7 if k == key else 0.0 for k in KEYS))

    def hear(self, clips: Sequence[Clip]) -> list[Heard]:
        return [self.said for _ in clips]


@pytest.mark.parametrize(
    ("prompt", "chances"),
    [
        ("a flute melody over piano in A minor", [0.9, 0.8, 0.7]),
        ("a piano melody over flute in B major", [0.0, 0.1, 0.0]),
        ("flute with piano and drums", [0.9, 0.8, 0.1]),
        ("flute, no drums", [0.9, 0.9]),
        ("in A minor", [0.7]),
        ("drums", [0.0]),
    ],
)
def test_the_mean_chance_of_all_that_is_named(prompt: str, chances: list[float]) -> None:
    judge = Sure("flute", ["piano"], "A minor")
    clip = Clip(torch.zeros(1, 9), 16_000, prompt)
    found = JudgedText(judge)([clip])  # type: ignore[arg-type]
    assert float(found[0]) == pytest.approx(sum(chances) / len(chances))


def test_a_prompt_that_names_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="'something nice'"):
        JudgedText()([Clip(torch.zeros(1, 9), 16_000, "something nice")])


def test_it_hears_who_plays() -> None:
    """Synthetic sounds as the judge knows them: an organ's held chord, a drum's noise."""
    time = np.arange(4 * 32_000) / 32_000
    chord = sum(
        np.sin(2 * np.pi * pitch * n * time) / n
        for pitch in (220.0, 261.63, 329.63)
        for n in (1, 2, 3, 4, 6, 8)
    )
    burst = np.random.default_rng(0).standard_normal(len(time)) * np.exp(-40 * (time % 0.25))
    organ = Clip(torch.from_numpy(0.1 * chord)[None].float(), 32_000, "a hammond organ solo")
    drums = Clip(torch.from_numpy(0.3 * burst)[None].float(), 32_000, "solo drums")
    asked = [
        (organ, drums),
        (replace(organ, caption="solo drums"), replace(drums, caption="a hammond organ solo")),
    ]
    right, wrong = (JudgedText()(pair) for pair in asked)
    assert (right > wrong).all(), (right, wrong)
