"""Clips in a row and at once, and the words for it."""

from __future__ import annotations

import pytest
import torch

from musictune.audio import Clip
from musictune.data.sequences import (
    BOTH,
    ONE,
    THEN,
    THEN_UNSEEN,
    TOGETHER,
    draw_pairs,
    joined,
    joined_mels,
    overlaid,
    overlaid_mels,
    said,
)
from musictune.errors import InputError
from musictune.models.contrastive import Contrastive

RATE = 8000


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> Clip:
    time = torch.arange(int(seconds * rate)) / rate
    return Clip(0.4 * torch.sin(2 * torch.pi * hertz * time)[None], rate)


@pytest.mark.parametrize("wording", [*THEN, *THEN_UNSEEN])
def test_both_orders_read_differently(wording: str) -> None:
    forth, back = said(wording, "a hum", "a tone"), said(wording, "a tone", "a hum")
    assert forth != back
    assert sorted(forth) == sorted(back)


def test_words_alone_do_not_tell_the_order() -> None:
    firsts = {wording.index("{a}") < wording.index("{b}") for wording in (*THEN, *THEN_UNSEEN)}
    assert firsts == {True, False}
    assert not set(THEN) & set(THEN_UNSEEN)
    assert all("{a}" in wording for wording in (*ONE, *BOTH, *TOGETHER))


def test_a_sequence_is_half_of_each() -> None:
    made = joined(tone(500), tone(2000, rate=16_000), 1.0)
    assert made.samples == RATE
    spectrum = torch.fft.rfft(made.wave[0].unflatten(0, (2, -1))).abs()
    assert (spectrum.argmax(1) * 2).tolist() == [500, 2000]


def test_short_clips_are_repeated_and_empty_ones_refused() -> None:
    made = joined(tone(500, 0.1), tone(1000, 0.1), 1.0)
    assert made.wave[0, 3000:3800].abs().max() > 0.3
    with pytest.raises(InputError, match="empty"):
        joined(tone(500), Clip(torch.zeros(1, 0), RATE), 1.0)


def test_mels_of_a_sequence_are_those_of_its_audio() -> None:
    model = Contrastive.toy()
    one, other = tone(500), tone(2000)
    # Both begin at the start of their clip, as `joined` cuts them.
    quick = joined_mels(model.hear(one), model.hear(other), (0, 0))
    slow = model.hear(joined(one, other, model.seconds))
    assert quick.shape == slow.shape
    apart = (quick - slow).abs().mean(1)
    half = len(quick) // 2
    away = [i for i in range(len(quick)) if 3 < i < half - 4 or half + 4 < i < len(quick) - 4]
    loud = slow > slow.max() - 30
    assert float((quick - slow).abs()[away][loud[away]].max()) < 1.0
    assert float(apart[half]) > float(apart[away].median())  # the seam is where they differ


def test_mels_of_two_at_once_are_those_of_their_audio() -> None:
    model = Contrastive.toy()
    one, other = tone(500), tone(2000)
    quick = overlaid_mels(model.hear(one), model.hear(other))
    slow = model.hear(overlaid(one, other, model.seconds))
    # Where the extractor mirrors the ends of the wave, tones that begin together are related.
    quick, slow = quick[3:-3], slow[3:-3]
    loud = slow > slow.max() - 30
    assert float((quick - slow)[loud].abs().max()) < 1.0


def test_pairs_are_different_and_of_different_things() -> None:
    meanings = ["hum", "hum", "tone", "noise"]
    pairs = draw_pairs(meanings, 100, 0)
    assert sorted(pairs) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert draw_pairs(meanings, 3, 4) == draw_pairs(meanings, 3, 4)
    assert len(draw_pairs(meanings, 3, 4)) == 3
    with pytest.raises(InputError, match="all called the same"):
        draw_pairs(["hum", "hum"], 3, 0)
