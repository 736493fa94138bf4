"""audiocraft's metrics, against formulations of their own."""

from __future__ import annotations

import math
import pickle

import librosa
import numpy as np
import pytest
import torch

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.compat.audiocraft import (
    ABOUT,
    ChromaListener,
    SegmentListener,
    chroma_cosine,
    kld,
    text_consistency,
)
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.features import Features

RATE = 32_000


def noise(samples: int, rate: int = RATE, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    return Clip(torch.rand(1, samples, generator=generator) - 0.5, rate)


def tone(hertz: float, seconds: float = 2.0, rate: int = RATE) -> Clip:
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return Clip((0.5 * torch.sin(2 * math.pi * hertz * time))[None].float(), rate)


def value(answer: Score | NotComputed) -> float:
    assert isinstance(answer, Score)
    return answer.value


def test_chroma_is_the_strongest_of_librosas():
    clip = Clip(tone(440.0).wave * torch.linspace(0, 1, 64_000) + noise(64_000).wave * 0.1, RATE)
    spectrum = librosa.stft(clip.wave[0].numpy(), n_fft=2**14, hop_length=2**12, pad_mode="reflect")
    chroma = librosa.feature.chroma_stft(
        S=np.abs(spectrum) ** 2, sr=RATE, n_fft=2**14, tuning=0, norm=None
    )
    rows = ChromaListener().hear(clip)
    assert rows.shape == (math.ceil(64_000 / 2**12), 12)
    assert rows.argmax(1).tolist() == chroma.argmax(0)[: len(rows)].tolist()
    assert (rows.sum(1) == 1).all()


@pytest.mark.parametrize(("hertz", "pitch"), [(440.0, 9), (261.63, 0), (369.99, 6), (880.0, 9)])
def test_a_tone_is_its_pitch_class(hertz: float, pitch: int):
    assert set(ChromaListener().hear(tone(hertz)).argmax(1)) == {pitch}


@pytest.mark.parametrize(
    ("samples", "frames"), [(1, 1), (4096, 1), (4097, 2), (16_384, 4), (16_385, 5), (40_000, 10)]
)
def test_frames_are_hops_begun(samples: int, frames: int):
    assert len(ChromaListener().hear(noise(samples))) == frames


def test_silence_is_one_pitch_class():
    rows = ChromaListener().hear(Clip(torch.zeros(2, 40_000), RATE))
    assert (rows.argmax(1) == 0).all()


def test_chroma_cosine_is_the_share_of_frames_that_agree():
    listener = ChromaListener()
    made = Features.of([listener.hear(tone(440.0)), listener.hear(tone(261.63, 6.0))], listener.key)
    reference = Features.of([listener.hear(tone(880.0)), listener.hear(tone(440.0))], listener.key)
    assert value(chroma_cosine(made, reference, [(0, 0)])) == 1.0
    assert value(chroma_cosine(made, reference, [(1, 1)])) == 0.0
    # Both have 16 frames in common.
    assert value(chroma_cosine(made, reference, [(0, 0), (1, 1)])) == pytest.approx(0.5)
    longer = Features.of([listener.hear(tone(440.0, 6.0)), made[1]], listener.key)
    other = Features.of([listener.hear(tone(880.0, 6.0)), reference[1]], listener.key)
    assert value(chroma_cosine(longer, other, [(0, 0), (1, 1)])) == pytest.approx(47 / 63)
    assert isinstance(chroma_cosine(made, reference, []), NotComputed)


def test_other_rates_cannot_be_compared():
    made = Features.of([ChromaListener().hear(noise(9000))], ChromaListener().key)
    other = ChromaListener(16_000)
    with pytest.raises(InputError, match="cannot be compared"):
        chroma_cosine(made, Features.of([other.hear(noise(9000))], other.key), [(0, 0)])


@pytest.mark.parametrize(("seconds", "segments"), [(0.2, 1), (10.0, 1), (10.1, 1), (10.5, 2)])
def test_segments_do_not_overlap_and_short_rests_are_left_out(seconds: float, segments: int):
    classifier = AstClassifier.toy()
    clip = noise(round(seconds * 16_000), 16_000)
    rows = SegmentListener(classifier).hear(clip)
    assert rows.shape == (segments, classifier.dim)
    assert rows.sum(1) == pytest.approx(1.0, abs=1e-6)


def test_a_clip_without_a_segment_is_refused():
    with pytest.raises(InputError, match="too short"):
        SegmentListener(AstClassifier.toy()).hear(noise(1000, 16_000))


def test_kld_is_the_formula_per_segment():
    p, q = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]), np.array([[0.1, 0.1, 0.8]])
    r = np.array([[0.2, 0.5, 0.3]])
    made, reference = Features.of([p, r]), Features.of([q, q])
    scores = kld(made, reference, [(0, 0), (1, 1)])
    assert set(scores) < set(ABOUT)

    def divergence(target: np.ndarray, other: np.ndarray) -> float:
        logs = torch.from_numpy(other + 1e-6).log()
        return float(torch.nn.functional.kl_div(logs, torch.from_numpy(target), reduction="sum"))

    forward = [divergence(q[0], p[0]), divergence(q[0], r[0])]
    backward = [divergence(p[0], q[0]), divergence(r[0], q[0])]
    assert value(scores["audiocraft_kld_pq"]) == pytest.approx(np.mean(forward))
    assert value(scores["audiocraft_kld_qp"]) == pytest.approx(np.mean(backward))
    both = value(scores["audiocraft_kld_both"])
    assert both == pytest.approx(np.mean(forward) + np.mean(backward))
    assert all(isinstance(answer, NotComputed) for answer in kld(made, reference, []).values())


def test_long_pairs_count_by_their_segments():
    rows = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    made = Features.of([rows, rows[:1]])
    reference = Features.of([rows, rows[:1, ::-1]])
    score = value(kld(made, reference, [(0, 0), (1, 1)])["audiocraft_kld_pq"])
    assert score == pytest.approx(0.8 * math.log(9) / 4, abs=1e-4)


def test_text_consistency_is_the_mean_cosine():
    embedder = ClapEmbedder.toy()
    clips = [noise(9000, 8000), noise(20_000, 8000, seed=1), noise(8000, 8000, seed=2)]
    made = Features.of([embedder.hear(clip) for clip in clips], embedder.key)
    score = text_consistency(embedder, made, ["piano", "drums", ""])
    piano, drums = embedder.text(["piano", "drums"]).numpy()
    expected = [(made[0] @ piano).mean(), (made[1] @ drums).mean()]
    assert value(score) == pytest.approx(np.mean(expected), abs=1e-6)
    assert isinstance(score, Score) and score.n == 2
    assert isinstance(text_consistency(embedder, made, [""] * 3), NotComputed)
    with pytest.raises(InputError, match="captions"):
        text_consistency(embedder, made, ["piano"])
    with pytest.raises(InputError, match="hear them again"):
        text_consistency(embedder, Features.of(list(made), "other"), ["piano"] * 3)


def test_listeners_survive_pickling():
    clip = noise(20_000)
    for listener in (ChromaListener(), SegmentListener(AstClassifier.toy())):
        twin = pickle.loads(pickle.dumps(listener))  # noqa: S301 - of our own making
        assert twin.key == listener.key
        assert np.array_equal(twin.hear(clip), listener.hear(clip))
