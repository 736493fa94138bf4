"""What can be asked to be measured, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from musictune.errors import InputError
from musictune.evaluation.plan import Plan

MADE = Path("made")


def test_a_reference_may_be_statistics_by_name():
    assert Plan(MADE, Path("mine")).statistics is None
    assert Plan(MADE, Path("a.npz")).statistics == (Path("a.npz"), "")
    assert Plan(MADE, Path("x/fma_pop.npz:vggish")).statistics == (Path("x/fma_pop.npz"), "vggish")


def test_every_input_is_known_so_that_no_output_replaces_it():
    plan = Plan(MADE, Path("s.npz:clap"), Path("base"), Path("train"), Path("held"))
    assert plan.reads == [MADE, Path("s.npz"), Path("base"), Path("train"), Path("held")]


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="--compat tfgan is unknown; choose from fadtk"):
        Plan(MADE, MADE, compat=("tfgan",))
    with pytest.raises(InputError, match="workers 0 must be at least 1"):
        Plan(MADE, MADE, workers=0)
    with pytest.raises(InputError, match="give --training too"):
        Plan(MADE, MADE, held_out=Path("held"))


def test_paths_may_be_text():
    plan = Plan("made", "x.npz:clap", held_out="held", training="train")  # type: ignore[arg-type]
    assert plan == Plan(MADE, Path("x.npz:clap"), held_out=Path("held"), training=Path("train"))
