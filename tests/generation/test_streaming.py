"""Audio in pieces: as long as the whole, the same away from seams, and no dips at them."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation import Engine, streaming
from musictune.generation.request import Request
from musictune.generation.session import Session
from musictune.generation.streaming import StreamDecoder, stream_clip
from musictune.models.base import Batch
from musictune.models.codec import SpectralCodec, SpectralCodecConfig
from musictune.models.musicgen import MusicGen

FIRST, PIECE = 25, 25  # frames of the toy that the first piece needs, and frames of each later one


@functools.cache
@torch.no_grad()
def toy(channels: int = 1, gain: float = 0.2) -> MusicGen:
    """The toy at a level where nothing is louder than full scale; never changed by a test."""
    model = MusicGen.toy(channels)
    last = model.network.audio_encoder.decoder.layers[-1].conv
    last.parametrizations.weight.original0.mul_(gain)
    return model


def random_codes(model: MusicGen, frames: int, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(size, (model.codebooks, frames), generator=generator)


def whole(model: MusicGen, codes: Tensor) -> Tensor:
    batch = Batch(codes[None], torch.tensor([codes.shape[-1]]), ("",))
    return model.decode(batch)[0].wave


def streamed(model: MusicGen, codes: Tensor, ends: list[int]) -> Tensor:
    """Pushed up to each of ``ends``, then all of it."""
    decoder = StreamDecoder(model)
    pieces = [decoder.push(codes[:, :end], False) for end in ends]
    pieces.append(decoder.push(codes, True))
    return torch.cat([piece.wave for piece in pieces if piece is not None], -1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [1, 24, 25, 26, 133])
def test_pieces_are_the_whole_decode(channels: int, frames: int) -> None:
    model = toy(channels)
    codes = random_codes(model, frames)
    expected = whole(model, codes)
    assert 0.01 < expected.abs().max() < 1
    made = streamed(model, codes, list(range(1, frames + 1)))
    assert made.shape == expected.shape
    # EnCodec's convolutions hear nothing further away than the context; its LSTM hardly does.
    assert torch.allclose(made, expected, atol=1e-5)


def test_too_little_context_would_be_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy()
    codes = random_codes(model, 100)
    decoder = StreamDecoder(model)
    decoder._window.behind = decoder._window.ahead = decoder._window.fade = 1
    piece = decoder.push(codes, True)
    assert piece is not None
    assert not torch.allclose(piece.wave, whole(model, codes), atol=1e-3)


def test_the_first_piece_comes_after_half_a_second() -> None:
    model = toy()
    codes = random_codes(model, 60)
    decoder = StreamDecoder(model)
    assert decoder.wanted == FIRST == 0.5 * model.frame_rate
    assert decoder.push(codes[:, : FIRST - 1], False) is None
    piece = decoder.push(codes[:, :FIRST], False)
    assert piece is not None and piece.sample_rate == 16_000
    assert piece.samples == decoder.samples(FIRST - 5)  # a tenth of a second is look-ahead
    assert decoder.push(codes[:, : FIRST + 1], False) is None
    assert decoder.wanted == FIRST + PIECE


@settings(max_examples=10, deadline=None)
@given(frames=st.integers(1, 90), ends=st.lists(st.integers(0, 90), max_size=6))
def test_how_often_codes_are_pushed_changes_nothing(frames: int, ends: list[int]) -> None:
    model = toy()
    codes = random_codes(model, frames)
    once = streamed(model, codes, [])
    often = streamed(model, codes, sorted(min(end, frames) for end in ends))
    assert torch.equal(once, often)
    assert once.shape[-1] == StreamDecoder(model).samples(frames)


def test_music_that_is_too_loud_is_turned_down_and_stays_down() -> None:
    quiet, loud = toy(gain=0.1), toy(gain=1.0)
    codes = random_codes(quiet, 120)
    raw, made = 10 * streamed(quiet, codes, []), streamed(loud, codes, [])
    assert raw.abs().max() > 1.2
    assert made.abs().max() <= 1
    heard = raw.abs() > 0.05
    gains = (made / raw)[heard]
    assert gains.min() > 0 and gains.max() < 1 + 1e-4
    assert (gains.diff() < 1e-3).mean(dtype=torch.float) > 0.999  # it hardly ever goes up
    assert gains[-1] < 0.9


def test_fewer_codes_than_before_are_refused() -> None:
    model = toy()
    codes = random_codes(model, 60)
    decoder = StreamDecoder(model)
    decoder.push(codes, False)
    with pytest.raises(InputError, match="10 frames of codes are fewer than the 45"):
        decoder.push(codes[:, :10], True)
    assert decoder.push(codes, True) is not None
    assert decoder.push(codes, True) is None


# --- the bundled codec, whose phase has to be found ---


def spectral() -> MusicGen:
    """The toy with a small codec of the bundled kind."""
    model = MusicGen.toy()
    torch.manual_seed(0)
    config = SpectralCodecConfig(
        sampling_rate=16_000,
        window_length=512,
        hop_length=160,
        hidden_size=8,
        encoder_layers=[1, 1],
        decoder_layers=[1, 1],
        latent_size=4,
        codebook_size=16,
        griffin_lim_iterations=4,
    )
    model.network.audio_encoder = SpectralCodec(config).eval()
    return model


@pytest.mark.parametrize("frames", [1, 25, 26, 77])
def test_pieces_of_the_bundled_codec_have_the_length_of_the_whole(frames: int) -> None:
    model = spectral()
    codes = random_codes(model, frames, 16)
    expected, once = whole(model, codes), streamed(model, codes, [])
    assert once.shape == expected.shape
    assert torch.equal(once, streamed(model, codes, list(range(1, frames + 1))))
    if frames < FIRST:
        assert torch.equal(once, expected)


class _Apart(streaming._PhasedWindow):
    """Each piece finds a phase of its own."""

    def decode(self, codes: Tensor, skipped: int, given: Tensor, tail: Tensor) -> Tensor:
        wave = self.codec.decode(codes[None]).audio_values[:, 0]
        return wave[:, skipped * self.hop :]


def seam_errors(codec: SpectralCodec, wave: Tensor, wanted: Tensor, near: Tensor) -> list[float]:
    """At seams: error of the magnitudes, and change of the level in decibels."""
    made = codec.spectrum(wave)[0, near] ** (1 / codec.config.compression)
    error = (made - wanted[near]).norm() / wanted[near].norm()
    level = 10 * (made.square().sum() / wanted[near].square().sum()).log10()
    return [float(error), float(level)]


@torch.no_grad()
def test_seams_of_the_bundled_codec_do_not_dip() -> None:
    """Against what the codec was to sound like, measured in the frames around the seams."""
    model = MusicGen.load("mini")
    codec = model.network.audio_encoder
    time = torch.arange(32_000 * 2) / 32_000
    tones = sum(0.1 * torch.sin(2 * math.pi * hertz * time + hertz) for hertz in (220, 277, 330))
    codes = model.encode([Clip((tones + 0.005 * torch.randn(len(time)))[None], 32_000)]).codes[0]
    compressed = codec.reconstruct(codec.dequantise(codes[None]))[0]
    wanted = compressed ** (1 / codec.config.compression)

    decoder = StreamDecoder(model)
    first, stride = decoder.wanted - 4, codec.config.stride
    seams = range(first, codes.shape[-1] - 12, 12)
    near = torch.tensor(sorted({stride * seam + i for seam in seams for i in range(-2, 3)}))
    piece = decoder.push(codes, True)
    assert piece is not None and len(seams) == 3
    error, level = seam_errors(codec, piece.wave, wanted, near)
    whole_error, whole_level = seam_errors(codec, whole(model, codes), wanted, near)
    assert error < whole_error + 0.05
    assert level > whole_level - 0.6

    apart = StreamDecoder(model)
    apart._window = _Apart(codec, model.frame_rate)
    apart._window.fade = decoder._window.hop
    other = apart.push(codes, True)
    assert other is not None
    apart_error, apart_level = seam_errors(codec, other.wave, wanted, near)
    assert apart_error > 1.4 * error
    assert apart_level < level - 0.3


# --- while the music is made ---


def test_a_clip_is_heard_while_it_is_made() -> None:
    engine = Engine(toy(), "float32")
    request = Request("slow piano", 1.5, seed=3)
    pieces = list(stream_clip(engine, request))
    assert len(pieces) == 3
    ((_, codes),) = engine.play([request])
    made = torch.cat([piece.wave for piece in pieces], -1)
    assert torch.equal(made, streamed(engine.model, codes, []))


def test_who_stops_listening_stops_the_music(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    cancelled: list[int] = []
    step, cancel = Session.step, Session.cancel
    monkeypatch.setattr(Session, "step", lambda self: steps.append(1) or step(self))
    monkeypatch.setattr(
        Session, "cancel", lambda self, ticket: cancelled.append(ticket) or cancel(self, ticket)
    )
    pieces = stream_clip(Engine(toy(), "float32"), Request("slow piano", 10.0))
    next(pieces)
    # The codebooks' delay is three steps; nothing runs ahead of who listens.
    assert FIRST <= len(steps) <= FIRST + 6
    pieces.close()
    assert cancelled == [0]


def test_bad_requests_and_bad_weights_are_named() -> None:
    model = MusicGen.toy()
    with pytest.raises(InputError, match="0 seconds"):
        next(stream_clip(Engine(model), Request("slow piano", 0.0)))
    with torch.no_grad():
        model.network.decoder.lm_heads[0].weight[0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        list(stream_clip(Engine(model, "float32"), Request("slow piano", 0.2)))
