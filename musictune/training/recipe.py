"""One run in YAML: which method, with which numbers, on which base and concept.

Typed by jsonargparse: a method is named by its class, ours by the bare class name, anybody's by
the full import path. Such paths are read from a user's own recipe only, never from an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods import methods
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.peft import kinds
from musictune.training.settings import TrainingSettings


@dataclass(frozen=True)
class RunSettings:
    """What a run is about.

    Attributes:
        base: ``mini``, a model folder, or a Hugging Face id.
        clips: where the music came from.
        concept: the new word, or empty for none.
        class_word: what kind of sound it is.
        tokens: how many tokens carry the concept.
        prompt: of previews and of the proof of effect; made from the concept if empty.
        embedder: the CLAP that scores previews where the best adapter is kept: a folder or Hugging
            Face id; the bundled one if empty.
    """

    base: str = "mini"
    clips: str = ""
    concept: str = ""
    class_word: str = ""
    tokens: int = 1
    prompt: str = ""
    embedder: str = ""


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    Attributes:
        run, training: its plain values.
        method: built, not attached; with the concept's tokens where there is a concept.
        text: the whole recipe as YAML, which gives this recipe again.
    """

    run: RunSettings
    training: TrainingSettings
    method: TuningMethod
    text: str

    @property
    def concept(self) -> Concept | None:
        """The new word."""
        return concept_of(self.run)


def load_recipe(
    configs: Sequence[Path] = (),
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    method: str | None = None,
) -> Recipe:
    """Merge recipes; later ones win, then ``sets``, then ``overrides``.

    Args:
        configs: YAML files.
        sets: ``key=value``, such as ``method.fraction=0.02`` or ``training.lr=1e-4``.
        overrides: by the same keys; None leaves the recipe's value.
        method: a short name, such as ``pivotal``, ``lora`` or ``peft:oft``; replaces the recipe's.

    Raises:
        InputError: a file is missing, or a key or value does not fit.
    """
    from jsonargparse import ArgumentError, Namespace

    arguments: list[str] = []
    for config in configs:
        if not config.is_file():
            raise InputError(f"recipe {config} does not exist; see the configs folder for some")
        try:
            config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"recipe {config} is not readable text; give a YAML file") from error
        arguments += ["--config", str(config)]
    arguments += _method_arguments(method)
    for change in sets:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {change!r} must be key=value, such as training.lr=0.001")
        arguments.append(f"--{key.strip()}={value.strip()}")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    arguments += [f"--{key}={value}" for key, value in given.items()]
    parser = _parser()
    try:
        parsed: Namespace = parser.parse_args(arguments)
        text = parser.dump(parsed, skip_none=False)
        built = parser.instantiate(parsed)
    except (ArgumentError, TypeError, ValueError) as error:
        raise _readable(error) from error
    concept = concept_of(built.run)
    return Recipe(built.run, built.training, _with_concept(built.method, concept), text)


def concept_of(run: RunSettings) -> Concept | None:
    """The concept that ``run`` names.

    Raises:
        InputError: it has no class word, or a part of it cannot be used.
    """
    if not run.concept:
        return None
    if not run.class_word:
        raise InputError(
            f"concept {run.concept!r} needs a class word: say what it is, such as "
            "--class-word piano"
        )
    return Concept(run.concept, run.class_word, run.tokens)


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    methods()  # imported, so that bare class names are found
    parser = ArgumentParser(prog="recipe", exit_on_error=False)
    parser.add_argument("--config", action="config", help="A recipe in YAML.")
    parser.add_class_arguments(RunSettings, "run")
    parser.add_subclass_arguments(TuningMethod, "method", required=True)
    parser.add_class_arguments(TrainingSettings, "training")
    parser.set_defaults({"method": {"class_path": "Pivotal"}})
    return parser


def _method_arguments(name: str | None) -> list[str]:
    if name is None:
        return []
    short, _, kind = name.lower().partition(":")
    known = methods()
    if short == "peft" or short not in known:
        kind = kind or (short if short != "peft" else "lora")
        if kind in kinds():
            return ["--method=Peft", f"--method.kind={kind}"]
    if short not in known or kind or short == Combined.name:
        names = sorted(set(known) - {Combined.name})
        raise InputError(
            f"method {name!r} is unknown; choose from {', '.join(names)}, "
            f"or a kind of peft: {', '.join(kinds())}"
        )
    return [f"--method={known[short].__name__}"]


def _with_concept(method: TuningMethod, concept: Concept | None) -> TuningMethod:
    if isinstance(method, ConceptTokens):
        if not method.concepts and concept is None:
            raise InputError("method concept_tokens needs --concept NAME --class-word WORD")
        return method if method.concepts else ConceptTokens([concept] if concept else [])
    if concept is None or isinstance(method, Combined):
        return method
    return Combined([ConceptTokens([concept]), method])


def _readable(error: Exception) -> InputError:
    """Our own error where one is at the bottom, else jsonargparse's innermost line and its key."""
    chain: list[BaseException] = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    ours = [link for link in chain if isinstance(link, InputError)]
    if ours:
        return ours[-1]
    key = re.search(r'Parser key "([^"]+)"', str(error))
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    where = f"{key[1]}: " if key else ""
    return InputError(f"recipe: {where}{lines[0] if lines else type(error).__name__}")
