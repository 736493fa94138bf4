"""What a saved pivotal adapter changes, read from its files without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.sparse import Chosen, Kind
from musictune.methods.storage import load_tensors


@dataclass(frozen=True, eq=False)
class SparseChange:
    """A change of a few weights of one ``(out, in)`` matrix.

    Attributes:
        shape: of the matrix.
        chosen: which weights.
        values: ``(n,)``, ``(n, in)`` or ``(out, n)``, as :class:`SelectedLinear` has them.
    """

    shape: tuple[int, int]
    chosen: Chosen
    values: Tensor

    @property
    def positions(self) -> Tensor:
        """Flat positions of the changed weights, int64 and sorted."""
        return self.chosen.flat(self.shape)

    @property
    def entries(self) -> Tensor:
        """The change at ``positions``."""
        # Columns are kept as (out, n), which is the order of their flat positions already.
        return self.values.flatten()


def read_changes(folder: Path, config: Mapping[str, Any]) -> dict[str, SparseChange]:
    """The change of each matrix by its name in the backbone.

    Args:
        folder: of the pivotal part of an adapter.
        config: its ``pivotal.json``.

    Raises:
        InputError: a file is missing or damaged, or no layer is changed.
    """
    tensors = load_tensors(folder / "pivotal.safetensors")
    found = {
        name: _read(tensors, name, shape, kind, folder)
        for name, (shape, kind) in _described(config, folder).items()
    }
    if not found:
        raise InputError(f"adapter {folder} is damaged: it changes no layer")
    return found


def _described(config: Mapping[str, Any], folder: Path) -> dict[str, tuple[tuple[int, int], str]]:
    """Shape and kind of each saved layer; adapters of before there were kinds hold elements."""
    try:
        layers = config.get("layers")
        if layers is None:
            shapes = config.get("shapes", {})
            layers = {name: {"shape": shape, "kind": "elements"} for name, shape in shapes.items()}
        described = {}
        for name, entry in layers.items():
            rows, columns = entry["shape"]
            described[name] = ((int(rows), int(columns)), str(entry["kind"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"adapter {folder} is damaged: pivotal.json names no layers") from error
    return described


def _read(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, int], kind: str, folder: Path
) -> SparseChange:
    """Checked indices and values of one layer."""

    def damaged(what: str) -> InputError:
        return InputError(
            f"adapter {folder} is damaged: {what} of {name}; copy it again or tune again"
        )

    if kind not in get_args(Kind):
        raise damaged(f"kind {kind!r}")
    indices, values = tensors.get(f"{name}.indices"), tensors.get(f"{name}.values")
    if indices is None or values is None:
        raise damaged("no indices or values")
    out, width = shape
    count = indices.numel()
    bound, expected = {
        "elements": (out * width, [count]),
        "rows": (out, [count, width]),
        "columns": (width, [out, count]),
    }[kind]
    if indices.dtype != torch.int32 or indices.dim() != 1 or not len(indices):
        raise damaged("indices that are no list of int32")
    if int(indices[0]) < 0 or int(indices[-1]) >= bound or bool((indices.diff() <= 0).any()):
        raise damaged(f"indices that are unsorted, repeated or outside 0 to {bound - 1}")
    if list(values.shape) != expected or not values.is_floating_point():
        raise damaged(f"values of shape {list(values.shape)} instead of {expected}")
    if not torch.isfinite(values).all():
        raise damaged("values that are no numbers")
    return SparseChange(shape, Chosen(kind, indices.long()), values.float())  # type: ignore[arg-type]
