"""The language model of audiocraft 1.3.0 itself, with the weights of one of our models.

audiocraft pins torch 2.1 and imports a good deal that a language model never uses, so it is not
installed: its source is read from an unpacked folder or from the archive that

    pip download --no-deps --no-binary :all: audiocraft==1.3.0

leaves, and what is missing here is stubbed while it is imported. What runs is its own code, with
the settings of its ``musicgen_lm`` configuration: attention through torch, text states precomputed.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.abc
import importlib.machinery
import re
import shutil
import sys
import tarfile
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musictune.errors import InputError
from musictune.models.musicgen import MusicGen

VERSION = "1.3.0"

_GET = f"pip download --no-deps --no-binary :all: audiocraft=={VERSION}"
_UNUSED = {
    *("av", "demucs", "dora", "encodec", "flashy", "hydra", "julius", "laion_clap", "num2words"),
    *("omegaconf", "spacy", "torchaudio", "torchmetrics", "torchvision", "xformers"),
}
_TEXT = "description"


def language_model(source: Path, model: MusicGen, dtype: torch.dtype = torch.float32) -> Any:
    """audiocraft's ``LMModel`` with the decoder weights of ``model``, which it listens to for text.

    Args:
        source: an unpacked folder or the downloaded archive.
        model: plain, without adapters; its text encoder is used as it is, in its own dtype.
        dtype: of the language model's own weights.

    Raises:
        InputError: no audiocraft 1.3.0 there, or a model that it has no counterpart for.
    """
    lm, conditioners, patterns = _modules(source.absolute())
    config = model.network.config.decoder
    if model.pad != model.vocabulary:
        raise InputError(f"base {model.base}: audiocraft has its start token after the last code")
    text = _listening(conditioners, model, config.hidden_size, dtype)
    made = lm.LMModel(
        patterns.DelayedPatternProvider(
            model.codebooks, [book // model.channels for book in range(model.codebooks)]
        ),
        conditioners.ConditioningProvider({_TEXT: text}, device=str(model.device)),
        conditioners.ConditionFuser({"sum": [], "prepend": [], "cross": [_TEXT]}),
        n_q=model.codebooks,
        card=model.vocabulary,
        dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        hidden_scale=config.ffn_dim / config.hidden_size,
        cross_attention=True,
        causal=True,
        norm_first=True,
        memory_efficient=True,
        dropout=0.0,
        activation="gelu",
        bias_proj=False,
        bias_ff=False,
        bias_attn=False,
        cfg_coef=3.0,
        device=model.device,
        dtype=dtype,
    )
    made.load_state_dict(mapped(model.backbone.state_dict(), made), strict=True)
    return made.to(model.device, dtype).eval()


def generate(
    lm: Any, texts: Sequence[str], frames: int, *, seed: int = 0, greedy: bool = False
) -> Tensor:
    """Codes ``(clips, codebooks, frames)``, top-k 250 and guidance 3 or the likeliest token."""
    attributes = sys.modules["audiocraft.modules.conditioners"].ConditioningAttributes
    torch.manual_seed(seed)
    made: Tensor = lm.generate(
        conditions=[attributes(text={_TEXT: text}) for text in texts],
        max_gen_len=frames,
        use_sampling=not greedy,
        top_k=min(250, lm.card),
        cfg_coef=3.0,
    )
    return made


def logits(lm: Any, texts: Sequence[str], codes: Tensor) -> Tensor:
    """Scores ``(clips, codebooks, frames, vocabulary)`` of ``codes``, teacher-forced."""
    attributes = sys.modules["audiocraft.modules.conditioners"].ConditioningAttributes
    conditions = [attributes(text={_TEXT: text}) for text in texts]
    with torch.no_grad():
        made: Tensor = lm.compute_predictions(codes, conditions, keep_only_valid_steps=False).logits
    return made


def mapped(weights: dict[str, Tensor], lm: nn.Module) -> dict[str, Tensor]:
    """Weights of transformers' MusicGen decoder under audiocraft's names.

    Query, key and value are one matrix there. What ``lm`` has beside the decoder is kept.
    """
    names = (
        (r"model\.decoder\.embed_tokens\.", "emb."),
        (r"model\.decoder\.layer_norm\.", "out_norm."),
        (r"lm_heads\.", "linears."),
        (r"model\.decoder\.layers\.", "transformer.layers."),
        (r"self_attn_layer_norm\.", "norm1."),
        (r"encoder_attn_layer_norm\.", "norm_cross."),
        (r"final_layer_norm\.", "norm2."),
        (r"encoder_attn\.", "cross_attention."),
        (r"fc1\.", "linear1."),
        (r"fc2\.", "linear2."),
    )
    made = dict(lm.state_dict())
    packed: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        for ours, theirs in names:
            name = re.sub(rf"(^|\.){ours}", rf"\g<1>{theirs}", name)
        part = re.fullmatch(r"(.*\.)([qkv])_proj\.weight", name)
        if part:
            packed.setdefault(f"{part[1]}in_proj_weight", {})[part[2]] = weight
        elif not name.endswith("embed_positions.weights"):
            made[name] = weight
    return made | {name: torch.cat([qkv[p] for p in "qkv"]) for name, qkv in packed.items()}


def _listening(conditioners: Any, model: MusicGen, width: int, dtype: torch.dtype) -> Any:
    """A text conditioner of audiocraft's kind that asks ``model`` what a text says."""

    class Listening(conditioners.TextConditioner):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1, width)
            self.output_proj = nn.Identity()

        def tokenize(self, texts: list[str | None]) -> list[str]:
            return [text or "" for text in texts]

        def forward(self, texts: list[str]) -> tuple[Tensor, Tensor]:
            states, mask = model.condition(texts)
            return states.to(dtype), mask

    return Listening()


