"""Alignment objectives, by name."""

from musictune.training.objectives.base import (
    Compared,
    Objective,
    PairObjective,
    Played,
    RolloutObjective,
)
from musictune.training.objectives.registry import objectives

__all__ = ["Compared", "Objective", "PairObjective", "Played", "RolloutObjective", "objectives"]
