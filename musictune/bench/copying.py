"""How near a cell's music comes to the training clips of its concept, as figures for a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.copying import CopyFeatures, Kind, Nearest, copying
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.excerpts import ChromaFrames, Excerpts
from musictune.metrics.features import Features
from musictune.metrics.matching import sounding

Array = np.ndarray


class CopyCheck:
    """Nearness of clips to training clips, calibrated on held-out clips of the same sound.

    Args:
        embedder: what hears.
        token_rate: codec frames per second.
        training, training_codes: what was trained on; codes per clip ``(codebooks, frames)``.
        held_out, held_out_codes: what calibrates.

    Raises:
        InputError: the training clips are silent.
    """

    def __init__(
        self,
        embedder: ClapEmbedder,
        token_rate: float,
        training: Sequence[Clip],
        training_codes: Sequence[Tensor],
        held_out: Sequence[Clip],
        held_out_codes: Sequence[Tensor],
    ) -> None:
        self._sound, self._notes = Excerpts(embedder), ChromaFrames()
        self._token_rate = token_rate
        self._training = self._hear(training, training_codes)
        if not len(sounding(self._training.clap).clip):
            raise InputError("the training clips are silent; prepare the concept set again")
        self._held_out = self._hear(held_out, held_out_codes)

    def measure(self, clips: Sequence[Clip], codes: Sequence[Tensor]) -> dict[str, Any]:
        """How near ``clips`` come to the training clips.

        Args:
            clips: made music.
            codes: its codec tokens, per clip ``(codebooks, frames)``.

        Returns:
            For ``clap`` and ``chroma`` the median and 95th percentile over excerpts of the
            similarity to the nearest training excerpt, the same of held-out excerpts, and the share
            of excerpts nearer than any held-out one. Silent excerpts do not count; where all are,
            there are no figures. For ``tokens`` the longest run of the first codebook that also
            stands in a training clip, a token repeated counting once. For ``nearest`` the nearest
            training excerpt of each clip and where it lies.
        """
        report = copying(self._hear(clips, codes), self._training, self._held_out)
        found: dict[str, Any] = {
            kind: _compared(np.concatenate(report.values[kind]), np.concatenate(theirs))
            for kind, theirs in report.held_out.items()
            if kind != "tokens"
        }
        runs, held = (_longest(each["tokens"]) for each in (report.values, report.held_out))
        found["tokens"] = {
            "longest": max(runs),
            "median": float(np.median(runs)),
            "held_out_longest": max(held),
            "held_out_median": float(np.median(held)),
        }
        found["nearest"] = [
            {"nearest_clap": _nearest(near, "clap"), "nearest_chroma": _nearest(near, "chroma")}
            | {"token_run": run}
            for near, run in zip(report.nearest, runs, strict=True)
        ]
        return found

    def _hear(self, clips: Sequence[Clip], codes: Sequence[Tensor]) -> CopyFeatures:
        return CopyFeatures(
            tuple(str(index) for index in range(len(clips))),
            Features.of([self._sound.hear(clip) for clip in clips], self._sound.key),
            Features.of([self._notes.hear(clip) for clip in clips], self._notes.key),
            Features.of([tokens.T.cpu().numpy() for tokens in codes]),
            token_rate=self._token_rate,
        )


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


def _longest(runs: Sequence[Array]) -> list[int]:
    """The longest run of each clip; a silent clip has none."""
    return [int(clip.max(initial=0)) for clip in runs]


def _nearest(near: dict[Kind, Nearest], kind: Kind) -> dict[str, Any] | None:
    if kind not in near:
        return None
    found = near[kind]
    return {
        "similarity": round(found.value, 5),
        "start": found.start,
        "training_clip": found.clip,
        "training_start": round(found.training_start, 2),
    }
