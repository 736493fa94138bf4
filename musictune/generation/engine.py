"""Making music: any number of requests to codes and audio, as fast as this machine can."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from musictune import console
from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.adapters import AdapterSet
from musictune.generation.decoder import Decoder
from musictune.generation.likelihood import resting
from musictune.generation.packing import Packer
from musictune.generation.precision import find_precision
from musictune.generation.request import UNKNOWN, Request
from musictune.generation.sampling import Sampling
from musictune.generation.session import Session
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen

OnStep = Callable[[int], object]


class Engine:
    """Samples from a MusicGen; greedy tokens equal those of transformers' ``generate``.

    Args:
        model: with its adapters in it, merged or live.
        precision: in which numbers, see :func:`musictune.generation.precision.find_precision`.
        adapters: of ``model``, that single requests may name; more can be added to them later.

    Raises:
        InputError: an unknown precision, or one that the model's device does not have.
    """

    def __init__(
        self, model: MusicGen, precision: str = "auto", adapters: AdapterSet | None = None
    ) -> None:
        self.model = model
        self.precision = find_precision(precision, model.device)
        self.adapters = adapters or AdapterSet(model)
        self._packer = Packer(self.precision)

    def decoder(self) -> Decoder:
        """The model's decoder as it is now; what did not change since is not packed again."""
        with resting(self.model), torch.autocast(self.model.device.type, enabled=False):
            return Decoder(self.model.backbone, self._packer)

    def session(self, batch: int = 8, longest: float | None = None, guided: bool = True) -> Session:
        """See :class:`Session`."""
        return Session(self, batch, longest, guided)

    def check(self, request: Request) -> None:
        """Refuse what this model cannot play.

        Raises:
            InputError: a length that the model was not trained for, given codes that are not of
                its codec, or an unknown adapter.
        """
        check_seconds(request.seconds, self.model.max_seconds)
        if request.melody is not None and not hasattr(self.model, "chroma"):
            raise InputError(
                f"base {self.model.base} does not listen to melodies; use one that does, such as "
                "facebook/musicgen-melody"
            )
        if request.adapter is not None:
            self.adapters.check(request.adapter)
        frames = self.model.frames(request.seconds)
        if request.stop is not None and not 1 <= request.stop <= frames:
            raise InputError(f"stop {request.stop} must be from 1 to the clip's {frames} frames")
        given = request.given
        if given is None:
            return
        books, size = self.model.codebooks, self.model.vocabulary
        if given.dim() != 2 or given.shape[0] != books or given.dtype != torch.int64:
            raise InputError(
                f"given codes must be ({books}, frames) int64, not {list(given.shape)} of "
                f"{given.dtype}"
            )
        behind = torch.arange(given.shape[1], 0, -1)  # how far each frame is from the end
        delays = torch.arange(books)[:, None] // self.model.channels
        allowed = (given.cpu() >= 0) | ((given.cpu() == UNKNOWN) & (behind <= delays))
        if given.numel() and not (allowed.all() and int(given.max()) < size):
            raise InputError(f"given codes must be from 0 to {size - 1}")
        if given.shape[1] > frames:
            raise InputError(
                f"{given.shape[1]} given frames do not fit into {request.seconds:g} seconds"
            )

    def play(
        self, requests: Iterable[Request], batch: int = 8, on_step: OnStep | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Make clips, up to ``batch`` at once; who ends makes room for the next.

        Args:
            requests: of any lengths.
            batch: bounds the memory; halved when it runs out, and the clips that were playing
                begin again.
            on_step: called with the number of clips after each decoded step.

        Yields:
            The index of a request and its codes ``(codebooks, frames)``, as they are done.

        Raises:
            InputError: a request cannot be played, or the model gives scores that are no numbers.
        """
        asked = list(requests)
        if batch < 1:
            raise InputError(f"batch {batch} must be at least 1")
        for request in asked:
            self.check(request)
        left = dict(enumerate(asked))
        while left:
            try:
                for index, codes in self._play(dict(left), batch, on_step):
                    del left[index]
                    yield index, codes
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if batch == 1:
                    raise InputError(
                        f"not enough memory for one clip of {_longest(left.values()):g} s; make it "
                        "shorter or use a smaller base"
                    ) from error
                batch = min(batch, len(left)) // 2 or 1
                console.note(f"out of memory; going on with a batch of {batch}")

    def _play(
        self, asked: dict[int, Request], batch: int, on_step: OnStep | None
    ) -> Iterator[tuple[int, Tensor]]:
        with resting(self.model):
            guided = any(request.sampling.guidance != 1 for request in asked.values())
            batch, longest = min(batch, len(asked)), _longest(asked.values())
            session = Session(self, batch, longest, guided)
            tickets = {session.add(request): index for index, request in asked.items()}
            while session.busy:
                done = session.step()
                if on_step:
                    on_step(session.stepped)
                for ticket in done:
                    yield tickets[ticket], session.take(ticket)

    def rollout(
        self,
        prompts: Sequence[str],
        seconds: float,
        seed: int | Sequence[int],
        sampling: Sampling = Sampling(),
        batch: int = 8,
        on_step: OnStep | None = None,
    ) -> tuple[Batch, list[Clip]]:
        """The sampled codes with the audio they became.

        Args:
            prompts: an empty one means unconditional.
            seconds: length of every clip, rounded to whole codec frames.
            seed: one per clip, or a number to which the clip's place is added. A clip's music
                depends on its own seed and prompt, not on its neighbours.
            sampling: how tokens are drawn.
            batch: clips made at once; bounds the memory.
            on_step: called with the number of clips after each decoded step.

        Raises:
            InputError: no prompts, a length that the model was not trained for, or weights that
                give scores which are not numbers.
        """
        requests = _requests(prompts, seconds, seed, sampling)
        found = dict(self.play(requests, batch, on_step))
        codes = torch.stack([found[index] for index in range(len(requests))])
        lengths = torch.full((len(requests),), codes.shape[-1], device=codes.device)
        made = Batch(codes, lengths, tuple(prompts))
        return made, self.model.decode(made)

    def stream(
        self,
        prompts: Sequence[str],
        seconds: float,
        seed: int | Sequence[int],
        sampling: Sampling = Sampling(),
        batch: int = 8,
        on_step: OnStep | None = None,
    ) -> Iterator[tuple[Batch, list[Clip]]]:
        """As :meth:`rollout`, a clip at a time in the order of ``prompts``."""
        requests = _requests(prompts, seconds, seed, sampling)
        early: dict[int, Tensor] = {}
        following = 0
        for index, codes in self.play(requests, batch, on_step):
            early[index] = codes
            while following in early:
                ready = early.pop(following)[None]
                lengths = torch.tensor([ready.shape[-1]], device=ready.device)
                part = Batch(ready, lengths, (requests[following].prompt,))
                following += 1
                yield part, self.model.decode(part)

    def steps(self, clips: int, seconds: float) -> int:
        """What the arguments of ``on_step`` sum up to, for a bar."""
        delay = self.model.codebooks // self.model.channels
        return clips * (self.model.frames(seconds) + delay - 1)


def _longest(requests: Iterable[Request]) -> float:
    return max(request.seconds for request in requests)


def _is_out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator has no exception of its own.
    told = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or told


def _requests(
    prompts: Sequence[str], seconds: float, seed: int | Sequence[int], sampling: Sampling
) -> list[Request]:
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    if not prompts or len(seeds) != len(prompts):
        raise InputError(f"{len(prompts)} prompts with {len(seeds)} seeds; give one seed each")
    return [
        Request(prompt, seconds, each, sampling)
        for prompt, each in zip(prompts, seeds, strict=True)
    ]


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
