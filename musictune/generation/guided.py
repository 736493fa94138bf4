"""Reward-guided sampling without tuning: music is chosen piece by piece while it is made.

Every second or so several continuations of a clip are made, each is valued by a reward, and one is
drawn, the likelier the better it is valued. Whatever the reward is, it needs no gradient. In the
manner of soft value-based decoding (SVDD, Li et al. 2024, arXiv 2408.08252) and of Transfer Q*
(Chakraborty et al. 2024, arXiv 2405.20495), which estimate the final reward from what is there. Our
own choices: the estimate is the reward of the music so far, and the strength counts in standard
deviations of one clip's candidates, so that it means the same for every reward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.generation.best_of import candidate_seed, heard, valued
from musictune.generation.engine import Engine, OnStep
from musictune.generation.longform import luck
from musictune.generation.request import Request
from musictune.generation.sampling import uniforms
from musictune.metrics.base import Reward


@dataclass(frozen=True, eq=False)
class Guided:
    """A clip that was chosen piece by piece.

    Attributes:
        index: of its request.
        codes: ``(codebooks, frames)`` int64.
        clip: what they sound like, its caption in plain words.
        reward: of the whole clip.
        rewards: at each choice, those of the candidates.
        choices: which of them was drawn.
        divergence: nats, the sum over choices of ``log candidates - entropy of the draw``. Its mean
            over clips bounds the KL divergence from plain sampling.
    """

    index: int
    codes: Tensor
    clip: Clip
    reward: float
    rewards: tuple[tuple[float, ...], ...]
    choices: tuple[int, ...]
    divergence: float


@dataclass(eq=False)
class _Growing:
    """A clip between its choices.

    Attributes:
        codes: known so far, with UNKNOWN where codebooks lag behind; None before the first.
        ends: frames at which a choice is still to be made.
    """

    index: int
    request: Request
    ends: list[int]
    codes: Tensor | None = None
    clip: Clip | None = None
    rewards: list[tuple[float, ...]] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    divergence: float = 0.0

    def candidates(self, count: int) -> list[Request]:
        """The continuations to be made next; the first has the luck of the plain clip."""
        return [
            replace(
                self.request,
                given=self.codes,
                stop=self.ends[0],
                seed=candidate_seed(self.request.seed, k),
            )
            for k in range(count)
        ]

    def choose(self, engine: Engine, made: list[Tensor], reward: Reward, strength: float) -> None:
        """Value the continuations by the music so far, and go on from one of them."""
        end = self.ends.pop(0)
        clips = [heard(engine, self.request, codes[:, :end]) for codes in made]
        values = valued(reward, clips)
        chances = probabilities(values, strength)
        best = _drawn(chances, luck(self.request.seed, -1, len(self.choices)))
        self.codes, self.clip = made[best], clips[best]
        self.rewards.append(tuple(values.tolist()))
        self.choices.append(best)
        self.divergence += math.log(len(made)) - float(torch.special.entr(chances).sum())

    def finished(self) -> Guided:
        assert self.codes is not None and self.clip is not None
        best = self.rewards[-1][self.choices[-1]]
        rewards, choices = tuple(self.rewards), tuple(self.choices)
        return Guided(
            self.index, self.codes, self.clip, best, rewards, choices, max(0.0, self.divergence)
        )


def guided(
    engine: Engine,
    requests: Sequence[Request],
    reward: Reward,
    candidates: int = 4,
    seconds: float = 1.0,
    strength: float = 2.0,
    batch: int = 8,
    on_step: OnStep | None = None,
) -> Iterator[Guided]:
    """Draw music with probability proportional to ``exp(strength * standardised value)``.

    With strength 0, or one candidate, this is plain sampling token for token. With infinite
    strength and pieces as long as the clip it is :func:`musictune.generation.best_of.best_of`.

    Args:
        engine: what plays.
        requests: that fit into one window, with or without given codes.
        reward: hears all candidates of one clip at once, with captions in plain words.
        candidates: continuations at each choice.
        seconds: of music between two choices; a rest of less than half of that joins the piece
            before.
        strength: 0 does not listen to the reward, infinity always takes the best.
        batch: clips made at once; what is drawn does not depend on it.
        on_step: called with the number of clips after each decoded step.

    Yields:
        Clips, as they are done.

    Raises:
        InputError: a value that cannot be used, or a request that cannot be played.
        CheckFailed: the reward fails, or gives what is no number.
    """
    check_guidance(candidates, seconds, strength)
    for request in requests:
        engine.check(request)
    if strength == 0:
        candidates = 1  # any choice made without listening has the same law
    playing = [
        _Growing(index, request, _ends(engine, request, seconds), request.given)
        for index, request in enumerate(requests)
    ]
    while playing:
        asked = [each for clip in playing for each in clip.candidates(candidates)]
        made: dict[int, dict[int, Tensor]] = {}
        going: list[_Growing] = []
        for place, codes in engine.play(asked, batch, on_step):
            which, k = divmod(place, candidates)
            found = made.setdefault(which, {})
            found[k] = codes.cpu()
            if len(found) < candidates:
                continue
            clip = playing[which]
            clip.choose(engine, [found[k] for k in range(candidates)], reward, strength)
            del made[which]
            if clip.ends:
                going.append(clip)
            else:
                yield clip.finished()
        playing = sorted(going, key=lambda clip: clip.index)


def probabilities(values: Tensor, strength: float) -> Tensor:
    """``(candidates,)`` float64, how likely each is drawn.

    Args:
        values: ``(candidates,)`` float64; minus infinity is never drawn beside a finite one.
        strength: in standard deviations of the finite values; infinity takes the first of the best.
    """
    if math.isinf(strength):
        return (torch.arange(len(values)) == values.argmax()).double()
    known = values.isfinite()
    if not known.any() or strength == 0:
        return torch.full_like(values, 1 / len(values))
    deviation = float(values[known].std(correction=0))
    if deviation <= 1e-9 * float(values[known].abs().max()):
        return known / known.sum()  # as good as equal: rounding is no reason
    return (strength * (values - values[known].mean()) / deviation).softmax(0)


def guided_steps(
    engine: Engine, requests: Sequence[Request], candidates: int, seconds: float
) -> int:
    """What the arguments of ``on_step`` of :func:`guided` sum up to, for a bar."""
    lag = engine.model.codebooks // engine.model.channels - 1
    total = 0
    for request in requests:
        start = 0 if request.given is None else request.given.shape[1]
        for end in _ends(engine, request, seconds):
            total += candidates * (end + lag - start)
            start = end + lag
    return total


def check_guidance(candidates: int, seconds: float, strength: float) -> None:
    """Refuse what :func:`guided` cannot do.

    Raises:
        InputError: no candidates, no time between choices, or a strength below 0.
    """
    if candidates < 1:
        raise InputError(f"guidance by {candidates} candidates cannot be; choose 1 or more")
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"every {seconds:g} seconds cannot be; choose a length above 0, such as 1")
    if not strength >= 0:
        raise InputError(f"strength {strength:g} must be 0 or more; inf always takes the best")


def _ends(engine: Engine, request: Request, seconds: float) -> list[int]:
    """Frames at which choices are made, the last one at the end of the clip."""
    frames = engine.model.frames(request.seconds)
    start = 0 if request.given is None else request.given.shape[1]
    every = max(1, round(min(seconds, request.seconds) * engine.model.frame_rate))
    return [*range(start + every, frames - (every - 1) // 2, every), frames]


def _drawn(chances: Tensor, seed: int) -> int:
    """An index drawn with these probabilities."""
    mass = float(uniforms([seed], 1, 1)) * float(chances.sum())
    return min(int((chances.cumsum(0) <= mass).sum()), int(chances.nonzero()[-1]))
