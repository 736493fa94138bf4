"""Several adapters on one model: weights, a scale by depth, and which ones go together.

The scale by depth is LiNeS (Wang et al. 2024, arXiv 2410.17146): shallow layers, which hold what
is common to all music, keep less of a change than deep ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.storage import load_json

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|h)\.(\d+)\.")


@dataclass(frozen=True)
class Depth:
    """How much of a change each layer keeps: ``first`` at the first, ``last`` at the last.

    In the paper's letters alpha is ``first`` and beta ``last - first``.

    Raises:
        InputError: a value that is no number.
    """

    first: float = 1.0
    last: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and math.isfinite(self.last)):
            raise InputError(f"depth {self.first:g}:{self.last:g} must be two numbers, as 0.3:1")

    @classmethod
    def read(cls, text: str) -> Depth:
        """From ``FIRST:LAST``, such as ``0.3:1``.

        Raises:
            InputError: it is something else.
        """
        first, colon, last = text.partition(":")
        try:
            return cls(float(first), float(last) if colon else math.nan)
        except (ValueError, InputError) as error:
            raise InputError(
                f"depth {text!r} must be FIRST:LAST, how much of an adapter the first and the last "
                "layer keep, such as 0.3:1"
            ) from error

    def at(self, layer: int, layers: int) -> float:
        """The scale of ``layer``, counted from 0, of ``layers``."""
        if layers < 2:
            return self.last
        return self.first + (self.last - self.first) * layer / (layers - 1)


@dataclass(frozen=True)
class Addition:
    """An adapter to load.

    Attributes:
        folder: the adapter's own.
        weight: 1 for all of it.
    """

    folder: Path
    weight: float = 1.0

    @classmethod
    def read(cls, given: str) -> Addition:
        """From ``RUN`` or ``RUN=weight``.

        Raises:
            InputError: no adapter there, or a weight that is no number.
        """
        from musictune.methods.adapter import adapter_folder

        path, equals, number = given.rpartition("=")
        if not equals or Path(given).exists():
            return cls(adapter_folder(Path(given)))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise InputError(
                f"adapter {given} has weight {number!r}; give a number, such as {path}=0.7"
            )
        return cls(adapter_folder(Path(path)), weight)


def check_together(folders: Sequence[Path]) -> None:
    """Refuse adapters that cannot be on one model, before anything is loaded.

    Raises:
        InputError: the same folder twice, or two that teach the same word.
    """
    seen: dict[Path, Path] = {}
    teachers: dict[str, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise InputError(same_name("", folder, folder))
        seen[folder.resolve()] = folder
        for name in concept_names(folder):
            if name in teachers:
                raise InputError(same_name(name, teachers[name], folder))
            teachers[name] = folder


def concept_names(folder: Path) -> list[str]:
    """The words that an adapter teaches, without reading its weights.

    Raises:
        InputError: the adapter is damaged.
    """
    try:
        names = [c["name"] for c in load_json(folder / "adapter.json").get("concepts", [])]
    except (KeyError, TypeError) as error:
        raise InputError(f"adapter {folder} is damaged: adapter.json has bad concepts") from error
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"adapter {folder} is damaged: adapter.json has bad concepts")
    return names


def same_name(name: str, one: Path | str, other: Path | str) -> str:
    """The one line about two adapters that teach the same word."""
    if Path(one).resolve() == Path(other).resolve():
        return f"adapter {other} is given twice; give it once, with another weight if wanted"
    return (
        f"adapters {one} and {other} both teach <{name}>; load one of them, or tune one again "
        "under another --concept name"
    )


def layer_of(name: str) -> int | None:
    """The decoder layer that a parameter of this name belongs to, counted from 0."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def layer_count(names: Iterable[str]) -> int:
    """Decoder layers of a backbone with parameters of these names."""
    return 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)


def scales(names: Sequence[str], depth: Depth) -> dict[str, float]:
    """The scale of each named parameter of a backbone.

    What comes before the layers (embeddings) counts as the first layer and what comes behind them
    (the last norm, the heads) as the last one: our own choice, the paper scales layers only.
    """
    layers = layer_count(names)
    found = {}
    for name in names:
        layer = layer_of(name)
        if layer is None:
            layer = 0 if "embed" in name else layers - 1
        found[name] = depth.at(layer, layers)
    return found


@torch.no_grad()
def rescale(module: nn.Module, before: Mapping[str, Tensor], weight: float, depth: Depth) -> None:
    """Keep of each parameter's change since ``before`` what ``weight`` and ``depth`` say."""
    factors = scales(list(before), depth)
    parameters = dict(module.named_parameters())
    for name, old in before.items():
        parameter = parameters[name]
        if not torch.equal(parameter, old):
            change = parameter.float() - old.float()
            parameter.copy_(old.float() + weight * factors[name] * change)
