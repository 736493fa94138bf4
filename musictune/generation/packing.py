"""Linear layers as they are now, with their weights laid out once for many small products."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.generation.precision import Precision

Product = Callable[[Tensor], Tensor]
"""``(rows, in)`` to ``(rows, out)``; takes and gives fp32 on a CPU."""

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
}
_LARGEST = torch.finfo(torch.float16).max
_ROWS = 16  # what oneDNN is told to expect; other numbers work as well


def dtype_of(precision: Precision) -> torch.dtype:
    """Of what is not packed: states on a GPU, keys and values."""
    return _DTYPES[precision]


@torch.no_grad()
def dense(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight ``(out, in)`` and bias of a layer that is affine, adapters and all; fp32.

    A layer that is not a plain one is asked what it makes of the unit vectors, and then whether
    that also foretells what it makes of others; None if not.
    """
    if type(module) is nn.Linear and not _hooked(module):
        bias = None if module.bias is None else module.bias.float()
        return module.weight.float(), bias
    shape = getattr(module, "in_features", None) or _find_inputs(module)
    if shape is None or getattr(module, "remembers", False):  # or hears what another layer reads
        return None
    like = _plain_weight(module)
    zero = module(torch.zeros(1, shape, device=like.device, dtype=like.dtype))[0].float()
    unit = torch.eye(shape, device=like.device, dtype=like.dtype)
    weight = (module(unit).float() - zero).t().contiguous()
    probe = torch.randn(4, shape, generator=torch.Generator().manual_seed(0)).to(like)
    made, foretold = module(probe).float(), probe.float() @ weight.t() + zero
    slack = 1e-4 if like.dtype == torch.float32 else 3e-2
    if (made - foretold).norm() > slack * made.norm():
        return None
    return weight, zero if bool(zero.any()) else None


class Packer:
    """Packs layers, and knows again what it packed before: packing takes longer than looking.

    Args:
        precision: of the packed weights.
    """

    def __init__(self, precision: Precision) -> None:
        self.precision: Precision = precision
        self._known: dict[object, Product] = {}
        self._used: dict[object, Product] = {}

    @contextlib.contextmanager
    def one_model(self) -> Iterator[None]:
        """Inside, a whole model is packed; what it does not have is forgotten afterwards."""
        self._used = {}
        yield
        self._known = self._used

    @torch.no_grad()
    def pack(
        self, modules: Sequence[nn.Module], scale: float = 1.0, precision: Precision | None = None
    ) -> Product | None:
        """One product for layers that read the same input, their outputs one after another.

        Args:
            modules: the layers.
            scale: multiplies the first layer's output.
            precision: another one than of the others.

        Returns:
            The product, or None if a layer is not affine and must be called as it is.
        """
        parts = [dense(module) for module in modules]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        weights = [weight for weight, _ in found]
        biases = [weight.new_zeros(len(weight)) if b is None else b for weight, b in found]
        if scale != 1:
            weights[0], biases[0] = weights[0] * scale, biases[0] * scale
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias = torch.cat(biases)
        precision = precision or self.precision
        key = (precision, *_fingerprint(weight), bias.cpu().numpy().tobytes())
        if key not in self._known:
            whole = bias if bool(bias.any()) else None
            self._known[key] = product(weight.contiguous(), whole, precision)
        self._used[key] = self._known[key]
        return self._known[key]


def _fingerprint(weight: Tensor) -> tuple[object, ...]:
    """Tells matrices apart: an exact sum of the bits, and a product that order changes."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(weight.shape[1], generator=generator).to(weight)
    bits = int(weight.contiguous().view(torch.int32).sum())
    return tuple(weight.shape), bits, (weight @ probe).cpu().numpy().tobytes()


@torch.no_grad()
def product(weight: Tensor, bias: Tensor | None, precision: Precision) -> Product:
    """The product with a dense fp32 ``(out, in)`` matrix, packed as its device likes it."""
    if weight.device.type != "cpu":
        dtype = dtype_of(precision)
        return Plain(weight.to(dtype), None if bias is None else bias.to(dtype))
    largest = float(weight.abs().max())  # no number if one entry is none
    if not math.isfinite(largest) or (precision == "float16" and largest > _LARGEST):
        precision = "float32"
    if precision == "float16":
        return Float16(weight, bias)
    if precision == "int8":
        return Int8(weight, bias)
    if precision == "bfloat16" and torch.backends.mkldnn.is_available():
        return BFloat16(weight, bias)
    if torch.backends.mkldnn.is_available():
        return Float32(weight, bias)
    return Plain(weight, bias)


class Plain:
    """torch's own product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Float32:
    """oneDNN's blocked layout. A row's result does not depend on how many rows there are."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return made


class BFloat16:
    """oneDNN's blocked layout in bf16, on AMX, AVX-512 or AVX2 as it finds them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        packed = weight.to(torch.bfloat16)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(packed, _ROWS)
        self.bias = None if bias is None else bias.to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(torch.bfloat16)
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return made


class Float16:
    """FBGEMM: weights fp16, everything else fp32. A row's result depends on no other row."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        with _fbgemm():
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return made


class Int8:
    """FBGEMM: int8 weights with a scale per output, activations with a scale per row.

    Rows are brought to the range -1..1 first, so that one fixed scale suits all and a row's result
    depends on no other row.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        scales = weight.abs().amax(1).clamp_min(1e-12).double() / 127
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings(), _fbgemm():
            # torch means to replace this way of making such a tensor; nothing else makes one yet.
            warnings.filterwarnings("ignore", ".*quantized tensor creation")
            codes = (weight / scales[:, None].float()).round_().clamp_(-127, 127).to(torch.int8)
            quantised = torch._make_per_channel_quantized_tensor(codes, scales, zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        # A row of zeros must not become one of NaN.
        reach = torch.linalg.vector_norm(x, torch.inf, -1, True).clamp_min_(1e-20)
        made: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / reach, 1 / 127, 128, self.packed
        ).mul_(reach)
        return made if self.bias is None else made.add_(self.bias)


class Live:
    """A layer that cannot be packed, called as it is."""

    def __init__(self, module: nn.Module, state: torch.dtype) -> None:
        self.module, self.state = module, state
        self.dtype = _plain_weight(module).dtype

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = self.module(x.to(self.dtype)).to(self.state)
        return made


class Apart:
    """Layers of one input of which some cannot be packed."""

    def __init__(self, modules: list[Any], scale: float) -> None:
        self.parts = [Live(module, torch.float32) for module in modules]
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        first, *rest = (part(x).to(x.dtype) for part in self.parts)
        return torch.cat([first * self.scale, *rest], -1)


@contextlib.contextmanager
def _fbgemm() -> Iterator[None]:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _plain_weight(module: nn.Module) -> Tensor:
    """A weight of the base's own layer: what methods add to a base in bf16 is fp32."""
    while isinstance(inner := getattr(module, "base", None), nn.Module):
        module = inner
    return next(module.parameters())


def _find_inputs(module: Any) -> int | None:
    """How wide the input of a wrapped layer is."""
    inner = (m for m in module.modules() if isinstance(m, nn.Linear))
    plain = getattr(module, "base", None) or getattr(module, "base_layer", None)
    found = plain if isinstance(plain, nn.Linear) else next(inner, None)
    return getattr(found, "in_features", None)
