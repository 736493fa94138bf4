"""Reading audio encoders: which class, which front end, and how much is heard at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.models.front import Front, Spectrogram, Waveform
from musictune.models.mert import MERT, read_mert
from musictune.models.places import explained, find_base

MINI = Path(__file__).resolve().parent.parent / "bundled" / "mini" / "ast"
AST = "audio-spectrogram-transformer"
WAVES = ("wav2vec2", "hubert", "wavlm", "unispeech-sat", "unispeech", "data2vec-audio")
_REMADE = "musictune pretrain --config configs/pretrain_ast.yaml"
ALLOWED = (
    "use mini, a local model folder, or a Hugging Face id such as "
    "MIT/ast-finetuned-audioset-10-10-0.4593"
)
_MOST_SECONDS = 600.0
_WAVE_SECONDS = 10.0  # these hear any length; memory grows with its square
# Masking in training mode draws from numpy, which no seed of ours reaches.
_PLAIN = {"apply_spec_augment": False, "layerdrop": 0.0}


@dataclass(frozen=True)
class Encoder:
    """A base as it was read.

    Attributes:
        network: transformers' model for audio classification.
        front: what it hears.
        seconds: how much it hears at once.
        named: whether its head came with it; a random one names nothing.
    """

    network: Any
    front: Front
    seconds: float
    named: bool


def read_encoder(base: str, seconds: float | None = None) -> Encoder:
    """A network for audio classification, its front end, and the seconds it hears at once.

    Raises:
        InputError: no such base, another kind of model, files that are missing or damaged, or
            seconds that are too few or too many for it.
    """
    place = find_base(base, MINI, _REMADE, ALLOWED)
    with explained(base), quiet_transformers():
        kind = _kind(place)
        if kind == MERT:
            network, extractor, lost = read_mert(place, base)
        elif kind == AST or kind in WAVES:
            network, extractor, lost = _read(place, kind)
        else:
            raise InputError(f"base {base} is a {kind} model, not an audio encoder; {ALLOWED}")
    # A head is made for each use; an encoder that is not whole is no encoder.
    body = f"{network.base_model_prefix}."
    gone = sorted(name for name in lost if name.startswith(body))
    if gone:
        raise InputError(
            f"base {base} lacks {len(gone)} weights, the first {gone[0]}; fetch or save it again"
        )
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"base {base} has weights that are no numbers, in {name}; save others")
    _check_extractor(network.config, extractor, base)
    return _fitted(network, extractor, seconds, not lost)


def _kind(place: str) -> str:
    """The ``model_type`` that a base says it is; no class is built and no code run for it."""
    from transformers import PretrainedConfig

    settings, _ = PretrainedConfig.get_config_dict(place, local_files_only=Path(place).is_dir())
    return str(settings.get("model_type", "nameless"))


def _read(place: str, kind: str) -> tuple[Any, Any, set[str]]:
    """Network and extractor by transformers' own classes, and the names of weights they lack."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification

    local: dict[str, Any] = {
        "trust_remote_code": False, "local_files_only": Path(place).is_dir(),
    }  # fmt: skip
    config = AutoConfig.from_pretrained(place, **local)
    if kind != AST:
        for name, value in _PLAIN.items():
            setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a head that did not come with it is at least always the same
        network, loaded = AutoModelForAudioClassification.from_pretrained(
            place, config=config, dtype=torch.float32, use_safetensors=True, weights_only=True,
            output_loading_info=True, **local,
        )  # fmt: skip
    try:
        extractor = AutoFeatureExtractor.from_pretrained(place, **local)
    except OSError as error:
        raise InputError(
            f"base {place} has no usable preprocessor_config.json; fetch it, or write it with the "
            "extractor's save_pretrained"
        ) from error
    return network, extractor, set(loaded["missing_keys"])


def _check_extractor(config: Any, extractor: Any, base: str) -> None:
    """Refuse what would crash, or hear something else than the network was trained on."""
    bands = getattr(extractor, "num_mel_bins", 0)
    wanted = config.num_mel_bins if config.model_type == AST else 0
    if bands != wanted:
        what = [f"a spectrogram of {n} bands" if n else "a wave" for n in (bands, wanted)]
        raise InputError(
            f"base {base}: its preprocessor_config.json makes {what[0]}, and its config.json "
            f"wants {what[1]}; fetch both from one place"
        )


