"""Where bases lie, and one line for whatever goes wrong when one is read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from musictune.errors import InputError


def find_base(base: str, bundled: Path, remade: str, allowed: str) -> str:
    """The folder or Hub id behind ``base``, without reading anything.

    Args:
        base: ``mini``, a local folder, or a Hugging Face id.
        bundled: where ``mini`` lies.
        remade: how to make it again.
        allowed: what could have been given.

    Raises:
        InputError: no such base.
    """
    if base == "mini":
        if not (bundled / "config.json").is_file():
            raise InputError(
                f"the bundled base mini is missing from {bundled}; install musictune again or make "
                f"it with `{remade}`"
            )
        return str(bundled)
    folder = Path(base)
    if base and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"base {folder} has no config.json, so it is no model folder; {allowed}"
            )
        return str(folder)
    if base and folder.exists():
        raise InputError(f"base {base} is a file; {allowed}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base):
        raise InputError(f"unknown base {base!r}; {allowed}")
    return base


@contextlib.contextmanager
def explained(base: str) -> Iterator[None]:
    """Inside, what transformers and the Hub client raise becomes one line."""
    try:
        yield
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"base {base}: corrupt safetensors ({error}); fetch it again") from error
    except Exception as error:  # they raise many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "ignore_mismatched_sizes" in reason:  # transformers speaks of a report that is not shown
            reason = "its weights have other shapes than its config.json says"
        if base == "mini" or Path(base).is_dir():
            raise InputError(f"base {base} cannot be loaded: {reason}") from error
        raise InputError(
            f"base {base} is no folder here and could not be fetched from the Hugging Face Hub "
            f"({reason}); check the name and the network, or use mini or a local folder"
        ) from error
