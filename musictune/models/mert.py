"""MERT as an encoder to tune: transformers' HuBERT with its weights, and none of its own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musictune.errors import InputError

MERT = "mert_model"
"""What its ``config.json`` calls it."""

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin")
_FOREIGN = ("deepnorm", "feature_extractor_cqt")  # what HuBERT has not
_NOT_SETTINGS = ("model_type", "auto_map", "architectures", "dtype", "torch_dtype")
_TOKEN = "masked_spec_embed"


def read_mert(place: str, base: str) -> tuple[Any, Any, set[str]]:
    """A MERT (Li et al. 2023, arXiv 2306.00107) as HuBERT for classification.

    What its published code does otherwise, ``attention_relax``, leaves the softmax as it is.

    Args:
        place: a folder or a Hugging Face id.
        base: its name, for messages.

    Returns:
        Network, extractor, and the names of weights that its files lack; those of the head always.

    Raises:
        InputError: one that HuBERT cannot stand for, or without weights.
        Exception: what transformers, safetensors and torch raise of damaged files.
    """
    from transformers import HubertConfig, HubertForSequenceClassification, Wav2Vec2FeatureExtractor

    folder = Path(place)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(place, allow_patterns=list(_FILES)))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for option in _FOREIGN:
        if settings.get(option):
            raise InputError(
                f"base {base} uses {option}, which HuBERT has not; use m-a-p/MERT-v1-95M"
            )
    weights = _weights(folder, base)
    kept = {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}
    kept |= {"apply_spec_augment": False, "layerdrop": 0.0}
    if _TOKEN not in weights:  # HuBERT has that vector only where it would be used
        kept |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the head is random, but always the same
        network = HubertForSequenceClassification(HubertConfig(**kept))
    lost = network.hubert.load_state_dict(weights, strict=False).missing_keys
    head = [name for name, _ in network.named_parameters() if not name.startswith("hubert.")]
    return network, extractor, {f"hubert.{name}" for name in lost} | set(head)


def _weights(folder: Path, base: str) -> dict[str, Tensor]:
    """The encoder's tensors in float32, from safetensors or the tensors of a PyTorch file."""
    safe, old = folder / _FILES[2], folder / _FILES[3]
    if safe.is_file():
        from safetensors.torch import load_file

        found: Any = load_file(safe)
    elif old.is_file():
        found = torch.load(old, map_location="cpu", weights_only=True)
    else:
        raise InputError(f"base {base} has no weights; {safe.name} or {old.name} is needed")
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"base {base}: {old.name} holds more than tensors; use safetensors")
    return {name.removeprefix("hubert."): tensor.float() for name, tensor in found.items()}
