"""What a training step holds in memory, counted tensor by tensor: the same on every machine.

Resident memory of a process depends on its allocator and on what ran before; these figures do not.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Origin = Callable[[Any, tuple[Any, ...], Tensor], bool]
"""Whether a tensor that an operation made from these arguments is to be counted apart."""


class SavedBytes:
    """Bytes that autograd saved for backward; each storage is counted once.

    Attributes:
        total: bytes so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._seen: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor`` if it is new."""
        for storage in _storages(tensor):
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.total += storage.nbytes()

    def leave_out(self, tensor: Tensor) -> None:
        """Never count the storage of ``tensor``."""
        self._seen |= {storage.data_ptr() for storage in _storages(tensor)}


@contextlib.contextmanager
def saved_for_backward(modules: Iterable[nn.Module]) -> Iterator[SavedBytes]:
    """Count what is saved inside, without the parameters and buffers of ``modules``.

    Only while all that was saved is alive are addresses unique, so run the forward pass alone
    inside and keep its result.
    """
    counted = SavedBytes()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            counted.leave_out(tensor)

    def pack(tensor: Tensor) -> Tensor:
        counted.add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations made inside and that are still alive.

    Scratch space inside a single operation is not seen.

    Args:
        apart: which of them to count apart as well.

    Attributes:
        now, peak: bytes alive at present, and the most at any time.
        apart_peak: the most bytes of tensors that ``apart`` picked, alive at one time.
    """

    def __init__(self, apart: Origin | None = None) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.apart_peak = 0
        self._apart_now = 0
        self._apart = apart
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and count what it made."""
        before = {
            storage._cdata for leaf in _tensors((args, kwargs)) for storage in _storages(leaf)
        }
        made = func(*args, **(kwargs or {}))
        for leaf in _tensors(made):
            for storage in _storages(leaf):
                # A view, or a result in place, adds nothing.
                if storage._cdata not in before:
                    apart = self._apart is not None and self._apart(func, args, leaf)
                    self._add(storage, apart)
        return made

    def _add(self, storage: torch.UntypedStorage, apart: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size
            if apart:
                self._apart_now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
        if apart:
            self._apart_now += size
            self.apart_peak = max(self.apart_peak, self._apart_now)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements of ``tensors``."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimiser's state, its counters apart, and of the gradients that it reads."""
    states = (v for state in optimizer.state.values() for v in state.values())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    moments = [v for v in states if isinstance(v, Tensor) and v.dim()]
    return tensor_bytes(moments) + tensor_bytes(gradients)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """What ``tensor`` occupies: a sparse one, its indices and values; one of oneDNN's is opaque."""
    if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]
        return []
    parts: tuple[Tensor, ...] = (tensor,)
    if tensor.layout == torch.sparse_coo:
        parts = (tensor._indices(), tensor._values())
    elif tensor.layout == torch.sparse_csr:
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    return [part.untyped_storage() for part in parts]
