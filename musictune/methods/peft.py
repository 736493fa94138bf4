"""Any method of Hugging Face PEFT by its name: LoRA, DoRA, PiSSA, IA3, OFT, SHiRA and the rest."""

from __future__ import annotations

import contextlib
import re
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
from musictune.methods.budget import target_pattern
from musictune.methods.principal import (
    START_FILE,
    PrincipalStart,
    check_start,
    takes_from_base,
    unfold,
)
from musictune.methods.storage import load_json, load_tensors
from musictune.models.base import TunableModel

# LoRA with one switch in PEFT; people know them as methods.
_ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("lora", {"use_dora": True}),
    "pissa": ("lora", {"init_lora_weights": "pissa"}),
    # Ours: at the default rank its scaling is 2, as LoRA's is.
    "rslora": ("lora", {"use_rslora": True, "lora_alpha": 8}),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 16, "lora_alpha": 32},
    "ia3": {"feedforward_modules": []},
    # peft would draw their start, and the model would not begin as the base.
    "c3a": {"init_weights": True},
    "fourierft": {"init_weights": True},
}
# Kinds that train factors or few entries and learned faster on held-out clips of a concept (mini,
# 40 steps; of 1e-2, 3e-2 and 1e-1 for the first two, 1e-3 and 3e-3 for the third).
_RATES = {"ia3": 3e-2, "vera": 3e-2, "shira": 3e-3}
# Kinds that adapt something else than linear layers.
_TARGETS = {"ln_tuning": (r"norm", (nn.LayerNorm,))}
# These need a schedule, a task id or token ids that a tuning run does not have, keep what they
# train outside the layers, or fit certain language models only; beft trains biases, as our bitfit
# does for any layer, and pvera draws at random in every pass.
_UNFIT = {
    "adalora",
    "adaption_prompt",
    "beft",
    "frod",
    "lily",
    "poly",
    "pvera",
    "shadow",
    "trainable_tokens",
    "unilora",
    "vblora",
    "xlora",
}


