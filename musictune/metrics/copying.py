"""Has a tuned model learned a sound, or learned its training clips by heart?

Excerpts of what it made are held against the training clips by how they sound, by what notes they
hold at every shift in time, and by exact codec tokens. How near is too near is read off clips of
the same sound that were never trained on, as in the test of data copying of Meehan et al. (2020,
arXiv 2004.05675): they share its instrument, style and composer, but were copied from nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import About, NotComputed, Score
from musictune.metrics.calibration import exceedance_p, tail_p
from musictune.metrics.excerpts import ChromaFrames
from musictune.metrics.features import Features, comparable
from musictune.metrics.intervals import mean_interval
from musictune.metrics.matching import (
    Matches,
    Places,
    by_notes,
    by_sound,
    by_tokens,
    sounding,
    with_notes,
)

Array = np.ndarray
Kind = Literal["clap", "chroma", "tokens"]

KINDS: tuple[Kind, ...] = ("clap", "chroma", "tokens")
FALSE_ALARMS = 0.01
"""Chance of an alarm where nothing was copied, over all measures together."""

ABOUT: Mapping[str, About] = {
    "copying/clap": About(
        "Copied sound",
        "share of excerpts that sound more like a training excerpt than any held-out one does",
        "lower",
    ),
    "copying/chroma": About(
        "Copied notes",
        "share of excerpts whose notes are more like a training excerpt's than any held-out one's",
        "lower",
    ),
    "copying/tokens": About(
        "Copied tokens",
        "share of excerpts that begin a longer run of training tokens than any held-out one does",
        "lower",
    ),
}

_FOLDS = 10
# How fast the nearness of honest music falls off at its upper end, a little above what was measured
# on composed music in three styles: 0.22 to 0.45 by CLAP, 0.14 to 0.27 by notes, 0.2 to 1.3 tokens.
_USUAL_SCALE: Mapping[Kind, float] = {"clap": 0.45, "chroma": 0.25, "tokens": 1.5}


@dataclass(frozen=True)
class CopyFeatures:
    """What was heard in a set of clips, all in the same order.

    Attributes:
        names: of the clips, as people know them.
        clap: heard by `musictune.metrics.excerpts.Excerpts`.
        chroma: heard by `musictune.metrics.excerpts.ChromaFrames`.
        tokens: codec tokens; None where there is no codec to hear them.
        again: of training clips, the tokens heard after a round trip through the codec, which are
            those of music that a model made of the clip's own tokens.
        token_rate: rows of ``tokens`` per second.
        recordings: what each clip was cut from; each from its own if not given.

    Raises:
        InputError: there are no clips, or not as many of each.
    """

    names: tuple[str, ...]
    clap: Features
    chroma: Features
    tokens: Features | None = None
    again: Features | None = None
    token_rate: float = 0.0
    recordings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("there are no clips to search for copies; give at least one")
        heard = (self.clap, self.chroma, self.tokens, self.again, self.recordings or None)
        counts = {len(each) for each in heard if each is not None}
        if counts != {len(self.names)}:
            raise InputError(
                f"copying: {len(self.names)} names, but {sorted(counts)} clips were heard; hear "
                f"the same clips with each listener"
            )
        if self.tokens is not None and not self.token_rate > 0:
            raise InputError(f"token rate {self.token_rate:g} must be above 0 per second")

    def select(self, clips: Sequence[int]) -> CopyFeatures:
        """Some of the clips, in the order given."""
        return CopyFeatures(
            tuple(self.names[i] for i in clips),
            self.clap.select(clips),
            self.chroma.select(clips),
            None if self.tokens is None else self.tokens.select(clips),
            None if self.again is None else self.again.select(clips),
            self.token_rate,
            tuple(self.recordings[i] for i in clips) if self.recordings else (),
        )


@dataclass(frozen=True)
class Nearest:
    """The excerpt of a clip that is nearest to any of training.

    Attributes:
        value: how near: cosine, correlation or tokens.
        start: where it begins in the made clip, seconds.
        clip: index of the training clip.
        name: its name.
        training_start: where the likeness begins in it, seconds.
    """

    value: float
    start: float
    clip: int
    name: str
    training_start: float


@dataclass(frozen=True)
class CopyingReport:
    """How near made clips come to training clips, and whether that is too near.

    Attributes:
        scores: ``copying/clap``, ``copying/chroma``, ``copying/tokens``: the share of excerpts
            nearer to training than every held-out excerpt.
        thresholds: the nearness of the nearest held-out excerpt, by `Kind`.
        nearest: per made clip its nearest excerpt, by `Kind`; empty for a silent clip.
        values: by `Kind`, per made clip the nearness of its excerpts.
        held_out: the same of held-out clips.
        alarm: whether something was copied.
        alarm_reason: what and where, in one sentence, or why there is no alarm.
    """

    scores: dict[str, Score | NotComputed]
    thresholds: dict[Kind, float]
    nearest: tuple[dict[Kind, Nearest], ...]
    values: dict[Kind, list[Array]]
    held_out: dict[Kind, list[Array]]
    alarm: bool
    alarm_reason: str


def copying(
    made: CopyFeatures, training: CopyFeatures, held_out: CopyFeatures | None = None
) -> CopyingReport:
    """Search made clips for what was copied from training clips.

    The alarm is raised by one excerpt that lies too far above the held-out ones (`tail_p`, times
    the number of excerpts), or by too many above them all (`exceedance_p`), in any measure; in
    about `FALSE_ALARMS` of sets from which nothing was copied. With less than some 40 s of held-out
    music hardly more than exact copies can be told.

    Args:
        made: what the model made.
        training: what it was tuned on.
        held_out: clips of the same sound it was not tuned on; if not given, training clips take
            their place, each held against those of other recordings.

    Raises:
        InputError: the training clips are silent, or sets were heard by different listeners.
    """
    for other in (made, held_out):
        if other is not None:
            _check(other, training)
    if not len(sounding(training.clap).clip):
        raise InputError("the training clips are silent; give clips that sound")
    found = _near(made, training)
    values = _by_clip(found, made)
    if held_out is not None:
        theirs, why = _by_clip(_near(held_out, training), held_out), ""
    else:
        theirs, why = _between_recordings(training)
    return _judge(made, training, found, values, theirs, why)


class Originality:
    """Reward: 1 minus the highest correlation of a clip's notes with training clips, at any shift.

    By notes alone: how far a clip sounds from what it shall sound like is nothing to reward.
    A silent clip gets 0, as a copy does.

    Args:
        training: the clips not to repeat.

    Raises:
        InputError: there are none.
    """

    def __init__(self, training: Iterable[Clip]) -> None:
        self._listener = ChromaFrames()
        self._training = Features.of([self._listener.hear(clip) for clip in training])

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32, 0 for an exact copy, at most 1."""
        made = Features.of([self._listener.hear(clip) for clip in clips])
        places = with_notes(made)
        value = by_notes(made, places, self._training).value
        highest = np.zeros(len(made))
        np.maximum.at(highest, places.clip, value)
        heard = np.isin(np.arange(len(made)), places.clip)
        return torch.from_numpy(np.where(heard, 1 - highest, 0.0)).float()


