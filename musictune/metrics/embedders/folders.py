"""Where a model's files lie: a local folder, or fetched from the Hub into its cache."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from musictune.console import quiet_transformers
from musictune.errors import InputError
from musictune.files import sha256

FILES = ("*.json", "*.txt", "*.safetensors")  # a Hub folder also holds pickles: leave them there
OLD_FILES = (*FILES, "pytorch_model.bin")  # of models never published otherwise

_ALLOWED = "use a folder with a transformers model, or an id such as laion/clap-htsat-unfused"


def model_folder(
    path_or_id: str | Path, files: Sequence[str] = FILES, role: str = "embedder"
) -> Path:
    """The local folder of a model; fetched from the Hub where it is an id.

    Args:
        path_or_id: a folder or an id.
        files: patterns of the names that are fetched.
        role: what the model is to do, for messages.

    Raises:
        InputError: a file, a name that is neither, or one that cannot be fetched.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{role} {path_or_id} is a file; {_ALLOWED}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path_or_id)):
        raise InputError(f"unknown {role} {str(path_or_id)!r}; {_ALLOWED}")

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_id), allow_patterns=list(files)))
    except Exception as error:  # the Hub client raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{role} {path_or_id} is no folder here and could not be fetched from the Hugging "
            f"Face Hub ({reason}); check the name and the network"
        ) from error


def folder_hash(folder: Path, files: Sequence[str] = FILES) -> str:
    """Hex SHA-256 over names and contents of a model's files, those that ``files`` match."""
    found = sorted({path for pattern in files for path in folder.glob(pattern)})
    listing = "".join(f"{path.name} {sha256(path)}\n" for path in found)
    return hashlib.sha256(listing.encode()).hexdigest()


def aligned(model: Any) -> Any:
    """The model with its weights copied to memory of their own, and in evaluation mode.

    Weights that are mapped from a file lie where that file has them. Kernels round by one bit
    otherwise on addresses that are not aligned, and a copy in another process would differ.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model.eval()


@contextlib.contextmanager
def loading(name: str, role: str = "embedder") -> Iterator[None]:
    """Inside, transformers is quiet, and whatever it raises says that a model is no use.

    Args:
        name: of the model.
        role: what it is to do, for messages.

    Raises:
        InputError: instead of what was raised.
    """
    try:
        with quiet_transformers():
            yield
    except InputError:
        raise
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{role} {name} cannot be loaded: {reason}") from error


def pretrained(kind: Any, folder: Path, name: str, role: str = "embedder") -> Any:
    """A transformers model of ``kind`` in float32, from a folder's safetensors alone.

    Raises:
        InputError: it lacks weights, which transformers would fill up with random ones.
        Exception: whatever transformers raises; call it inside `loading`.
    """
    model, loaded = kind.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    lost = sorted(loaded["missing_keys"])
    if lost:
        raise InputError(f"{role} {name} lacks {len(lost)} weights, the first {lost[0]}")
    return model
