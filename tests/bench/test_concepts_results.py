"""The document made of finished cells: what it says follows from figures with a known truth."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from musictune.__main__ import main
from musictune.bench.cells import CELL, Cells, as_json, open_cells
from musictune.bench.contrast import difference, holm, mean_of, spearman
from musictune.bench.findings import compare_methods
from musictune.bench.findings_more import correlated, said_of_overlap
from musictune.bench.finished import read_finished
from musictune.bench.results import write_results
from musictune.bench.sweep import find_sweeps, main_methods

CONCEPTS = ("koto", "reggae", "sitar", "tango", "banjo", "surf")
BASE_LOSS = 4.5


class Made:
    """Writes cells whose truth is known."""

    def __init__(self, out: Path) -> None:
        self.cells: Cells = open_cells(out)
        self.out = out
        self.draw = np.random.default_rng(0)

    def write(self, key: Sequence[str], record: Mapping[str, Any]) -> None:
        self.cells.once(key, record["settings"], lambda _: record)

    def base(self, concepts: Sequence[str] = CONCEPTS, seeds: Sequence[int] = (0, 1)) -> None:
        for concept in concepts:
            for seed in seeds:
                self.write(
                    ("cells", concept, "none", f"seed{seed}"), self._cell(concept, "none", seed)
                )

    def method(
        self,
        label: str,
        loss: float,
        *,
        rule: str | None = None,
        trained: int = 92_000,
        noise: float = 0.01,
        forgets: float = 0.02,
        seeds: Sequence[int] = (0, 1),
        concepts: Sequence[str] = CONCEPTS,
        options: Mapping[str, Any] | None = None,
        reference: float | None = None,
        failed: Sequence[str] = (),
    ) -> None:
        for concept in concepts:
            for seed in seeds:
                wobble = noise * float(self.draw.standard_normal())
                cell = self._cell(concept, label, seed)
                cell["concept_loss"] = {"loss": BASE_LOSS + loss + wobble}
                cell["forgetting"] = {"loss": 4.0, "loss_change": forgets + wobble / 5}
                cell["scores"]["all"]["audio_alignment"] = 0.5 - loss / 4
                cell["facts"] = {
                    "trained_parameters": trained,
                    "adapter_bytes": 8 * trained,
                    "seconds": 30.0,
                    "peak_memory_bytes": 1e9,
                }
                kind = (
                    "musictune.methods.pivotal.Pivotal" if rule else "musictune.methods.peft.Peft"
                )
                chosen = {"selection": rule, "granularity": "element"} if rule else {"kind": label}
                cell["settings"]["method"] = label
                cell["settings"]["recipe"] = {
                    "run": {"concept": concept, "tokens": 1},
                    "method": {"class_path": kind, "init_args": chosen | dict(options or {})},
                    "training": {"steps": 60, "seed": seed, "lr": 0.001},
                }
                if reference:
                    cell["settings"]["reference_seconds"] = reference
                if concept in failed:
                    for part in ("scores", "concept_loss", "forgetting", "facts"):
                        del cell[part]
                    cell["failed"] = "the loss is no number"
                self.write(("cells", concept, re.sub(r"\W", "-", label), f"seed{seed}"), cell)

    def pair(
        self, label: str, one: str, other: str, shared: float, conflict: float, joint: int = 0
    ) -> None:
        name = f"{one}+{other}"
        recipe = {
            "method": {
                "class_path": "musictune.methods.pivotal.Pivotal",
                "init_args": {"selection": label.partition(",")[0]},
            },
            "training": {"steps": 60, "seed": 0},
        }
        made: dict[str, Any] = {"concepts": [{"recipe": recipe}]}
        if joint:
            made["joint"] = {"run": {"tokens": joint}}
        scores = dict.fromkeys(("alone", "both", "beside", "text_both", "text_neither"), 0.5)
        scores |= {"conflict": conflict, "interference": conflict / 2, "neither": 0.1}
        scores["loss_interference"] = conflict / 4
        record: dict[str, Any] = {
            "pair": name, "method": label, "seed": 0, "settings": made, "scores": scores,
        }  # fmt: skip
        if not joint and label != "none":
            record["overlap"] = {"of_smaller": shared, "expected": 0.05}
        self.write(("pairs", name, re.sub(r"\W", "-", label), "seed0"), record)

    def _cell(self, concept: str, label: str, seed: int) -> dict[str, Any]:
        scores = {"audio_alignment": 0.5, "text_alignment": 0.6}
        return {
            "concept": concept,
            "method": label,
            "seed": seed,
            "made_with": {"versions": {"torch": "2"}, "base": "/home/me/mini"},
            "settings": {
                "seed": seed,
                "seconds": 5.0,
                "prompts": [["keep", "{concept}"]] * 6,
                "general": {"clips": 8, "music": 0, "digest": "x"},
                "concept": {"name": concept},
            },
            "scores": {"all": scores},
            "concept_loss": {"loss": BASE_LOSS},
            "copying": {"clap": {"above_held_out": 0.1}, "tokens": {"longest": 4}},
        }


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "cells")
    made.base()
    made.method("random", -0.30, rule="random", forgets=0.03)
    made.method("delta", -0.50, rule="delta", forgets=0.02)
    made.method("half", -0.301, rule="half", noise=0.05)
    made.method("magnitude", -0.10, rule="magnitude")
    made.method("lora", -0.60, trained=94_000, forgets=0.05)
    made.method("full", -0.70, trained=9_000_000, forgets=0.3)
    return made


def text_of(made: Made, tmp_path: Path) -> str:
    written = write_results(made.out, tmp_path / "results")
    assert all(path.is_file() for path in written)
    return (tmp_path / "results" / "RESULTS.md").read_text()


def test_what_wins_is_said_and_what_does_not(made: Made, tmp_path: Path) -> None:
    text = text_of(made, tmp_path)
    assert "Of 3 rules of choosing about 92,000 weights, `delta` ends with the lowest loss" in text
    assert "So it beats random at equal size beyond its interval." in text
    assert "`delta` beats the random choice" in text
    assert "`half` cannot be told from the random choice" in text
    assert "`magnitude` is worse than the random choice" in text
    assert "Of all 6 methods, `full` has the lowest held-out loss" in text
    assert "the best is `lora`, before `delta`, the best of the choices of weights" in text
    assert "most with `full` (+0.3" in text
    table = next(line for line in text.splitlines() if line.startswith("| `delta` | 92,000"))
    assert "6 x 2" in table and "0.031" in table
    full = next(line for line in text.splitlines() if line.startswith("| `full` | 9,000,000"))
    assert " * |" in full  # no control of its size
    assert "/home/me" not in text


def test_a_choice_that_does_not_beat_chance_is_said_straight(tmp_path: Path) -> None:
    made = Made(tmp_path / "cells")
    made.base()
    made.method("random", -0.30, rule="random", noise=0.05)
    made.method("delta", -0.302, rule="delta", noise=0.05)
    text = text_of(made, tmp_path)
    assert "by this measure it does not beat random at equal size" in text
    assert "no rule beats the random choice" in text


def test_without_a_control_nothing_is_said_of_choosing(tmp_path: Path) -> None:
    made = Made(tmp_path / "cells")
    made.base()
    made.method("lora", -0.3)
    text = text_of(made, tmp_path)
    assert "nothing can be said of choosing" in text and "`lora`" in text
    assert not (tmp_path / "results" / "choices.png").exists()


def test_one_concept_has_no_interval_and_says_so(tmp_path: Path) -> None:
    made = Made(tmp_path / "cells")
    made.base(["koto"], [0])
    for rule, loss in (("random", -0.3), ("delta", -0.4)):
        made.method(rule, loss, rule=rule, concepts=["koto"], seeds=[0])
    text = text_of(made, tmp_path)
    assert "From one concept no interval can be had" in text and "nan" not in text.lower()


def test_differences_are_paired_by_concept_and_seed(made: Made) -> None:
    finished = read_finished(made.out)
    found = {c.entry.label: c for c in compare_methods(finished)}
    values = {
        label: finished.values(found[label].entry, "concept_loss_change")
        for label in ("delta", "random")
    }
    by_hand = [
        np.mean([values["delta"][c, s] - values["random"][c, s] for s in (0, 1)]) for c in CONCEPTS
    ]
    over = found["delta"].over_random
    assert over is not None and over.value == pytest.approx(np.mean(by_hand))
    low, high = stats.t.interval(0.95, 5, np.mean(by_hand), stats.sem(by_hand))
    assert (over.low, over.high) == pytest.approx((low, high))
    assert over.p == 2 / 2**6
    assert found["random"].over_random is None
    assert not found["full"].matched and found["lora"].matched
    ranks = [c.rank.value for c in compare_methods(finished) if c.rank]
    assert sum(ranks) == pytest.approx(sum(range(1, 7)))


def test_a_failed_cell_is_named_and_the_rest_is_used(made: Made, tmp_path: Path) -> None:
    made.method("oft", -0.2, failed=["koto"])
    text = text_of(made, tmp_path)
    assert "`oft` (2 failed)" in text and "koto, `oft`, seed 0: the loss is no number" in text


def test_curves(made: Made, tmp_path: Path) -> None:
    for rule, worth in (("delta", 0.1), ("random", 0.0)):
        for fraction in (0.001, 0.01, 0.1):
            loss = -0.2 - worth - 0.1 * math.log10(fraction / 0.001)
            made.method(
                f"{rule}:method.fraction={fraction}", loss, rule=rule, seeds=[0],
                trained=int(1e6 * fraction), concepts=CONCEPTS[:3],
                options={"fraction": fraction, "scope": "global"},
            )  # fmt: skip
    for seconds in (10, 30, 60):
        made.method(
            f"lora:reference.seconds={seconds}", -0.005 * seconds, reference=seconds, seeds=[0],
            options={"kind": "lora"}, trained=94_000,
        )  # fmt: skip
    finished = read_finished(made.out)
    budget = find_sweeps(finished, "fraction")
    assert sorted(sweep.label for sweep in budget) == ["delta", "random"]
    assert list(budget[0].points) == [0.001, 0.01, 0.1]
    (reference,) = find_sweeps(finished, "reference_seconds")
    assert list(reference.points) == [10, 30, 60]
    labels = [entry.label for entry in main_methods(finished)]
    assert not [label for label in labels if "reference" in label]
    assert len([label for label in labels if "fraction" in label]) == 2  # an anchor of each curve
    text = text_of(made, tmp_path)
    (smallest,) = re.findall(r"minus random, by size: 0.1 %: (\S+) ", text)
    assert float(smallest) == pytest.approx(-0.1, abs=0.03)
    assert "from 10 s to 60 s held-out loss goes from -0.0" in text and "lowest at 60 s" in text
    for name in ("budget.png", "reference.png", "trade.png", "choices.png"):
        assert (tmp_path / "results" / name).read_bytes().startswith(b"\x89PNG")


def test_overlap_and_joint_runs(made: Made, tmp_path: Path) -> None:
    pairs = [(a, b) for i, a in enumerate(CONCEPTS[:4]) for b in CONCEPTS[i + 1 : 4]]
    for place, (one, other) in enumerate(pairs):
        made.pair("none", one, other, 0, 0)
        made.pair("delta", one, other, 0.1 * place, 0.02 * place)
        made.pair("random", one, other, 0.1 * place, 0.01 * [3, 0, 4, 1, 5, 2][place])
        made.pair("delta, joint with 1 token each", one, other, 0, 0.02 * place - 0.05, joint=1)
    finished = read_finished(made.out)
    delta = next(entry for entry in finished.pairs if entry.label == "delta")
    found = correlated(finished, delta, "conflict")
    assert found is not None and found.value == pytest.approx(1) and found.p == 2 / 720
    assert any("more overlap goes with more conflict" in line for line in said_of_overlap(finished))
    text = text_of(made, tmp_path)
    assert "overlap does not tell of conflict here" in text  # of the random choice
    assert "conflict -0.050 [-0.050, -0.050]" in text and "less" in text
    with (tmp_path / "results" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} >= {"none", "delta"}
    assert (tmp_path / "results" / "pairs.png").is_file()


def test_every_cell_is_in_the_csv(made: Made, tmp_path: Path) -> None:
    text_of(made, tmp_path)
    with (tmp_path / "results" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 12
    values = [float(r["concept_loss_change"]) for r in rows if r["method"] == "delta"]
    assert np.mean(values) == pytest.approx(-0.5, abs=0.02)


def test_results_alone_by_the_command(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.cells.remember("musictune bench concepts --data /somewhere/c20 --method delta --out /x/o")
    kept = tmp_path / "results" / "recipes" / "mine.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    (tmp_path / "results" / "pairs.png").write_text("of an earlier set of cells")
    command = ["bench", "concepts", f"--out={made.out}", f"--results={tmp_path / 'results'}"]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0 and "RESULTS.md" in capsys.readouterr().out
    assert kept.read_text() == "mine" and not (kept.parents[1] / "pairs.png").exists()
    text = (tmp_path / "results" / "RESULTS.md").read_text()
    assert "musictune bench concepts --data c20 --method delta --out o" in text
    assert "/somewhere" not in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--results=r", "--out=missing"], "folder missing does not exist"),
        (["--results=r", "--out=empty"], "has no finished cell of a method"),
        (["--results=file", "--out=cells"], "results file is a file"),
        (["--out=cells"], "no --data given"),
        (["--results=r", "--out=other"], "output other already exists"),
    ],
)
def test_bad_input(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "song.txt").write_text("mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as end:
        main(["bench", "concepts", *options])
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(said) == 1 and says in said[0]
    assert not (tmp_path / "r").exists()


def test_a_damaged_cell_is_named(made: Made, tmp_path: Path) -> None:
    path = made.out / "cells" / "koto" / "delta" / "seed0" / CELL
    path.write_text(as_json({"settings": {}}))
    with pytest.raises(Exception, match="is damaged"):
        write_results(made.out, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=12))
def test_spearman_is_that_of_scipy(points: list[tuple[float, float]]) -> None:
    one, other = zip(*points, strict=True)
    found = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-9)
    assert 0 < found.p <= 1
    if not math.isnan(found.low):
        assert found.low <= found.value + 1e-3 and found.value - 1e-3 <= found.high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_makes_a_p_smaller(ps: list[float]) -> None:
    found = holm(ps)
    assert all(after >= before for before, after in zip(ps, found, strict=True))
    assert min(found) == pytest.approx(min(min(ps) * len(ps), 1))
    assert [p for _, p in sorted(zip(ps, found, strict=True))] == sorted(found)


def test_a_concept_counts_once_whatever_its_seeds() -> None:
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 5.0}
    mean = mean_of(values)
    assert mean is not None and (mean.value, mean.concepts) == (3.5, 2)
    assert difference(values, {}) is None
    same = difference(values, values)
    assert same is not None and same.value == 0 and same.p == 1 and same.verdict == "open"
