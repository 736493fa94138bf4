"""Reading a CLAP for tuning, and a tiny random one."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import torch

from musictune.console import quiet_transformers
from musictune.errors import InputError

MINI = Path(__file__).resolve().parent.parent / "bundled" / "mini" / "clap"
ALLOWED = (
    "use mini, a folder with a transformers ClapModel, or a Hugging Face id such as "
    "laion/clap-htsat-unfused"
)
_FILES = ("*.json", "*.txt", "*.safetensors")  # a Hub folder also holds pickles: leave them there


def find_clap(base: str) -> Path:
    """The folder behind ``base``, which holds a CLAP's ``config.json``; fetched if it is an id.

    Raises:
        InputError: no such base, or another kind of model.
    """
    folder = _folder(base)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"base {base} has no usable config.json; {ALLOWED}") from error
    if kind != "clap":
        raise InputError(f"base {base} is a {kind} model, not a CLAP; {ALLOWED}")
    return folder


def read_clap(base: str) -> tuple[Any, Any, Any]:
    """A ``ClapModel`` in float32, its tokenizer and its feature extractor, from safetensors alone.

    Raises:
        InputError: as `find_clap`, or files that are missing, damaged or incomplete.
    """
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    folder = find_clap(base)
    try:
        with quiet_transformers():
            network, loaded = ClapModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, weights_only=True,
                local_files_only=True, output_loading_info=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"base {base} cannot be loaded: {reason}") from error
    if lost := sorted(loaded["missing_keys"]):
        raise InputError(
            f"base {base} lacks {len(lost)} weights, the first {lost[0]}; fetch or save it again"
        )
    # Weights that are mapped from a file round otherwise than a copy in memory of their own.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network, tokenizer, extractor


def _folder(base: str) -> Path:
    if base == "mini":
        if not (MINI / "config.json").is_file():
            raise InputError(f"the bundled CLAP is missing from {MINI}; install musictune again")
        return MINI
    folder = Path(base)
    if base and folder.is_dir():
        return folder
    if base and folder.exists():
        raise InputError(f"base {base} is a file; {ALLOWED}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base):
        raise InputError(f"unknown base {base!r}; {ALLOWED}")

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=list(_FILES)))
    except Exception as error:  # the Hub client raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"base {base} is no folder here and could not be fetched from the Hugging Face Hub "
            f"({reason}); check the name and the network"
        ) from error


def toy_parts() -> tuple[Any, Any, Any]:
    """A random ``ClapModel`` of some thousand weights that hears 1 s at 8 kHz and reads letters."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    tokenizer = _letters()
    tower = {"hidden_size": 16, "projection_dim": 8, "initializer_factor": 10.0}
    audio = {
        "num_mel_bins": 16, "spec_size": 32, "patch_size": 4, "patch_stride": [4, 4],
        "window_size": 4, "patch_embeds_hidden_size": 8, "depths": [1, 1],
        "num_attention_heads": [1, 2], "num_hidden_layers": 2,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 200,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    extractor = ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=160, max_length_s=1, fft_window_size=256,
        frequency_min=50, frequency_max=4000, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ClapConfig(projection_dim=8, audio_config=tower | audio, text_config=tower | text)
        network = ClapModel(config)
        # Of eight rectified channels all may be shut, and a point at zero has no direction.
        for projection in (network.audio_projection, network.text_projection):
            torch.nn.init.normal_(projection.linear2.bias, std=0.1)
        return network, tokenizer, extractor


def _letters() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "</s>", "<unk>", "<s>"]
    known = {token: i for i, token in enumerate([*marks, *string.ascii_lowercase, " ", ","])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", known["<s>"]), ("</s>", known["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        bos_token="<s>", model_max_length=190,
    )  # fmt: skip
