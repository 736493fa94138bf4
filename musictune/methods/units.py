"""The units in which weights are chosen, and the best ones that fit a budget.

A unit is what is chosen or left as a whole: one entry of a matrix, or slices that belong together,
such as a channel between two feed-forward layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.budget import Budget, Scope
from musictune.methods.sparse import Chosen, Kind

Granularity = Literal["element", "row", "column", "head", "channel"]
_GRANULARITIES: tuple[str, ...] = get_args(Granularity)


@dataclass(frozen=True)
class Group:
    """Slices of several matrices that are chosen together.

    Attributes:
        members: (layer, ``rows`` or ``columns``); all have equally many slices.
        slices: how many slices each member has.
        block: neighbouring slices that make a unit: the size of a head, else 1.
        entries: weights in a unit, over all members.
    """

    members: tuple[tuple[str, Kind], ...]
    slices: int
    block: int
    entries: int

    @property
    def indices(self) -> int:
        """Row and column numbers that a unit saves."""
        return self.block * len(self.members)


class Units:
    """The units of some matrices at one granularity.

    Args:
        shapes: ``(out, in)`` of each matched layer.
        granularity: ``element``; ``row`` (an output) and ``column`` (an input; the projections that
            read the same states share theirs); ``head`` (its rows of q, k, v and its columns of the
            output projection); ``channel`` (rows of one matrix with the columns that read them: fc1
            with fc2, v with out; and rows of q with those of k, which only meet each other).
        head_sizes: rows per head of each attention projection; only ``head`` needs it.

    Raises:
        InputError: the layers do not fit the granularity.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        granularity: Granularity = "element",
        head_sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.shapes = dict(shapes)
        self.granularity = granularity
        self.total = sum(out * width for out, width in self.shapes.values())
        self._groups = [] if self._single else _groups(self.shapes, granularity, head_sizes or {})

    @classmethod
    def of(
        cls, backbone: nn.Module, linears: Mapping[str, nn.Linear], granularity: Granularity
    ) -> Units:
        """The units of ``linears``, layers of ``backbone`` by their names."""
        shapes = {name: (m.out_features, m.in_features) for name, m in linears.items()}
        sizes = {n: s for n in linears if (s := head_size(backbone, n)) is not None}
        return cls(shapes, granularity, sizes)

    @property
    def _single(self) -> bool:
        return self.granularity == "element"

    def check(self, budget: Budget, scope: Scope) -> None:
        """Refuse a budget that holds no unit, or everything.

        Raises:
            InputError: it does, or it selects all of a matrix.
        """
        limit = budget.limit(self.total)
        if limit >= budget.cost(self.total, self.total if self._single else 0):
            raise InputError(f"budget {budget} {_whole(next(iter(self.shapes)))}")
        if self._single:
            parts = {n: budget.cost(1, 1) for n in self.shapes}
            sizes = {n: out * width for n, (out, width) in self.shapes.items()}
        else:
            parts = {g.members[0][0]: budget.cost(g.entries, g.indices) for g in self._groups}
            sizes = {g.members[0][0]: g.entries * (g.slices // g.block) for g in self._groups}
        if scope == "global":
            fits = limit >= max(parts.values())
        else:
            fits = any(limit * sizes[name] // self.total >= parts[name] for name in parts)
        if fits:
            return
        unit = "bytes" if budget.kilobytes is not None else "weights"
        each = "" if scope == "global" else f" over {len(parts)} matrices or groups of them"
        raise InputError(
            f"budget {budget} of {self.total} matched weights is {limit} {unit}{each}, less than "
            f"one {self.granularity} of {max(parts.values())} {unit}; give more, or a finer "
            "granularity"
        )

    def choose(
        self, scores: Mapping[str, Tensor], budget: Budget, scope: Scope = "global"
    ) -> dict[str, Chosen]:
        """The units of the highest mean score that fit the budget.

        The mean, not the sum, so that a large unit has no advantage over a small one. Units are
        taken in the order of their score until one does not fit: what a small budget holds, a
        larger one holds too. Ties go to the earlier unit, so the choice is a function of the
        scores.

        Args:
            scores: ``(out, in)`` finite, for each layer.
            budget: never exceeded.
            scope: rank all units together, or spend the budget on each matrix (each group of them,
                where units reach over several) in proportion to its size.

        Returns:
            Layers with at least one unit.
        """
        limit = budget.limit(self.total)
        if self._single:
            return self._entries(scores, limit // budget.cost(1, 1), scope)
        means = [_means(group, scores) for group in self._groups]
        costs = [budget.cost(group.entries, group.indices) for group in self._groups]
        if scope == "matrix":
            kept = [
                _largest(mean, limit * len(mean) * group.entries // self.total // cost)
                for group, mean, cost in zip(self._groups, means, costs, strict=True)
            ]
        else:
            kept = _prefix(means, costs, limit)
        chosen: dict[str, Chosen] = {}
        for group, units in zip(self._groups, kept, strict=True):
            offsets = torch.arange(group.block, device=units.device)
            indices = (units[:, None] * group.block + offsets).flatten()
            if len(indices):
                chosen |= {name: Chosen(kind, indices) for name, kind in group.members}
        return {name: chosen[name] for name in self.shapes if name in chosen}

    def uniform(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Scores ``(out, in)`` that are one uniform number per unit, so that all are alike."""
        if self._single:
            return {n: torch.rand(shape, generator=generator) for n, shape in self.shapes.items()}
        scores = {}
        for group in self._groups:
            drawn = torch.rand(group.slices // group.block, generator=generator)
            slices = drawn.repeat_interleave(group.block)
            for name, kind in group.members:
                across = slices[:, None] if kind == "rows" else slices
                scores[name] = across.expand(self.shapes[name])
        return scores

    def _entries(self, scores: Mapping[str, Tensor], count: int, scope: Scope) -> dict[str, Chosen]:
        flat = [scores[name].detach().flatten().float() for name in self.shapes]
        if scope == "matrix":
            kept = [_largest(s, count * len(s) // self.total) for s in flat]
        else:
            sizes = [len(s) for s in flat]
            bounds = torch.tensor([0, *sizes]).cumsum(0).tolist()
            best = _largest(torch.cat(flat), count)
            cuts = torch.searchsorted(best, torch.tensor(bounds, device=best.device)).tolist()
            kept = [best[cuts[i] : cuts[i + 1]] - bounds[i] for i in range(len(sizes))]
        pairs = zip(self.shapes, kept, strict=True)
        return {name: Chosen("elements", places) for name, places in pairs if len(places)}


def refuse_whole(chosen: Mapping[str, Chosen], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a choice that takes every weight of a matrix.

    Raises:
        InputError: it does; names the matrix.
    """
    for name, part in chosen.items():
        out, width = shapes[name]
        if part.entries((out, width)) == out * width:
            raise InputError(f"the budget {_whole(name)}")


def place_of(layer: str) -> tuple[str, str]:
    """Where a linear layer is and what it does there, whatever its family calls it.

    Returns:
        The name of the block that it is part of, and ``q_proj``, ``k_proj``, ``v_proj``,
        ``out_proj``, ``fc1`` or ``fc2``; for other layers the two parts of the name as it is.
    """
    for ending, (outside, role) in _CALLED.items():
        if layer == ending or layer.endswith(f".{ending}"):
            return (layer.removesuffix(ending) + outside).rstrip("."), role
    parent, _, role = layer.rpartition(".")
    return parent, role


def head_size(backbone: nn.Module, layer: str) -> int | None:
    """Rows per head of an attention projection; None if ``layer`` is none."""
    parent, role = place_of(layer)
    if role not in _ROLES["head"]:
        return None
    block: Any = backbone.get_submodule(parent)
    block = getattr(block, "self", block)
    size = getattr(block, "head_dim", None) or getattr(block, "attention_head_size", None)
    return int(size) if size else None


def output_projection(backbone: nn.Module, layer: str) -> str:
    """The name of the linear layer that gives out what an attention projection serves.

    Raises:
        InputError: ``layer`` is no such projection.
    """
    parent, _ = place_of(layer)
    for ending in ("out_proj", "o_proj", "output.dense"):
        name = f"{parent}.{ending}"
        try:
            if isinstance(backbone.get_submodule(name), nn.Linear):
                return name
        except AttributeError:
            continue
    raise InputError(f"{layer} has no output projection; choose targets among self_attention")


# Names of families other than MusicGen's, longest first: the block seen from there, and the role.
_CALLED: dict[str, tuple[str, str]] = {
    "attention.self.query": ("attention", "q_proj"),
    "attention.self.key": ("attention", "k_proj"),
    "attention.self.value": ("attention", "v_proj"),
    "attention.output.dense": ("attention", "out_proj"),
    "intermediate.dense": ("", "fc1"),
    "output.dense": ("", "fc2"),
    "intermediate_dense": ("", "fc1"),
    "output_dense": ("", "fc2"),
    "o_proj": ("", "out_proj"),
}
# Which slices of which projections make a unit, by the last part of the layer's name.
_ROLES: dict[str, dict[str, tuple[str, Kind]]] = {
    "row": {},
    "column": {},
    "head": {
        "q_proj": ("", "rows"),
        "k_proj": ("", "rows"),
        "v_proj": ("", "rows"),
        "out_proj": ("", "columns"),
    },
    "channel": {
        "q_proj": ("qk", "rows"),
        "k_proj": ("qk", "rows"),
        "v_proj": ("vo", "rows"),
        "out_proj": ("vo", "columns"),
        "fc1": ("fc", "rows"),
        "fc2": ("fc", "columns"),
    },
}
_PARTNERS = {
    "q_proj": "k_proj",
    "k_proj": "q_proj",
    "v_proj": "out_proj",
    "out_proj": "v_proj",
    "fc1": "fc2",
    "fc2": "fc1",
}
_MEANT = {"v_proj": " (the output projection)"}  # some families have another name for it
_READS = {"q_proj": "q", "k_proj": "kv", "v_proj": "kv"}


def _groups(
    shapes: Mapping[str, tuple[int, int]], granularity: str, head_sizes: Mapping[str, int]
) -> list[Group]:
    found: dict[tuple[str, str], list[tuple[str, Kind]]] = {}
    for name in shapes:
        key, kind = _place(name, granularity, shapes, head_sizes)
        found.setdefault(key, []).append((name, kind))
    return [_group(members, shapes, granularity, head_sizes) for members in found.values()]


def _place(
    name: str,
    granularity: str,
    shapes: Mapping[str, tuple[int, int]],
    head_sizes: Mapping[str, int],
) -> tuple[tuple[str, str], Kind]:
    """What ``name`` is chosen together with, and by rows or columns."""
    parent, role = place_of(name)
    if granularity == "row":
        return (name, ""), "rows"
    if granularity == "column":
        if role not in _READS:
            return (name, ""), "columns"
        # Self-attention's q, k and v read one input; across, k and v read the text's.
        cross = parent.endswith("encoder_attn")
        return (parent, _READS[role] if cross else "qkv"), "columns"
    if role not in _ROLES[granularity] or (granularity == "head" and name not in head_sizes):
        what = "an attention projection" if granularity == "head" else "half of a coupled pair"
        raise InputError(
            f"granularity {granularity} does not fit {name}, which is not {what}; choose targets "
            f"among {', '.join(_ROLES[granularity])}, or granularity row or column"
        )
    if granularity == "channel" and (parent, _PARTNERS[role]) not in map(place_of, shapes):
        raise InputError(
            f"granularity channel couples {name} with {_PARTNERS[role]}{_MEANT.get(role, '')}, "
            "which the targets leave out; widen targets (such as feed_forward, or value,output) or "
            "choose granularity row"
        )
    part, kind = _ROLES[granularity][role]
    return (parent, part), kind


def _group(
    members: Sequence[tuple[str, Kind]],
    shapes: Mapping[str, tuple[int, int]],
    granularity: str,
    head_sizes: Mapping[str, int],
) -> Group:
    block = head_sizes[members[0][0]] if granularity == "head" else 1
    across = [shapes[name][0 if kind == "rows" else 1] for name, kind in members]
    along = [shapes[name][1 if kind == "rows" else 0] for name, kind in members]
    if len(set(across)) > 1:
        names = ", ".join(name for name, _ in members)
        raise InputError(
            f"granularity {granularity} does not fit {names}: they have {across} slices; choose "
            "granularity row or element"
        )
    return Group(tuple(members), across[0], block, block * sum(along))


def _means(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    total: Tensor | None = None
    for name, kind in group.members:
        part = scores[name].detach().float().sum(1 if kind == "rows" else 0)
        total = part if total is None else total + part
    assert total is not None
    return total.view(-1, group.block).sum(1) / group.entries


def _largest(score: Tensor, count: int) -> Tensor:
    """Sorted places of the ``count`` largest; of equals the earlier ones."""
    count = min(count, len(score))
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=score.device)
    # Only the threshold is taken from topk, whose order among equals is not defined.
    threshold = torch.topk(score, count, sorted=False).values.min()
    above = score > threshold
    equal = (score == threshold).nonzero().flatten()[: count - int(above.sum())]
    return torch.cat([above.nonzero().flatten(), equal]).sort().values


def _prefix(means: Sequence[Tensor], costs: Sequence[int], limit: int) -> list[Tensor]:
    every = torch.cat(list(means))
    order = torch.sort(every, descending=True, stable=True).indices
    cost = torch.cat(
        [torch.full((len(mean),), cost) for mean, cost in zip(means, costs, strict=True)]
    ).to(every.device)
    within = cost[order].cumsum(0) <= limit
    taken = torch.zeros(len(every), dtype=torch.bool, device=every.device)
    taken[order[within]] = True
    parts = taken.split([len(mean) for mean in means])
    return [part.nonzero().flatten() for part in parts]


def _whole(name: str) -> str:
    return (
        f"selects all of {name}; that is full tuning: lower the budget, widen targets, or use "
        "method full"
    )


def known_granularity(granularity: str) -> Granularity:
    """``granularity``, if there is such a one.

    Raises:
        InputError: there is not; says which there are.
    """
    if granularity not in _GRANULARITIES:
        raise InputError(
            f"granularity {granularity!r} is unknown; choose from {', '.join(_GRANULARITIES)}"
        )
    return granularity  # type: ignore[return-value]
