"""Tokens beside a sound are given back only for that sound and that codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from musictune.data.kept_tokens import keep_tokens, kept_tokens
from musictune.errors import InputError


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "000-a.waltz.wav", np.full(800, 0.1), 8_000)
    return tmp_path / "000-a.waltz.wav"


@pytest.mark.parametrize("largest", [1023, 100_000])
def test_tokens_come_back_as_they_were(wav: Path, largest: int) -> None:
    codes = torch.randint(0, largest, (4, 50))
    codes[0, 0] = largest
    keep_tokens(wav, codes, "codec-1")
    found = kept_tokens(wav, "codec-1")
    assert found is not None
    assert found.dtype == torch.int64
    assert torch.equal(found, codes)
    assert (wav.parent / "000-a.waltz.tokens.safetensors").is_file()


def test_no_tokens_of_another_codec_or_a_changed_sound(wav: Path) -> None:
    assert kept_tokens(wav, "codec-1") is None
    keep_tokens(wav, torch.ones(2, 3, dtype=torch.int64), "codec-1")
    assert kept_tokens(wav, "codec-2") is None
    soundfile.write(wav, np.full(800, 0.2), 8_000)
    assert kept_tokens(wav, "codec-1") is None
    wav.unlink()
    assert kept_tokens(wav, "codec-1") is None


def test_damaged_tokens_are_none(wav: Path) -> None:
    keep_tokens(wav, torch.ones(2, 3, dtype=torch.int64), "codec-1")
    file = wav.parent / "000-a.waltz.tokens.safetensors"
    whole = file.read_bytes()
    from safetensors import safe_open

    with safe_open(file, framework="pt") as kept:
        facts = kept.metadata()
    for content in (b"", whole[:-1], b"x" * 100):
        file.write_bytes(content)
        assert kept_tokens(wav, "codec-1") is None
    for tensors in (
        {"other": torch.ones(2, 3)},
        {"codes": torch.ones(2, 3)},
        {"codes": torch.ones(3, dtype=torch.int16)},
        {"codes": -torch.ones(2, 3, dtype=torch.int16)},
    ):
        save_file(tensors, file, metadata=facts)
        assert kept_tokens(wav, "codec-1") is None


@pytest.mark.parametrize(
    "codes",
    [
        torch.ones(3, dtype=torch.int64),
        torch.ones(2, 3),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.full((2, 3), -1),
    ],
)
def test_what_are_no_tokens_is_refused(wav: Path, codes: torch.Tensor) -> None:
    with pytest.raises(InputError, match="integers from 0 on are needed"):
        keep_tokens(wav, codes, "codec-1")
    assert list(wav.parent.iterdir()) == [wav]


def test_tokens_of_no_sound_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        keep_tokens(tmp_path / "gone.wav", torch.ones(2, 3, dtype=torch.int64), "codec-1")
