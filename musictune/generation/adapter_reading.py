"""What an adapter changes, read from its folder: its words, and small changes of matrices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.generation.deltas import Delta, Part, deltas
from musictune.methods.adapter import (
    adapter_folder,
    attach_adapter,
    live_methods,
    method_names,
    parts_of,
    read_sparse,
)
from musictune.methods.base import TuningMethod
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.sparse import Chosen
from musictune.methods.sparse_change import SparseChange
from musictune.methods.storage import load_tensors
from musictune.models.musicgen import MusicGen

_DENSE = 0.25  # share of changed weights from which compressed rows no longer pay
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
_ROLES = {
    "self_attn.q_proj": ("qkv", 0),
    "self_attn.k_proj": ("qkv", 1),
    "self_attn.v_proj": ("qkv", 2),
    "self_attn.out_proj": ("out", 0),
    "encoder_attn.q_proj": ("cross_query", 0),
    "encoder_attn.k_proj": ("cross_key", 0),
    "encoder_attn.v_proj": ("cross_value", 0),
    "encoder_attn.out_proj": ("cross_out", 0),
    "fc1": ("up", 0),
    "fc2": ("down", 0),
}
"""Of a decoder layer's matrices: the product that each is in, and its place among its layers."""

Product = tuple[int, str]
"""A decoder layer, counted from 0, and the name of a product in it."""

_Change = SparseChange | tuple[Tensor, Tensor]
_Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Words:
    """A vocabulary of the text encoder."""

    tokenizer: Any
    concepts: list[Concept]
    table: nn.Module


@dataclass(eq=False)
class Adapter:
    """A change of a base, apart from it.

    Attributes:
        folder: where it was read from.
        words: the base's with those of the adapter, if it teaches any.
        taught: the concepts that these are.
        deltas: what is added to products; queries are scaled as in blocks without live methods.
    """

    folder: Path
    words: Words | None
    taught: list[Concept]
    deltas: dict[Product, list[Delta]]

    @property
    def nbytes(self) -> int:
        """Memory that the changes of matrices take."""
        return sum(delta.nbytes for each in self.deltas.values() for delta in each)


def read_adapter(model: MusicGen, folder: Path, weight: float = 1.0) -> Adapter:
    """Read an adapter; ``model`` is left as it was, to the bit, and frozen.

    Raises:
        InputError: no adapter, a damaged one, or one for another base; or one that cannot play
            beside others: it is no change of weights, or changes a matrix as a whole other than by
            two factors, or what is no matrix of a decoder layer.
    """
    folder = adapter_folder(folder)
    if live := live_methods(folder):
        raise _alone(folder, f"{live[0]} is no change of weights")
    own = [name for name in method_names(folder) if name != ConceptTokens.name]
    found: Mapping[str, _Change] | None = {} if not own else None
    if own == [Pivotal.name]:
        found = read_sparse(folder)
    factors = _factors(folder / Peft.name) if own == [Peft.name] else {}
    backbone = dict(model.backbone.named_parameters())
    # Of sparse changes it is known beforehand which weights move.
    before = {} if found is not None else {n: p.detach().clone() for n, p in backbone.items()}
    known = list(model.concepts)
    parts = list(parts_of(attach_adapter(model, folder)))
    words = None
    try:
        if spoken := [part for part in parts if isinstance(part, ConceptTokens)]:
            words = _words(model, spoken[0], weight)
        if found is None:
            factors = _scaled(model, factors)
            _merge(model, parts)
            found = _moved(before, dict(model.backbone.named_parameters()), factors, folder)
    finally:
        for part in reversed(parts):
            part.detach(model)
        _restore(model, before)
        model.requires_grad_(False)
    taught = [] if words is None else [c for c in words.concepts if c not in known]
    return Adapter(folder, words, taught, _deltas(model, found, weight, folder))


