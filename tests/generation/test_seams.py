"""Figures at places where windows were joined, and what stands out of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musictune.generation import seams
from musictune.generation.likelihood import frame_nll
from musictune.generation.seams import Seam, SeamJudge, deviations, sound_figures
from musictune.models.base import Batch
from musictune.models.melody import MusicGenMelody
from musictune.models.musicgen import MusicGen

TOYS = {channels: MusicGen.toy(channels) for channels in (1, 2)}


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return TOYS[1]


def codes(frames: int, seed: int = 0, books: int = 4) -> Tensor:
    return torch.randint(64, (books, frames), generator=torch.Generator().manual_seed(seed))


def noise(frames: int, level: Tensor | float = 0.01, seed: int = 0) -> Tensor:
    """Power spectra of noise."""
    generator = torch.Generator().manual_seed(seed)
    return (0.5 + torch.rand(frames, 513, generator=generator)) * level


def heard(monkeypatch: pytest.MonkeyPatch, power: Tensor) -> None:
    """The codec gives ``power``, of which the end is what the codes asked for are."""
    monkeypatch.setattr(seams, "_power", lambda model, part: power[-part.shape[1] :])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 30), st.sampled_from(["", "slow piano"]), st.sampled_from([1, 2]))
def test_likelihoods_of_frames_have_the_mean_that_the_loss_is(
    frames: int, prompt: str, channels: int
) -> None:
    model = TOYS[channels]
    music = codes(frames, books=model.codebooks)
    each = frame_nll(model, music, prompt)
    whole = model.nll(Batch(music[None], torch.tensor([frames]), (prompt,)))
    assert each.shape == (frames,)
    torch.testing.assert_close(each.mean(), whole[0].cpu(), rtol=1e-5, atol=1e-5)


def test_likelihood_of_a_frame_does_not_know_what_follows(model: MusicGen) -> None:
    long = codes(40)
    short = frame_nll(model, long[:, :30], "slow piano")
    # The last frames' upper codebooks come after the next frames' lower ones.
    torch.testing.assert_close(short[:27], frame_nll(model, long, "slow piano")[:27])


def test_likelihood_leaves_the_model_training() -> None:
    model = MusicGenMelody.toy()
    model.train()
    frame_nll(model, codes(9), "slow piano")
    assert model.training


@given(st.lists(st.floats(-50, 50), min_size=8, max_size=40), st.floats(-50, 50), st.floats(-9, 9))
def test_deviations_move_with_the_music(others: list[float], own: float, shift: float) -> None:
    one = deviations({"nll": own}, [{"nll": each} for each in others])
    two = deviations({"nll": own + shift}, [{"nll": each + shift} for each in others])
    assert one["nll"] == pytest.approx(two["nll"], abs=0.05 + 1e-4 * abs(one["nll"]))


def test_deviations_are_robust_and_need_enough_places() -> None:
    others = [{"mel": float(value)} for value in (1, 2, 3, 4, 5, 6, 7, 1000)]
    # Median (the lower of two) 4, median distance 2.
    assert deviations({"mel": 10.0}, others) == {"mel": round(6 / (1.4826 * 2), 2)}
    assert deviations({"mel": 10.0}, others[1:]) == {}
    assert deviations({"mel": 10.0, "nll": 1.0}, others).keys() == {"mel"}


def test_equal_places_do_not_make_a_small_step_stand_out() -> None:
    (found,) = deviations({"level": 0.4}, [{"level": 0.0}] * 20).values()
    assert 0 < found < seams.OUTLIER


@pytest.mark.parametrize(
    ("jump", "figure", "stands_out"), [(1.0, "level", False), (30.0, "level", True)]
)
def test_a_jump_of_level_stands_out(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch, jump: float, figure: str, stands_out: bool
) -> None:
    gain = torch.ones(300, 1)
    gain[200:] = jump
    heard(monkeypatch, noise(300) * gain)
    seam, _ = SeamJudge(model, "", 100).judge(codes(300), 200)
    assert (seam.deviations[figure] > seams.OUTLIER) is stands_out
    assert seam.stands_out is stands_out


def test_another_sound_of_the_same_level_stands_out(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = noise(300)
    power[200:] = power[200:].roll(200, 1) * torch.linspace(2, 0.1, 513)
    power /= power.sum(1, keepdim=True)
    heard(monkeypatch, power)
    seam, _ = SeamJudge(model, "", 100).judge(codes(300), 200)
    assert seam.deviations["mel"] > seams.OUTLIER > seam.deviations["level"]
    assert seam.stands_out and seam.worst == max(seam.deviations.values())


def test_what_is_unlikely_stands_out(model: MusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    heard(monkeypatch, noise(300))
    steady = 2 + torch.rand(250) * 0.1
    steady[200:] += 3
    monkeypatch.setattr(seams, "frame_nll", lambda *_: steady)
    seam, _ = SeamJudge(model, "", 200).judge(codes(250), 200)
    assert seam.figures["nll"] == pytest.approx(5.05, abs=0.1)
    assert seam.deviations["nll"] > seams.OUTLIER


def test_silence_and_a_held_token_are_collapses(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard(monkeypatch, noise(300))
    held = codes(300)
    held[:, 200:] = held[:, 199:200]
    assert SeamJudge(model, "", 100).judge(held, 200)[0].collapsed
    power = noise(300)
    power[200:] = 1e-12
    heard(monkeypatch, power)
    seam, _ = SeamJudge(model, "", 100).judge(codes(300), 200)
    assert seam.collapsed and seam.worst == float("inf") and seam.stands_out
    few, _ = SeamJudge(model, "", 100).judge(
        held[:, :210], 200
    )  # a fifth of a second: maybe a rest
    assert not few.collapsed


def test_a_seam_is_compared_with_all_places_since_the_beginning(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard(monkeypatch, noise(800))
    judge = SeamJudge(model, "", 100)
    first, around = judge.judge(codes(300), 200)
    judge.accept(200, around)
    second, later = judge.judge(codes(700), 600)
    assert first.places == len(around) and second.places == len(around) + len(later)
    assert (first.second, second.second) == (4.0, 12.0)
    again, _ = judge.judge(codes(700), 600)
    assert again == second  # a rejected draw leaves nothing behind


def test_a_verdict_is_the_same_again_and_whole(model: MusicGen) -> None:
    music = codes(300)
    alone, _ = SeamJudge(model, "flute", 150).judge(music[:, :250], 200)
    assert SeamJudge(model, "flute", 150).judge(music[:, :250].clone(), 200)[0] == alone
    assert alone.figures.keys() == {"level", "flux", "mel", "nll"} == alone.deviations.keys()


def test_too_little_music_says_nothing(model: MusicGen) -> None:
    seam, around = SeamJudge(model, "", 10).judge(codes(13), 10)
    assert seam.deviations == {} and around == [] and not seam.stands_out
    first, _ = SeamJudge(model, "", 10).judge(codes(3), 1)
    assert not first.stands_out


def test_the_power_of_a_tone_lies_in_its_band_and_is_its_power(model: MusicGen) -> None:
    class Played(MusicGen):
        def decode(self, batch: Batch) -> list:
            time = torch.arange(16_000) / 16_000
            return [self._clip(0.5 * torch.sin(2 * torch.pi * 1000 * time)[None], "")]

    played = Played(model.network, model.tokenizer, "toy")
    power = seams._power(played, codes(50))
    assert power.shape == (51, 513)
    assert float(power[10:40].sum(1).mean()) == pytest.approx(0.125, rel=0.01)
    bands = (power[25] @ seams._mel_filters(513, 16_000)).argmax()
    share = (2595 * torch.log10(torch.tensor(1 + 1000 / 700)) - 61.8) / (2731.3 - 61.8)
    assert abs(float(share) * 41 - 1 - int(bands)) <= 1
    assert seams._mel_filters(513, 16_000).sum(0).min() > 0


@pytest.mark.slow
def test_the_bundled_codec_spares_the_phase() -> None:
    """Its own spectra say what an analysis of the decoded wave says, roughly: phases must fit."""
    model = MusicGen.load("mini")
    music = torch.randint(model.vocabulary, (4, 100), generator=torch.Generator().manual_seed(0))
    direct = seams._power(model, music)
    (clip,) = model.decode(Batch(music[None], torch.tensor([100]), ("",)))
    whole = float(clip.wave.square().mean())
    assert float(direct.sum(1).mean()) == pytest.approx(whole, rel=0.5)
    assert len(sound_figures(model, music, torch.tensor([40]))[40]) == 3


def test_seams_are_plain_facts() -> None:
    seam = Seam(1.0, {"level": 2.0}, {}, 0)
    assert seam.worst == 0.0 and not seam.stands_out
