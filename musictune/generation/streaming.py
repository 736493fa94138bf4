"""Audio of music that is still being made: codes that grow to sound that grows.

A codec decodes a whole clip at once. Here it decodes windows: each piece with frames of context on
both sides, so that it sounds as in the whole, and pieces meet in a short raised-cosine fade. Only
the frames behind a piece cost time: the first piece comes out once half a second of music is there.

The bundled codec finds a phase by iteration, and pieces decoded apart would find different ones: a
fade between them cancels by several decibels. There a piece continues the audio already given out,
which is held fixed while the phase of what follows is found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.engine import Engine
from musictune.generation.request import Request
from musictune.generation.session import Session
from musictune.models.codec import SpectralCodec
from musictune.models.musicgen import MusicGen

PIECE = 0.5
"""Seconds of music in a piece; the first one is shorter by the codec's look-ahead."""


class StreamDecoder:
    """Decodes one clip piece by piece. The pieces, joined, have the length of the whole decode.

    They depend on the codes only, not on how often :meth:`push` is called. A piece louder than full
    scale turns itself and all that follows down; the whole decode, which knows the loudest place
    beforehand, turns down everything.

    Args:
        model: whose codec decodes.
        piece: seconds of music in each piece; shorter ones come sooner and cost more.
    """

    def __init__(self, model: MusicGen, piece: float = PIECE) -> None:
        codec = model.network.audio_encoder
        self._model = model
        self._window: _Window = (
            _PhasedWindow(codec, model.frame_rate)
            if isinstance(codec, SpectralCodec)
            else _Window(codec, model.frame_rate)
        )
        frames = max(1, round(piece * model.frame_rate))
        self._frames = frames
        self._end = max(1, frames - self._window.ahead)  # of the next piece
        self._made = 0  # frames given out
        self._given = torch.zeros(model.channels, 0)  # audio just before, not turned down
        self._tail = torch.zeros(model.channels, 0)  # what the last window said comes next
        self._gain = 1.0

    @property
    def wanted(self) -> int:
        """How many frames there must be for the next piece."""
        return self._end + self._window.ahead

    def samples(self, frames: int) -> int:
        """Length of the audio of so many frames, in samples."""
        return frames * self._window.hop

    def push(self, codes_so_far: Tensor, final: bool) -> Clip | None:
        """The audio that has become possible, if any.

        Args:
            codes_so_far: ``(codebooks, frames)`` from the beginning, never fewer than before.
            final: these are all; what is left comes out, whole.

        Raises:
            InputError: fewer frames than were decoded already.
        """
        frames = codes_so_far.shape[-1]
        if frames < self._made:
            raise InputError(
                f"{frames} frames of codes are fewer than the {self._made} decoded already; give "
                "all of them each time"
            )
        pieces = []
        while frames >= self.wanted:
            pieces.append(self._piece(codes_so_far, self._end, self.wanted))
            self._end = self._made + self._frames
        if final and frames > self._made:
            pieces.append(self._piece(codes_so_far, frames, frames))
        if not pieces:
            return None
        return Clip(torch.cat(pieces, -1), self._model.sample_rate)

    @torch.no_grad()
    def _piece(self, codes: Tensor, end: int, stop: int) -> Tensor:
        """Audio ``(channels, samples)`` of the frames up to ``end``, heard up to ``stop``."""
        window, model = self._window, self._model
        first = max(0, self._made - window.behind)
        sides = codes[:, first:stop].to(model.device).unflatten(0, (-1, model.channels))
        wave = window.decode(
            sides.transpose(0, 1), self._made - first, self._given, self._tail
        ).cpu()
        length = (end - self._made) * window.hop
        self._tail, wave = wave[:, length:], _faded(self._tail, wave[:, :length], window.fade)
        self._made = end
        self._given = torch.cat([self._given, wave], -1)[:, -window.behind * window.hop :]
        return self._turned_down(wave)

    def _turned_down(self, wave: Tensor) -> Tensor:
        peak = float(wave.abs().max())
        gain = min(self._gain, 1 / peak) if peak > 0 else self._gain
        gains = torch.full_like(wave[:1], gain)
        rise = _rise(min(self._window.fade, wave.shape[-1]))
        gains[:, : len(rise)] = self._gain + (gain - self._gain) * rise
        self._gain = gain
        return (wave * gains).clamp(-1, 1)  # only within the fade can anything still be louder


