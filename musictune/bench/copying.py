"""Has a tuned model learned a sound, or learned its training clips by heart?

Excerpts of what it made are held against every excerpt of the training clips, by how they sound
(CLAP), by what notes they hold (chroma at every shift in time, never in pitch) and by exact codec
tokens. How near is too near is read off clips of the same sound that were never trained on: they
share its instrument, style and composer, but were copied from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.data.windows import is_silent
from musictune.errors import InputError
from musictune.metrics.embedders import ClapEmbedder

Array = np.ndarray

EXCERPT = 2.5  # seconds
_CHROMA_RATE, _CHROMA_WINDOW, _CHROMA_HOP = 22_050, 4096, 1024


class CopyCheck:
    """Nearness of clips to training clips, calibrated on held-out clips of the same sound.

    Training excerpts overlap by half, the others do not overlap. A clip shorter than an excerpt is
    one.

    Args:
        embedder: what hears.
        training, training_codes: what was trained on; codes per clip ``(codebooks, frames)``.
        held_out, held_out_codes: what calibrates.
    """

    def __init__(
        self,
        embedder: ClapEmbedder,
        training: Sequence[Clip],
        training_codes: Sequence[Tensor],
        held_out: Sequence[Clip],
        held_out_codes: Sequence[Tensor],
    ) -> None:
        self._embedder = embedder
        self._places = [
            (index, start)
            for index, clip in enumerate(training)
            for start in _starts(clip, EXCERPT / 2)
        ]
        if not self._places:
            raise InputError("the training clips are silent; prepare the concept set again")
        self._points = self._embed([training[i].crop(start, EXCERPT) for i, start in self._places])
        self._chroma = [_chroma(clip) for clip in training]
        self._codes = [codes[0].cpu().numpy() for codes in training_codes]
        self._held_out = self._near(held_out, held_out_codes)

    def measure(self, clips: Sequence[Clip], codes: Sequence[Tensor]) -> dict[str, Any]:
        """How near ``clips`` come to the training clips.

        Args:
            clips: made music.
            codes: its codec tokens, per clip ``(codebooks, frames)``.

        Returns:
            For ``clap`` and ``chroma`` the median and 95th percentile over excerpts of the
            similarity to the nearest training excerpt (-1 to 1), the same of held-out excerpts, and
            the share of excerpts nearer than any held-out one: about one in n + 1 with n held-out
            excerpts is chance. Silent excerpts do not count; where all are, there are no figures.
            For ``tokens`` the longest run of the first codebook that also stands in a training
            clip, a token repeated counting once. For ``nearest`` the nearest training excerpt of
            each clip and where it lies.
        """
        near = self._near(clips, codes)
        found: dict[str, Any] = {}
        for kind in ("clap", "chroma"):
            ours = np.array([e[kind] for clip in near for e in clip["excerpts"]])
            theirs = np.array([e[kind] for clip in self._held_out for e in clip["excerpts"]])
            found[kind] = _compared(ours, theirs)
        runs = [clip["run"] for clip in near]
        held = [clip["run"] for clip in self._held_out]
        found["tokens"] = {
            "longest": max(runs),
            "median": float(np.median(runs)),
            "held_out_longest": max(held),
            "held_out_median": float(np.median(held)),
        }
        found["nearest"] = [
            {"nearest_clap": _nearest(clip["excerpts"], "clap")}
            | {"nearest_chroma": _nearest(clip["excerpts"], "chroma"), "token_run": clip["run"]}
            for clip in near
        ]
        return found

    def _near(self, clips: Sequence[Clip], codes: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Per clip its excerpts with their nearest training excerpts, and its longest run."""
        cut = [(i, start) for i, clip in enumerate(clips) for start in _starts(clip, EXCERPT)]
        near: list[dict[str, Any]] = [{"excerpts": []} for _ in clips]
        for one, tokens in zip(near, codes, strict=True):
            one["run"] = longest_run(tokens[0].cpu().numpy(), self._codes)
        if not cut:
            return near
        cosines = self._embed([clips[i].crop(start, EXCERPT) for i, start in cut]) @ self._points.T
        best = cosines.argmax(1)
        chroma = [_chroma(clip) for clip in clips]
        width = _frames(EXCERPT)
        for row, (i, start) in enumerate(cut):
            first = _frames(start)
            value, clip, lag = best_match(chroma[i][:, first : first + width], self._chroma)
            place, when = self._places[int(best[row])]
            near[i]["excerpts"].append(
                {
                    "start": start,
                    "clap": float(cosines[row, best[row]]),
                    "clap_at": [place, when],
                    "chroma": value,
                    "chroma_at": [clip, round(lag * _CHROMA_HOP / _CHROMA_RATE, 2)],
                }
            )
        return near

    def _embed(self, excerpts: Sequence[Clip]) -> Tensor:
        """``(excerpts, dim)`` unit rows; an excerpt is at most one window of the embedder's."""
        means = torch.stack([windows.mean(0) for windows in self._embedder.audio(excerpts)])
        return torch.nn.functional.normalize(means, dim=-1)


