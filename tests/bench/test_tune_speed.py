"""`musictune bench tune`: figures that are known beforehand, its file, and what it refuses."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from musictune.__main__ import main
from musictune.bench import tune_sides
from musictune.bench.memory import LiveBytes, optimizer_bytes, saved_for_backward
from musictune.bench.step_profile import (
    CATEGORIES,
    FORWARD,
    INPUT,
    LOSS,
    REST,
    WEIGHT,
    StepProfile,
)
from musictune.bench.tune_measure import sizes_of_sums
from musictune.bench.tune_sides import ALL_LINEARS, VALUES, Shape
from musictune.kernels.codebook_loss import codebook_loss
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen

SHAPE = tune_sides.find_shape("toy")


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return tune_sides.build_model(SHAPE, torch.device("cpu"))


@pytest.fixture(scope="module")
def batch(model: MusicGen) -> Batch:
    return tune_sides.build_batch(model, SHAPE.batch, SHAPE.tokens)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "tune", *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


# --- memory ---


def test_what_a_linear_layer_saves_is_its_input_or_nothing() -> None:
    layer = nn.Linear(8, 4, bias=False)
    x = torch.randn(5, 8, requires_grad=True)
    with saved_for_backward([layer]) as saved:
        kept = layer(x)
    assert saved.total == 5 * 8 * 4
    layer.requires_grad_(False)
    with saved_for_backward([layer]) as saved:
        kept = layer(x)
    assert saved.total == 0
    assert kept.requires_grad


def test_a_tensor_that_is_saved_twice_counts_once() -> None:
    x = torch.randn(6, requires_grad=True)
    with saved_for_backward([]) as saved:
        kept = (x * x) + x.view(2, 3).pow(3).flatten()
    assert saved.total == 6 * 4
    assert kept.requires_grad


def test_sparse_tensors_count_what_they_hold() -> None:
    values = torch.randn(3, requires_grad=True)
    with saved_for_backward([]) as saved, LiveBytes() as live:
        sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1, 2], [0, 1, 2]]), values, (9, 9))
        dense = torch.zeros(9, 9) + sparse
    assert dense.requires_grad
    assert saved.total < 9 * 9 * 4
    assert live.peak >= 9 * 9 * 4


def test_live_bytes_rise_and_fall_with_the_tensors() -> None:
    with LiveBytes() as live:
        a = torch.ones(100)
        view = a.view(10, 10)
        view.add_(1)
        assert live.now == 400
        b = a + 1
        assert live.now == 800
        del a, view
        assert live.now == 400
        del b
        assert live.now == 0
    assert live.peak == 800


def test_some_tensors_can_be_counted_apart() -> None:
    with LiveBytes(lambda func, args, made: func.overloadpacket.__name__ == "mm") as live:
        first = torch.ones(4, 4) @ torch.ones(4, 4)
        del first
        second = torch.ones(4, 4) @ torch.ones(4, 4)
    assert live.apart_peak == second.numel() * 4


def test_optimizer_bytes_are_moments_and_gradients() -> None:
    parameter = nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    assert optimizer_bytes(optimizer) == 0
    parameter.grad = torch.ones(10)
    optimizer.step()
    assert optimizer_bytes(optimizer) == 3 * 10 * 4


# --- where the time goes ---


def test_products_are_told_apart_and_their_work_is_counted() -> None:
    tokens, width, out = 7, 5, 3
    first, second = nn.Linear(width, width, bias=False), nn.Linear(width, out, bias=False)
    x = torch.randn(tokens, width)
    with StepProfile({tokens}, torch.device("cpu")) as watch:
        loss = second(first(x)).sum()
        watch.begin("backward")
        loss.backward()
    profile = watch.profile(total=1.0)
    both = 2 * tokens * width * (width + out)
    assert profile.flops == {FORWARD: both, WEIGHT: both, INPUT: 2 * tokens * width * out}
    assert set(profile.seconds) == set(CATEGORIES)
    assert sum(profile.seconds.values()) == pytest.approx(1.0)


def test_a_frozen_base_has_no_products_for_whole_weights(model: MusicGen, batch: Batch) -> None:
    def work(side: tune_sides.Side) -> dict[str, float]:
        with StepProfile(sizes_of_sums(model, batch), torch.device("cpu")) as watch:
            side.step(batch, watch.begin)
        return watch.profile(1.0).flops

    full = work(tune_sides.full(model))
    count = tune_sides.lora_count(model, ALL_LINEARS, SHAPE.rank)
    columns = work(tune_sides.structured(model, "column", ALL_LINEARS, count))
    # The fused loss forms gradients in the forward pass, and those of the heads for full tuning.
    assert full[WEIGHT] == pytest.approx(full[FORWARD], rel=0.1)
    assert columns[FORWARD] == full[FORWARD]
    assert columns[WEIGHT] < 0.2 * full[WEIGHT]


def test_the_loss_is_seen_and_categories_sum_to_the_step(model: MusicGen, batch: Batch) -> None:
    side = tune_sides.full(model)
    side.step(batch)
    with StepProfile(sizes_of_sums(model, batch), torch.device("cpu")) as watch:
        start = time.perf_counter()
        side.step(batch, watch.begin)
        total = time.perf_counter() - start
    seconds = watch.profile(total).seconds
    assert tuple(seconds) == CATEGORIES
    assert sum(seconds.values()) == pytest.approx(total)
    assert all(value > 0 for value in seconds.values())


def test_the_loss_is_all_of_it_but_its_products() -> None:
    """Alone, with heads that learn and without: there is nothing else to find."""
    hidden = torch.randn(2, 7, 6, requires_grad=True)
    heads = [torch.randn(11, 6, requires_grad=learned) for learned in (True, False)]
    targets = torch.randint(11, (2, 2, 7))
    with StepProfile({14}, torch.device("cpu")) as watch:
        loss = codebook_loss(hidden, heads, targets, torch.ones_like(targets, dtype=torch.bool))
        watch.begin("backward")
        torch.autograd.backward(loss, torch.tensor([0.25, 0.5]))
    found = watch.profile(0.0)
    work = 2.0 * 14 * 6 * 11
    # Clips of unequal weight: the head's gradient is formed again, from scores made anew.
    assert found.flops == {FORWARD: 4 * work, INPUT: 2 * work, WEIGHT: 2 * work}
    assert found.seconds[LOSS] > 0 and found.seconds[REST] < found.seconds[LOSS]


# --- the sides ---


def test_every_side_starts_as_the_same_model(model: MusicGen, batch: Batch) -> None:
    count = tune_sides.lora_count(model, ALL_LINEARS, SHAPE.rank)
    sides = [
        *(tune_sides.structured(model, kind, ALL_LINEARS, count) for kind in ("column", "head")),
        tune_sides.structured(model, "row", ALL_LINEARS, count),
        tune_sides.elements(model, SHAPE, VALUES),
        tune_sides.shira(model, SHAPE, VALUES),
        tune_sides.lora(model, SHAPE, VALUES),
        tune_sides.lora(model, SHAPE, VALUES, half=True),
        tune_sides.full(model),
    ]
    with torch.no_grad():
        base = model.nll(batch)
        for side in sides:
            torch.testing.assert_close(side.model.nll(batch), base, msg=side.name)


def test_sides_train_about_as_many_weights_and_leave_the_base_alone(
    model: MusicGen, batch: Batch
) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora = tune_sides.lora(model, SHAPE, ALL_LINEARS)
    columns = tune_sides.structured(model, "column", ALL_LINEARS, lora.trained)
    assert 0.7 * lora.trained <= columns.trained <= lora.trained
    for side in (lora, columns, tune_sides.full(model)):
        was = side.model.nll(batch).detach()
        side.step(batch)
        side.step(batch)
        assert not torch.equal(side.model.nll(batch), was), side.name
        text = side.model.text_encoder.parameters()
        assert all(weight.grad is None for weight in text), side.name
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_shira_and_the_elements_train_the_same_weights(model: MusicGen) -> None:
    ours, theirs = (make(model, SHAPE, VALUES) for make in (tune_sides.elements, tune_sides.shira))
    assert ours.trained == theirs.trained == tune_sides.lora_count(model, VALUES, SHAPE.rank)
    name = "model.decoder.layers.1.self_attn.v_proj"
    own, peer = (side.model.backbone.get_submodule(name) for side in (ours, theirs))
    rows, columns = peer.shira_indices["default"]
    assert torch.equal(own.chosen.indices, rows.long() * own.base.in_features + columns)


def test_bf16_adapters_are_bf16(model: MusicGen) -> None:
    for half, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        side = tune_sides.lora(model, SHAPE, VALUES, half=half)
        assert {p.dtype for p in side.model.parameters() if p.requires_grad} == {dtype}


def test_a_shape_of_random_weights_has_the_size_it_says() -> None:
    shape = Shape(batch=1, tokens=4, rank=1, layers=2, width=32, heads=2)
    model = tune_sides.build_model(shape, torch.device("cpu"))
    layers = [name for name, part in model.backbone.named_modules() if name.endswith(".fc1")]
    assert len(layers) == 2
    assert model.backbone.get_submodule(layers[0]).weight.shape == (128, 32)
    assert model.nll(tune_sides.build_batch(model, 1, 4)).isfinite().all()


# --- the command ---


def test_rows_sides_and_page_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "tune.json", tmp_path / "tune.md"
    options = ["--shape", "toy", "--repeats", "1", "--tokens", "6", "--batch", "1", "--profile"]
    assert run("--json", str(file), "--page", str(page), *options) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    rows = document["rows"]
    assert {"case", "ours", "peer", "peer_name", "ratio", "unit", "target", "met"} <= set(rows[0])
    peers = {row["peer_name"] for row in rows if "time of a step" in row["case"]}
    assert peers == {"peft LoRA", "peft LoRA, bf16 adapters", "full fine-tuning", "peft SHiRA"}
    for row in rows:
        if row["unit"] == "ms":
            assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
            assert row["met"] is (row["ratio"] >= float(row["target"].removeprefix("ratio >= ")))
    sides = {(side["layers"], side["name"]): side for side in document["sides"]}
    elements = sides["value projections", "pivotal elements"]
    assert elements["state"] == 12 * elements["trained"]
    assert len(elements["wall"]) == 1
    full = sides["all linears", "full fine-tuning"]
    assert full["weight_gradients"] > sides["all linears", "pivotal columns"]["weight_gradients"]
    assert full["adapter"] == 0
    text = page.read_text(encoding="utf-8")
    assert "--shape toy --batch 1 --tokens 6 --repeats 1 --profile" in text
    assert "Where the time goes" in text
    assert "targets met" in capsys.readouterr().out


def test_one_case_needs_only_its_own_sides(tmp_path: Path) -> None:
    file = tmp_path / "tune.json"
    options = ["--shape", "toy", "--repeats", "1", "--tokens", "4", "--only", "elements"]
    assert run("--json", str(file), *options) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert [side["name"] for side in document["sides"]] == ["pivotal elements", "peft LoRA"]
    assert [side["profile"] for side in document["sides"]] == [None, None]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_command_runs_on_cuda(tmp_path: Path) -> None:
    file = tmp_path / "tune.json"
    options = ["--shape", "toy", "--repeats", "2", "--device", "cuda", "--profile"]
    assert run("--json", str(file), *options) == 0
    sides = json.loads(file.read_text(encoding="utf-8"))["sides"]
    assert all(side["peak"] > 0 and side["weight_gradients"] >= 0 for side in sides)
    full = next(side for side in sides if side["name"] == "full fine-tuning")
    assert full["profile"]["flops"][WEIGHT] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "huge"], "huge"),
        (["--only", "dora"], "dora"),
        (["--repeats", "0"], "repeats"),
        (["--tokens", "0"], "tokens"),
        (["--json", "."], "is a folder"),
        (["--json", "no/such/folder/x.json"], "does not exist"),
        (["--page", "no/such/folder/x.md"], "--page"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--json" not in arguments:
        arguments = ["--json", "rows.json", *arguments]
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())
