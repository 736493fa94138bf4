"""Whole files and folders or none: everything is written beside its target and renamed into place.

A plain ``rename`` survives a killed process; ``fsync`` of the file and of its folder is what makes
it survive a lost machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from musictune.errors import InputError


@contextlib.contextmanager
def publish_file(target: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling of ``target``; on success it becomes ``target``, else it goes.

    Raises:
        InputError: the folder is missing, not writable, or the disk is full.
    """
    target = Path(target)
    # The suffix stays last because soundfile and safetensors read the format off it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise readable(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def publish_folder(target: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a fresh temporary sibling folder that becomes ``target`` only if the block succeeds.

    Raises:
        InputError: ``target`` exists and is not empty (unless ``overwrite``), or cannot be written.
    """
    target = Path(target)
    check_target(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise readable(error, target) from error
    try:
        yield temporary
        move_folder(temporary, target)
    except OSError as error:
        raise readable(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, replacing a folder that is there."""
    if target.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        try:
            target.rename(retired / "old")
        except OSError:
            retired.rmdir()
            raise
        source.rename(target)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        source.rename(target)
    _sync(target.parent)


def check_target(
    target: Path | str, *, overwrite: bool = False, inputs: Iterable[Path | str] = ()
) -> None:
    """Refuse an output folder that would lose something or cannot be, before any work is done.

    Args:
        target: what will be renamed into place.
        overwrite: it may have something in it.
        inputs: what is read, which replacing ``target`` must not take away.

    Raises:
        InputError: ``target`` is a file, a folder with something in it and not ``overwrite``, one
            that holds an input or the current folder, or one that cannot be renamed or written.
    """
    target = Path(target)
    for path in map(Path, inputs):
        if _real(path).is_relative_to(_real(target)):
            raise InputError(f"output {target} would replace {path}; choose another --out")
    if target.exists() and not target.is_dir():
        raise InputError(f"output {target} is a file; choose a folder")
    if Path.cwd().is_relative_to(_real(target)) or os.path.ismount(target):
        raise InputError(
            f"output {target} cannot be replaced as a whole; name a new folder, such as "
            f"{target / 'out'}"
        )
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise InputError(
            f"output {target} already exists; choose another --out or pass --overwrite"
        )
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"output {target} lies under {parent}, which is a file; choose a folder")
    if not os.access(parent, os.W_OK):
        raise InputError(f"output {target} cannot be written: no permission in {parent}")


def readable(error: OSError, target: Path | str) -> InputError:
    """An operating-system error as one line about ``target``."""
    if error.errno == errno.ENOSPC:
        return InputError(f"disk full while writing {target}; free some space and run again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"no permission to write {target}; choose another place")
    return InputError(f"cannot write {target}: {error.strerror or error}")


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Inside, what safetensors makes of the system's errors is an ``OSError`` again."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _real(path: Path) -> Path:
    """Where links lead; unlike ``resolve`` it says nothing of a loop, which opening will."""
    return Path(os.path.realpath(path))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
