"""Kernel audio distance: time and value of ours beside kadtk 1.1.0's own function.

    pip download --no-deps kadtk==1.1.0 -d /tmp
    OMP_NUM_THREADS=1 python benchmarks/kernel_distance.py --kadtk /tmp/kadtk-1.1.0-py3-none-any.whl

Rows of 512 dimensions, one per clip, so that both count the same pairs. kadtk's function is taken
out of the wheel as it stands; its package, which needs torchaudio, is not imported. "whole": each
finds its own bandwidth. "given": both are told ours, and the values must agree to 3e-4.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import statistics
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musictune.metrics.compat.kadtk import kad_like_kadtk
from musictune.metrics.features import Features
from musictune.metrics.kernel_distance import kernel_distance

WIDTH = 512
TARGET = 3.0
AGREE = 3e-4
NO_CACHES = (None, None)


def peer_function(wheel: Path) -> Callable[..., Any]:
    """``calc_kernel_audio_distance`` and the median it calls, compiled from the wheel's text."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read("kadtk/kad.py"))
    wanted = {"calc_kernel_audio_distance", "median_pairwise_distance"}
    tree.body = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name in wanted)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCALE_FACTOR")
    ]
    names: dict[str, Any] = {"torch": torch, "np": np, "Path": Path}
    exec(compile(tree, "kadtk/kad.py", "exec"), names)
    return names["calc_kernel_audio_distance"]  # type: ignore[no-any-return]


def sets(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Made and reference: correlated, off centre as real embeddings are, a little apart."""
    rng = np.random.default_rng(rows)
    mix = rng.standard_normal((WIDTH, WIDTH)) * np.geomspace(1, 0.03, WIDTH)[:, None]
    made, reference = (rng.standard_normal((rows, WIDTH)) @ mix for _ in range(2))
    offset = rng.standard_normal(WIDTH)
    return (
        (made * 1.02 + offset + 0.6).astype(np.float32),
        (reference + offset).astype(np.float32),
    )


def timed(function: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def alternate(
    ours: Callable[[], float], peer: Callable[[], float], runs: int
) -> tuple[float, float, float, float]:
    """Median CPU seconds and value of each, turn by turn after one run to warm up."""
    mine, theirs = [], []
    for _ in range(runs + 1):
        mine.append(timed(ours))
        theirs.append(timed(peer))
    seconds = [statistics.median(s for s, _ in found[1:]) for found in (mine, theirs)]
    return seconds[0], seconds[1], mine[-1][1], theirs[-1][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kadtk", type=Path, required=True, help="the wheel of kadtk 1.1.0")
    parser.add_argument("--rows", type=int, nargs="+", default=[3000, 6000])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "To copy construct from a tensor")
    kadtk = peer_function(options.kadtk)
    rows: list[dict[str, Any]] = []

    def note(case: str, ours: float, peer: float, unit: str, target: float | None) -> None:
        ratio = peer / ours if ours else math.inf
        if unit == "difference":
            ratio = AGREE / ours if ours else math.inf
        found = {"case": case, "ours": ours, "peer": peer, "peer_name": "kadtk 1.1.0"}
        rows.append(found | {"ratio": ratio, "unit": unit, "target": target})
        aim = f"  target {target:g}" if target else ""
        print(f"{case:34} {ours:12.6g} {peer:12.6g} {unit:10} {ratio:8.2f}x{aim}")

    print(f"{'case':34} {'ours':>12} {'kadtk':>12} {'unit':10} {'ratio':>9}")
    for count in options.rows:
        made, reference = sets(count)
        x, y = torch.from_numpy(reference), torch.from_numpy(made)
        lengths = np.ones(count, dtype=np.int64)
        mine, theirs = Features(made, lengths), Features(reference, lengths)
        bandwidth = kernel_distance(mine, theirs).bandwidth

        def whole(mine: Features = mine, theirs: Features = theirs) -> float:
            return kernel_distance(mine, theirs).value

        def given(
            mine: Features = mine, theirs: Features = theirs, width: float = bandwidth
        ) -> float:
            return kernel_distance(mine, theirs, width).value

        def peer_whole(x: torch.Tensor = x, y: torch.Tensor = y) -> float:
            return float(kadtk(x, y, NO_CACHES, "cpu"))

        def peer_given(x: torch.Tensor = x, y: torch.Tensor = y, width: float = bandwidth) -> float:
            return float(kadtk(x, y, NO_CACHES, "cpu", bandwidth=width))

        ours_s, peer_s, *_ = alternate(whole, peer_whole, options.runs)
        note(f"{count} rows, whole", ours_s, peer_s, "CPU s", TARGET)
        ours_s, peer_s, value, peer_value = alternate(given, peer_given, options.runs)
        note(f"{count} rows, bandwidth given", ours_s, peer_s, "CPU s", None)
        exact = float(kadtk(x, y, NO_CACHES, "cpu", bandwidth=bandwidth, precision=torch.float64))
        note(
            f"{count} rows, |value - float64|",
            abs(value - exact),
            abs(peer_value - exact),
            "difference",
            1,
        )
        compat = abs(kad_like_kadtk(made, reference) - peer_whole())
        note(f"{count} rows, --compat's |difference|", compat, 0.0, "difference", 1)
        print(f"{'':34} values {value:.7g}, {peer_value:.7g}, in float64 {exact:.7g}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
