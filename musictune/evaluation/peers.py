"""The numbers that other tools would give for the same folders, to compare with papers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
from musictune.metrics.frechet import frechet_distance
from musictune.metrics.intervals import NONE
from musictune.metrics.statistics_files import Statistics
from musictune.metrics.suite import EMBEDDER, Evaluation

Found = dict[str, Score | NotComputed]

_NO_CLIPS = NotComputed("the reference is statistics, which hold no clips")
_KAD = "kadtk_kernel_distance"

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
    made: ClipSet,
    reference: ClipSet | Statistics,
) -> None:
    """Add the scores of each peer that the plan names; a peer that cannot hear so says why."""
    peers: dict[str, Callable[..., Found]] = {
        "fadtk": _fadtk,
        "kadtk": _kadtk,
        "audiocraft": _audiocraft,
    }
    for peer in plan.compat:
        evaluation.about |= ABOUT[peer]
        try:
            evaluation.add(peers[peer](plan, embedder, made, reference))
        except InputError as error:
            evaluation.add(dict.fromkeys(ABOUT[peer], NotComputed(str(error))))


def _fadtk(plan: Plan, embedder: Embedder, made: ClipSet, reference: ClipSet | Statistics) -> Found:
    listener = fadtk.FadtkListener(embedder)
    ours = _hear(plan, made, listener)
    name = "fadtk_frechet_distance"
    if isinstance(reference, ClipSet):
        return {name: fadtk.fadtk_score(ours, _hear(plan, reference, listener))}
    mu, cov = fadtk.fadtk_moments(ours)
    if len(mu) != reference.gaussian.dim:
        reference.check_fits(ours)
    value = frechet_distance(mu, cov, reference.gaussian.mu, reference.gaussian.cov)
    return {name: Score(value, *NONE, n=len(ours), better="lower")}


def _kadtk(plan: Plan, embedder: Embedder, made: ClipSet, reference: ClipSet | Statistics) -> Found:
    if isinstance(reference, Statistics):
        return {_KAD: _NO_CLIPS}
    listener = fadtk.KadtkListener(embedder)
    ours, theirs = _hear(plan, made, listener), _hear(plan, reference, listener)
    value = kadtk.kad_like_kadtk(ours.points, theirs.points)
    return {_KAD: Score(value, *NONE, n=len(ours), better="lower")}


def _audiocraft(
    plan: Plan, embedder: Embedder, made: ClipSet, reference: ClipSet | Statistics
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
    if not plan.classifier:
        return found | dict.fromkeys(divergences, NotComputed("it needs --classifier"))
    classifier = AstClassifier.load(plan.classifier)
    ours, theirs = _each(plan, sets, audiocraft.SegmentListener(classifier))
    return found | audiocraft.kld(ours, theirs, pairs)


def _each(plan: Plan, sets: Iterable[ClipSet], listener: Listener) -> tuple[Features, Features]:
    one, other = (_hear(plan, clips, listener) for clips in sets)
    return one, other


def _hear(plan: Plan, clips: ClipSet, listener: Listener) -> Features:
    return hear_set(plan, clips, {"peer": listener}).heard.features["peer"]
