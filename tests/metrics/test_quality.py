"""Signal quality: each fault lowers it the more, the stronger it is; music as such does not."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve, firwin

from musictune.audio import Clip
from musictune.metrics.quality import SignalQuality, faults

RATE = 32_000
Array = np.ndarray


@functools.cache
def note(pitch: float, rate: int, slope: float) -> Array:
    """A plucked string whose harmonics, up to 15 kHz, fall with the power ``slope``."""
    time = np.arange(round(1.5 * rate)) / rate
    harmonics = np.arange(1, int(15_000 / pitch))[:, None]
    waves = np.sin(2 * np.pi * pitch * harmonics * time) / harmonics**slope
    return np.asarray((waves * np.exp(-time * (3 + harmonics / 8))).sum(0))


def music(
    seed: int, seconds: float = 4.0, rate: int = RATE, rest: float = 0.0, slope: float = 1.2
) -> Clip:
    """Plucked chords, 120 bpm; with ``rest``, the last so many seconds of each are silent."""
    generator = np.random.default_rng(seed)
    wave = np.zeros(round((seconds + 1.5) * rate))
    for beat in range(int(seconds * 2)):
        start = beat * rate // 2
        for pitch in generator.choice([220.0, 261.63, 329.63, 392.0, 440.0], 2, replace=False):
            played = note(float(pitch), rate, slope)
            wave[start : start + len(played)] += played
    wave = wave[: round(seconds * rate)] * 0.4 / np.abs(wave).max()
    if rest:
        left = 0.5 - rest - (np.arange(len(wave)) / rate) % 0.5  # seconds until the next rest
        wave *= np.clip(left / 0.02, 0, 1)  # a damper needs 20 ms
    return Clip(torch.from_numpy(wave)[None].float(), rate, source=f"music {seed}")


def changed(clip: Clip, wave: Array) -> Clip:
    return Clip(torch.from_numpy(np.atleast_2d(wave)).float(), clip.sample_rate)


def with_noise(clip: Clip, decibels: float) -> Clip:
    wave = clip.wave.numpy()
    level = np.sqrt(np.square(wave).mean()) * 10 ** (decibels / 20)
    return changed(clip, wave + level * np.random.default_rng(9).standard_normal(wave.shape))


def low_passed(clip: Clip, hertz: float) -> Clip:
    shape = firwin(801, hertz, fs=clip.sample_rate, window=("kaiser", 10))
    return changed(clip, fftconvolve(clip.wave.numpy()[0], shape, "same"))


def cut(clip: Clip, level: float) -> Clip:
    top = level * float(clip.wave.abs().max())
    return changed(clip, clip.wave.clamp(-top, top).numpy())


def silenced(clip: Clip, share: float) -> Clip:
    wave = clip.wave.clone()
    wave[:, round((1 - share) * clip.samples) :] = 0
    return changed(clip, wave.numpy())


def rounded(clip: Clip, bits: int) -> Clip:
    steps = 2 ** (bits - 1) / (1.001 * float(clip.wave.abs().max()))
    return changed(clip, (clip.wave * steps).round().div(steps).numpy())


def dropped(clip: Clip, count: int) -> Clip:
    wave = clip.wave.clone()
    for index in range(count):
        start = round((0.1 + 0.4 * index) * clip.sample_rate)
        wave[:, start : start + clip.sample_rate // 20] = 0
    return changed(clip, wave.numpy())


FAULTS: dict[str, list[Callable[[Clip], Clip]]] = {
    "noise": [
        lambda clip: clip,
        lambda clip: with_noise(clip, -40),
        lambda clip: with_noise(clip, -30),
        lambda clip: with_noise(clip, -15),
    ],
    "bandwidth": [
        lambda clip: clip,
        lambda clip: low_passed(clip, 8000),
        lambda clip: low_passed(clip, 4000),
    ],
    "clipping": [lambda clip: clip, lambda clip: cut(clip, 0.7), lambda clip: cut(clip, 0.4)],
    "silence": [
        lambda clip: clip,
        lambda clip: silenced(clip, 0.25),
        lambda clip: silenced(clip, 0.6),
        lambda clip: silenced(clip, 1.0),
    ],
    "bits": [
        lambda clip: rounded(clip, 16),
        lambda clip: rounded(clip, 8),
        lambda clip: rounded(clip, 5),
    ],
    "offset": [
        lambda clip: clip,
        lambda clip: changed(clip, clip.wave.numpy() + 0.05),
        lambda clip: changed(clip, clip.wave.numpy() + 0.3),
    ],
    "dropouts": [
        lambda clip: clip,
        lambda clip: dropped(clip, 2),
        lambda clip: dropped(clip, 8),
    ],
}


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [music(seed) for seed in range(3)]


@pytest.mark.parametrize("kind", FAULTS)
def test_the_stronger_the_fault_the_lower(kind: str, clips: list[Clip]) -> None:
    reward = SignalQuality()
    steps = torch.stack([reward([fault(clip) for clip in clips]) for fault in FAULTS[kind]])
    assert (steps.diff(dim=0) < -0.02).all(), steps
    assert ((steps >= 0) & (steps <= 1)).all()


def test_music_without_faults_has_nearly_all(clips: list[Clip]) -> None:
    assert (SignalQuality()(clips) > 0.9).all()


def test_level_makes_no_difference(clips: list[Clip]) -> None:
    reward = SignalQuality()
    soft = [changed(clip, 0.03 * clip.wave.numpy()) for clip in clips]
    torch.testing.assert_close(reward(soft), reward(clips), rtol=0, atol=1e-4)
    # Nor do the steps of a 16-bit file in which music is soft count as cut tops.
    steps = [changed(clip, np.round(clip.wave.numpy() * 3277) / 32768) for clip in clips]
    assert max(found.clipping for found in map(faults, steps) if found) == 0
    torch.testing.assert_close(reward(steps), reward(clips), rtol=0, atol=0.1)


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.3])
def test_rests_are_music(seconds: float) -> None:
    playing, resting = music(4), music(4, rest=seconds)
    found = faults(resting)
    assert found is not None
    assert float((resting.wave.abs() < 1e-4).float().mean()) > 1.8 * seconds
    assert (found.silence, found.dropouts) == (0.0, 0.0)
    reward = SignalQuality()
    assert float(reward([resting])) > float(reward([playing])) - 0.05


def test_what_fades_out_of_itself_misses_no_treble(clips: list[Clip]) -> None:
    dull = music(0, slope=4.0)
    assert np.abs(np.fft.rfft(dull.wave[0]))[4 * 8000 :].max() < 1e-4 * dull.samples / 100
    found, cut_off = faults(dull), faults(low_passed(clips[0], 4000))
    assert found is not None
    assert cut_off is not None
    assert found.missing < 0.1
    assert cut_off.missing > 1


@pytest.mark.parametrize("decibels", [-40.0, -30.0, -20.0])
def test_the_noise_floor_is_what_was_added(decibels: float, clips: list[Clip]) -> None:
    for clip in clips:
        found = faults(with_noise(clip, decibels))
        assert found is not None
        assert found.noise == pytest.approx(decibels, abs=2.5)


def test_the_share_of_cut_samples_is_counted() -> None:
    time = np.arange(RATE) / RATE
    wave = np.clip(np.sin(2 * np.pi * 441.3 * time), -0.5, 0.5)
    found = faults(changed(music(0), wave))
    assert found is not None
    assert found.clipping == pytest.approx(2 / 3, abs=0.03)  # |sin| > 1/2 for two thirds
    whole = faults(changed(music(0), 0.5 * np.sin(2 * np.pi * 441.3 * time)))
    assert whole is not None
    assert whole.clipping == 0


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_silence_has_nothing(value: float) -> None:
    flat = Clip(torch.full((2, RATE), value), RATE)
    assert faults(flat) is None
    assert SignalQuality()([flat]).tolist() == [0.0]


def test_rates_and_channels_hardly_matter() -> None:
    mono, other = music(5), music(5, rate=44_100)
    stereo = Clip(mono.wave.expand(2, -1), RATE)
    reward = SignalQuality()
    found = reward([mono, stereo, other])
    assert found[0] == pytest.approx(float(found[1]), abs=1e-5)
    assert found[0] == pytest.approx(float(found[2]), abs=0.05)
