"""A learned reward hears clips, is kept to the bit, and knows with what it has learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musictune import audio
from musictune.audio import Clip
from musictune.data.preferences import Comparison
from musictune.errors import InputError
from musictune.methods.storage import load_tensors, save_tensors
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.embedders.encodec import EncodecEmbedder
from musictune.models.musicgen import MusicGen
from musictune.training.reward import LearnedReward, RewardSettings, reward_needs, train_reward
from musictune.training.reward_features import (
    KINDS,
    ClapFeatures,
    CodecFeatures,
    StateFeatures,
    build_features,
    hear_comparisons,
    leading_tables,
)

PROMPTS = ("a high flute", "a low bass", "")


@pytest.fixture(scope="module")
def embedder() -> ClapEmbedder:
    return ClapEmbedder.toy()


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return MusicGen.toy()


def tone(hertz: float, prompt: str = "a tone", seconds: float = 1.5, rate: int = 16_000) -> Clip:
    time = torch.arange(int(seconds * rate)) / rate
    return Clip(0.4 * torch.sin(2 * torch.pi * hertz * time)[None], rate, caption=prompt)


def learned(kind: str, embedder: ClapEmbedder, model: MusicGen) -> LearnedReward:
    """Higher tones were preferred."""
    features = build_features(kind, embedder, model)
    rows = [features.hear(tone(200.0 + 90 * i, PROMPTS[i % 3])) for i in range(16)]
    groups = [str(i) for i in range(8)]
    head, _ = train_reward(
        torch.stack(rows[8:]), torch.stack(rows[:8]), groups, RewardSettings(held_out=0.0)
    )
    return LearnedReward(features, head, {"embedder": "", "base": "mini"})


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_equal_to_the_bit(
    kind: str, embedder: ClapEmbedder, model: MusicGen, tmp_path: Path
) -> None:
    reward = learned(kind, embedder, model)
    reward.save(tmp_path)
    again = LearnedReward.load(tmp_path, embedder=embedder, model=model)
    clips = [tone(333.0), tone(1500.0, "", 0.3), tone(700.0, rate=44_100)]
    values = reward(clips)
    assert values.shape == (3,) and values.dtype == torch.float32
    assert torch.isfinite(values).all() and values.std() > 0
    assert torch.equal(again(clips), values)
    assert again.about == {"embedder": "", "base": "mini"}
    assert reward([]).shape == (0,)
    each = again.each(clips)
    assert set(each) == {"reward", "mean", "spread"} and bool((each["spread"] >= 0).all())
    needed = ("" if kind in ("clap", "both") else None, None if kind == "clap" else "mini")
    assert reward_needs(tmp_path) == needed


def test_rows_have_what_they_say(embedder: ClapEmbedder, model: MusicGen) -> None:
    clip = tone(440.0, "a high flute", 3.0)
    row = ClapFeatures(embedder).hear(clip)
    points = torch.from_numpy(embedder.hear(clip))
    dim = points.shape[1]
    assert row.shape == (3 * dim + 1,)
    assert torch.allclose(row[:dim], points.mean(0))
    cosine = torch.cosine_similarity(points.mean(0), embedder.text([clip.caption])[0], dim=0)
    assert float(row[-1]) == pytest.approx(float(cosine), abs=1e-6)
    mute = ClapFeatures(embedder).hear(tone(440.0, " ", 3.0))
    assert torch.equal(mute[: 2 * dim], row[: 2 * dim]) and not mute[2 * dim :].any()
    shares = build_features("tokens", model=model).hear(clip)
    assert float(shares.sum()) == pytest.approx(model.codebooks)
    assert build_features("both", embedder, model).hear(clip).shape[0] == (
        len(row) + len(StateFeatures(model).hear(clip))
    )
    states = StateFeatures(model).hear(clip)
    assert states.shape == (model.network.decoder.config.hidden_size,)
    assert not torch.equal(states, StateFeatures(model).hear(tone(440.0, "drums", 3.0)))
    long = StateFeatures(model).hear(tone(440.0, seconds=2 * model.max_seconds))
    assert torch.isfinite(long).all(), "what does not fit the model is left out"


def test_a_clip_of_one_frame_can_be_heard(model: MusicGen) -> None:
    row = CodecFeatures(model).hear(tone(440.0, seconds=0.01))
    assert torch.isfinite(row).all()


def test_leading_tables_keep_all_distances_that_fit(model: MusicGen) -> None:
    tables = leading_tables(model)
    own = [t.weight.detach() for t in model.network.decoder.model.decoder.embed_tokens]
    assert len(tables) == model.codebooks
    for cut, table in zip(tables, own, strict=True):
        assert torch.allclose(torch.cdist(cut, cut), torch.cdist(table, table), atol=1e-3)


def test_a_judge_does_not_move_with_the_model(embedder: ClapEmbedder, tmp_path: Path) -> None:
    model = MusicGen.toy()
    reward = learned("codec", embedder, model)
    reward.save(tmp_path)
    before = reward([tone(500.0)])
    with torch.no_grad():
        for table in model.network.decoder.model.decoder.embed_tokens:
            table.weight.normal_()
    assert torch.equal(LearnedReward.load(tmp_path, model=model)([tone(500.0)]), before)


def test_states_of_another_language_model_are_refused(
    embedder: ClapEmbedder, tmp_path: Path
) -> None:
    model = MusicGen.toy()
    learned("states", embedder, model).save(tmp_path)
    with torch.no_grad():
        next(model.backbone.parameters()).add_(0.1)
    with pytest.raises(InputError, match=r"learned with the language .* \(mini\), not"):
        LearnedReward.load(tmp_path, model=model)


def test_another_embedder_or_codec_is_refused(
    embedder: ClapEmbedder, model: MusicGen, tmp_path: Path
) -> None:
    learned("both", embedder, model).save(tmp_path)
    other = ClapEmbedder.toy()
    other.hash = "another"
    with pytest.raises(InputError, match=r"learned with the embedder .*toy.*, not .*another"):
        LearnedReward.load(tmp_path, embedder=other, model=model)
    moved = MusicGen.toy()
    with torch.no_grad():
        next(moved.network.audio_encoder.parameters()).add_(0.1)
    with pytest.raises(InputError, match=r"learned with the codec .* \(mini\), not"):
        LearnedReward.load(tmp_path, embedder=embedder, model=moved)
    with pytest.raises(InputError, match=r"features both need a CLAP .* none is given"):
        LearnedReward.load(tmp_path, model=model)
    with pytest.raises(InputError, match="features both need a base model"):
        LearnedReward.load(tmp_path, embedder=embedder)


def test_what_reads_no_text_is_no_clap() -> None:
    with pytest.raises(InputError, match="reads no text"):
        build_features("clap", EncodecEmbedder.toy())
    with pytest.raises(InputError, match="'mel' are unknown; choose clap, states"):
        build_features("mel")


def test_damaged_folders(embedder: ClapEmbedder, model: MusicGen, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no reward\.json"):
        LearnedReward.load(tmp_path, embedder=embedder)
    learned("clap", embedder, model).save(tmp_path)
    whole = json.loads((tmp_path / "reward.json").read_text())

    def refused(content: object, words: str) -> None:
        (tmp_path / "reward.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            LearnedReward.load(tmp_path, embedder=embedder)

    refused(whole | {"schema": 2}, "schema 2, not 1")
    refused(whole | {"keys": 3}, "damaged .no keys")
    refused(whole | {"numbers": {"mean": 0}}, "damaged")
    refused(whole | {"numbers": whole["numbers"] | {"deviation": 0}}, "scale is not finite")
    refused([], "object was expected")
    (tmp_path / "reward.json").write_text(json.dumps(whole))
    tensors = load_tensors(tmp_path / "model.safetensors")
    for broken in (
        {k: v for k, v in tensors.items() if k != "head.outer"},
        tensors | {"head.outer": tensors["head.outer"][:, :-1].contiguous()},
        tensors | {"head.scale": tensors["head.scale"] * torch.nan},
    ):
        save_tensors(broken, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match="damaged"):
            LearnedReward.load(tmp_path, embedder=embedder)


class Counting(ClapFeatures):
    """Notes what it hears."""

    heard: list[str]

    def hear(self, clip: Clip) -> Tensor:
        self.heard.append(f"{Path(clip.source).name} {clip.caption}")
        return super().hear(clip)


def test_each_clip_is_heard_once(embedder: ClapEmbedder, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.wav" for i in range(3)]
    for index, path in enumerate(files):
        audio.write(tone(300.0 * (index + 1)), path)
    a, b, c = files
    features = Counting(embedder)
    features.heard = []
    compared = [Comparison("p", a, b), Comparison("p", b, c), Comparison("p", a, c)]
    chosen, rejected = hear_comparisons(compared, features)
    assert sorted(features.heard) == ["0.wav p", "1.wav p", "2.wav p"]
    assert torch.equal(chosen[0], chosen[2]) and torch.equal(rejected[0], chosen[1])
    assert torch.equal(rejected[1], rejected[2])


def test_features_that_are_not_finite_are_named(embedder: ClapEmbedder, tmp_path: Path) -> None:
    class Broken(ClapFeatures):
        def hear(self, clip: Clip) -> Tensor:
            return super().hear(clip) * torch.nan

    path = tmp_path / "a.wav"
    audio.write(tone(300.0), path)
    with pytest.raises(InputError, match=r"a\.wav gives clap features that are not finite"):
        hear_comparisons([Comparison("p", path, path)], Broken(embedder))
    with pytest.raises(InputError, match=r"gone\.wav"):
        hear_comparisons([Comparison("p", tmp_path / "gone.wav", path)], ClapFeatures(embedder))
