"""That the Fréchet distance equals fadtk's on its own FMA-pop statistics, and is many times faster.

    pip download --no-deps fadtk==1.1.0
    python benchmarks/frechet.py --fadtk fadtk-1.1.0-py3-none-any.whl [--json FILE]

fadtk's functions are taken out of the wheel as they are and run beside ours, pair by pair, on one
thread; the time is that of the processor. Matrices are factorised anew for each pair. It takes some
two minutes; ``--pairs 5`` looks at the first five pairs of each dimension.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import ast
import io
import itertools
import json
import logging
import statistics
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.scimath import sqrt as scisqrt
from scipy import linalg

from musictune.metrics.features import Features
from musictune.metrics.frechet import frechet_distance
from musictune.metrics.frechet_influence import clip_distances
from musictune.metrics.gaussian import Gaussian

Array = np.ndarray
Moments = tuple[Array, Array]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fadtk", type=Path, required=True, metavar="WHEEL")
    parser.add_argument("--pairs", type=int, help="of each dimension; all if not given")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with zipfile.ZipFile(options.fadtk) as wheel:
        peer = functions(
            wheel.read("fadtk/fad.py").decode(), "calc_frechet_distance", "calc_embd_statistics"
        )
        with np.load(io.BytesIO(wheel.read("fadtk/stats/fma_pop.npz"))) as archive:
            stored = dict.fromkeys(k.rsplit(".", 1)[0] for k in archive.files)
            moments = {k: (archive[f"{k}.mu"], archive[f"{k}.cov"]) for k in stored}
    rows = whole_sets(moments, peer["calc_frechet_distance"], options.pairs)
    rows += single_clips(moments["clap-laion-music"], peer)
    print(f"{'case':62} {'ours':>10} {'peer':>10} {'unit':4} {'ratio':>8} target")
    for row in rows:
        print(
            f"{row['case']:62} {row['ours']:10.3g} {row['peer']:10.3g} {row['unit']:4} "
            f"{row['ratio']:8.1f} {row['target']}  ({row['peer_name']})"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def functions(source: str, *names: str) -> dict[str, Callable[..., Any]]:
    """Functions of a module whose other imports are not here."""
    tree = ast.parse(source)
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    found: dict[str, Any] = {
        "np": np,
        "linalg": linalg,
        "scisqrt": scisqrt,
        "log": logging.getLogger("fadtk"),
    }
    exec(compile(tree, "fadtk/fad.py", "exec"), found)
    return {name: found[name] for name in names}


def root_of_product(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> float:
    """The distance through scipy's general matrix root, as most tools have it."""
    product = np.real(linalg.sqrtm(cov1 @ cov2))
    return float(np.square(mu1 - mu2).sum() + np.trace(cov1 + cov2 - 2 * product))


def whole_sets(
    moments: dict[str, Moments], fadtk: Callable[..., float], most: int | None
) -> list[dict[str, Any]]:
    some = next(iter(moments.values()))
    for measure in (frechet_distance, fadtk, root_of_product):
        measure(*some, *some)  # what happens only once, such as imports, is not measured
    by_dim = defaultdict(list)
    for one, other in itertools.combinations(moments, 2):
        if len(moments[one][0]) == len(moments[other][0]):
            by_dim[len(moments[one][0])].append((*moments[one], *moments[other]))
    rows, differences, compared = [], [], 0
    ratios: dict[str, list[float]] = {"fadtk": [], "scipy sqrtm": []}
    for dim, pairs in sorted(by_dim.items()):
        times = defaultdict(list)
        for index, pair in enumerate(pairs[:most]):
            ours, seconds = timed(frechet_distance, *pair)
            theirs, their_seconds = timed(fadtk, *pair)
            differences.append(abs(ours - theirs) / abs(theirs))
            times["ours"].append(seconds)
            times["fadtk"].append(their_seconds)
            if index < 3:
                times["scipy sqrtm"].append(timed(root_of_product, *pair)[1])
                again = timed(frechet_distance, *pair)[1]
                ratios["scipy sqrtm"].append(times["scipy sqrtm"][-1] / again)
            ratios["fadtk"].append(their_seconds / seconds)
            compared += 1
        ours = statistics.median(times["ours"]) * 1e3
        for name, target in (("fadtk", ">= 6"), ("scipy sqrtm", ">= 3")):
            theirs = statistics.median(times[name]) * 1e3
            case = f"distance, {dim} dimensions, median of {len(times[name])} pairs"
            rows.append(row(case, ours, theirs, name, "ms", target))
    for name, target in (("fadtk", ">= 6"), ("scipy sqrtm", ">= 3")):
        worst = min(ratios[name])
        case = f"distance, least favourable of {len(ratios[name])} pairs"
        rows.append(row(case, 1 / worst, 1.0, name, "of it", target))
    case = f"largest relative difference over {compared} pairs"
    rows.append(row(case, max(differences), 1e-9, "what is allowed", "", ">= 1"))
    selves = [(frechet_distance(*m, *m), abs(float(fadtk(*m, *m)))) for m in one_of_each(moments)]
    case = f"distance of {len(selves)} statistics to themselves, the worst"
    rows.append(row(case, *(max(values) for values in zip(*selves, strict=True)), "fadtk", "", ""))
    return rows


def one_of_each(moments: dict[str, Moments]) -> list[Moments]:
    return list({len(m[0]): m for m in moments.values()}.values())


def single_clips(reference: Moments, peer: dict[str, Callable[..., Any]]) -> list[dict[str, Any]]:
    """Each of 200 clips against CLAP's statistics; fadtk measures five of them."""
    rng = np.random.default_rng(0)
    mu, cov = reference
    root, rows = np.linalg.cholesky(cov), []
    for frames in (30, 100):
        points = rng.standard_normal((200, frames, len(mu))) @ root.T + mu
        made = Features.of(list(points))
        ours, theirs, values = [], [], []
        for clip in range(5):
            found, seconds = timed(clip_distances, made, Gaussian(mu, cov))
            value, their_seconds = timed(alone, peer, mu, cov, points[clip])
            ours.append(seconds / len(made))
            theirs.append(their_seconds)
            values.append(abs(found[clip] - value) / value)
        case = f"each clip alone, {frames} frames of {len(mu)}, differing by {max(values):.0e}"
        rows.append(
            row(
                case, *(statistics.median(t) * 1e3 for t in (ours, theirs)), "fadtk", "ms", ">= 100"
            )
        )
    return rows


def alone(peer: dict[str, Callable[..., Any]], mu: Array, cov: Array, points: Array) -> float:
    return float(peer["calc_frechet_distance"](mu, cov, *peer["calc_embd_statistics"](points)))


def timed(measure: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.process_time()
    return measure(*arguments), time.process_time() - start


def row(
    case: str, ours: float, peer: float, peer_name: str, unit: str, target: str
) -> dict[str, Any]:
    return {
        "case": case,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": peer / ours if ours else float("inf"),
        "unit": unit,
        "target": target,
    }


if __name__ == "__main__":
    main()
