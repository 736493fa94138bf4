"""Reading a base model's folder safely, and saying in one line what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin

from musictune.console import quiet_transformers
from musictune.data.concepts import Concept
from musictune.errors import InputError
from musictune.models import codec as codec  # known to transformers from here on
from musictune.models.places import explained, find_base

MINI = Path(__file__).resolve().parent.parent / "bundled" / "mini" / "musicgen"
CONCEPTS = "musictune_concepts.json"
NETWORKS = {
    "musicgen": MusicgenForConditionalGeneration,
    "musicgen_melody": MusicgenMelodyForConditionalGeneration,
}
"""What is read, by ``model_type`` in ``config.json``."""
ALLOWED = "use mini, a local model folder, or a Hugging Face id such as facebook/musicgen-small"


def check(base: str) -> str:
    """The folder or id behind ``base``, without reading weights: cheap enough to ask first.

    Raises:
        InputError: no such base, or a folder without a MusicGen's ``config.json``.
    """
    place = find_base(base, MINI, "musictune pretrain", ALLOWED)
    if Path(base).is_dir() and base != "mini":
        _check_config(Path(place))
    return place


def kind(base: str) -> str:
    """``model_type`` of ``base``, one of `NETWORKS`; fetches only ``config.json``.

    Raises:
        InputError: see :func:`check`; also another kind of model, or no network.
    """
    place = check(base)
    with explained(base), quiet_transformers():
        found: str = AutoConfig.from_pretrained(
            place, trust_remote_code=False, local_files_only=Path(place).is_dir()
        ).model_type
    if found not in NETWORKS:
        raise InputError(f"base {base} is a {found} model, not a MusicGen; {ALLOWED}")
    return found


def read(base: str, dtype: torch.dtype, wanted: str = "musicgen") -> tuple[Any, Any]:
    """The network and the tokenizer of ``base``, which must be of the kind ``wanted``.

    Raises:
        InputError: see :func:`kind`; also corrupt or incomplete weights.
    """
    found = kind(base)
    if found != wanted:
        raise InputError(f"base {base} is a {found} model where a {wanted} model is needed")
    place = check(base)
    local = Path(place).is_dir()
    with explained(base), quiet_transformers():
        network, loaded = NETWORKS[wanted].from_pretrained(
            place,
            dtype=dtype,
            use_safetensors=True,
            weights_only=True,
            trust_remote_code=False,
            local_files_only=local,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            place, trust_remote_code=False, local_files_only=local
        )
    if loaded["missing_keys"]:
        lost = sorted(loaded["missing_keys"])
        raise InputError(
            f"base {base} lacks {len(lost)} weights, the first {lost[0]}; fetch or save it again"
        )
    return network, tokenizer


def read_preprocessor(base: str) -> dict[str, Any]:
    """The fields of ``preprocessor_config.json``; none for a folder that has no such file.

    Raises:
        InputError: see :func:`check`; also a damaged file, or no network.
    """
    place = check(base)
    local = Path(place).is_dir()
    names = ("preprocessor_config.json", "processor_config.json")
    if local and not any((Path(place) / name).is_file() for name in names):
        return {}
    with explained(base), quiet_transformers():
        fields: dict[str, Any]
        fields, _ = FeatureExtractionMixin.get_feature_extractor_dict(place, local_files_only=local)
    return fields


def read_concepts(base: str) -> list[Concept]:
    """The concepts that were merged into ``base``, if any.

    Raises:
        InputError: the file that lists them is damaged.
    """
    path = Path(check(base)) / CONCEPTS
    if not path.is_file():
        return []
    try:
        return [Concept(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise InputError(f"base {base}: {CONCEPTS} is damaged; merge the adapter again") from error


def write_concepts(concepts: Sequence[Concept], folder: Path) -> None:
    """Let a saved model keep the names of what was merged into it."""
    text = json.dumps([asdict(concept) for concept in concepts], indent=2)
    (folder / CONCEPTS).write_text(text + "\n", encoding="utf-8")


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"base {folder}: config.json is not a JSON object; {ALLOWED}") from error
    if found not in NETWORKS:
        raise InputError(f"base {folder} is a {found} model, not a MusicGen; {ALLOWED}")
    # Without either, transformers would make up a tokenizer that knows no word.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise InputError(f"base {folder} has no tokenizer.json; save its tokenizer there too")
