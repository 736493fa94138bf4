"""Where in a model a change lives, and of what kind it is.

Intruder dimensions are those of Shuttleworth et al. 2024 (arXiv 2410.21228): leading singular
vectors of a tuned matrix that resemble none of the base's. Low-rank methods make them and they go
with forgetting. The threshold and the number of vectors are our own choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from musictune.methods.adapter import parts_of
from musictune.methods.base import TuningMethod
from musictune.methods.composition import layer_count, layer_of
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.identity import copied
from musictune.models.base import TunableModel

THRESHOLD = 0.6
"""Absolute cosine to the nearest base vector below which a singular vector is an intruder."""

LEADING = 10
"""Singular vectors of each tuned matrix that are looked at."""

_WORK = 6e9  # sum of cubes of the shorter sides up to which every matrix is decomposed


@dataclass(frozen=True)
class MatrixChange:
    """What became of one matrix of the backbone.

    Attributes:
        name: of the parameter.
        layer: of the decoder, from 0; None outside of it.
        place: what it is in its layer, such as ``self_attn.q_proj``.
        changed: weights that differ from the base's.
        weights: all of them.
        norm: Frobenius norm of the change.
        relative: ``norm`` over that of the base's matrix.
        stable_rank: squared Frobenius over squared spectral norm of the change: in how many
            directions it goes. None where not computed.
        rank90: singular values that hold nine tenths of the change's squared norm.
        nearest: for each leading singular vector of the tuned matrix, the largest absolute cosine
            to a singular vector of the base's. Vectors of the shorter side.
        intruders: how many of those lie below the threshold.
    """

    name: str
    layer: int | None
    place: str
    changed: int
    weights: int
    norm: float
    relative: float
    stable_rank: float | None = None
    rank90: int | None = None
    nearest: tuple[float, ...] = ()
    intruders: int | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What became of a backbone.

    Attributes:
        layers: of the decoder.
        matrices: those that changed, in the order of the backbone.
        decomposed: of how many the singular values were computed; a large model's are sampled.
    """

    layers: int
    matrices: tuple[MatrixChange, ...]
    decomposed: int

    @property
    def centre(self) -> float | None:
        """Mean depth of the change, weighted by its squared norm: 0 the first layer, 1 the last."""
        inside = [(m.layer, m.norm**2) for m in self.matrices if m.layer is not None]
        total = sum(weight for _, weight in inside)
        if not total or self.layers < 2:
            return None
        return sum(layer * weight for layer, weight in inside) / total / (self.layers - 1)

    @property
    def facts(self) -> dict[str, int | float | str]:
        """In a few numbers, for a run's card."""
        if not self.matrices:
            return {}
        norm = sum(m.norm**2 for m in self.matrices) ** 0.5
        base = sum((m.norm / m.relative) ** 2 for m in self.matrices if m.relative) ** 0.5
        found: dict[str, int | float | str] = {
            "weights_changed": sum(m.changed for m in self.matrices)
        }
        if base:
            found["relative_change"] = round(norm / base, 4)
        if self.centre is not None:
            found["centre_of_depth"] = round(self.centre, 3)
        ranks = [m.stable_rank for m in self.matrices if m.stable_rank is not None]
        if ranks:
            found["stable_rank_of_change"] = round(median(ranks), 1)
            looked = sum(len(m.nearest) for m in self.matrices)
            intruders = sum(m.intruders or 0 for m in self.matrices)
            found["intruder_dimensions"] = f"{intruders} of {looked}"
        return found

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "layers": self.layers,
            "centre_of_depth": self.centre,
            "intruder_threshold": THRESHOLD,
            "leading_vectors": LEADING,
            "decomposed_matrices": self.decomposed,
            "matrices": [asdict(matrix) for matrix in self.matrices],
        }


