"""How a training run goes: one dataclass of plain numbers, checked when built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from musictune.errors import InputError

Precision = Literal["auto", "fp32", "bf16"]
Keep = Literal["last", "best"]


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast, on how much, and what to keep on the way.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate; the method's own if not given.
        token_lr: peak learning rate of new words in the text encoder.
        warmup: steps over which the rate rises, a quarter of all at most; from there it falls to
            zero along a cosine.
        batch: clips per forward pass.
        accumulate: forward passes per step.
        seconds: length of the crops trained on; the model's longest at most.
        seed: of everything random.
        precision: ``bf16`` computes in half precision; ``auto`` does so where the hardware has it.
        weight_decay: of AdamW, towards the start of an adapter.
        clip_norm: longest gradient.
        gradient_checkpointing: less memory for more time.
        caption_dropout: share of clips without their caption, which guidance lives on.
        captions: different captions per clip.
        held_out: share of the clips kept for the held-out loss.
        held_out_every: steps between held-out losses, 0 for none but the first and last.
        checkpoint_every: steps between checkpoints, 0 for none.
        preview_every: steps between previews, 0 for none.
        preview_seconds: length of a preview.
        keep: ``last`` keeps the adapter of the last step; ``best`` that of the step whose previews
            were closest to the held-out clips and to their prompts, which costs their making.
        score_every: with ``best``, steps between scored previews; the last step is scored too.
        score_seeds: with ``best``, previews of each prompt.

    Raises:
        InputError: a value out of range.
    """

    steps: int = 300
    lr: float | None = None
    token_lr: float = 1e-2
    warmup: int = 20
    batch: int = 4
    accumulate: int = 1
    seconds: float = 10.0
    seed: int = 0
    precision: Precision = "auto"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    gradient_checkpointing: bool = False
    caption_dropout: float = 0.1
    captions: int = 4
    held_out: float = 0.1
    held_out_every: int = 50
    checkpoint_every: int = 100
    preview_every: int = 0
    preview_seconds: float = 5.0
    keep: Keep = "last"
    score_every: int = 50
    score_seeds: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "captions", "score_every", "score_seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("warmup", "held_out_every", "checkpoint_every", "preview_every", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)} must be 0 or more")
        for name in ("lr", "token_lr", "seconds", "clip_norm", "preview_seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value} must be a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay {self.weight_decay} must be 0 or more")
        for name in ("caption_dropout", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"precision {self.precision!r} must be auto, fp32 or bf16")
        if self.keep not in ("last", "best"):
            raise InputError(f"keep {self.keep!r} must be last or best")
        if self.keep == "best" and self.held_out == 0:
            raise InputError(
                "keep best compares previews with held-out clips, and held_out is 0; set it above "
                "0, such as 0.1, or keep last"
            )

    def rate_at(self, step: int) -> float:
        """The share of the peak rate used for ``step``, counted from 0."""
        # A short run still gets to its peak.
        warmup = min(self.warmup, self.steps // 4)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(self.steps - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
