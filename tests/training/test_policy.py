"""The policy's likelihood, divergence and reference, against plain torch and the model's loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from musictune.methods import methods
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.policy import Reference, clip_likelihood, likelihood, part_of


def music(model: MusicGen, lengths: tuple[int, ...] = (7, 5)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (len(lengths), model.codebooks, max(lengths))
    codes = torch.randint(model.vocabulary, shape, generator=generator)
    return Batch(codes, torch.tensor(lengths), ("slow piano", "")[: len(lengths)])


@torch.no_grad()
def moved(model: MusicGen, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in trained_parameters(model).values():
        weight += 0.3 * torch.randn(weight.shape, generator=generator)


def attached(name: str = "lora") -> tuple[MusicGen, TuningMethod]:
    from musictune.methods.peft import Peft

    model = MusicGen.toy()
    method = Peft(kind="lora") if name == "lora" else methods()[name].toy()
    method.prepare(model, iter([music(model)] * 100))
    method.attach(model)
    return model, method


def test_tokens_sum_to_the_models_own_loss() -> None:
    model = MusicGen.toy()
    batch = music(model)
    found = likelihood(model, batch)
    whole, count = clip_likelihood(model, batch)
    assert count.tolist() == [7 * model.codebooks, 5 * model.codebooks]
    assert found.mask.flatten(1).sum(1).tolist() == count.tolist()
    torch.testing.assert_close(found.tokens.flatten(1).sum(1), whole, rtol=1e-5, atol=1e-4)
    assert not found.kl.any()
    assert (found.tokens[~found.mask] == 0).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_divergence_and_entropy_are_those_of_torch_and_so_are_gradients(guidance: float) -> None:
    model, method = attached()
    moved(model)
    batch = music(model)
    reference = Reference(model, method)
    weights = [torch.rand(2, model.codebooks, 10, dtype=torch.float64) for _ in range(2)]

    def plain() -> tuple[torch.Tensor, ...]:
        """All of it from whole distributions, by library calls alone."""
        inputs, targets, mask = model.delay(batch.codes, batch.lengths, model.pad)

        def scores(texts: tuple[str, ...]) -> torch.Tensor:
            states, heard = model.condition(texts)
            logits = model.backbone(
                input_ids=inputs.flatten(0, 1), encoder_hidden_states=states,
                encoder_attention_mask=heard,
            ).logits  # fmt: skip
            return logits.double().unflatten(0, (2, model.codebooks))

        def both() -> torch.Tensor:
            if guidance == 1:
                return scores(batch.texts)
            null = scores(("", ""))
            return null + guidance * (scores(batch.texts) - null)

        now = both()
        with torch.no_grad(), method.disabled(model):
            before = both()
        picked = F.cross_entropy(
            now.flatten(0, 2), targets.masked_fill(~mask, 0).flatten(), reduction="none"
        )
        kl = F.kl_div(
            before.log_softmax(-1), now.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        entropy = torch.distributions.Categorical(logits=now).entropy()
        return -picked.view_as(targets), kl, entropy, mask

    found = likelihood(model, batch, reference, guidance)
    tokens, kl, entropy, mask = plain()
    for ours, theirs in ((found.tokens, tokens), (found.kl, kl), (found.entropy, entropy)):
        torch.testing.assert_close(ours[mask].double(), theirs[mask], rtol=1e-4, atol=1e-5)
    assert float(found.kl[mask].detach().mean()) > 1e-3
    own = list(trained_parameters(model).values())

    def slopes(tokens: torch.Tensor, kl: torch.Tensor) -> list[torch.Tensor]:
        steps = tokens.shape[-1]
        value = (tokens.double() * weights[0][..., :steps] * mask).sum()
        value = value + (kl.double() * weights[1][..., :steps] * mask).sum()
        return list(torch.autograd.grad(value, own))

    for ours, theirs in zip(slopes(found.tokens, found.kl), slopes(tokens, kl), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


def test_padding_and_neighbours_change_nothing() -> None:
    model = MusicGen.toy()
    batch = music(model)
    both, alone = likelihood(model, batch), likelihood(model, part_of(batch, [1]))
    steps = int(alone.mask.any(1)[0].sum())
    torch.testing.assert_close(
        both.tokens[1, :, :steps], alone.tokens[0, :, :steps], rtol=1e-4, atol=1e-5
    )
    codes = batch.codes.clone()
    codes[1, :, 5:] = 3
    other = likelihood(model, Batch(codes, batch.lengths, batch.texts))
    torch.testing.assert_close(other.tokens, both.tokens)


@pytest.mark.parametrize("name", ["lora", "pivotal", "prefix"])
def test_a_fresh_method_is_its_own_reference_and_a_mark_moves_it(name: str, tmp_path: Path) -> None:
    model, method = attached(name)
    batch, reference = music(model), Reference(model, method)
    assert float(likelihood(model, batch, reference).kl.abs().max()) < 1e-5
    moved(model)
    apart = float(likelihood(model, batch, reference).kl.sum())
    assert apart > 1e-3
    reference.save(tmp_path)
    assert not list(tmp_path.iterdir()), "the base needs no file"
    before = {name: weight.clone() for name, weight in trained_parameters(model).items()}
    reference.mark()
    assert float(likelihood(model, batch, reference).kl.abs().max()) < 1e-5
    moved(model, seed=1)
    now = {name: weight.clone() for name, weight in trained_parameters(model).items()}
    with reference():
        assert all(torch.equal(w, before[n]) for n, w in trained_parameters(model).items())
        assert not torch.is_grad_enabled()
    assert all(torch.equal(w, now[n]) for n, w in trained_parameters(model).items())
    reference.save(tmp_path)
    again = Reference(model, method)
    again.load(tmp_path)
    assert torch.equal(likelihood(model, batch, again).kl, likelihood(model, batch, reference).kl)


def test_an_error_inside_the_reference_leaves_the_policy_as_it_was() -> None:
    model, method = attached()
    reference = Reference(model, method, fresh=False)
    moved(model)
    now = {name: weight.clone() for name, weight in trained_parameters(model).items()}
    with pytest.raises(KeyboardInterrupt), reference():
        raise KeyboardInterrupt
    assert all(torch.equal(w, now[n]) for n, w in trained_parameters(model).items())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_the_engine_plays_is_drawn_from_the_policy_that_is_weighed(guidance: float) -> None:
    """Of what is drawn from p, log p is minus the entropy on the mean, at every token."""
    from musictune.generation import Engine, Sampling

    model, _ = attached()
    moved(model)
    with torch.no_grad():
        for weight in model.backbone.lm_heads.parameters():
            weight *= 4  # far from even, so that another policy would be told
    made, _ = Engine(model, "float32").rollout(
        ["slow piano"] * 48, 0.5, 0, Sampling(top_k=0, guidance=guidance), batch=48
    )

    def gap(guidance: float) -> float:
        """Deviations from zero of the mean of log p plus entropy."""
        with torch.no_grad():
            found = likelihood(model, made, None, guidance)
        excess = (found.tokens + found.entropy)[found.mask]
        return float(excess.mean() / excess.std() * len(excess) ** 0.5)

    assert abs(gap(guidance)) < 3.5
    assert abs(gap(4.0 - guidance)) > 8, "another policy is told from it"
