"""Scores to audio through a General MIDI SoundFont, deterministically."""

from __future__ import annotations

import functools
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musictune.audio import Clip
from musictune.compose.instruments import instrument
from musictune.compose.notes import Score
from musictune.compose.score import write_score
from musictune.errors import InputError

SOUNDFONTS = (Path("/usr/share/sounds/sf3/FluidR3Mono_GM.sf3"),)

# Decibels of one note of each role: chords have several notes, pads lie behind.
_ROLE_LEVEL = {"melody": -36.0, "chords": -47.0, "bass": -39.0, "pad": -50.0, "drums": -37.0}
_PROBE_VELOCITY = 90
_PROBE_SECONDS = 0.5
_DRUM_PROBE = (36, 38, 42)  # kick, snare, closed hi-hat
_DRUM_CHANNEL = 9
_DRAIN = 4096  # samples rendered between clips, in which the last voices die away
_EFFECTS_SHARE = 0.5


def find_soundfont(path: Path | str | None = None) -> Path:
    """The SoundFont at ``path``, or the one Debian installs.

    Raises:
        InputError: there is none; the message says how to get it.
    """
    candidates = (Path(path),) if path is not None else SOUNDFONTS
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"SoundFont {candidates[0]} not found; install it: "
        "apt-get install fluidr3mono-gm-soundfont, or give --soundfont FILE.sf2"
    )


class Renderer:
    """Plays scores with one SoundFont; loading it takes seconds, so keep the renderer.

    Raises:
        InputError: tinysoundfont is not installed, or the SoundFont cannot be read.
    """

    def __init__(self, soundfont: Path | str | None = None, sample_rate: int = 32_000) -> None:
        try:
            from tinysoundfont import Synth
        except ImportError as error:
            raise InputError(
                "tinysoundfont is not installed; run: pip install --no-deps tinysoundfont"
            ) from error
        path = find_soundfont(soundfont)
        self.sample_rate = sample_rate
        self._synth = Synth(samplerate=sample_rate)
        self._levels: dict[tuple[int, bool], float] = {}
        try:
            self._font = self._synth.sfload(str(path))
        except Exception as error:
            raise InputError(
                f"SoundFont {path} cannot be read; give an .sf2 or .sf3 file"
            ) from error

    def render(self, score: Score, effects_seed: int | None = None) -> Clip:
        """Mono audio of exactly ``score.seconds``, captioned with the first caption.

        ``effects_seed`` draws the peak level (0.5 to 0.9) and, for half of the seeds each, another
        tuning and light room and colour; without it the clip is dry with its peak at 0.7.
        """
        wave = self._play(score, _detune(effects_seed))
        peak = 0.7
        if effects_seed is not None:
            rng = np.random.default_rng([effects_seed, 3])
            peak = float(rng.uniform(0.5, 0.9))
            if rng.random() < _EFFECTS_SHARE:
                from musictune.compose.effects import colour

                wave = colour(wave, self.sample_rate, rng)
        loudest = float(np.abs(wave).max())
        if loudest > 0:
            wave = wave * (peak / loudest)
        captions = score.truth.captions
        tensor = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))[None]
        return Clip(tensor, self.sample_rate, captions[0] if captions else "")

    def _play(self, score: Score, tuning: float) -> np.ndarray:
        synth, rate = self._synth, self.sample_rate
        volumes = [self._volume(part.program, part.role) for part in score.parts]
        self._silence()
        events: list[tuple[int, int, int, int, int]] = []  # sample, on, channel, pitch, velocity
        for number, (part, volume) in enumerate(zip(score.parts, volumes, strict=True)):
            drums = part.role == "drums"
            channel = _DRUM_CHANNEL if drums else number + (number >= _DRUM_CHANNEL)
            synth.program_select(channel, self._font, 128 if drums else 0, part.program, drums)
            synth.control_change(channel, 7, volume)
            synth.set_tuning(channel, tuning)
            for note in part.notes:
                first = round(note.start * rate)
                last = max(round((note.start + note.duration) * rate), first + 1)
                events.append((first, 1, channel, note.pitch, note.velocity))
                events.append((last, 0, channel, note.pitch, 0))
        total = round(score.seconds * rate)
        stereo = np.zeros((total, 2), np.float32)
        place = 0
        for sample, on, channel, pitch, velocity in sorted(events):
            until = min(sample, total)
            if until > place:
                stereo[place:until] = self._block(until - place)
                place = until
            if on:
                synth.noteon(channel, pitch, velocity)
            else:
                synth.noteoff(channel, pitch)
        if total > place:
            stereo[place:] = self._block(total - place)
        return stereo.mean(1)

    def _volume(self, program: int, role: str) -> int:
        """The MIDI volume that brings an instrument to the level of its role.

        Instruments of a SoundFont differ by 20 dB and more; tinysoundfont's volume is cubic.
        """
        gain = 10 ** ((_ROLE_LEVEL[role] - self._level(program, role == "drums")) / 20)
        return min(max(round(127 * gain ** (1 / 3)), 30), 127)

    def _level(self, program: int, drums: bool) -> float:
        """Decibels RMS of a short note in the middle of the range, or of three drum strokes."""
        if (program, drums) not in self._levels:
            self._silence()
            synth = self._synth
            synth.program_select(0, self._font, 128 if drums else 0, program, drums)
            synth.control_change(0, 7, 127)
            synth.set_tuning(0, 0.0)
            middle = (instrument(program).low + instrument(program).high) // 2 if not drums else 0
            for pitch in _DRUM_PROBE if drums else (middle,):
                synth.noteon(0, pitch, _PROBE_VELOCITY)
            wave = self._block(round(_PROBE_SECONDS * self.sample_rate)).mean(1)
            power = float(np.square(wave).mean())
            self._levels[program, drums] = 10 * float(np.log10(max(power, 1e-12)))
        return self._levels[program, drums]

    def _silence(self) -> None:
        self._synth.sounds_off()
        self._synth.generate(_DRAIN)

    def _block(self, samples: int) -> np.ndarray:
        view = memoryview(self._synth.generate(samples)).cast("B")
        return np.frombuffer(view, np.float32).reshape(-1, 2)


