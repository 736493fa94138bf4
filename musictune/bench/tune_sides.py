"""The sides of `musictune bench tune`: one model, one batch, and several ways to tune it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.methods.base import matched_modules
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.sparse import Chosen
from musictune.methods.units import Granularity
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen

ALL_LINEARS = r"(?:q|k|v|out)_proj$|\.fc[12]$"
"""Self-attention, cross-attention and feed-forward; not the heads, as in peft's own recipes."""
VALUES = r"self_attn\.v_proj$"

_SEED = 0
_CAPTION = "slow warm piano and strings in a calm minor key with soft drums"
_RATE = 1e-4


@dataclass(frozen=True)
class Shape:
    """A model's size with the batch and the rank that are measured on it.

    Attributes:
        batch: clips per step.
        tokens: codec frames per clip.
        rank: of LoRA; every other side but full tuning trains about as many weights.
        layers, width, heads: of a decoder with random weights.
        base: a model that is there already, instead.
    """

    batch: int
    tokens: int
    rank: int = 16
    layers: int = 0
    width: int = 0
    heads: int = 0
    base: str = ""


SHAPES: dict[str, Shape] = {
    "toy": Shape(batch=2, tokens=24, rank=1, base="toy"),
    "mini": Shape(batch=4, tokens=128, base="mini"),
    "small": Shape(batch=2, tokens=256, layers=24, width=1024, heads=16),
    "medium": Shape(batch=2, tokens=256, layers=48, width=1536, heads=24),
}


@dataclass
class Side:
    """One way to tune, ready to step.

    Attributes:
        name: how it is called in rows.
        model: its own copy of the decoder's weights.
        optimizer: AdamW, fused, over what it trains.
        trained: how many weights those are.
        wall, cpu: seconds of each measured step: on the clock, and of the whole process.
    """

    name: str
    model: MusicGen
    optimizer: torch.optim.Optimizer
    trained: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def step(self, batch: Batch, phase: Callable[[str], None] = lambda name: None) -> None:
        """One whole training step; ``phase`` hears when each of its three parts begins."""
        self.optimizer.zero_grad(set_to_none=True)
        phase("forward")
        loss = self.model.nll(batch).mean()
        phase("backward")
        loss.backward()
        phase("optimiser")
        self.optimizer.step()


def find_shape(name: str) -> Shape:
    """The shape called ``name``.

    Raises:
        InputError: there is none.
    """
    if name not in SHAPES:
        raise InputError(f"--shape {name!r} is not known; give one of {', '.join(SHAPES)}")
    return SHAPES[name]


def build_model(shape: Shape, device: torch.device) -> MusicGen:
    """The model of ``shape`` in bfloat16 on ``device``, its text encoder and codec frozen."""
    with quiet_transformers():
        if shape.base == "toy":
            model = MusicGen.toy()
        elif shape.base:
            model = MusicGen.load(shape.base)
        else:
            model = _random_model(shape)
    # All of it: the text's states must come in the decoder's own dtype.
    model.network.to(torch.bfloat16)
    # Dropout costs the same on every side; drawing its numbers takes long on a CPU.
    return model.to(device).requires_grad_(False).eval()


def build_batch(model: MusicGen, clips: int, tokens: int) -> Batch:
    """Random codes, the same ones for each call."""
    generator = torch.Generator().manual_seed(_SEED)
    codes = torch.randint(model.vocabulary, (clips, model.codebooks, tokens), generator=generator)
    lengths = torch.full((clips,), tokens)
    return Batch(codes, lengths, (_CAPTION,) * clips).to(model.device)


def lora(model: MusicGen, shape: Shape, targets: str, *, half: bool = False) -> Side:
    """peft's LoRA; its adapters in fp32 as peft makes them, or in the base's bfloat16."""
    own = _copied(model)
    if half:
        _peft_in_half(own, shape, targets)
    else:
        Peft("lora", {"r": shape.rank, "lora_alpha": 2 * shape.rank}, targets).attach(own)
    return _side("peft LoRA, bf16 adapters" if half else "peft LoRA", own)


def full(model: MusicGen) -> Side:
    """Every weight of the decoder."""
    own = _copied(model)
    own.backbone.requires_grad_(True)
    return _side("full fine-tuning", own)


def structured(model: MusicGen, granularity: Granularity, targets: str, count: int) -> Side:
    """Pivotal with whole columns, rows or heads, at most ``count`` weights of them.

    Heads are those of self-attention: other layers have none.
    """
    own = _copied(model)
    pivotal = Pivotal(
        count=count,
        selection="random",
        granularity=granularity,
        targets="self_attention" if granularity == "head" else targets,
        seed=_SEED,
    )
    pivotal.prepare(own, _no_batches())
    pivotal.attach(own)
    return _side(f"pivotal {granularity}s", own)


