"""Rendering: the right pitch at the right time, always the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune import audio
from musictune.compose.effects import colour
from musictune.compose.instruments import HELD_OUT, INSTRUMENTS
from musictune.compose.notes import Note, Part, Score
from musictune.compose.render import SOUNDFONTS, Renderer, find_soundfont, render_many
from musictune.compose.score import write_score
from musictune.errors import InputError

playable = pytest.mark.skipif(
    not any(path.is_file() for path in SOUNDFONTS), reason="no General MIDI SoundFont installed"
)
RATE = 32_000


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    pytest.importorskip("tinysoundfont", reason="the extra 'compose' is not installed")
    return Renderer(sample_rate=RATE)


def _one_note(pitch: int, program: int, name: str, seconds: float = 1.0) -> Score:
    truth = write_score(0, program=program, texture="solo").truth
    part = Part(program, name, "flute", "melody", (Note(0.1, 0.8, pitch, 100),))
    return Score((part,), truth, seconds)


@playable
@pytest.mark.parametrize("pitch", [62, 69, 76])
@pytest.mark.parametrize(("program", "name"), [(0, "piano"), (73, "flute"), (48, "strings")])
def test_a_note_has_its_pitch(renderer: Renderer, pitch: int, program: int, name: str) -> None:
    clip = renderer.render(_one_note(pitch, program, name))
    spectrum = np.abs(np.fft.rfft(clip.wave[0].numpy() * np.hanning(clip.samples), 4 * RATE))
    wanted = 440 * 2 ** ((pitch - 69) / 12)
    band = spectrum[round(wanted * 4 * 0.7) : round(wanted * 4 * 1.4)]
    found = (np.argmax(band) + round(wanted * 4 * 0.7)) / 4
    assert abs(12 * np.log2(found / wanted)) < 0.3


@playable
def test_notes_start_when_they_should(renderer: Renderer) -> None:
    score = _one_note(69, 0, "piano", seconds=2.0)
    late = replace(score.parts[0], notes=(Note(1.25, 0.5, 69, 110),))
    wave = renderer.render(replace(score, parts=(late,))).wave[0].abs()
    assert wave[: int(1.24 * RATE)].max() < 0.01
    assert wave[int(1.25 * RATE) : int(1.3 * RATE)].max() > 0.1


@playable
def test_a_clip_does_not_depend_on_what_was_played_before(renderer: Renderer) -> None:
    score = write_score(11, seconds=3.0, texture="band")
    first = renderer.render(score, 11)
    renderer.render(write_score(5, seconds=2.0, texture="band", style="metal"))
    assert torch.equal(renderer.render(score, 11).wave, first.wave)


@playable
def test_other_tunings_stay_under_a_quarter_tone(renderer: Renderer) -> None:
    score = replace(_one_note(69, 73, "flute"), seconds=1.0)
    cents = []
    for seed in range(16):
        wave = renderer.render(score, seed).wave[0].numpy()
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(wave.size), 16 * RATE))
        found = (np.argmax(spectrum[400 * 16 : 480 * 16]) + 400 * 16) / 16
        cents.append(1200 * np.log2(found / 440))
    cents = np.array(cents) - np.median(cents)
    assert np.abs(cents).max() < 50
    assert (np.abs(cents) > 3).sum() >= 4
    assert (np.abs(cents) < 1.5).sum() >= 4  # about half are left as they are


@playable
def test_every_instrument_can_be_heard(renderer: Renderer) -> None:
    for program in [*INSTRUMENTS, *HELD_OUT]:
        clip = renderer.render(write_score(1, seconds=2.0, program=program, texture="solo"))
        assert clip.wave.square().mean().sqrt() > 0.02, program
        assert abs(float(clip.wave.abs().max()) - 0.7) < 1e-3


@playable
def test_the_tune_is_not_buried(renderer: Renderer) -> None:
    """Its level alone lies within 14 dB of everything else together."""
    for seed in range(12):
        score = write_score(seed, seconds=4.0, texture="band")
        others = tuple(part for part in score.parts if part.role != "melody")
        tune = tuple(part for part in score.parts if part.role == "melody")
        ours, theirs = (
            float(np.square(renderer._play(replace(score, parts=parts), 0.0)).mean())
            for parts in (tune, others)
        )
        assert 10 * np.log10(ours / theirs) > -14, (seed, score.truth.captions[0])


@playable
def test_the_beat_can_be_found_again(renderer: Renderer) -> None:
    score = write_score(2, seconds=8.0, style="techno", texture="band", tempo=126)
    wave = renderer.render(score).wave[0].numpy()
    frames = np.square(wave).reshape(-1, RATE // 100).mean(1)  # 100 per second
    onsets = np.maximum(np.diff(np.log10(frames + 1e-6)), 0)
    echo = np.correlate(onsets - onsets.mean(), onsets - onsets.mean(), "full")[onsets.size - 1 :]
    beats = 6000 / (np.argmax(echo[40:60]) + 40)  # the strongest period from 100 to 150 bpm
    assert abs(beats / 126 - 1) < 0.03


@playable
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_many_come_in_order_and_alike_on_several_processes(
    renderer: Renderer, workers: int
) -> None:
    made = list(render_many(range(12), seconds=1.0, workers=workers))
    assert [score for score, _ in made] == [write_score(seed, seconds=1.0) for seed in range(12)]
    for seed, (score, clip) in enumerate(made):
        assert torch.equal(clip.wave, renderer.render(score, seed).wave)
        assert clip.caption == score.truth.captions[0]


@playable
def test_bad_choices_are_refused_before_any_process_starts() -> None:
    with pytest.raises(InputError, match="polka"):
        next(render_many([0], seconds=1.0, workers=2, style="polka"))


def test_a_missing_soundfont_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apt-get install fluidr3mono-gm-soundfont"):
        find_soundfont(tmp_path / "none.sf2")


def test_a_file_that_is_no_soundfont_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tinysoundfont")
    path = tmp_path / "text.sf2"
    path.write_text("not a soundfont")
    with pytest.raises(InputError, match=r"text\.sf2 cannot be read"):
        Renderer(path)


@pytest.mark.parametrize("seed", range(8))
def test_effects_keep_length_and_music(seed: int) -> None:
    time = np.arange(RATE) / RATE
    wave = 0.4 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    made = colour(wave, RATE, np.random.default_rng(seed))
    assert made.shape == wave.shape and np.isfinite(made).all()
    assert abs(int(np.argmax(np.abs(np.fft.rfft(made)))) - 440) <= 1
    assert np.array_equal(made, colour(wave, RATE, np.random.default_rng(seed)))
    silence = np.zeros(100)
    assert np.array_equal(colour(silence, RATE, np.random.default_rng(seed)), silence)


@playable
def test_the_verb_writes_an_audio_folder(tmp_path: Path) -> None:
    pytest.importorskip("tinysoundfont")
    from musictune.verbs.compose import compose

    out = tmp_path / "corpus"
    compose(out, count=3, seconds=1.0, seed=7, texture="solo", program=40)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"audio/{i:06d}.flac" for i in range(3)]
    for number, row in enumerate(rows):
        clip = audio.read(out / row["file_name"])
        assert clip.seconds == 1.0 and clip.sample_rate == RATE
        assert row["text"] == row["captions"][0]
        assert row["lead"] == "violin" and row["seed"] == 7 + number
        assert row["captions"] == list(
            write_score(7 + number, seconds=1.0, texture="solo", program=40).truth.captions
        )


def test_the_verb_leaves_nothing_behind_a_bad_wish(tmp_path: Path) -> None:
    from musictune.verbs.compose import compose

    with pytest.raises(InputError):
        compose(tmp_path / "corpus", count=2, style="polka")
    assert list(tmp_path.iterdir()) == []
