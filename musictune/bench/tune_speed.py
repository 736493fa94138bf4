"""`musictune bench tune`: time and memory of a training step, pivotal parameters beside peers."""

from __future__ import annotations

import json
import resource
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musictune.bench import machine, tune_sides
from musictune.bench.cells import versions
from musictune.bench.rows import Row, against, print_table
from musictune.bench.tune_measure import Measured, measure
from musictune.bench.tune_sides import ALL_LINEARS, VALUES, Shape, Side, find_shape
from musictune.console import progress
from musictune.errors import InputError
from musictune.files import publish_file
from musictune.methods.base import matched_modules
from musictune.methods.units import Granularity
from musictune.models.devices import find_device
from musictune.models.musicgen import MusicGen

SCHEMA = 1
CASES = ("columns", "rows", "heads", "elements", "shira")
DEFAULT_SHAPES = ("mini", "small")

_REPEATS = {"small": 3, "medium": 3}  # seconds per step; the others take a fraction of one
_MANY = 9
_MIB = 2**20
_STRUCTURED: dict[str, Granularity] = {"columns": "column", "rows": "row", "heads": "head"}


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        shapes: of `tune_sides.SHAPES`.
        cases: of `CASES`.
        batch, tokens, repeats: instead of each shape's own.
        threads: of torch; what it finds if None.
        device: ``cpu``, ``cuda`` or ``auto``.
        profiled: also take a step of every side apart.
    """

    shapes: tuple[str, ...] = DEFAULT_SHAPES
    cases: tuple[str, ...] = CASES
    batch: int | None = None
    tokens: int | None = None
    repeats: int | None = None
    threads: int | None = None
    device: str = "cpu"
    profiled: bool = False

    @property
    def command(self) -> str:
        """What asks for this on the command line, whatever its files are called."""
        names = {"shapes": "shape", "cases": "only", "profiled": "profile"}
        parts = ["musictune bench tune --json FILE"]
        for entry in fields(self):
            value = getattr(self, entry.name)
            option = f"--{names.get(entry.name, entry.name)}"
            if value is True:
                parts.append(option)
            elif value != entry.default:
                values = value if isinstance(value, tuple) else [value]
                parts += [f"{option} {one}" for one in values]
        return " ".join(parts)


@dataclass(frozen=True)
class Group:
    """Sides that are measured in turn, because something of them is compared.

    Attributes:
        name: which layers they tune.
        ours: our sides by case.
        peers: other sides by a short name.
    """

    name: str
    ours: dict[str, Callable[[], Side]]
    peers: dict[str, Callable[[], Side]]


def bench_tune(wanted: Wanted, target: Path) -> dict[str, Any]:
    """Measure, print a table per shape, and write all as JSON.

    The file is ``{"schema": 1, "rows": [...], "sides": [...], "made_with": {...}}``; ``sides``
    holds every step's time, all memory figures and the profiles.

    Returns:
        the same document.

    Raises:
        InputError: an unknown shape, case or device, a number out of range, or a file that cannot
            be written; nothing is measured before.
    """
    _check(wanted, target)
    device = find_device(wanted.device)
    load = machine.load()
    rows: list[Row] = []
    sides: list[dict[str, Any]] = []
    with machine.threads(wanted.threads):
        for name in wanted.shapes:
            shape = find_shape(name)
            shape = replace(
                shape, batch=wanted.batch or shape.batch, tokens=wanted.tokens or shape.tokens
            )
            made, measured = _measure_shape(name, shape, wanted, device)
            print_table(made, f"{name}: {shape.batch} clips of {shape.tokens} tokens, bfloat16")
            rows += made
            sides += measured
        facts = {
            "versions": versions(),
            "machine": machine.machine(device),
            "threads": torch.get_num_threads(),
            "load_average_before": load,
            "load_average_after": machine.load(),
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "shapes": {name: vars(find_shape(name)) for name in wanted.shapes},
            "batch": wanted.batch,
            "tokens": wanted.tokens,
        }
    document = {
        "schema": SCHEMA,
        "rows": [row.as_json for row in rows],
        "sides": sides,
        "made_with": facts,
    }
    with publish_file(target) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def _measure_shape(
    name: str, shape: Shape, wanted: Wanted, device: torch.device
) -> tuple[list[Row], list[dict[str, Any]]]:
    model = tune_sides.build_model(shape, device)
    batch = tune_sides.build_batch(model, shape.batch, shape.tokens)
    repeats = wanted.repeats or _REPEATS.get(name, _MANY)
    groups = list(_groups(model, shape, wanted.cases))
    count = sum(len(group.ours) + len(group.peers) for group in groups)
    rows: list[Row] = []
    record: list[dict[str, Any]] = []
    with progress(f"steps of {name}", count * (repeats + 2 + wanted.profiled)) as advance:
        for group in groups:
            makers = {**group.ours, **group.peers}
            sides = [make() for make in makers.values()]
            measured = measure(sides, model, batch, repeats, advance, profiled=wanted.profiled)
            found = dict(zip(makers, measured, strict=True))
            del sides  # a decoder each
            record += [{"shape": name, "layers": group.name} | m.as_json for m in measured]
            for case in group.ours:
                rows += _rows(f"{name}, {case}", case, group, found, model, device)
    return rows, record


def _groups(model: MusicGen, shape: Shape, cases: Sequence[str]) -> Iterator[Group]:
    count = tune_sides.lora_count(model, ALL_LINEARS, shape.rank)
    structured = [case for case in CASES if case in _STRUCTURED and case in cases]
    if structured:
        yield Group(
            "all linears",
            {
                case: lambda case=case: tune_sides.structured(  # type: ignore[misc]
                    model, _STRUCTURED[case], ALL_LINEARS, count
                )
                for case in structured
            },
            {
                "lora": lambda: tune_sides.lora(model, shape, ALL_LINEARS),
                "lora_half": lambda: tune_sides.lora(model, shape, ALL_LINEARS, half=True),
                "full": lambda: tune_sides.full(model),
            },
        )
    values: dict[str, Callable[[], Side]] = {}
    if "elements" in cases:
        values["lora"] = lambda: tune_sides.lora(model, shape, VALUES)
    if "shira" in cases:
        values["shira"] = lambda: tune_sides.shira(model, shape, VALUES)
    if values:
        ours = {"elements, values": lambda: tune_sides.elements(model, shape, VALUES)}
        yield Group("value projections", ours, values)
    if "shira" in cases:
        yield Group(
            "all linears, single weights",
            {"elements, all": lambda: tune_sides.elements(model, shape, ALL_LINEARS)},
            {"shira": lambda: tune_sides.shira(model, shape, ALL_LINEARS)},
        )


def _rows(
    title: str,
    case: str,
    group: Group,
    found: dict[str, Measured],
    model: MusicGen,
    device: torch.device,
) -> Iterator[Row]:
    """The claims of one of our sides against each peer of its group."""
    ours = found[case]
    for name in group.peers:
        peer = found[name]
        if name == "full":
            yield _time(title, ours, peer, 1.35 if device.type == "cuda" else 1.2)
            yield _size(title, "optimiser and gradients", ours, peer, ours.state, peer.state, 0.05)
        elif name == "shira":
            yield _time(title, ours, peer, 1.6)
            yield _size(title, "saved for backward", ours, peer, ours.saved, peer.saved, 0.7)
            yield _size(title, "most held in a step", ours, peer, ours.peak, peer.peak, None)
        elif case in _STRUCTURED:
            half = name == "lora_half"
            yield _time(title, ours, peer, 1.25 if half else 1.35)
            limit = 0.7 if half else 0.45
            yield _size(title, "saved for backward", ours, peer, ours.saved, peer.saved, limit)
        else:
            yield _time(title, ours, peer, 1.0)
            yield from _kept_only(title, ours, peer, model)


def _time(title: str, ours: Measured, peer: Measured, target: float) -> Row:
    paired = [p / o for o, p in zip(ours.wall, peer.wall, strict=True)]
    cpu = statistics.median(peer.cpu) / statistics.median(ours.cpu)
    ratio = against(ours.step, peer.step, higher_is_better=False)
    return Row(
        "tune",
        f"{title}: time of a step",
        ours.step * 1000,
        peer=peer.step * 1000,
        peer_name=peer.name,
        ratio=ratio,
        unit="ms",
        target=f"ratio >= {target:g}",
        n=len(paired),
        note=f"paired ratios {min(paired):.2f} to {max(paired):.2f}, in CPU time {cpu:.2f}; "
        f"{ours.trained:,} and {peer.trained:,} weights trained",
        met=ratio is not None and ratio >= target,
    )


def _size(
    title: str,
    what: str,
    ours: Measured,
    peer: Measured,
    size: int,
    beside: int,
    share: float | None,
) -> Row:
    return Row(
        "tune",
        f"{title}: {what}",
        size / _MIB,
        peer=beside / _MIB,
        peer_name=peer.name,
        ratio=against(size, beside, higher_is_better=False),
        unit="MiB",
        target=None if share is None else f"<= {share:g} x peer",
        note=f"{size / max(beside, 1):.3f} of the peer's",
        met=None if share is None else size <= share * beside,
    )


def _kept_only(title: str, ours: Measured, peer: Measured, model: MusicGen) -> Iterator[Row]:
    """Single weights: memory of what is kept, and no matrix's whole gradient at any time."""
    each = ours.state / ours.trained
    yield Row(
        "tune",
        f"{title}: optimiser and gradients per trained weight",
        each,
        peer=peer.state / peer.trained,
        peer_name=peer.name,
        unit="bytes",
        target="<= 12",
        note="fp32 gradient and two fp32 moments are 12",
        met=each <= 12,
    )
    matrices = [
        linear.weight.numel() * linear.weight.element_size()
        for linear in matched_modules(model.backbone, VALUES).values()
        if isinstance(linear, nn.Linear)
    ]
    limit = max(matrices)
    yield Row(
        "tune",
        f"{title}: gradients of weights alive at once",
        ours.weight_gradients / _MIB,
        peer=sum(matrices) / _MIB,
        peer_name="dense gradients of the same layers",
        ratio=against(ours.weight_gradients, sum(matrices), higher_is_better=False),
        unit="MiB",
        target=f"< {limit / _MIB:g}, one matrix",
        met=ours.weight_gradients < limit,
    )


def _check(wanted: Wanted, target: Path) -> None:
    for name in wanted.shapes:
        find_shape(name)
    for case in wanted.cases:
        if case not in CASES:
            raise InputError(f"--only {case!r} is not known; give one of {', '.join(CASES)}")
    for option in ("batch", "tokens", "repeats", "threads"):
        value = getattr(wanted, option)
        if value is not None and value < 1:
            raise InputError(f"--{option} {value} must be at least 1")
    if target.is_dir():
        raise InputError(f"--json {target} is a folder; name a file in it")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--json {target}: its folder does not exist; make it first")
