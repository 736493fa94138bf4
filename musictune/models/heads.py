"""Whether the heads over a decoder's last states are plain matrices, so that they may be fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import MusicgenForCausalLM, MusicgenMelodyForCausalLM

_DECODERS = (MusicgenForCausalLM, MusicgenMelodyForCausalLM)


def plain_heads(backbone: nn.Module, known: Callable[..., Any]) -> list[Tensor] | None:
    """The weights ``(vocabulary, width)`` of the heads of transformers' decoder.

    Args:
        backbone: to be called, if at all, through its ``model``.
        known: a hook before its forward pass that the caller runs itself.

    Returns:
        One per codebook; None where a head is anything but a product with a plain matrix, as one
        with an adapter is, or where something would miss the call of a head or of ``backbone``.
    """
    if type(backbone) not in _DECODERS or _watched(backbone, known):
        return None
    heads = list(backbone.lm_heads)
    if not all(type(head) is nn.Linear and head.bias is None for head in heads):
        return None
    if any(_watched(head) for head in heads):
        return None
    weights = [head.weight for head in heads]
    plain = all(type(weight) in (nn.Parameter, Tensor) for weight in weights)
    return weights if plain else None


def _watched(module: nn.Module, known: Callable[..., Any] | None = None) -> bool:
    """Whether a call of ``module`` does more than its class says."""
    before = [hook for hook in module._forward_pre_hooks.values() if hook is not known]
    after = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    return bool(before) or any(after) or "forward" in vars(module)
