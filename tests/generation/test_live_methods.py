"""Music made with a method attached, by our engine and by transformers' ``generate``."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor

from musictune.generation import Engine, Request, Sampling
from musictune.methods import methods
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.bottleneck import Bottleneck
from musictune.methods.combined import Combined
from musictune.methods.compacter import Compacter
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.peft import Peft
from musictune.methods.prefix import Prefix
from musictune.methods.prompt import PromptTuning
from musictune.methods.relative_bias import RelativeBias
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen, _spied
from tests.methods.toys import FITTING

PROMPTS = ["a zorblax piano", "slow bright guitar", ""]
GREEDY = Sampling(top_k=1, guidance=3.0)


CASES: dict[str, TuningMethod] = {
    **{name: methods()[name].toy() for name in FITTING},
    "t5": RelativeBias("t5", distances=20, buckets=8),
    "parallel": Bottleneck(width=4, form="parallel", norms=True),
    "before": Compacter(width=4, products=2, position="before"),
    "several": Combined(
        [
            ConceptTokens.toy(),
            Bottleneck.toy(),
            Prefix.toy(),
            PromptTuning.toy(),
            RelativeBias.toy(),
        ]
    ),
    "dora": Peft("dora", {"r": 2}),
    "pissa": Peft("pissa", {"r": 2}),
    "oft": Peft("oft", {"oft_block_size": 4}),
    "rslora": Peft("rslora", {"r": 2}),
    "miss": Peft("miss", {"r": 2}),
    "vera": Peft("vera", {"r": 4}),
    "shira": Peft("shira", {"r": 2}),
    "ia3": Peft("ia3"),
    "lokr": Peft("lokr", {"r": 2}),
}
DEFAULT = {1: [*FITTING, "parallel", "before", "several"], 2: ["several"]}


def attached(case: str, channels: int) -> MusicGen:
    """What training would have moved, moved at random."""
    model, method = MusicGen.toy(channels), copy.deepcopy(CASES[case])
    codes = torch.randint(64, (1, 4 * channels, 12), generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    with torch.random.fork_rng():
        method.prepare(model, itertools.repeat(Batch(codes, torch.tensor([12]), (PROMPTS[0],))))
        method.attach(model)
        with torch.no_grad():
            for name, parameter in trained_parameters(model).items():
                loud = 1.0 if name.endswith(("gate", "embeddings", "buckets")) else 0.1
                parameter.add_(loud * torch.randn(parameter.shape))
    return model


def theirs(model: MusicGen, steps: int) -> Tensor:
    ids, mask = model.tokens(PROMPTS)
    with torch.no_grad(), _spied(model.network.audio_encoder) as decoded:
        model.network.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            guidance_scale=3.0,
            max_new_tokens=steps + 3,
        )
    return torch.stack(decoded, 2).flatten(1, 2)


def ours(model: MusicGen, steps: int, given: Tensor | None = None) -> Tensor:
    seconds = steps / model.frame_rate
    heard = [None] * len(PROMPTS) if given is None else list(given)
    asked = [
        Request(prompt, seconds, sampling=GREEDY, given=codes)
        for prompt, codes in zip(PROMPTS, heard, strict=True)
    ]
    found = dict(Engine(model, "float32").play(asked))
    return torch.stack([found[index] for index in range(len(PROMPTS))])


@pytest.mark.parametrize(
    ("case", "channels", "steps"),
    [
        *((case, channels, 60) for channels, cases in DEFAULT.items() for case in cases),
        *(
            pytest.param(case, channels, 200, marks=pytest.mark.slow)
            for channels in (1, 2)
            for case in CASES
        ),
    ],
)
def test_greedy_tokens_are_those_of_transformers(
    case: str, channels: int, steps: int, plain: dict[int, Tensor]
) -> None:
    model = attached(case, channels)
    made = ours(model, steps)
    assert torch.equal(made, theirs(model, steps))
    # Given columns are heard at once, and leave what playing them leaves.
    assert torch.equal(ours(model, steps, made[:, :, : steps // 2]), made)
    assert not torch.equal(made[0], plain[channels][0, :, :steps])


@pytest.fixture(scope="module")
def plain() -> dict[int, Tensor]:
    """Without any method."""
    return {channels: ours(MusicGen.toy(channels), 200) for channels in (1, 2)}