def _check(one: CopyFeatures, training: CopyFeatures) -> None:
    comparable(one.clap, training.clap)
    comparable(one.chroma, training.chroma)
    if one.tokens is not None and training.tokens is not None:
        comparable(one.tokens, training.tokens)


def _near(made: CopyFeatures, training: CopyFeatures) -> tuple[Places, dict[Kind, Matches]]:
    places, others = sounding(made.clap), sounding(training.clap)
    if not len(others.clip):  # a part of the training clips may be silent
        nothing = Matches(*(np.zeros(len(places.clip), kind) for kind in (float, int, float)))
        return places, {"clap": nothing, "chroma": nothing}
    found: dict[Kind, Matches] = {
        "clap": by_sound(made.clap, places, training.clap, others),
        "chroma": by_notes(made.chroma, places, training.chroma),
    }
    if made.tokens is not None and training.tokens is not None:
        heard = [training.tokens] if training.again is None else [training.tokens, training.again]
        found["tokens"] = by_tokens(made.tokens, places, heard, made.token_rate)
    return places, found


def _by_clip(
    found: tuple[Places, dict[Kind, Matches]], made: CopyFeatures
) -> dict[Kind, list[Array]]:
    places, matches = found
    return {
        kind: [match.value[places.clip == i] for i in range(len(made.names))]
        for kind, match in matches.items()
    }


def _between_recordings(training: CopyFeatures) -> tuple[dict[Kind, list[Array]], str]:
    """Nearness of training clips to those of other recordings, or why there is none."""
    sources = training.recordings or training.names
    names = list(dict.fromkeys(sources))
    if len(names) < 2:
        return {}, (
            "the training clips come from one recording; give held-out clips of the same sound "
            "to tell what is too near"
        )
    values: dict[Kind, list[Array]] = {}
    for fold in np.array_split(np.arange(len(names)), min(_FOLDS, len(names))):
        out = {names[i] for i in fold}
        mine = training.select([i for i, name in enumerate(sources) if name in out])
        rest = training.select([i for i, name in enumerate(sources) if name not in out])
        for kind, clips in _by_clip(_near(mine, rest), mine).items():
            values.setdefault(kind, []).extend(clips)
    return values, ""


