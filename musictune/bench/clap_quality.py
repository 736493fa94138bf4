"""CLAP's table: whether a caption finds its clip, and whether one changed fact is heard."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musictune.audio import Clip
from musictune.bench.rows import Row, judged
from musictune.compose.captions import tempo_words
from musictune.compose.changed import FACTS, Fact, changed_caption, write_pairs
from musictune.compose.notes import Score, Truth
from musictune.compose.render import Renderer
from musictune.compose.score import write_score
from musictune.console import progress
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.intervals import mean_interval

SECONDS = 10.0
_CLIPS_SEED, _PAIRS_SEED, _ORDER_SEED = 10_000, 20_000, 60_000
_APART = 10_000  # seeds between the pairs of one fact and the next
_PAIRS_SHARE = 5  # one pair of each fact for so many clips
_FULL = 500  # clips that the targets of retrieval are set for
_MOST_REFUSED = 20  # seeds tried for one distinct caption

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """Held-out clips: truths, distinct captions, and unit embeddings ``(clips, dim)`` of both."""

    truths: list[Truth]
    captions: list[str]
    audio: Tensor
    text: Tensor


def measure_clap(
    embedder: ClapEmbedder,
    *,
    count: int = _FULL,
    seed: int = 70_000_000,
    soundfont: Path | None = None,
) -> list[Row]:
    """Rows of retrieval, of captions and pairs that differ in one fact, and of order.

    Args:
        embedder: the CLAP to measure.
        count: held-out clips of 10 s with distinct captions, the longest of each; a fifth as many
            pairs of each fact, and of clips of two halves.
        seed: the first seed of the first render.

    Raises:
        InputError: no SoundFont.
    """
    renderer = Renderer(soundfont, embedder.sample_rate)
    heard = _hear(embedder, renderer, count, seed + _CLIPS_SEED)
    pairs = max(count // _PAIRS_SHARE, 1)
    rows = [*_retrieval_rows(heard), _unrelated_row(heard)]
    rows += _pair_rows(embedder, renderer, pairs, seed + _PAIRS_SEED)
    rows += _changed_rows(embedder, heard, seed)
    return [*rows, _order_row(embedder, renderer, pairs, seed + _ORDER_SEED)]


def ranks(text: Tensor, audio: Tensor) -> NDArray[np.int64]:
    """Place of each text's own clip among all clips by cosine, ``(texts,)``, 0 for the nearest.

    A clip that is as near as its own stands before it, so that equal embeddings earn nothing.

    Args:
        text, audio: unit rows ``(clips, dim)`` in the same order.
    """
    cosines = text @ audio.T
    own = cosines.diagonal()[:, None]
    others = ~torch.eye(len(text), dtype=torch.bool)
    place: NDArray[np.int64] = ((cosines >= own) & others).sum(1).numpy()
    return place


def prefers(audio: Tensor, right: Tensor, wrong: Tensor) -> Shares:
    """1 where a clip is nearer to the right text than to the wrong one, row by row; half if equal.

    Args:
        audio, right, wrong: unit rows ``(clips, dim)``.
    """
    margin = (audio * (right - wrong)).sum(1)
    share: Shares = ((margin.sign() + 1) / 2).double().numpy()
    return share


def unrelated(a: Truth, b: Truth) -> bool:
    """Whether two clips share no instrument, no style and no word for the tempo."""
    return (
        not set(a.instruments) & set(b.instruments)
        and a.style != b.style
        and tempo_words(a.tempo) != tempo_words(b.tempo)
    )


def _hear(embedder: ClapEmbedder, renderer: Renderer, count: int, seed: int) -> Heard:
    truths: list[Truth] = []
    captions: list[str] = []
    points: list[Tensor] = []
    with progress("clap: held-out clips", count) as advance:
        for i in range(seed, seed + _MOST_REFUSED * count):
            score = write_score(i, seconds=SECONDS)
            caption = max(score.truth.captions, key=len)
            if caption in captions:
                continue
            truths.append(score.truth)
            captions.append(caption)
            points.append(_one(embedder, renderer.render(score, effects_seed=i)))
            advance()
            if len(truths) == count:
                break
    return Heard(truths, captions, torch.stack(points), embedder.text(captions))


def _one(embedder: ClapEmbedder, clip: Clip) -> Tensor:
    """A unit vector ``(dim,)``: the mean over windows, which is one for a clip of 10 s."""
    (windows,) = embedder.audio([clip])
    return torch.nn.functional.normalize(windows.mean(0), dim=0)


def _retrieval_rows(heard: Heard) -> list[Row]:
    place = ranks(heard.text, heard.audio)
    count = len(place)
    rows = [
        _share_row(
            f"text to audio R@{k}",
            (place < k).astype(float),
            target if count >= _FULL else None,
            f"its own clip among {count}; chance {min(k / count, 1):.3f}"
            + ("" if count >= _FULL else f"; the target is for {_FULL} clips"),
        )
        for k, target in ((1, 0.35), (10, 0.8))
    ]
    middle = float(np.median(place)) + 1
    return [*rows, Row("clap", "text to audio, median rank", middle, n=count)]


def _unrelated_row(heard: Heard) -> Row:
    cosines = heard.text @ heard.text.T
    values = [
        float(cosines[i, j])
        for i, first in enumerate(heard.truths)
        for j, second in enumerate(heard.truths[:i])
        if unrelated(first, second)
    ]
    row = Row(
        "clap",
        "cosine of unrelated captions",
        float(np.mean(values)) if values else math.nan,
        target="<= 0.5",
        n=len(values),
        note="pairs of captions of clips that share no instrument, style or tempo word",
    )
    return judged(row)


def _pair_rows(embedder: ClapEmbedder, renderer: Renderer, count: int, seed: int) -> list[Row]:
    """Both captions of a pair are asked which of its two clips is theirs."""
    shares: dict[Fact, Shares] = {}
    with progress("clap: pairs with one fact changed", len(FACTS) * count) as advance:
        for place, fact in enumerate(FACTS):
            asked: list[Shares] = []
            for pair in write_pairs(fact, count, seed + place * _APART, SECONDS):
                clips = [
                    _one(embedder, renderer.render(score, effects_seed=pair.seed))
                    for score in pair.scores
                ]
                audio, text = torch.stack(clips), embedder.text(pair.captions)
                asked.append(prefers(text, audio, audio.flip(0)))
                advance(text=fact)
            shares[fact] = np.array([each.mean() for each in asked])
    note = (
        "two renders of one seed that differ in that fact alone, each caption naming it; share of "
        "captions nearer to their own clip; chance 0.5"
    )
    rows = [_share_row("one fact changed, all three", np.concatenate([*shares.values()]), 0.85)]
    rows += [
        _share_row(f"one fact changed, {fact}", values, 0.85, note if fact == FACTS[0] else "")
        for fact, values in shares.items()
    ]
    return rows


def _changed_rows(embedder: ClapEmbedder, heard: Heard, seed: int) -> list[Row]:
    """The right caption of a clip against the same with one fact made false."""
    note = (
        "the clip is nearer to its caption than to the same with that fact made false; chance 0.5"
    )
    rows: list[Row] = []
    for fact in FACTS:
        rng = np.random.default_rng([seed, 7, FACTS.index(fact)])
        made = [
            changed_caption(caption, truth, fact, rng)
            for caption, truth in zip(heard.captions, heard.truths, strict=True)
        ]
        stated = [i for i, text in enumerate(made) if text is not None]
        if not stated:
            continue
        wrong = embedder.text([text for text in made if text is not None])
        share = prefers(heard.audio[stated], heard.text[stated], wrong)
        rows.append(_share_row(f"caption changed, {fact}", share, None, "" if rows else note))
    return rows


def _order_row(embedder: ClapEmbedder, renderer: Renderer, count: int, seed: int) -> Row:
    """Five seconds of one solo, then five of another, against the caption in reverse."""
    shares = []
    with progress("clap: two halves in order", count) as advance:
        for names, halves in _halves(renderer, count, seed):
            forward, back = (
                Clip(torch.cat([a.wave, b.wave], 1), renderer.sample_rate)
                for a, b in (halves, halves[::-1])
            )
            text = embedder.text([f"{names[0]}, then {names[1]}", f"{names[1]}, then {names[0]}"])
            audio = torch.stack([_one(embedder, clip) for clip in (forward, back)])
            shares.append(prefers(audio, text, text.flip(0)).mean())
            advance()
    note = "5 s of one solo and 5 s of another, 'flute, then drums' against the reverse; chance 0.5"
    return _share_row("order swap", np.array(shares), None, note)


def _halves(
    renderer: Renderer, count: int, seed: int
) -> Iterator[tuple[tuple[str, str], tuple[Clip, Clip]]]:
    place = seed
    for _ in range(count):
        first = _solo(place)
        place += 1
        second = _solo(place)
        while second.truth.lead == first.truth.lead:
            place += 1
            second = _solo(place)
        place += 1
        yield (
            (first.truth.lead, second.truth.lead),
            (renderer.render(first), renderer.render(second)),
        )


def _solo(seed: int) -> Score:
    return write_score(seed, seconds=SECONDS / 2, texture="solo")


def _share_row(case: str, values: Shares, target: str | float | None, note: str = "") -> Row:
    mean, low, high = mean_interval(values)
    row = Row(
        "clap",
        case,
        mean,
        unit="of captions" if "order" not in case else "of clips",
        target=target,
        # The reflected bootstrap knows no bounds; shares have them.
        low=max(low, 0.0) if math.isfinite(low) else None,
        high=min(high, 1.0) if math.isfinite(high) else None,
        n=len(values),
        note=note,
    )
    return judged(row)