class _Window:
    """How a codec decodes a part of a clip. For codecs whose decoder hears only what is near.

    Attributes:
        hop: samples of a frame.
        behind: frames of context before a piece. An LSTM, as EnCodec has, remembers longer, but
            its weight fades; half a second is our choice.
        ahead: frames of context after it.
        fade: samples over which a piece takes over from what the one before expected.
    """

    def __init__(self, codec: torch.nn.Module, frame_rate: float) -> None:
        self.codec = codec
        self.hop: int = math.prod(codec.config.upsampling_ratios)
        self.behind = round(0.5 * frame_rate)
        self.ahead = max(1, round(0.1 * frame_rate))
        self.fade = self.hop // 2

    def decode(self, codes: Tensor, skipped: int, given: Tensor, tail: Tensor) -> Tensor:
        """Audio ``(channels, samples)`` from frame ``skipped`` of the window on.

        Args:
            codes: ``(channels, codebooks, frames)`` of the window.
            skipped: frames of it that are context.
            given: ``(channels, samples)`` audio just before frame ``skipped``.
            tail: ``(channels, samples)`` what the window before expected from there on.
        """
        wave = self.codec.decode(codes[None], [None]).audio_values[:, 0].float()
        return wave[:, skipped * self.hop :]


class _PhasedWindow(_Window):
    """The bundled codec's: audio already given out is held while the phase of more is found.

    ``behind`` is how far its decoder hears, so the magnitudes are those of the whole decode but for
    what a few more frames ahead would change.
    """

    _HELD = 4  # frames; more did not sound better

    def __init__(self, codec: SpectralCodec, frame_rate: float) -> None:
        coarse, fine = codec.config.decoder_layers
        reach = codec.decode_coarse[0].depthwise.padding[0] if coarse else 3
        self.codec = codec
        self.hop = codec.config.samples_per_token
        self.behind = reach * coarse + math.ceil(reach * fine / codec.config.stride)
        self.ahead = max(1, round(0.16 * frame_rate))
        self.fade = codec.config.hop_length // 2

    def decode(self, codes: Tensor, skipped: int, given: Tensor, tail: Tensor) -> Tensor:
        codec, kept = self.codec, min(skipped, self._HELD)
        spectrum = codec.reconstruct(codec.dequantise(codes))
        spectrum = spectrum[:, (skipped - kept) * codec.config.stride :]
        held = kept * self.hop
        begun = torch.cat([given[:, -held:], tail], -1) if held else None
        return codec.waveform(spectrum, begun, held)[:, held:].clamp(-1, 1)


def stream_clip(engine: Engine, request: Request, piece: float = PIECE) -> Iterator[Clip]:
    """The audio of one clip while it is made, in order; ending the iteration early stops it.

    Args:
        engine: what makes it.
        request: what to make.
        piece: seconds of music in each piece.

    Raises:
        InputError: a request that cannot be met, or weights that give scores which are no numbers.
    """
    session = Session(engine, batch=1)
    ticket = session.add(request)
    decoder = StreamDecoder(engine.model, piece)
    frames, finished = 0, False
    try:
        while not finished:
            # A step makes a frame at most: looking more often would only stall a GPU.
            for _ in range(max(1, decoder.wanted - frames)):
                finished = ticket in session.step()
                if finished:
                    break
            codes = session.take(ticket) if finished else session.codes(ticket)
            frames = codes.shape[-1]
            clip = decoder.push(codes, final=finished)
            if clip is not None:
                yield clip
    finally:
        if not finished:
            session.cancel(ticket)


def _faded(before: Tensor, after: Tensor, samples: int) -> Tensor:
    """``after``, its first ``samples`` coming out of ``before``."""
    rise = _rise(min(samples, before.shape[-1], after.shape[-1]))
    mixed = before[:, : len(rise)] * (1 - rise) + after[:, : len(rise)] * rise
    return torch.cat([mixed, after[:, len(rise) :]], -1)


def _rise(samples: int) -> Tensor:
    """A raised cosine from 0 to 1."""
    return 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(samples) + 0.5) / max(samples, 1))
