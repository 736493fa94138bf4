"""Rewards in standard deviations of what the model plays before it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from musictune.audio import Clip
from musictune.methods.storage import load_json, save_json
from musictune.metrics.base import Reward
from musictune.metrics.combined import OneScale, Weighted, checked
from musictune.models.base import Batch


def on_one_scale(
    rewards: Sequence[Reward],
    play: Callable[[], Batch],
    folder: Path,
    decode: Callable[[Batch], list[Clip]],
    spoken: Callable[[str], str],
) -> tuple[list[Weighted], Batch | None]:
    """The rewards on one scale, and the half of what was played that the first likes best.

    The scale is kept in ``folder``: a run that goes on finds it there, plays nothing, and gets no
    music.

    Args:
        rewards: one per stage.
        play: what the untrained model makes.
        folder: of the run.
        decode: tokens to sound.
        spoken: what a reward reads in place of a prompt.

    Raises:
        InputError: a reward is constant or not finite on that music.
        CheckFailed: a reward fails.
    """
    if not rewards:
        return [], None
    path = folder / "scales.json"
    sums = [
        reward
        if isinstance(reward, Weighted)
        else Weighted({"reward": (checked(reward, "reward"), 1.0)})
        for reward in rewards
    ]
    if path.is_file():
        stages = load_json(path)["stages"]
        return [
            Weighted(
                {
                    name: (OneScale(part, **scales[name]), weight)
                    for name, (part, weight) in one.parts.items()
                }
            )
            for one, scales in zip(sums, stages, strict=True)
        ], None
    batch = play()
    clips = decode(replace(batch, texts=tuple(spoken(text) for text in batch.texts)))
    found = [one.on_one_scale(clips) for one in sums]
    scales = [
        {name: part.settings for name, (part, _) in one.parts.items() if isinstance(part, OneScale)}
        for one in found
    ]
    save_json({"stages": scales}, path)
    best = found[0](clips).argsort(descending=True)[: max(1, len(batch) // 2)].tolist()
    return found, Batch(batch.codes[best], batch.lengths[best], tuple(batch.texts[i] for i in best))


def _alone(reward: Reward) -> Weighted:
    return Weighted({"reward": (checked(reward, "reward"), 1.0)})
