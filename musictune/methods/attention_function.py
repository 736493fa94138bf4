"""The attention function that transformers calls for blocks to which methods added something.

transformers lets an attention function be registered by name; ours calls the one it stands for,
with a block's term of relative position, and adds what the block's memories answer. The cache
never holds anything of a method and no position shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.base import matched_modules
from musictune.models.base import MusicModel

MEMORIES = "memories"
"""Where a block has its memories: a ``ModuleDict`` by the names of their methods."""

RELATIVE = "relative"
"""Where a block has its term of relative position, one at most: as its memories."""

_PREFIX = "musictune_methods_"
_PLAIN = ("sdpa", "eager")


def attention_blocks(model: MusicModel, targets: str, method: str) -> dict[str, Any]:
    """The attention blocks of the backbone whose names ``targets`` finds.

    Raises:
        InputError: there is none, or the backbone's attention function is one that ours cannot
            stand for.
    """
    found = matched_modules(model.backbone, targets, (nn.Module,))
    needed = ("q_proj", "k_proj", "v_proj", "num_heads", "scaling")
    blocks = {n: m for n, m in found.items() if all(hasattr(m, part) for part in needed)}
    if not blocks:
        raise InputError(
            f"targets {targets!r} matched no attention block, only "
            f"{', '.join(list(found)[:3])}; name blocks such as self_attn"
        )
    plain = _plain_name(model.backbone)
    if plain not in _PLAIN:
        raise InputError(
            f"method {method} works with attention {' or '.join(_PLAIN)}, not with "
            f"{plain}; load the base with one of them"
        )
    return blocks


def follow(backbone: Any) -> None:
    """Let ``backbone`` call our function where any block holds something of a method, and its
    own function where none does."""
    slots = (MEMORIES, RELATIVE)
    held = any(hasattr(module, slot) for module in backbone.modules() for slot in slots)
    name = _plain_name(backbone)
    if held:
        _register(name)
    backbone.config._attn_implementation = _PREFIX + name if held else name


def _plain_name(backbone: Any) -> str:
    return str(backbone.config._attn_implementation).removeprefix(_PREFIX)


def _register(name: str) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(_PREFIX + name, _attending(name))
    AttentionMaskInterface.register(_PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def _attending(name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.musicgen.modeling_musicgen import eager_attention_forward

    plain = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        term: Any = next(iter(getattr(module, RELATIVE, {}).values()), None)
        if term is None or term.scale == 0:
            output, weights = plain(module, query, key, value, attention_mask, **options)
        else:
            output, weights = term.attend(
                plain, module, query, key, value, attention_mask, **options
            )
        for memory in getattr(module, MEMORIES, {}).values():
            if memory.scale != 0:
                output = output + memory.answer(module, query, attention_mask)
        return output, weights

    return attend
