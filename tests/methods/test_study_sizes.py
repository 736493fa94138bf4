"""As many weights as in the study of adapters for AST (Cappellazzo et al. 2023, arXiv 2312.03694).

On the real AST-base shape with random weights.
"""

from __future__ import annotations

import copy
import functools

import pytest

from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.bitfit import BitFit
from musictune.methods.bottleneck import Bottleneck
from musictune.methods.compacter import Compacter
from musictune.methods.convolution import Convolution
from musictune.methods.deep_prompt import DeepPrompt
from musictune.methods.linear_probe import LinearProbe
from musictune.methods.peft import Peft
from musictune.methods.prefix import Prefix
from musictune.methods.shallow_prompt import ShallowPrompt
from musictune.methods.soft_moa import SoftMoa
from musictune.models.classifier import Classifier


@functools.cache
def shape() -> Classifier:
    from transformers import ASTConfig, ASTForAudioClassification

    network = ASTForAudioClassification(ASTConfig())
    return Classifier(network, Classifier.toy().front, "ast-base", 10.24)


def count(method: TuningMethod) -> int:
    model = shape()
    method.attach(model)
    try:
        counted = sum(p.numel() for p in trained_parameters(model).values())
        assert counted == method.describe()["trained_parameters"]
    finally:
        method.detach(model)
    return counted


def labels(classes: int) -> list[str]:
    return [str(number) for number in range(classes)]


STUDY: dict[str, tuple[TuningMethod, int]] = {
    "bottleneck-pfeiffer": (Bottleneck(), 249_000),
    "bottleneck-houlsby": (Bottleneck(configuration="houlsby"), 498_000),
    "convolution-pfeiffer": (Convolution(), 271_000),
    "convolution-houlsby": (Convolution(configuration="houlsby"), 542_000),
    "lora": (Peft("lora", {"r": 6}, "query,value"), 221_000),
    "bitfit": (BitFit(), 102_000),
    "shallow prompt": (ShallowPrompt(300), 230_000),
    "deep prompt": (DeepPrompt(25), 230_000),
    "prefix": (Prefix(12), 221_000),  # the study's 24 are half keys, half values
}


def test_the_shape_is_that_of_the_study() -> None:
    assert sum(p.numel() for p in shape().backbone.parameters()) == pytest.approx(86e6, rel=0.01)


@pytest.mark.parametrize("name", STUDY)
def test_a_method_has_as_many_weights_as_in_the_study(name: str) -> None:
    method, expected = STUDY[name]
    assert count(copy.deepcopy(method)) == pytest.approx(expected, rel=0.01)


def test_a_linear_probe_has_as_many_weights_as_in_the_study() -> None:
    """Printed in whole thousands: 9K for 10 classes, 40K for 50."""
    found = [count(LinearProbe(labels(classes))) for classes in (10, 50)]
    assert [round(each / 1000) for each in found] == [9, 40]


def test_sizes_written_out() -> None:
    wide, norm = 768, 2 * 768
    bottleneck = 2 * wide * 12 + 12 + wide + norm
    assert count(Bottleneck()) == 12 * bottleneck + norm
    convolution = wide * 16 + 16 + 8 * 8 + 8 + 16 + 8 * wide + wide + 2 * norm
    assert count(Convolution()) == 12 * convolution + norm
    compacter = 2 * (24 + wide) + 24 + wide + norm
    assert count(Compacter()) == 12 * compacter + norm + 4**3
    mixture = 7 * (2 * wide * 6 + 6 + wide) + 7 * wide + norm
    assert count(SoftMoa()) == 12 * mixture + norm
