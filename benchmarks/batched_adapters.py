"""Eight clips, each with an adapter of its own: in one batch, beside one after another.

    OMP_NUM_THREADS=1 python benchmarks/batched_adapters.py            # mini
    OMP_NUM_THREADS=1 python benchmarks/batched_adapters.py --small    # MusicGen-small's shape

Adapters are of random places and values, since time does not depend on what they say: pivotal ones
of 5 % of the self-attention projections (single weights, or columns), and LoRA of rank 16 on the
same layers. "one after another" is the way without batched adapters: switch (musictune.Adapters),
pack, play one clip, eight times. "grouped" is all eight clips with one adapter. Milliseconds of
processor time on one thread for one step of all eight clips, without the packing of weights but for
"one after another", which has to pack anew for each clip; medians of rounds that take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from switching import small

from musictune.generation import Engine, Request, Session
from musictune.methods import save_adapter
from musictune.methods.base import TuningMethod, trained_parameters
from musictune.methods.peft import Peft
from musictune.methods.pivotal import Pivotal
from musictune.methods.switching import Adapters
from musictune.models.musicgen import MusicGen

CLIPS = 8
KINDS: dict[str, Callable[[int], TuningMethod]] = {
    "elements": lambda seed: Pivotal(fraction=0.05, selection="random", seed=seed),
    "columns": lambda seed: Pivotal(
        fraction=0.05, selection="random", granularity="column", seed=seed
    ),
    "lora": lambda seed: Peft("lora", {"r": 16}),
}


def write_adapters(model: MusicGen, kind: str, root: Path) -> list[Path]:
    """One per clip."""
    folders = []
    for seed in range(CLIPS):
        method = KINDS[kind](seed)
        method.prepare(model, iter(()))
        method.attach(model)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in trained_parameters(model).values():
                parameter.normal_(0, 1e-3)
        folders.append(root / f"{kind}-{seed}")
        save_adapter(model, method, folders[-1])
        method.detach(model)
    return folders


def timed_steps(engine: Engine, names: Sequence[str | None], steps: int) -> float:
    """Milliseconds of a step of these clips."""
    seconds = (steps + 10) / engine.model.frame_rate
    session = Session(engine, len(names), seconds)
    for seed, name in enumerate(names):
        session.add(Request("a slow piano", seconds, seed, adapter=name))
    for _ in range(3):
        session.step()
    start = time.process_time()
    for _ in range(steps):
        session.step()
    return 1e3 * (time.process_time() - start) / steps


def timed_switching(adapters: Adapters, precision: str, steps: int) -> float:
    """Milliseconds per step of all clips, played one after another."""
    seconds = (steps + 10) / adapters.model.frame_rate
    start = time.process_time()
    for seed, name in enumerate(adapters.names):
        adapters.use({name: 1.0})
        session = Session(Engine(adapters.model, precision), 1, seconds)
        session.add(Request("a slow piano", seconds, seed))
        for _ in range(steps):
            session.step()
    spent = time.process_time() - start
    adapters.use()
    return 1e3 * spent / steps


def main() -> None:
    """Print, and write if asked, the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = small() if given.small else MusicGen.load("mini")
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in KINDS:
            folders = write_adapters(model, kind, Path(temporary))
            engine = Engine(model, given.precision)
            switched = Adapters(model)
            for folder in folders:
                engine.adapters.add(folder.name, folder)
                switched.add(folder.name, folder)
            names = engine.adapters.names
            cases: dict[str, Callable[[], float]] = {
                "the base's batch": lambda engine=engine: timed_steps(
                    engine, [None] * CLIPS, given.steps
                ),
                "each its own": lambda engine=engine, names=names: timed_steps(
                    engine, names, given.steps
                ),
                "grouped": lambda engine=engine, names=names: timed_steps(
                    engine, names[:1] * CLIPS, given.steps
                ),
                "one after another": lambda switched=switched: timed_switching(
                    switched, given.precision, given.steps
                ),
            }
            times: dict[str, list[float]] = {case: [] for case in cases}
            for _ in range(given.rounds):
                for case, run in cases.items():
                    times[case].append(run())
            for case, values in times.items():
                rows[f"{kind}, {case}"] = statistics.median(values)
            megabytes = engine.adapters.nbytes / CLIPS / 1e6
            print(f"{model.base}, {given.precision}: {CLIPS} {kind} adapters of {megabytes:.1f} MB")
            base = rows[f"{kind}, the base's batch"]
            for case in cases:
                value = rows[f"{kind}, {case}"]
                print(f"  {case:18} {value:8.2f} ms/step  {value / base:5.2f} of the base's")
    if given.json:
        content = {"base": model.base, "precision": given.precision, "milliseconds": rows}
        given.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
