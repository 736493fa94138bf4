"""Copies of training clips: what is heard to find them, and in which clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musictune.data.sources import discover
from musictune.errors import InputError
from musictune.evaluation.plan import Plan
from musictune.evaluation.sets import hear_set
from musictune.metrics.base import Listener
from musictune.metrics.copying import ABOUT, CopyFeatures, copying
from musictune.metrics.embedders import Embedder
from musictune.metrics.excerpts import ChromaFrames, Excerpts
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.suite import Evaluation
from musictune.models.listeners import CodecTokens
from musictune.models.musicgen import MusicGen

_SAME = 0.995  # correlation of notes; two performances stay below, one recording does not


@dataclass(frozen=True)
class _Cut:
    """Clips with the recordings they were cut from."""

    clips: ClipSet
    recordings: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> _Cut:
        sources = discover(path)
        files = tuple(ClipFile(source.path, source.name) for source in sources)
        name = path.resolve().name
        return cls(ClipSet(name, files), tuple(s.origin or s.name for s in sources))


def find_copies(
    evaluation: Evaluation, plan: Plan, embedder: Embedder, made: ClipSet
) -> ClipSet | None:
    """Add how near made clips come to the training clips, if the plan names these.

    Returns:
        the training clips, in the order in which the report of copies counts them.

    Raises:
        InputError: training or held-out clips, or the base, that cannot be used.
    """
    if plan.training is None:
        return None
    training = _Cut.of(plan.training)
    held_out = _Cut.of(plan.held_out) if plan.held_out else None
    codec = _codec(evaluation, plan, made)
    report = copying(
        _heard(plan, embedder, _Cut(made, tuple(file.file for file in made.files)), codec),
        _heard(plan, embedder, training, codec, round_trip=True),
        _heard(plan, embedder, held_out, codec) if held_out else None,
    )
    if held_out and report.thresholds.get("chroma", 0.0) >= _SAME:
        evaluation.warnings.append(
            f"held-out clips {held_out.clips.name} hold what was trained on: they cannot say how "
            f"near is too near; give clips of other recordings"
        )
    evaluation.about |= ABOUT
    evaluation.add(report.scores)
    evaluation.copying = report
    return training.clips


def _heard(
    plan: Plan, embedder: Embedder, cut: _Cut, codec: MusicGen | None, round_trip: bool = False
) -> CopyFeatures:
    ears: dict[str, Listener] = {"clap": Excerpts(embedder), "chroma": ChromaFrames()}
    rate = 0.0
    if codec is not None:
        tokens = CodecTokens(codec)
        ears["tokens"], rate = tokens, tokens.frame_rate
        if round_trip:
            ears["again"] = CodecTokens(codec, round_trip=True)
    heard = hear_set(plan, cut.clips, ears).heard.features
    return CopyFeatures(
        tuple(file.file for file in cut.clips.files),
        heard["clap"],
        heard["chroma"],
        heard.get("tokens"),
        heard.get("again"),
        rate,
        cut.recordings,
    )


def _codec(evaluation: Evaluation, plan: Plan, made: ClipSet) -> MusicGen | None:
    """The base whose tokens were learned; without it copies are looked for by sound and notes."""
    if plan.base:
        return MusicGen.load(plan.base)
    named = next((file.base for file in made.files if file.base), "")
    if not named:
        return None
    try:
        return MusicGen.load(named)
    except InputError as error:
        evaluation.warnings.append(f"no codec tokens to look for copies in: {error}; give --base")
        return None
