"""What contrastive tuning gives the bundled CLAP: a user's own words, retention, order.

    python benchmarks/clap/run.py genre --concepts FOLDER --general FOLDER --out OUT
    python benchmarks/clap/run.py order --clips FOLDER --general FOLDER --out OUT
    python benchmarks/clap/run.py probe --clips FOLDER --general FOLDER --out OUT

``genre`` wants a folder of concepts as `concepts20` has them (``NAME/reference``, ``NAME/heldout``,
``NAME/concept.json``), the others captioned folders as `musictune compose` writes them. Every run
adds a line to ``OUT/results.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musictune import audio
from musictune.data.captioned import CaptionedClip, read_captioned
from musictune.data.sequences import joined
from musictune.models.contrastive import Contrastive
from musictune.training.contrast import CLAP, tune_contrast
from musictune.training.contrast_recipe import load_contrast_recipe
from musictune.training.contrast_scores import Searched, Sequences

# The last stage of the audio tower, both projections, the text tower: with the first stages frozen
# a step costs half, and only the last stage sees all of a window at once.
LATE = r"audio_encoder\.layers\.2|audio_encoder\.norm|projection|text_model"


def main() -> None:
    """Run one of the measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measure", choices=("genre", "order", "probe"))
    parser.add_argument("--concepts", type=Path, help="folder of concepts")
    parser.add_argument("--names", nargs="*", default=[], help="which of them; all by default")
    parser.add_argument("--clips", type=Path, help="captioned clips to train on")
    parser.add_argument("--count", type=int, default=400, help="how many of those")
    parser.add_argument("--skip", type=int, default=0, help="and from which on")
    parser.add_argument(
        "--general", type=Path, required=True, help="captioned clips, never trained"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--stages", nargs="+", default=["order"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sets", nargs="*", default=[], help="key=value, as of --set")
    parser.add_argument("--late", action="store_true", help="train the later layers only")
    given = parser.parse_args()
    given.sets += [f"method.targets={LATE}"] * given.late
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    measures = {"genre": genre, "order": order, "probe": probe}
    measures[given.measure](given)


def genre(given: argparse.Namespace) -> None:
    """Captions with the concepts' own names, which the base has never read."""
    names = given.names or sorted(p.parent.name for p in given.concepts.glob("*/concept.json"))
    train, held = (
        gathered(given.concepts, names, part, given.out / f"genre-{part}")
        for part in ("reference", "heldout")
    )
    clips, general = read_captioned(held), read_captioned(given.general)
    base = Contrastive.load()
    searched = {"genre": Searched(base, clips), "general": Searched(base, general)}
    before = {name: one.figures(base) for name, one in searched.items()}
    for seed in given.seeds:
        folder, facts, seconds = tuned(given, train, seed, ["clips"], "genre")
        after = Contrastive.load(folder / CLAP)
        row = {
            "measure": "genre", "concepts": names, "seed": seed, "method": given.method,
            "lr": given.lr, "steps": given.steps, "kept_step": facts.get("kept_step"),
            "trained_parameters": facts["trained_parameters"], "cpu_seconds": seconds,
            "before": before, "after": {n: one.figures(after) for n, one in searched.items()},
        }  # fmt: skip
        added(row, given.out)


def order(given: argparse.Namespace) -> None:
    """Which of two clips comes first, on clips that nothing was trained on."""
    train = first(given.clips, given.skip, given.count, given.out / "order-clips")
    general = read_captioned(given.general)
    base = Contrastive.load()
    searched, sequences = Searched(base, general), Sequences(base, general, 60, 0)
    before = {"general": searched.figures(base), "order": sequences.figures(base)}
    for seed in given.seeds:
        folder, facts, seconds = tuned(given, train, seed, given.stages, "order")
        after = Contrastive.load(folder / CLAP)
        row = {
            "measure": "order", "clips": given.count, "seed": seed, "method": given.method,
            "stages": given.stages, "lr": given.lr, "steps": given.steps, "sets": given.sets,
            "kept_step": facts.get("kept_step"),
            "trained_parameters": facts["trained_parameters"], "cpu_seconds": seconds,
            "before": before,
            "after": {"general": searched.figures(after), "order": sequences.figures(after)},
            "own_clips_of_the_run": {"before": facts["before"], "after": facts["after"]},
        }  # fmt: skip
        added(row, given.out)


