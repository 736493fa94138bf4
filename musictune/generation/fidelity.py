"""How much rounding the weights changes what a model says, and where that is too much."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune import console
from musictune.errors import CheckFailed
from musictune.generation.attend import Places
from musictune.generation.decoder import HALVES, Decoder
from musictune.generation.engine import Engine
from musictune.generation.listening import Listening
from musictune.generation.prefixes import Prefixes
from musictune.generation.request import Request

PROMPTS = ("slow piano", "fast drums, bright and loud")
_SECONDS = 1.0

LARGEST_DIVERGENCE = 0.02
"""Nats per token; a token more or less at random changes more between two seeds."""
LARGEST_LOSS = 0.02
"""Nats per token by which the exact model's own music may become less likely."""


@dataclass(frozen=True)
class Fidelity:
    """Scores in a precision beside those in fp32, over music that fp32 made; guided.

    Attributes:
        divergence: mean Kullback-Leibler divergence of the tokens' distributions, nats.
        loss: how much less likely the music is, nats per token; below 0 it is likelier.
        agreement: share of tokens whose likeliest is the same.
        error: norm of the difference of the scores over the norm of the scores.
    """

    divergence: float
    loss: float
    agreement: float
    error: float

    def require(self, precision: str) -> None:
        """Refuse a precision in which this model is another one.

        Raises:
            CheckFailed: the divergence or the loss is too large.
        """
        if self.divergence <= LARGEST_DIVERGENCE and self.loss <= LARGEST_LOSS:
            return
        raise CheckFailed(
            f"precision {precision} changes this model too much: its scores diverge by "
            f"{self.divergence:.3f} nats per token (at most {LARGEST_DIVERGENCE}) and its own "
            f"music loses {self.loss:.3f} (at most {LARGEST_LOSS}); use --precision auto"
        )


def require_fidelity(engine: Engine) -> None:
    """The gate of ``int8``; what the other precisions change is below what it could tell.

    Raises:
        CheckFailed: as :meth:`Fidelity.require`.
    """
    if engine.precision != "int8":
        return
    found = measure_fidelity(engine)
    found.require(engine.precision)
    console.note(
        f"int8 changes this model's scores by {found.divergence:.4f} nats per token "
        f"(at most {LARGEST_DIVERGENCE} is let through)"
    )


@torch.no_grad()
def measure_fidelity(engine: Engine, seconds: float = _SECONDS) -> Fidelity:
    """Let fp32 play a second of music, and ask both precisions for the scores of its tokens.

    Args:
        engine: whose precision is in question.
        seconds: of music per prompt.
    """
    exact = Engine(engine.model, "float32")
    seconds = min(seconds, engine.model.max_seconds)
    asked = [Request(prompt, seconds, seed) for seed, prompt in enumerate(PROMPTS)]
    decoders = exact.decoder(), engine.decoder()
    pairs, targets = [], []
    for index, codes in exact.play(asked):
        model = engine.model
        lengths = torch.tensor([codes.shape[1]], device=codes.device)
        inputs, wanted, mask = model.delay(codes[None], lengths, model.pad)
        pairs.append([_scores(exact, d, asked[index], inputs[0])[mask[0].t()] for d in decoders])
        targets.append(wanted[0].t()[mask[0].t()])
    true, rounded = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))
    target = torch.cat(targets)
    logs, others = true.log_softmax(-1), rounded.log_softmax(-1)
    return Fidelity(
        float(F.kl_div(others, logs, log_target=True, reduction="none").sum(-1).mean()),
        float((logs - others).gather(-1, target[:, None]).mean()),
        float((true.argmax(-1) == rounded.argmax(-1)).float().mean()),
        float((true - rounded).norm() / true.norm()),
    )


def _scores(engine: Engine, decoder: Decoder, request: Request, inputs: Tensor) -> Tensor:
    """Guided scores ``(steps, codebooks, vocabulary)`` of given inputs ``(codebooks, steps)``."""
    steps = inputs.shape[1]
    listens = (Listening if decoder.crossed else Prefixes)(engine, decoder, 1, HALVES)
    cache = decoder.cache(HALVES, steps + listens.prefix)
    (start,) = listens.join(0, [request], cache)
    weight = torch.full((1, 1), request.sampling.guidance, device=decoder.device)
    made = []
    for step in range(steps):
        hidden = decoder.embed(inputs[None, :, step], start + step).repeat_interleave(HALVES, 0)
        at = Places([start + step], HALVES)
        hidden = decoder.step(hidden, cache, at, listens.heard(1), HALVES)
        made.append(decoder.scores(hidden, weight.to(hidden.dtype))[0])
    return torch.stack(made).float()
