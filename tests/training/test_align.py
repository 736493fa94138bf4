"""Alignment from votes or rewards to a folder, on toys: every objective, and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import CheckFailed, InputError
from musictune.methods import load_adapter
from musictune.methods.base import trained_parameters
from musictune.methods.storage import load_tensors
from musictune.models.musicgen import MusicGen
from musictune.training.align import Towards, align
from musictune.training.align_recipe import AlignRecipe, load_align_recipe
from musictune.training.callbacks import AfterStep, read_metrics
from musictune.training.loop import Interrupted
from musictune.training.objectives import PairObjective, objectives
from musictune.training.pairs import Pairs
from musictune.training.run import Result
from musictune.training.run_folder import working_folder
from musictune.training.stepped import Stepped

pytestmark = pytest.mark.usefixtures("unpainted")

CONFIGS = Path(__file__).parents[2] / "configs"
PROMPTS = ["slow piano", "fast drums", "loud organ", "calm harp"]
PAIRED = sorted(name for name, kind in objectives().items() if issubclass(kind, PairObjective))
PLAYED = sorted(set(objectives()) - set(PAIRED))


def level(clips: Sequence[Clip]) -> Tensor:
    return torch.tensor([float(clip.wave.abs().mean()) for clip in clips])


def varied(clips: Sequence[Clip], groups: Sequence[int]) -> float:
    return float(torch.stack([clip.wave[0, :600] for clip in clips]).std(0).mean())


def pairs(count: int = 12, frames: int = 20) -> Pairs:
    """Chosen clips have low tokens, rejected ones high."""
    model, generator = MusicGen.toy(), torch.Generator().manual_seed(0)
    half = model.vocabulary // 2
    rows = torch.randint(half, (2, count, model.codebooks, frames), generator=generator)
    return Pairs(tuple(PROMPTS[i % 4] for i in range(count)), tuple(rows[0]), tuple(rows[1] + half))


def recipe(objective: str, method: str | None = "lora", **changes: object) -> AlignRecipe:
    values = {
        "training.steps": 3, "training.seconds": 0.4, "training.batch": 4, "training.lr": 0.02,
        "training.warmup": 0, "training.score_every": 2, "training.score_seeds": 2,
        "training.preview_seconds": 0.3, "training.checkpoint_every": 1, "align.pairs": 4,
        "align.samples": 2, "align.prompts_per_step": 2, "align.group": 4,
        "align.held_out_prompts": 0.25, "align.least_diversity": 0.0,
    } | changes  # fmt: skip
    return load_align_recipe(overrides=values, method=method, objective=objective)


def towards(objective: str) -> Towards:
    if objective in PAIRED:
        return Towards(pairs=pairs(), beside={"level": level}, diversity=varied)
    return Towards(PROMPTS, rewards=[level], beside={"level": level}, diversity=varied)


def run(
    objective: str, out: Path, given: Towards | None = None, *callbacks: AfterStep,
    resume: bool = False, method: str | None = "lora", **changes: object,
) -> Result:  # fmt: skip
    return align(
        MusicGen.toy(), recipe(objective, method, **changes), given or towards(objective), out,
        resume=resume, callbacks=callbacks,
    )  # fmt: skip


@pytest.mark.parametrize("objective", sorted(objectives()))
def test_every_objective_runs_and_leaves_a_whole_folder(objective: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = run(objective, out)
    assert found.folder == out
    there = {path.name for path in out.iterdir()}
    assert {"adapter", "config.yaml", "metrics.csv", "alignment.png", "README.md"} <= there
    assert not working_folder(out).exists()
    assert not (out / "checkpoints").exists()
    rows = read_metrics(out / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    watched = [row for row in rows if row["held_out_kl"]]
    assert [int(row["step"]) for row in watched] == [0, 2, 3]
    assert float(watched[0]["held_out_kl"]) < 1e-6 < float(watched[-1]["held_out_kl"])
    assert all(row["level"] and row["diversity"] and row["held_out_entropy"] for row in watched)
    if objective in PLAYED:
        assert (out / "reward_kl.png").is_file()
        assert all(row["reward"] and row["kl"] for row in rows[1:])
        assert float(rows[1]["kl"]) < 1e-6 < float(rows[3]["kl"])
    model = MusicGen.toy()
    load_adapter(model, out / "adapter")
    assert found.effect.tokens_changed > 0


@pytest.mark.parametrize("objective", sorted(set(PAIRED) - {"conditional"}))
def test_pairs_teach_what_sets_them_apart(objective: str, tmp_path: Path) -> None:
    # IPO wants a margin of a certain size, which a large step shoots past.
    rate = 0.005 if objective == "ipo" else 0.02
    slow = {"training.steps": 12, "training.score_every": 12, "training.lr": rate}
    run(objective, tmp_path / "run", **slow)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert float(rows[-1]["margin"]) > max(float(rows[1]["margin"]), 0.5)
    assert float(rows[-1]["held_out_accuracy"]) == 1.0
    assert float(rows[-1]["held_out_loss"]) < float(rows[0]["held_out_loss"])


def test_preference_tokens_tell_liked_from_disliked(tmp_path: Path) -> None:
    from musictune.training.pairs import as_batch
    from musictune.training.policy import clip_likelihood

    long = {"training.steps": 40, "training.score_every": 40, "training.token_lr": 0.1}
    out = run("conditional", tmp_path / "run", **long).folder
    model = MusicGen.toy()
    load_adapter(model, out / "adapter")
    given = pairs()
    like, _ = clip_likelihood(model, as_batch(given.chosen, ["<liked> slow piano"] * 12))
    dislike, _ = clip_likelihood(model, as_batch(given.chosen, ["<disliked> slow piano"] * 12))
    assert float((like - dislike).mean()) > 0
    assert "<liked> PROMPT" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "objective",
    [
        "rloo",
        pytest.param("grpo", marks=pytest.mark.slow),
        pytest.param("reinforce", marks=pytest.mark.slow),
    ],
)
def test_rewards_rise(objective: str, tmp_path: Path) -> None:
    long = {
        "training.steps": 20, "training.score_every": 20, "training.lr": 0.02,
        "align.group": 16, "objective.beta": 0.0, "training.batch": 32,
        "training.checkpoint_every": 0,
    }  # fmt: skip
    run(objective, tmp_path / "run", **long)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")[1:]
    rewards = [float(row["reward"]) for row in rows]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3, rewards


class Stop(AfterStep):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self, trainer: object, module: Stepped) -> None:
        if module.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("kto", {}),
        ("reinforce", {}),
        ("grpo", {"align.updates": 2, "align.target_kl": 0.01}),
        ("rloo", {"staged": True}),
    ],
    ids=["kto", "reinforce", "grpo-two-updates", "staged"],
)
def test_a_stopped_run_ends_as_one_that_was_not(
    objective: str, changes: dict[str, object], tmp_path: Path
) -> None:
    given = towards(objective)
    if changes.pop("staged", False):
        given = Towards(PROMPTS, rewards=[level, lambda clips: -level(clips)], diversity=varied)
    changes = {"training.steps": 4, **changes}
    run(objective, tmp_path / "whole", given, **changes)
    with pytest.raises(Interrupted):
        run(objective, tmp_path / "cut", given, Stop(3), **changes)
    run(objective, tmp_path / "cut", given, resume=True, **changes)
    for path in sorted((tmp_path / "whole" / "adapter").rglob("*.safetensors")):
        other = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
        ours, theirs = load_tensors(path), load_tensors(other)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), path
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "cut"))
    for row in (*one, *two):
        row.pop("seconds")
    assert one == two


def test_a_second_stage_has_its_own_reward_and_reference(tmp_path: Path) -> None:
    given = Towards(PROMPTS, rewards=[level, lambda clips: -level(clips)], diversity=varied)
    run("rloo", tmp_path / "run", given, **{"training.steps": 4, "training.score_every": 1})
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [float(row["stage"]) for row in rows[1:]] == [0, 0, 1, 1]
    assert float(rows[2]["kl"]) > 1e-6 > float(rows[3]["kl"]), "marked anew at the second stage"


def test_going_on_from_an_adapter_stays_near_to_it(tmp_path: Path) -> None:
    first = run("rloo", tmp_path / "first").folder
    with pytest.raises(InputError, match="method lora cannot go on"):
        run("rloo", tmp_path / "second", **{"align.adapter": str(first)})
    second = run("rloo", tmp_path / "second", method=None, **{"align.adapter": str(first)}).folder
    rows = read_metrics(second / "metrics.csv")
    assert float(rows[0]["held_out_kl"]) < 1e-6
    model = MusicGen.toy()
    load_adapter(model, second / "adapter")
    weights = [
        {
            f"{path.name}/{name}": value
            for path in sorted((folder / "adapter").rglob("*.safetensors"))
            for name, value in load_tensors(path).items()
        }
        for folder in (first, second)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_collapse_of_variety_ends_the_run(tmp_path: Path) -> None:
    looks: list[float] = []

    def collapsing(clips: Sequence[Clip], groups: Sequence[int]) -> float:
        looks.append(1.0 / (1 + len(looks)))
        return looks[-1]

    given = Towards(PROMPTS, rewards=[level], diversity=collapsing)
    changes = {"align.least_diversity": 0.4, "training.steps": 9, "training.score_every": 1}
    found = run("rloo", tmp_path / "run", given, **changes)
    assert found.facts["stopped_step"] == 2
    assert found.facts["kept_step"] == 1
    assert "variety" in str(found.facts["stopped_because"])


def test_pairs_are_made_by_a_reward_where_there_are_none(tmp_path: Path) -> None:
    given = Towards(PROMPTS, rewards=[level], diversity=varied)
    found = run("dpo", tmp_path / "run", given)
    assert found.facts["pairs"] == 4
    kept = Pairs.load(tmp_path / "run")
    assert kept is not None
    model = MusicGen.toy()
    for which, sign in ((kept.chosen, 1), (kept.rejected, -1)):
        assert len(which) == 4 and sign
    assert (tmp_path / "run" / "reward_kl.png").is_file()
    assert model.vocabulary > max(int(row.max()) for row in kept.chosen)


@pytest.mark.parametrize("method", ["pivotal", "ssf", "prefix"])
def test_other_methods_align_too(method: str, tmp_path: Path) -> None:
    sets = {"method.probe_steps": 2, "method.rounds": 1} if method == "pivotal" else {}
    found = run("rloo", tmp_path / "run", method=method, **sets)
    assert found.effect.tokens_changed > 0


# --- what can go wrong ---


def broken(clips: Sequence[Clip]) -> Tensor:
    raise ZeroDivisionError("by design")


def no_number(clips: Sequence[Clip]) -> Tensor:
    return torch.full((len(clips),), torch.nan)


def constant(clips: Sequence[Clip]) -> Tensor:
    return torch.ones(len(clips))


@pytest.mark.parametrize(
    ("reward", "error", "said"),
    [
        (broken, CheckFailed, "ZeroDivisionError: by design"),
        (no_number, (CheckFailed, InputError), "nan"),
        (constant, InputError, "constant"),
    ],
)
def test_rewards_that_are_none_are_said_and_nothing_is_left(
    reward: Callable[[Sequence[Clip]], Tensor], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=f"(?i){said}"):
        run("rloo", tmp_path / "run", Towards(PROMPTS, rewards=[reward]))
    assert not list(tmp_path.iterdir())


def test_a_reward_that_breaks_later_keeps_the_checkpoint(tmp_path: Path) -> None:
    heard = 0

    def later(clips: Sequence[Clip]) -> Tensor:
        nonlocal heard
        heard += 1
        return level(clips) if heard < 5 else no_number(clips)

    with pytest.raises(CheckFailed, match="nan"):
        run("rloo", tmp_path / "run", Towards(PROMPTS, rewards=[later]))
    assert list((working_folder(tmp_path / "run") / "checkpoints").glob("step-*"))
    run("rloo", tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "adapter").is_dir()


def test_equal_rewards_within_a_step_teach_nothing_but_break_nothing(tmp_path: Path) -> None:
    first = True

    def rounded(clips: Sequence[Clip]) -> Tensor:
        nonlocal first
        was, first = first, False
        return level(clips) if was else torch.zeros(len(clips))

    given = Towards(PROMPTS, rewards=[rounded])
    with pytest.raises(CheckFailed, match="changes nothing"):
        run("grpo", tmp_path / "run", given, **{"objective.beta": 0.0})


@pytest.mark.parametrize(
    ("objective", "given", "said"),
    [
        ("rloo", Towards(pairs=pairs()), "learns from rewards, not from votes"),
        ("rloo", Towards(PROMPTS), "needs --reward and --prompts"),
        ("dpo", Towards(), "needs --votes"),
        ("dpo", Towards(PROMPTS, rewards=[constant]), "constant"),
    ],
)
def test_what_does_not_fit_the_objective_is_refused(
    objective: str, given: Towards, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        run(objective, tmp_path / "run", given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"align.group": 0}, "group 0"),
        ({"align.guidance": 0.5}, "guidance 0.5"),
        ({"align.target_kl": -1}, "target_kl -1"),
        ({"align.first": 1.0}, "first 1.0"),
        ({"align.samples": 1}, "samples 1"),
        ({"align.then": ["quality"]}, "second stage"),
        ({"training.batch": 3}, "do not divide"),
        ({"training.accumulate": 2}, "leave it at 1"),
        ({"run.concept": "zorblax"}, "musictune tune"),
        ({"training.optimizer": "mezo"}, "mezo"),
        ({"objective.beta": -1}, "beta"),
    ],
)
def test_bad_settings_are_one_line(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        recipe("rloo", **changes)
    assert "\n" not in str(refused.value)


def test_an_objective_has_its_own_numbers_not_those_of_the_default() -> None:
    assert load_align_recipe().objective.name == "dpo"
    for name, kind in objectives().items():
        ours = vars(load_align_recipe(objective=name).objective)
        assert ours == vars(kind()), name


def test_an_unknown_objective_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"dpo.*rloo"):
        recipe("ppo")


def test_the_recipe_of_a_run_gives_the_run_again(tmp_path: Path) -> None:
    out = run("grpo", tmp_path / "run").folder
    again = load_align_recipe([out / "config.yaml"])
    assert again.text == (out / "config.yaml").read_text(encoding="utf-8")
    assert again.objective.name == "grpo"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("align_*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_finishes_two_steps(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert text.startswith("# musictune align ")
    values = {
        "training.steps": 2, "training.seconds": 0.4, "align.held_out_prompts": 0.25,
        "training.preview_seconds": 0.3, "training.score_seeds": 1, "training.lr": 0.02,
        "training.patience": 0,
    }  # fmt: skip
    read = load_align_recipe([path], overrides=values, method="lora")
    given = towards(read.objective.name)
    if "--then" in text.splitlines()[0]:
        given = Towards(PROMPTS, rewards=[level, lambda clips: -level(clips)])
    found = align(MusicGen.toy(), read, given, tmp_path / "run")
    assert found.effect.tokens_changed > 0


def test_kept_scales_are_plain_json(tmp_path: Path) -> None:
    out = run("rloo", tmp_path / "run").folder
    stages = json.loads((out / "scales.json").read_text(encoding="utf-8"))["stages"]
    assert set(stages[0]["reward"]) == {"mean", "deviation", "unknown"}
    model = MusicGen.toy()
    assert trained_parameters(model)
