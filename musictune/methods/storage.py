"""Reading and writing what adapters are made of: safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from musictune.errors import InputError
from musictune.files import system_errors

Built = TypeVar("Built")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write ``tensors`` to a safetensors file.

    Raises:
        OSError: the disk is full or not writable.
    """
    with system_errors():
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: it is missing, cut short or not safetensors at all.
    """
    if not path.is_file():
        raise InputError(f"adapter file {path} is missing; tune again or copy the whole folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"adapter file {path} is damaged ({_first_line(error)}); copy it again or tune again"
        ) from error


def save_json(content: Mapping[str, Any], path: Path) -> None:
    """Write ``content`` as readable JSON."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: it is missing or no JSON object.
    """
    if not path.is_file():
        raise InputError(f"adapter file {path} is missing; tune again or copy the whole folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"adapter file {path} is damaged ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"adapter file {path} is damaged (an object was expected)")
    return content


def from_options(kind: type[Built], config: Mapping[str, Any], folder: Path) -> Built:
    """``kind`` built from the ``options`` in a saved config.

    Raises:
        InputError: the options are not ones that ``kind`` knows.
    """
    try:
        return kind(**config["options"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"adapter {folder} is damaged or of a newer musictune: bad options ({error})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
