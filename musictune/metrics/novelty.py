"""How unlike its training clips a clip is, as a reward against learning them by heart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.copying import Originality
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.excerpts import HOP, Excerpts
from musictune.metrics.features import Features
from musictune.metrics.matching import by_sound, sounding

_COPY = 1e-3
_DENSER = 4  # excerpts of training clips begin this much more often, so that a shift hides nothing


class Novelty:
    """Reward: 1 minus how near a clip comes to training clips by sound, times how near by notes.

    By sound is the highest cosine of its excerpts with those of training clips, 2.5 s long as in
    `copying`; by notes is what `musictune.metrics.copying.Originality` leaves. CLAP hears another
    piece of the same instrument as near as a copy that is shifted by a tenth of a second; only
    together do they tell a copy from the style. (The product is ours.) Silence gets 0, as an exact
    copy does.

    With ``held_out`` clips it stops at 1 for what is no nearer to training than half of them are:
    a clip that sounds like the concept without repeating it has all there is to gain, and sounding
    unlike it earns nothing. (So is this use of them.)

    Args:
        embedder: what hears.
        training: the clips not to repeat.
        held_out: clips of the same sound that were not trained on.

    Raises:
        InputError: there are no training clips or none sounds, or held-out clips are given that
            are silent or copies of training clips.
    """

    def __init__(
        self, embedder: Embedder, training: Iterable[Clip], held_out: Iterable[Clip] = ()
    ) -> None:
        training = list(training)
        dense = Excerpts(embedder, hop=HOP / _DENSER)
        self._listener = Excerpts(embedder)
        self._training = Features.of([dense.hear(clip) for clip in training])
        self._places = sounding(self._training)
        if not len(self._places.clip):
            raise InputError("the training clips are silent; give clips that sound")
        self._notes = Originality(training)
        self._usual = 1.0
        if clips := list(held_out):
            self._usual = float(self._distance(clips).median())
            if self._usual < _COPY:
                raise InputError(
                    f"{len(clips)} held-out clips are silent or copies of training clips; give "
                    f"clips of the same sound that were not trained on"
                )

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float32 from 0, for an exact copy or silence, to 1."""
        return self._distance(clips).div(self._usual).clamp(0, 1).float()

    def _distance(self, clips: Sequence[Clip]) -> Tensor:
        """``(clips,)`` float64."""
        # One clip at a time, so that no rounding depends on what stands beside it.
        return torch.tensor([self._apart(clip) for clip in clips], dtype=torch.float64)

    def _apart(self, clip: Clip) -> float:
        heard = Features.of([self._listener.hear(clip)])
        near = by_sound(heard, sounding(heard), self._training, self._places).value
        if not len(near):
            return 0.0
        return 1 - max(float(near.max()), 0.0) * (1 - float(self._notes([clip])[0]))
