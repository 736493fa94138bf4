"""Which base an adapter belongs to: hashes of names, shapes and weights, remembered per model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from musictune.models.base import TunableModel

if TYPE_CHECKING:
    from musictune.methods.base import TuningMethod

_WHOLE = 100_000_000  # weights of a module up to which every one of them is hashed
_SAMPLE = 4096  # of each tensor of a larger module
_REMEMBERED = "_base_identity"


@dataclass(frozen=True)
class BaseIdentity:
    """What a base is, in a few hundred bytes.

    Attributes:
        weights: how many the backbone has.
        parts: for the codec, the text encoder and each part of the backbone (a layer, an embedding,
            a head) ``layout.values``: a hash of its tensors' names and shapes, and one of their
            values rounded to bfloat16, so that a base in half precision is the same base.
        fingerprint: the hash of text encoder and codec that older adapters carry.
    """

    weights: int
    parts: Mapping[str, str]
    fingerprint: str

    def plain(self) -> dict[str, Any]:
        """As it is saved."""
        return {"weights": self.weights, "parts": dict(self.parts)}

    def difference(self, saved: Mapping[str, Any]) -> str | None:
        """How this base differs from a ``saved`` one, the first differing part named; or None."""
        theirs = saved.get("parts")
        if not isinstance(theirs, dict) or not theirs:
            return "the adapter names no parts of its base"
        for name in [*theirs, *(part for part in self.parts if part not in theirs)]:
            if name not in self.parts:
                return f"this base has no {name}"
            if name not in theirs:
                return f"that base has no {name}"
            if theirs[name] == self.parts[name]:
                continue
            same_layout = str(theirs[name]).split(".")[0] == self.parts[name].split(".")[0]
            return f"{'weights' if same_layout else 'shapes'} differ from {name} on"
        return None


def identity_of(model: TunableModel) -> BaseIdentity:
    """What ``model`` is or was before the first adapter.

    Looked at once and then remembered on ``model``, so ask before anything is attached. Every
    weight counts in modules of less than 100 million weights; of larger ones 4096 of each tensor
    do, evenly spaced, which tells other bases, other shapes and shuffled layers from this one but
    can miss a change of a few single weights.
    """
    known = getattr(model, _REMEMBERED, None)
    if isinstance(known, BaseIdentity):
        return known
    parts = {"codec": str(getattr(model, "codec_key", "")), **_encoder(model), **_backbone(model)}
    weights = sum(p.numel() for p in model.backbone.parameters())
    identity = BaseIdentity(weights, parts, _fingerprint(model))
    setattr(model, _REMEMBERED, identity)
    return identity


def identity_behind(model: TunableModel, method: TuningMethod) -> BaseIdentity:
    """:func:`identity_of` where ``method`` may already be attached.

    If nobody asked before, a copy without the method is looked at.
    """
    if not isinstance(getattr(model, _REMEMBERED, None), BaseIdentity):
        twin, attached = copied(model, method)
        attached.detach(twin)
        setattr(model, _REMEMBERED, identity_of(twin))
    return identity_of(model)


def copied(model: TunableModel, method: TuningMethod) -> tuple[TunableModel, TuningMethod]:
    """A copy of both that shares the codec, which no method touches."""
    network = getattr(model, "network", None)
    codec = getattr(network, "audio_encoder", None)
    shared = {} if codec is None else {id(codec): codec}
    twin, attached = copy.deepcopy((model, method), shared)
    return twin, attached


def _encoder(model: TunableModel) -> dict[str, str]:
    encoder = model.text_encoder
    return {} if encoder is None else _hashes(encoder, lambda name: "text encoder")


def _backbone(model: TunableModel) -> dict[str, str]:
    return _hashes(model.backbone, _part)


def _part(name: str) -> str:
    """``model.layers.3.fc.weight`` to ``model.layers.3``: as far as its first number."""
    words = name.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: numbers[0] + 1] if numbers else words[:-1])


def _hashes(module: nn.Module, part_of: Any) -> dict[str, str]:
    named = sorted(module.named_parameters())
    whole = sum(p.numel() for _, p in named) < _WHOLE
    layouts: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, parameter in named:
        part = part_of(name)
        layout = layouts.setdefault(part, hashlib.sha256())
        layout.update(f"{name} {list(parameter.shape)};".encode())
        values.setdefault(part, hashlib.sha256()).update(_bytes(parameter, whole))
    return {
        part: f"{layouts[part].hexdigest()[:8]}.{values[part].hexdigest()[:16]}" for part in layouts
    }


def _bytes(parameter: Tensor, whole: bool = True) -> bytes:
    flat = parameter.detach().flatten()
    if not whole and len(flat) > _SAMPLE:
        flat = flat[:: -(-len(flat) // _SAMPLE)]
    rounded = flat.to(torch.bfloat16).cpu().contiguous()
    return rounded.view(torch.int16).numpy().tobytes()


def _fingerprint(model: TunableModel) -> str:
    """Of text encoder and codec; word embeddings are left out, as concepts add to them."""
    encoder: Any = model.text_encoder
    if encoder is None:
        return hashlib.sha256(b"no text").hexdigest()[:32]
    tables = {id(p) for p in encoder.get_input_embeddings().parameters()}
    digest = hashlib.sha256(str(getattr(model, "codec_key", "")).encode())
    for name, parameter in sorted(encoder.named_parameters()):
        if id(parameter) not in tables:
            digest.update(f"{name} {list(parameter.shape)}".encode())
            digest.update(_bytes(parameter))
    return digest.hexdigest()[:32]
