"""Conditional training on preference tokens."""

from __future__ import annotations

from torch import Tensor

from musictune.data.concepts import Concept
from musictune.training.objectives.base import Compared, PairObjective


class Conditional(PairObjective):
    """Conditional training (Korbak et al., arXiv 2302.08582): two new words, good and bad.

    Chosen clips are learned under the prompt that begins with ``<liked>``, rejected ones under
    ``<disliked>``: plain likelihood of both, so that the model loses nothing of what it knows and
    learns what sets the two apart. Music is then asked for with ``<liked>`` before the prompt.

    The loss of a pair is the mean of its clips' negative log-likelihoods per token.
    """

    name = "conditional"
    needs_reference = False
    marks = (Concept("liked", "music"), Concept("disliked", "music"))

    def loss(self, pairs: Compared) -> Tensor:
        return -(pairs.chosen / pairs.chosen_tokens + pairs.rejected / pairs.rejected_tokens) / 2
