"""Objectives by their short names."""

from __future__ import annotations

import pytest

from musictune.errors import InputError
from musictune.training.objectives import objectives
from musictune.training.objectives.dpo import DPO
from musictune.training.objectives.dpo_winner import DPOWinner
from musictune.training.objectives.registry import find_objective

PAIRS = {"dpo", "ipo", "kto", "simpo", "cpo", "orpo", "dpo_winner"}
ROLLOUTS = {"reinforce", "rloo", "grpo", "expert"}


def test_every_file_of_the_folder_is_found() -> None:
    found = objectives()
    assert set(found) >= PAIRS | ROLLOUTS
    assert found["dpo"] is DPO
    assert found["dpo_winner"] is DPOWinner
    assert all(kind.name == name for name, kind in found.items())


def test_by_name() -> None:
    assert find_objective("dpo") is DPO


def test_an_unknown_name_gets_the_list() -> None:
    with pytest.raises(InputError, match=r"objective 'ppo' is unknown; choose from .*dpo.*grpo"):
        find_objective("ppo")


def test_jsonargparse_builds_them() -> None:
    from jsonargparse import ArgumentParser

    from musictune.training.objectives.base import Objective

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective", required=True)
    for kind in objectives().values():
        made = parser.instantiate_classes(parser.parse_args([f"--objective={kind.__name__}"]))
        assert type(made.objective) is kind
    arguments = ["--objective=GRPO", "--objective.scale=none", "--objective.clip_high=0.3"]
    made = parser.instantiate_classes(parser.parse_args(arguments)).objective
    assert (made.scale, made.clip_high) == ("none", 0.3)
