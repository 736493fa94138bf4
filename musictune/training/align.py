"""A whole alignment: votes or rewards in; out comes an adapter, its figures and its card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import IterableDataset

from musictune import audio, console
from musictune.data.concepts import plain
from musictune.data.preferences import Comparison
from musictune.data.tokens import epoch_order
from musictune.errors import InputError
from musictune.generation import Sampling
from musictune.methods import attach_adapter, save_adapter
from musictune.methods.adapter import adapter_folder
from musictune.methods.base import TuningMethod
from musictune.metrics.base import Reward
from musictune.models.base import Batch
from musictune.models.musicgen import MusicGen
from musictune.training.align_card import draw_alignment, draw_trade, write_align_card
from musictune.training.align_recipe import AlignRecipe, marks_of
from musictune.training.best import find_best, publish_best
from musictune.training.callbacks import Previews, read_metrics
from musictune.training.checkpoints import Checkpoint, load_checkpoint
from musictune.training.effect import measure_effect
from musictune.training.loop import fit
from musictune.training.objectives import PairObjective, RolloutObjective
from musictune.training.pairs import Pairs, PairStream, as_batch, made_pairs, pairs_of
from musictune.training.policy import Reference
from musictune.training.preference import Preference
from musictune.training.previews import Player, preview_seconds
from musictune.training.reinforce import Reinforce
from musictune.training.rounds import Parts, Rollouts
from musictune.training.run import Result, peak_memory, save_memory, stopped, summary
from musictune.training.run_folder import check_run, own_base, published
from musictune.training.scales import on_one_scale
from musictune.training.tuning import Tuning
from musictune.training.watch import Diversity, Watch

_WATCHED = 8  # prompts; each is played several times at every look
_HEARD = 32  # clips of the untrained model that rewards are scaled on


@dataclass(frozen=True)
class Towards:
    """What a model is aligned to.

    Attributes:
        prompts: to play and to score with; those of the comparisons if empty.
        comparisons: what people preferred.
        pairs: the same as tokens, where they are known.
        rewards: one per stage; none for people's votes alone.
        beside: what is measured and not rewarded, by name.
        diversity: how varied clips of one prompt are.
    """

    prompts: Sequence[str] = ()
    comparisons: Sequence[Comparison] = ()
    pairs: Pairs | None = None
    rewards: Sequence[Reward] = ()
    beside: Mapping[str, Reward] = field(default_factory=dict)
    diversity: Diversity | None = None


def check_align(
    out: Path, recipe: AlignRecipe, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Refuse, before any work, an output that would lose something.

    Raises:
        InputError: as by `musictune.training.run_folder.check_run`.
    """
    align = recipe.align
    reads = [*align.votes, *own_base(recipe)]
    reads += [path for path in (align.prompts, align.adapter, align.reference) if path]
    check_run(out, recipe.text, reads, resume=resume, overwrite=overwrite)


def align(
    model: MusicGen,
    recipe: AlignRecipe,
    towards: Towards,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[pl.Callback] = (),
    report: bool = True,
) -> Result:
    """Align ``model`` and publish the run as ``out``.

    Args:
        model: an untouched base; has the adapter attached afterwards.
        recipe: by which objective, how long, how far.
        towards: votes or rewards, and prompts.
        out: the run's folder; made beside it and renamed at the end.
        resume: go on from the newest checkpoint.
        overwrite: replace ``out`` and an interrupted run.
        callbacks: for the training loop.
        report: also draw curves and write the card.

    Raises:
        InputError: nothing to learn from, or it does not fit the objective.
        CheckFailed: a loss, gradient or reward was no number, or the adapter has no effect.
        Interrupted: stopped on request; ``resume`` goes on.
    """
    out = out.absolute()
    check_align(out, recipe, resume=resume, overwrite=overwrite)
    _check_towards(recipe, towards)
    made = published(
        out,
        recipe.text,
        resume,
        lambda work: _Run(model, recipe, towards, work, resume).go(callbacks, report),
    )
    return replace(made, folder=out)


def _check_towards(recipe: AlignRecipe, towards: Towards) -> None:
    known = bool(towards.comparisons or towards.pairs)
    name = recipe.objective.name
    if isinstance(recipe.objective, RolloutObjective):
        if known:
            raise InputError(
                f"objective {name} learns from rewards, not from votes; train a reward on them "
                "with `musictune reward`, or use dpo or kto"
            )
        if not towards.rewards or not towards.prompts:
            raise InputError(f"objective {name} needs --reward and --prompts")
    elif not known and not (towards.rewards and towards.prompts):
        raise InputError(f"objective {name} needs --votes, or --reward and --prompts")


