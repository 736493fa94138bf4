"""Rows of `musictune bench decode`: our figure beside each peer's, and what was aimed at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from musictune.bench.decode_floor import step_bytes
from musictune.bench.decode_measure import Measured
from musictune.bench.decode_sides import AUDIOCRAFT, OURS, TRANSFORMERS
from musictune.bench.rows import Row, against

_PART = "decode"
_MIB = 2**20
_FULL = 29.0  # seconds of music from which on a run counts as one of 30

_TF32, _TF16 = f"{TRANSFORMERS} float32", f"{TRANSFORMERS} bfloat16"
_AC32, _AC16 = f"{AUDIOCRAFT} float32", f"{AUDIOCRAFT} bfloat16"

# How many times faster than a peer, by shape and batch, then by our precision. float16 is held to
# what is asked of bfloat16: the same bytes per weight.
_HALF_MINI = {_TF32: 3.6, _AC32: 4.0}
_MINI: dict[str, dict[str, float]] = {
    "float32": {_TF32: 2.0, _AC32: 2.0},
    "bfloat16": _HALF_MINI,
    "float16": _HALF_MINI,
    "int8": {_TF32: 5.5, _AC32: 6.0},
}
_HALF_MANY = {_TF32: 5.0, _TF16: 2.0}
_CPU: dict[tuple[str, int], dict[str, dict[str, float]]] = {
    ("mini", 1): _MINI,
    ("mini-8x384", 1): _MINI,
    ("small", 1): {"bfloat16": {_TF32: 2.2}, "float16": {_TF32: 2.2}, "int8": {_TF32: 4.0}},
    ("small", 8): {"bfloat16": _HALF_MANY, "float16": _HALF_MANY, "int8": {_TF32: 7.0}},
}
_CUDA: dict[tuple[str, int], dict[str, dict[str, float]]] = {
    ("small", 1): {
        half: dict.fromkeys(
            (_TF16, f"{TRANSFORMERS} float16", _AC16, f"{AUDIOCRAFT} float16"), 20.0
        )
        for half in ("bfloat16", "float16")
    },
}
# Shares of the memory-bandwidth floor.
_FLOORS: dict[tuple[str, int], float] = {
    ("small", 1): 0.4,
    ("medium", 1): 0.6,
    ("large", 1): 0.7,
    ("small", 8): 0.5,
    ("small", 64): 0.5,
}


@dataclass(frozen=True)
class Setting:
    """What every side of a table had to do.

    Attributes:
        shape: name of the model's size.
        batch: clips at once.
        steps: decoded in a run.
        seconds: of music in a clip.
        music: seconds of music that a run makes, all clips together.
        device: ``cpu`` or ``cuda``.
    """

    shape: str
    batch: int
    steps: int
    seconds: float
    music: float
    device: str

    @property
    def title(self) -> str:
        """How its rows begin."""
        return f"{self.shape} x {self.batch}"

    def target(self, precision: str, peer: str) -> float | None:
        """How many times faster than ``peer`` our engine should be."""
        if self.shape.startswith("mini") and self.seconds < _FULL:
            return None  # asked for at 30 seconds; shorter ones flatter the peers
        table = _CUDA if self.device == "cuda" else _CPU
        return table.get((self.shape, self.batch), {}).get(precision, {}).get(peer)


def model_rows(setting: Setting, measured: Sequence[Measured]) -> Iterator[Row]:
    """The language model alone: time of a step beside every peer, memory beside one."""
    for mine in _ours(measured):
        for peer in _peers(measured):
            yield _time(setting, mine, peer)
        peer = _like(mine, measured)
        yield _size(
            f"{setting.title}, {mine.precision}: held beside the weights, {mine.held_steps} steps",
            mine.held, peer.held, peer,
        )  # fmt: skip
        yield _size(
            f"{setting.title}, {mine.precision}: keys and values, {mine.steps} steps",
            mine.cache, peer.cache, peer,
        )  # fmt: skip


def codec_rows(setting: Setting, ours: Sequence[float], peer: Sequence[float]) -> Iterator[Row]:
    """Codes to audio, in float32."""
    yield Row(
        _PART,
        f"{setting.title}: codec, {setting.seconds:g} s each",
        min(ours),
        peer=min(peer),
        peer_name=TRANSFORMERS,
        ratio=against(min(ours), min(peer), higher_is_better=False),
        unit="s",
        n=len(ours),
        note="ours clip by clip, so that clips may differ in length; theirs all at once",
    )


def whole_rows(
    setting: Setting, measured: Sequence[Measured], codec: float, peer_codec: float
) -> Iterator[Row]:
    """Language model and codec, seconds of music per second, beside the fastest peer.

    Args:
        setting: of the run.
        measured: the sides.
        codec, peer_codec: seconds that audio takes; audiocraft is charged with transformers'.
    """
    peer = min(_peers(measured), key=lambda side: side.step)
    for mine in _ours(measured):
        own = setting.music / (min(mine.wall) + codec)
        other = setting.music / (min(peer.wall) + peer_codec)
        yield Row(
            _PART,
            f"{setting.title}, {mine.precision}: whole, seconds of music per second",
            own,
            peer=other,
            peer_name=peer.title,
            ratio=against(own, other, higher_is_better=True),
            unit="s/s",
            n=len(mine.wall),
            note=f"without codec {setting.music / min(mine.wall):.2f} and "
            f"{setting.music / min(peer.wall):.2f}; clips per minute "
            f"{60 * own / setting.seconds:.1f} and {60 * other / setting.seconds:.1f}",
        )


def floor_rows(
    setting: Setting, measured: Sequence[Measured], config: Any, tokens: int, speed: float
) -> Iterator[Row]:
    """How near a step comes to reading weights, keys and values once.

    Args:
        setting: of the run.
        measured: the sides.
        config: of the decoder.
        tokens: of the text.
        speed: bytes per second that the device reads.
    """
    for mine in _ours(measured):
        size = {"float32": 4, "int8": 1}.get(mine.precision, 2)
        least = step_bytes(config, size, setting.batch, setting.steps, tokens) / speed
        target = _FLOORS.get((setting.shape, setting.batch)) if size == 2 else None
        share = least / mine.step
        yield Row(
            _PART,
            f"{setting.title}, {mine.precision}: share of the memory-bandwidth floor",
            share,
            unit="share",
            target=target,
            n=len(mine.wall),
            note=f"floor {least * 1000:.3f} ms a step at {speed / 1e12:.2f} TB/s measured, "
            f"a step takes {mine.step * 1000:.3f} ms",
            met=None if target is None else share >= target,
        )


def _time(setting: Setting, mine: Measured, peer: Measured) -> Row:
    ratio = against(mine.step, peer.step, higher_is_better=False)
    target = setting.target(mine.precision, peer.title)
    paired = [p / o for o, p in zip(mine.wall, peer.wall, strict=True)]
    cpu = min(peer.cpu) / min(mine.cpu)
    return Row(
        _PART,
        f"{setting.title}, {mine.precision}: language model, a step",
        mine.step * 1000,
        peer=peer.step * 1000,
        peer_name=peer.title,
        ratio=ratio,
        unit="ms",
        target=None if target is None else f"ratio >= {target:g}",
        n=len(paired),
        note=f"fastest of {len(paired)}; medians {mine.median_step * 1000:.2f} and "
        f"{peer.median_step * 1000:.2f}; paired ratios {min(paired):.2f} to {max(paired):.2f}, in "
        f"CPU time {cpu:.2f}",
        met=None if target is None else ratio is not None and ratio >= target,
    )


def _size(case: str, own: int, other: int, peer: Measured) -> Row:
    return Row(
        _PART,
        case,
        own / _MIB,
        peer=other / _MIB,
        peer_name=peer.title,
        ratio=against(own, other, higher_is_better=False),
        unit="MiB",
    )


def _ours(measured: Sequence[Measured]) -> list[Measured]:
    return [side for side in measured if side.name == OURS]


def _peers(measured: Sequence[Measured]) -> list[Measured]:
    return [side for side in measured if side.name != OURS]


def _like(mine: Measured, measured: Sequence[Measured]) -> Measured:
    """transformers in the precision nearest to ours."""
    near: Mapping[str, Measured] = {
        side.precision: side for side in measured if side.name == TRANSFORMERS and not side.compiled
    }
    wanted = "float32" if mine.precision == "float32" else "bfloat16"
    return near.get(mine.precision, near[wanted])
