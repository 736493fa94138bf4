"""The bundled base: small, safe, whole, and as good as it was when it was committed.

The figures behind the limits are in ``musictune/bundled/mini/README.md``.
"""

from __future__ import annotations

import json
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from musictune import audio
from musictune.audio import Clip
from musictune.compose.instruments import DRUMS, FAMILIES
from musictune.compose.styles import STYLES
from musictune.generation import Engine
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.embedders.selftest import check_embedder
from musictune.models.classifier import Classifier
from musictune.models.musicgen import MusicGen

MINI = Path(audio.__file__).parent / "bundled" / "mini"
REFERENCE = Path(__file__).parents[1] / "demos" / "steelpan.flac"


@pytest.fixture(scope="module")
def mini() -> MusicGen:
    return MusicGen.load("mini")


def test_it_is_small_and_nothing_in_it_can_run() -> None:
    files = [path for path in MINI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert all(path.stat().st_size <= 15e6 for path in files)
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    for path in files:
        if path.suffix == ".json":
            assert "auto_map" not in json.loads(path.read_text(encoding="utf-8"))


def test_it_plays_ten_seconds_at_25_frames_per_second(mini: MusicGen) -> None:
    assert (mini.sample_rate, mini.frame_rate, mini.max_seconds) == (32000, 25.0, 10.0)
    codes, (clip,) = Engine(mini).rollout(["a slow piano"], 1.0, seed=0)
    assert codes.codes.shape == (1, 4, 25)
    assert clip.seconds == 1.0
    assert clip.wave.abs().max() > 0.01


def test_its_clap_reads_and_hears() -> None:
    embedder = ClapEmbedder.load()
    check_embedder(embedder)
    assert embedder.sample_rate == 32000


def test_its_audio_encoder_names_what_the_composer_writes() -> None:
    model = Classifier.load("mini")
    assert model.labels == (*sorted([*FAMILIES, DRUMS]), *sorted(STYLES))
    assert model.multi_label
    assert (model.seconds, model.front.sample_rate) == (5.12, 16000)
    said = model.classify(audio.read(REFERENCE, seconds=12))
    assert said.shape == (2, len(model.labels))  # and a rest of less than half a window
    assert ((said > 0) & (said < 1)).all()


@pytest.mark.slow
def test_the_codec_keeps_pitch_of_an_instrument_it_never_heard(mini: MusicGen) -> None:
    clip = audio.read(REFERENCE, seconds=10)
    (again,) = mini.decode(mini.encode([clip]))
    chroma = [
        librosa.feature.chroma_stft(y=c.wave[0, : clip.samples].numpy(), sr=32000, n_fft=4096)
        for c in (clip, again)
    ]
    agreement = (chroma[0].argmax(0) == chroma[1].argmax(0)).mean()
    assert agreement > 0.7


@pytest.mark.slow
def test_round_trips_keep_pitch_onsets_and_spectrum(mini: MusicGen) -> None:
    pytest.importorskip("tinysoundfont")
    from musictune.bench.codec_quality import measure_codec

    rows = measure_codec(mini.network.audio_encoder, count=12, seed=75_000_000)
    ours = {row.case: row.ours for row in rows}
    assert ours["mel distance, renders"] < 2.1
    assert ours["chroma agreement, renders"] > 0.78
    assert ours["pitch within 50 cents, solo renders"] > 0.85
    assert ours["onset F, 50 ms, renders"] > 0.75
    assert all(ours[f"use of codebook {i}"] > 0.35 for i in range(1, 5))


@pytest.mark.slow
def test_it_plays_the_family_and_the_drums_it_is_asked_for() -> None:
    pytest.importorskip("tinysoundfont")
    from musictune.bench.language_quality import measure_language

    ours = {row.case: row.ours for row in measure_language("mini", count=60, seed=75_100_000)}
    assert ours["lead family is the one heard, solos"] > 0.65
    assert ours["lead family is the one heard, all prompts"] > 0.4
    assert ours["drums asked for or excluded are there or not"] > 0.8


@pytest.mark.slow
def test_its_clap_finds_clips_by_their_captions() -> None:
    pytest.importorskip("tinysoundfont")
    from musictune.bench.clap_quality import measure_clap

    ours = {row.case: row.ours for row in measure_clap(ClapEmbedder.load(), count=100)}
    assert ours["text to audio R@10"] > 0.9  # of 100
    assert ours["cosine of unrelated captions"] < 0.2
    assert ours["one fact changed, instrument"] > 0.8


@pytest.mark.slow
def test_its_audio_encoder_knows_families_and_styles_of_music_it_never_heard() -> None:
    pytest.importorskip("tinysoundfont")
    from musictune.compose.render import render_many
    from musictune.metrics.base import Score
    from musictune.metrics.classification import classification_scores

    model = Classifier.load("mini")
    said, true = [], []
    for score, clip in render_many(range(75_200_000, 75_200_150), seconds=5.2):
        truth = score.truth
        known = {*truth.families, truth.style, *([DRUMS] if truth.has_drums else [])}
        said.append(model.classify(clip)[0])
        true.append([float(label in known) for label in model.labels])
    found, targets = torch.stack(said), torch.tensor(true)
    count = len(FAMILIES) + 1
    for part, least in ((slice(count), 0.8), (slice(count, None), 0.5)):
        scores = classification_scores(found[:, part], targets[:, part], True, intervals=False)
        precision = scores["mean_average_precision"]
        assert isinstance(precision, Score)
        assert precision.value > least


@pytest.mark.slow
def test_it_tells_a_piano_from_drums(mini: MusicGen) -> None:
    prompts = ["a slow gentle piano solo"] * 6 + ["fast energetic solo drums, 150 bpm"] * 6
    _, clips = Engine(mini).rollout(prompts, 6.0, seed=0)
    noise = np.array([percussive_share(clip) for clip in clips])
    assert (noise[:6] < 0.3).all()
    assert (noise[6:] > 0.7).sum() >= 4  # the first mini had all six; see its card


def percussive_share(clip: Clip) -> float:
    """Energy of what has no pitch, as a share of all."""
    spectrum = np.abs(librosa.stft(clip.wave[0].numpy()))
    harmonic, percussive = librosa.decompose.hpss(spectrum)
    return float((percussive**2).sum() / ((percussive**2).sum() + (harmonic**2).sum()))
