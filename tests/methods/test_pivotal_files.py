"""What a saved pivotal delta is refused for, and that older ones still load."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musictune.errors import InputError
from musictune.methods.pivotal import Pivotal
from musictune.methods.sparse import SelectedLinear
from musictune.methods.storage import load_tensors, save_tensors
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from tests.methods.toys import base, toy


def batch() -> Batch:
    codes = torch.randint(0, 64, (2, 4, 8), generator=torch.Generator().manual_seed(0))
    return Batch(codes, torch.tensor([8, 6]), ("slow piano", "guitar"))


def output(model: MusicGen) -> Tensor:
    with torch.no_grad():
        return model.nll(batch())


def saved(folder: Path) -> MusicGen:
    """A model with random changes of 0.1 of its attention weights, which are in ``folder``."""
    model, method = toy(), Pivotal(fraction=0.1, selection="random")
    method.prepare(model, itertools.repeat(batch()))
    method.attach(model)
    with torch.no_grad():
        for layer in method.layers.values():
            layer.values.normal_(generator=torch.Generator().manual_seed(1))
    method.save(model, folder)
    return model


def test_an_adapter_of_before_there_were_kinds_loads_as_elements(tmp_path: Path) -> None:
    model = saved(tmp_path)
    path = tmp_path / "pivotal.json"
    layers = json.loads(path.read_text())["layers"]
    old = {
        "options": {
            "fraction": 0.1, "rounds": 2, "probe_steps": 3, "probe_lr": 1e-3, "targets": None,
            "scope": "global",
        },
        "shapes": {name: entry["shape"] for name, entry in layers.items()},
    }  # fmt: skip
    path.write_text(json.dumps(old))
    fresh = toy()
    Pivotal.load(fresh, tmp_path)
    assert torch.equal(output(fresh), output(model))
    assert not torch.equal(output(fresh), output(base()))


Change = Callable[[dict[str, Tensor], dict[str, Any], str], None]


def negative(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.indices"][0] = -1


def too_large(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.indices"][-1] = 256


def unsorted(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.indices"] = tensors[f"{name}.indices"].flip(0)


def repeated(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.indices"][1] = tensors[f"{name}.indices"][0]


def wide(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.indices"] = tensors[f"{name}.indices"].long()


def none_chosen(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.indices"] = torch.zeros(0, dtype=torch.int32)


def missing(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    del tensors[f"{name}.values"]


def not_a_number(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.values"][0] = float("nan")


def too_few(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    tensors[f"{name}.values"] = tensors[f"{name}.values"][:-1]


def other_kind(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    config["layers"][name]["kind"] = "rows"


def unknown_kind(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    config["layers"][name]["kind"] = "diagonals"


def no_kind(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    config["layers"] = [name]


def no_layers(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    config["layers"] = {}


def other_shape(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    config["layers"][name]["shape"] = [16, 24]


def bad_option(tensors: dict[str, Tensor], config: dict[str, Any], name: str) -> None:
    config["options"]["code"] = "os.system"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (negative, "indices that are unsorted, repeated or outside 0 to 255"),
        (too_large, "outside 0 to 255"),
        (unsorted, "unsorted"),
        (repeated, "repeated"),
        (wide, "no list of int32"),
        (none_chosen, "no list of int32"),
        (missing, "no indices or values"),
        (not_a_number, "no numbers"),
        (too_few, "values of shape"),
        (other_kind, "damaged"),
        (unknown_kind, "kind 'diagonals'"),
        (no_kind, "names no layers"),
        (no_layers, "changes no layer"),
        (other_shape, r"made for another base: it has no .* of \[16, 24\]"),
        (bad_option, "bad options"),
    ],
)
def test_a_damaged_or_foreign_delta_is_one_clear_line_and_leaves_the_model(
    change: Change, says: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    tensors = load_tensors(tmp_path / "pivotal.safetensors")
    config = json.loads((tmp_path / "pivotal.json").read_text())
    change(tensors, config, list(config["layers"])[-1])
    save_tensors(tensors, tmp_path / "pivotal.safetensors")
    (tmp_path / "pivotal.json").write_text(json.dumps(config))
    fresh = toy()
    with pytest.raises(InputError, match=says) as caught:
        Pivotal.load(fresh, tmp_path)
    assert "\n" not in str(caught.value)
    assert not any(isinstance(module, SelectedLinear) for module in fresh.modules())
    assert torch.equal(output(fresh), output(base()))
