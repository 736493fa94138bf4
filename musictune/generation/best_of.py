"""Best of N: make several clips of each request and keep the one a reward likes best.

No tuning and no gradients: the plainest way to follow a reward, and the yardstick for the others.
What it gives differs from plain music by at most ``log N - (N - 1) / N`` nats (Beirami et al. 2024,
arXiv 2401.01879).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.data.concepts import plain
from musictune.errors import CheckFailed, InputError, MusictuneError
from musictune.generation.engine import Engine, OnStep
from musictune.generation.longform import decode_long, luck
from musictune.generation.request import Request
from musictune.metrics.base import Reward


@dataclass(frozen=True, eq=False)
class Chosen:
    """The best clip of a request.

    Attributes:
        index: of the request.
        codes: ``(codebooks, frames)`` int64.
        clip: what they sound like, its caption in plain words.
        reward: of it.
        rewards: of all candidates, in the order of their seeds.
        seed: with which a plain request makes the same clip.
    """

    index: int
    codes: Tensor
    clip: Clip
    reward: float
    rewards: tuple[float, ...]
    seed: int


def best_of(
    engine: Engine,
    requests: Sequence[Request],
    reward: Reward,
    count: int,
    batch: int = 8,
    on_step: OnStep | None = None,
) -> Iterator[Chosen]:
    """Of ``count`` candidates for each request, the one with the highest reward.

    Candidate k has the seed ``candidate_seed(request.seed, k)``, whatever ``count`` is: the first
    has the request's own, and more candidates never lower the reward. Equal rewards go to the
    earlier one.

    Args:
        engine: what plays.
        requests: that fit into one window, with or without given codes.
        reward: hears all candidates of one request at once, with captions in plain words.
        count: candidates of each request.
        batch: clips made at once; what is chosen does not depend on it.
        on_step: called with the number of clips after each decoded step.

    Yields:
        What was chosen, as requests are done.

    Raises:
        InputError: fewer than one candidate, or a request that cannot be played.
        CheckFailed: the reward fails, or gives what is no number.
    """
    if count < 1:
        raise InputError(f"best of {count} cannot be; choose 1 or more candidates")
    asked = [
        replace(request, seed=candidate_seed(request.seed, k))
        for request in requests
        for k in range(count)
    ]
    made: dict[int, dict[int, Tensor]] = {index: {} for index in range(len(requests))}
    for place, codes in engine.play(asked, batch, on_step):
        index, k = divmod(place, count)
        made[index][k] = codes.cpu()
        if len(made[index]) < count:
            continue
        found = made.pop(index)
        clips = [heard(engine, requests[index], found[k]) for k in range(count)]
        rewards = valued(reward, clips)
        best = int(rewards.argmax())
        each = tuple(rewards.tolist())
        seed = asked[index * count + best].seed
        yield Chosen(index, found[best], clips[best], each[best], each, seed)


def candidate_seed(seed: int, candidate: int) -> int:
    """The seed of a candidate: the first has that of its request, the others a hash of both."""
    return luck(seed, 0, candidate)


def divergence_bound(count: int) -> float:
    """The most nats by which best-of-``count`` music differs from plain music (KL divergence).

    It is exact where no two clips have equal probability and reward (arXiv 2401.01879).
    """
    return math.log(count) - (count - 1) / count


def heard(engine: Engine, request: Request, codes: Tensor) -> Clip:
    """What a reward hears of a request: the music, captioned without words only the model knows."""
    concepts = list(engine.model.concepts)
    if request.adapter is not None:
        concepts += engine.adapters.concepts(request.adapter)
    return decode_long(engine.model, codes, plain(request.prompt, concepts))


def valued(reward: Reward, clips: Sequence[Clip]) -> Tensor:
    """``(clips,)`` float64 rewards; minus infinity is allowed, for what is not known.

    Raises:
        CheckFailed: the reward fails, or does not give one number for each clip.
    """
    try:
        values = torch.as_tensor(reward(clips)).detach().to("cpu", torch.float64)
    except MusictuneError:
        raise
    except Exception as error:
        raise CheckFailed(
            f"the reward failed with {type(error).__name__}: {error}; mend or leave it out"
        ) from error
    if values.shape != (len(clips),):
        raise CheckFailed(
            f"the reward gave shape {tuple(values.shape)} for {len(clips)} clips; one number for "
            "each clip is needed"
        )
    wrong = values.isnan() | values.isposinf()
    if wrong.any():
        raise CheckFailed(
            f"the reward gave {float(values[wrong][0])} for {clips[int(wrong.nonzero()[0])].source}"
            "; mend or leave it out"
        )
    return values
