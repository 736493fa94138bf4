"""Memory stays flat over 10,000 ten-second clips, and a killed run goes on where it was.

    python benchmarks/many_clips.py --clips 10000 --out /tmp/many [--json FILE]

Makes the clips (noise and chords, each other bytes), starts `musictune evaluate` on them, kills it
with SIGKILL half way, starts it again, and samples the resident memory of all its processes twice
a second. Prints memory at a tenth, at half and at the end of listening and at its peak, how many
clips the kill lost, and the time per clip.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

RATE, SECONDS = 32_000, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    made = make_clips(options.out / "made", options.clips)
    reference = make_clips(options.out / "reference", 20, first=10**6)
    cache = options.out / "cache"

    first = start(made, reference, options)
    samples = watch(first, cache, until=options.clips // 2)
    first.kill()
    first.wait()
    time.sleep(2)  # its processes notice that it has gone
    kept = entries(cache)
    began = time.monotonic()
    second = start(made, reference, options)
    samples += watch(second, cache)
    seconds = time.monotonic() - began
    if second.returncode:
        sys.exit(f"evaluate ended with {second.returncode}")
    report(options, samples, kept, seconds)


def make_clips(folder: Path, clips: int, first: int = 0) -> Path:
    """Clips that differ in every byte; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = np.arange(RATE * SECONDS) / RATE
    for index in range(clips):
        path = folder / f"{index:05d}.wav"
        if path.exists():
            continue
        rng = np.random.default_rng(first + index)
        pitches = 110 * 2 ** (rng.integers(0, 36, 3) / 12)
        wave = sum(np.sin(2 * np.pi * pitch * clock) for pitch in pitches) / 6
        wave = wave * np.exp(-2 * (clock % rng.uniform(0.3, 1.0)))
        wave += 0.02 * rng.standard_normal(len(clock))
        soundfile.write(path, wave.clip(-1, 1), RATE, subtype="PCM_16")
    return folder


def start(made: Path, reference: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "musictune", "evaluate", str(made)]
    command += ["--reference", str(reference), "--out", str(options.out / "report")]
    command += ["--cache", str(options.out / "cache"), "--workers", str(options.workers)]
    return subprocess.Popen([*command, "--overwrite"])


def watch(
    process: subprocess.Popen[bytes], cache: Path, until: int | None = None
) -> list[tuple[int, float]]:
    """(clips heard, MB) until the process ends or so many are heard."""
    samples = []
    while process.poll() is None:
        heard = entries(cache)
        samples.append((heard, memory(process.pid)))
        if until and heard >= until:
            break
        time.sleep(0.5)
    return samples


def entries(cache: Path) -> int:
    """Clips that one listener has heard."""
    folders = [path for path in (cache / "heard").glob("*") if path.is_dir()]
    return min((sum(1 for _ in folder.rglob("*.rows")) for folder in folders), default=0)


def memory(pid: int) -> float:
    """Resident megabytes of a process and all below it; shared pages count once (PSS)."""
    total = 0.0
    for one in [pid, *descendants(pid)]:
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        if parent == pid:
            found += [int(entry.name), *descendants(int(entry.name))]
    return found


def report(
    options: argparse.Namespace, samples: list[tuple[int, float]], kept: int, seconds: float
) -> None:
    at = {}
    for share in (0.1, 0.5, 0.95):
        near = [mb for heard, mb in samples if abs(heard / options.clips - share) < 0.04]
        at[share] = float(np.median(near)) if near else float("nan")
    peak = max(mb for _, mb in samples)
    rest = options.clips - kept
    print(
        f"memory at 10 %, 50 %, 95 % of {options.clips} clips: "
        f"{at[0.1]:.0f}, {at[0.5]:.0f}, {at[0.95]:.0f} MB; peak {peak:.0f} MB"
    )
    print(
        f"killed after {kept} clips were kept; the second run heard the other {rest} "
        f"in {seconds:.0f} s, {1000 * seconds / max(rest, 1):.0f} ms each in all, "
        f"{options.workers} workers on {os.cpu_count()} cores"
    )
    if not options.json:
        return
    row = {"case": "memory at 95 % of the clips over that at 10 %", "ours": at[0.95] / at[0.1]}
    rows = [row | {"peer": None, "peer_name": None, "ratio": None, "unit": "", "target": "<= 1.2"}]
    options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
