"""Nobody has to trust the engine blindly: the same music as transformers' ``generate``."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2_contingency
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig
from transformers.models.musicgen.modeling_musicgen import MusicgenForCausalLM

from musictune.generation import Engine, Request, Sampling
from musictune.models.musicgen import MusicGen, _spied


def shaped(layers: int, width: int, heads: int, channels: int) -> MusicGen:
    """A toy with another decoder, long enough for 30 s at 50 Hz."""
    model = MusicGen.toy(channels)
    fields = model.network.config.decoder.to_dict() | {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "ffn_dim": 4 * width, "max_position_embeddings": 2048,
    }  # fmt: skip
    config = MusicgenDecoderConfig(**fields)
    torch.manual_seed(layers)
    model.network.decoder = MusicgenForCausalLM(config).eval()
    model.network.config.decoder = config
    model.network.enc_to_dec_proj = torch.nn.Linear(12, width)
    model.max_seconds = 30.0
    return model


def theirs(model: MusicGen, prompts: list[str], frames: int, **options: object) -> torch.Tensor:
    ids, mask = model.tokens(prompts)
    with _spied(model.network.audio_encoder) as decoded:
        model.network.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=frames + 3, **options
        )
    return torch.stack(decoded, 2).flatten(1, 2)


@torch.no_grad()
def gap(model: MusicGen, prompt: str, ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far apart, of the largest guided score, the tokens are where music first parts."""
    lengths = torch.tensor([ours.shape[1]])
    inputs, targets, _ = model.delay(wanted[None], lengths, model.pad)
    _, others, _ = model.delay(ours[None], lengths, model.pad)
    step = int((targets != others)[0].any(0).float().argmax())
    (book,) = (targets != others)[0, :, step].nonzero()[0].tolist()
    states, heard = model.condition([prompt])
    scores = [
        model.backbone(
            input_ids=inputs[0, :, : step + 1], encoder_hidden_states=given,
            encoder_attention_mask=mask,
        ).logits[book, step]
        for given, mask in ((states, heard), (states * 0, heard * 0))
    ]  # fmt: skip
    guided = scores[1] + 3 * (scores[0] - scores[1])
    pair = guided[[int(targets[0, book, step]), int(others[0, book, step])]]
    size = float(guided.abs().max())
    assert float(guided.max()) - float(pair.max()) < 5e-6 * size
    return abs(float(pair[0] - pair[1])) / size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "width", "heads", "channels"),
    [(2, 48, 4, 1), (5, 64, 2, 1), (3, 96, 3, 2), (1, 128, 8, 2)],
)
def test_greedy_tokens_over_1500_steps(layers: int, width: int, heads: int, channels: int) -> None:
    model = shaped(layers, width, heads, channels)
    prompts = ["slow piano", "", "fast drums, bright and loud"]
    wanted = theirs(model, prompts, 1500, do_sample=False, guidance_scale=3.0)
    made, _ = Engine(model, "float32").rollout(prompts, 30.0, 0, Sampling(top_k=1))
    assert made.codes.shape[-1] == 1500
    for index, prompt in enumerate(prompts):
        if not torch.equal(made.codes[index], wanted[index]):
            # Of 36,000 choices some are between scores that rounding alone tells apart.
            assert gap(model, prompt, made.codes[index], wanted[index]) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [["slow piano"], ["a calm harp", "fast drums and bass"]])
def test_greedy_tokens_of_the_bundled_base(prompts: list[str]) -> None:
    model = MusicGen.load("mini")
    frames = model.frames(model.max_seconds)
    wanted = theirs(model, prompts, frames, do_sample=False, guidance_scale=3.0)
    made, _ = Engine(model, "float32").rollout(prompts, model.max_seconds, 0, Sampling(top_k=1))
    assert torch.equal(made.codes, wanted)


@pytest.mark.parametrize(
    ("guidance", "top_k", "temperature"),
    [
        (2.0, 20, 1.5),
        pytest.param(3.0, 250, 1.0, marks=pytest.mark.slow),
        pytest.param(1.0, 12, 1.0, marks=pytest.mark.slow),
    ],
)
def test_sampled_tokens_have_the_same_distribution(
    guidance: float, top_k: int, temperature: float
) -> None:
    """Joint over two codebooks of one frame, which depend on what was drawn before."""
    model, count = MusicGen.toy(), 3000
    torch.manual_seed(0)
    wanted = theirs(
        model, ["slow piano"] * count, 4, do_sample=True, guidance_scale=guidance,
        top_k=min(top_k, 64), temperature=temperature,
    )  # fmt: skip
    engine = Engine(model, "float32")
    sampling = Sampling(temperature, top_k, guidance=guidance)
    requests = [Request("slow piano", 0.08, seed, sampling) for seed in range(count)]
    asked = engine.play(requests, batch=count)
    made = torch.stack([codes for _, codes in sorted(asked, key=lambda each: each[0])])
    for frame, first, second in ((0, 0, 1), (2, 0, 3), (3, 1, 2)):
        counts = torch.stack([
            torch.bincount(8 * (codes[:, first, frame] % 8) + codes[:, second, frame] % 8,
                           minlength=64)
            for codes in (made, wanted)
        ])  # fmt: skip
        table = counts[:, counts.sum(0) >= 10].numpy()
        assert chi2_contingency(table).pvalue > 1e-3, (frame, first, second)