# --- importing it ---


@functools.cache
def _modules(source: Path) -> tuple[Any, Any, Any]:
    """The modules of language model, conditioners and codebook patterns."""
    folder = _folder(source)
    # These ask which packages are there; they must not see the stubs.
    from transformers import RobertaTokenizer, T5EncoderModel, T5Tokenizer  # noqa: F401

    # What their own __init__ would import is every model and solver there is.
    for name in ("audiocraft", "audiocraft.data", "audiocraft.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    names = ("models.lm", "modules.conditioners", "modules.codebooks_patterns")
    try:
        with _stubbed():
            for name in ("xformers.ops", "xformers.profiler"):
                importlib.import_module(name)
            found = [importlib.import_module(f"audiocraft.{name}") for name in names]
    except ImportError as error:
        raise InputError(
            f"audiocraft {source} cannot be imported: {error}; install that"
        ) from error
    return found[0], found[1], found[2]


def _folder(source: Path) -> Path:
    """The folder that has the package in it."""
    if source.is_file() and source.name.endswith(".tar.gz"):
        folder = Path(tempfile.mkdtemp(prefix="audiocraft-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"audiocraft {source} cannot be unpacked; get it anew: {_GET}"
            ) from error
        source = next(folder.iterdir(), folder)
    init = source / "audiocraft" / "__init__.py"
    text = init.read_text(encoding="utf-8") if init.is_file() else ""
    if f"__version__ = '{VERSION}'" not in text:
        raise InputError(
            f"audiocraft {source} is no unpacked folder or .tar.gz of audiocraft {VERSION}; "
            f"get it: {_GET}"
        )
    return source


@contextmanager
def _stubbed() -> Iterator[None]:
    """Inside, packages that are not installed and not needed can be imported."""
    finder = _Stubs()
    before = set(sys.modules)
    sys.meta_path.append(finder)  # last: what is installed is used
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            # audiocraft imports from xformers anew in every layer of every step.
            if isinstance(sys.modules[name], _Stub) and not name.startswith("xformers"):
                del sys.modules[name]


class _Stub(types.ModuleType):
    """A module of which any name can be imported."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in _UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "xformers.ops":
            module.unbind = torch.unbind  # type: ignore[attr-defined]
        if module.__name__ == "xformers.profiler":
            profiler = types.SimpleNamespace(_CURRENT_PROFILER=None)
            module.profiler = types.SimpleNamespace(_Profiler=profiler)  # type: ignore[attr-defined]