def _compared(ours: Array, theirs: Array) -> dict[str, Any]:
    counts: dict[str, Any] = {"excerpts": len(ours), "held_out_excerpts": len(theirs)}
    if len(ours):
        counts |= {"median": float(np.median(ours)), "p95": float(np.quantile(ours, 0.95))}
    if len(theirs):
        counts["held_out_median"] = float(np.median(theirs))
        counts["held_out_p95"] = float(np.quantile(theirs, 0.95))
    if len(ours) and len(theirs):
        counts["above_held_out"] = float((ours > theirs.max()).mean())
    return counts


def _nearest(excerpts: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The excerpt of a clip that is nearest to any of training, and where both begin."""
    if not excerpts:
        return None
    values = [excerpt[kind] for excerpt in excerpts]
    found = excerpts[int(np.argmax(values))]
    clip, start = found[f"{kind}_at"]
    return {
        "similarity": round(found[kind], 5),
        "start": found["start"],
        "training_clip": clip,
        "training_start": start,
    }


def best_match(excerpt: Array, others: Sequence[Array]) -> tuple[float, int, int]:
    """The highest correlation of a chroma excerpt with any stretch of others as long.

    Pitch classes are not rotated: the same tune in another key is another tune here.

    Args:
        excerpt: ``(12, frames)``.
        others: ``(12, frames)`` each; where one is shorter, the excerpt's beginning is compared.

    Returns:
        Pearson's correlation over pitch classes and frames, the index of the other, and the frame
        where the stretch begins there; 0 where one of them is silent.
    """
    best = (-1.0, 0, 0)
    for index, other in enumerate(others):
        width = min(excerpt.shape[1], other.shape[1])
        stretches = np.lib.stride_tricks.sliding_window_view(other, width, axis=1)
        rows = _standard(stretches.transpose(1, 0, 2).reshape(stretches.shape[1], -1))
        scores = rows @ _standard(excerpt[:, :width].reshape(1, -1))[0]
        lag = int(scores.argmax())
        if scores[lag] > best[0]:
            best = (float(scores[lag]), index, lag)
    return best


def longest_run(tokens: Array, others: Sequence[Array]) -> int:
    """Tokens in the longest run of ``tokens`` that also stands in one of ``others``.

    A token that repeats the one before it does not count, so that a held note or silence is no
    long run.

    Args:
        tokens: ``(frames,)`` integers.
        others: ``(frames,)`` each.
    """
    # One row with a mark between the others that no token equals.
    joined = np.concatenate([np.append(np.asarray(other, np.int64), -1) for other in others])
    runs = np.zeros(len(joined), np.int64)
    longest = 0
    for index, token in enumerate(tokens):
        new = index == 0 or token != tokens[index - 1]
        before = np.concatenate([[0], runs[:-1]])
        runs = np.where(joined == token, np.where(before > 0, before + new, 1), 0)
        longest = max(longest, int(runs.max()))
    return longest


def _starts(clip: Clip, hop: float) -> list[float]:
    """Seconds where excerpts begin that are not silent."""
    # Half a sample of slack, for lengths that resampling rounded down.
    room = clip.seconds - EXCERPT + 0.5 / clip.sample_rate
    starts = [hop * i for i in range(int(room // hop) + 1)] if room >= 0 else [0.0]
    return [start for start in starts if not is_silent(clip.crop(start, EXCERPT))]


def _frames(seconds: float) -> int:
    return round(seconds * _CHROMA_RATE / _CHROMA_HOP)


def _chroma(clip: Clip) -> Array:
    """``(12, frames)`` pitch classes, each frame of unit length or silent."""
    import librosa

    wave = clip.mono().resample(_CHROMA_RATE).wave[0].numpy()
    return np.asarray(
        librosa.feature.chroma_stft(
            y=wave,
            sr=_CHROMA_RATE,
            n_fft=_CHROMA_WINDOW,
            hop_length=_CHROMA_HOP,
            norm=2,
            # Estimating it for each clip would hide a copy that is a little out of tune.
            tuning=0.0,
        )
    )


def _standard(rows: Array) -> Array:
    """Rows with mean 0 and length 1; rows without variation become 0."""
    centred = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.where(length > 1e-6, centred / np.maximum(length, 1e-6), 0.0)
