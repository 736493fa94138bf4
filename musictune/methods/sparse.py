"""Training a few weights of a linear layer in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from musictune.errors import InputError
from musictune.kernels import largest_gradients, sampled_gradient
from musictune.methods.sparse_product import SelectedProduct, plain_product

Kind = Literal["elements", "rows", "columns"]

_Moment = tuple[int, int, int]
State = tuple[_Moment, bool]
"""What a weight holds: the change as of a moment of ``values``, and whether some is left out."""

_BASE: State = ((-1, 0, 0), False)
_TIMELESS = -2
_MOVED = "the trained values of a layer moved and were used again before an earlier backward"

_fused_steps = 0


def _count_fused_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    global _fused_steps
    if any(group.get("fused") for group in optimizer.param_groups):
        _fused_steps += 1


# Fused optimisers move a parameter without raising its version.
register_optimizer_step_post_hook(_count_fused_step)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which weights of one ``(out, in)`` matrix are trained.

    Attributes:
        kind: what ``indices`` count.
        indices: int64, sorted and unique: flat positions, output rows or input columns.

    Raises:
        InputError: an unknown kind, or indices that are not sorted, unique and non-negative.
    """

    kind: Kind
    indices: Tensor

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind {self.kind!r} must be one of {', '.join(get_args(Kind))}")
        indices = self.indices
        if indices.dim() != 1 or indices.dtype != torch.int64:
            raise InputError(
                f"indices of {self.kind} must be one row of int64, "
                f"not {list(indices.shape)} of {indices.dtype}"
            )
        if len(indices) and (indices[0] < 0 or bool((indices.diff() <= 0).any())):
            raise InputError(f"indices of {self.kind} must be sorted, unique and not negative")

    def entries(self, shape: Sequence[int]) -> int:
        """How many weights of an ``(out, in)`` matrix of ``shape`` that is."""
        each = {"elements": 1, "rows": shape[1], "columns": shape[0]}[self.kind]
        return each * len(self.indices)

    def flat(self, shape: Sequence[int]) -> Tensor:
        """Their flat positions in a matrix of ``shape``, sorted."""
        if self.kind == "elements":
            return self.indices
        rows = torch.arange(shape[0], device=self.indices.device)
        columns = torch.arange(shape[1], device=self.indices.device)
        if self.kind == "rows":
            rows = self.indices
        else:
            columns = self.indices
        return (rows[:, None] * shape[1] + columns).flatten()


