"""Any method of Hugging Face PEFT by its name: LoRA, DoRA, IA3, OFT, LoKr and the rest."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from musictune.errors import InputError
from musictune.files import system_errors
from musictune.methods.base import TuningMethod, interpolate, matched_modules, trained_parameters
from musictune.methods.storage import load_json, load_tensors
from musictune.models.base import MusicModel

# DoRA is LoRA with one switch in PEFT; people know it as a method.
_ALIASES: dict[str, tuple[str, dict[str, Any]]] = {"dora": ("lora", {"use_dora": True})}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 16, "lora_alpha": 32},
    "ia3": {"feedforward_modules": []},
}
# Kinds that adapt something else than linear layers.
_TARGETS = {"ln_tuning": (r"norm", (nn.LayerNorm,))}
# These need a schedule, a task id or token ids that a tuning run does not have, keep what they
# train outside the layers, or fit certain language models only.
_UNFIT = {
    "adalora",
    "adaption_prompt",
    "frod",
    "lily",
    "poly",
    "shadow",
    "trainable_tokens",
    "unilora",
    "vblora",
    "xlora",
}


class Peft(TuningMethod):
    """A method of the ``peft`` package on the model's own choice of layers.

    Args:
        kind: what peft calls it, in any case, such as ``lora``, ``ia3``, ``oft``, or ``dora``.
        options: fields of that method's peft config, over our defaults (rank 16 for LoRA).
        targets: regular expression over layer names; the model's own choice by default.

    Raises:
        InputError: ``kind`` is unknown.
    """

    name: ClassVar[str] = "peft"
    learning_rate = 1e-3

    def __init__(
        self,
        kind: str = "lora",
        options: dict[str, Any] | None = None,
        targets: str | None = None,
    ) -> None:
        self.kind = kind.lower()
        allowed = kinds()
        if self.kind not in allowed:
            raise InputError(f"peft kind {kind!r} is unknown; choose from {', '.join(allowed)}")
        self.options = dict(options or {})
        self.targets = targets
        self._wrapped: Any = None
        self._facts: dict[str, int | float | str] = {}

    def check(self, model: MusicModel) -> None:
        """Refuse targets that match nothing, and options that peft does not know."""
        self._config(model)

    def attach(self, model: MusicModel) -> None:
        """Inject the adapter into the matched layers of the backbone.

        Raises:
            InputError: no layer matched, or peft refuses an option.
        """
        from peft import PeftModel

        layers, config = self._config(model)
        size = sum(p.numel() for p in model.backbone.parameters())
        model.requires_grad_(False)
        try:
            with _quiet():
                self._wrapped = PeftModel(model.backbone, config)
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"peft refused {self.kind} with {self.options}: {error}") from error
        self._note(model, layers, size)

    @contextlib.contextmanager
    def disabled(self, model: MusicModel) -> Iterator[None]:
        """The base itself inside."""
        trained = list(trained_parameters(model).values())
        with self._wrapped.disable_adapter():
            yield
        # peft freezes an adapter that it switches off.
        for parameter in trained:
            parameter.requires_grad_(True)

    def save(self, model: MusicModel, folder: Path) -> None:
        """A peft folder: ``PeftModel.from_pretrained(network.decoder, folder)`` loads it."""
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet(), system_errors():
            self._wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        # peft writes an empty model card; the run's own card says more.
        (folder / "README.md").unlink(missing_ok=True)

    @classmethod
    def load(cls, model: MusicModel, folder: Path) -> Self:
        """Attach a peft folder, ours or anyone's for this backbone.

        Raises:
            InputError: a file is missing or corrupt, or made for another base.
        """
        from peft import PeftModel

        config = load_json(folder / "adapter_config.json")
        tensors = load_tensors(folder / "adapter_model.safetensors")
        if config.get("megatron_config"):
            # peft would import the module that megatron_core names.
            raise InputError(f"adapter {folder} asks for Megatron, which is not supported")
        if not tensors:
            raise InputError(f"adapter {folder} is damaged: it changes no layer")
        kind = "dora" if config.get("use_dora") else str(config.get("peft_type", ""))
        method = cls(kind=kind, targets=config.get("target_modules"))
        _check_names(model.backbone, tensors, folder)
        size = sum(p.numel() for p in model.backbone.parameters())
        model.requires_grad_(False)
        try:
            with _quiet(), _only_safetensors(folder) as safe:
                method._wrapped = PeftModel.from_pretrained(
                    model.backbone, str(safe), is_trainable=True
                )
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise InputError(f"adapter {folder} does not fit this base: {reason}") from error
        method._note(model, len(method._tuned()), size)
        return method

    @torch.no_grad()
    def merge(self, model: MusicModel, weight: float = 1.0) -> None:
        """Fold ``weight`` times the change into the plain weights and detach."""
        # Several kinds (IA3, OFT, BOFT) multiply weights, so scaling an adapter's own tensors
        # would not scale its change: the change is scaled where all kinds are alike.
        layers = self._tuned()
        before = {
            f"{name}.{key}": p.detach().clone()
            for name, layer in layers.items()
            for key, p in layer.get_base_layer().named_parameters()
        }
        with _quiet():
            self._wrapped.merge_and_unload(safe_merge=False)
        self._wrapped = None
        if weight != 1.0:
            interpolate(model.backbone, before, weight)

    def detach(self, model: MusicModel) -> None:
        """Put the plain layers back."""
        self._wrapped.unload()
        if hasattr(model.backbone, "peft_config"):
            del model.backbone.peft_config
        self._wrapped = None

    def describe(self) -> dict[str, int | float | str]:
        """Matched layers, trained parameters and their share of the backbone."""
        return self._facts

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(kind="lora", options={"r": 2, "lora_alpha": 4})

    def _config(self, model: MusicModel) -> tuple[int, Any]:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind, extra = _ALIASES.get(self.kind, (self.kind, {}))
        regex, types = _TARGETS.get(kind, (model.targets, (nn.Linear,)))
        targets = self.targets or regex
        layers = matched_modules(model.backbone, targets, types)
        options = {**_DEFAULTS.get(kind, {}), **extra, **self.options}
        # peft matches the whole name, ours is a search; a saved regex keeps the folder small.
        options.setdefault("target_modules", rf".*(?:{targets}).*")
        config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind.upper()]
        try:
            return len(layers), config_class(**options)
        except (TypeError, ValueError) as error:
            raise InputError(f"peft refused {self.kind} with {self.options}: {error}") from error

    def _tuned(self) -> dict[str, Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {
            name: module
            for name, module in self._wrapped.base_model.model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    def _note(self, model: MusicModel, layers: int, size: int) -> None:
        trained = sum(p.numel() for p in trained_parameters(model.backbone).values())
        self._facts = {
            "method": f"{self.name}:{self.kind}",
            "matched_layers": layers,
            "trained_parameters": trained,
            "share_of_backbone": trained / max(size, 1),
        }


def kinds() -> list[str]:
    """Every kind that can adapt a backbone, by its short name."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    names = {
        str(getattr(kind, "value", kind)).lower()
        for kind in PEFT_TYPE_TO_TUNER_MAPPING
        if "target_modules" in PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    }
    return sorted((names | set(_ALIASES)) - _UNFIT)


def _check_names(backbone: nn.Module, tensors: dict[str, Any], folder: Path) -> None:
    """Refuse an adapter for layers that this backbone lacks; peft would only warn."""
    names = {name for name, _ in backbone.named_modules() if name}
    for key in tensors:
        path = key.removeprefix("base_model.model.")
        if path == key:
            continue  # shared tensors, such as VeRA's projections, belong to no layer
        parent = path
        while parent and parent not in names:
            parent = parent.rpartition(".")[0]
        if "layers" in path.split(".") and not any(c.isdigit() for c in parent):
            raise InputError(f"adapter {folder} was made for another base: it has no {path}")


@contextlib.contextmanager
def _only_safetensors(folder: Path) -> Iterator[Path]:
    """A copy of the two files peft needs, so that it cannot find an older pickled file."""
    with tempfile.TemporaryDirectory() as temporary:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(folder / file, Path(temporary) / file)
        yield Path(temporary)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
