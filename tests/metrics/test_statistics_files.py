"""Statistics of other tools: read, written, and refused when they are not what they say."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from musictune.errors import InputError
from musictune.metrics.base import Score
from musictune.metrics.features import Features
from musictune.metrics.frechet import frechet_distance, frechet_score, frechet_to_statistics
from musictune.metrics.statistics_files import Statistics, read_statistics, write_statistics

LAYOUTS = ["musictune", "fadtk", "stable-audio-metrics"]


def features(count: int = 30, dim: int = 4, key: str = "clap", seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    return Features.of(list(rng.standard_normal((count, 3, dim))), key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read(tmp_path: Path, layout: str):
    statistics = Statistics.of(features(), "clap-toy")
    path = tmp_path / "reference.npz"
    write_statistics(path, statistics, layout=layout)
    back = read_statistics(path)
    assert back.layout == layout
    assert np.array_equal(back.gaussian.mu, statistics.gaussian.mu)
    assert np.allclose(back.gaussian.cov, statistics.gaussian.cov, rtol=1e-15)
    assert back.name == ("reference" if layout == "stable-audio-metrics" else "clap-toy")
    ours = layout == "musictune"
    assert back.key == ("clap" if ours else "")
    assert (back.gaussian.n_clips, back.gaussian.n_frames) == ((30, 90) if ours else (0, 0))
    assert [p.name for p in tmp_path.iterdir()] == ["reference.npz"]
    first = path.read_bytes()
    write_statistics(path, statistics, layout=layout)
    assert path.read_bytes() == first


def test_a_stored_reference_gives_the_distance_of_its_clips(tmp_path: Path):
    made, reference = features(40, seed=1), features(50)
    write_statistics(tmp_path / "r.npz", Statistics.of(reference, "clap"))
    scores = frechet_to_statistics(made, read_statistics(tmp_path / "r.npz"))
    plain, debiased = scores["frechet_distance"], scores["frechet_distance_debiased"]
    assert isinstance(plain, Score) and isinstance(debiased, Score)
    wanted = frechet_score(made, reference)
    assert plain.value == pytest.approx(wanted.value, rel=1e-9)
    assert plain.note == debiased.note == "the reference counts as given"
    assert plain.high - plain.low < wanted.high - wanted.low
    assert debiased.value < plain.value


def test_one_of_several_embedders_must_be_named(tmp_path: Path):
    path = tmp_path / "fma.npz"
    arrays = {
        f"{n}.{k}": v
        for n in ("vggish", "a.b")
        for k, v in (("mu", np.zeros(3)), ("cov", np.eye(3)))
    }
    np.savez(path, **arrays)
    for name in ("", "mert"):
        with pytest.raises(InputError, match=r"name one of a\.b, vggish"):
            read_statistics(path, name)
    assert read_statistics(path, "a.b").name == "a.b"


def test_statistics_of_another_embedder_are_refused():
    with pytest.raises(InputError, match="have 4 dimensions, the made clips 5"):
        frechet_to_statistics(features(dim=5), Statistics.of(features(), "clap"))
    with pytest.raises(InputError, match="are of clap, the made clips of mert"):
        frechet_to_statistics(features(key="mert"), Statistics.of(features(), "clap"))
    broken = features()
    broken.points[0] = np.inf
    with pytest.raises(InputError, match="not finite"):
        frechet_to_statistics(broken, Statistics.of(features(), "clap"))


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"mu_ref": np.zeros(3), "sigma_ref": np.eye(4)}, "shape"),
        ({"mu_ref": np.zeros((3, 1)), "sigma_ref": np.eye(3)}, "shape"),
        ({"mu_ref": np.zeros(0), "sigma_ref": np.zeros((0, 0))}, "shape"),
        ({"mu_ref": np.full(3, np.nan), "sigma_ref": np.eye(3)}, "not finite"),
        ({"mu_ref": np.array(["a"] * 3), "sigma_ref": np.eye(3)}, "not finite"),
        ({"mu_ref": np.zeros(3), "sigma_ref": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"mu_ref": np.zeros(2), "sigma_ref": np.diag([1.0, -1.0])}, "negative variances"),
        ({"mu_ref": np.zeros(3), "sigma_ref": np.zeros((30, 30))}, "bytes"),
        ({"mu_ref": np.zeros(3), "sigma_ref": np.array([{}], dtype=object)}, "cannot be read"),
        ({"mu_ref": np.zeros(3)}, "hold mu_ref; needed are"),
        ({"mu": np.zeros(3), "cov": np.eye(3), "n_clips": 9, "n_frames": 2}, "9 clips in 2 frames"),
        ({"mu": np.zeros(3), "cov": np.eye(3), "n_clips": [1, 2], "n_frames": 2}, "cannot be read"),
        ({}, "hold nothing"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path: Path, arrays: dict, complaint: str):
    path = tmp_path / "s.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=complaint):
        read_statistics(path)


def test_files_that_are_no_archives_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="not there"):
        read_statistics(tmp_path / "none.npz")
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"no \.npz"):
            read_statistics(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"no \.npz"):
        read_statistics(tmp_path / "array.npy")
    write_statistics(tmp_path / "s.npz", Statistics.of(features(), "clap"))
    content = bytearray((tmp_path / "s.npz").read_bytes())
    content[200] ^= 255  # its checksum no longer holds
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_statistics(tmp_path / "s.npz")
    with pytest.raises(InputError, match=r"must be named \.npz"):
        write_statistics(tmp_path / "s.npy", Statistics.of(features(), "clap"))
    with pytest.raises(InputError, match="layout 'kadtk' is unknown"):
        write_statistics(tmp_path / "s.npz", Statistics.of(features(), "x"), layout="kadtk")


def test_a_covariance_without_full_rank_is_read(tmp_path: Path):
    """As stable-audio-metrics makes of mono files, whose halves are equal."""
    points = np.repeat(np.random.default_rng(0).standard_normal((50, 3)), 2, axis=1)
    mu, cov = points.mean(0), np.cov(points, rowvar=False)
    np.savez(tmp_path / "s.npz", mu_ref=mu.astype(np.float32), sigma_ref=cov)
    back = read_statistics(tmp_path / "s.npz")
    assert np.allclose(back.gaussian.root @ back.gaussian.root.T, cov, atol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(
    "MUSICTUNE_FADTK_WHEEL" not in os.environ, reason="MUSICTUNE_FADTK_WHEEL names no wheel"
)
def test_fadtks_own_statistics_have_the_known_distances(tmp_path: Path):
    with zipfile.ZipFile(os.environ["MUSICTUNE_FADTK_WHEEL"]) as wheel:
        path = tmp_path / "fma_pop.npz"
        path.write_bytes(io.BytesIO(wheel.read("fadtk/stats/fma_pop.npz")).getvalue())
    for one, other, wanted in (
        ("vggish", "encodec-emb", 4420.8942177052),
        ("clap-laion-audio", "clap-laion-music", 1.4756007781559),
        ("MERT-v1-95M-4", "MERT-v1-95M-5", 10.1123439),
    ):
        a, b = (read_statistics(path, name).gaussian for name in (one, other))
        assert frechet_distance(a.mu, a.cov, b.mu, b.cov) == pytest.approx(wanted, rel=1e-8)
