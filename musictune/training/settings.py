"""How a training run goes: one dataclass of plain numbers, checked when built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from musictune.errors import InputError

Precision = Literal["auto", "fp32", "bf16"]
Keep = Literal["last", "best"]
Optimizer = Literal["adamw", "mezo"]
Objective = Literal["loss", "alignment"]

_CHOICES = {
    "optimizer": ("adamw", "mezo"),
    "objective": ("loss", "alignment"),
    "precision": ("auto", "fp32", "bf16"),
    "keep": ("last", "best"),
}

# Seeds that generators take; of the others, more would fill the memory before anything trains.
_MOST = {
    "seed": 2**62 - 1, "batch": 100_000, "captions": 1000, "prior": 100_000, "score_seeds": 1000,
}  # fmt: skip


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast, on how much, and what to keep on the way.

    Attributes:
        steps: optimiser steps.
        optimizer: ``adamw``; or ``mezo`` (Malladi et al. 2023, arXiv 2305.17333), which compares
            two forward passes on either side of the weights along a random direction and needs no
            gradients and no stored activations, but many more steps and smaller rates.
        objective: what ``mezo`` lowers: the ``loss`` on the clips, or nothing but how previews
            sound, ``alignment``: close to the clips and to their prompts, as ``keep`` scores them.
        mezo_eps: how far ``mezo`` looks to either side. The paper's 0.001 is too near for bf16,
            whose rounding then drowns the slope; 0.01 is ours.
        lr: peak learning rate; the method's own if not given.
        token_lr: peak learning rate of new words in the text encoder.
        warmup: steps over which the rate rises, a quarter of all at most; from there it falls to
            zero along a cosine.
        batch: clips per forward pass.
        accumulate: forward passes per step.
        seconds: length of the crops trained on; the model's longest at most.
        seed: of everything random.
        precision: ``bf16`` computes in half precision, and holds the base in it where a method
            trains none of its weights: half the memory, nothing cast at each step. What is trained
            stays fp32. ``auto`` does so on a GPU that can; on a CPU that can, it computes in bf16
            and holds in fp32.
        weight_decay: decoupled (Loshchilov and Hutter 2019, arXiv 1711.05101): each step takes
            ``rate * weight_decay`` of what is trained away. Where that is a change of the base, as
            in ``pivotal`` and LoRA, it pulls towards the base; ``full`` loses the weights
            themselves. New words are left alone: zero means nothing in a table of words.
        clip_norm: longest gradient; ``mezo`` has none to clip.
        gradient_checkpointing: less memory for more time.
        caption_dropout: share of clips without their caption, which guidance lives on.
        captions: different captions per clip.
        held_out: share of the clips kept for the held-out loss.
        held_out_every: steps between held-out losses, 0 for none but the first and last.
        checkpoint_every: steps between checkpoints, 0 for none.
        preview_every: steps between previews, 0 for none.
        preview_seconds: length of a preview.
        prior: clips of each class word that the base makes before training, for prior preservation
            (DreamBooth, Ruiz et al. 2023, arXiv 2208.12242): as many rows of them as of the clips
            are in every batch, which about doubles its cost. 0 for none.
        prior_weight: of their loss beside that of the clips.
        keep: ``last`` keeps the adapter of the last step; ``best`` that of the step whose previews
            were closest to the held-out clips and to their prompts, which costs their making.
        score_every: with ``best``, steps between scored previews; the last step is scored too.
        score_seeds: with ``best``, previews of each prompt; with ``objective`` alignment, previews
            of each prompt and side at every step.
        patience: with ``best``, stop when so many scored previews in a row were no better than the
            best; 0 goes on to the end. The learning rate still falls as if all steps were made.

    Raises:
        InputError: a value out of range.
    """

    steps: int = 300
    optimizer: Optimizer = "adamw"
    objective: Objective = "loss"
    mezo_eps: float = 1e-2
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
    prior: int = 0
    prior_weight: float = 1.0
    keep: Keep = "last"
    score_every: int = 50
    score_seeds: int = 4
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "captions", "score_every", "score_seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")
        for name in (
            "warmup", "held_out_every", "checkpoint_every", "preview_every", "seed", "prior",
            "patience",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)} must be 0 or more")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise InputError(f"{name} {getattr(self, name)} must be at most {most}")
        for name in (
            "lr", "token_lr", "seconds", "clip_norm", "preview_seconds", "prior_weight", "mezo_eps",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value} must be a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay {self.weight_decay} must be 0 or more")
        for name in ("caption_dropout", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                ways = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
                raise InputError(f"{name} {getattr(self, name)!r} must be {ways}")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse values that are good alone, but not beside each other."""
        if self.keep == "best" and self.held_out == 0:
            raise InputError(
                "keep best compares previews with held-out clips, and held_out is 0; set it above "
                "0, such as 0.1, or keep last"
            )
        if self.patience and self.keep != "best":
            raise InputError(
                f"patience {self.patience} waits for better previews, and none are scored; set "
                "keep best, or patience 0"
            )
        if self.optimizer == "mezo" and self.accumulate > 1:
            raise InputError(
                f"accumulate {self.accumulate} has no use with optimizer mezo, which keeps nothing "
                "for a backward pass; set a larger batch and accumulate 1"
            )
        if self.objective == "alignment" and self.optimizer != "mezo":
            raise InputError(
                "objective alignment has no gradient, which optimizer adamw needs; set optimizer "
                "mezo, or objective loss"
            )
        if self.objective == "alignment" and self.prior:
            raise InputError(
                f"prior {self.prior} is a loss on clips, and objective alignment has none; set "
                "prior 0, or objective loss"
            )

    def rate_at(self, step: int) -> float:
        """The share of the peak rate used for ``step``, counted from 0."""
        # A short run still gets to its peak.
        warmup = min(self.warmup, self.steps // 4)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(self.steps - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
