"""Where adapters sit in a transformer's layers, and the wrappers that put them there.

An adapter is a small network that changes what a block does: it reads what the block reads or what
it gives, and what it computes is added. Wrappers around the block's own linear layers do this, so
that whatever calls those layers, a training loop or the generation engine, finds the adapter there.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.methods.inserted import BASE, Inserted, InsertedModule, require_seed
from musictune.models.base import MusicModel, TunableModel
from musictune.models.blocks import Block, blocks

Configuration = Literal["pfeiffer", "houlsby"]
Part = Literal["feed_forward", "attention"]
Form = Literal["parallel", "series"]
Position = Literal["after", "before"]
Place = Literal["after", "before", "parallel"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "configuration": get_args(Configuration),
    "block": get_args(Part),
    "form": get_args(Form),
    "position": get_args(Position),
}


@dataclass(frozen=True)
class Placement:
    """Where adapters sit; what is None follows from the model.

    On models that make music all of it is as in Houlsby et al. 2019 (arXiv 1902.00751):
    ``houlsby``, ``series``, ``after``, no norms. On encoders it is as in the study of adapters for
    AST (Cappellazzo et al. 2023, arXiv 2312.03694): ``pfeiffer``, ``feed_forward``, ``parallel``,
    with norms. The text of that study puts its one adapter beside attention, its code beside the
    feed-forward block; here it is the code's place, and ``block`` chooses the other.

    Attributes:
        configuration: ``pfeiffer``, one adapter per layer, or ``houlsby``, one for attention and
            one for the feed-forward block.
        block: which one of the two ``pfeiffer`` takes.
        form: ``parallel`` reads what the block reads and adds to what the block gives; ``series``
            stands in the block's way.
        position: of ``series``: ``after``, on what the block gives, before that joins the residual
            stream, or ``before``, on what the block reads.
        norms: also train gain and offset of the layer norms of the blocks that have adapters, and
            of the encoder's own norm outside its layers.

    Raises:
        InputError: an unknown value, or two that exclude each other.
    """

    configuration: Configuration | None = None
    block: Part | None = None
    form: Form | None = None
    position: Position | None = None
    norms: bool | None = None

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(f"{name} {value!r} is unknown; choose from {', '.join(known)}")
        if self.norms is not None and not isinstance(self.norms, bool):
            raise InputError(f"norms {self.norms!r} must be true or false")
        if self.block is not None and self.configuration == "houlsby":
            raise InputError(
                f"block {self.block!r} is a choice of pfeiffer; houlsby has adapters at both "
                "blocks: leave one of the two options out"
            )
        if self.position is not None and self.form == "parallel":
            raise InputError(
                f"position {self.position!r} is a choice of series; a parallel adapter stands "
                "beside the block: leave one of the two options out"
            )

    def resolved(self, model: TunableModel) -> Placement:
        """The same with nothing left open that matters on ``model``."""
        music = isinstance(model, MusicModel)
        whole = self.configuration or ("houlsby" if music and not self.block else "pfeiffer")
        form = self.form or ("series" if music or self.position else "parallel")
        return Placement(
            configuration=whole,
            block=None if whole == "houlsby" else self.block or "feed_forward",
            form=form,
            position=None if form == "parallel" else self.position or "after",
            norms=not music if self.norms is None else self.norms,
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The blocks of a layer that get an adapter, of a resolved placement."""
        return ("attention", "feed_forward") if self.block is None else (self.block,)

    @property
    def place(self) -> Place:
        """Where an adapter reads and adds, of a resolved placement."""
        return self.position or "parallel"


