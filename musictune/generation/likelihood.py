"""How likely a model finds given music, frame by frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune.audio import Clip
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen


@torch.no_grad()
def frame_nll(model: MusicGen, codes: Tensor, prompt: str, melody: Clip | None = None) -> Tensor:
    """Negative log-likelihood of each frame given those before it, without guidance.

    :meth:`MusicGen.nll` is its mean. In one pass, so the music must fit into the model's window.

    Args:
        model: with its adapters in it.
        codes: ``(codebooks, frames)`` int64.
        prompt: empty for unconditional.
        melody: for a base that listens to one.

    Returns:
        ``(frames,)`` float32 nats per token, the mean over codebooks.
    """
    rows = codes[None].to(model.device)
    lengths = torch.tensor([codes.shape[-1]], device=model.device)
    inputs, targets, mask = model.delay(rows, lengths, model.pad)
    with resting(model):
        if isinstance(model, MusicGenMelody):
            states, heard = model.condition([prompt], [melody])
        else:
            states, heard = model.condition([prompt])
        logits = model.backbone(
            input_ids=inputs.flatten(0, 1),
            encoder_hidden_states=states,
            encoder_attention_mask=heard,
            use_cache=False,
        ).logits[:, -inputs.shape[-1] :]  # what stands before the codes has no targets
    each = F.cross_entropy(
        logits.float().transpose(1, 2), targets.masked_fill(~mask, 0)[0], reduction="none"
    )
    delays = torch.arange(model.codebooks, device=model.device) // model.channels
    frame = torch.arange(codes.shape[-1], device=model.device) + delays[:, None]
    return each.gather(1, frame).mean(0).cpu()


@contextlib.contextmanager
def resting(model: MusicGen) -> Iterator[None]:
    """Without dropout; training goes on afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
