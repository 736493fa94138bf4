"""The losses of TRL 0.23.1 themselves.

Its trainers hold them as methods, and importing a trainer takes accelerate, datasets and a model.
So single functions are taken out of its source, which is read from an unpacked folder or from the
wheel that

    pip download --no-deps trl==0.23.1

leaves, and run as they are, with an object in place of the trainer that has what they ask it for.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import enum
import math
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musictune.errors import InputError

VERSION = "0.23.1"

_GET = f"pip download --no-deps trl=={VERSION}"


@dataclass(frozen=True)
class TRL:
    """Losses by TRL's own code; log-probabilities and results as it has them.

    Args:
        source: the wheel, or a folder with what was in it.

    Raises:
        InputError: no TRL 0.23.1 there.
    """

    source: Path

    def __post_init__(self) -> None:
        try:
            about = self._read(f"trl-{VERSION}.dist-info/METADATA")
        except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
            raise InputError(
                f"TRL {self.source} is no wheel of TRL {VERSION}, nor a folder with its content; "
                f"get it: {_GET}"
            ) from error
        if f"\nVersion: {VERSION}\n" not in about:
            raise InputError(f"TRL {self.source} is not version {VERSION}; get it: {_GET}")

    def dpo(self, loss_type: str, pairs: tuple[Tensor, ...], **settings: Any) -> Tensor:
        """``(pairs,)`` losses of `sigmoid`, `robust`, `ipo`...

        Args:
            loss_type: as TRL calls it.
            pairs: log-probabilities of chosen and rejected, then both under the reference.
        """
        kinds = self._classes("dpo_config", "FDivergenceType")
        trainer = _trainer(
            reference_free=False,
            f_divergence_type=kinds["FDivergenceType"].REVERSE_KL.value,
            **settings,
        )
        losses = self._function("dpo_trainer", "dpo_loss", **kinds)
        found: Tensor = losses(trainer, *pairs, loss_type=loss_type)[0]
        return found

    def kto(self, pairs: tuple[Tensor, ...], mismatched: Tensor, **settings: Any) -> Tensor:
        """``(2 pairs,)`` losses, of the chosen clips and then of the rejected ones."""
        chosen, rejected, chosen_reference, rejected_reference = pairs
        trainer = _trainer(loss_type="kto", calculate_KL=True, **settings)
        found: Tensor = self._function("kto_trainer", "kto_loss")(
            trainer,
            *(chosen, rejected, mismatched),
            *(chosen_reference, rejected_reference, torch.zeros_like(mismatched)),
        )[0]
        return found

    def cpo(self, loss_type: str, chosen: Tensor, rejected: Tensor, **settings: Any) -> Tensor:
        """``(pairs,)`` losses of `sigmoid` or `simpo`, without the likelihood that is added."""
        trainer = _trainer(loss_type=loss_type, label_smoothing=0.0, alpha=0.0, **settings)
        found: Tensor = self._function("cpo_trainer", "cpo_loss")(trainer, chosen, rejected)[0]
        return found

    def orpo(self, chosen: Tensor, rejected: Tensor, **settings: Any) -> Tensor:
        """``(pairs,)`` what is taken off the negative log-likelihood."""
        losses = self._function("orpo_trainer", "odds_ratio_loss")
        found: Tensor = losses(_trainer(**settings), chosen, rejected)[0]
        return found

    def advantages(
        self, trainer: str, rewards: Tensor, num_generations: int, **settings: Any
    ) -> Tensor:
        """``(clips,)`` of `grpo` or `rloo`, of groups one after the other."""
        first = {"grpo": "mean_grouped_rewards", "rloo": "grouped_rewards"}[trainer]
        settings = {"beta": 0.0, "normalize_advantages": False, **settings}
        compute = self._part(
            f"{trainer}_trainer",
            "_generate_and_score_completions",
            (first, "process_slice"),
            ["self", "rewards"],
            "advantages",
        )
        made: Tensor = compute(_trainer(num_generations=num_generations, **settings), rewards)
        return made

    def rollout(
        self,
        trainer: str,
        tokens: Tensor,
        sampled: Tensor,
        reference: Tensor,
        mask: Tensor,
        advantages: Tensor,
        **settings: Any,
    ) -> Tensor:
        """The loss of `grpo` or `rloo` over a batch, a single number.

        Args:
            tokens, sampled, reference: ``(clips, tokens)`` log-probabilities.
            mask: which count.
            advantages: ``(clips,)``.
            settings: of the trainer, such as ``beta`` and ``loss_type``.
        """
        ids = torch.zeros(tokens.shape, dtype=torch.int64)
        made = _trainer(
            _get_per_token_logps_and_entropies=lambda *_, **__: (tokens, torch.zeros_like(tokens)),
            top_entropy_quantile=1.0,
            importance_sampling_level="token",
            use_vllm=False,
            current_gradient_accumulation_steps=1,
            model=SimpleNamespace(training=True),
            _metrics={"train": defaultdict(list)},
            args=SimpleNamespace(delta=None),
            **settings,
        )
        helpers = {name: self._function("utils", name) for name in ("nanmin", "nanmax")}
        compute = self._function(f"{trainer}_trainer", "_compute_loss", **helpers)
        counted = mask.to(tokens.dtype)
        batch = {
            **{"prompt_ids": ids[:, :1], "prompt_mask": torch.ones_like(ids[:, :1])},
            **{"completion_ids": ids, "completion_mask": counted},
            **{"ref_per_token_logps": reference, "advantages": advantages},
            **{"old_per_token_logps": sampled, "old_logps": (sampled * counted).sum(1)},
        }
        found: Tensor = compute(made, None, batch)
        return found

    # --- reading it ---

    def _read(self, name: str) -> str:
        if self.source.is_dir():
            return (self.source / name).read_text(encoding="utf-8")
        with zipfile.ZipFile(self.source) as wheel:
            return wheel.read(name).decode("utf-8")

    def _tree(self, module: str) -> ast.Module:
        return ast.parse(self._read(f"trl/trainer/{module}.py"))

    def _classes(self, module: str, *names: str) -> dict[str, Any]:
        found = [n for n in self._tree(module).body if getattr(n, "name", "") in names]
        space = _run(found, {"Enum": enum.Enum, "enum": enum})
        return {name: space[name] for name in names}

    def _definition(self, module: str, name: str) -> ast.FunctionDef:
        for node in ast.walk(self._tree(module)):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                node.decorator_list = []
                return node
        raise InputError(f"TRL {self.source} has no {name} in {module}; get it anew: {_GET}")

    def _function(self, module: str, name: str, **helpers: Any) -> Callable[..., Any]:
        made: Callable[..., Any] = _run([self._definition(module, name)], helpers)[name]
        return made

    def _part(
        self,
        module: str,
        name: str,
        between: tuple[str, str],
        arguments: list[str],
        result: str,
    ) -> Callable[..., Any]:
        """The statements of a function from where one name is first set to where another is."""
        definition = self._definition(module, name)
        first, last = (
            next(i for i, node in enumerate(definition.body) if _sets(node, wanted))
            for wanted in between
        )
        made = ast.parse(f"def part({', '.join(arguments)}):\n    return {result}")
        function = made.body[0]
        assert isinstance(function, ast.FunctionDef)
        function.body[:0] = definition.body[first:last]
        found: Callable[..., Any] = _run([function], {})["part"]
        return found


def _sets(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == name for target in node.targets
    )


def _run(nodes: list[Any], helpers: dict[str, Any]) -> dict[str, Any]:
    """The names that the nodes define."""
    module = ast.fix_missing_locations(ast.Module(body=nodes, type_ignores=[]))
    # Annotations speak of what is not imported here; they are not looked at.
    code = compile(module, "trl", "exec", flags=__future__.annotations.compiler_flag)
    space = {"__builtins__": builtins, "torch": torch, "nn": nn, "F": F, "math": math, **helpers}
    exec(code, space)
    return space


def _trainer(**settings: Any) -> SimpleNamespace:
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=lambda values: values,
        gather_for_metrics=lambda values: values,
        num_processes=1,
        process_index=0,
    )
    return SimpleNamespace(accelerator=accelerator, **settings)
