"""`musictune bench decode`: time of a decoding step, our engine beside transformers and audiocraft.

Language model and codec are measured apart: the one differs between the sides, the other hardly.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from musictune.bench import decode_floor, decode_sides, machine
from musictune.bench.cells import versions
from musictune.bench.decode_measure import Measured, measure, measure_codec
from musictune.bench.decode_models import CAPTION, SHAPES, build_model, find_shape
from musictune.bench.decode_rows import Setting, codec_rows, floor_rows, model_rows, whole_rows
from musictune.bench.decode_sides import Side
from musictune.bench.rows import Row, print_table
from musictune.console import note, progress
from musictune.errors import InputError
from musictune.files import publish_file
from musictune.generation.precision import PRECISIONS, find_precision
from musictune.models.devices import find_device
from musictune.models.musicgen import MusicGen

SCHEMA = 1

_GREEDY_FRAMES = 12


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        shapes: of `decode_models.SHAPES`.
        seconds: of music in each clip.
        steps: decoded instead of as many as those seconds have.
        batch: clips at once.
        precisions: of our engine; all that the device has if empty.
        audiocraft: where its source is; it is left out if None.
        compiled: also transformers with its decoder compiled by torch.
        threads: of torch; what it finds if None.
        device: ``cpu``, ``cuda`` or ``auto``.
        repeats: measured runs of each side.
    """

    shapes: tuple[str, ...] = ("mini",)
    seconds: float = 30.0
    steps: int | None = None
    batch: int = 1
    precisions: tuple[str, ...] = ()
    audiocraft: Path | None = None
    compiled: bool = False
    threads: int | None = None
    device: str = "cpu"
    repeats: int = 3

    @property
    def command(self) -> str:
        """What asks for this on the command line, whatever its files are called."""
        names = {"shapes": "shape", "precisions": "precision"}
        parts = ["musictune bench decode --json FILE"]
        for entry in fields(self):
            value = getattr(self, entry.name)
            option = f"--{names.get(entry.name, entry.name)}"
            if value is True:
                parts.append(option)
            elif isinstance(value, Path):
                parts.append(f"{option} PATH")
            elif value != entry.default:
                values = value if isinstance(value, tuple) else [value]
                parts += [f"{option} {one}" for one in values]
        return " ".join(parts)


def bench_decode(wanted: Wanted, target: Path) -> dict[str, Any]:
    """Measure, print a table per shape, and write all as JSON.

    The file is ``{"schema": 1, "rows": [...], "sides": [...], "codec": [...], "made_with":
    {...}}``; ``sides`` holds the time of every run and the memory of each side.

    Returns:
        the same document.

    Raises:
        InputError: an unknown shape, precision or device, a length that the model was not trained
            for, an audiocraft that cannot be used, or a file that cannot be written.
        CheckFailed: a side made another number of codes than it was asked for.
    """
    device = find_device(wanted.device)
    _check(wanted, target, device)
    load = machine.load()
    rows: list[Row] = []
    sides: list[dict[str, Any]] = []
    codec: list[dict[str, Any]] = []
    with machine.threads(wanted.threads):
        speed = decode_floor.bandwidth(device) if device.type == "cuda" else None
        for name in wanted.shapes:
            made, measured, decoded = _measure_shape(name, wanted, device, speed)
            rows += made
            sides += [{"shape": name, "batch": wanted.batch} | m.as_json for m in measured]
            codec.append({"shape": name, "batch": wanted.batch} | decoded)
        facts = {
            "versions": versions(),
            "machine": machine.machine(device),
            "threads": torch.get_num_threads(),
            "load_average_before": load,
            "load_average_after": machine.load(),
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "bytes_per_second": speed,
            "shapes": {name: vars(SHAPES[name]) for name in wanted.shapes},
            "command": wanted.command,
        }
    if speed is None:
        note("no CUDA device here: shares of the memory-bandwidth floor are left open")
    document = {
        "schema": SCHEMA,
        "rows": [row.as_json for row in rows],
        "sides": sides,
        "codec": codec,
        "made_with": facts,
    }
    with publish_file(target) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _measure_shape(
    name: str, wanted: Wanted, device: torch.device, speed: float | None
) -> tuple[list[Row], list[Measured], dict[str, list[float]]]:
    model = build_model(find_shape(name), device)
    frames = _frames(model, wanted)
    sides = list(_sides(model, wanted, frames))
    delay = model.codebooks // model.channels
    rows = [_greedy(name, sides, max(delay, min(frames, _GREEDY_FRAMES)))]
    total = len(sides) * (1 + wanted.repeats) + 1
    with progress(f"runs of {name}", total) as advance:
        measured = measure(sides, model, frames, wanted.repeats, advance)
        del sides  # a decoder each
        codec, peer_codec = measure_codec(model, wanted.batch, frames, wanted.repeats)
        advance(text="codec")
    steps = frames + delay - 1
    seconds = frames / model.frame_rate
    setting = Setting(name, wanted.batch, steps, seconds, wanted.batch * seconds, device.type)
    rows += model_rows(setting, measured)
    rows += codec_rows(setting, codec, peer_codec)
    rows += whole_rows(setting, measured, min(codec), min(peer_codec))
    if speed is not None:
        tokens = model.tokens([CAPTION])[0].shape[1]
        rows += floor_rows(setting, measured, model.network.config.decoder, tokens, speed)
    print_table(
        rows,
        f"{name}: {wanted.batch} at once, {steps} steps ({seconds:g} s of music), "
        f"{torch.get_num_threads()} threads",
    )
    return rows, measured, {"ours": codec, "transformers": peer_codec}


