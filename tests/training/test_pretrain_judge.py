"""The judge: it trains, resumes, exports and loads, and hears keys the same in every octave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from musictune import audio
from musictune.audio import Clip
from musictune.errors import InputError
from musictune.models.judge import KEYS, Judge, JudgeConfig
from musictune.training import pretrain_judge
from musictune.training.pretrain import Corpus, PretrainSettings, pretrain, read_part
from musictune.training.pretrain_judge import JudgePretraining, _worse

SHAPE = {"channels": [4, 4, 8, 8], "width": 8}
RECIPE = Path(__file__).parents[2] / "configs" / "pretrain_judge.yaml"


def small(steps: int = 3, **more: object) -> JudgePretraining:
    settings = PretrainSettings(
        steps=steps, warmup=2, learning_rate=1e-2, precision="32-true", checkpoint_every=2
    )
    return JudgePretraining(settings, SHAPE, batch_size=8, seconds=1.0, **more)  # type: ignore[arg-type]


def tone(pitch: int, seconds: float = 1.5) -> Clip:
    """A few partials over a MIDI pitch."""
    time = torch.arange(round(seconds * 32000)) / 32000
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    wave = sum(torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 5))
    return Clip(0.2 * wave[None], 32000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flutes that are tones, drums that are noise."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        drums = i % 2 == 0
        noise = torch.from_numpy(rng.normal(0, 0.1, (1, 48000)).astype(np.float32))
        audio.write(Clip(noise, 32000) if drums else tone(60 + i), folder / f"{i}.wav")
        family = "drums" if drums else "flute"
        rows.append(
            {"file_name": f"{i}.wav", "text": family, "seconds": 1.5, "lead_family": family}
            | {"families": [family], "has_drums": drums, "key": "" if drums else KEYS[i]}
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_it_learns_tones_from_noise_and_the_export_hears_the_same(
    corpus: Path, tmp_path: Path
) -> None:
    part = small(steps=30)
    pretrain(part, corpus, tmp_path / "judge")
    judge = Judge.load(tmp_path / "judge")
    assert judge.config.families == ("drums", "flute")
    flute, drums = judge.hear([tone(64), Clip(0.1 * torch.randn(1, 48000), 32000)])
    assert (flute.lead, drums.lead) == ("flute", "drums")
    assert drums.drums and not flute.drums
    assert sum(flute.keys) == pytest.approx(1, abs=1e-5)
    features = judge.features(tone(64).wave)
    kept, again = part.judge(*features)["lead"], judge(*features)["lead"]
    assert torch.allclose(kept, again, atol=0.02)  # half precision on the way


def test_a_run_goes_on_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    def weights(out: Path, until: int, resume: bool = False) -> dict[str, torch.Tensor]:
        pretrain(small(4), corpus, out, resume=resume, until=until)
        return load_file(out / "model.safetensors")

    whole = weights(tmp_path / "whole", 4)
    weights(tmp_path / "broken", 2)
    resumed = weights(tmp_path / "broken", 4, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_clips_go_through_a_codec_and_are_drawn_more_often(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musictune.models.musicgen import MusicGen

    monkeypatch.setattr(pretrain_judge, "load_model", lambda base: MusicGen.toy())
    part = small(codec="toy", codec_share=0.25)
    part.open(Corpus.read(corpus))
    assert len(part.owners) == 10 and part.images.shape[0] == 10
    assert part.drawn.tolist().count(8) == 3 and part.drawn.tolist().count(0) == 1
    assert part.leads[8] == part.leads[part.owners[8]]
    assert not torch.equal(part.images[8], part.images[part.owners[8]])
    again = small(codec="toy", codec_share=0.25)
    monkeypatch.setattr(again, "_features", None)  # the second time all is read back
    again.open(Corpus.read(corpus))
    assert torch.equal(again.images, part.images) and torch.equal(again.pitches, part.pitches)


def test_a_batch_depends_on_its_chance_alone(corpus: Path) -> None:
    part = small()
    part.open(Corpus.read(corpus))
    one, again = (part.batch(np.random.default_rng(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = part.batch(np.random.default_rng(4))
    assert not torch.equal(one[0], other[0])


def test_worse_is_near_but_not_the_same_and_finite_even_in_silence() -> None:
    silent = torch.full((4, 20, 24), -100.0)
    assert _worse(silent, np.random.default_rng(0)).isfinite().all()
    image = torch.randn(16, 20, 24) * 10 - 30
    worse = _worse(image, np.random.default_rng(0))
    assert worse.shape == image.shape and not torch.equal(worse, image)
    loud = image > image.amax((1, 2), keepdim=True) - 15
    assert (worse - image)[loud].abs().median() < 6


def test_transposed_music_has_the_transposed_key() -> None:
    judge = Judge(JudgeConfig(families=("drums", "flute"))).eval()
    torch.manual_seed(1)
    classes = torch.rand(1, 5, 6, 12) * 60
    up = classes.roll(3, -1)
    images = torch.rand(1, 30, 96)
    key = judge(images, classes.flatten(2))["key"].unflatten(1, (2, 12))
    moved = judge(images, up.flatten(2))["key"].unflatten(1, (2, 12))
    assert torch.allclose(moved, key.roll(3, -1), atol=1e-4)


def test_features_put_a_tone_on_its_semitone_and_levels_do_not_matter() -> None:
    judge = Judge(JudgeConfig(families=("drums", "flute"))).eval()
    clip = tone(57)
    _, pitches = judge.features(clip.wave)
    assert int(pitches[0].mean(0).argmax()) == 57 - 36
    quiet = Clip(clip.wave * 0.1, 32000)
    (loud,), (soft,) = judge.hear([clip]), judge.hear([quiet])
    assert np.allclose(loud.keys, soft.keys, atol=1e-3)
    assert loud.leads["flute"] == pytest.approx(soft.leads["flute"], abs=1e-3)
    (stereo,) = judge.hear([Clip(torch.cat([clip.wave, clip.wave])[:, :8000], 16000)])
    assert stereo.lead in judge.config.families


def test_what_cannot_be_used_is_refused_in_one_line(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"judge .* cannot be loaded"):
        Judge.load(tmp_path)
    Judge(JudgeConfig(families=("drums", "flute"))).save(tmp_path / "judge")
    fields = json.loads((tmp_path / "judge" / "config.json").read_text())
    (tmp_path / "judge" / "config.json").write_text(json.dumps(fields | {"width": 7}))
    with pytest.raises(InputError, match=r"judge .* cannot be loaded"):
        Judge.load(tmp_path / "judge")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "x"}\n')
    with pytest.raises(InputError, match="lead_family"):
        pretrain(small(), tmp_path, tmp_path / "out")


def test_the_recipe_is_one_of_ours() -> None:
    assert RECIPE.read_text().startswith("# musictune pretrain --config")
    part = read_part(RECIPE, ["part.settings.steps=7"])
    assert isinstance(part, JudgePretraining) and part.settings.steps == 7