class Adapted(InsertedModule):
    """A layer of a block with an adapter at it; a subclass says what the adapter computes.

    Args:
        base: the block's last layer, or its first one where ``place`` is ``before``.
        place: ``after`` reads and changes what ``base`` gives, ``before`` what it reads;
            ``parallel`` reads what :meth:`hear` was given and changes what ``base`` gives.

    Attributes:
        remembers: whether a call depends on an earlier one, of another layer.
        readers: layers that read the input that ``before`` changes.
    """

    def __init__(self, base: nn.Module, place: Place = "after") -> None:
        super().__init__()
        self.base = base
        self.place: Place = place
        self.remembers = place == "parallel"
        self.readers = 1
        self._heard: Tensor | None = None
        self._made: tuple[Tensor, Tensor, int] | None = None

    @abstractmethod
    def change(self, x: Tensor) -> Tensor:
        """What the adapter adds, ``(..., width)`` to the same, in the dtype of ``x``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        heard, self._heard = self._heard, None
        if self.place == "before":
            given: Tensor = self.base(self.changed(x))
            return given
        y: Tensor = self.base(x)
        if self.scale == 0:
            return y
        if self.place == "after":
            return y + self.scale * self.change(y)
        assert heard is not None, "the block's first layer was not called before its last"
        return y + (self.scale * self.change(heard)).to(y.dtype)

    def hear(self, x: Tensor) -> None:
        """Keep ``(..., width)``, what the block reads, for the call that ends the block."""
        self._heard = None if self.scale == 0 else x

    def changed(self, x: Tensor) -> Tensor:
        """``x`` with the change; made once for the layers that read the same tensor."""
        if self.scale == 0:
            return x
        made = self._made
        if made is None or made[0] is not x:
            made = x, x + self.scale * self.change(x), self.readers
        left = made[2] - 1
        self._made = (made[0], made[1], left) if left else None
        return made[1]


class Reader(InsertedModule):
    """A first layer of a block, without weights of its own, for the adapter of another layer.

    Args:
        base: the layer.
        adapted: what has the adapter.
    """

    def __init__(self, base: nn.Module, adapted: Adapted) -> None:
        super().__init__()
        self.base = base
        self.remembers = adapted.remembers
        self._adapted = (adapted,)  # in a tuple, so that its weights are not counted here too
        if not self.remembers:
            adapted.readers += 1

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        adapted = self._adapted[0]
        if self.remembers:
            adapted.hear(x)
        else:
            x = adapted.changed(x)
        y: Tensor = self.base(x)
        return y


class TunedNorm(InsertedModule):
    """A layer norm whose gain and offset are trained, as changes that start at zero.

    Args:
        base: the layer norm, wrapped or not.

    Attributes:
        gain, shift: ``(channels,)``, what is added to the norm's own.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        norm = _inside(base)
        assert isinstance(norm, nn.LayerNorm)
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.gain = nn.Parameter(torch.zeros(self.shape))
        self.shift = nn.Parameter(torch.zeros(self.shape))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)`` to the same."""
        y: Tensor = self.base(x)
        if self.scale == 0:
            return y
        gain, shift = self.gain.to(x.dtype), self.shift.to(x.dtype)
        return y + (self.scale * F.layer_norm(x, self.shape, gain, shift, self.eps)).to(y.dtype)


class Placed(Inserted):
    """A method that puts an adapter into every layer of a transformer.

    Args:
        placement: where.
        seed: of the draw of the first weights.
    """

    def __init__(self, placement: Placement, seed: int) -> None:
        super().__init__()
        self.placement = placement
        self.seed = require_seed(seed)

    @abstractmethod
    def _adapter(
        self, base: nn.Module, width: int, place: Place, generator: torch.Generator
    ) -> Adapted:
        """An adapter at ``base`` for a residual stream of ``width`` channels."""

    def options(self) -> dict[str, Any]:
        """The placement and the seed; resolved once it was attached."""
        return {**asdict(self.placement), "seed": self.seed}

    def check(self, model: TunableModel) -> None:
        """Refuse a model without layers of a known layout, or options that do not fit it."""
        blocks(model.backbone)
        self.placement.resolved(model)

    def attach(self, model: TunableModel) -> None:
        """Insert the adapters and freeze all the rest.

        Raises:
            InputError: as :meth:`check`.
        """
        super().attach(model)
        adapters = [m for m in self._attached().values() if isinstance(m, Adapted)]
        self._facts["matched_layers"] = len(adapters)

    def _insert(self, model: TunableModel) -> dict[str, InsertedModule]:
        self.check(model)
        self.placement = self.placement.resolved(model)
        layers = blocks(model.backbone)
        generator = torch.Generator().manual_seed(self.seed)
        modules: dict[str, InsertedModule] = {}
        for layer in layers:
            for part in self.placement.parts:
                modules |= self._place(model.backbone, layer, part, generator)
        if self.placement.norms:
            names = [_norm_of(layer, part) for layer in layers for part in self.placement.parts]
            for name in (*names, *_outer_norms(model.backbone, layers)):
                modules[name] = TunedNorm(model.backbone.get_submodule(name))
                wrap(model.backbone, name, modules[name])
        return modules

    def _place(
        self, backbone: nn.Module, layer: Block, part: Part, generator: torch.Generator
    ) -> dict[str, InsertedModule]:
        place = self.placement.place
        firsts = [layer.query, layer.key, layer.value] if part == "attention" else [layer.first]
        last = layer.output if part == "attention" else layer.last
        own = firsts[0] if place == "before" else last
        adapted = self._adapter(backbone.get_submodule(own), layer.width, place, generator)
        found: dict[str, InsertedModule] = {own: adapted}
        others = {"before": firsts[1:], "parallel": firsts[:1], "after": []}[place]
        for name in others:
            found[name] = Reader(backbone.get_submodule(name), adapted)
        for name, module in found.items():
            wrap(backbone, name, module)
        return found

    def _remove(self, model: TunableModel) -> None:
        for name, module in self._attached().items():
            model.backbone.set_submodule(name, module.get_submodule(BASE))


def refuse_causal(method: str, model: TunableModel) -> None:
    """For methods that let a step hear those after it.

    Raises:
        InputError: ``model`` may not look ahead.
    """
    if model.causal:
        raise InputError(
            f"method {method} lets every step hear later ones, and {model.base!r} plays from left "
            "to right; choose another method, such as bottleneck or lora"
        )


def wrap(backbone: nn.Module, name: str, module: InsertedModule) -> None:
    """Put ``module`` where its ``base`` stands, in the mode of that: training or not."""
    module.train(module.get_submodule(BASE).training)
    backbone.set_submodule(name, module)


def _norm_of(layer: Block, part: Part) -> str:
    return layer.attention_norm if part == "attention" else layer.feed_forward_norm


def _outer_norms(backbone: nn.Module, layers: list[Block]) -> list[str]:
    """The encoder's norm outside its layers, one for each stack of them that has one.

    It stands behind the last layer, or before the first where layers end with a norm themselves.
    """
    found: dict[str, None] = {}
    for layer in layers:
        name = layer.name
        while name:
            name = name.rpartition(".")[0]
            outer = backbone.get_submodule(name)
            norms = [n for n, m in outer.named_children() if isinstance(_inside(m), nn.LayerNorm)]
            if norms:
                found |= dict.fromkeys(f"{name}.{norm}" if name else norm for norm in norms)
                break
    return list(found)


def _inside(module: nn.Module) -> nn.Module:
    """The plain module in one that inserted ones may be wrapped around."""
    while isinstance(module, InsertedModule) and hasattr(module, BASE):
        module = module.get_submodule(BASE)
    return module