def _detune(effects_seed: int | None) -> float:
    """Semitones off 440 Hz: bands tune between about 435 and 445 Hz."""
    if effects_seed is None:
        return 0.0
    rng = np.random.default_rng([effects_seed, 5])
    return float(rng.uniform(-0.2, 0.2)) if rng.random() < _EFFECTS_SHARE else 0.0


def render_many(
    seeds: Iterable[int],
    *,
    seconds: float,
    workers: int = 1,
    soundfont: Path | str | None = None,
    sample_rate: int = 32_000,
    **choices: Any,
) -> Iterator[tuple[Score, Clip]]:
    """Compose and render each seed, in order, on ``workers`` processes.

    ``choices`` go to `write_score`. A few clips per worker are in memory at a time.

    Raises:
        InputError: no SoundFont or tinysoundfont, or choices `write_score` refuses.
    """
    write_score(0, seconds=seconds, **choices)  # refuses bad choices before anything is loaded
    path = find_soundfont(soundfont)
    if workers <= 1:
        renderer = Renderer(path, sample_rate)
        for seed in seeds:
            yield _make(renderer, seed, seconds, choices)
        return
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    waiting: deque[Future[tuple[Score, np.ndarray]]] = deque()
    try:
        for seed in seeds:
            waiting.append(executor.submit(_work, str(path), sample_rate, seed, seconds, choices))
            if len(waiting) >= 4 * workers:
                yield _receive(waiting.popleft().result(), sample_rate)
        while waiting:
            yield _receive(waiting.popleft().result(), sample_rate)
    finally:
        executor.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=1)
def _worker_renderer(soundfont: str, sample_rate: int) -> Renderer:
    torch.set_num_threads(1)
    return Renderer(soundfont, sample_rate)


def _work(
    soundfont: str, sample_rate: int, seed: int, seconds: float, choices: dict[str, Any]
) -> tuple[Score, np.ndarray]:
    score, clip = _make(_worker_renderer(soundfont, sample_rate), seed, seconds, choices)
    return score, clip.wave.numpy()  # an array, for tensors would travel by shared memory


def _receive(made: tuple[Score, np.ndarray], sample_rate: int) -> tuple[Score, Clip]:
    score, wave = made
    return score, Clip(torch.from_numpy(wave), sample_rate, score.truth.captions[0])


def _make(
    renderer: Renderer, seed: int, seconds: float, choices: dict[str, Any]
) -> tuple[Score, Clip]:
    score = write_score(seed, seconds=seconds, **choices)
    return score, renderer.render(score, effects_seed=seed)
