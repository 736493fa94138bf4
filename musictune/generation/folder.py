"""A folder of made music: sound files and ``manifest.jsonl``, one line per file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from musictune import console
from musictune.audio import Clip, write
from musictune.data.concepts import plain
from musictune.errors import InputError
from musictune.files import publish_folder, sha256
from musictune.generation.engine import Engine
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
    suffix: str = "wav",
    adapters: Sequence[Mapping[str, object]] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Make ``count`` clips of each prompt and write them with their manifest, all or nothing.

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
        suffix: ``wav`` or ``flac``.
        adapters: what the manifest says was loaded.
        overwrite: replace ``out`` if it is there.

    Returns:
        The sound files, in order.

    Raises:
        InputError: a value that cannot be used, or a folder that cannot be written.
    """
    engine = Engine(model)
    texts = [prompt for prompt in prompts for _ in range(count)]
    seeds = [seed + i for _ in prompts for i in range(count)]
    files: list[Path] = []
    with (
        publish_folder(out, overwrite=overwrite) as folder,
        (folder / MANIFEST).open("w", encoding="utf-8") as manifest,
        console.progress("making music", engine.steps(len(texts), seconds)) as advance,
    ):
        for _, clips in engine.stream(texts, seconds, seeds, sampling, batch, advance):
            for clip in clips:
                index = len(files)
                name = f"{index:03d}-{_slug(texts[index])}.{suffix}"
                write(clip, folder / name)
                line = _line(model, clip, texts[index], seeds[index], sampling) | {
                    "file": name,
                    "adapters": list(adapters),
                    "sha256": sha256(folder / name),
                }
                manifest.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
                files.append(out / name)
    return files


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that say something.

    Raises:
        InputError: no such file, not UTF-8 text, or nothing in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"prompts {path} is not UTF-8 text; write one prompt per line") from error
    except OSError as error:
        raise InputError(f"prompts {path} cannot be read: {error.strerror}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"prompts {path} is empty; write one prompt per line")
    return prompts


def _line(
    model: MusicGen, clip: Clip, prompt: str, seed: int, sampling: Sampling
) -> dict[str, object]:
    return {
        "prompt": prompt,
        "text": plain(prompt, model.concepts),
        "seed": seed,
        "base": model.base,
        "seconds": clip.seconds,
        "sample_rate": clip.sample_rate,
        "sampling": asdict(sampling),
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
