"""Does a text find its clip, and a clip its text? And is it heard what came first?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from musictune.metrics.base import NotComputed, Score
from musictune.metrics.intervals import NONE, mean_interval, share_interval, wilson_interval

DEPTHS = (1, 5, 10)
_FEW = 2

Scores = dict[str, Score | NotComputed]


def retrieval_scores(audio: Tensor, text: Tensor, captions: Sequence[str]) -> Scores:
    """Recall at 1, 5 and 10, median rank and mAP at 10, in both directions.

    A caption that several clips share is asked for once, and any of them is right. Of equal cosines
    the wrong answer counts as the better one, so that a model that hears nothing finds nothing.

    Args:
        audio: ``(clips, dim)`` unit rows.
        text: ``(clips, dim)`` unit rows, of each clip's caption.
        captions: of each clip; equal ones are one text.

    Returns:
        Scores by ``text_to_audio_recall_at_1`` and so on. Recall where there are no more answers
        than it looks at is not computed, as it would be 1 for anything. Intervals are 95 %, over
        what is asked for: Wilson's of recall, Student's of mAP, of order statistics of the median.
    """
    distinct = list(dict.fromkeys(captions))
    if len(distinct) < _FEW:
        why = NotComputed(f"{len(distinct)} different captions; retrieval needs 2 or more")
        return {
            f"{way}_{name}": why for way in ("text_to_audio", "audio_to_text") for name in _NAMES
        }
    number = {caption: i for i, caption in enumerate(distinct)}
    said = torch.tensor([number[caption] for caption in captions])
    first = [list(captions).index(caption) for caption in distinct]
    likeness = audio.double() @ text[first].double().T  # (clips, texts)
    right = said[:, None] == torch.arange(len(distinct))
    found = {"text_to_audio": (likeness.T, right.T), "audio_to_text": (likeness, right)}
    return {
        f"{way}_{name}": score
        for way, (cosines, relevant) in found.items()
        for name, score in _one_way(cosines, relevant).items()
    }


def swap_score(right: Tensor, swapped: Tensor, pairs: Sequence[str]) -> Score:
    """The share of questions whose right answer scores above the one in the wrong order.

    Equal scores are half right, so that what hears or reads no order has 0.5.

    Args:
        right, swapped: ``(questions,)`` cosines.
        pairs: what each question is about; questions about one pair of clips are alike, so the 95 %
            interval is over pairs.
    """
    values = (right > swapped).double() + 0.5 * (right == swapped).double()
    value, low, high = share_interval(values.numpy(), list(pairs))
    return Score(value, low, high, len(set(pairs)), "higher", "chance is 0.5")


def _one_way(cosines: Tensor, right: Tensor) -> Scores:
    """``(questions, answers)`` cosines, and which answers are right."""
    questions, answers = cosines.shape
    best = cosines.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    ranks = 1 + ((cosines >= best) & ~right).sum(1)
    scores: Scores = {}
    for depth in DEPTHS:
        if answers <= depth:
            scores[f"recall_at_{depth}"] = NotComputed(
                f"{answers} answers to choose from; recall at {depth} needs more than {depth}"
            )
            continue
        share = float((ranks <= depth).double().mean())
        low, high = wilson_interval(share, questions)
        scores[f"recall_at_{depth}"] = Score(share, low, high, questions, "higher")
    low, high = _median_interval(np.sort(ranks.numpy()))
    scores["median_rank"] = Score(float(np.median(ranks.numpy())), low, high, questions, "lower")
    precision, low, high = mean_interval(_average_precision(cosines, right).numpy())
    scores["map_at_10"] = Score(
        precision, float(np.maximum(low, 0)), float(np.minimum(high, 1)), questions, "higher"
    )
    return scores


_NAMES = (*(f"recall_at_{depth}" for depth in DEPTHS), "median_rank", "map_at_10")


def _average_precision(cosines: Tensor, right: Tensor, depth: int = 10) -> Tensor:
    """``(questions,)`` over the first ``depth`` answers, of at most as many right ones."""
    # Stable, with wrong answers first among equals.
    order = torch.argsort(right.int(), dim=1, stable=True)
    ranked = torch.gather(cosines, 1, order).argsort(dim=1, descending=True, stable=True)
    hits = torch.gather(torch.gather(right, 1, order), 1, ranked)[:, :depth].double()
    places = torch.arange(1, hits.shape[1] + 1)
    total = (hits * hits.cumsum(1) / places).sum(1)
    return total / right.sum(1).clamp(max=depth)


def _median_interval(ordered: np.ndarray) -> tuple[float, float]:
    """95 % interval of a median by order statistics, the binomial's; NaN where too few allow it."""
    from scipy.stats import binom

    count = len(ordered)
    below = int(binom.ppf(0.025, count, 0.5))
    if below < 1:
        return NONE
    return float(ordered[below - 1]), float(ordered[count - below])
