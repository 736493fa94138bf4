"""The whole evaluation: folders in, scores with their sets out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from musictune.evaluation.copies import find_copies, training_cuts
from musictune.evaluation.extras import (
    agreement,
    asked_for,
    distance_of_clips,
    doubt,
    forgotten,
    kl_divergence,
    text_warnings,
    what_if_more,
)
from musictune.evaluation.peers import check_statistics, peer_scores
from musictune.evaluation.plan import Plan
from musictune.evaluation.sets import hear_set, in_pieces, made_sets, reference_set
from musictune.metrics.base import Score
from musictune.metrics.checks import check_files, check_heard, check_sound
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.embedders import Embedder, load_embedder
from musictune.metrics.folder import ClipSet
from musictune.metrics.health import Health
from musictune.metrics.report import write_report
from musictune.metrics.statistics_files import Statistics
from musictune.metrics.suite import Evaluation, HeardSet, clip_values, listeners, score_sets
from musictune.models.devices import find_device


@dataclass
class Measured:
    """An evaluation with what it was made of.

    Attributes:
        evaluation: the scores.
        embedder: what heard.
        made, reference, against: the sets; the reference has no files where it is statistics.
        training: the training clips, in the order in which copies name them.
        facts: more that is needed to make the numbers again.
    """

    evaluation: Evaluation
    embedder: Embedder
    made: HeardSet
    reference: ClipSet
    against: HeardSet | None = None
    training: ClipSet | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Score]:
        """By name, as in ``metrics.json``; what is missing is in ``evaluation.not_computed``."""
        return self.evaluation.scores

    def write(self, folder: Path | str) -> None:
        """Write report.html, metrics.json and clips.csv into a folder, which must exist.

        Raises:
            InputError: a clip that the page shows can no longer be read.
        """
        against = self.against.clips if self.against else None
        sets = self.made.clips, self.reference, against
        write_report(Path(folder), self.evaluation, self.embedder, *sets, self.facts, self.training)


def evaluate(plan: Plan) -> Measured:
    """Measure what a plan says.

    Raises:
        InputError: a folder, file or model that cannot be used, clips that are all silent, or
            statistics of another embedder.
    """
    music, remarks = made_sets(plan)
    made, against = music.made, music.against
    reference = reference_set(plan)
    known = [made, *([against] if against else [])]
    sets = known if isinstance(reference, Statistics) else [*known, reference]
    cuts = training_cuts(plan)
    looked_at = [*sets, *(cut.clips for cut in cuts)]
    looked_at += [ClipSet(made.name, files) for files in zip(*music.plain, strict=True)]
    warnings = remarks + [warning for clips in looked_at for warning in check_files(clips)]

    device = find_device(plan.device)
    if device.type != "cpu":
        plan = replace(plan, workers=1)  # each process would load the model onto the GPU
    embedder = load_embedder(plan.embedder).to(device)
    warnings += text_warnings(embedder, made)
    classifier = AstClassifier.load(plan.classifier).to(device) if plan.classifier else None
    if isinstance(reference, Statistics):
        warnings += check_statistics(reference, embedder)
    ears = listeners(embedder)
    heard = hear_set(plan, made, ears)
    target: HeardSet | Statistics
    pieces: list[str] = []
    if isinstance(reference, Statistics):
        target = reference
    else:
        target, pieces = in_pieces(hear_set(plan, reference, ears))
        warnings += pieces
    other = hear_set(plan, against, ears) if against else None
    evaluation = score_sets(embedder, heard, target, other, music.pairs)
    if pieces:
        doubt(evaluation, "kernel_distance", "the reference is one recording, alike within itself")

    measured = Measured(evaluation, embedder, heard, _files(plan, reference), other)
    heard_target = target if isinstance(target, HeardSet) else None
    warnings += check_heard(heard, heard_target, [other] if other else [])
    warnings += check_sound(evaluation, _health(heard_target))
    evaluation.warnings = list(dict.fromkeys(warnings))  # sets of one name may share one
    distance_of_clips(evaluation, heard, target, other)
    what_if_more(evaluation, heard, target)
    agreement(evaluation, made, target)
    if plan.against:
        forgotten(evaluation, plan, embedder, music)
    asked_for(evaluation, plan, embedder, heard, other)
    if classifier:
        measured.facts |= kl_divergence(evaluation, plan, classifier, made, target)
    if cuts:
        measured.training = cuts[0].clips
        find_copies(evaluation, plan, embedder, made, *cuts)
    if plan.compat:
        peer_scores(evaluation, plan, embedder, classifier, made, reference)
    return measured


def _files(plan: Plan, reference: ClipSet | Statistics) -> ClipSet:
    if isinstance(reference, ClipSet):
        return reference
    path, name = plan.statistics or (plan.reference, "")
    return ClipSet(f"{path.name}:{name}" if name else path.name, ())


def _health(reference: HeardSet | None) -> dict[str, Any]:
    if reference is None:
        return {}
    return clip_values(Health(), reference.heard.features[Health.__name__])
