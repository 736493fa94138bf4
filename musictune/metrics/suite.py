"""All scores of a set of made clips in one go, each clip being embedded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.alignment import (
    audio_alignment,
    audio_alignment_score,
    text_alignment,
    text_alignment_score,
)
from musictune.metrics.base import Score
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.frechet import frechet_score
from musictune.metrics.intervals import mean_interval, sign_flip_p
from musictune.metrics.similarity import self_similarity

PER_CLIP = ("audio_alignment", "text_alignment")


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        scores: by name; those of the set compared against begin with ``against/``, paired
            differences (made minus against) with ``difference/``.
        p: two-sided p of each difference, by the same name.
        not_computed: why a score is missing, by name.
        made, against: for each set the values per clip by name, NaN where there is none.
        pairs: which clip of ``made`` was compared with which of ``against``.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    p: dict[str, float] = field(default_factory=dict)
    not_computed: dict[str, str] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    against: dict[str, Tensor] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)


def score_sets(
    embedder: ClapEmbedder,
    made: Iterable[Clip],
    reference: Iterable[Clip],
    against: Iterable[Clip] | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> Evaluation:
    """Audio and text alignment, Fréchet distance and self-similarity of ``made``.

    Args:
        embedder: what hears and reads.
        made: clips whose captions are their prompts, the trigger already replaced by its class
            word; one without a caption has no text alignment. Read once, so it may be a stream.
        reference: the sound to compare with.
        against: a second set, such as what the untouched base makes.
        pairs: indices into ``made`` and ``against`` of clips that share prompt and seed.

    Raises:
        InputError: a set is empty.
    """
    target = embedder.audio(reference)
    if not target:
        raise InputError("the reference holds no clips; give at least one")
    result = Evaluation(pairs=list(pairs))
    result.made = _score_set(embedder, made, target, "", result)
    if against is None:
        return result
    result.against = _score_set(embedder, against, target, "against/", result)
    for name in PER_CLIP:
        _score_difference(name, result)
    return result


class ClapMetric:
    """`score_sets` as a `Metric`.

    Args:
        embedder: what hears and reads.
    """

    def __init__(self, embedder: ClapEmbedder) -> None:
        self.embedder = embedder

    def __call__(self, made: Sequence[Clip], reference: Sequence[Clip]) -> dict[str, Score]:
        """Every score that can be computed, by name."""
        return score_sets(self.embedder, made, reference).scores


def _score_set(
    embedder: ClapEmbedder,
    clips: Iterable[Clip],
    reference: Sequence[Tensor],
    prefix: str,
    result: Evaluation,
) -> dict[str, Tensor]:
    """Add the scores of one set to ``result``; return its values per clip."""
    captions: list[str] = []

    def noted() -> Iterator[Clip]:
        for clip in clips:
            captions.append(clip.caption)
            yield clip

    made = embedder.audio(noted())
    if not made:
        raise InputError("there are no clips to score; give at least one")
    spoken = [i for i, caption in enumerate(captions) if caption]
    texts = embedder.text([captions[i] for i in spoken])
    answers = [made[i] for i in spoken]

    def text_score() -> Score:
        if not spoken:
            raise InputError("no prompt is known of any clip")
        return text_alignment_score(texts, answers)

    measures: dict[str, Callable[[], Score]] = {
        "audio_alignment": lambda: audio_alignment_score(made, reference),
        "text_alignment": text_score,
        "frechet_distance": lambda: frechet_score(made, reference),
        "self_similarity": lambda: self_similarity(made),
    }
    for name, measure in measures.items():
        try:
            result.scores[prefix + name] = measure()
        except InputError as error:
            result.not_computed[prefix + name] = str(error)
    followed = torch.full((len(made),), torch.nan)
    if spoken:
        followed[spoken] = text_alignment(texts, answers)
    return {"audio_alignment": audio_alignment(made, reference), "text_alignment": followed}


def _score_difference(name: str, result: Evaluation) -> None:
    """Add the mean of made minus against over pairs, with its interval and p."""
    key = f"difference/{name}"
    if not result.pairs:
        result.not_computed[key] = "no clips of the two sets share a prompt and a seed"
        return
    mine, theirs = torch.tensor(result.pairs).unbind(1)
    differences = (result.made[name][mine] - result.against[name][theirs]).double()
    differences = differences[~differences.isnan()]
    if not len(differences):
        result.not_computed[key] = "no prompt is known of any pair of clips"
        return
    values = differences.numpy()
    result.scores[key] = Score(*mean_interval(values), n=len(values), better="higher")
    result.p[key] = sign_flip_p(values)
