"""Rules that say which weights matter for some clips: one function each, found by its name.

A rule looks through :class:`~musictune.methods.evidence.Evidence` and returns a score for each
weight; :class:`~musictune.methods.units.Units` then takes the best that fit the budget. Rules that
look at the clips all see as many batches. What a paper's rule is here is said as far as its
abstract says it; schedules, rates and shares are our choices.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from musictune.errors import InputError
from musictune.methods.evidence import Evidence

Rule = Callable[[Evidence], dict[str, Tensor]]
"""From evidence to non-negative scores, ``(out, in)`` for each matched layer."""

_GATE_DROPOUT = 0.5


def delta(evidence: Evidence) -> dict[str, Tensor]:
    """How far weights move, narrowed down round by round.

    Our reconstruction of pivotal-parameter tuning (JEN-1 DreamStyler, arXiv 2406.12292): all
    matched weights train for a few steps, those that moved most are kept, and only they train
    again from zero. The paper's own schedule is not public.
    """
    looking, units = evidence.looking, evidence.units
    share = evidence.budget.share(units.total, single=units.granularity == "element")
    for kept in narrowing(share, looking.rounds)[:-1]:
        evidence.keep(evidence.changes(looking.steps), kept)
    return evidence.changes(looking.steps)


def lottery(evidence: Evidence) -> dict[str, Tensor]:
    """How far weights move in one long training, which is then undone.

    After composable sparse tuning (LT-SFT, Ansell et al. 2022, arXiv 2110.07560), which learns its
    sparse changes by a variant of the lottery ticket hypothesis.
    """
    return evidence.changes(evidence.looking.rounds * evidence.looking.steps)


def sensitivity(evidence: Evidence) -> dict[str, Tensor]:
    """``|gradient * weight|`` summed over batches: to first order, what removing a weight costs."""
    return evidence.gradients(_batches(evidence), lambda g, w: (g * w).abs())


def gradient(evidence: Evidence) -> dict[str, Tensor]:
    """The squared gradient summed over batches.

    After sensitivity-aware tuning (SPT, He et al. 2023, arXiv 2303.08566), which tunes the most
    sensitive weights under a budget. That it gives some matrices low-rank modules instead is left
    out.
    """
    return evidence.gradients(_batches(evidence), lambda g, w: g.square())


def mask(evidence: Evidence) -> dict[str, Tensor]:
    """How far a learned factor on each weight moves from 1.

    Loosely after regularised mask tuning (R-AMT, Zheng et al. 2023, arXiv 2307.15049), which learns
    binary masks with gradient dropout and keeps them as its result. Ours learns real factors,
    drops gradients uniformly, and only chooses by them.
    """
    return evidence.gates(_batches(evidence), _GATE_DROPOUT)


def heads(evidence: Evidence) -> dict[str, Tensor]:
    """How far a learned scale of each attention head's output moves from 1.

    The first half of LoFiT (Yin et al. 2024, arXiv 2406.01563): find the few heads that matter.
    LoFiT then learns offsets of their outputs; ours trains their weights.
    """
    return evidence.gains(_batches(evidence))


def magnitude(evidence: Evidence) -> dict[str, Tensor]:
    """The size of each weight. Looks at no clip."""
    return {name: weight.float().abs() for name, weight in evidence.weights.items()}


def random(evidence: Evidence) -> dict[str, Tensor]:
    """Chance: the control that every other rule must beat. Looks at no clip.

    ``half``, ``layers`` and ``grow`` start from the same choice, so that what they do while the
    weights train (:mod:`musictune.methods.online`) is all that differs.
    """
    return evidence.chance()


RULES: dict[str, Rule] = {
    "delta": delta,
    "lottery": lottery,
    "sensitivity": sensitivity,
    "gradient": gradient,
    "mask": mask,
    "heads": heads,
    "magnitude": magnitude,
    "random": random,
    "half": random,
    "layers": random,
    "grow": random,
}
"""Every rule by its name."""

_BLIND: tuple[Rule, ...] = (magnitude, random)


def looks(selection: str) -> bool:
    """Whether the rule reads clips, which takes time."""
    return RULES[selection] not in _BLIND


def known_rule(selection: str) -> str:
    """``selection``, if there is such a rule.

    Raises:
        InputError: there is none; says which there are.
    """
    if selection not in RULES:
        raise InputError(f"selection {selection!r} is unknown; choose from {', '.join(RULES)}")
    return selection


def narrowing(fraction: float, rounds: int) -> list[float]:
    """Shares to keep round by round, geometric from 1 down to ``fraction``.

    With three rounds and 0.05: 0.37, 0.14, 0.05.
    """
    return [fraction ** ((turn + 1) / rounds) for turn in range(rounds)]


def _batches(evidence: Evidence) -> int:
    return evidence.looking.rounds * evidence.looking.steps