def elements(model: MusicGen, shape: Shape, targets: str) -> Side:
    """Pivotal with single weights, as many as LoRA trains in each matrix."""
    own = _copied(model)
    pivotal = Pivotal(targets=targets)
    pivotal.chosen = {
        name: Chosen("elements", indices)
        for name, indices in masks(own, targets, shape.rank).items()
    }
    pivotal.attach(own)
    return _side("pivotal elements", own)


def shira(model: MusicGen, shape: Shape, targets: str) -> Side:
    """peft's SHiRA with the very mask of `elements`."""
    from peft import PeftModel, ShiraConfig

    own = _copied(model)
    chosen = masks(own, targets, shape.rank)
    linears = matched_modules(own.backbone, targets)
    of = {id(linear): chosen[name] for name, linear in linears.items()}

    def mask(base_layer: nn.Linear, r: int, **_: Any) -> Tensor:
        flat = torch.zeros(base_layer.weight.numel(), dtype=base_layer.weight.dtype)
        flat[of[id(base_layer)]] = 1
        return flat.view_as(base_layer.weight).to(base_layer.weight.device)

    config = ShiraConfig(r=shape.rank, target_modules=rf".*(?:{targets}).*")
    config.mask_fn = mask
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel(own.backbone, config)
    return _side("peft SHiRA", own)


def masks(model: MusicGen, targets: str, rank: int) -> dict[str, Tensor]:
    """Random entries of each matrix, ``rank * (out + in)`` of them: SHiRA takes no other number.

    One at random from each of as many equal stretches of the matrix, which needs no permutation.

    Returns:
        sorted flat int64 positions by the layer's name.
    """
    generator = torch.Generator().manual_seed(_SEED)
    chosen = {}
    for name, linear in matched_modules(model.backbone, targets).items():
        assert isinstance(linear, nn.Linear)
        count = rank * (linear.out_features + linear.in_features)
        starts = torch.arange(count + 1) * linear.weight.numel() // count
        within = torch.rand(count, generator=generator, dtype=torch.float64)
        chosen[name] = starts[:-1] + (within * starts.diff()).long()
    return chosen


def lora_count(model: MusicGen, targets: str, rank: int) -> int:
    """How many weights LoRA of ``rank`` trains."""
    linears: Mapping[str, Any] = matched_modules(model.backbone, targets)
    return sum(rank * (linear.out_features + linear.in_features) for linear in linears.values())


def _side(name: str, model: MusicGen) -> Side:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.0, fused=True)
    return Side(name, model, optimizer, sum(p.numel() for p in trained))


def _copied(model: MusicGen) -> MusicGen:
    """A model with a decoder of its own; what is never trained is shared."""
    shared = (model.network.text_encoder, model.network.audio_encoder)
    return copy.deepcopy(model, {id(part): part for part in shared})


def _peft_in_half(model: MusicGen, shape: Shape, targets: str) -> None:
    from peft import LoraConfig, PeftModel

    config = LoraConfig(
        r=shape.rank, lora_alpha=2 * shape.rank, target_modules=rf".*(?:{targets}).*"
    )
    PeftModel(model.backbone, config, autocast_adapter_dtype=False)


def _no_batches() -> Iterator[Batch]:
    """A random choice looks at no clips."""
    return iter(())


def _random_model(shape: Shape) -> MusicGen:
    """Random weights around a decoder of ``shape``.

    The text encoder has the real one's width in a single layer: the rest of it costs the same on
    every side and would only hide what differs.
    """
    from transformers import (
        MusicgenConfig,
        MusicgenForConditionalGeneration,
        T5Config,
        T5EncoderModel,
    )
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig
    from transformers.models.musicgen.modeling_musicgen import MusicgenForCausalLM

    toy = MusicGen.toy()
    with torch.random.fork_rng([]):
        torch.manual_seed(_SEED)
        decoder = MusicgenDecoderConfig(
            num_hidden_layers=shape.layers,
            hidden_size=shape.width,
            num_attention_heads=shape.heads,
            ffn_dim=4 * shape.width,
            is_decoder=True,
            add_cross_attention=True,
        )
        text = T5Config(
            vocab_size=len(toy.tokenizer), d_model=768, d_ff=3072, num_layers=1, num_heads=12
        )
        codec = toy.network.audio_encoder
        network = MusicgenForConditionalGeneration(
            config=MusicgenConfig(text_encoder=text, audio_encoder=codec.config, decoder=decoder),
            text_encoder=T5EncoderModel(text),
            audio_encoder=codec,
            decoder=MusicgenForCausalLM(decoder),
        )
    network.generation_config = toy.network.generation_config
    return MusicGen(network, toy.tokenizer, "random")
