"""One run in YAML: which method, with which numbers, on which base and concept.

Typed by jsonargparse: a method is named by its class, ours by the bare class name, anybody's by
the full import path. Such paths are read from a user's own recipe only, never from an adapter.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.methods import methods
from musictune.methods.base import TuningMethod
from musictune.methods.combined import Combined
from musictune.methods.concept_tokens import ConceptTokens
from musictune.methods.peft import kinds
from musictune.training.lessons import Lesson, read_lessons
from musictune.training.settings import TrainingSettings


@dataclass(frozen=True)
class RunSettings:
    """What a run is about.

    Attributes:
        base: ``mini``, a model folder, or a Hugging Face id.
        clips: where the music came from; empty where each concept names its own.
        concept: the new word, or empty for none; or one or more ``name=FOLDER``, learned together
            with equal shares of every batch.
        class_word: what kind of sound it is; ``name=word`` for each of several concepts.
        tokens: how many tokens carry each concept.
        prompt: of previews and of the proof of effect; made from the concept if empty.
        embedder: the CLAP that scores previews where the best adapter is kept: a folder or Hugging
            Face id; the bundled one if empty.
    """

    base: str = "mini"
    clips: str = ""
    # In this order: jsonargparse takes the first type that fits, and every text fits ``str``.
    concept: list[str] | str = ""
    class_word: list[str] | str = ""
    tokens: int = 1
    prompt: str = ""
    embedder: str = ""


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    Attributes:
        run, training: its plain values.
        method: built, not attached; with the concepts' tokens where there are concepts.
        text: the whole recipe as YAML, which gives this recipe again.
    """

    run: RunSettings
    training: TrainingSettings
    method: TuningMethod
    text: str

    @property
    def lessons(self) -> list[Lesson]:
        """What to learn, at least one."""
        return lessons_of(self.run)

    @property
    def concepts(self) -> list[Concept]:
        """The new words."""
        return [lesson.concept for lesson in self.lessons if lesson.concept]

    @property
    def concept(self) -> Concept | None:
        """The new word, where there is just one."""
        concepts = self.concepts
        return concepts[0] if len(concepts) == 1 else None


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
    built, text = parse(recipe_parser(), configs, sets, overrides, method)
    concepts = [lesson.concept for lesson in lessons_of(built.run) if lesson.concept]
    if built.training.prior and not concepts:
        raise InputError(
            f"prior {built.training.prior} is clips of a class word, and there is no concept; pass "
            "--concept NAME --class-word WORD, or leave prior at 0"
        )
    if built.training.optimizer == "mezo" and built.method.needs_gradients:
        raise InputError(
            f"optimizer mezo has no gradients, and method {built.method.name} with these options "
            "works through them; choose another selection than half, layers or grow, or optimizer "
            "adamw"
        )
    return Recipe(built.run, built.training, _with_concepts(built.method, concepts), text)


def parse(
    parser: Any,
    configs: Sequence[Path],
    sets: Sequence[str],
    overrides: Mapping[str, Any] | None,
    method: str | None,
    named: Sequence[str] = (),
) -> tuple[Any, str]:
    """What ``parser`` makes of recipes and changes, and all of it as YAML.

    Args:
        parser: of jsonargparse, with ``--config`` and ``--method``.
        configs, sets, overrides, method: as for `load_recipe`.
        named: arguments that choose classes, before what sets their options.

    Raises:
        InputError: a file is missing, or a key or value does not fit.
    """
    from jsonargparse import ArgumentError, Namespace

    arguments: list[str] = []
    for config in configs:
        if not config.is_file():
            raise InputError(f"recipe {config} does not exist; see the configs folder for some")
        _check_yaml(config)
        arguments += ["--config", str(config)]
    arguments += [*_method_arguments(method), *named]
    for change in sets:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {change!r} must be key=value, such as training.lr=0.001")
        arguments.append(f"--{key.strip()}={value.strip()}")
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    arguments += [f"--{key}={_written(value)}" for key, value in given.items()]
    try:
        parsed: Namespace = parser.parse_args(arguments)
        text = parser.dump(parsed, skip_none=False)
        return parser.instantiate(parsed), text
    except (ArgumentError, TypeError, ValueError) as error:
        raise _readable(error) from error


def lessons_of(run: RunSettings) -> list[Lesson]:
    """What ``run`` asks to learn, at least one lesson.

    Raises:
        InputError: as `read_lessons`, or folders are named beside the run's own clips.
    """
    lessons = read_lessons(run.concept, run.class_word, run.tokens)
    if run.clips and lessons[0].clips:
        raise InputError(
            f"clips {run.clips} are given beside concepts with folders of their own; give CLIPS "
            "with one --concept NAME, or only --concept NAME=FOLDER"
        )
    return lessons


def _check_yaml(config: Path) -> None:
    """Refuse what jsonargparse would refuse without naming the file."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {config} is not readable text; give a YAML file") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"recipe {config} is no YAML: {reason}; correct that line") from error
    if not isinstance(content, dict):
        raise InputError(
            f"recipe {config} holds no settings; write some, such as 'training: {{steps: 100}}', "
            "or copy the config.yaml of a run"
        )


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, tuple)) else str(value)


def recipe_parser(run: type = RunSettings) -> Any:
    """A parser of jsonargparse for ``run``, a method and how training goes."""
    from jsonargparse import ArgumentParser

    methods()  # imported, so that bare class names are found
    parser = ArgumentParser(prog="recipe", exit_on_error=False)
    parser.add_argument("--config", action="config", help="A recipe in YAML.")
    parser.add_class_arguments(run, "run")
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


def _with_concepts(method: TuningMethod, concepts: Sequence[Concept]) -> TuningMethod:
    if isinstance(method, ConceptTokens):
        if not method.concepts and not concepts:
            raise InputError("method concept_tokens needs --concept NAME --class-word WORD")
        return method if method.concepts else ConceptTokens(concepts)
    if not concepts or isinstance(method, Combined):
        return method
    return Combined([ConceptTokens(concepts), method])


def _readable(error: Exception) -> InputError:
    """Our own error where one is at the bottom, else jsonargparse's innermost line and its key."""
    chain: list[BaseException] = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    ours = [link for link in chain if isinstance(link, InputError)]
    if ours:
        return ours[-1]
    # Of a method's option: first the key "method", further in that of the option.
    keys = re.findall(r'Parser key "([^"]+)"', str(error))
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    where = f"{'.'.join(keys)}: " if keys else ""
    reason = re.sub(r"<class '([^']+)'>", r"\1", lines[0] if lines else type(error).__name__)
    reason = re.sub(r"a typing\.Literal\[(.*)\]", r"one of \1", reason)
    return InputError(f"recipe: {where}{reason}{_allowed(str(error))}")


def _allowed(said: str) -> str:
    """The options that there are, where one was not among them."""
    kinds: dict[str, tuple[str, type]] = {
        "run": ("run", RunSettings),
        "training": ("training", TrainingSettings),
        **{f"{k.__module__}.{k.__qualname__}": (k.name, k) for k in methods().values()},
    }
    group = re.search(r"Group '(\w+)' does not accept option", said)
    path = re.search(r"given class_path '([^']+)':\s+Option '[^']*' is not accepted", said)
    found = group or path
    if found is None or found[1] not in kinds:
        return ""
    name, kind = kinds[found[1]]
    return f"; {name} has {', '.join(inspect.signature(kind).parameters)}"
