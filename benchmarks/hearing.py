"""Whether the ears of `musictune evaluate` are right, on renders whose tempo and key are known.

    python benchmarks/hearing.py [--count 40] [--seconds 10] [--json FILE]

Tempo beside ``librosa.beat.beat_track``, key beside the profiles of Krumhansl and Kessler (1982) on
the same chroma, with the milliseconds each takes; then what `steerability` says of true renders of
``configs/steering.txt``, which follow their prompts, and of renders that know nothing of them.
Needs the extra ``compose`` and a SoundFont. Seeds are held out from every corpus.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import librosa
import numpy as np
import torch

from musictune.audio import Clip
from musictune.compose.instruments import INSTRUMENTS
from musictune.compose.notes import Score as Music
from musictune.compose.render import Renderer
from musictune.compose.score import write_score
from musictune.metrics.base import Score
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.musical import KEYS, RATE, MusicalListener, key_of, tempo_fits, tempo_of
from musictune.metrics.musical_agreement import key_score
from musictune.metrics.musical_asked import asked
from musictune.metrics.steerability import steerability

SEED = 72_400_000
PROMPTS = Path(__file__).parents[1] / "configs" / "steering.txt"
T = TypeVar("T")

_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
_PROFILES = [np.roll(mode, tonic) for mode in (_MAJOR, _MINOR) for tonic in range(12)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    renderer = Renderer(sample_rate=RATE)
    rows = hearing(renderer, options.count, options.seconds)
    rows += steering(renderer, options.seconds)
    for row in rows:
        peer = f"{row['peer']:8.3f} {row['peer_name']}" if row["peer"] is not None else ""
        print(f"{row['case']:52} {row['ours']:8.3f} {row['unit']:6} {peer}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def hearing(renderer: Renderer, count: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of tempo and key on ``count`` composed clips."""
    scores = [write_score(SEED + i, seconds=seconds) for i in range(count)]
    clips = [renderer.render(score, effects_seed=SEED + i) for i, score in enumerate(scores)]
    tempi = [score.truth.tempo for score in scores]
    ours, theirs, times = alternate(tempo_of, beat_track, clips)
    hits = [
        float(np.mean([tempo_fits(heard, true) for heard, true in zip(found, tempi, strict=True)]))
        for found in (ours, theirs)
    ]
    rows = [row("tempo within 4 %, octaves allowed", hits[0], hits[1], "librosa beat_track")]
    rows.append(faster("tempo", times, "librosa beat_track"))

    keyed = [i for i, score in enumerate(scores) if score.truth.key]
    mine, other, times = alternate(key_of, krumhansl, [clips[i] for i in keyed])
    weighted = [
        float(np.mean([key_score(scores[i].truth.key, key) for i, key in zip(keyed, found)]))  # noqa: B905
        for found in (mine, other)
    ]
    return rows + [
        row("key, mir_eval's weighted score", weighted[0], weighted[1], "Krumhansl-Kessler")
    ]


def steering(renderer: Renderer, seconds: float) -> list[dict[str, Any]]:
    """Rows of steerability of clips that follow the prompts, beside clips that do not."""
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    listener, embedder = MusicalListener(), ClapEmbedder.load()
    texts = embedder.text(prompts * 2).numpy()
    found = []
    for follow in (True, False):
        heard, points = [], []
        for seed in (0, 1):
            for number, prompt in enumerate(prompts):
                # One seed for a block of eight, so that only what the prompt says differs.
                own = SEED + 1000 * seed + (number // 8 if follow else 100 + number)
                clip = renderer.render(music(prompt, own, seconds, follow))
                heard.append(listener.read(listener.hear(clip)))
                points.append(embedder.hear(clip))
        seeds = [0] * len(prompts) + [1] * len(prompts)
        found.append(steerability(prompts * 2, seeds, heard, points, texts).scores)
    rows = []
    for name, score in found[0].items():
        other = found[1][name]
        assert isinstance(score, Score) and isinstance(other, Score)
        case = f"{name} of true renders, {score.n} pairs"
        rows.append(row(case, score.value, other.value, "renders of anything (luck 0.5)"))
    return rows


def music(prompt: str, seed: int, seconds: float, follow: bool) -> Music:
    """The score that a prompt of ``configs/steering.txt`` asks for, or one that ignores it."""
    if not follow:
        return write_score(seed, seconds=seconds)
    wanted = asked(prompt)
    names = {name: program for program, item in INSTRUMENTS.items() for name in item.names}
    said = [name for name in names if name in prompt]
    lead = min(said, key=lambda name: (prompt.index(name), -len(name)))
    texture = "solo" if "solo" in prompt else "duo" if " over " in prompt else "band"
    return write_score(
        seed,
        seconds=seconds,
        program=names[lead],
        texture=texture,
        style="rock" if texture == "band" else None,
        tempo=wanted.tempo,
        key=wanted.key,
    )


def beat_track(clip: Clip) -> float:
    tempo, _ = librosa.beat.beat_track(y=clip.wave[0].numpy(), sr=clip.sample_rate)
    return float(np.atleast_1d(tempo)[0])


def krumhansl(clip: Clip) -> str:
    wave = clip.mono().resample(RATE).wave[0].numpy()
    power = np.abs(librosa.stft(wave, n_fft=8192, hop_length=4096)) ** 2
    chroma = librosa.feature.chroma_stft(S=power, sr=RATE).mean(1)
    return KEYS[int(np.argmax(np.corrcoef(chroma, _PROFILES)[0, 1:]))]


def alternate(
    ours: Callable[[Clip], T], theirs: Callable[[Clip], T], clips: Sequence[Clip]
) -> tuple[list[T], list[T], tuple[list[float], list[float]]]:
    """What both say of each clip, in turns, and the seconds each took."""
    ours(clips[0]), theirs(clips[0])  # what is compiled or loaded once
    said: tuple[list[T], list[T]] = ([], [])
    times: tuple[list[float], list[float]] = ([], [])
    for clip in clips:
        for who, function in enumerate((ours, theirs)):
            start = time.process_time()
            said[who].append(function(clip))
            times[who].append(time.process_time() - start)
    return said[0], said[1], times


def row(case: str, ours: float, peer: float, name: str, unit: str = "share") -> dict[str, Any]:
    ratio = ours / peer if peer else None
    return {
        "case": case,
        "ours": ours,
        "peer": peer,
        "peer_name": name,
        "ratio": ratio,
        "unit": unit,
        "target": None,
    }


def faster(case: str, times: tuple[list[float], list[float]], name: str) -> dict[str, Any]:
    ours, peer = (statistics.median(side) * 1000 for side in times)
    return row(f"{case}, milliseconds for a clip", ours, peer, name, "ms") | {"ratio": peer / ours}


if __name__ == "__main__":
    main()
