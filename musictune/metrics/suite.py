"""All scores of a set of made clips in one go, from what was heard in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from musictune.errors import InputError
from musictune.metrics.alignment import (
    ABOUT_ALIGNMENT,
    audio_alignment,
    audio_alignment_score,
    text_alignment,
    text_alignment_score,
)
from musictune.metrics.base import (
    About,
    ClipMetric,
    Listener,
    NotComputed,
    Score,
    SetMetric,
    concept_score,
)
from musictune.metrics.comparison import compare
from musictune.metrics.embedders import Embedder, TextReader
from musictune.metrics.features import Features, comparable
from musictune.metrics.folder import ClipSet
from musictune.metrics.frechet import Frechet, frechet_to_statistics
from musictune.metrics.intervals import mean_interval
from musictune.metrics.listening import Heard
from musictune.metrics.registry import clip_metrics, set_metrics
from musictune.metrics.statistics_files import Statistics

if TYPE_CHECKING:
    from musictune.metrics.copying import CopyingReport

_ONE_CLIP = "one clip has no interval"
_NO_INTERVAL = "no interval is known for this number"
_NO_CLIPS = "the reference is statistics, which hold no clips"

EMBEDDER = "embedder"
"""The name under which `listeners` has the embedder."""

Array = np.ndarray
Found = Mapping[str, Score | NotComputed]


@dataclass(frozen=True)
class HeardSet:
    """Clips with what the `listeners` heard in them.

    Attributes:
        clips: the files, whose ``text`` is what a judge reads.
        heard: by the names of `listeners`.
    """

    clips: ClipSet
    heard: Heard

    @property
    def points(self) -> Features:
        """What the embedder heard."""
        return self.heard.features[EMBEDDER]


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        scores: by name; those of the set compared against begin with ``against/``, paired
            differences (made minus against) with ``difference/``.
        p: two-sided p of each difference, by the same name.
        not_computed: why a score is missing, by name.
        about: title, meaning and direction of each score of a set, by name.
        made, against: for each set the values per clip by name, ``(clips,)`` float64, NaN where
            there is none.
        pairs: which clip of ``made`` was compared with which of ``against``.
        warnings: what should be known before any score is believed.
        influence: how much each made clip adds to the Fréchet distance, ``(clips,)``.
        by_size: numbers of clips, and the Fréchet distance of so many, ``(sizes,)`` each.
        copying: nearness to the training clips, where these are known.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    p: dict[str, float] = field(default_factory=dict)
    not_computed: dict[str, str] = field(default_factory=dict)
    about: dict[str, About] = field(default_factory=dict)
    made: dict[str, Array] = field(default_factory=dict)
    against: dict[str, Array] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    influence: Array | None = None
    by_size: tuple[Array, Array] | None = None
    copying: CopyingReport | None = None

    def add(self, found: Found, prefix: str = "") -> None:
        """Take scores and reasons."""
        for name, score in found.items():
            if isinstance(score, Score):
                if math.isnan(score.low) and not score.note:
                    score = replace(score, note=_ONE_CLIP if score.n < 2 else _NO_INTERVAL)
                self.scores[prefix + name] = score
            else:
                self.not_computed[prefix + name] = score.reason


def listeners(embedder: Embedder) -> dict[str, Listener]:
    """What `score_sets` needs to have been heard: the embedder, and every metric of clips."""
    return {EMBEDDER: embedder, **clip_metrics()}


def score_sets(
    embedder: Embedder,
    made: HeardSet,
    reference: HeardSet | Statistics,
    against: HeardSet | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> Evaluation:
    """Every score of ``made``: alignments, metrics of whole sets, means of metrics of clips.

    Args:
        embedder: what heard, and, if it can, reads the prompts.
        made: the music, each clip's text being its prompt with the trigger already replaced by
            its class word; one without text has no text alignment.
        reference: the sound to compare with; with its statistics alone, the Fréchet distances are
            all that can be compared.
        against: a second set, such as what the untouched base makes.
        pairs: indices into ``made`` and ``against`` of clips that share prompt and seed.

    Raises:
        InputError: embeddings that are not finite, or of different embedders.
    """
    result = Evaluation(pairs=list(pairs))
    for metric in set_metrics():
        result.about |= metric.scores
    result.about = ABOUT_ALIGNMENT | result.about
    for clip_metric in clip_metrics().values():
        result.about |= clip_metric.values
    result.made = _score_set(embedder, made, reference, "", result)
    if against is None:
        return result
    result.against = _score_set(embedder, against, reference, "against/", result)
    prompts = [file.text or file.file for file in made.clips.files]
    for name in result.made:
        if not pairs:
            reason = "no clips of the two sets share a prompt and a seed"
            result.not_computed[f"difference/{name}"] = reason
            continue
        score, p = compare(
            result.made[name], result.against[name], pairs, result.about[name], prompts
        )
        result.add({f"difference/{name}": score})
        if isinstance(score, Score):
            result.p[f"difference/{name}"] = p
    return result


def _score_set(
    embedder: Embedder,
    made: HeardSet,
    reference: HeardSet | Statistics,
    prefix: str,
    result: Evaluation,
) -> dict[str, Array]:
    """Add the scores of one set to ``result``; return its values per clip."""
    values: dict[str, Array] = {"text_alignment": _text_alignment(embedder, made, prefix, result)}
    if isinstance(reference, Statistics):
        result.not_computed[f"{prefix}audio_alignment"] = _NO_CLIPS
    else:
        comparable(made.points, reference.points)
        values["audio_alignment"] = audio_alignment(made.points, reference.points)
        score = audio_alignment_score(made.points, reference.points)
        result.add({"audio_alignment": score}, prefix)
    if "audio_alignment" in values:
        values["concept_score"] = concept_score(values["audio_alignment"], values["text_alignment"])
        both = mean_score(values["concept_score"], ABOUT_ALIGNMENT["concept_score"])
        if isinstance(both, NotComputed):
            why = result.not_computed.get(f"{prefix}text_alignment", both.reason)
            both = NotComputed(why)
        result.add({"concept_score": both}, prefix)
    else:
        result.not_computed[f"{prefix}concept_score"] = _NO_CLIPS
    for metric in set_metrics():
        result.add(_set_scores(metric, made.points, reference), prefix)
    for name, clip_metric in clip_metrics().items():
        known = clip_values(clip_metric, made.heard.features[name])
        values |= known
        for key, column in known.items():
            result.add({key: mean_score(column, clip_metric.values[key])}, prefix)
    return values


def _set_scores(metric: SetMetric, made: Features, reference: HeardSet | Statistics) -> Found:
    try:
        if isinstance(reference, HeardSet):
            return metric(made, reference.points)
        if isinstance(metric, Frechet):
            return frechet_to_statistics(made, reference)
        if not metric.needs_reference:
            return metric(made, made)
    except InputError as error:
        return dict.fromkeys(metric.scores, NotComputed(str(error)))
    return dict.fromkeys(metric.scores, NotComputed(_NO_CLIPS))


def _text_alignment(embedder: Embedder, made: HeardSet, prefix: str, result: Evaluation) -> Array:
    """``(clips,)``, NaN without a text, with the score added."""
    texts = [file.text for file in made.clips.files]
    values = np.full(len(texts), np.nan)
    spoken = [i for i, text in enumerate(texts) if text]
    if not isinstance(embedder, TextReader):
        reason = f"embedder {embedder.name} reads no text; a CLAP does"
    elif not spoken:
        reason = "no prompt is known of any clip"
    else:
        points = embedder.text([texts[i] for i in spoken])
        answers = made.points.select(spoken)
        values[spoken] = text_alignment(points, answers)
        result.add({"text_alignment": text_alignment_score(points, answers)}, prefix)
        return values
    result.not_computed[f"{prefix}text_alignment"] = reason
    return values


def clip_values(metric: ClipMetric, heard: Features) -> dict[str, Array]:
    """Each value per clip, ``(clips,)``: over the blocks of a long one, the mean of those known."""
    rows = np.full((len(heard), heard.width), np.nan)
    for index, blocks in enumerate(heard):
        known = ~np.isnan(blocks)
        total = np.where(known, blocks, 0).sum(0)
        count = known.sum(0)
        rows[index, count > 0] = total[count > 0] / count[count > 0]
    return {name: rows[:, column] for column, name in enumerate(metric.values)}


def mean_score(values: Array, about: About) -> Score | NotComputed:
    """The mean over clips of which the value is known."""
    known = values[~np.isnan(values)]
    if not len(known):
        return NotComputed("the value is known of no clip")
    value, low, high = mean_interval(known)
    low, high = (float(np.clip(end, about.least, about.most)) for end in (low, high))
    return Score(value, low, high, n=len(known), better=about.better)
