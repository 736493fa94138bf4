"""LoRA that begins as a part of the weights themselves (PiSSA, OLoRA), made harmless to the base.

peft starts such a LoRA by taking ``scaling * B0 A0`` out of each weight, so that the base is gone:
switching the adapter off or loading it elsewhere would leave a model that nobody trained. Here the
base's own weights are kept, and what is saved is the change ``BA - B0 A0``, a plain LoRA of twice
the rank that loads on the untouched base. Training goes on from the same file, which holds
``A, A0`` and ``B, -B0`` side by side.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.storage import load_json, load_tensors, save_json, save_tensors

_KNOWN = ("pissa", "olora")
# These change the base too, from data of their own or for a quantised one.
_OTHERS = ("corda", "lora_ga", "loftq")

# What the LoRA was while it was trained; its folder says what the change is.
_OWN = ("init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern")

START_FILE = "principal.json"
"""Beside peft's two files: says that the LoRA in them holds its own start."""


def takes_from_base(options: Mapping[str, Any]) -> bool:
    """Whether LoRA with these options of peft starts by changing the base's weights."""
    return _start_name(options).startswith((*_KNOWN, *_OTHERS))


def check_start(options: Mapping[str, Any]) -> None:
    """Refuse a start that a tuning run cannot give.

    Raises:
        InputError: it needs data of its own or a quantised base, or is combined with DoRA.
    """
    start = _start_name(options)
    if start.startswith((*_OTHERS, "eva")):
        raise InputError(
            f"init_lora_weights {start!r} needs data or a quantised base that a tuning run does "
            f"not have; choose true, gaussian, orthogonal, {' or '.join(_KNOWN)}"
        )
    if takes_from_base(options) and options.get("use_dora"):
        raise InputError(f"init_lora_weights {start!r} cannot be combined with use_dora; drop one")


class PrincipalStart:
    """The base's own weights, and the ``A0, B0`` that were taken out of them.

    Args:
        layers: the plain layers by their names in the backbone, before peft starts.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._plain = layers
        # Copies, as OLoRA's start writes into the weights.
        self.weights = {n: m.get_parameter("weight").detach().clone() for n, m in layers.items()}
        self._taken: dict[str, tuple[Tensor, Tensor]] = {}

    def note(self, tuned: dict[str, Any]) -> None:
        """Remember what peft's start took, right after it.

        Args:
            tuned: peft's layers by their names in the backbone.
        """
        self._taken = {
            name: (
                layer.lora_A["default"].weight.detach().clone(),
                layer.lora_B["default"].weight.detach().clone(),
            )
            for name, layer in tuned.items()
        }

    @torch.no_grad()
    def take(self, tuned: dict[str, Any], taken: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Take ``A0, B0`` out of plain weights, bit by bit as peft's own start does."""
        for name, layer in tuned.items():
            weight = self.weights[name]
            first, second = (part.to(weight.device) for part in taken[name])
            rest = weight.float() - layer.scaling["default"] * second @ first
            self._plain[name].get_parameter("weight").data = rest.to(weight.dtype)
            self._taken[name] = (first, second)

    def put_back(self) -> None:
        """Give the layers the base's own weights again, to the bit."""
        for name, layer in self._plain.items():
            layer.get_parameter("weight").data = self.weights[name]

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Inside, the layers have the base's own weights."""
        rest = {n: layer.get_parameter("weight").data for n, layer in self._plain.items()}
        self.put_back()
        try:
            yield
        finally:
            for name, layer in self._plain.items():
                layer.get_parameter("weight").data = rest[name]

    def save(self, wrapped: Any, folder: Path) -> None:
        """The change as a plain peft folder, a LoRA of twice the rank."""
        from peft import get_peft_model_state_dict

        tensors = dict(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        for name, (first, second) in self._taken.items():
            a, b = (f"base_model.model.{name}.lora_{part}.weight" for part in "AB")
            tensors[a] = torch.cat([tensors[a], first])
            tensors[b] = torch.cat([tensors[b], -second], 1)
        save_tensors(tensors, folder / "adapter_model.safetensors")
        config = copy.deepcopy(wrapped.peft_config["default"])
        save_json({name: getattr(config, name) for name in _OWN}, folder / START_FILE)
        grow = math.sqrt(2) if config.use_rslora else 2
        config.init_lora_weights, config.inference_mode = True, True
        config.r, config.lora_alpha = 2 * config.r, grow * config.lora_alpha
        config.rank_pattern = {key: 2 * value for key, value in config.rank_pattern.items()}
        config.alpha_pattern = {key: grow * value for key, value in config.alpha_pattern.items()}
        config.save_pretrained(str(folder))


def unfold(folder: Path, into: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Turn what :meth:`PrincipalStart.save` wrote into the peft folder of the LoRA as trained.

    Args:
        folder: as saved.
        into: an existing folder for the two files of peft.

    Returns:
        ``A0, B0`` by layer.

    Raises:
        InputError: a file is missing or damaged.
    """
    own = load_json(folder / START_FILE)
    if set(own) != set(_OWN):
        raise InputError(f"adapter {folder} is damaged: {START_FILE} must hold {', '.join(_OWN)}")
    config = load_json(folder / "adapter_config.json") | own | {"init_lora_weights": False}
    trained: dict[str, Tensor] = {}
    taken: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_tensors(folder / "adapter_model.safetensors").items():
        part = next((p for p in "AB" if key.endswith(f".lora_{p}.weight")), None)
        if part is None:
            trained[key] = tensor
            continue
        axis = 0 if part == "A" else 1
        if tensor.dim() != 2 or tensor.shape[axis] % 2:
            raise InputError(f"adapter {folder} is damaged: {key} must be of an even rank")
        now, start = tensor.chunk(2, axis)
        trained[key] = now
        layer = key.removeprefix("base_model.model.").removesuffix(f".lora_{part}.weight")
        taken.setdefault(layer, {})[part] = start if part == "A" else -start
    if any(len(pair) != 2 for pair in taken.values()):
        raise InputError(f"adapter {folder} is damaged: a layer lacks lora_A or lora_B")
    save_tensors(trained, into / "adapter_model.safetensors")
    save_json(config, into / "adapter_config.json")
    return {layer: (pair["A"], pair["B"]) for layer, pair in taken.items()}


def _start_name(options: Mapping[str, Any]) -> str:
    return str(options.get("init_lora_weights", True)).lower()