class _Run:
    """One run, from data to card."""

    def __init__(
        self, model: MusicGen, recipe: AlignRecipe, towards: Towards, work: Path, resume: bool
    ) -> None:
        self.model, self.recipe, self.towards, self.work = model, recipe, towards, work
        self.settings, self.began = recipe.training, time.monotonic()
        self.checkpoint: Checkpoint | None = (
            load_checkpoint(work / "checkpoints") if resume else None
        )
        self.seconds = min(self.settings.seconds, model.max_seconds)
        marks = marks_of(recipe.objective)
        self.mark = marks[0].trigger if marks else ""
        on_policy = isinstance(recipe.objective, RolloutObjective)
        guidance = recipe.align.guidance
        self.sampling = Sampling(top_k=0, guidance=guidance) if on_policy else Sampling()

    def spoken(self, text: str) -> str:
        """What a judge reads in place of a prompt."""
        return plain(text.removeprefix(self.mark).strip(), self.model.concepts)

    def go(self, callbacks: Sequence[pl.Callback], report: bool) -> Result:
        """All of it."""
        model, recipe, settings = self.model, self.recipe, self.settings
        started = self._start()
        pairs = self._given_pairs()
        prompts = list(self.towards.prompts or dict.fromkeys(pairs.prompts if pairs else ()))
        train, held = _split(prompts, recipe.align.held_out_prompts, settings.seed)
        rewards, heard = on_one_scale(
            self.towards.rewards, self._heard(train), self.work, model.decode, self.spoken
        )
        if pairs is None and isinstance(recipe.objective, PairObjective):
            pairs = self._made_pairs(prompts, rewards[0])
        method = started or self._attached(pairs, heard)
        facts = method.describe()
        console.say(summary(facts))
        if settings.gradient_checkpointing:
            save_memory(model)
        # New words are unknown to a method that is switched off.
        fresh = not recipe.align.adapter and not self.mark
        reference = Reference(model, method, fresh)
        if self.checkpoint:
            reference.load(self.checkpoint.folder)
        module, stream = self._module(method, pairs, train, held, rewards, reference)
        asked = {"": f"{self.mark} {(held or train)[0]}".strip()}
        play = Player(model, method, recipe, asked, self.work / "samples")
        if settings.preview_every:
            play("base")
        watch = self._watch(module, held or train, rewards, reference)
        fit(module, stream, self.work, model.device, [watch, Previews(play), *callbacks])
        model.eval()
        facts |= self._kept(method, watch.keeps)
        # From here on the files speak, not the memory: what was saved is what gets proved.
        method.detach(model)
        method = attach_adapter(model, self.work / "adapter")
        effect = measure_effect(
            model, method, asked[""], preview_seconds(model, recipe), settings.seed
        )
        effect.check()
        (self.work / "samples").mkdir(exist_ok=True)
        audio.write(effect.tuned, self.work / "samples" / "tuned.wav")
        audio.write(effect.base, self.work / "samples" / "base.wav")
        facts |= {
            "adapter_bytes": sum(
                p.stat().st_size for p in (self.work / "adapter").rglob("*") if p.is_file()
            ),
            "seconds": round(time.monotonic() - self.began, 1),
            "peak_memory_bytes": peak_memory(model.device),
            "tokens_changed": round(effect.tokens_changed, 4),
        }
        if pairs is not None:
            facts["pairs"] = len(pairs)
        if report:
            draw_alignment(self.work)
            draw_trade(self.work)
            write_align_card(self.work, recipe, facts)
        return Result(self.work, facts, effect)

    def _start(self) -> TuningMethod | None:
        """The adapter of a run that goes on, or of another that this one goes on from."""
        if self.checkpoint:
            return attach_adapter(self.model, self.checkpoint.folder / "adapter")
        if self.recipe.align.adapter:
            return attach_adapter(self.model, adapter_folder(Path(self.recipe.align.adapter)))
        return None

    def _given_pairs(self) -> Pairs | None:
        if self.towards.pairs is not None:
            return self.towards.pairs
        if self.towards.comparisons:
            return pairs_of(self.model, self.towards.comparisons, self.seconds)
        return None

    def _made_pairs(self, prompts: Sequence[str], reward: Reward) -> Pairs:
        known = Pairs.load(self.work)
        if known is not None:
            return known
        align = self.recipe.align
        made = made_pairs(
            self.model, prompts, reward, align.pairs, align.samples, self.seconds,
            self.settings.seed, self.sampling, self.spoken,
        )  # fmt: skip
        made.save(self.work)
        return made

    def _heard(self, prompts: Sequence[str]) -> Callable[[], Batch]:
        """Plays what the model makes before it learns."""
        count = min(len(prompts), _HEARD)
        rollouts = self._rollouts(prompts, count, -(-_HEARD // count), self.settings.seed + 1)
        return lambda: rollouts.sound(0)

    def _rollouts(self, prompts: Sequence[str], count: int, group: int, seed: int) -> Rollouts:
        return Rollouts(
            self.model, prompts, count, group, self.seconds, seed, self.sampling, self.spoken
        )

    def _attached(self, pairs: Pairs | None, heard: Batch | None) -> TuningMethod:
        method, settings = self.recipe.method, self.settings
        torch.manual_seed(settings.seed)
        method.check(self.model)
        # What is to become likelier: the chosen clips, or the better half of what was played.
        rows, texts = (pairs.chosen, pairs.prompts) if pairs else ((), ())
        if heard is not None and pairs is None:
            rows, texts = tuple(heard.codes), heard.texts

        def batches() -> Iterator[Batch]:
            place = 0
            while True:
                at = [(place + i) % len(rows) for i in range(settings.batch)]
                yield as_batch([rows[i] for i in at], [texts[i] for i in at])
                place += settings.batch

        method.prepare(self.model, batches())
        method.attach(self.model)
        return method

    def _module(
        self,
        method: TuningMethod,
        pairs: Pairs | None,
        prompts: Sequence[str],
        held: Sequence[str],
        rewards: Sequence[Reward],
        reference: Reference,
    ) -> tuple[Tuning, IterableDataset[Any]]:
        model, settings, align = self.model, self.settings, self.recipe.align
        objective, found = self.recipe.objective, self.checkpoint
        start, state = (found.step, found.optimizer) if found else (0, None)
        place = start * settings.accumulate
        module: Tuning
        if isinstance(objective, PairObjective):
            assert pairs is not None
            train, kept = pairs.apart(held)
            if not len(train):
                train, kept = pairs, pairs.take([])
            module = Preference(
                model, method, objective, train, kept, reference, settings, start, state
            )
            stream: IterableDataset[Any] = PairStream(
                len(train), settings.batch, settings.seed, place
            )
        else:
            assert isinstance(objective, RolloutObjective)
            rollouts = self._rollouts(prompts, align.prompts_per_step, align.group, settings.seed)
            module = Reinforce(
                model, method, objective, rollouts, rewards, self._stages(), reference, settings,
                align.updates, align.target_kl, start, state, found.folder if found else None,
            )  # fmt: skip
            stream = Parts(align.clips_per_step, settings.batch, place)
        module.last_checkpoint = found.folder if found else None
        return module, stream

    def _stages(self) -> list[int]:
        align = self.recipe.align
        if len(self.towards.rewards) < 2:
            return [0]
        return [0, max(1, round(align.first * self.settings.steps))]

    def _watch(
        self,
        module: Tuning,
        prompts: Sequence[str],
        rewards: Sequence[Reward],
        reference: Reference,
    ) -> Watch:
        settings = self.settings
        stage_at = module.stage_at if isinstance(module, Reinforce) else lambda step: 0
        return Watch(
            self.model, reference, [f"{self.mark} {text}".strip() for text in prompts[:_WATCHED]],
            settings.score_seeds, self.seconds, settings.seed, rewards, stage_at,
            self.towards.beside, self.towards.diversity, self.recipe.align.least_diversity,
            self.work / "checkpoints", self.spoken, settings.keep == "best",
        )  # fmt: skip

    def _kept(self, method: TuningMethod, keeps: bool) -> dict[str, int | float | str]:
        rows = [r for r in read_metrics(self.work / "metrics.csv") if r.get("held_out_kl")]
        folder, target = self.work / "checkpoints", self.work / "adapter"
        facts: dict[str, int | float | str] = stopped(rows[-1]) if rows else {}
        if keeps and find_best(folder) is not None:
            kept = publish_best(folder, target).step
        else:
            save_adapter(self.model, method, target)
            kept = int(rows[-1]["step"])
            if keeps:
                console.note("no scored step could be kept; the last adapter is")
        now = next(row for row in rows if int(row["step"]) == kept)
        facts["kept_step"] = kept
        for name, value in now.items():
            told = name.startswith("held_out_") or name in (*self.towards.beside, "diversity")
            if told and value and rows[0].get(name):
                facts[f"{name}_before"] = round(float(rows[0][name]), 4)
                facts[f"{name}_kept"] = round(float(value), 4)
        return facts


def _split(prompts: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train on and prompts held out; at least one of each where there are two."""
    known = list(dict.fromkeys(prompts))
    count = max(1, round(share * len(known))) if share and len(known) > 1 else 0
    order = [known[int(i)] for i in epoch_order(len(known), seed, 0)]
    return order[count:], order[:count]
