"""Following a reward at decode time: what best-of-N and guided sampling reach, and what they cost.

    OMP_NUM_THREADS=1 python benchmarks/decode_time.py [--prompts 8] [--seeds 2] [--seconds 4]

Two rewards: spectral brightness, of which the right answer is known, and CLAP text alignment. For
plain sampling, best of 4, 8 and 16, and guided sampling with 4 candidates every second at two
strengths, which decodes as many tokens as best of 4, it prints means over the clips kept: the
reward with its standard error, text alignment by the same CLAP, how many clips the set is worth
(Vendi score), the most nats from plain music, and seconds of one core for each clip kept, what the
reward hears included. Best of N is read from one run of 16, whose first N candidates are those of a
run of N; its seconds are that share. Takes about six minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.generation import Engine, Request
from musictune.generation.best_of import best_of, divergence_bound
from musictune.generation.guided import guided
from musictune.metrics.alignment import TextAlignment
from musictune.metrics.diversity import vendi_score
from musictune.metrics.embedders import ClapEmbedder, load_embedder
from musictune.models import load_model

PROMPTS = (
    "A jazz swing piece with piano, double bass and drums.",
    "Slow ambient music with strings and flute in A minor.",
    "A fast rock song with electric guitar and drums.",
    "A waltz for accordion in G major.",
    "Solo classical guitar, gentle and calm.",
    "Electronic dance music with a synth lead at 128 bpm.",
    "A march for brass at 110 bpm.",
    "A lullaby on a music box in C major.",
)
COUNTS = (1, 4, 8, 16)
CANDIDATES, STRENGTHS = 4, (2.0, math.inf)

Score = Callable[[Sequence[Clip]], Tensor]


def brightness(clips: Sequence[Clip]) -> Tensor:
    """``(clips,)`` spectral centroid in kHz, over the whole clip."""
    found = []
    for clip in clips:
        size = torch.fft.rfft(clip.wave.mean(0)).abs()
        place = torch.linspace(0, clip.sample_rate / 2000, len(size))
        found.append((size * place).sum() / size.sum().clamp_min(1e-9))
    return torch.stack(found)


@dataclass
class Listening:
    """Asks several rewards about the same clips, follows one, and keeps what all said."""

    rewards: dict[str, Score]
    follow: str
    clips: list[list[Clip]] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, clips: Sequence[Clip]) -> Tensor:
        self.clips.append(list(clips))
        self.values.append({name: reward(clips) for name, reward in self.rewards.items()})
        return self.values[-1][self.follow]


def main() -> None:
    """Play, choose, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    engine, clap = Engine(load_model("mini", "cpu")), load_embedder()
    assert isinstance(clap, ClapEmbedder)
    rewards: dict[str, Score] = {"brightness": brightness, "text alignment": TextAlignment(clap)}
    requests = [
        Request(prompt, asked.seconds, seed)
        for prompt in PROMPTS[: asked.prompts]
        for seed in range(asked.seeds)
    ]
    list(engine.play(requests[:1]))  # packs the weights
    print(f"{len(requests)} clips of {asked.seconds:g} s")
    print(
        f"{'follows':16s}{'how':16s}{'reward':>16s}{'text':>8s}{'varied':>8s}{'nats':>7s}{'s':>7s}"
    )
    listening = Listening(rewards, "brightness")
    began = time.process_time()
    list(best_of(engine, requests, listening, max(COUNTS), batch=16))
    each = (time.process_time() - began) / len(requests) / max(COUNTS)
    for name, reward in rewards.items():
        for count in COUNTS:
            values = [found[name][:count] for found in listening.values]
            kept = [
                clips[int(found.argmax())]
                for clips, found in zip(listening.clips, values, strict=True)
            ]
            how = "plain" if count == 1 else f"best of {count}"
            report(name, how, kept, reward, clap, divergence_bound(count), each * count)
        for strength in STRENGTHS:
            began = time.process_time()
            made = list(guided(engine, requests, reward, CANDIDATES, 1.0, strength, batch=16))
            spent = (time.process_time() - began) / len(requests)
            kept = [clip.clip for clip in made]
            nats = float(np.mean([clip.divergence for clip in made]))
            report(name, f"guided, {strength:g}", kept, reward, clap, nats, spent)


def report(
    name: str,
    how: str,
    kept: Sequence[Clip],
    reward: Score,
    clap: ClapEmbedder,
    nats: float,
    seconds: float,
) -> None:
    """One line of the table."""
    values = reward(kept)
    error = float(values.std()) / len(kept) ** 0.5
    text = float(TextAlignment(clap)(kept).mean())
    varied = vendi_score(clap.audio(kept)).value
    said = f"{float(values.mean()):.3f} ± {error:.3f}"
    print(
        f"{name:16s}{how:16s}{said:>16s}{text:8.3f}{varied:8.2f}{nats:7.2f}{seconds:7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
