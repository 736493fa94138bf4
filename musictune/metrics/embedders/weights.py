"""Weights as plain tensors: read from whatever file a model comes in, and made ready to listen."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from musictune.errors import InputError

_NAMES = ("model.safetensors", "pytorch_model.bin")


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The named tensors of a model, as float32.

    Args:
        path: a ``.safetensors`` or PyTorch file, or a folder with a ``model.safetensors`` or
            ``pytorch_model.bin``. Only tensors are read from it: nothing else is unpickled.
        name: of the model, for messages.

    Raises:
        InputError: it is not there, damaged, or holds more than tensors.
    """
    if path.is_dir():
        files = [path / name for name in _NAMES if (path / name).is_file()]
        if not files:
            raise InputError(
                f"embedder {name} has no weights; one of {', '.join(_NAMES)} is needed"
            )
        path = files[0]
    try:
        found = _load(path)
        return {key: tensor.float() for key, tensor in found.items()}
    except Exception as error:  # both readers raise many kinds; each means the file is no use
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"embedder {name} cannot be loaded from {path.name} ({reason}); fetch the file again"
        ) from error


def fill(model: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Load weights, of which those that the model has no place for are left out.

    Raises:
        InputError: some that the model needs are missing or have another shape.
    """
    try:
        lost = sorted(model.load_state_dict(weights, strict=False).missing_keys)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"embedder {name} has weights that do not fit its configuration ({reason}); fetch it "
            f"again"
        ) from error
    if lost:
        raise InputError(f"embedder {name} lacks {len(lost)} weights, the first {lost[0]}")


def fold_weight_norm(model: nn.Module) -> None:
    """Turn weights that are kept as length and direction into plain ones.

    They are only trained that way: listening is quicker without, and a model with them cannot be
    pickled into other processes.
    """
    for module in model.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
            # What renames weights while loading stays behind, and is a local function.
            module._load_state_dict_pre_hooks.clear()


def _load(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError("a dictionary of tensors is needed")
    return found
