"""Two concepts asked for together: does one get in the way of the other?

They are learned apart, each by a run of its own, and both adapters are loaded at once; or learned
together by one run. The music is asked for both sounds, for one of them, and for neither; each
prompt for one sound has its counterpart for both, so that what a sound loses in company can be told
from what the rest of a prompt does. Two sounds in one clip are less like either even when nothing
goes wrong, so the base, asked for both class words, is the yardstick. What the model with both says
of each sound's held-out clips, against the model with that sound alone, is the steadiest figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musictune import console
from musictune.bench.asked import NONE, Method, recipe_settings
from musictune.bench.concept_set import BenchConcept
from musictune.bench.concepts import Bench, Cell
from musictune.bench.forgetting import embed, write_clips
from musictune.bench.material import SEEDS_APART, Material, alignments, learnable_word, play
from musictune.errors import CheckFailed, InputError
from musictune.methods.adapter import is_sparse
from musictune.methods.overlap import measure_overlap
from musictune.models.musicgen import MusicGen
from musictune.training.recipe import Recipe

_MANNERS = (
    "{sound}",
    "slow {sound}",
    "fast {sound}",
    "sad {sound} in a minor key",
    "cheerful {sound} in a major key",
)
_NEITHER = ("piano solo", "violin and cello duet", "rock with electric guitar, bass and drums")
_SEED = 7_000  # apart from those of the concepts' own prompts
_STYLE = "style"
_BOTH = ("first", "second")


@dataclass(frozen=True)
class Pair:
    """Two concepts, a style first if there is one."""

    first: BenchConcept
    second: BenchConcept

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.first.name}+{self.second.name}"

    def prompts(self, count: int) -> dict[str, list[str]]:
        """``count`` prompts each for ``both``, ``first``, ``second`` and ``neither``.

        Concepts stand in them as ``{first}`` and ``{second}``.
        """
        kinds = [concept.kind == _STYLE for concept in (self.first, self.second)]
        both = {
            (True, True): "{first} mixed with {second}",
            (True, False): "{first} with {second}",
            (False, False): "{first} and {second} duet",
        }[kinds[0], kinds[1]]
        sounds = {
            "both": (both,),
            "first": ("{first}" if kinds[0] else "{first} solo",),
            "second": ("{second}" if kinds[1] else "{second} solo",),
            "neither": _NEITHER,
        }
        return {
            case: [
                _MANNERS[i % len(_MANNERS)].replace("{sound}", names[i % len(names)])
                for i in range(count)
            ]
            for case, names in sounds.items()
        }


def read_pairs(texts: Sequence[str], concepts: Sequence[BenchConcept]) -> list[Pair]:
    """Each ``a+b`` as a pair of ``concepts``.

    Raises:
        InputError: not two different names joined by a plus, or one that is not known.
    """
    known = {concept.name: concept for concept in concepts}
    pairs = {}
    for text in texts:
        names = pair_names(text)
        for name in names:
            if name not in known:
                raise InputError(
                    f"pair {text!r}: concept {name!r} is not known; choose of "
                    f"{', '.join(sorted(known))}"
                )
        # A style first: "reggae with koto" is English, "koto with reggae" is not.
        ordered = sorted((known[name] for name in names), key=lambda c: c.kind != _STYLE)
        pair = Pair(*ordered)
        pairs[pair.name] = pair
    return list(pairs.values())


def pair_names(text: str) -> list[str]:
    """The two names in ``a+b``.

    Raises:
        InputError: there are not two different ones.
    """
    names = [name.strip() for name in text.split("+")]
    if len(names) != 2 or len(set(names)) != 2 or not all(names):
        raise InputError(f"pair {text!r} cannot be read; give two concepts, such as koto+reggae")
    return names


@dataclass(frozen=True)
class PairCell:
    """A pair, method and seed; ``method`` is None for the base.

    Attributes:
        tokens: of each concept where one run learns both together; None where each has its own run.
    """

    pair: Pair
    method: Method | None
    seed: int
    tokens: int | None = None

    @property
    def label(self) -> str:
        """What its row is called."""
        method = self.method.text if self.method else NONE
        return f"{method}{joint_label(self.tokens)}"

    @property
    def key(self) -> tuple[str, ...]:
        """The parts of its path."""
        method = self.method.slug if self.method else NONE
        together = "" if self.tokens is None else f"-joint{self.tokens}"
        return "pairs", self.pair.name, f"{method}{together}", f"seed{self.seed}"

    @property
    def cells(self) -> list[Cell]:
        """Its concepts learned apart."""
        concepts = (self.pair.first, self.pair.second)
        return [Cell(concept, self.method, self.seed) for concept in concepts]

    def __str__(self) -> str:
        return f"{self.pair.name}, {self.label}, seed {self.seed}"


def joint_label(tokens: int | None) -> str:
    """What is added to a method's name where one run learns both concepts."""
    if tokens is None:
        return ""
    return f", joint with {tokens} token{'' if tokens == 1 else 's'} each"