def _fitted(network: Any, extractor: Any, seconds: float | None, named: bool = True) -> Encoder:
    if seconds is not None and not 0 < seconds <= _MOST_SECONDS:
        raise InputError(f"seconds {seconds} must be above 0 and at most {_MOST_SECONDS:g}")
    if network.config.model_type != AST:
        front = Waveform(extractor, _least(network))
        heard = seconds or _WAVE_SECONDS
        if front.steps(heard) < front.least:
            raise InputError(
                f"seconds {seconds} are too few: this encoder hears {front.least} samples at "
                f"once; give at least {math.ceil(1e4 * front.least / front.rate) / 1e4}"
            )
        return Encoder(network, front, heard, named)
    spectrogram = Spectrogram(extractor)
    if seconds is not None:
        set_frames(network, extractor, spectrogram.steps(seconds))
    heard = network.config.max_length / spectrogram.rate
    return Encoder(network, spectrogram, heard, named)


def _least(network: Any) -> int:
    """Samples from which a wave encoder makes its first token."""
    least = 1
    config = network.config
    for kernel, stride in zip(
        reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
    ):
        least = (least - 1) * stride + kernel
    return int(least)


@torch.no_grad()
def set_frames(network: Any, extractor: Any, frames: int) -> None:
    """Let an AST read spectrograms of ``frames``: the middle of its table of positions, or all of
    it stretched, as in its paper (Gong et al. 2021, arXiv 2104.01778, section 2.2).

    Raises:
        InputError: that is less than one patch.
    """
    config = network.config
    if frames < config.patch_size:
        raise InputError(
            f"{frames / 100:g} s are {frames} frames, less than one patch of {config.patch_size}; "
            f"give seconds of at least {config.patch_size / 100:g}"
        )
    embeddings = network.base_model.embeddings
    rows, columns = embeddings.get_shape(config)
    config.max_length = extractor.max_length = frames
    _, wanted = embeddings.get_shape(config)
    table = embeddings.position_embeddings
    ends, grid = table[:, :2], table[:, 2:].transpose(1, 2).unflatten(2, (rows, columns))
    if wanted <= columns:
        start = (columns - wanted) // 2
        grid = grid[..., start : start + wanted]
    else:
        grid = F.interpolate(grid, (rows, wanted), mode="bilinear", align_corners=False)
    table = torch.cat([ends, grid.flatten(2).transpose(1, 2)], 1)
    embeddings.position_embeddings = nn.Parameter(table.contiguous())


def toy_encoder(kind: str) -> Encoder:
    """A few thousand random weights, the same for each ``kind``."""
    from transformers import (
        ASTConfig,
        ASTFeatureExtractor,
        ASTForAudioClassification,
        HubertConfig,
        HubertForSequenceClassification,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    common: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "num_labels": 3, "initializer_range": 0.3,
    }  # fmt: skip
    waves: dict[str, Any] = {
        "conv_dim": [8, 8, 8], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 8],
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
        "classifier_proj_size": 16, **_PLAIN,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "ast":
            config = ASTConfig(
                num_mel_bins=16, max_length=48, patch_size=8, frequency_stride=8, time_stride=8,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **common,
            )  # fmt: skip
            network: Any = ASTForAudioClassification(config)
            _settle(network)
            return _fitted(network, ASTFeatureExtractor(num_mel_bins=16, max_length=48), None)
        makers: dict[str, tuple[Any, Any]] = {
            "wav2vec2": (Wav2Vec2ForSequenceClassification, Wav2Vec2Config),
            "hubert": (HubertForSequenceClassification, HubertConfig),
        }
        if kind not in makers:
            raise InputError(f"toy {kind!r} is unknown; choose ast, {', '.join(makers)}")
        model, settings = makers[kind]
        dropouts = ("hidden", "attention", "activation", "feat_proj", "final")
        off = {f"{name}_dropout": 0.0 for name in dropouts}
        network = model(settings(**common, **waves, **off))
        _settle(network)
        return _fitted(network, Wav2Vec2FeatureExtractor(sampling_rate=8000), 0.5)


def _settle(network: Any) -> None:
    """Random values where transformers begins with zeros, so that everything has an effect."""
    for name, parameter in network.named_parameters():
        if name.endswith(("position_embeddings", "cls_token", "distillation_token", "bias")):
            parameter.data.normal_(0, 0.1)