def _sides(model: MusicGen, wanted: Wanted, frames: int) -> Iterator[Side]:
    half = ("bfloat16",) if model.device.type == "cpu" else ("bfloat16", "float16")
    for precision in ("float32", *half):
        yield decode_sides.transformers(model, precision, wanted.batch)
        if wanted.audiocraft is not None:
            yield decode_sides.audiocraft(model, precision, wanted.batch, wanted.audiocraft)
    if wanted.compiled:
        yield decode_sides.transformers(model, "bfloat16", wanted.batch, compiled=True)
    for precision in dict.fromkeys(wanted.precisions or _possible(model.device)):
        yield decode_sides.ours(model, precision, wanted.batch, frames)


def _greedy(name: str, sides: Sequence[Side], frames: int) -> Row:
    """That all sides play the same model: the likeliest tokens of those in float32."""
    exact = [side for side in sides if side.precision == "float32"]
    shares = decode_sides.equal_share([side.play(frames, 0, True) for side in exact])
    lowest = min(shares)
    return Row(
        "decode",
        f"{name}: likeliest tokens equal to transformers'",
        lowest,
        unit="share",
        target=1.0,
        n=frames,
        note="in float32: " + ", ".join(side.name for side in exact),
        met=lowest == 1,
    )


def _frames(model: MusicGen, wanted: Wanted) -> int:
    delay = model.codebooks // model.channels
    frames = model.frames(wanted.seconds) if wanted.steps is None else wanted.steps - delay + 1
    longest = model.frames(model.max_seconds)
    if not delay <= frames <= longest:
        raise InputError(
            f"{frames + delay - 1} steps cannot be measured on {model.base}; choose from "
            f"{2 * delay - 1} to {longest + delay - 1}, or {model.max_seconds:g} seconds at most"
        )
    return frames


def _possible(device: torch.device) -> Iterator[str]:
    for precision in PRECISIONS:
        try:
            yield find_precision(precision, device)
        except InputError:
            continue


def _check(wanted: Wanted, target: Path, device: torch.device) -> None:
    for name in wanted.shapes:
        find_shape(name)
    for precision in wanted.precisions:
        find_precision(precision, device)
    for option in ("batch", "steps", "repeats", "threads"):
        value = getattr(wanted, option)
        if value is not None and value < 1:
            raise InputError(f"--{option} {value} must be at least 1")
    if not 0 < wanted.seconds < float("inf"):
        raise InputError(f"--seconds {wanted.seconds:g} must be above 0")
    if wanted.audiocraft is not None and not wanted.audiocraft.exists():
        raise InputError(f"--audiocraft {wanted.audiocraft} does not exist; name its source")
    if target.is_dir():
        raise InputError(f"--json {target} is a folder; name a file in it")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--json {target}: its folder does not exist; make it first")
