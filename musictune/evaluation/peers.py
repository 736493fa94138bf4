"""The numbers that other tools would give for the same folders, to compare with papers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np

from musictune.errors import InputError
from musictune.evaluation.extras import same_names
from musictune.evaluation.plan import Plan
from musictune.evaluation.sets import hear_set
from musictune.metrics.base import About, Listener, NotComputed, Score
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.compat import audiocraft, fadtk, kadtk
from musictune.metrics.embedders import ClapEmbedder, Embedder
from musictune.metrics.features import Features
from musictune.metrics.folder import ClipSet
from musictune.metrics.intervals import NONE
from musictune.metrics.statistics_files import Statistics
from musictune.metrics.suite import EMBEDDER, Evaluation

Found = dict[str, Score | NotComputed]

_NO_CLIPS = NotComputed("the reference is statistics, which hold no clips")
_NOT_FADTK = NotComputed(
    "the reference is statistics of our own points; give clips, or statistics of fadtk "
    "(--layout fadtk writes such)"
)
_FAD, _KAD = "fadtk_frechet_distance", "kadtk_kernel_distance"

ABOUT = {
    "fadtk": fadtk.ABOUT,
    "kadtk": {
        _KAD: About(
            "Kernel distance, as kadtk",
            "kadtk's own number: bandwidth of the made set, pairs within a clip counted.",
            "lower",
        )
    },
    "audiocraft": audiocraft.ABOUT,
}
"""What each peer of `plan.PEERS` gives, by name."""


def peer_scores(
    evaluation: Evaluation,
    plan: Plan,
    embedder: Embedder,
    classifier: AstClassifier | None,
    made: ClipSet,
    reference: ClipSet | Statistics,
) -> None:
    """Add the scores of each peer that the plan names; a peer that cannot hear so says why."""
    peers: dict[str, Callable[..., Found]] = {
        "fadtk": functools.partial(_fadtk, evaluation),
        "kadtk": _kadtk,
        "audiocraft": functools.partial(_audiocraft, classifier),
    }
    for peer in plan.compat:
        evaluation.about |= ABOUT[peer]
        try:
            evaluation.add(peers[peer](plan, embedder, made, reference))
        except InputError as error:
            evaluation.add(dict.fromkeys(ABOUT[peer], NotComputed(str(error))))


def check_statistics(statistics: Statistics, embedder: Embedder) -> list[str]:
    """Look at a reference's statistics before an hour of listening is lost on them.

    Returns:
        warnings: what to know of our distances where they are fadtk's.

    Raises:
        InputError: they are of another embedder, as far as that can be told.
    """
    statistics.check_heard_by(embedder.dim, embedder.key)
    if statistics.layout != "fadtk":
        return []
    fadtk.check_fadtk_name(statistics.name, embedder)
    unlike = fadtk.unlike_fadtk(embedder)
    if not unlike:
        return []
    return [
        f"statistics {statistics.name} are laid out as fadtk's, which are of {unlike}: only the "
        f"distance of --compat fadtk compares like with like"
    ]


def fadtk_statistics(plan: Plan, embedder: Embedder, made: ClipSet) -> Statistics:
    """Of the made set as fadtk hears and names it, so that fadtk can read and compare them.

    Raises:
        InputError: an embedder that fadtk has not, or fewer than two points.
    """
    heard = _hear(plan, made, fadtk.FadtkListener(embedder))
    name = fadtk.fadtk_name(embedder)
    return Statistics(fadtk.fadtk_gaussian(heard), name, heard.key, "fadtk")


def _fadtk(
    evaluation: Evaluation,
    plan: Plan,
    embedder: Embedder,
    made: ClipSet,
    reference: ClipSet | Statistics,
) -> Found:
    listener = fadtk.FadtkListener(embedder)
    if isinstance(reference, Statistics) and reference.layout == "musictune":
        return {_FAD: _NOT_FADTK}
    ours = _hear(plan, made, listener)
    target = (
        reference.gaussian
        if isinstance(reference, Statistics)
        else _hear(plan, reference, listener)
    )
    alone = fadtk.fadtk_clip_distances(ours, target)
    if not np.isnan(alone).all():
        evaluation.made[_FAD] = alone
    return {_FAD: fadtk.fadtk_score(ours, target)}


def _kadtk(plan: Plan, embedder: Embedder, made: ClipSet, reference: ClipSet | Statistics) -> Found:
    if isinstance(reference, Statistics):
        return {_KAD: _NO_CLIPS}
    listener = fadtk.KadtkListener(embedder)
    ours, theirs = _hear(plan, made, listener), _hear(plan, reference, listener)
    value = kadtk.kad_like_kadtk(ours.points, theirs.points)
    return {_KAD: Score(value, *NONE, n=len(ours), better="lower")}


def _audiocraft(
    classifier: AstClassifier | None,
    plan: Plan,
    embedder: Embedder,
    made: ClipSet,
    reference: ClipSet | Statistics,
) -> Found:
    text, chroma, *divergences = audiocraft.ABOUT
    found: Found = dict.fromkeys([chroma, *divergences], _NO_CLIPS)
    if isinstance(embedder, ClapEmbedder):
        captions = [file.text for file in made.files]
        heard = hear_set(plan, made, {EMBEDDER: embedder}).heard.features[EMBEDDER]
        found[text] = audiocraft.text_consistency(embedder, heard, captions)
    else:
        found[text] = NotComputed(f"embedder {embedder.name} reads no text; a CLAP does")
    if isinstance(reference, Statistics):
        return found
    pairs = same_names(made, reference)
    sets = made, reference
    ours, theirs = _each(plan, sets, audiocraft.ChromaListener())
    found[chroma] = audiocraft.chroma_cosine(ours, theirs, pairs)
    if not classifier:
        return found | dict.fromkeys(divergences, NotComputed("it needs --classifier"))
    ours, theirs = _each(plan, sets, audiocraft.SegmentListener(classifier))
    return found | audiocraft.kld(ours, theirs, pairs)


def _each(plan: Plan, sets: Iterable[ClipSet], listener: Listener) -> tuple[Features, Features]:
    one, other = (_hear(plan, clips, listener) for clips in sets)
    return one, other


def _hear(plan: Plan, clips: ClipSet, listener: Listener) -> Features:
    return hear_set(plan, clips, {"peer": listener}).heard.features["peer"]