def _words(model: MusicGen, method: ConceptTokens, weight: float) -> Words:
    if weight != 1.0:
        method.weigh(method.rows, weight)
    table = model.text_encoder.get_input_embeddings().requires_grad_(False)
    return Words(model.tokenizer, model.concepts, table)


def _merge(model: MusicGen, parts: list[TuningMethod]) -> None:
    """Fold what changes the backbone into it, and forget those methods."""
    for part in reversed(list(parts)):
        if not isinstance(part, ConceptTokens):
            part.merge(model)
            parts.remove(part)


@torch.no_grad()
def _restore(model: MusicGen, before: Mapping[str, Tensor]) -> None:
    now = dict(model.backbone.named_parameters())
    for name, old in before.items():
        now[name].copy_(old)


def _factors(folder: Path) -> _Factors:
    """``A`` and ``B`` of each layer of a peft folder that has such."""
    tensors = load_tensors(folder / "adapter_model.safetensors")
    found = {}
    for key, a in tensors.items():
        b = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if key.endswith(".lora_A.weight") and b is not None and a.dim() == b.dim() == 2:
            layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[layer] = (a.float(), b.float())
    return found


def _scaled(model: MusicGen, factors: _Factors) -> _Factors:
    """With peft's own scaling in the second factor, while it is attached."""
    scalings = {
        name: float(module.scaling["default"])
        for name, module in model.backbone.named_modules()
        if name in factors and hasattr(module, "scaling")
    }
    return {name: (a, b * scalings.get(name, 1.0)) for name, (a, b) in factors.items()}


@torch.no_grad()
def _moved(
    before: Mapping[str, Tensor], now: Mapping[str, Tensor], factors: _Factors, folder: Path
) -> dict[str, _Change]:
    """What merging changed: the layers' own factors where they tell it, else single weights."""
    found: dict[str, _Change] = {}
    for name, old in before.items():
        change = now[name].detach().float() - old.float()
        indices = change.flatten().nonzero()[:, 0]
        if not len(indices):
            continue
        layer = name.removesuffix(".weight")
        pair = factors.get(layer)
        if pair is not None:
            told = pair[1].to(change) @ pair[0].to(change)
            # What rounding leaves of a sum with the weights, twice over.
            slack = 2 * torch.finfo(old.dtype).eps * (old.float().norm() + told.norm())
            if (change - told).norm() <= slack:
                found[layer] = pair
                continue
        if len(indices) > _DENSE * change.numel() or change.dim() != 2:
            raise _alone(folder, f"it changes {name} as a whole")
        values = change.flatten()[indices].cpu()
        rows, columns = change.shape
        found[layer] = SparseChange((rows, columns), Chosen("elements", indices.cpu()), values)
    return found


def _deltas(
    model: MusicGen, changes: Mapping[str, _Change], weight: float, folder: Path
) -> dict[Product, list[Delta]]:
    """By layer and product, for queries scaled as most blocks have them."""
    parts: dict[Product, list[Part]] = {}
    outputs: dict[Product, int] = {}
    for name, change in changes.items():
        place = _LAYER.search(name)
        if place is None or place[2] not in _ROLES:
            raise _alone(folder, f"it changes {name}, which is no matrix of a decoder layer")
        product, index = _ROLES[place[2]]
        key = int(place[1]), product
        module: Any = model.backbone.get_submodule(name)
        rows, columns = module.weight.shape
        scale = weight
        if place[2].endswith(".q_proj"):
            attention: Any = model.backbone.get_submodule(name.rpartition(".")[0])
            scale *= attention.scaling
        parts.setdefault(key, []).append(Part(index * rows, (rows, columns), change, scale))
        outputs[key] = rows * (3 if product == "qkv" else 1)
    device = model.device
    return {key: deltas(each, outputs[key], device) for key, each in parts.items()}


def _alone(folder: Path, reason: str) -> InputError:
    return InputError(
        f"adapter {folder} cannot play beside others: {reason}; load it alone: generate --adapter"
    )