def probe(given: argparse.Namespace) -> None:
    """Can a linear classifier read from one point of the base which of two kinds came first?

    The kinds are music with drums and without, so that it need not know the pair. It learns from
    sequences of ``clips`` and is asked about those of ``general``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = Contrastive.load()
    rows = {}
    for name, folder, count in (("train", given.clips, given.count), ("test", given.general, 999)):
        truth = [json.loads(line) for line in (folder / "metadata.jsonl").open(encoding="utf-8")]
        chosen = truth[given.skip :][:count] if name == "train" else truth
        clips = [(folder / row["file_name"], row["has_drums"]) for row in chosen]
        kinds = [[audio.read(p) for p, drums in clips if drums is kind] for kind in (True, False)]
        rng = np.random.default_rng(0)
        heard, labels = [], []
        for _ in range(100):
            a, b = (kind[int(rng.integers(len(kind)))] for kind in kinds)
            heard += [model.hear(joined(*two, model.seconds)) for two in ((a, b), (b, a))]
            labels += [1, 0]
        rows[name] = (model.audio_points(heard).numpy(), np.array(labels))
    for strength in (0.01, 0.1, 1.0):
        reader = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        reader.fit(*rows["train"])
        added(
            {
                "measure": "probe",
                "strength": strength,
                "train": reader.score(*rows["train"]),
                "test": reader.score(*rows["test"]),
                "sequences": len(rows["test"][1]),
            },
            given.out,
        )


def tuned(
    given: argparse.Namespace, clips: Path, seed: int, stages: list[str], name: str
) -> tuple[Path, dict[str, Any], float]:
    """A run, its facts, and the CPU seconds it took."""
    recipe = load_contrast_recipe(
        sets=given.sets,
        overrides={
            "run.clips": str(clips), "run.stages": stages, "training.steps": given.steps,
            "training.batch": given.batch, "training.lr": given.lr, "training.seed": seed,
            "training.checkpoint_every": 0,
        },
        method=given.method,
    )  # fmt: skip
    folder = given.out / f"{name}-{given.method}-{'-'.join(stages)}-{given.steps}-{seed}"
    began = time.process_time()
    result = tune_contrast(recipe, folder, device="cpu", overwrite=True)
    return folder, result.facts, round(time.process_time() - began, 1)


def gathered(concepts: Path, names: list[str], part: str, out: Path) -> Path:
    """One AudioFolder of several concepts' clips, each called by its own name."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    lines = []
    for name in names:
        about = json.loads((concepts / name / "concept.json").read_text(encoding="utf-8"))
        word, own = about["class_word"], name.replace("_", " ")
        for clip in read_captioned(concepts / name / part):
            target = f"{name}-{clip.path.name}"
            shutil.copyfile(clip.path, out / target)
            captions = [called(text, word, own) for text in clip.captions]
            row = {"file_name": target, "text": captions[0], "captions": captions}
            lines.append(json.dumps(row))
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def called(text: str, word: str, own: str) -> str:
    """The caption with the concept's name for its class word, or before all else."""
    renamed, count = re.subn(rf"\b{re.escape(word)}\b", own, text)
    return renamed if count else f"{own}, {text}"


def first(folder: Path, skip: int, count: int, out: Path) -> Path:
    """An AudioFolder of ``count`` clips of a larger one."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    clips: list[CaptionedClip] = read_captioned(folder)[skip : skip + count]
    lines = []
    for clip in clips:
        shutil.copyfile(clip.path, out / clip.path.name)
        row = {"file_name": clip.path.name, "text": clip.captions[0], "captions": clip.captions}
        lines.append(json.dumps(row))
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def added(row: dict[str, Any], out: Path) -> None:
    """Keep a line, and show what matters of it."""
    with (out / "results.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    shown = {k: v for k, v in row.items() if not isinstance(v, dict)}
    for when in ("before", "after"):
        for name, scores in row.get(when, {}).items():
            shown[f"{when} {name}"] = {
                k: round(s["value"], 3) for k, s in scores.items() if "value" in s
            }
    print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
