"""Two concepts learned apart and asked for together: does one get in the way of the other?

Both adapters are loaded at once. The music is asked for both sounds, for one of them, and for
neither; each prompt for one sound has its counterpart for both, so that what a sound loses in
company can be told from what the rest of a prompt does. Two sounds in one clip are less like either
even when nothing goes wrong, so the base, asked for both class words, is the yardstick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from musictune import console
from musictune.bench.asked import NONE, Method
from musictune.bench.concept_set import BenchConcept
from musictune.bench.concepts import Bench, Cell
from musictune.bench.forgetting import embed, write_clips
from musictune.bench.material import Material, alignments, play
from musictune.errors import InputError
from musictune.models.musicgen import MusicGen

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


def pair_record(bench: Bench, pair: Pair, method: Method | None, seed: int) -> dict[str, Any]:
    """The figures of a pair under one method and seed: found, or made now.

    Raises:
        InputError: bad input, a full disk, or figures that were made with other settings.
    """
    cells = [Cell(concept, method, seed) for concept in (pair.first, pair.second)]
    key = ("pairs", pair.name, method.slug if method else NONE, f"seed{seed}")
    count = max(bench.plan.prompts // 2, 2)
    settings = {
        "prompts": pair.prompts(count),
        "concepts": [bench.settings(cell) for cell in cells],
    }
    if found := bench.cells.find(key, settings):
        return found
    parts = [bench.record(cell) for cell in cells]
    console.say(f"{pair.name}, {method.text if method else NONE}, seed {seed}")
    with bench.cells.make(key, settings) as (folder, keep):
        record: dict[str, Any] = {
            "pair": pair.name,
            "method": method.text if method else NONE,
            "seed": seed,
            "made_with": bench.made_with(),
        }
        if failed := [part["failed"] for part in parts if "failed" in part]:
            record["failed"] = failed[0]
        else:
            materials = [bench.material(concept) for concept in (pair.first, pair.second)]
            maker = _Maker(bench, pair, materials, seed, count)
            record["cases"] = maker.make(cells if method else [])
            record["scores"] = _scores(record["cases"])
            write_clips(maker.clips, folder / "music", maker.lines)
        keep(record)
    found = bench.cells.find(key, settings)
    assert found is not None
    return found


class _Maker:
    """Plays and measures the cases of one pair."""

    def __init__(
        self, bench: Bench, pair: Pair, materials: Sequence[Material], seed: int, count: int
    ) -> None:
        self.bench, self.pair, self.seed = bench, pair, seed
        self.materials = materials
        self.prompts = pair.prompts(count)
        self.clips: list[Any] = []
        self.lines: list[dict[str, Any]] = []

    def make(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Alignments by case; without cells those of the base with the class words."""
        if not cells:
            model = self.bench.base()
            cases = {
                "both": self._case("both", "both", model, tuned=False),
                "first_alone": self._case("first_alone", "first", model, tuned=False),
                "second_alone": self._case("second_alone", "second", model, tuned=False),
                "neither": self._case("neither", "neither", model, tuned=False),
            }
            # Nothing is loaded beside it, so alone and in company are the same music.
            cases["first_beside"] = cases["first_alone"]
            cases["second_beside"] = cases["second_alone"]
            return cases
        cases = {}
        for case, cell in zip(("first", "second"), cells, strict=True):
            model = self.bench.tuned([cell])
            cases[f"{case}_alone"] = self._case(f"{case}_alone", case, model, tuned=True)
        model = self.bench.tuned(cells)
        for name, case in (
            ("both", "both"),
            ("first_beside", "first"),
            ("second_beside", "second"),
            ("neither", "neither"),
        ):
            cases[name] = self._case(name, case, model, tuned=True)
        return cases

    def _case(self, name: str, case: str, model: MusicGen, *, tuned: bool) -> dict[str, float]:
        """Mean alignment with both concepts' held-out clips, and with the text."""
        concepts = (self.pair.first, self.pair.second)
        words = [material.word.trigger for material in self.materials]
        classes = [concept.class_word for concept in concepts]
        prompts, texts = (
            [_filled(prompt, *names) for prompt in self.prompts[case]]
            for names in (words if tuned else classes, classes)
        )
        first_seed = self.seed * 10_000 + _SEED
        music = play(model, prompts, texts, self.bench.plan.seconds, first_seed)
        made = embed(self.bench.embedder, music.clips)
        found = {}
        for which, material in zip(("first", "second"), self.materials, strict=True):
            values = alignments(self.bench.embedder, made, texts, material.held_out)
            found[which] = float(np.mean(values["audio_alignment"]))
            found["text"] = float(np.mean(values["text_alignment"]))
        self.clips += music.clips
        self.lines += [
            {"prompt": prompt, "text": text, "seed": first_seed + i, "case": name}
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        return found


def _filled(prompt: str, first: str, second: str) -> str:
    return prompt.replace("{first}", first).replace("{second}", second)


def _scores(cases: dict[str, dict[str, float]]) -> dict[str, float]:
    """What people look at.

    ``conflict`` is the loss of a concept's alignment when the other is asked for too, against
    asking for it alone with its own adapter; ``interference`` the loss by the other's adapter being
    loaded, unasked. Means of both concepts.
    """
    scores: dict[str, float] = {}
    for which in ("first", "second"):
        alone = cases[f"{which}_alone"][which]
        scores[f"alone_{which}"] = alone
        scores[f"both_{which}"] = cases["both"][which]
        scores[f"conflict_{which}"] = alone - cases["both"][which]
        scores[f"interference_{which}"] = alone - cases[f"{which}_beside"][which]
        scores[f"neither_{which}"] = cases["neither"][which]
    for name in ("alone", "both", "conflict", "interference", "neither"):
        scores[name] = (scores[f"{name}_first"] + scores[f"{name}_second"]) / 2
    scores["text_both"] = cases["both"]["text"]
    scores["text_neither"] = cases["neither"]["text"]
    return scores
