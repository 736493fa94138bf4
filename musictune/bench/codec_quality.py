"""The codec's table: round trips beside Opus on the same audio, and how its codebooks are used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from musictune import audio
from musictune.audio import Clip
from musictune.bench import fidelity
from musictune.bench.opus import fitted, opus_round_trip
from musictune.bench.rows import Row, against, judged
from musictune.compose.instruments import INSTRUMENTS
from musictune.compose.render import Renderer
from musictune.compose.score import write_score
from musictune.console import progress, track
from musictune.data.sources import discover
from musictune.errors import InputError
from musictune.metrics.intervals import mean_interval
from musictune.models.codec import SpectralCodec

Wave = NDArray[np.float32]

SECONDS = 10.0
OPUS_KBIT = (6.0, 12.0)
_EXCERPTS = 3
_SHORTEST_S = 1.0
_PITCH_S = 4.0  # pYIN takes longer than all the rest together
_PITCH_RANGE = (55.0, 2100.0)  # Hz, of recordings; renders have their instrument's
_CODES_PER_CLIP = 5  # renders that are only coded, for each that is measured
_CODES_SEED = 1_000
_CEILING = "true magnitudes"

Group = Literal["solo renders", "other renders", "recordings"]


@dataclass(frozen=True)
class Sample:
    """A mono wave to code, where it comes from, and the pitches to look for in it."""

    wave: Wave
    group: Group
    name: str
    pitches: tuple[float, float] | None


@dataclass
class _Trips:
    """Measures per sample of each coder; ``figures[coder][measure]`` runs along the samples."""

    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, coder: str, measure: str, value: float) -> None:
        self.figures.setdefault(coder, {}).setdefault(measure, []).append(value)


@dataclass(frozen=True)
class _Measure:
    name: str
    groups: tuple[tuple[str, tuple[Group, ...]], ...]
    higher: bool
    unit: str
    target: str | float | None
    note: str = ""


_RENDERS: tuple[str, tuple[Group, ...]] = ("renders", ("solo renders", "other renders"))
_SOLOS: tuple[str, tuple[Group, ...]] = ("solo renders", ("solo renders",))
_REAL: tuple[str, tuple[Group, ...]] = ("recordings", ("recordings",))

_MEASURES = (
    _Measure(
        "mel distance",
        (_RENDERS, _REAL),
        False,
        "decades",
        "<= peer",
        "log-mel, windows 32 to 2048, summed over seven scales",
    ),
    _Measure("chroma agreement", (_RENDERS, _SOLOS, _REAL), True, "of frames", 0.92),
    _Measure(
        "pitch within 50 cents",
        (_SOLOS, _REAL),
        True,
        "of frames",
        0.9,
        "pYIN, voiced frames of the original; one that lost its voice counts as wrong",
    ),
    _Measure("onset F, 50 ms", (_RENDERS, _REAL), True, "", 0.9),
)


def measure_codec(
    codec: Any,
    *,
    count: int = 24,
    seed: int = 70_000_000,
    recordings: Path | None = None,
    soundfont: Path | None = None,
) -> list[Row]:
    """Rows of round trips of held-out renders, and of real recordings if a folder is given.

    Args:
        codec: a `SpectralCodec` or another with transformers' EnCodec interface, on the CPU.
        count: renders of 10 s, every other one a solo of an instrument that plays one note at a
            time; five times as many more are only coded, for the use of the codebooks.
        seed: of the first render.
        recordings: a folder or manifest of audio; up to three excerpts of 10 s of each file.

    Raises:
        InputError: no SoundFont, or recordings that cannot be read.
    """
    sources = _recordings(recordings, _rate(codec)) if recordings else []
    renderer = Renderer(soundfont)
    samples = renders(renderer, count, seed, _rate(codec)) + sources
    trips = _Trips()
    with progress("codec: round trips", len(samples)) as advance:
        for sample in samples:
            _measure(codec, sample, trips)
            advance(text=sample.name)
    rows = _rate_rows(codec, trips, len(samples))
    for measure in _MEASURES:
        for name, groups in measure.groups:
            chosen = [i for i, sample in enumerate(samples) if sample.group in groups]
            if chosen:
                rows += _quality_rows(measure, name, chosen, samples, trips)
    return rows + _use_rows(codec, renderer, _CODES_PER_CLIP * count, seed + _CODES_SEED)


def renders(renderer: Renderer, count: int, seed: int, rate: int) -> list[Sample]:
    """Held-out renders: even places are solos of one note at a time, odd ones duos and bands."""
    voices = [item for item in INSTRUMENTS.values() if not item.chords]
    samples = []
    for i in range(count):
        voice = voices[(i // 2) % len(voices)]
        if i % 2 == 0:
            score = write_score(seed + i, seconds=SECONDS, texture="solo", program=voice.program)
            # Half an octave on either side, for an octave's mistake must show.
            pitches = (_hertz(voice.low - 6), _hertz(voice.high + 6))
        else:
            texture = "duo" if i % 4 == 1 else "band"
            score = write_score(seed + i, seconds=SECONDS, texture=texture)
            pitches = None
        group: Group = "other renders" if i % 2 else "solo renders"
        wave = _wave(renderer.render(score, effects_seed=seed + i), rate)
        samples.append(Sample(wave, group, score.truth.lead, pitches))
    return samples


def round_trip(codec: Any, wave: Wave) -> tuple[Wave, NDArray[np.int64]]:
    """``wave`` through the codec: the copy, as long as it, and codes ``(codebooks, frames)``."""
    with torch.no_grad():
        codes = codec.encode(torch.from_numpy(wave)[None, None]).audio_codes
        copy = codec.decode(codes, [None]).audio_values[0, 0]
    return fitted(copy.float().numpy(), wave.size), codes[0, 0].numpy()


def _measure(codec: Any, sample: Sample, trips: _Trips) -> None:
    wave, rate = sample.wave, _rate(codec)
    copy, codes = round_trip(codec, wave)
    bits = codes.size * math.log2(_codebook_size(codec))
    trips.add("ours", "kbit/s", bits / (wave.size / rate) / 1000)
    copies = {"ours": copy}
    for kbit in OPUS_KBIT:
        trip = opus_round_trip(wave, rate, kbit)
        copies[_opus(kbit)] = trip.wave
        trips.add(_opus(kbit), "kbit/s", trip.kbit_per_s)
    if isinstance(codec, SpectralCodec):
        with torch.no_grad():
            ideal = codec.waveform(codec.spectrum(torch.from_numpy(wave)[None]))[0]
        copies[_CEILING] = fitted(ideal.float().numpy(), wave.size)
    for coder, other in copies.items():
        trips.add(coder, "mel distance", fidelity.mel_distance(wave, other, rate))
        trips.add(coder, "chroma agreement", fidelity.chroma_agreement(wave, other, rate))
        trips.add(coder, "onset F, 50 ms", fidelity.onset_f(wave, other, rate))
    shorter = {coder: other[: round(_PITCH_S * rate)] for coder, other in copies.items()}
    agreements = _pitches(wave[: round(_PITCH_S * rate)], shorter, rate, sample.pitches)
    for coder, value in agreements.items():
        trips.add(coder, "pitch within 50 cents", value)


def _pitches(
    wave: Wave, copies: dict[str, Wave], rate: int, range_hz: tuple[float, float] | None
) -> dict[str, float]:
    if range_hz is None:
        return dict.fromkeys(copies, math.nan)
    reference = fidelity.pitch_track(wave, rate, *range_hz)
    return {
        coder: fidelity.pitch_share(reference, fidelity.pitch_track(copy, rate, *range_hz))
        for coder, copy in copies.items()
    }


def _rate_rows(codec: Any, trips: _Trips, count: int) -> list[Row]:
    ours = float(np.mean(trips.figures["ours"]["kbit/s"]))
    frames = getattr(codec.config, "frame_rate", math.nan)
    note = f"tokens at full length, {frames:g} frames/s; Opus: packets without the Ogg container"
    rows: list[Row] = []
    for kbit in OPUS_KBIT:
        theirs = float(np.mean(trips.figures[_opus(kbit)]["kbit/s"]))
        rows.append(
            Row(
                "codec",
                "bit rate",
                ours,
                peer=theirs,
                peer_name=_opus(kbit),
                ratio=against(ours, theirs, higher_is_better=False),
                unit="kbit/s",
                n=count,
                note="" if rows else note,
            )
        )
    return rows


def _quality_rows(
    measure: _Measure, group: str, chosen: list[int], samples: Sequence[Sample], trips: _Trips
) -> list[Row]:
    """One row per peer. The target, of renders only, stands beside the last Opus.

    No interval for recordings: the excerpts of one are alike, and there are few recordings.
    """
    every = {
        coder: np.array([figures[measure.name][i] for i in chosen])
        for coder, figures in trips.figures.items()
    }
    heard = np.isfinite(every["ours"])
    if not heard.any():
        return []
    ours, low, high = mean_interval(every["ours"][heard])
    ends: tuple[float | None, float | None] = (None, None)
    real = group == "recordings"
    if math.isfinite(low) and not real:
        # The reflected bootstrap knows no bounds; shares have them.
        ends = (max(low, 0.0), min(high, 1.0) if measure.higher else high)
    note = measure.note
    if real:
        note = "; ".join(filter(None, [note, _by_name(every["ours"], chosen, samples)]))
    rows: list[Row] = []
    for coder, values in every.items():
        if coder == "ours":
            continue
        theirs = float(values[heard].mean())
        row = Row(
            "codec",
            f"{measure.name}, {group}",
            ours,
            peer=theirs,
            peer_name=coder,
            ratio=against(ours, theirs, higher_is_better=measure.higher),
            unit=measure.unit,
            target=measure.target if coder == _opus(OPUS_KBIT[-1]) and not real else None,
            low=ends[0],
            high=ends[1],
            n=int(heard.sum()),
            note="" if rows else note,
        )
        rows.append(judged(row))
    return rows


def _by_name(values: NDArray[np.float64], chosen: list[int], samples: Sequence[Sample]) -> str:
    names = [samples[i].name for i in chosen]
    return ", ".join(
        f"{name} {np.nanmean([v for v, n in zip(values, names, strict=True) if n == name]):.3f}"
        for name in dict.fromkeys(names)
        if any(math.isfinite(v) for v, n in zip(values, names, strict=True) if n == name)
    )


def _use_rows(codec: Any, renderer: Renderer, count: int, seed: int) -> list[Row]:
    rate, coded = _rate(codec), []
    for i in track(range(seed, seed + count), "codec: use of the codebooks"):
        clip = renderer.render(write_score(i, seconds=SECONDS), effects_seed=i)
        with torch.no_grad():
            wave = torch.from_numpy(_wave(clip, rate))[None, None]
            coded.append(codec.encode(wave).audio_codes[0, 0].numpy())
    codes, size = np.concatenate(coded, axis=1), _codebook_size(codec)
    note = f"perplexity over {size} entries, {codes.shape[1]} frames of {count} renders"
    if codes.shape[1] < 10 * size:
        note += "; so few frames make it come out low"
    return [
        judged(
            Row(
                "codec",
                f"use of codebook {level + 1}",
                share,
                unit="of size",
                target=0.6,
                n=codes.shape[1],
                note=note if level == 0 else "",
            )
        )
        for level, share in enumerate(fidelity.perplexity_shares(codes, size))
    ]


def _recordings(folder: Path, rate: int) -> list[Sample]:
    samples = []
    for source in discover(folder):
        length = audio.info(source.path).seconds
        if length < _SHORTEST_S:
            continue
        excerpts = min(_EXCERPTS, max(1, int(length // SECONDS)))
        last = max(length - SECONDS, 0.0)
        for start in np.linspace(0.0, last, excerpts) if excerpts > 1 else [0.0]:
            clip = audio.read(source.path, start=float(start), seconds=SECONDS)
            wave = _wave(clip, rate)
            samples.append(Sample(wave, "recordings", Path(source.name).stem, _PITCH_RANGE))
    if not samples:
        raise InputError(f"recordings {folder} are all shorter than 1 s; give longer ones")
    return samples


def _wave(clip: Clip, rate: int) -> Wave:
    return np.ascontiguousarray(clip.mono().resample(rate).wave[0].numpy())


def _rate(codec: Any) -> int:
    return int(codec.config.sampling_rate)


def _codebook_size(codec: Any) -> int:
    return int(codec.config.codebook_size)


def _opus(kbit: float) -> str:
    return f"Opus {kbit:g}"


def _hertz(pitch: float) -> float:
    return float(440.0 * 2 ** ((pitch - 69) / 12))
