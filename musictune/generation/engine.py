"""The decode loop: batches of prompts to codes and audio, a seed per clip."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.sampling import Sampling, draw, guide, uniforms
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen


class Engine:
    """Samples from a MusicGen; greedy tokens equal those of transformers' ``generate``."""

    def __init__(self, model: MusicGen) -> None:
        self.model = model

    def rollout(
        self,
        prompts: Sequence[str],
        seconds: float,
        seed: int | Sequence[int],
        sampling: Sampling = Sampling(),
        batch: int = 8,
        on_step: Callable[[int], object] | None = None,
    ) -> tuple[Batch, list[Clip]]:
        """The sampled codes with the audio they became.

        Args:
            prompts: an empty one means unconditional.
            seconds: length of every clip, rounded to whole codec frames.
            seed: one per clip, or a number to which the clip's place is added. A clip's music
                depends on its own seed and prompt, not on its neighbours.
            sampling: how tokens are drawn.
            batch: clips made at once; bounds the memory.
            on_step: called with the number of clips after each decoded step of a batch.

        Raises:
            InputError: no prompts, a length that the model was not trained for, or weights that
                give scores which are not numbers.
        """
        parts = list(self.stream(prompts, seconds, seed, sampling, batch, on_step))
        codes = Batch(
            torch.cat([part.codes for part, _ in parts]),
            torch.cat([part.lengths for part, _ in parts]),
            tuple(prompts),
        )
        return codes, [clip for _, clips in parts for clip in clips]

    def stream(
        self,
        prompts: Sequence[str],
        seconds: float,
        seed: int | Sequence[int],
        sampling: Sampling = Sampling(),
        batch: int = 8,
        on_step: Callable[[int], object] | None = None,
    ) -> Iterator[tuple[Batch, list[Clip]]]:
        """As :meth:`rollout`, ``batch`` clips at a time, so that any number fits in memory."""
        seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        if not prompts or len(seeds) != len(prompts):
            raise InputError(f"{len(prompts)} prompts with {len(seeds)} seeds; give one seed each")
        if batch < 1:
            raise InputError(f"batch {batch} must be at least 1")
        check_seconds(seconds, self.model.max_seconds)
        frames = self.model.frames(seconds)
        for start in range(0, len(prompts), batch):
            texts = prompts[start : start + batch]
            codes = self._sample(texts, frames, seeds[start : start + batch], sampling, on_step)
            lengths = torch.full((len(texts),), frames, device=codes.device)
            part = Batch(codes, lengths, tuple(texts))
            yield part, self.model.decode(part)

    def steps(self, clips: int, seconds: float) -> int:
        """What the arguments of ``on_step`` sum up to, for a bar."""
        return clips * (self.model.frames(seconds) + self._delay - 1)

    @property
    def _delay(self) -> int:
        return self.model.codebooks // self.model.channels

    @torch.no_grad()
    def _sample(
        self,
        texts: Sequence[str],
        frames: int,
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: Callable[[int], object] | None,
    ) -> Tensor:
        """Codes ``(clips, codebooks, frames)``."""
        model, decoder, clips = self.model, self.model.backbone, len(texts)
        steps = frames + self._delay - 1
        delays = torch.arange(model.codebooks, device=model.device) // model.channels
        luck = uniforms(seeds, steps, model.codebooks).to(model.device)
        with _resting(model):
            states, heard = model.condition(texts)
            guided = sampling.guidance != 1
            if guided:
                states = torch.cat([states, torch.zeros_like(states)])
                heard = torch.cat([heard, torch.zeros_like(heard)])
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            column = torch.full((clips, model.codebooks), model.pad, device=model.device)
            columns = []
            sound = torch.ones((), dtype=torch.bool, device=model.device)
            for step in range(steps):
                logits = decoder(
                    input_ids=column.repeat(1 + guided, 1).view(-1, 1),
                    encoder_hidden_states=states,
                    encoder_attention_mask=heard,
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]
                logits = logits.float().unflatten(0, (-1, model.codebooks))
                if guided:
                    logits = guide(logits, sampling.guidance)
                # Looked at only once, after the loop: asking each time would stall a GPU.
                sound &= logits.isfinite().all()
                frame = step - delays
                drawn = draw(logits, luck[step], sampling)
                column = torch.where((frame >= 0) & (frame < frames), drawn, model.pad)
                columns.append(column)
                if on_step:
                    on_step(clips)
        if not sound:
            raise InputError(
                f"base {model.base} gives scores that are not finite; its weights or an adapter's "
                "are damaged, or overflow in half precision: lower the adapter's weight or use "
                "another"
            )
        delayed = torch.stack(columns, -1)
        index = torch.arange(frames, device=model.device) + delays[:, None]
        return delayed.gather(-1, index.expand(clips, -1, -1))


def check_seconds(seconds: float, longest: float = math.inf) -> None:
    """Refuse a length that the model was not trained for.

    Raises:
        InputError: not above 0, not a number, or above ``longest``.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"{seconds:g} seconds cannot be made; choose a length above 0")
    if seconds > longest:
        raise InputError(
            f"{seconds:g} seconds is too long: this base was trained on music of up to "
            f"{longest:g} seconds; choose at most that"
        )


@contextlib.contextmanager
def _resting(model: MusicGen) -> Iterator[None]:
    """Without dropout; training goes on afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
