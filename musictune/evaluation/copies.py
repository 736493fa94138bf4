"""Copies of training clips: what is heard to find them, and in which clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from musictune.data.sources import discover
from musictune.errors import InputError
from musictune.evaluation.plan import Plan
from musictune.evaluation.sets import hear_set, set_name
from musictune.metrics.base import Listener
from musictune.metrics.copying import ABOUT, CopyFeatures, copying
from musictune.metrics.embedders import Embedder
from musictune.metrics.excerpts import ChromaFrames, Excerpts
from musictune.metrics.folder import ClipFile, ClipSet, shown
from musictune.metrics.suite import Evaluation

if TYPE_CHECKING:
    from musictune.models.musicgen import MusicGen

_SAME = 0.995  # correlation of notes; two performances stay below, one recording does not


@dataclass(frozen=True)
class Cut:
    """Clips with the recordings they were cut from."""

    clips: ClipSet
    recordings: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Cut:
        """The clips that ``path`` stands for.

        Raises:
            InputError: there are none.
        """
        sources = discover(path)
        files = tuple(ClipFile(source.path, shown(source.name)) for source in sources)
        return cls(ClipSet(set_name(path), files), tuple(s.origin or s.name for s in sources))


def training_cuts(plan: Plan) -> list[Cut]:
    """The training clips and then the held-out ones, as far as the plan names them.

    Raises:
        InputError: one of them is missing or empty.
    """
    return [Cut.of(path) for path in (plan.training, plan.held_out) if path]


def find_copies(
    evaluation: Evaluation,
    plan: Plan,
    embedder: Embedder,
    made: ClipSet,
    training: Cut,
    held_out: Cut | None = None,
) -> None:
    """Add how near made clips come to the training clips.

    Raises:
        InputError: a clip that cannot be heard, or a base that cannot be loaded.
    """
    codec = _codec(evaluation, plan, made)
    report = copying(
        _heard(plan, embedder, Cut(made, tuple(file.file for file in made.files)), codec),
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


def _heard(
    plan: Plan, embedder: Embedder, cut: Cut, codec: MusicGen | None, round_trip: bool = False
) -> CopyFeatures:
    ears: dict[str, Listener] = {"clap": Excerpts(embedder), "chroma": ChromaFrames()}
    rate = 0.0
    if codec is not None:
        from musictune.models.listeners import CodecTokens

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
    from musictune.models import load_model

    if plan.base:
        return load_model(plan.base, "cpu")
    named = next((file.base for file in made.files if file.base), "")
    if not named:
        return None
    try:
        return load_model(named, "cpu")
    except InputError as error:
        evaluation.warnings.append(f"no codec tokens to look for copies in: {error}; give --base")
        return None
