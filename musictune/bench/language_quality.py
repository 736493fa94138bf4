"""Whether the language model plays what it is asked for, by ears that were never its teacher's.

Every figure stands beside what the same ears make of true renders of the same prompts, of those
renders after a round trip through the model's own codec (about the best the language model can do),
and beside chance, where each clip is compared with the other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mir_eval
import numpy as np
from torch import Tensor

from musictune import console
from musictune.audio import Clip
from musictune.bench.hearing import Hearing, hear, tempo_fits
from musictune.bench.prompts import Prompt, write_prompts
from musictune.bench.rows import Row, against
from musictune.compose.render import Renderer
from musictune.errors import InputError
from musictune.generation.engine import Engine
from musictune.generation.sampling import Sampling
from musictune.metrics.base import Score
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.frechet import frechet_score
from musictune.metrics.intervals import mean_interval, wilson_interval
from musictune.models.judge import Judge
from musictune.models.loading import load_model
from musictune.models.musicgen import MusicGen

PEER = "codec round trips of true renders"
_REFERENCE = 500_000  # seeds after the prompts' own: the same kinds of music, other scores
_TRIPLES = (1.0, 2.0, 0.5, 3.0, 1 / 3)


@dataclass(frozen=True)
class _Measure:
    """A score from 0 to 1 of one clip against one prompt, and the prompts it can be asked of."""

    case: str
    applies: Callable[[Prompt], bool]
    score: Callable[[Hearing, Prompt], float]
    target: str | None = None
    unit: str = "share"
    note: str = ""


@dataclass(frozen=True)
class _Heard:
    """A set of clips, one per prompt, after listening."""

    hearings: list[Hearing]
    points: list[Tensor]


def measure_language(
    base: str,
    *,
    count: int = 200,
    seed: int = 70_100_000,
    seconds: float = 10.0,
    batch: int = 8,
    sampling: Sampling = Sampling(),
    judge: Judge | None = None,
    embedder: ClapEmbedder | None = None,
    soundfont: Path | str | None = None,
) -> list[Row]:
    """Generate a clip for each of `write_prompts`, listen, and compare with what was asked.

    The same arguments give the same rows. No audio is kept.

    Args:
        base: ``mini``, a local folder, or a Hugging Face id.
        count: prompts.
        seed: of the first prompt's score; clips are generated from the seeds 0, 1, 2, ...
        seconds: length of every clip.
        batch: clips made at once.
        sampling: how tokens are drawn.
        judge: who hears families, drums and keys; the bundled one if not given.
        embedder: of the Fréchet distance; the bundled CLAP if not given.
        soundfont: of the renders; the one Debian installs if not given.

    Raises:
        InputError: fewer than two prompts, a base or judge that cannot be loaded, a length the
            base was not trained for, or no SoundFont or tinysoundfont.
    """
    if count < 2:
        raise InputError(f"count {count} is too small; ask for 2 prompts or more")
    judge, embedder = judge or Judge.load(), embedder or ClapEmbedder.load()
    renderer, model = Renderer(soundfont), load_model(base)
    prompts = write_prompts(count, seed, seconds)
    others = write_prompts(count, seed + _REFERENCE, seconds)

    made = _listen(_generate(model, prompts, seconds, batch, sampling), judge, embedder)
    with console.progress("true renders", 3 * count) as advance:
        renders = _listen(_render(renderer, prompts, advance), judge, embedder)
        trips = _listen(_trips(model, renderer, prompts, batch, advance), judge, embedder)
        reference = embedder.audio(_render(renderer, others, advance))
    rows = [_row(measure, prompts, made, renders, trips) for measure in _MEASURES]
    return [row for row in rows if row is not None] + [
        _frechet(made, renders, trips, reference, embedder.name)
    ]


def _generate(
    model: MusicGen, prompts: Sequence[Prompt], seconds: float, batch: int, sampling: Sampling
) -> Iterator[Clip]:
    engine = Engine(model)
    texts = [prompt.text for prompt in prompts]
    with console.progress("generating", engine.steps(len(texts), seconds)) as advance:
        for _, clips in engine.stream(texts, seconds, 0, sampling, batch, advance):
            yield from clips


def _render(
    renderer: Renderer, prompts: Sequence[Prompt], advance: console.Advance
) -> Iterator[Clip]:
    for prompt in prompts:
        yield renderer.render(prompt.score, effects_seed=prompt.seed)
        advance()


def _trips(
    model: MusicGen,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    batch: int,
    advance: console.Advance,
) -> Iterator[Clip]:
    """The renders after the codec; rendered anew, as that is cheaper than keeping them all."""
    for first in range(0, len(prompts), batch):
        chosen = prompts[first : first + batch]
        clips = list(_render(renderer, chosen, lambda *_: None))
        for clip, before in zip(model.decode(model.encode(clips)), clips, strict=True):
            # A codec works in whole frames, and may add a part of one.
            yield replace(clip, wave=clip.wave[:, : round(before.seconds * clip.sample_rate)])
            advance()


def _listen(clips: Iterator[Clip], judge: Judge, embedder: ClapEmbedder) -> _Heard:
    hearings, points = [], []
    for clip in clips:
        hearings.append(hear(clip, judge))
        points += embedder.audio([clip])
    return _Heard(hearings, points)


def _row(
    measure: _Measure, prompts: Sequence[Prompt], made: _Heard, renders: _Heard, trips: _Heard
) -> Row | None:
    asked = [i for i, prompt in enumerate(prompts) if measure.applies(prompt)]
    if not asked:
        return None

    def scores(heard: _Heard) -> np.ndarray:
        return np.array([measure.score(heard.hearings[i], prompts[i]) for i in asked])

    ours = scores(made)
    low, high = wilson_interval(float(ours.mean()), len(ours))
    if not set(ours.tolist()) <= {0.0, 1.0}:
        _, low, high = mean_interval(ours)
    ceiling = float(scores(trips).mean())
    note = f"true renders {scores(renders).mean():.3f}"
    note += f", chance {_chance(measure, prompts, made, asked):.3f} (clips of other prompts)"
    return Row(
        part="language",
        case=measure.case,
        ours=float(ours.mean()),
        peer=ceiling,
        peer_name=PEER,
        ratio=against(float(ours.mean()), ceiling, higher_is_better=True),
        unit=measure.unit,
        target=measure.target,
        low=low,
        high=high,
        n=len(asked),
        note=note + (f"; {measure.note}" if measure.note else ""),
    )


def _chance(
    measure: _Measure, prompts: Sequence[Prompt], made: _Heard, asked: Sequence[int]
) -> float:
    """The mean over all pairs of a clip with another clip's prompt: every shuffle at once.

    Clips of all prompts count, or chance would be 1 where the prompts asked all want the same.
    """
    everyone = range(len(prompts))
    pairs = [measure.score(made.hearings[i], prompts[j]) for i in everyone for j in asked if i != j]
    return float(np.mean(pairs))


def _frechet(
    made: _Heard, renders: _Heard, trips: _Heard, reference: list[Tensor], name: str
) -> Row:
    """Distances to renders of other scores, all between sets of equal size, so equally biased."""
    ours: Score = frechet_score(made.points, reference)
    codec = frechet_score(trips.points, reference).value
    floor = frechet_score(renders.points, reference).value
    known = codec > 0
    return Row(
        part="language",
        case="Fréchet distance to held-out renders, over that of codec round trips",
        ours=ours.value / codec if known else math.nan,
        ratio=against(ours.value, codec, higher_is_better=False),
        target="<= 3",
        low=ours.low / codec if known and math.isfinite(ours.low) else None,
        high=ours.high / codec if known and math.isfinite(ours.high) else None,
        n=ours.n,
        note=f"squared distances, embedder {name}: generated {ours.value:.4f}, codec round "
        f"trips {codec:.4f}, true renders {floor:.4f}; the interval is over generated clips",
    )


def _family(hearing: Hearing, prompt: Prompt) -> float:
    return float(hearing.judge.lead == prompt.truth.lead_family)


def _tempo(hearing: Hearing, prompt: Prompt) -> float:
    return float(tempo_fits(hearing.tempo, prompt.truth.tempo))


def _tempo_triple(hearing: Hearing, prompt: Prompt) -> float:
    return float(tempo_fits(hearing.tempo, prompt.truth.tempo, _TRIPLES))


def _key(hearing: Hearing, prompt: Prompt) -> float:
    return float(mir_eval.key.weighted_score(prompt.truth.key, hearing.judge.key))


def _profile_key(hearing: Hearing, prompt: Prompt) -> float:
    return float(mir_eval.key.weighted_score(prompt.truth.key, hearing.profile_key))


def _drums(hearing: Hearing, prompt: Prompt) -> float:
    return float(hearing.judge.drums == prompt.truth.has_drums)


_MEASURES = (
    _Measure(
        "lead family is the one heard, all prompts",
        lambda prompt: True,
        _family,
        ">= 0.7",
        note="14 families with drums; the lead of a band is the one that plays the tune",
    ),
    _Measure("lead family is the one heard, solos", lambda prompt: prompt.solo, _family),
    _Measure(
        "tempo within 4 %, octaves allowed",
        lambda prompt: prompt.says_tempo,
        _tempo,
        ">= 0.6",
        note="prompts that name the bpm",
    ),
    _Measure(
        "tempo within 4 %, octaves and triples allowed",
        lambda prompt: prompt.says_tempo,
        _tempo_triple,
    ),
    _Measure(
        "key, mir_eval's weighted score",
        lambda prompt: prompt.says_key,
        _key,
        ">= 0.5",
        unit="",
        note="prompts that name the key; heard by the judge",
    ),
    _Measure(
        "key, mir_eval's weighted score, by profile",
        lambda prompt: prompt.says_key,
        _profile_key,
        unit="",
        note="heard by the correlation of chroma with Temperley's profiles",
    ),
    _Measure(
        "drums asked for or excluded are there or not",
        lambda prompt: prompt.says_drums,
        _drums,
        ">= 0.9",
    ),
    _Measure(
        "drums asked for are there",
        lambda prompt: prompt.says_drums and prompt.truth.has_drums,
        _drums,
    ),
    _Measure(
        "drums excluded are not there",
        lambda prompt: prompt.says_drums and not prompt.truth.has_drums,
        _drums,
    ),
    _Measure(
        "no drums in solos of other instruments",
        lambda prompt: prompt.solo and not prompt.truth.has_drums,
        _drums,
        note="the prompt does not mention drums",
    ),
)
