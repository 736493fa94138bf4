"""What a saved pivotal adapter changes, read from its files without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.adapter import adapter_folder, method_names
from musictune.methods.pivotal import Pivotal
from musictune.methods.sparse import Chosen
from musictune.methods.storage import load_json, load_tensors


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


def is_sparse(folder: Path) -> bool:
    """Whether an adapter holds pivotal weights.

    Raises:
        InputError: there is no adapter, or a damaged one.
    """
    return Pivotal.name in method_names(folder)


def read_sparse(folder: Path) -> dict[str, SparseChange]:
    """The change of each matrix by its name in the backbone.

    Args:
        folder: an adapter folder, or a run with one in it.

    Raises:
        InputError: there is no adapter, a damaged one, or one without pivotal weights.
    """
    folder = adapter_folder(folder)
    if not is_sparse(folder):
        raise InputError(
            f"adapter {folder} has no pivotal weights (it is {' + '.join(method_names(folder))}); "
            "give a run of --method pivotal"
        )
    config = load_json(folder / Pivotal.name / "pivotal.json")
    tensors = load_tensors(folder / Pivotal.name / "pivotal.safetensors")
    layers = config.get("layers")
    if not isinstance(layers, dict):
        shapes = config.get("shapes", {})
        layers = {name: {"shape": shape, "kind": "elements"} for name, shape in shapes.items()}
    found = {}
    for name, layer in layers.items():
        try:
            rows, columns = (int(size) for size in layer["shape"])
            chosen = Chosen(layer["kind"], tensors[f"{name}.indices"].to(torch.int64))
            values = tensors[f"{name}.values"].float()
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise InputError(f"adapter {folder} is damaged: {name} cannot be read") from error
        change = SparseChange((rows, columns), chosen, values)
        limit = {"elements": rows * columns, "rows": rows, "columns": columns}[chosen.kind]
        if not len(chosen.indices) or int(chosen.indices[-1]) >= limit:
            raise InputError(f"adapter {folder} is damaged: indices of {name} lie outside of it")
        if values.numel() != chosen.entries(change.shape):
            raise InputError(f"adapter {folder} is damaged: {name} lacks values")
        if not values.isfinite().all():
            raise InputError(f"adapter {folder} is damaged: values of {name} are no numbers")
        found[name] = change
    return found
