"""Codec tokens of music we made ourselves, kept beside the sound: encoding it again gives others.

They lie in ``NAME.tokens.safetensors`` beside ``NAME.wav``, with the codec's key and the sound's
SHA-256, so that neither another codec nor a changed sound is ever given the wrong tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from musictune.errors import InputError
from musictune.files import publish_file, sha256

_SUFFIX = ".tokens.safetensors"


def keep_tokens(wav: Path, codes: Tensor, codec_key: str) -> None:
    """Write the tokens of a sound file beside it.

    Args:
        wav: the sound, already written.
        codes: ``(codebooks, frames)`` integers from 0 on.
        codec_key: names the codec exactly.

    Raises:
        InputError: there is no such sound, the codes have another shape, or they cannot be written.
    """
    if not wav.is_file():
        raise InputError(f"sound file {wav} does not exist; write it before its tokens")
    if codes.ndim != 2 or not codes.numel() or codes.is_floating_point() or int(codes.min()) < 0:
        raise InputError(
            f"codec tokens of {wav} have shape {tuple(codes.shape)} and type {codes.dtype}; "
            "(codebooks, frames) of integers from 0 on are needed"
        )
    small = int(codes.max()) <= torch.iinfo(torch.int16).max
    kept = codes.detach().cpu().to(torch.int16 if small else torch.int64).contiguous()
    facts = {"codec_key": codec_key, "sha256": sha256(wav)}
    with publish_file(_beside(wav)) as temporary:
        temporary.write_bytes(save({"codes": kept}, metadata=facts))


def kept_tokens(wav: Path, codec_key: str) -> Tensor | None:
    """The tokens kept beside a sound file, ``(codebooks, frames)`` int64.

    None if there are none, they are damaged or of another codec, or the sound has changed.
    """
    try:
        with safe_open(_beside(wav), framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("codec_key") != codec_key or facts.get("sha256") != sha256(wav):
                return None
            codes: Tensor = file.get_tensor("codes")
    except (OSError, SafetensorError):
        return None
    whole = codes.dtype in (torch.int16, torch.int64)
    if not whole or codes.ndim != 2 or not codes.numel() or int(codes.min()) < 0:
        return None
    return codes.long()


def _beside(wav: Path) -> Path:
    return wav.with_name(wav.stem + _SUFFIX)