def pair_record(bench: Bench, cell: PairCell, *, wait: bool = True) -> dict[str, Any] | None:
    """The figures of a pair: found, or made now; None where another process makes it.

    Raises:
        InputError: bad input, a full disk, or figures that were made with other settings.
    """
    pair, method = cell.pair, cell.method
    count = max(bench.plan.prompts // 2, 2)
    settings = {
        "prompts": pair.prompts(count),
        "concepts": [bench.settings(each) for each in cell.cells],
    }
    if cell.tokens is not None:
        settings |= {"joint": _joint_settings(bench, cell)}

    def make(folder: Path) -> dict[str, Any]:
        parts = [bench.record(each) for each in cell.cells]
        # A pair learned together is held against the same concepts learned apart.
        apart = cell.tokens and pair_record(bench, PairCell(pair, method, cell.seed))
        console.say(str(cell))
        record: dict[str, Any] = {
            "pair": pair.name,
            "method": cell.label,
            "seed": cell.seed,
            "made_with": bench.made_with(),
        }
        if failed := [p["failed"] for p in (*parts, apart) if p and "failed" in p]:
            return record | {"failed": failed[0]}
        # What a method that reads less of the reference copies from is no matter here.
        materials = [bench.material(concept) for concept in (pair.first, pair.second)]
        maker = _Maker(bench, cell, materials, count)
        runs = [bench.cells.place(each.key) / "run" for each in cell.cells] if method else []
        try:
            if apart:
                recipe = _joint_recipe(bench, cell, [each.prepared for each in materials])
                record["facts"] = bench.learn(None, recipe, folder / "run")
                maker.together(folder / "run", apart)
            else:
                maker.apart(runs)
        except CheckFailed as error:
            console.note(f"{cell}: failed: {error}")
            return record | {"failed": str(error)}
        if runs and all(is_sparse(run) for run in runs):
            record["overlap"] = asdict(measure_overlap(runs).pairs[0, 1])
        record |= {"cases": maker.cases, "losses": maker.losses}
        record["scores"] = _scores(maker.cases, maker.losses)
        write_clips(maker.clips, folder / "music", maker.lines)
        return record

    return bench.cells.once(cell.key, settings, make, wait=wait)


def _joint_recipe(bench: Bench, cell: PairCell, folders: Sequence[Path]) -> Recipe:
    """One run over both concepts' clips, with as many steps for each as it has when alone."""
    assert cell.method is not None and cell.tokens is not None
    concepts = (cell.pair.first, cell.pair.second)
    words = [learnable_word(bench.base(), concept).name for concept in concepts]
    alone = bench.plan.recipe(cell.method, concepts[0], cell.seed, words[0])
    return bench.plan.joint_recipe(
        cell.method,
        {word: (c.class_word, f) for word, c, f in zip(words, concepts, folders, strict=True)},
        cell.seed,
        cell.tokens,
        2 * alone.training.steps,
    )


def _joint_settings(bench: Bench, cell: PairCell) -> dict[str, Any]:
    """Without the places of the clips, which the digests of the concepts stand for."""
    content = recipe_settings(_joint_recipe(bench, cell, [Path("first"), Path("second")]))
    content["run"]["concept"] = [entry.partition("=")[0] for entry in content["run"]["concept"]]
    return content


class _Maker:
    """Plays and measures the cases of one pair."""

    def __init__(
        self, bench: Bench, cell: PairCell, materials: Sequence[Material], count: int
    ) -> None:
        self.bench, self.pair, self.seed = bench, cell.pair, cell.seed
        self.materials = materials
        self.prompts = cell.pair.prompts(count)
        self.cases: dict[str, dict[str, float]] = {}
        self.losses: dict[str, float] = {}
        self.clips: list[Any] = []
        self.lines: list[dict[str, Any]] = []

    def apart(self, runs: Sequence[Path]) -> None:
        """Each concept by its own run, then both loaded; without runs the base, class words."""
        for place, which in enumerate(_BOTH):
            model = self.bench.with_adapters(runs[place : place + 1])
            self._case(f"{which}_alone", which, model, tuned=bool(runs))
            self._loss(f"{which}_alone", which, model, tuned=bool(runs))
        if runs:
            self._company(self.bench.with_adapters(runs))
            return
        for case in ("both", "neither"):
            self._case(case, case, self.bench.base(), tuned=False)
        for which in _BOTH:
            # Nothing is loaded beside it, so alone and in company are the same music.
            self.cases[f"{which}_beside"] = self.cases[f"{which}_alone"]
            self.losses[f"{which}_beside"] = self.losses[f"{which}_alone"]

    def together(self, run: Path, apart: dict[str, Any]) -> None:
        """Both by one run; what each is alone is that of its own run."""
        for which in _BOTH:
            self.cases[f"{which}_alone"] = apart["cases"][f"{which}_alone"]
            self.losses[f"{which}_alone"] = apart["losses"][f"{which}_alone"]
        self._company(self.bench.with_adapters([run]))

    def _company(self, model: MusicGen) -> None:
        self._case("both", "both", model, tuned=True)
        for which in _BOTH:
            self._case(f"{which}_beside", which, model, tuned=True)
            self._loss(f"{which}_beside", which, model, tuned=True)
        self._case("neither", "neither", model, tuned=True)

    def _loss(self, name: str, which: str, model: MusicGen, *, tuned: bool) -> None:
        """Mean nats per token of a concept's held-out clips."""
        unheard = self.materials[_BOTH.index(which)].unheard
        self.losses[name] = float(np.mean(unheard.losses(model, tuned=tuned)))

    def _case(self, name: str, case: str, model: MusicGen, *, tuned: bool) -> None:
        """Mean alignment with both concepts' held-out clips, and with the text."""
        concepts = (self.pair.first, self.pair.second)
        words = [material.word.trigger for material in self.materials]
        classes = [concept.class_word for concept in concepts]
        prompts, texts = (
            [_filled(prompt, *names) for prompt in self.prompts[case]]
            for names in (words if tuned else classes, classes)
        )
        first_seed = self.seed * SEEDS_APART + _SEED
        music = play(model, prompts, texts, self.bench.plan.seconds, first_seed)
        made = embed(self.bench.embedder, music.clips)
        found = {}
        for which, material in zip(_BOTH, self.materials, strict=True):
            values = alignments(self.bench.embedder, made, texts, material.held_out)
            found[which] = float(np.mean(values["audio_alignment"]))
            found["text"] = float(np.mean(values["text_alignment"]))
        self.clips += music.clips
        self.lines += [
            {"prompt": prompt, "text": text, "seed": first_seed + i, "case": name}
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        self.cases[name] = found


def _filled(prompt: str, first: str, second: str) -> str:
    return prompt.replace("{first}", first).replace("{second}", second)


def _scores(cases: dict[str, dict[str, float]], losses: dict[str, float]) -> dict[str, float]:
    """What people look at.

    ``conflict`` is the loss of a concept's alignment when the other is asked for too, against
    asking for it alone with its own adapter; ``interference`` the loss by the other being learned
    too, unasked; ``loss_interference`` the same in nats per token of the concept's held-out clips,
    so that more is worse in all three. Means of both concepts.
    """
    scores: dict[str, float] = {}
    for which in _BOTH:
        alone, beside = (cases[f"{which}_{case}"][which] for case in ("alone", "beside"))
        scores[f"alone_{which}"] = alone
        scores[f"beside_{which}"] = beside
        scores[f"both_{which}"] = cases["both"][which]
        scores[f"conflict_{which}"] = alone - cases["both"][which]
        scores[f"interference_{which}"] = alone - beside
        scores[f"loss_interference_{which}"] = losses[f"{which}_beside"] - losses[f"{which}_alone"]
        scores[f"loss_beside_{which}"] = losses[f"{which}_beside"]
        scores[f"neither_{which}"] = cases["neither"][which]
    for name in (
        "alone", "beside", "both", "conflict", "interference", "loss_interference", "loss_beside",
        "neither",
    ):  # fmt: skip
        scores[name] = (scores[f"{name}_first"] + scores[f"{name}_second"]) / 2
    scores["text_both"] = cases["both"]["text"]
    scores["text_neither"] = cases["neither"]["text"]
    return scores
