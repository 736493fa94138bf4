"""``musictune reward``: from votes to a reward that judges new music."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reward(
    votes: Annotated[
        Path, typer.Argument(help="Store of `listen` (.db), or an export of it (.jsonl, .csv).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the reward.")],
    features: Annotated[
        str,
        typer.Option(
            help="What it knows of a clip: clap (sound and prompt), states (what the base's "
            "language model makes of it), both, codec (the base's tokens by its embeddings), or "
            "tokens (the same tokens, embeddings learned from nothing)."
        ),
    ] = "both",
    base: Annotated[str, typer.Option(help="Base model that hears, for all but clap.")] = "mini",
    embedder: Annotated[
        str, typer.Option(help="CLAP folder or Hub id for clap; the bundled one by default.")
    ] = "",
    members: Annotated[int, typer.Option(help="Scores in the ensemble.")] = 5,
    caution: Annotated[
        float, typer.Option(help="How much their disagreement counts against a clip.")
    ] = 1.0,
    hidden: Annotated[
        int, typer.Option(help="Width of a hidden layer; 0 for none, best for few votes.")
    ] = 0,
    steps: Annotated[int, typer.Option(help="Most training steps of a hidden layer.")] = 300,
    held_out: Annotated[
        float, typer.Option(help="Share of the votes to judge by, whole prompts at a time.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Learn what listeners prefer, and say how far that can be trusted.

    Fits Bradley-Terry scores to the votes on frozen features of the clips and judges them on
    prompts that were left out. The folder's README.md says how good it is; `align` and `generate`
    take it as reward:FOLDER.

    Example: musictune reward votes.db --out rewards/mine
    """
    from musictune.console import note, say
    from musictune.data.preferences import comparisons, read_all, remarks
    from musictune.errors import InputError
    from musictune.evaluation.reward_quality import interval
    from musictune.evaluation.reward_run import learn_reward
    from musictune.files import check_target
    from musictune.training.feature_reward import FEWEST, RewardSettings
    from musictune.training.reward_features import KINDS, build_features

    settings = RewardSettings(members, hidden, steps, held_out, caution, seed)
    if features not in KINDS:
        raise InputError(f"--features {features!r} is unknown; choose {', '.join(KINDS)}")
    check_target(out, overwrite=overwrite, inputs=[votes])
    given, rated = read_all(votes)
    compared = comparisons(given, rated)
    for line in remarks(given):
        note(line)
    # Before minutes of listening.
    if len(compared) < FEWEST:
        raise InputError(
            f"{votes} has {len(compared)} comparisons, without ties and skips; {FEWEST} are the "
            "least to learn from, and some hundreds make sense: collect more votes"
        )
    heard, model = None, None
    if features in ("clap", "both"):
        from musictune.metrics.embedders import load_embedder

        heard = load_embedder(embedder or None)
    if features != "clap":
        from musictune.models import load_model

        model = load_model(base)
    named = ({"embedder": embedder} if heard else {}) | ({"base": base} if model else {})
    built = build_features(features, heard, model)
    run = learn_reward(compared, built, settings, out, named=named, overwrite=overwrite)
    if run.caveat:
        note(run.caveat)
    say(
        f"{out}: learned from {len(run.report.learned)} of {run.pairs} comparisons of "
        f"{run.prompts} prompts"
    )
    if run.report.held_out:
        say(
            f"held-out accuracy {interval(run.accuracy)} on {run.accuracy.n} comparisons of other "
            f"prompts; calibration error {run.calibration_error:.3f}"
        )
