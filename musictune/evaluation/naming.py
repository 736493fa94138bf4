"""Hearing recordings of any length with a classifier: window by window, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from musictune.audio import Clip, read, stream
from musictune.data.windows import is_silent
from musictune.errors import AudioError, InputError
from musictune.models.classifier import Classifier

_BLOCK = 60.0  # seconds decoded and heard at a time; a shorter recording is heard in one piece
_MARGIN = 0.05  # seconds behind a window that its last frames and the resampling reach into
_AT_ONCE = 16  # windows of one length that wait to be named together
_WAITING = 64  # windows that wait in all
_SHORTEST = 0.05  # seconds from one window to the next


@dataclass(frozen=True)
class Sound:
    """A recording or an excerpt of one: where it lies, its first second and its length."""

    path: Path
    start: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Named:
    """A stretch of a recording.

    Attributes:
        start, seconds: where in the recording.
        likeliest: classes by number with their probabilities, the likeliest first.
    """

    start: float
    seconds: float
    likeliest: list[tuple[int, float]]


@dataclass
class Answer:
    """What was heard in a recording.

    Attributes:
        sound: the recording.
        seconds: its length.
        probabilities: ``(classes,)``, the mean over its windows; None where it was not heard.
        windows: in order; empty unless they were asked for.
        silent: whether nothing sounds in it (-60 dB of full scale).
        error: why it was not heard.
    """

    sound: Sound
    seconds: float = 0.0
    probabilities: Tensor | None = None
    windows: list[Named] = field(default_factory=list)
    silent: bool = True
    error: str = ""


def check_every(every: float | None, model: Classifier) -> float:
    """Seconds from one window to the next: ``every``, or those that the model hears at once.

    Raises:
        InputError: it leaves parts unheard, or is next to nothing.
    """
    if every is None:
        return model.seconds
    if not _SHORTEST <= every <= model.seconds:
        raise InputError(
            f"--every {every:g} must be {_SHORTEST:g} to {model.seconds:g}, the seconds that the "
            "model hears at once"
        )
    return every


def name_sounds(
    model: Classifier,
    sounds: Iterable[Sound],
    every: float | None = None,
    windows: int = 0,
) -> Iterator[Answer]:
    """Hear recordings one after the other; answers come in the same order.

    Windows of several recordings are named together, yet what is said of one does not depend on
    the others: only windows of one length share a batch, so none is padded for another's sake.

    Args:
        model: what names them.
        sounds: the recordings.
        every: seconds from one window to the next; as long as the windows by default.
        windows: how many of the likeliest classes of each window to keep; 0 for no windows.

    Raises:
        InputError: ``every`` is not possible. A recording that cannot be heard is an answer with
            an ``error``.
    """
    step = check_every(every, model)
    naming = _Naming(model, windows)
    open_answers: list[Answer] = []
    for sound in sounds:
        answer = Answer(sound)
        open_answers.append(answer)
        try:
            for start, heard in _windows(_watched(sound, model, answer), model, step):
                naming.add(answer, start, heard)
        except AudioError as error:
            answer.error = str(error)
        while open_answers and not naming.waits_for(open_answers[0]):
            yield naming.finished(open_answers.pop(0))
    naming.flush()
    for answer in open_answers:
        yield naming.finished(answer)


def likeliest(row: Tensor, most: int) -> list[tuple[int, float]]:
    """The ``most`` likeliest classes of ``(classes,)``; of equals the one of the lower number."""
    values, order = row.sort(descending=True, stable=True)
    return list(zip(order[:most].tolist(), values[:most].tolist(), strict=True))


class _Naming:
    """Windows that wait for others of their length, and the sums of what was said so far."""

    def __init__(self, model: Classifier, keep: int) -> None:
        self.model = model
        self.keep = keep
        self.waiting: dict[int, list[tuple[Answer, float, Tensor]]] = {}
        self.sums: dict[int, tuple[Tensor, int]] = {}

    def add(self, answer: Answer, start: float, heard: Tensor) -> None:
        # A spectrogram is padded to one length whatever stands beside it.
        key = 0 if self.model.front.bands else len(heard)
        self.waiting.setdefault(key, []).append((answer, start, heard))
        if len(self.waiting[key]) >= _AT_ONCE:
            self._name(key)
        elif sum(map(len, self.waiting.values())) >= _WAITING:
            self.flush()

    def waits_for(self, answer: Answer) -> bool:
        return any(answer is one for rows in self.waiting.values() for one, _, _ in rows)

    def flush(self) -> None:
        for key in list(self.waiting):
            self._name(key)

    def finished(self, answer: Answer) -> Answer:
        total = self.sums.pop(id(answer), None)
        if answer.error:  # what was heard before it broke off is not the recording
            answer.windows = []
        elif total:
            answer.probabilities = (total[0] / total[1]).float()
        answer.windows = [
            replace(one, seconds=min(one.seconds, answer.seconds - one.start))
            for one in sorted(answer.windows, key=lambda one: one.start)
        ]
        return answer

    def _name(self, key: int) -> None:
        rows = self.waiting.pop(key)
        said = self.model.probabilities([heard for _, _, heard in rows])
        for (answer, start, _), row in zip(rows, said, strict=True):
            total, count = self.sums.get(id(answer), (torch.zeros_like(row).double(), 0))
            self.sums[id(answer)] = (total + row, count + 1)
            if self.keep:
                named = Named(start, self.model.seconds, likeliest(row, self.keep))
                answer.windows.append(named)


def _watched(sound: Sound, model: Classifier, answer: Answer) -> Iterator[Clip]:
    """The recording in blocks, while its length and silence are noted."""
    for clip in _blocks(sound, max(_BLOCK, model.seconds)):
        answer.seconds += clip.seconds
        answer.silent = answer.silent and is_silent(clip)
        yield clip


def _blocks(sound: Sound, size: float) -> Iterator[Clip]:
    if sound.seconds is not None and sound.seconds <= size:
        yield read(sound.path, sound.start, sound.seconds)
        return
    end = float("inf") if sound.seconds is None else sound.start + sound.seconds
    at, found = 0.0, False
    for clip in stream(sound.path, size):
        first, last = max(sound.start - at, 0.0), min(end - at, clip.seconds)
        if last - first > 0.5 / clip.sample_rate:
            found = True
            yield clip.crop(first, last - first)
        at += clip.seconds
        if at >= end:
            return
    if not found:
        raise AudioError(f"audio {sound.path} has nothing from {sound.start:g} s on")


def _windows(
    clips: Iterable[Clip], model: Classifier, every: float
) -> Iterator[tuple[float, Tensor]]:
    """Start in seconds and what is heard of each window, from consecutive blocks of a recording.

    As `Classifier.windows` cuts them: a rest below half a window is left out where it is not all.
    A window that reaches over the end of a block waits for the next, with the sound it needs.
    """
    place, begins, kept = 0, 0.0, None
    for clip, last in _with_last(clips):
        wave = clip.wave if kept is None else torch.cat([kept, clip.wave], 1)
        here = wave.shape[1] / clip.sample_rate
        heard = model.front.hear(Clip(wave, clip.sample_rate))
        while True:
            offset = place * every - begins
            left = here - offset
            if left < 0.5 / clip.sample_rate or (not last and left < model.seconds + _MARGIN):
                break
            part = heard[round(offset * model.front.rate) :][: model.steps]
            if place and (len(part) == 0 or len(part) < model.steps / 2):
                break
            yield place * every, part
            place += 1
        if last:
            return
        first = min(max(round((place * every - begins) * clip.sample_rate), 0), wave.shape[1])
        kept = wave[:, first:]
        begins += first / clip.sample_rate


def _with_last(clips: Iterable[Clip]) -> Iterator[tuple[Clip, bool]]:
    """Each block with whether it is the last."""
    before: Clip | None = None
    for clip in clips:
        if before is not None:
            yield before, False
        before = clip
    if before is not None:
        yield before, True
