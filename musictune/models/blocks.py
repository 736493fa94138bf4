"""Where the parts of a transformer's layers are, whatever its family calls them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from musictune.errors import InputError


@dataclass(frozen=True)
class Block:
    """The dotted names in a backbone of one transformer layer's parts.

    Attributes:
        name: the layer itself.
        attention: the module with the query, key and value projections.
        query, key, value: linear layers that read what self-attention is given.
        output: the linear layer whose output self-attention adds to the residual stream.
        first, last: the linear layers at the two ends of the feed-forward block.
        attention_norm, feed_forward_norm: layer norms of the two blocks. In a pre-norm layer they
            stand before their block, in a post-norm layer behind it.
        width: channels of the residual stream.
    """

    name: str
    attention: str
    query: str
    key: str
    value: str
    output: str
    first: str
    last: str
    attention_norm: str
    feed_forward_norm: str
    width: int


# Relative to the layer: attention, query, key, value, output, first, last and the two norms.
_LAYOUTS: dict[str, tuple[str, ...]] = {
    "audio spectrogram transformer": (
        "attention",
        "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
        "mlp.fc1", "mlp.fc2",
        "layernorm_before", "layernorm_after",
    ),
    "wav2vec 2.0": (
        "attention",
        "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj",
        "feed_forward.intermediate_dense", "feed_forward.output_dense",
        "layer_norm", "final_layer_norm",
    ),
    "musicgen and whisper": (
        "self_attn",
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
        "fc1", "fc2",
        "self_attn_layer_norm", "final_layer_norm",
    ),
    "swin": (
        "attention.self",
        "attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense",
        "intermediate.dense", "output.dense",
        "layernorm_before", "layernorm_after",
    ),
    "roberta": (
        "attention.self",
        "attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense",
        "intermediate.dense", "output.dense",
        "attention.output.LayerNorm", "output.LayerNorm",
    ),
}  # fmt: skip

_INSIDE = re.compile(r"(\.base)+$")  # what an inserted module calls the plain one that it wraps


def blocks(backbone: nn.Module) -> list[Block]:
    """The transformer layers of ``backbone``, in its order.

    Raises:
        InputError: it has none of a known layout.
    """
    names = {_INSIDE.sub("", name) for name, _ in backbone.named_modules()}
    found = []
    for name in dict.fromkeys(_INSIDE.sub("", n) for n, _ in backbone.named_modules()):
        for parts in _LAYOUTS.values():
            places = [f"{name}.{part}" if name else part for part in parts]
            if all(place in names for place in places):
                found.append(_block(backbone, name, places))
                break
    if not found:
        raise InputError(
            f"a {type(backbone).__name__} has no transformer layers of a known layout: "
            f"{', '.join(_LAYOUTS)}"
        )
    return found


def _block(backbone: nn.Module, name: str, places: list[str]) -> Block:
    attention, query, key, value, output, first, last, before, after = places
    width = _width(backbone, output)
    return Block(name, attention, query, key, value, output, first, last, before, after, width)


def _width(backbone: nn.Module, output: str) -> int:
    """Rows of the attention's output projection, wrapped or not."""
    module = backbone.get_submodule(output)
    while not isinstance(module, nn.Linear):
        inside = getattr(module, "base", None) or getattr(module, "base_layer", None)
        if not isinstance(inside, nn.Module):
            break
        module = inside
    if isinstance(module, nn.Linear):
        return module.out_features
    raise InputError(f"{output} is no linear layer; detach what is attached to the model first")