class Peft(TuningMethod):
    """A method of the ``peft`` package on the model's own choice of layers.

    Args:
        kind: what peft calls it, in any case, such as ``lora``, ``miss``, ``oft``, ``vera``,
            ``shira``, ``ia3``; or ``dora``, ``rslora``, ``pissa``.
        options: fields of that method's peft config, over our defaults (rank 16 for LoRA).
        targets: regular expression over layer names, or short names as in ``Pivotal``; the model's
            own choice by default.

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
        self.learning_rate = _RATES.get(self.kind, type(self).learning_rate)
        self.encoder_learning_rate = _RATES.get(self.kind, type(self).encoder_learning_rate)
        self.options = dict(options or {})
        # It trains copies or parts of the base's own weights, which must not be rounded.
        start = {**_ALIASES.get(self.kind, ("", {}))[1], **self.options}
        self.frozen_base = self.kind != "ln_tuning" and not takes_from_base(start)
        self.targets = targets
        self._wrapped: Any = None
        self._start: PrincipalStart | None = None
        self._facts: dict[str, int | float | str] = {}

    def check(self, model: TunableModel) -> None:
        """Refuse targets that match nothing, and options that peft does not know."""
        self._config(model)

    def attach(self, model: TunableModel) -> None:
        """Inject the adapter into the matched layers of the backbone.

        Raises:
            InputError: no layer matched, or peft refuses an option.
        """
        from peft import PeftModel

        layers, config = self._config(model)
        size = sum(p.numel() for p in model.backbone.parameters())
        start = PrincipalStart(layers) if takes_from_base(config.to_dict()) else None
        model.requires_grad_(False)
        try:
            with _quiet():
                self._wrapped = PeftModel(model.backbone, config)
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            _unwrap(model.backbone)
            if start:
                start.put_back()
            raise self._refusal(error) from error
        if start:
            start.note(self._tuned())
        self._start = start
        self._note(model, len(layers), size)

    @contextlib.contextmanager
    def disabled(self, model: TunableModel) -> Iterator[None]:
        """The base itself inside."""
        trained = list(trained_parameters(model).values())
        start = self._start.untouched() if self._start else contextlib.nullcontext()
        try:
            with self._wrapped.disable_adapter(), start:
                yield
        finally:
            # peft freezes an adapter that it switches off.
            for parameter in trained:
                parameter.requires_grad_(True)

    def save(self, model: TunableModel, folder: Path) -> None:
        """A peft folder: ``PeftModel.from_pretrained(network.decoder, folder)`` loads it.

        PiSSA becomes a LoRA of twice the rank, since plain peft knows only the untouched base.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._start:
            with system_errors():
                self._start.save(self._wrapped, folder)
            return
        with _quiet(), system_errors():
            self._wrapped.save_pretrained(str(folder), save_embedding_layers=False)
        # peft writes an empty model card; the run's own card says more.
        (folder / "README.md").unlink(missing_ok=True)

    @classmethod
    def load(cls, model: TunableModel, folder: Path) -> Self:
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
        if takes_from_base(config):
            raise InputError(
                f"adapter {folder} was saved for a base that its start had changed "
                f"({config['init_lora_weights']}); convert it to a plain LoRA with peft first"
            )
        method = cls(kind=_kind(config, folder), targets=config.get("target_modules"))
        _check_names(model.backbone, tensors, folder)
        size = sum(p.numel() for p in model.backbone.parameters())
        layers = {n: m for n, m in model.backbone.named_modules() if isinstance(m, nn.Linear)}
        model.requires_grad_(False)
        try:
            with _quiet(), _only_safetensors(folder) as safe:
                taken = unfold(folder, safe) if (folder / START_FILE).exists() else None
                method._wrapped = PeftModel.from_pretrained(
                    model.backbone, str(safe), is_trainable=True
                )
            tuned = method._tuned()
            if taken is not None:
                method._wrapped.peft_config["default"].init_lora_weights = load_json(
                    folder / START_FILE
                )["init_lora_weights"]
                method._start = PrincipalStart({name: layers[name] for name in tuned})
                method._start.take(tuned, taken)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            _unwrap(model.backbone)
            reason = _first_line(error)
            raise InputError(f"adapter {folder} does not fit this base: {reason}") from error
        method._note(model, len(tuned), size)
        return method

    @torch.no_grad()
    def merge(self, model: TunableModel, weight: float = 1.0) -> None:
        """Fold ``weight`` times the change into the plain weights and detach."""
        # Several kinds (IA3, OFT, BOFT) multiply weights, so scaling an adapter's own tensors
        # would not scale its change: the change is scaled where all kinds are alike.
        before = {
            f"{name}.{key}": p.detach().clone()
            for name, layer in self._tuned().items()
            for key, p in layer.get_base_layer().named_parameters()
        }
        if self._start:
            before |= {f"{name}.weight": w for name, w in self._start.weights.items()}
        with _quiet():
            self._wrapped.merge_and_unload(safe_merge=False)
        self._wrapped = self._start = None
        if weight != 1.0:
            interpolate(model.backbone, before, weight)

    def detach(self, model: TunableModel) -> None:
        """Put the plain layers back."""
        if self._start:
            self._start.put_back()
        self._wrapped.unload()
        if hasattr(model.backbone, "peft_config"):
            del model.backbone.peft_config
        self._wrapped = self._start = None

    def describe(self) -> dict[str, int | float | str]:
        """Matched layers, trained parameters and their share of the backbone."""
        return self._facts

    @classmethod
    def toy(cls) -> Self:
        """Small enough for a test."""
        return cls(kind="lora", options={"r": 2, "lora_alpha": 4})

    def _config(self, model: TunableModel) -> tuple[dict[str, nn.Module], Any]:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind, extra = _ALIASES.get(self.kind, (self.kind, {}))
        regex, types = _TARGETS.get(kind, (model.targets, (nn.Linear,)))
        targets = target_pattern(self.targets) if self.targets else regex
        layers = matched_modules(model.backbone, targets, types)
        options = {**_DEFAULTS.get(kind, {}), **extra, **self.options}
        if self.kind == "pissa" and "lora_alpha" not in self.options:
            options["lora_alpha"] = options["r"]  # the paper's
        check_start(options)
        # peft matches the whole name, ours is a search; a saved regex keeps the folder small, but
        # peft would try all it matches, blocks as well as the layers in them.
        whole = rf".*(?:{targets}).*"
        named = {n for n, _ in model.backbone.named_modules() if re.fullmatch(whole, n)}
        options.setdefault("target_modules", whole if named == set(layers) else sorted(layers))
        config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind.upper()]
        try:
            return layers, config_class(**options)
        except (TypeError, ValueError) as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> InputError:
        return InputError(
            f"peft refused {self.kind} with {self.options}: {_first_line(error)}; set others, such "
            "as method.options.r=8, from peft's documentation of this kind"
        )

    def _tuned(self) -> dict[str, Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return {
            name: module
            for name, module in self._wrapped.base_model.model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    def _note(self, model: TunableModel, layers: int, size: int) -> None:
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


def _kind(config: dict[str, Any], folder: Path) -> str:
    """What people call the method of a peft folder."""
    if (folder / START_FILE).exists():
        start = str(load_json(folder / START_FILE).get("init_lora_weights"))
        return "pissa" if start.startswith("pissa") else "lora"
    if config.get("use_dora"):
        return "dora"
    return "rslora" if config.get("use_rslora") else str(config.get("peft_type", ""))


def _unwrap(backbone: nn.Module) -> None:
    """Put plain layers back where peft gave up half-way."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            backbone.set_submodule(name, module.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
