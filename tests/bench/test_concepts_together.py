"""Several processes on one benchmark, and two concepts in one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_BOTH = ("first", "second")


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "table.json").read_text())


@pytest.mark.slow
def test_a_pair_learned_in_one_run_is_held_against_two_runs(bench: Any) -> None:
    pivotal = "pivotal:method.fraction=0.2,method.rounds=1,method.probe_steps=1"
    out = bench("--pairs=zing+bop", "--joint=2", methods=(pivotal,), general="0")
    assert bench.code == 0
    base, apart, joint = read(out)["pair_cells"]
    label = f"{pivotal}, joint with 2 tokens each"
    assert [c["method"] for c in (base, apart, joint)] == ["none", pivotal, label]
    # One yardstick: each concept alone, by its own run.
    for case in ("first_alone", "second_alone"):
        assert joint["cases"][case] == apart["cases"][case]
        assert joint["losses"][case] == apart["losses"][case]
    assert joint["cases"]["both"] != apart["cases"]["both"]
    taken = [apart["losses"][f"{c}_beside"] - apart["losses"][f"{c}_alone"] for c in _BOTH]
    assert apart["scores"]["loss_interference"] == pytest.approx(sum(taken) / 2)
    assert base["scores"]["loss_interference"] == 0 and "overlap" not in base
    overlap = apart["overlap"]
    assert 0 <= overlap["shared"] <= overlap["first"] and 0 < overlap["expected"] < 1
    recipe = joint["settings"]["joint"]
    assert recipe["run"]["tokens"] == 2 and recipe["training"]["steps"] == 4
    assert recipe["run"]["concept"] == ["bop", "zing"] and str(out) not in str(joint["settings"])
    # What was learned alone is in the cells, and what each held-out clip lost.
    cells = {(c["concept"], c["method"]): c for c in read(out)["cells"]}
    alone = cells["bop", pivotal]["concept_loss"]
    assert alone["loss"] == pytest.approx(apart["losses"]["first_alone"], abs=1e-5)
    assert alone["loss"] == pytest.approx(sum(alone["losses"]) / 2, abs=1e-5)


@pytest.mark.slow
def test_two_processes_share_the_work(bench: Any) -> None:
    out = bench("--jobs=2", "--seed=0", "--seed=1", methods=("concept_tokens",), general="0")
    assert bench.code == 0
    assert len(read(out)["cells"]) == 8 and not list(out.rglob(".*"))
    alone = read(out)
    bench("--seed=0", "--seed=1", "--overwrite", methods=("concept_tokens",), general="0")

    def figures(tables: dict[str, Any]) -> list[Any]:
        return [(c["concept_loss"], c["scores"], c["copying"]) for c in tables["cells"]]

    assert figures(read(out)) == figures(alone)


@pytest.mark.slow
def test_bad_input_found_by_another_process_is_one_line(
    bench: Any, toys: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(toys.set, copy)
    for path in (copy / "zing" / "heldout").iterdir():
        path.write_bytes(b"no audio")
    bench("--jobs=2", data=copy, methods=("concept_tokens",), general="0")
    said = capsys.readouterr().err.splitlines()[-1]
    assert bench.code == 2 and "heldout" in said