@torch.no_grad()
def diagnose(model: TunableModel, method: TuningMethod) -> Diagnosis | None:
    """Compare the backbone under ``method`` with the base. ``model`` stays as it is.

    Needs two more copies of the backbone for a moment.

    Args:
        model: with ``method`` attached.
        method: what was learned.

    Returns:
        None if it changes no weight of the backbone, as what cannot be merged does.
    """
    layers = layer_count(name for name, _ in model.backbone.named_parameters())
    changes = list(_changes(model, method))
    if not changes:
        return None
    looked = _sampled([name for name, old, _ in changes if old.dim() == 2], changes)
    matrices = tuple(_matrix(name, old, new, name in looked) for name, old, new in changes)
    return Diagnosis(layers, matrices, len(looked))


def _changes(model: TunableModel, method: TuningMethod) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, base and tuned value in fp32 of each parameter that differs."""
    parts = [p for p in parts_of(method) if p.mergeable and not isinstance(p, ConceptTokens)]
    if not parts:
        return
    tuned, _ = _merged(model, method)
    twin, attached = copied(model, method)
    attached.detach(twin)
    for name, parameter in twin.backbone.named_parameters():
        new = tuned.backbone.get_parameter(name)
        if not torch.equal(parameter, new):
            yield name, parameter.detach().float(), new.detach().float()


def _merged(model: TunableModel, method: TuningMethod) -> tuple[TunableModel, TuningMethod]:
    twin, attached = copied(model, method)
    for part in reversed(parts_of(attached)):
        if not part.mergeable:
            part.detach(twin)
        elif not isinstance(part, ConceptTokens):
            part.merge(twin)
    return twin, attached


def _sampled(names: list[str], changes: list[tuple[str, Tensor, Tensor]]) -> set[str]:
    """All of ``names``, or as many as can be decomposed in seconds, evenly spaced."""
    sides = {name: min(old.shape) for name, old, _ in changes if old.dim() == 2}
    work = sum(float(sides[name]) ** 3 for name in names)
    count = len(names) if work <= _WORK else max(2, int(len(names) * _WORK / work))
    if count >= len(names):
        return set(names)
    return {names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)}


def _matrix(name: str, old: Tensor, new: Tensor, decompose: bool) -> MatrixChange:
    change = new - old
    norm, base = float(change.norm()), float(old.norm())
    layer = layer_of(name)
    path = name.removesuffix(".weight").removesuffix(".bias")
    place = path.split(f".{layer}.", 1)[1] if layer is not None else path
    facts = MatrixChange(
        name, layer, place, int((change != 0).sum()), change.numel(), norm,
        norm / base if base else 0.0,
    )  # fmt: skip
    if not decompose:
        return facts
    energy = torch.linalg.eigvalsh(_gram(change)).flip(0).clamp_min(0)
    nearest = nearest_cosines(old, new)
    return MatrixChange(
        **{k: v for k, v in asdict(facts).items() if k in _PLAIN},
        stable_rank=float(energy.sum() / energy[0]),
        rank90=1 + int((energy.cumsum(0) < 0.9 * energy.sum()).sum()),
        nearest=tuple(round(float(c), 4) for c in nearest),
        intruders=int((nearest < THRESHOLD).sum()),
    )


_PLAIN = ("name", "layer", "place", "changed", "weights", "norm", "relative")


def nearest_cosines(base: Tensor, tuned: Tensor, leading: int = LEADING) -> Tensor:
    """How well each leading singular vector of ``tuned`` is known to ``base``.

    Args:
        base, tuned: two matrices of equal shape.
        leading: vectors of ``tuned`` to look at, those of the largest singular values.

    Returns:
        ``(leading,)`` or fewer, in [0, 1]: the largest absolute cosine to any singular vector of
        ``base``, on the shorter side of the matrices, where those of ``base`` are complete.
    """
    known, found = _vectors(base), _vectors(tuned)[:, :leading]
    return (known.t() @ found).abs().amax(0).clamp_max(1.0)


def _vectors(matrix: Tensor) -> Tensor:
    """``(n, n)`` singular vectors of the shorter side as columns, the largest first."""
    return torch.linalg.eigh(_gram(matrix)).eigenvectors.flip(1)


def _gram(matrix: Tensor) -> Tensor:
    # In double precision: the Gram matrix has the square of the condition.
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().t()
    return wide @ wide.t()
