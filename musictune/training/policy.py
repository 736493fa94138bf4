"""A music model as a policy: how likely it finds each token, and how far that is from a reference.

The reference is what the policy was when it began. Where a method had learned nothing then, that is
the base, and switching the method off gives it for free; where training goes on from an adapter,
the few weights that are trained are kept as they were and put back in their place for a moment.
Neither needs a second copy of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.storage import load_tensors, save_tensors
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen


@dataclass(frozen=True)
class Likelihood:
    """What a policy says of music, in MusicGen's delayed layout.

    Attributes:
        tokens: ``(clips, codebooks, steps)`` log-probability of each token in nats, 0 off the mask.
        kl: the same shape: divergence from the reference over the whole vocabulary.
        entropy: the same shape, of the policy, without gradients.
        mask: the same shape, bool: which tokens are music.
        states: ``(clips, steps, width)`` what the decoder knew before each step, no gradients.
    """

    tokens: Tensor
    kl: Tensor
    entropy: Tensor
    mask: Tensor
    states: Tensor


class Reference:
    """The policy as it was at the start, or when it was last marked.

    Args:
        model: with ``method`` attached.
        method: what is trained.
        fresh: whether ``method`` has learned nothing yet, so that it can just be switched off.
    """

    def __init__(self, model: MusicGen, method: TuningMethod, fresh: bool = True) -> None:
        self.model, self.method = model, method
        self._kept: dict[str, Tensor] | None = None
        if not fresh:
            self.mark()

    def mark(self) -> None:
        """From now on the reference is the policy as it is now."""
        now = trained_parameters(self.model)
        self._kept = {name: weight.detach().clone() for name, weight in now.items()}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, the model is the reference, and nothing has gradients."""
        if self._kept is None:
            with torch.no_grad(), self.method.disabled(self.model):
                yield
            return
        weights = trained_parameters(self.model)
        with torch.no_grad():
            now = {name: weight.detach().clone() for name, weight in weights.items()}
            self._put(self._kept)
            try:
                yield
            finally:
                self._put(now)

    def save(self, folder: Path) -> None:
        """Write what was marked, if anything was."""
        if self._kept is not None:
            save_tensors(self._kept, folder / "reference.safetensors")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        path = folder / "reference.safetensors"
        if path.is_file():
            device = self.model.device
            self._kept = {name: value.to(device) for name, value in load_tensors(path).items()}

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, weight in trained_parameters(self.model).items():
            weight.data.copy_(values[name])


def likelihood(
    model: MusicGen, batch: Batch, reference: Reference | None = None, guidance: float = 1.0
) -> Likelihood:
    """How likely ``model`` finds every token of ``batch``.

    Args:
        model: with its adapters in it.
        batch: the music.
        reference: what ``kl`` is the distance from; it is zero without one.
        guidance: the policy is the model with classifier-free guidance of this weight; 1 is the
            model itself. Others take twice the time and memory.
    """
    batch = batch.to(model.device)
    inputs, targets, mask = model.delay(batch.codes, batch.lengths, model.pad)
    chosen = targets.masked_fill(~mask, 0)
    before: Tensor | None = None
    if reference is not None:
        with reference():
            before, _ = _scores(model, inputs, batch.texts, guidance)
    scores, states = _scores(model, inputs, batch.texts, guidance)
    parts = [
        _Tokens.apply(scores[:, k], None if before is None else before[:, k], chosen[:, k])
        for k in range(model.codebooks)
    ]
    tokens, kl, entropy = (torch.stack(list(part), 1) for part in zip(*parts, strict=True))
    zero = torch.zeros((), device=tokens.device)
    return Likelihood(
        torch.where(mask, tokens, zero),
        torch.where(mask, kl, zero),
        torch.where(mask, entropy, zero),
        mask,
        states.detach(),
    )


def clip_likelihood(model: MusicGen, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-likelihood of whole clips in nats, and how many tokens each has, both ``(clips,)``.

    The model's own loss per clip, which needs no scores of the whole vocabulary kept.
    """
    tokens = (batch.lengths * model.codebooks).to(model.device, torch.float32)
    return -model.nll(batch) * tokens, tokens


def part_of(batch: Batch, places: Sequence[int]) -> Batch:
    """Some clips of a batch."""
    index = torch.tensor(list(places), device=batch.codes.device)
    return replace(
        batch,
        codes=batch.codes[index],
        lengths=batch.lengths[index],
        texts=tuple(batch.texts[place] for place in places),
    )


def _scores(
    model: MusicGen, inputs: Tensor, texts: Sequence[str], guidance: float
) -> tuple[Tensor, Tensor]:
    """Logits ``(clips, codebooks, steps, vocabulary)`` fp32 and last states of the prompted."""
    clips, books, steps = inputs.shape
    asked = [*texts]
    if guidance != 1:
        asked += [""] * clips
        inputs = inputs.repeat(2, 1, 1)
    states, heard = model.condition(asked)
    found = model.backbone(
        input_ids=inputs.flatten(0, 1),
        encoder_hidden_states=states,
        encoder_attention_mask=heard,
        use_cache=False,
        output_hidden_states=True,
    )
    # What stands before the codes has no targets.
    logits = found.logits[:, -steps:].float().unflatten(0, (-1, books))
    hidden = found.hidden_states[-1][:clips, -steps:].float()
    if guidance == 1:
        return logits, hidden
    prompted, null = logits.chunk(2)
    return null + (prompted - null) * guidance, hidden


class _Tokens(torch.autograd.Function):
    """Log-probability, divergence and entropy at every place; keeps two tensors for backward."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, before: Tensor | None, chosen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logs = scores.log_softmax(-1)
        chance = logs.exp()
        tokens = logs.gather(-1, chosen[..., None])[..., 0]
        entropy = -(chance * logs).sum(-1)
        apart = kl = torch.zeros_like(tokens)
        if before is not None:
            apart = logs - before.log_softmax(-1)
            kl = (chance * apart).sum(-1)
        ctx.save_for_backward(chance, apart, kl, chosen)
        ctx.mark_non_differentiable(entropy)
        return tokens, kl, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, tokens: Tensor, kl: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        chance, apart, mean, chosen = ctx.saved_tensors
        slope = -tokens[..., None] * chance
        slope.scatter_add_(-1, chosen[..., None], tokens[..., None])
        if apart.dim() == chance.dim():
            slope += kl[..., None] * chance * (apart - mean[..., None])
        return slope, None, None
