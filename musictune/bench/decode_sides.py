"""The sides of `musictune bench decode`: one set of weights, and several ways to play it."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from musictune.bench.decode_models import CAPTION
from musictune.errors import InputError
from musictune.generation.engine import Engine
from musictune.generation.request import Request
from musictune.generation.sampling import Sampling
from musictune.models.musicgen import MusicGen

OURS, TRANSFORMERS, AUDIOCRAFT = "musictune", "transformers", "audiocraft"

Play = Callable[[int, int, bool], Tensor]

_TOP_K, _GUIDANCE = 250, 3.0
_PEER = Path(__file__).parents[2] / "benchmarks" / "peers" / "audiocraft.py"


@dataclass
class Side:
    """One way to make codes, ready to play.

    Attributes:
        name: `OURS`, `TRANSFORMERS` or `AUDIOCRAFT`.
        precision: of its weights.
        play: ``(frames, seed, greedy)`` to codes ``(clips, codebooks, frames)``, text encoder
            included and codec not.
        cache_bytes: of keys and values after so many steps.
        holds_cache: whether those are there before it plays.
        prepared: seconds that packing took, once.
        compiled: by torch.
        wall, cpu: seconds of each measured run: on the clock, and of the whole process.
    """

    name: str
    precision: str
    play: Play
    cache_bytes: Callable[[int], int]
    holds_cache: bool = False
    prepared: float = 0.0
    compiled: bool = False
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def title(self) -> str:
        """How it is called in rows."""
        return f"{self.name} {self.precision}" + (" compiled" if self.compiled else "")


def ours(model: MusicGen, precision: str, clips: int, frames: int) -> Side:
    """Our engine; its weights are packed here, not when it plays.

    Args:
        model: in float32.
        precision: as :class:`Engine` takes it.
        clips: played at once.
        frames: of the longest run.

    Raises:
        InputError: the model's device does not have that precision.
    """
    engine = Engine(model, precision)
    start = time.perf_counter()
    session = engine.session(clips, frames / model.frame_rate)
    prepared = time.perf_counter() - start

    def play(count: int, seed: int, greedy: bool) -> Tensor:
        sampling = Sampling(top_k=1 if greedy else _TOP_K, guidance=_GUIDANCE)
        seconds = count / model.frame_rate
        tickets = [
            session.add(Request(CAPTION, seconds, seed * clips + i, sampling)) for i in range(clips)
        ]
        while session.busy:
            session.step()
        return torch.stack([session.take(ticket) for ticket in tickets])

    config, tokens = model.network.config.decoder, model.tokens([CAPTION])[0].shape[1]
    decoder = session._decoder

    def cache_bytes(steps: int) -> int:
        # Only the prompted row of a clip listens to a text.
        text = _keys_and_values(config, decoder.kept, clips * tokens)
        return decoder.cache_bytes(2 * clips, steps) + text

    return Side(OURS, engine.precision, play, cache_bytes, True, prepared)


def transformers(model: MusicGen, precision: str, clips: int, *, compiled: bool = False) -> Side:
    """transformers' ``generate``, stopped where it would decode the audio."""
    dtype = _dtype(precision)
    network = _network(model, dtype, copied=compiled)
    if compiled:
        network.decoder.compile(dynamic=True)
    ids, mask = model.tokens([CAPTION] * clips)
    config = network.config.decoder

    @torch.inference_mode()
    def play(count: int, seed: int, greedy: bool) -> Tensor:
        torch.manual_seed(seed)
        with _codes_alone(network.audio_encoder, model.channels) as found:
            network.generate(
                input_ids=ids,
                attention_mask=mask,
                **({"do_sample": False} if greedy else {"do_sample": True, "top_k": _TOP_K}),
                guidance_scale=_GUIDANCE,
                max_new_tokens=count + model.codebooks // model.channels - 1,
            )
        # The two channels of a stereo model come one after the other; in codes they alternate.
        return torch.stack(found, 2).flatten(1, 2)

    def cache_bytes(steps: int) -> int:
        return _keys_and_values(config, dtype, 2 * clips * (steps + ids.shape[1]))

    return Side(TRANSFORMERS, precision, play, cache_bytes, compiled=compiled)


def audiocraft(model: MusicGen, precision: str, clips: int, source: Path) -> Side:
    """audiocraft's own language model, of which ``source`` is the source.

    Raises:
        InputError: no usable audiocraft there, or no script beside the package to load it.
    """
    dtype = _dtype(precision)
    peer = load_peer()
    lm = peer.language_model(source, model, dtype)
    config = model.network.config.decoder

    @torch.inference_mode()
    def play(count: int, seed: int, greedy: bool) -> Tensor:
        made: Tensor = peer.generate(lm, [CAPTION] * clips, count, seed=seed, greedy=greedy)
        return made

    def cache_bytes(steps: int) -> int:
        return _keys_and_values(config, dtype, 2 * clips * steps)

    return Side(AUDIOCRAFT, precision, play, cache_bytes)


def load_peer() -> ModuleType:
    """``benchmarks/peers/audiocraft.py``, which a wheel does not have.

    Raises:
        InputError: it is not there.
    """
    if not _PEER.is_file():
        raise InputError(
            "--audiocraft needs benchmarks/peers/audiocraft.py, which is in the source tree alone; "
            "run from a checkout"
        )
    # Not under its own name, which is that of the package it imports.
    spec = importlib.util.spec_from_file_location("musictune_peer_audiocraft", _PEER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def equal_share(codes: Sequence[Tensor]) -> list[float]:
    """Which share of the codes of each is that of the first."""
    return [float((each == codes[0]).double().mean()) for each in codes]


def _dtype(precision: str) -> torch.dtype:
    dtype = getattr(torch, precision)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _keys_and_values(config: Any, dtype: torch.dtype, positions: int) -> int:
    return 2 * config.num_hidden_layers * config.hidden_size * positions * dtype.itemsize


def _network(model: MusicGen, dtype: torch.dtype, *, copied: bool) -> Any:
    """transformers' network in ``dtype``; what is neither cast nor compiled is shared."""
    if dtype == torch.float32 and not copied:
        return model.network
    codec = model.network.audio_encoder
    network = copy.deepcopy(model.network, {id(codec): codec})
    for part in (network.text_encoder, network.decoder, getattr(network, "enc_to_dec_proj", None)):
        if part is not None:
            part.to(dtype)
    return network


class _Stopped(Exception):
    """There are codes."""


@contextmanager
def _codes_alone(codec: nn.Module, channels: int) -> Iterator[list[Tensor]]:
    """Collect what would be decoded, channel by channel, and end ``generate`` there."""
    found: list[Tensor] = []

    def decode(audio_codes: Tensor, *rest: Any, **options: Any) -> Any:
        found.append(audio_codes[0])
        if len(found) == channels:
            raise _Stopped
        return SimpleNamespace(audio_values=None)

    codec.decode = decode  # type: ignore[assignment]
    try:
        yield found
    except _Stopped:
        pass
    finally:
        del codec.decode