class SelectedLinear(nn.Module):
    """``base`` with a few of its weights trained in place.

    The change of the chosen weights is a parameter of its own; whenever it moved, the sum of the
    original weights and the change is written into ``base.weight`` before the next use. Forward
    is therefore one plain product, and backward forms the gradient of the chosen weights only.
    The original bits of the chosen weights are kept, so the base can be had back exactly.

    Args:
        base: the layer, in fp32 or half precision; frozen here.
        chosen: which of its weights to train.
        dropout: share of the change left out at random in each training step, the rest scaled up.

    Attributes:
        values: fp32, zero at first, the change: ``(n,)`` elements, ``(n, in)`` for rows or
            ``(out, n)`` for columns.
        active: when False, backward gives ``values`` no gradient.
        candidates: after a watched backward, flat indices and absolute gradients of the weights
            outside ``chosen`` with the largest gradient; None before.

    Raises:
        InputError: ``chosen`` is empty or does not fit the layer, or ``dropout`` is not in [0, 1).
    """

    indices: Tensor
    original: Tensor

    def __init__(self, base: nn.Linear, chosen: Chosen, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise InputError(f"dropout {dropout} must be at least 0 and below 1")
        self._kind: Kind = chosen.kind
        self._chosen = chosen
        _fits(chosen, base)
        self.base = base.requires_grad_(False)
        self.register_buffer("indices", chosen.indices.to(base.weight.device))
        self.register_buffer("original", self._take(base.weight.data).clone())
        self.values = nn.Parameter(torch.zeros_like(self.original, dtype=torch.float32))
        self.dropout = dropout
        self.active = True
        self.candidates: tuple[Tensor, Tensor] | None = None
        self._columns = chosen.indices.cpu().numpy().tobytes() if chosen.kind == "columns" else None
        self._enabled = True
        self._watched = 0
        self._holds: State | None = None
        self._keep: tuple[_Moment, Tensor] | None = None

    @property
    def columns(self) -> bytes | None:
        """Names the chosen columns, so that layers with the same ones can tell; None otherwise."""
        return self._columns

    @property
    def chosen(self) -> Chosen:
        """Which weights are trained."""
        if self._chosen.indices is not self.indices:
            self._chosen = Chosen(self._kind, self.indices)
        return self._chosen

    @property
    def weight(self) -> Tensor:
        """``(out, in)``, the weight as it is used: with the change, if enabled."""
        self._hold(self._wanted())
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias

    @property
    def enabled(self) -> bool:
        """Whether the layer computes with the change. False puts the base's own bits back."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        self._hold(self._wanted())

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``, in the dtype of autocast or else of the weight."""
        if self.training and self.dropout:
            self._draw()
        state = self._wanted()
        self._hold(state)
        dtype = self.base.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        live = self._enabled and (self.active or self._watched > 0)
        values = self.values if live else self.values.detach()
        if torch.is_grad_enabled() and (x.requires_grad or values.requires_grad):
            return SelectedProduct.apply(x, values, self, state, dtype)
        return plain_product(x, self.base, dtype)

    @torch.no_grad()
    def change(self) -> Tensor:
        """``(out, in)`` fp32, the change of the whole matrix: zero outside ``chosen``."""
        dense = torch.zeros(self.base.weight.shape, device=self.values.device)
        self._put(dense, self.values.detach())
        return dense

    @torch.no_grad()
    def replace(self, indices: Tensor, values: Tensor) -> None:
        """Train other elements instead, as many as before.

        Args:
            indices: ``(n,)`` int64 flat positions, sorted and unique.
            values: ``(n,)`` their change.

        Raises:
            InputError: the layer trains no elements, or the new ones do not fit.
        """
        if self._kind != "elements":
            raise InputError(f"only elements can be replaced; this layer trains {self._kind}")
        if indices.shape != self.indices.shape or values.shape != self.values.shape:
            raise InputError(
                f"{len(self.indices)} elements cannot be replaced by {len(indices)} indices "
                f"and {len(values)} values"
            )
        chosen = Chosen("elements", indices.to(self.indices.device))
        _fits(chosen, self.base)
        self._hold(_BASE)
        self.indices = chosen.indices.clone()
        self.original = self._take(self.base.weight.data).clone()
        self.values.copy_(values)
        self._keep = None
        self._holds = None

    def redraw(self) -> None:
        """Let dropout leave out other entries from the next forward on.

        A layer whose values move does so by itself; one that rests would keep what it drew when it
        last moved, which a resumed run does not know.
        """
        self._keep = None

    def watch(self, count: int) -> None:
        """Let the next backward find the ``count`` elements outside ``chosen`` to grow into.

        Raises:
            InputError: the layer trains no elements, or ``count`` is not positive.
        """
        if self._kind != "elements":
            raise InputError(f"only elements can be watched; this layer trains {self._kind}")
        if count < 1:
            raise InputError(f"count {count} of watched elements must be at least 1")
        self._watched = count
        self.candidates = None

    @torch.no_grad()
    def merged(self, weight: float) -> nn.Linear:
        """``base`` with ``weight`` times the change for good."""
        total = self.original + weight * self.values
        self._put(self.base.weight.data, total.to(self.original.dtype))
        return self.base

    def restored(self) -> nn.Linear:
        """``base`` as it was, to the bit."""
        self._put(self.base.weight.data, self.original)
        self._holds = _BASE
        return self.base

    def moved(self) -> None:
        """Take note that a kernel moved ``values`` and wrote ``original + values`` itself."""
        increment_version(self.values)
        self._holds = (self._moment(), False)
        self._hold(self._wanted())

    def extra_repr(self) -> str:
        """Kind and count."""
        return f"{self._kind}={len(self.indices)}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._holds = None  # a copy's parameter counts its own moments

    # --- what the weight holds ---

    def _moment(self) -> _Moment:
        version = _TIMELESS if self.values.is_inference() else self.values._version
        return (version, self.values.data_ptr(), _fused_steps)

    def _wanted(self) -> State:
        if not self._enabled:
            return _BASE
        moment = self._moment()
        left_out = self.training and self._keep is not None and self._keep[0] == moment
        return (moment, left_out)

    @torch.no_grad()
    def _hold(self, state: State) -> None:
        """Write into the weight what ``state`` says.

        Past autograd's version counter: a switch to the base and back between forward and
        backward, as a reference policy needs it, leaves the weight as forward saw it.
        """
        if self._holds == state and state[0][0] != _TIMELESS:
            return
        if state == _BASE:
            self._put(self.base.weight.data, self.original)
        else:
            change = self.values.detach()
            if state[1]:
                change = change * self._scale(state)
            self._put(self.base.weight.data, (self.original + change).to(self.original.dtype))
        self._holds = state

    @contextlib.contextmanager
    def as_at(self, state: State) -> Iterator[Tensor]:
        """The weight as it was at ``state``."""
        if self._holds != state != _BASE and state[0] != self._moment():
            raise RuntimeError(_MOVED)
        before = self._holds
        self._hold(state)
        try:
            yield self.base.weight
        finally:
            if before is not None and before != state:
                self._hold(before)

    def _draw(self) -> None:
        # One number per forward, used or not: a recomputed forward must leave the generator where
        # the first one did. The entries left out stay the same until the values move.
        seed = int(torch.randint(2**62, ()))
        moment = self._moment()
        if self._keep is None or self._keep[0] != moment:
            generator = torch.Generator().manual_seed(seed)
            keep = torch.rand(self.values.shape, generator=generator) >= self.dropout
            self._keep = (moment, keep.to(self.values.device))
            self._holds = None

    def _scale(self, state: State) -> Tensor:
        if self._keep is None or self._keep[0] != state[0]:
            raise RuntimeError(_MOVED)
        return self._keep[1] / (1 - self.dropout)

    # --- entries of the matrix ---

    def _take(self, matrix: Tensor) -> Tensor:
        if self._kind == "elements":
            return matrix.view(-1).index_select(0, self.indices)
        return matrix.index_select(0 if self._kind == "rows" else 1, self.indices)

    def _put(self, matrix: Tensor, entries: Tensor) -> None:
        if self._kind == "elements":
            matrix.view(-1).index_copy_(0, self.indices, entries)
        else:
            matrix.index_copy_(0 if self._kind == "rows" else 1, self.indices, entries)

    # --- backward ---

    def learn(self, dy: Tensor, met: Tensor, state: State) -> Tensor | None:
        """The gradient of ``values``; backward calls it.

        Args:
            dy: ``(tokens, out)``.
            met: ``(tokens, in)`` the input of that forward, or its chosen columns.
            state: what the weight held then.
        """
        if self._watched:
            self.candidates = largest_gradients(dy, met, self.indices, self._watched)
            self._watched = 0
        if not self.active:
            return None
        if self._kind == "columns":
            gradient = dy.t() @ met
        elif self._kind == "rows":
            gradient = dy.index_select(1, self.indices).t() @ met
        else:
            gradient = sampled_gradient(dy, met, self.indices, self.base.in_features)
        gradient = gradient.float()
        return gradient * self._scale(state) if state[1] else gradient


def _fits(chosen: Chosen, base: nn.Linear) -> None:
    shape = base.weight.shape
    limit = {"elements": base.weight.numel(), "rows": shape[0], "columns": shape[1]}[chosen.kind]
    if not len(chosen.indices):
        raise InputError(f"no {chosen.kind} were chosen of a layer of {list(shape)}")
    if int(chosen.indices[-1]) >= limit:
        raise InputError(
            f"index {int(chosen.indices[-1])} lies outside the {limit} {chosen.kind} "
            f"of a layer of {list(shape)}"
        )
