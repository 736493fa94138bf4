"""Our attention kernels as an attention implementation of transformers, ``musictune_fused``.

After `register`, ``network.decoder.set_attn_implementation("musictune_fused")`` makes a MusicGen
decoder train and score with :func:`musictune.kernels.attention.prefill_attention`: no matrix of
scores is held, and masks are lengths rather than tensors of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from musictune.errors import InputError
from musictune.kernels.attention import prefill_attention

NAME = "musictune_fused"


def register() -> str:
    """Make the implementation known to transformers; harmless to repeat.

    Returns:
        Its name.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _lengths)
    return NAME


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; the mask is what `_lengths` made.

    Raises:
        InputError: dropout inside attention, or a mask that somebody else made.
    """
    if dropout:
        raise InputError(f"attention dropout {dropout} is not supported by {NAME}; set it to 0")
    if attention_mask is not None and attention_mask.dim() != 1:
        raise InputError(
            f"{NAME} takes a mask of (clips, tokens), not one of {tuple(attention_mask.shape)}; "
            "use the sdpa implementation for other masks"
        )
    causal = bool(getattr(module, "is_causal", False))
    out = prefill_attention(query, key, value, causal, scaling, attention_mask)
    return out.transpose(1, 2), None


def _lengths(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """A mask ``(clips, tokens)`` as lengths ``(clips,)``; None where all is there.

    Raises:
        InputError: something is missing before the end, such as padding on the left.
    """
    if attention_mask is None:
        return None
    mask = attention_mask[:, -kv_length:].bool()
    lengths = mask.sum(-1)
    places = torch.arange(mask.shape[1], device=mask.device)
    if not torch.equal(mask, places < lengths[:, None]):
        raise InputError(f"{NAME} needs texts padded at their end; set padding_side to right")
    return lengths
