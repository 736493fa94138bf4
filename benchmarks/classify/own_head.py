"""What the bundled AST's own head says of families played by programs that it never heard.

    python benchmarks/classify/own_head.py DATA

Of the nine families of the study's task, the one with the highest probability, on its test clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from musictune.data.heard import hear_all
from musictune.data.labelled import read_labelled, targets
from musictune.metrics.base import Score
from musictune.metrics.classification import classification_scores
from musictune.models.classifier import Classifier


def main() -> None:
    """Print accuracy and mean average precision with their intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    clips = read_labelled(parser.parse_args().data / "families")
    test = [example for example in clips.examples if example.split == "test"]
    model = Classifier.load("mini")
    columns = [model.labels.index(label) for label in clips.labels]
    sounds = hear_all(test, model.front.hear)
    said = torch.stack([model.probabilities(list(model.windows(s))).mean(0) for s in sounds])
    own = said[:, columns]
    scores = classification_scores(
        own / own.sum(1, keepdim=True), targets(test, clips.labels), False
    )
    for name, score in scores.items():
        if isinstance(score, Score):
            print(
                f"{name} {score.value:.3f} ({score.low:.3f} to {score.high:.3f}), {score.n} clips"
            )


if __name__ == "__main__":
    main()
