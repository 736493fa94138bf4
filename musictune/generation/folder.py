"""A folder of made music: sound files and ``manifest.jsonl``, one line per file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

from musictune import console
from musictune.audio import Clip, write
from musictune.data.concepts import plain
from musictune.errors import InputError, MusictuneError
from musictune.files import publish_folder, readable, sha256
from musictune.generation.engine import Engine
from musictune.generation.longform import decode_long
from musictune.generation.request import Request
from musictune.generation.sampling import Sampling
from musictune.models.musicgen import MusicGen

MANIFEST = "manifest.jsonl"


def write_music(
    model: MusicGen,
    prompts: Sequence[str],
    out: Path,
    *,
    seconds: float = 10.0,
    count: int = 1,
    seed: int = 0,
    sampling: Sampling = Sampling(),
    batch: int = 8,
    precision: str = "auto",
    suffix: str = "wav",
    adapters: Sequence[Mapping[str, object]] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Make ``count`` clips of each prompt and write them with their manifest.

    The clips of one prompt have the seeds ``seed``, ``seed + 1`` and so on, the same for each
    prompt: runs of two models with equal arguments can be compared clip by clip.

    Args:
        model: with its adapters already in it.
        prompts: what to make; concepts of the model are understood.
        out: the folder to make.
        seconds: length of each clip.
        count: clips of each prompt.
        seed: of the first clip of each prompt.
        sampling: how tokens are drawn.
        batch: clips made at once.
        precision: in which numbers, see ``Engine``.
        suffix: ``wav`` or ``flac``.
        adapters: what the manifest says was loaded.
        overwrite: replace ``out`` if it is there.

    Returns:
        The sound files, in order.

    Raises:
        InputError: a value that cannot be used, or a folder that cannot be written.
    """
    requests = [
        Request(prompt, seconds, seed + i, sampling) for prompt in prompts for i in range(count)
    ]
    engine = Engine(model, precision)
    facts = [{"adapters": list(adapters)}] * len(requests)
    return write_requests(
        engine, requests, out, facts=facts, batch=batch, suffix=suffix, overwrite=overwrite
    )


def write_requests(
    engine: Engine,
    requests: Sequence[Request],
    out: Path,
    *,
    facts: Sequence[Mapping[str, object]],
    batch: int = 8,
    suffix: str = "wav",
    overwrite: bool = False,
) -> list[Path]:
    """Play requests that fit into one window and write them, see :func:`write_played`."""
    steps = sum(engine.steps(1, request.seconds) for request in requests)
    facts = [{**each, "precision": engine.precision} for each in facts]
    with console.progress("making music", steps) as advance:
        played = engine.play(requests, batch, advance)
        return write_played(
            engine.model, requests, played, out, facts=facts, suffix=suffix, overwrite=overwrite
        )


def write_played(
    model: MusicGen,
    requests: Sequence[Request],
    played: Iterable[tuple[int, Tensor | Clip]],
    out: Path,
    *,
    facts: Sequence[Mapping[str, object]],
    suffix: str = "wav",
    overwrite: bool = False,
) -> list[Path]:
    """Write clips with their manifest as they are done.

    What was done before a failure is kept and listed: an error says how much.

    Args:
        model: that decodes them.
        requests: what was asked for.
        played: the index of a request and its codes, or its clip, in any order.
        out: the folder to make.
        facts: for each request, what its line in the manifest says besides.
        suffix: ``wav`` or ``flac``.
        overwrite: replace ``out`` if it is there.

    Returns:
        The sound files, in order.

    Raises:
        InputError: nothing could be made or written, or not all of it.
    """
    lines: dict[int, str] = {}
    failure: BaseException | None = None
    with publish_folder(out, overwrite=overwrite) as folder:
        manifest = folder / MANIFEST
        try:
            for index, made in played:
                name = f"{index:03d}-{_slug(requests[index].prompt)}.{suffix}"
                try:
                    line = _written(model, requests[index], made, folder / name)
                except BaseException:
                    (folder / name).unlink(missing_ok=True)
                    raise
                fields = {**line, **facts[index], "file": name, "sha256": sha256(folder / name)}
                lines[index] = json.dumps(fields, ensure_ascii=False, sort_keys=True) + "\n"
                with manifest.open("a", encoding="utf-8") as file:
                    file.write(lines[index])
            manifest.write_text("".join(lines[i] for i in sorted(lines)), encoding="utf-8")
        except (OSError, MusictuneError, KeyboardInterrupt) as error:
            if not lines:
                raise
            failure = error
    if failure is not None:
        kept = f"{len(lines)} of {len(requests)} clips are kept in {out}"
        if isinstance(failure, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {kept}")
        said = readable(failure, out) if isinstance(failure, OSError) else failure
        raise InputError(f"{said}; {kept}") from failure
    return [out / json.loads(lines[index])["file"] for index in sorted(lines)]


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that say something.

    Raises:
        InputError: no such file, not UTF-8 text, or nothing in it.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """A file of prompts.

    Raises:
        InputError: as :func:`read_prompts`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts {path} is not UTF-8 text; write one prompt per line") from error
    except OSError as error:
        raise InputError(f"prompts {path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise InputError(f"prompts {path} is empty; write one prompt per line")
    return text


def _written(
    model: MusicGen, request: Request, made: Tensor | Clip, path: Path
) -> dict[str, object]:
    """Decode and write a clip; what the manifest says about it."""
    clip = made if isinstance(made, Clip) else decode_long(model, made, request.prompt)
    write(clip, path)
    return {
        "prompt": request.prompt,
        "text": plain(request.prompt, model.concepts),
        "seed": request.seed,
        "base": model.base,
        "seconds": clip.seconds,
        "sample_rate": clip.sample_rate,
        "sampling": asdict(request.sampling),
        "created_by": _version(),
    }


def _slug(prompt: str) -> str:
    """The prompt as a file name that every system takes."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-") or "music"


def _version() -> str:
    try:
        return f"musictune {version('musictune')}"
    except PackageNotFoundError:  # run from a source tree
        return "musictune"
