"""An evaluation as a library call."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import musictune
from musictune.audio import Clip, write
from musictune.evaluation.extras import text_warnings
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.embedders.encodec import EncodecEmbedder
from musictune.metrics.folder import ClipFile, ClipSet


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("library")
    ClapEmbedder.toy().save(root / "clap")
    for name, low in (("made", 220), ("mine", 300)):
        (root / name).mkdir()
        for i in range(3):
            wave = 0.3 * torch.sin(2 * math.pi * (low + 60 * i) * torch.arange(16_000) / 8000)
            write(Clip(wave[None], 8000), root / name / f"{i}.wav")
    return root


def test_two_lines_measure_and_report(folders: Path, tmp_path: Path):
    plan = musictune.Plan(
        folders / "made", folders / "mine", embedder=str(folders / "clap"), cache=tmp_path / "cache"
    )
    measured = musictune.evaluate(plan)
    assert measured.scores["frechet_distance"].n == 3
    assert measured.embedder.name == plan.embedder
    assert [len(s.files) for s in (measured.made.clips, measured.reference)] == [3, 3]
    alone = measured.evaluation.made["frechet_to_reference"]
    assert alone.shape == (3,) and (alone >= 0).all()
    missing = measured.evaluation.not_computed
    assert missing["concept_score"] == missing["text_alignment"] == "no prompt is known of any clip"
    measured.write(tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert written["frechet_distance"]["value"] == measured.scores["frechet_distance"].value


def test_every_public_name_is_there():
    for name in musictune.__all__:
        assert getattr(musictune, name) is not None
    assert dir(musictune) == sorted(musictune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        musictune.nothing  # noqa: B018


def test_prompts_that_a_clap_cannot_read_are_counted():
    clap = ClapEmbedder.toy()

    def warned(*texts: str) -> list[str]:
        files = tuple(ClipFile(Path("x.wav"), "x.wav", text, text) for text in texts)
        return text_warnings(clap, ClipSet("made", files))

    fits = "a" * (clap.most_tokens - 2)  # marks at both ends
    assert warned("", "a slow piano, 90 bpm", "müde Flöte", "128", fits) == []
    (long,) = warned(fits, fits + "a")
    assert "1 of 2 prompts are longer than the 64 tokens" in long
    (foreign,) = warned("a piano", "медленное пианино", "緩やかなピアノ bpm")
    assert "2 of 3 prompts are not in Latin letters" in foreign
    assert text_warnings(EncodecEmbedder.toy(), ClipSet("made", ())) == []