def _judge(
    made: CopyFeatures,
    training: CopyFeatures,
    found: tuple[Places, dict[Kind, Matches]],
    values: dict[Kind, list[Array]],
    theirs: dict[Kind, list[Array]],
    why: str,
) -> CopyingReport:
    scores: dict[str, Score | NotComputed] = {}
    thresholds: dict[Kind, float] = {}
    alarms: list[tuple[float, str]] = []
    for kind in KINDS:
        missing = why or _missing(values.get(kind), theirs.get(kind))
        if missing:
            scores[f"copying/{kind}"] = NotComputed(missing)
            continue
        held = np.concatenate(theirs[kind])
        thresholds[kind] = float(held.max())
        scores[f"copying/{kind}"] = _share(values[kind], held)
        single, many = _surprise(kind, values[kind], theirs[kind])
        if min(single, many) <= FALSE_ALARMS / (2 * len(KINDS)):
            text = _worst(kind, made, training, found, thresholds[kind])
            if many < single:
                above = sum(int((clip > thresholds[kind]).any()) for clip in values[kind])
                text = f"{above} of {len(made.names)} clips come too near, the nearest: {text}"
            alarms.append((min(single, many), text))
    nearest = tuple(_nearest(i, found, training) for i in range(len(made.names)))
    if alarms:
        reason = min(alarms)[1]
    elif thresholds:
        reason = "no excerpt is nearer to the training clips than chance explains"
    else:
        reason = "not known: " + next(
            s.reason for s in scores.values() if isinstance(s, NotComputed)
        )
    return CopyingReport(scores, thresholds, nearest, values, theirs, bool(alarms), reason)


def _missing(values: list[Array] | None, theirs: list[Array] | None) -> str:
    if values is None or theirs is None:
        return "no codec tokens were heard; give the base model"
    if not any(len(clip) for clip in values):
        return "all made clips are silent"
    if not any(len(clip) for clip in theirs):
        return "all held-out clips are silent; give some that sound"
    return ""


def _share(values: list[Array], held: Array) -> Score:
    clips = [clip for clip in values if len(clip)]
    shares = np.array([(clip > held.max()).mean() for clip in clips])
    weights = np.array([len(clip) for clip in clips], dtype=np.float64)
    value, low, high = mean_interval(shares, weights)
    # Where all clips agree resampling knows nothing; exact for a share of clips (Clopper 1934).
    if value in (0.0, 1.0):
        room = 1 - 0.025 ** (1 / len(clips))
        low, high = (0.0, room) if value == 0 else (1 - room, 1.0)
    chance = 1 / (len(held) / 2 + 1)  # excerpts overlap by half
    note = f"{len(held)} held-out excerpts: {chance:.0%} would be chance" if chance > 0.02 else ""
    return Score(value, max(low, 0.0), min(high, 1.0), len(clips), "lower", note)


def _surprise(kind: Kind, values: list[Array], theirs: list[Array]) -> tuple[float, float]:
    """p of the nearest excerpt, and of how many lie above all held-out ones."""
    scaled, held = values, theirs
    if kind != "tokens":
        scaled, held = [_far(v) for v in values], [_far(v) for v in theirs]
    all_made = np.concatenate(scaled)
    # Every second one, for those between overlap with both.
    apart = np.concatenate([clip[::2] for clip in held])
    single = len(all_made) * float(tail_p(all_made, apart, _USUAL_SCALE[kind]).min())
    return min(single, 1.0), exceedance_p(scaled, held)


def _far(cosines: Array) -> Array:
    """On the scale on which nearness falls off exponentially."""
    return np.asarray(-np.log(np.maximum(1 - cosines.astype(np.float64), 1e-6)))


def _nearest(
    clip: int, found: tuple[Places, dict[Kind, Matches]], training: CopyFeatures
) -> dict[Kind, Nearest]:
    places, matches = found
    rows = np.flatnonzero(places.clip == clip)
    nearest: dict[Kind, Nearest] = {}
    if not len(rows):
        return nearest
    for kind, match in matches.items():
        row = int(rows[match.value[rows].argmax()])
        other = int(match.clip[row])
        nearest[kind] = Nearest(
            float(match.value[row]), float(places.start[row]), other, training.names[other],
            float(match.start[row]),
        )  # fmt: skip
    return nearest


def _worst(
    kind: Kind,
    made: CopyFeatures,
    training: CopyFeatures,
    found: tuple[Places, dict[Kind, Matches]],
    threshold: float,
) -> str:
    places, matches = found
    clip = int(places.clip[matches[kind].value.argmax()])
    near = _nearest(clip, found, training)[kind]
    mine = f"{made.names[clip]} at {near.start:.1f} s"
    other = f"{near.name} at {near.training_start:.1f} s"
    if kind == "tokens":
        return (
            f"{mine} repeats {near.value:.0f} codec tokens of {other} one after another; held-out "
            f"music has at most {threshold:.0f}"
        )
    what = "sounds like" if kind == "clap" else "has the notes of"
    return (
        f"{mine} {what} {other} (likeness {near.value:.3f}; held-out music comes up to "
        f"{threshold:.3f})"
    )
