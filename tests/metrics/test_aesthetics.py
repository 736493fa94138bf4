"""Audiobox-Aesthetics as a guest: nothing without it, and with a model of its kind its scale."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.aesthetics import AXES, FOLDER, Aesthetics

SCALES = {axis: {"mean": 5.0 + i, "std": 1.0 + i} for i, axis in enumerate(AXES)}


class FakeModel(nn.Module):
    """With the calls of the package's ``AesMultiOutput``: answers by the sounding level."""

    asked: list[tuple[Any, ...]] = []

    def __init__(self, transform: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.target_transform = transform

    @classmethod
    def from_pretrained(cls, folder: str, **settings: Any) -> FakeModel:
        cls.asked.append((folder, settings))
        transform = json.loads((Path(folder) / "config.json").read_text())["target_transform"]
        return cls(transform)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        wav, mask = batch["wav"], batch["mask"]
        assert wav.shape == mask.shape == (len(wav), 1, 160_000)
        assert mask.dtype == torch.bool
        assert (wav[~mask] == 0).all()
        level = (wav.abs() * mask).sum((1, 2)) / mask.sum((1, 2))
        return {axis: level * (i + 1) for i, axis in enumerate(AXES)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"target_transform": SCALES}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = ModuleType("audiobox_aesthetics.model.aes")
    inner.AesMultiOutput = FakeModel  # type: ignore[attr-defined]
    for name in ("audiobox_aesthetics", "audiobox_aesthetics.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, inner.__name__, inner)
    monkeypatch.delenv(FOLDER, raising=False)


def level(value: float, seconds: float, rate: int = 16_000) -> Clip:
    return Clip(torch.full((1, round(seconds * rate)), value), rate)


@pytest.mark.parametrize(("index", "axis"), list(enumerate(AXES)))
def test_each_axis_has_its_own_scale(index: int, axis: str, weights: Path, package: None) -> None:
    reward = Aesthetics(axis, weights)
    found = reward([level(0.5, 4.0), level(0.1, 4.0)])
    expected = torch.tensor([0.5, 0.1]) * (index + 1) * (1 + index) + 5 + index
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32
    assert FakeModel.asked[-1] == (str(weights), {"local_files_only": True})


def test_a_rest_counts_by_its_length(weights: Path, package: None) -> None:
    wave = torch.cat([torch.full((1, 160_000), 0.2), torch.full((1, 40_000), 0.8)], 1)
    found = Aesthetics("CE", weights)([Clip(wave, 16_000)])
    assert float(found[0]) == pytest.approx(5 + (10 * 0.2 + 2.5 * 0.8) / 12.5, rel=1e-5)


def test_any_rate_and_layout(weights: Path, package: None) -> None:
    stereo = Clip(torch.full((2, 3 * 32_000), 0.3), 32_000)
    mono = Aesthetics("CE", weights)([level(0.3, 3.0)])
    torch.testing.assert_close(Aesthetics("CE", weights)([stereo]), mono, rtol=0.01, atol=0.01)
    assert Aesthetics("CE", weights)([]).shape == (0,)


def test_the_environment_names_the_weights(
    weights: Path, package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(weights))
    assert Aesthetics()([level(0.5, 1.0)]).isfinite().all()


def test_without_the_package_it_says_how_to_get_it(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    monkeypatch.delitem(sys.modules, "audiobox_aesthetics.model.aes", raising=False)
    with pytest.raises(InputError, match="pip install --no-deps audiobox_aesthetics"):
        Aesthetics("PQ", weights)


def test_without_weights_it_says_how_to_get_them(tmp_path: Path, package: None) -> None:
    with pytest.raises(InputError, match=f"not named; .*{FOLDER}"):
        Aesthetics()
    with pytest.raises(InputError, match=r"holds no config.json"):
        Aesthetics(folder=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"target_transform": {"CE": SCALES["CE"]}}))
    with pytest.raises(InputError, match=r"holds no model.safetensors"):
        Aesthetics(folder=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="scale of each axis"):
        Aesthetics(folder=tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="no usable weights"):
        Aesthetics(folder=tmp_path)


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(InputError, match=r"'beauty'.*production quality"):
        Aesthetics("beauty")
