"""Mask fine-tuning: a classifier learns from clips of which it does not hear everything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from musictune.errors import InputError
from musictune.models.classifier import Classifier

SHARE = 0.12
"""Of positions, as in the paper: 80 % of the 15 % that its pre-training chose."""

# Modules whose output is one vector for each position, before positions and class tokens are added.
_PLACES = ("embeddings.patch_embeddings", "feature_projection")


class PatchMasking:
    """Takes the content of a share of the positions away while a classifier is in training mode.

    After mask fine-tuning (Adversarial-MidiBERT, Zhao 2024, arXiv 2407.08306), which goes on
    masking while it learns labels, as in pre-training, and so also has something of dropout. Where
    the encoder keeps the vector that stood for what was masked in its own pre-training (the wave
    encoders' ``masked_spec_embed``), that vector stands there, unchanged by training. Ours: an AST
    trained on labels has none, and gets zeros; positions and class tokens stay; and nothing is
    masked in evaluation mode.

    In each clip the same number of positions is drawn, by torch's generator on the CPU, which
    training seeds before every pass. It lives in a hook: no weights, and nothing in what is saved.

    Args:
        share: of the positions, at least one of them; 0 masks nothing.

    Raises:
        InputError: a share below 0 or not below 1.
    """

    def __init__(self, share: float = SHARE) -> None:
        if not 0 <= share < 1:
            raise InputError(f"share {share} of masked patches must be at least 0 and below 1")
        self.share = share
        self._hook: RemovableHandle | None = None

    def attach(self, model: Classifier) -> Self:
        """From now on ``model`` is masked in training mode, whatever method is attached to it.

        Raises:
            InputError: attached already, or an encoder without known positions.
        """
        if self._hook is not None:
            raise InputError("masking is attached to a model already; detach it first")
        if not self.share:
            return self
        token = getattr(model.backbone, "masked_spec_embed", None)

        def mask(module: nn.Module, given: Any, found: Any) -> Any:
            if not model.training:
                return None
            if isinstance(found, tuple):
                return (self._masked(found[0], token), *found[1:])
            return self._masked(found, token)

        self._hook = _positions(model).register_forward_hook(mask)
        return self

    def detach(self) -> None:
        """Leave the model as it was; nothing happens where nothing is attached."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @contextlib.contextmanager
    def during(self, model: Classifier) -> Iterator[Self]:
        """Attached inside.

        Raises:
            InputError: as :meth:`attach`.
        """
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    def drawn(self, clips: int, positions: int) -> Tensor:
        """``(clips, positions)`` bool: which are masked, as torch's generator has it."""
        count = min(max(round(self.share * positions), 1), positions - 1) if self.share else 0
        order = torch.rand(clips, positions).argsort(dim=1, stable=True)
        return torch.zeros(clips, positions, dtype=torch.bool).scatter_(1, order[:, :count], True)

    def _masked(self, found: Tensor, token: Tensor | None) -> Tensor:
        mask = self.drawn(*found.shape[:2]).to(found.device)[..., None]
        if token is None:
            return found.masked_fill(mask, 0.0)
        return torch.where(mask, token.detach().to(found), found)


def _positions(model: Classifier) -> nn.Module:
    """The module after which each position of the encoder is one vector."""
    for place in _PLACES:
        with contextlib.suppress(AttributeError):
            return model.backbone.get_submodule(place)
    raise InputError(
        f"base {model.base} is a {type(model.backbone).__name__}, whose patches cannot be masked; "
        "set classify.mask_patches 0, or choose an AST or a wav2vec 2.0, HuBERT or WavLM"
    )
