"""Pseudo-labels are clusters, the loss is its four terms, and only the encoder is changed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from musictune import console
from musictune.errors import InputError
from musictune.files import sha256
from musictune.methods.storage import load_tensors
from musictune.models.classifier import Classifier, MeanHead
from musictune.training import unfused
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.labelled_stream import Augment
from musictune.training.loop import Interrupted
from musictune.training.pseudo_labels import features, pseudo_labels, whitened
from musictune.training.settings import TrainingSettings
from musictune.training.stepped import Stepped
from musictune.training.unfused import Distillation, UnfusedSettings, terms, warm_up

KINDS = 4


def sounds(model: Classifier, clips: int = 24) -> tuple[list[Tensor], Tensor]:
    """Clips of four kinds, which differ in what is loud, and their kinds."""
    chance = torch.Generator().manual_seed(3)
    shape = (model.steps, model.front.bands) if model.front.bands else (model.steps,)
    patterns = 3 * torch.randn(KINDS, *shape, generator=chance)
    kinds = torch.arange(clips) % KINDS
    return [patterns[k] + 0.1 * torch.randn(shape, generator=chance) for k in kinds], kinds


def settings(**changes: Any) -> UnfusedSettings:
    values: dict[str, Any] = {"epochs": 2, "clusters": KINDS}
    return UnfusedSettings(**(values | changes))


def training(**changes: Any) -> TrainingSettings:
    values: dict[str, Any] = {"batch": 8, "warmup": 1, "checkpoint_every": 0, "seed": 5}
    return TrainingSettings(**(values | changes))


def encoder(model: Classifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}


# --- pseudo-labels ---


@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
def test_clips_that_sound_alike_get_one_label(kind: str) -> None:
    model = Classifier.toy(kind)
    heard, kinds = sounds(model)
    before = encoder(model)
    labels = pseudo_labels(model, heard, clusters=KINDS)
    assert labels.dtype == torch.int64
    if kind == "ast":
        assert adjusted_rand_score(kinds, labels) == 1.0
    assert sorted(set(labels.tolist())) == list(range(KINDS))
    model.train(True)
    torch.manual_seed(123)
    assert torch.equal(pseudo_labels(model, heard, clusters=KINDS), labels)
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in encoder(model).items())


@given(st.integers(20, 60), st.integers(3, 12), st.integers(1, 8), st.integers(0, 99))
def test_whitened_features_are_uncorrelated_and_of_variance_1(
    clips: int, width: int, dims: int, seed: int
) -> None:
    chance = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 2, width)
    points = whitened(torch.randn(clips, width, generator=chance) * scales, dims)
    assert points.shape == (clips, min(dims, width))
    assert torch.allclose(points.T.cov().reshape(points.shape[1], -1).double(),
                          torch.eye(points.shape[1], dtype=torch.float64), atol=1e-6)  # fmt: skip
    assert torch.allclose(points.mean(0), torch.zeros(1, dtype=torch.float64), atol=1e-6)


def test_as_many_directions_as_clips_would_put_all_equally_far_apart() -> None:
    """Why fewer are kept."""
    points = whitened(torch.randn(9, 40), 8)
    far = torch.pdist(points)
    assert torch.allclose(far, far[:1].expand_as(far))


def test_directions_of_rounding_are_left_out() -> None:
    flat = torch.randn(20, 2) @ torch.randn(2, 7) + 100
    assert whitened(flat, 6).shape == (20, 2)
    with pytest.raises(InputError, match="sound all the same"):
        whitened(torch.ones(20, 4) + 1e-7 * torch.randn(20, 4), 3)


def test_features_are_means_over_windows_in_evaluation_mode() -> None:
    model = Classifier.toy()
    one, other = torch.randn(2, model.steps, 16)
    both = features(model, [torch.cat([one, other])])
    assert torch.allclose(both[0], features(model, [one, other]).mean(0), atol=1e-6)
    states, _ = model.states(*model.front.inputs([one], model.steps))
    assert torch.allclose(features(model, [one])[0], states[0].mean(0), atol=1e-6)


def test_few_clips_make_fewer_clusters_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_quiet(False)
    model = Classifier.toy()
    heard, _ = sounds(model, 13)
    assert int(pseudo_labels(model, heard).max()) + 1 == 3
    assert "13 clips are clustered into 3, not 32" in capsys.readouterr().err
    with pytest.raises(InputError, match="7 clips are too few to cluster; give at least 8"):
        pseudo_labels(model, heard[:7])
    with pytest.raises(InputError, match="sound all the same"):
        pseudo_labels(model, heard[:1] * 8)


# --- the loss ---


def test_each_term_is_what_it_says() -> None:
    scores = [torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 0.0]])]
    found = [torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]]), torch.tensor([[2.0, 1.0]])]
    got = terms(scores, found, torch.tensor([[0.0, 1.0]]))
    # Probabilities of the first class: 1/2, and twice 1 / (1 + exp(-2)).
    p = 1 / (1 + torch.tensor(-2.0).exp())
    half = torch.tensor(0.5)
    expected = {
        "last_head": -(1 - p).log(),
        "heads": -half.log() - (1 - p).log(),
        "divergence": half * (half / p).log() + half * (half / (1 - p)).log(),
        "features": torch.tensor((1 + 4) / 2 + (0 + 1) / 2),
    }
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(got[name], value, atol=1e-6), name


def test_the_last_head_teaches_and_is_not_taught() -> None:
    scores = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    found = [torch.randn(4, 5, requires_grad=True) for _ in range(3)]
    got = terms(scores, found, torch.eye(3)[[0, 1, 2, 0]])
    (got["divergence"] + got["features"]).backward()
    assert scores[-1].grad is None and found[-1].grad is None
    for one in (*scores[:-1], *found[:-1]):
        assert one.grad is not None and one.grad.abs().max() > 0


def module(model: Classifier, **changes: Any) -> Distillation:
    return Distillation(model, KINDS, settings(**changes), training())


def deep(layers: int) -> Classifier:
    model = Classifier.toy()
    config = model.network.config
    config.num_hidden_layers = layers
    network = type(model.network)(config)
    return Classifier(network, model.front, "toy", model.seconds)


@pytest.mark.parametrize(
    ("layers", "after"), [(2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (12, [3, 6, 9])]
)
def test_heads_stand_at_quarters_of_the_depth(layers: int, after: list[int]) -> None:
    found = module(deep(layers))
    assert found.between == [f"layers.{place - 1}" for place in after]
    assert len(found.heads) == len(after) + 1


def test_a_single_layer_has_none_between() -> None:
    with pytest.raises(InputError, match="single layer"):
        module(deep(1))


def test_heads_hear_the_layers_they_stand_behind() -> None:
    model = deep(4)
    heard, _ = sounds(model, 3)
    batch = model.batch(heard, torch.eye(KINDS)[:3])
    learner = module(model)
    scores, _ = learner.answers(batch)
    states = model.backbone(batch.inputs, output_hidden_states=True)
    wanted = [*states.hidden_states[1:4], states.last_hidden_state]
    for head, score, state in zip(learner.heads, scores, wanted, strict=True):
        assert torch.allclose(head(state.mean(1))[0], score, atol=1e-6)
    parts = terms(*learner.answers(batch), batch.targets)
    weights = {"last_head": 1.0, "heads": 0.7, "divergence": 0.3, "features": 0.003}
    expected = sum(weight * parts[name] for name, weight in weights.items())
    assert torch.allclose(learner.loss(batch), torch.as_tensor(expected))
    assert learner.parts == {name: pytest.approx(v.item()) for name, v in parts.items()}
    learner.loss(batch).backward()
    for head in learner.heads:
        assert head.dense.weight.grad is not None
        assert head.dense.weight.grad.abs().max() > 0
    assert all(p.grad is not None for p in model.backbone.layers.parameters())
    assert all(p.grad is None for p in model.network.classifier.parameters())


# --- warming up ---


@pytest.mark.parametrize("kind", ["ast", "wav2vec2"])
@pytest.mark.parametrize("start", ["random", "base"])
def test_only_the_encoder_changes(kind: str, start: str, tmp_path: Path) -> None:
    model = Classifier.toy(kind)
    model.head = MeanHead(16, ["a", "b"])
    heard, _ = sounds(model)
    before, names = encoder(model), set(model.state_dict())
    own = [p.clone() for p in (*model.network.classifier.parameters(), *model.head.parameters())]
    facts = warm_up(model, heard, settings(start=start), training(), tmp_path)
    after = encoder(model)
    assert set(model.state_dict()) == names
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.9 * len(before) - 1
    now = (*model.network.classifier.parameters(), *model.head.parameters())
    assert all(torch.equal(a, b) for a, b in zip(own, now, strict=True))
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert not any(m._forward_hooks for m in model.backbone.layers) if kind == "ast" else True
    accuracy = facts.pop("accuracy")
    assert isinstance(accuracy, float) and 0 <= accuracy <= 1
    largest = facts.pop("largest_cluster")
    assert isinstance(largest, int) and largest >= 6
    assert facts == {"clips": 24, "clusters": KINDS, "start": start, "epochs": 2, "steps": 6}
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(7))
    assert float(rows[1]["divergence"]) >= 0
    assert {"last_head", "heads", "features"} <= set(rows[1])


def test_random_weights_forget_the_base(tmp_path: Path) -> None:
    """Two bases with the same pseudo-labels become the same student; with ``base`` they do not."""
    for start, same in (("random", True), ("base", False)):
        found = []
        for number in (0, 1):
            model = Classifier.toy()
            heard, kinds = sounds(model)
            with torch.no_grad():
                model.backbone.layernorm.weight.mul_(1 + number)
            folder = tmp_path / f"{start}{number}"
            folder.mkdir()
            unfused.save_tensors({"labels": kinds}, folder / "pseudo_labels.safetensors")
            warm_up(model, heard, settings(start=start, epochs=1), training(), folder)
            found.append(encoder(model))
        equal = [torch.equal(found[0][name], found[1][name]) for name in found[0]]
        assert all(equal) if same else not all(equal)


def test_the_student_learns_its_pseudo_labels(tmp_path: Path) -> None:
    model = Classifier.toy()
    heard, _ = sounds(model)
    plain = Augment(gain_db=0, frequency_mask=0, time_mask=0)
    facts = warm_up(model, heard, settings(epochs=15, lr=1e-2), training(), tmp_path, plain)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[1]["loss"])
    assert facts["accuracy"] == 1.0


class Stop(AfterStep):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_warm_up_is_the_same_to_the_bit(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = training(accumulate=accumulate)
    whole = Classifier.toy("wav2vec2")
    heard, _ = sounds(whole)
    facts = warm_up(whole, heard, settings(), numbers, tmp_path / "whole")
    fit = unfused.fit
    with monkeypatch.context() as patch:
        patch.setattr(unfused, "fit", lambda *given: fit(*given, [Stop(2)]))
        with pytest.raises(Interrupted, match="step 2"):
            warm_up(Classifier.toy("wav2vec2"), heard, settings(), numbers, tmp_path / "cut")
    again = Classifier.toy("wav2vec2")
    assert warm_up(again, heard, settings(), numbers, tmp_path / "cut") == facts
    expected = encoder(whole)
    assert all(torch.equal(expected[name], t) for name, t in encoder(again).items())
    kept = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]
        for path in (tmp_path / "whole/metrics.csv", tmp_path / "cut/metrics.csv")
    ]
    assert kept[0] == kept[1]


def test_it_goes_on_only_with_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Classifier.toy()
    heard, _ = sounds(model)
    fit = unfused.fit
    with monkeypatch.context() as patch:
        patch.setattr(unfused, "fit", lambda *given: fit(*given, [Stop(1)]))
        with pytest.raises(Interrupted):
            warm_up(model, heard, settings(), training(), tmp_path)
    with pytest.raises(InputError, match="other clips"):
        warm_up(Classifier.toy(), heard[:-1], settings(), training(), tmp_path)
    with pytest.raises(InputError, match="another encoder"):
        warm_up(Classifier.toy("wav2vec2"), sounds(Classifier.toy("wav2vec2"))[0], settings(),
                training(), tmp_path)  # fmt: skip
    labels = tmp_path / "pseudo_labels.safetensors"
    assert load_tensors(labels)["labels"].shape == (24,)
    digest = sha256(labels)
    warm_up(Classifier.toy(), heard, settings(), training(), tmp_path)
    assert sha256(labels) == digest


@pytest.mark.parametrize(
    "wrong",
    [{"start": "zero"}, {"epochs": -1}, {"dims": 0}, {"clusters": 1}, {"seed": -1},
     {"seed": 2**32}, {"heads": -0.1}, {"divergence": float("nan")}, {"features": float("inf")},
     {"lr": 0.0}, {"lr": float("nan")}],
)  # fmt: skip
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} .* must be"):
        UnfusedSettings(**wrong)


def test_no_epochs_are_no_warm_up(tmp_path: Path) -> None:
    model = Classifier.toy()
    with pytest.raises(InputError, match="epochs 0"):
        warm_up(model, sounds(model)[0], UnfusedSettings(), training(), tmp_path)
