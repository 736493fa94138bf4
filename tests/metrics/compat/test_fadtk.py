"""fadtk's front half: its resampling, its windows and its rounding."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.compat.fadtk import (
    FadtkListener,
    KadtkListener,
    check_fadtk_name,
    fadtk_clip_distances,
    fadtk_features,
    fadtk_gaussian,
    fadtk_name,
    fadtk_score,
    kadtk_features,
    kaiser_resample,
)
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.embedders.base import Embedder
from musictune.metrics.embedders.encodec import EncodecEmbedder
from musictune.metrics.embedders.mert import MertEmbedder
from musictune.metrics.embedders.vggish import VggishEmbedder
from musictune.metrics.features import Features
from musictune.metrics.frechet import frechet_distance

TOYS = [kind.toy() for kind in (ClapEmbedder, VggishEmbedder, EncodecEmbedder, MertEmbedder)]
every = pytest.mark.parametrize("embedder", TOYS, ids=lambda toy: type(toy).__name__)

# What torchaudio 2.11's own kernels gave of sin(0), sin(1), ... sin(11) with fadtk's settings.
SINE = torch.sin(torch.arange(12.0))[None]
THREE_TO_TWO = [
    0.1045367568731308, 0.9767472147941589, 0.14890390634536743, -0.9812223315238953,
    -0.27710771560668945, 0.9355689883232117, 0.4160124361515045, -0.8858721256256104,
]  # fmt: skip
TWO_TO_THREE = [
    0.004039375111460686, 0.5494276285171509, 1.0142524242401123, 0.909109354019165,
    0.43374931812286377, -0.16823281347751617, -0.7618282437324524, -1.0136038064956665,
    -0.7907662391662598, -0.2894192934036255, 0.3577145040035248, 0.9000462889671326,
    0.974747896194458, 0.6562184691429138, 0.1513531506061554, -0.562386691570282,
    -1.048601746559143, -0.7032565474510193,
]  # fmt: skip


def noise(samples: int, rate: int = 8000, channels: int = 1, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    return Clip(torch.rand(channels, samples, generator=generator) - 0.5, rate)


@pytest.mark.parametrize(("rates", "expected"), [((3, 2), THREE_TO_TWO), ((2, 3), TWO_TO_THREE)])
def test_resampling_is_torchaudios(rates: tuple[int, int], expected: list[float]):
    assert kaiser_resample(SINE, *rates)[0].tolist() == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize(("rate", "target"), [(44_100, 48_000), (44_100, 24_000), (8000, 16_000)])
def test_a_tone_stays_a_tone(rate: int, target: int):
    waves = [
        torch.sin(2 * math.pi * 440 * torch.arange(r // 5, dtype=torch.float64) / r)
        for r in (rate, target)
    ]
    there = kaiser_resample(waves[0][None].float(), rate, target)[0]
    inner = slice(len(there) // 4, -len(there) // 4)  # silence is assumed around
    assert torch.allclose(there[inner], waves[1].float()[inner], atol=2e-4)


@given(samples=st.integers(1, 3000), rates=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=30, deadline=None)
def test_resampled_length_is_rounded_up(samples: int, rates: tuple[int, int]):
    rate, target = (1000 * r for r in rates)
    wave = torch.zeros(2, samples)
    assert kaiser_resample(wave, rate, target).shape == (2, math.ceil(samples * target / rate))


def test_rates_without_common_factors_are_refused_before_memory_is_full():
    with pytest.raises(InputError, match="44101:48000"):
        kaiser_resample(torch.zeros(1, 10), 44_101, 48_000)


@every
def test_points_are_rounded_and_the_same_each_time(embedder: Embedder):
    clip = noise(20_000, channels=2)
    rows = fadtk_features(embedder, clip)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, rows.astype(np.float16).astype(np.float32))
    assert np.array_equal(rows, FadtkListener(embedder).hear(clip))


def test_clap_windows_start_every_second_and_the_last_are_padded():
    embedder = ClapEmbedder.toy()  # windows of 1 s
    clip = noise(20_000)
    rows = fadtk_features(embedder, clip)
    assert len(rows) == 3  # after 0, 1 and 2 seconds of 2.5
    samples = np.floor(clip.wave[0].numpy() * 32_768) / 32_768
    again = (np.trunc(samples * 32_767) / 32_767).astype(np.float32)
    padded = np.pad(again, (0, 4000)).reshape(3, 8000)
    with torch.inference_mode():
        expected = embedder.embed(list(padded)).numpy()
    assert rows == pytest.approx(expected, abs=1e-3)
    assert not np.allclose(rows[-1], embedder.hear(noise(20_000))[-1], atol=1e-4)


@pytest.mark.parametrize(("samples", "patches"), [(100, 1), (16_000, 1), (31_000, 2)])
def test_vggish_is_padded_to_a_second(samples: int, patches: int):
    embedder = VggishEmbedder.toy()
    clip = noise(samples, 16_000)
    rows = fadtk_features(embedder, clip)
    assert len(rows) == patches
    wave = np.floor(clip.wave[0].numpy() * 32_768) / 32_768
    with torch.inference_mode():
        expected = embedder.embed([np.pad(wave, (0, max(16_000 - samples, 0)))])
    assert rows == pytest.approx(expected.numpy(), abs=2e-3)


def test_encodec_is_one_piece_with_its_begun_frame():
    embedder = EncodecEmbedder.toy()
    assert len(fadtk_features(embedder, noise(8001))) == 251
    assert len(fadtk_features(embedder, noise(100))) == 4
    assert len(fadtk_features(embedder, noise(181 * 8000))) == 180 * 250


def test_mert_gives_frames():
    embedder = MertEmbedder.toy()
    clip = noise(20_000)
    samples = np.floor(clip.wave[0].numpy() * 32_768) / 32_768
    expected = embedder.frames(samples).numpy()
    assert fadtk_features(embedder, clip) == pytest.approx(expected, abs=5e-3)


def test_kadtk_takes_means_of_a_second():
    embedder = EncodecEmbedder.toy()
    clip = noise(20_000)
    frames, means = fadtk_features(embedder, clip), kadtk_features(embedder, clip)
    assert len(means) == 2  # half a second is left out
    expected = frames.reshape(-1, embedder.dim)[:500].reshape(2, 250, -1).mean(1)
    assert means == pytest.approx(expected, abs=1e-3)
    clap = ClapEmbedder.toy()
    assert np.array_equal(kadtk_features(clap, clip), fadtk_features(clap, clip))


def test_kadtk_fails_on_what_is_too_short():
    for embedder in (EncodecEmbedder.toy(), VggishEmbedder.toy()):
        with pytest.raises(InputError, match="hears nothing"):
            kadtk_features(embedder, noise(400))


@every
def test_listeners_are_told_apart_and_survive_pickling(embedder: Embedder):
    ours, theirs = FadtkListener(embedder), KadtkListener(embedder)
    assert len({embedder.key, ours.key, theirs.key}) == 3
    assert "fadtk" in ours.key
    clip = noise(20_000)
    twin = pickle.loads(pickle.dumps(theirs))  # noqa: S301 - of our own making
    assert np.array_equal(twin.hear(clip), theirs.hear(clip))


@every
def test_silence_and_the_shortest_clip_are_heard(embedder: Embedder):
    for clip in (Clip(torch.zeros(1, 9000), 8000), noise(700)):
        assert np.isfinite(fadtk_features(embedder, clip)).all()


def test_other_embedders_are_refused():
    with pytest.raises(InputError, match="clap, vggish, encodec, mert"):
        FadtkListener(AstClassifier.toy())


def test_numbers_beyond_float16_are_refused():
    embedder = VggishEmbedder.toy()
    embedder.model.embeddings[-1].bias.data.fill_(1e6)
    with pytest.raises(InputError, match="float16"):
        fadtk_features(embedder, noise(16_000))


def halves(clips: int, seed: int, dim: int = 4, rows: int = 30) -> Features:
    rng = np.random.default_rng(seed)
    points = rng.normal(3.0, 1.0, (clips, rows, dim)).astype(np.float16).astype(np.float32)
    return Features.of(list(points), "fadtk-toy")


def test_moments_are_those_of_all_points_up_to_the_rounding_of_means():
    features = halves(5, 0)
    found = fadtk_gaussian(features)
    mu, covariance = found.mu, found.cov
    assert (found.n_clips, found.n_frames) == (5, 150)
    means = features.points.reshape(5, 30, 4).astype(np.float16).mean(1)
    assert mu == pytest.approx(means.astype(np.float64).mean(0), abs=1e-12)
    assert mu != pytest.approx(features.points.astype(np.float64).mean(0), abs=1e-6)
    assert covariance == pytest.approx(np.cov(features.points, rowvar=False), abs=1e-2)


def test_the_score_is_the_plain_distance_of_those_moments():
    made, reference = halves(5, 0), halves(7, 1)
    score = fadtk_score(made, reference)
    ours, theirs = fadtk_gaussian(made), fadtk_gaussian(reference)
    expected = frechet_distance(ours.mu, ours.cov, theirs.mu, theirs.cov)
    assert score.value == pytest.approx(expected, rel=1e-12)
    assert fadtk_score(made, theirs).value == pytest.approx(expected, rel=1e-12)
    assert score.n == 5
    assert math.isnan(score.low)


def test_a_clip_of_one_point_adds_no_spread():
    rows = [np.array([[1.0, 2.0]]), np.array([[3.0, 2.0]])]
    found = fadtk_gaussian(Features.of(rows))
    assert found.mu.tolist() == [2.0, 2.0]
    assert found.cov.tolist() == [[2.0, 0.0], [0.0, 0.0]]


@given(st.integers(0, 99), st.integers(2, 9), st.integers(2, 40))
def test_each_clip_alone_has_the_distance_of_its_own_moments(seed: int, dim: int, rows: int):
    made, reference = halves(3, seed, dim, rows), halves(4, seed + 1, dim)
    alone = fadtk_clip_distances(made, reference)
    assert alone == pytest.approx(fadtk_clip_distances(made, fadtk_gaussian(reference)))
    for index, value in enumerate(alone):
        expected = fadtk_score(made.select([index]), reference).value
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_clip_of_one_point_has_no_distance_alone():
    made = Features.of([np.ones((1, 4), np.float32), halves(1, 0).points])
    assert np.isnan(fadtk_clip_distances(made, halves(2, 1))).tolist() == [True, False]


def test_models_are_named_as_fadtk_names_them():
    assert fadtk_name(VggishEmbedder.toy()) == "vggish"
    encodec, mert = EncodecEmbedder.toy(), MertEmbedder.toy()
    encodec.name, mert.name = "facebook/encodec_32khz", "m-a-p/MERT-v1-95M"
    assert fadtk_name(mert) == "MERT-v1-95M"
    assert fadtk_name(encodec) == "encodec_32khz"
    encodec.sample_rate = 24_000
    assert fadtk_name(encodec) == "encodec-emb"


def test_statistics_of_another_model_are_refused_by_their_name():
    clap, vggish, encodec, mert = TOYS
    for name, embedder in (
        ("clap-laion-music", clap),
        ("vggish", vggish),
        ("MERT-v1-95M", mert),
        ("my own", encodec),
    ):
        check_fadtk_name(name, embedder)
    for name, embedder in (
        ("vggish", encodec),
        ("encodec-emb", vggish),
        ("encodec-emb", encodec),  # of 8 kHz
        ("encodec-emb-48k", encodec),
        ("MERT-v1-95M-4", mert),
        ("clap-2023", clap),
    ):
        with pytest.raises(InputError, match=f"statistics {name} are of another model"):
            check_fadtk_name(name, embedder)


def test_statistics_of_another_width_are_refused():
    with pytest.raises(InputError, match="4 dimensions and statistics of 5"):
        fadtk_score(halves(2, 0), fadtk_gaussian(halves(2, 0, dim=5)))


def test_too_few_points_and_other_embedders_have_no_score():
    with pytest.raises(InputError, match="two embeddings"):
        fadtk_score(halves(1, 0, rows=1), halves(2, 0))
    with pytest.raises(InputError, match="compared"):
        fadtk_score(halves(2, 0), Features(halves(2, 0).points, halves(2, 0).lengths, "other"))
