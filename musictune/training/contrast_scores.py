"""What a CLAP can do with captioned clips: find them, and tell which of two came first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from musictune import audio
from musictune.data.captioned import CaptionedClip
from musictune.data.sequences import THEN, THEN_UNSEEN, draw_pairs, joined, said
from musictune.metrics.base import NotComputed, Score
from musictune.metrics.retrieval import retrieval_scores, swap_score
from musictune.models.contrastive import Contrastive

Figures = dict[str, dict[str, Any]]
KINDS = ("order_swap", "order_swap_unseen_wordings")


class Searched:
    """Clips that are looked up by their captions, heard once and judged as often as wanted.

    A clip is the mean of its windows, as everywhere here.

    Args:
        model: what hears.
        clips: none of which is trained on.
    """

    def __init__(self, model: Contrastive, clips: Sequence[CaptionedClip]) -> None:
        self.captions = [clip.captions[0] for clip in clips]
        self._windows = [list(map(model.hear, model.windows(audio.read(c.path)))) for c in clips]

    def figures(self, model: Contrastive) -> Figures:
        """Retrieval in both directions, as `retrieval_scores`."""
        points = torch.stack([model.audio_points(windows).mean(0) for windows in self._windows])
        points = torch.nn.functional.normalize(points, dim=-1)
        return plain(retrieval_scores(points, model.text_points(self.captions), self.captions))


class Sequences:
    """Pairs of clips in both orders, as audio, heard once and judged as often as wanted.

    Args:
        model: what hears.
        clips: none of which is trained on.
        count: of pairs.
        seed: of their draw.

    Raises:
        InputError: all clips have one caption.
    """

    def __init__(
        self, model: Contrastive, clips: Sequence[CaptionedClip], count: int, seed: int
    ) -> None:
        self.captions = [clip.captions[0] for clip in clips]
        self.pairs = draw_pairs(self.captions, count, seed)
        used = {index for pair in self.pairs for index in pair}
        heard = {i: audio.read(clips[i].path, seconds=model.seconds) for i in used}
        self._forth = [model.hear(joined(heard[i], heard[j], model.seconds)) for i, j in self.pairs]
        self._back = [model.hear(joined(heard[j], heard[i], model.seconds)) for i, j in self.pairs]

    def figures(self, model: Contrastive) -> Figures:
        """How often the caption in the right order beats the one in the wrong order."""
        points = model.audio_points(self._forth), model.audio_points(self._back)
        wordings = dict(zip(KINDS, (THEN, THEN_UNSEEN), strict=True))
        return plain({k: self._swapped(model, points, w) for k, w in wordings.items()})

    def _swapped(
        self, model: Contrastive, points: tuple[Tensor, Tensor], wordings: Sequence[str]
    ) -> Score:
        right, wrong, about = [], [], []
        names = [f"{i} {j}" for i, j in self.pairs]
        texts = [(self.captions[i], self.captions[j]) for i, j in self.pairs]
        for wording in wordings:
            forth = model.text_points([said(wording, a, b) for a, b in texts])
            back = model.text_points([said(wording, b, a) for a, b in texts])
            for heard, true, swapped in ((points[0], forth, back), (points[1], back, forth)):
                right.append((heard * true).sum(1))
                wrong.append((heard * swapped).sum(1))
                about += names
        return swap_score(torch.cat(right), torch.cat(wrong), about)


def plain(scores: dict[str, Score | NotComputed] | dict[str, Score]) -> Figures:
    """Scores as JSON holds them."""
    return {
        name: score.as_json() if isinstance(score, Score) else asdict(score)
        for name, score in scores.items()
    }


def kept(before: Figures, after: Figures) -> dict[str, float]:
    """After over before, of recalls and mAP; what was nothing before is left out."""
    found = {}
    for name, score in before.items():
        now = after.get(name, {})
        if "value" in score and "value" in now and "rank" not in name and score["value"] > 0:
            found[name] = now["value"] / score["value"]
    return found
