"""Musical agreement of pairs: does one clip have the tempo, key, harmony and rhythm of another?

Each measure is mir_eval's (Raffel et al. 2014) or a cosine, between what is heard in both clips by
the same ears: a perfect copy has 1 everywhere, whatever the ears get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from musictune.audio import Clip
from musictune.metrics.base import About, NotComputed, Score
from musictune.metrics.intervals import share_interval
from musictune.metrics.musical import (
    NO_KEY,
    RATE,
    SHORTEST,
    TOLERANCE,
    beat_times,
    key_of_chroma,
    listened,
    mean_chroma,
    onset_times,
    tempo_of_wave,
)

Array = np.ndarray

AGREEMENT: Mapping[str, About] = {
    "tempo_agreement": About(
        "Tempo agreement",
        "Share of clips within 4 % of their partner's tempo.",
        "higher",
    ),
    "tempo_octave_agreement": About(
        "Tempo agreement up to octaves",
        "Share of clips within 4 % of their partner's tempo, its double or its half.",
        "higher",
    ),
    "key_agreement": About(
        "Key agreement",
        "mir_eval's weighted score: 1 for the partner's key, less for a related one, else 0.",
        "higher",
    ),
    "chroma_agreement": About(
        "Chroma agreement",
        "Cosine of the pitch classes at each moment: 1 where both play the same harmony.",
        "higher",
    ),
    "onset_agreement": About(
        "Onset agreement",
        "F measure of note beginnings within 50 ms of the partner's.",
        "higher",
    ),
    "beat_agreement": About(
        "Beat agreement",
        "F measure of beats within 70 ms of the partner's.",
        "higher",
    ),
}
"""What is compared, by name as in ``metrics.json``."""

_CHROMA_WINDOW, _CHROMA_HOP = 8192, 2048
_NEEDED = f"both clips need {SHORTEST:g} s or more that are not silent"


@dataclass(frozen=True)
class _Content:
    """What is compared of a clip."""

    tempo: float
    key: str
    chroma: Array  # (12, frames), frames of silence all zero
    onsets: Array
    beats: Array

    @classmethod
    def of(cls, wave: Array) -> _Content:
        tempo = tempo_of_wave(wave)
        return cls(
            tempo,
            key_of_chroma(mean_chroma(wave))[0],
            _chroma_frames(wave),
            onset_times(wave),
            beat_times(wave, tempo),
        )


def musical_agreement(made: Clip, reference: Clip) -> dict[str, float]:
    """How much a clip agrees with its partner, by the names of `AGREEMENT`, each 0 to 1.

    Both are cut to the shorter one's length and compared from their starts on; nothing is
    shifted or stretched to fit. Beats count from the first one on: the five seconds that mir_eval
    leaves out are for people who tap along.

    Returns:
        NaN where there is nothing to compare: under 2 s, silence, or a reference without a pulse
        or an onset. What is missing in ``made`` alone is a 0.
    """
    waves = listened(made), listened(reference)
    length = min(len(wave) for wave in waves)
    if length < SHORTEST * RATE:
        return dict.fromkeys(AGREEMENT, math.nan)
    return _agreement(*(_Content.of(wave[:length]) for wave in waves))


def musical_scores(pairs: Iterable[tuple[Clip, Clip]]) -> dict[str, Score | NotComputed]:
    """Mean agreement over pairs of a made clip and its reference, by the names of `AGREEMENT`.

    The pairs may be a stream. Each note says what the clips reach with the reference of the next
    pair instead, which is what clips of such a set have in common anyway.
    """
    found: list[dict[str, float]] = []
    strangers: list[dict[str, float]] = []
    first: _Content | None = None
    before: _Content | None = None
    for made, reference in pairs:
        waves = listened(made), listened(reference)
        length = min(len(wave) for wave in waves)
        if length < SHORTEST * RATE:
            found.append(dict.fromkeys(AGREEMENT, math.nan))
            continue
        mine, theirs = (_Content.of(wave[:length]) for wave in waves)
        found.append(_agreement(mine, theirs))
        if before is not None:
            strangers.append(_agreement(before, theirs))
        first, before = first or theirs, mine
    if before is not None and first is not None and strangers:
        strangers.append(_agreement(before, first))
    if not found:
        reason = "there are no pairs of clips; name the reference of each made clip"
        return dict.fromkeys(AGREEMENT, NotComputed(reason))
    return {name: _score(name, found, strangers) for name in AGREEMENT}


def tempo_score(
    reference: float, heard: float, *, octaves: bool = False, tolerance: float = TOLERANCE
) -> float:
    """1 if ``heard`` is within ``tolerance`` of ``reference``, else 0, by ``mir_eval.tempo``.

    Args:
        reference, heard: beats per minute; NaN if unknown.
        octaves: the double and the half of ``reference`` will do as well.
        tolerance: as a share of the reference; mir_eval's own default is 0.08.

    Returns:
        NaN without a reference; 0 if only ``heard`` is unknown.
    """
    import mir_eval

    if math.isnan(reference):
        return math.nan
    if math.isnan(heard):
        return 0.0
    # mir_eval compares two tempi with two; a reference of 0 stands for none.
    estimates = np.array([0.0, heard])
    return max(
        float(mir_eval.tempo.detection(np.array([0.0, wanted]), 0.0, estimates, tolerance)[0])
        for wanted in (reference * factor for factor in ((1.0, 2.0, 0.5) if octaves else (1.0,)))
    )


def key_score(reference: str, heard: str) -> float:
    """``mir_eval.key.weighted_score``: how near ``heard`` is to the key ``reference``.

    1 for the same key, 0.5 for the fifth above, 0.3 for the relative and 0.2 for the parallel key.

    Args:
        reference, heard: such as ``A minor``, or `NO_KEY`.

    Returns:
        NaN without a reference; 0 if only ``heard`` is unknown.
    """
    import mir_eval

    if reference == NO_KEY:
        return math.nan
    return float(mir_eval.key.weighted_score(reference, heard))


def onset_score(reference: Array, heard: Array, window: float = 0.05) -> float:
    """F measure of onsets in seconds, matched one to one within ``window`` (``mir_eval.onset``).

    NaN if the reference has none; 0 if only ``heard`` has none.
    """
    import mir_eval

    if not len(reference):
        return math.nan
    return (
        float(mir_eval.onset.f_measure(reference, heard, window=window)[0]) if len(heard) else 0.0
    )


def beat_score(reference: Array, heard: Array, trim: float = 0.0) -> float:
    """F measure of beats in seconds, matched within 70 ms (``mir_eval.beat``).

    Args:
        reference, heard: rising times.
        trim: seconds at the start that do not count; mir_eval's own evaluation leaves out 5.

    Returns:
        NaN if the reference has none; 0 if only ``heard`` has none.
    """
    import mir_eval

    reference, heard = (mir_eval.beat.trim_beats(beats, trim) for beats in (reference, heard))
    if not len(reference):
        return math.nan
    return float(mir_eval.beat.f_measure(reference, heard)) if len(heard) else 0.0


def chroma_score(reference: Array, heard: Array) -> float:
    """Mean cosine of ``(12, frames)`` chroma, frame by frame over the shared length.

    Frames that are all zero are silent. They count 0 against music and not at all against each
    other; NaN if the reference has nothing else.
    """
    frames = min(reference.shape[1], heard.shape[1])
    a, b = reference[:, :frames], heard[:, :frames]
    lengths = [np.linalg.norm(side, axis=0) for side in (a, b)]
    if not lengths[0].any():
        return math.nan
    units = [s / np.where(length > 0, length, 1) for s, length in zip((a, b), lengths, strict=True)]
    cosines = (units[0] * units[1]).sum(0)
    return float(np.clip(cosines[(lengths[0] > 0) | (lengths[1] > 0)], 0, 1).mean())


def _agreement(made: _Content, reference: _Content) -> dict[str, float]:
    return {
        "tempo_agreement": tempo_score(reference.tempo, made.tempo),
        "tempo_octave_agreement": tempo_score(reference.tempo, made.tempo, octaves=True),
        "key_agreement": key_score(reference.key, made.key),
        "chroma_agreement": chroma_score(reference.chroma, made.chroma),
        "onset_agreement": onset_score(reference.onsets, made.onsets),
        "beat_agreement": beat_score(reference.beats, made.beats),
    }


def _score(
    name: str, found: list[dict[str, float]], strangers: list[dict[str, float]]
) -> Score | NotComputed:
    values = np.array([pair[name] for pair in found])
    known = values[~np.isnan(values)]
    if not len(known):
        return NotComputed(f"{len(values)} pairs have nothing to compare: {_NEEDED}")
    notes = []
    if len(known) < len(values):
        notes.append(f"{len(values) - len(known)} of {len(values)} pairs left out: {_NEEDED}")
    chance = np.array([pair[name] for pair in strangers])
    chance = chance[~np.isnan(chance)]
    if len(chance):
        notes.append(f"{chance.mean():.3f} with the reference of another pair")
    interval = share_interval(known, [str(i) for i in range(len(known))])
    return Score(*interval, n=len(known), better=AGREEMENT[name].better, note="; ".join(notes))


def _chroma_frames(wave: Array) -> Array:
    import librosa

    power = np.abs(librosa.stft(wave, n_fft=_CHROMA_WINDOW, hop_length=_CHROMA_HOP)) ** 2
    # No tuning of its own for each clip: that would hide that one is out of tune with the other.
    chroma = librosa.feature.chroma_stft(S=power, sr=RATE, tuning=0.0)
    level = power.sum(0)
    return np.asarray(chroma * (level > 1e-6 * level.max()), np.float64)
