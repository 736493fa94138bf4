"""The attention function that transformers calls for blocks to which methods added something.

transformers lets an attention function be registered by name; ours calls the one it stands for,
with a block's term of relative position, and adds what the block's memories answer. The cache
never holds anything of a method and no position shifts.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.base import matched_modules
from musictune.models.base import TunableModel

MEMORIES = "memories"
"""Where a block has its memories: a ``ModuleDict`` by the names of their methods."""

RELATIVE = "relative"
"""Where a block has its term of relative position, one at most: as its memories."""

_PREFIX = "musictune_methods_"
_PLAIN = ("sdpa", "eager")


def attention_blocks(model: TunableModel, targets: str, method: str) -> dict[str, Any]:
    """The attention blocks of the backbone whose names ``targets`` finds.

    Raises:
        InputError: there is none, or the backbone's attention function is one that ours cannot
            stand for.
    """
    found = matched_modules(model.backbone, targets, (nn.Module,))
    needed = ("q_proj", "k_proj", "v_proj", "scaling")
    blocks = {n: m for n, m in found.items() if all(hasattr(m, part) for part in needed)}
    if not blocks:
        raise InputError(
            f"targets {targets!r} matched no attention block that method {method} fits, only "
            f"{', '.join(list(found)[:3])}; such are self_attn of MusicGen and attention of an AST "
            "or wav2vec 2.0"
        )
    alone = next((name for name, block in blocks.items() if not _asks(block)), None)
    if alone is not None:
        raise InputError(
            f"method {method} does not fit {type(model.backbone).__name__}, whose {alone} computes "
            "attention by itself; use an AST, wav2vec 2.0 or HuBERT, or another method, such as "
            "lora or bottleneck"
        )
    plain = _plain_name(model.backbone)
    if plain not in _PLAIN:
        raise InputError(
            f"method {method} works with attention {' or '.join(_PLAIN)}, not with "
            f"{plain}; load the base with one of them"
        )
    return blocks


def heads_of(attention: Any) -> int:
    """How many heads an attention block has."""
    return int(getattr(attention, "num_heads", None) or attention.num_attention_heads)


def _asks(block: nn.Module) -> bool:
    """Whether a block calls the function that its config names, which ours can stand in for."""
    code = getattr(inspect.unwrap(type(block).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


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

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        # Each family has an eager function of its own; they differ in the precision of a softmax.
        family = sys.modules[type(module).__module__]
        plain = ALL_ATTENTION_FUNCTIONS.get_interface(
            name, getattr(family, "eager_attention_forward", None)
        )
        memories = [m for m in getattr(module, MEMORIES, {}).values() if m.scale != 0]
        for memory in memories:
            key, value, attention_mask = memory.around(key, value, attention_mask)
        term: Any = next(iter(getattr(module, RELATIVE, {}).values()), None)
        if term is None or term.scale == 0:
            output, weights = plain(module, query, key, value, attention_mask, **options)
        else:
            output, weights = term.attend(
                plain, module, query, key, value, attention_mask, **options
            )
        for memory in memories:
            answer = memory.answer(module, query, attention_mask)
            if answer is not None:
                output = output + answer
        return output, weights

    return attend
