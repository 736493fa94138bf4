"""Are the seams of long music audible in figures? Jumps at seams beside jumps at other places.

    OMP_NUM_THREADS=1 python benchmarks/seams.py [--seconds 60]

Prints, for windows that overlap by a third with seams drawn again, and for windows that do not
overlap (the control), the chance that a seam jumps more than another place of the same clip; 0.5
is inaudible. Takes some minutes.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from musictune.generation import Engine, LongForm, Request
from musictune.generation.seams import sound_figures
from musictune.models import load_model

PROMPTS = (
    "A jazz swing piece with piano, double bass and drums.",
    "Slow ambient music with strings and flute in A minor.",
)


def main() -> None:
    """Play, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    model = load_model("mini", "cpu")
    engine = Engine(model)
    for name, overlap, redraws in (("a third, redrawn", None, 2), ("no overlap", 0.0, 0)):
        ranks: dict[str, list[float]] = {}
        for seed, prompt in enumerate(PROMPTS, 1):
            request = Request(prompt, seconds, seed)
            (grown,) = LongForm(engine, overlap, redraws).finished([request])
            seams = [round(seam.second * model.frame_rate) for seam in grown.seams]
            inner = range(25, grown.codes.shape[1] - 25, 3)
            others = [place for place in inner if all(abs(place - seam) >= 15 for seam in seams)]
            found = sound_figures(model, grown.codes, torch.tensor(seams + others))
            for figure in ("level", "flux", "mel"):
                rest = np.array([found[place][figure] for place in others])
                for seam in seams:
                    here = found[seam][figure]
                    rank = (here > rest).mean() + 0.5 * (here == rest).mean()
                    ranks.setdefault(figure, []).append(float(rank))
        for figure, each in ranks.items():
            error = np.std(each) / len(each) ** 0.5
            print(f"{name:18s}{figure:7s}{np.mean(each):.2f} ± {error:.2f} ({len(each)} seams)")


if __name__ == "__main__":
    main()
