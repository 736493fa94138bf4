"""Means over concepts and seeds, their intervals, and the files they end in."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musictune.bench.asked import Method, Plan, read_methods
from musictune.bench.concept_set import BenchConcept
from musictune.bench.page import draw
from musictune.bench.pairs import Pair, read_pairs
from musictune.bench.table import COLUMNS, Value, make_tables, rows, shown, write_tables
from musictune.errors import InputError
from musictune.metrics.intervals import clustered_interval, mean_interval


def cell(concept: str, method: str, seed: int, audio: float, text: float = 0.5) -> dict[str, Any]:
    return {
        "concept": concept,
        "method": method,
        "seed": seed,
        "scores": {"all": {"audio_alignment": audio, "text_alignment": text}},
    }


def test_values_of_one_concept_count_once() -> None:
    values, names = np.array([1.0, 3.0, 5.0]), ["a", "a", "b"]
    value, low, high = clustered_interval(values, names)
    assert value == 3.5  # not 3: each concept counts as much as any other
    assert (value, low, high) == mean_interval(np.array([2.0, 5.0]))
    value, low, high = clustered_interval(np.array([1.0, 3.0]), ["a", "a"])
    assert value == 2.0 and math.isnan(low) and math.isnan(high)


def test_clusters_widen_the_interval() -> None:
    """Forty alike seeds of four concepts know no more about a fifth concept than four do."""
    draw_ = np.random.default_rng(0)
    means = np.array([0.0, 1.0, 2.0, 3.0])
    values = np.repeat(means, 10) + 0.01 * draw_.standard_normal(40)
    names = [f"concept{i}" for i in np.repeat(np.arange(4), 10)]
    _, low, high = clustered_interval(values, names)
    _, naive_low, naive_high = mean_interval(values)
    assert high - low > 2 * (naive_high - naive_low)


def test_gains_are_paired_with_the_base_of_the_same_concept_and_seed() -> None:
    cells = [
        cell("a", "none", 0, 0.1),
        cell("a", "none", 1, 0.2),
        cell("b", "none", 0, 0.3),
        cell("a", "lora", 0, 0.2),
        cell("a", "lora", 1, 0.5),
        cell("b", "lora", 0, 0.2),
    ]
    base, lora = rows(cells, COLUMNS, "concept")
    assert (base.label, lora.label, lora.cells) == ("none", "lora", 3)
    assert base.values["audio_gain"].value is None
    gain = lora.values["audio_gain"]
    assert gain.value == pytest.approx((0.2 - 0.1) / 2)
    assert gain.concepts == 2
    assert lora.values["frechet_distance"].value is None


def test_a_failed_cell_is_counted_and_left_out() -> None:
    good, bad = cell("a", "lora", 0, 0.4), {"concept": "b", "method": "lora", "seed": 0}
    cells = [cell("a", "none", 0, 0.1), cell("b", "none", 0, 0.9), good, bad | {"failed": "NaN"}]
    _, lora = rows(cells, COLUMNS, "concept")
    assert (lora.cells, lora.failed) == (1, 1)
    assert lora.values["audio_gain"].value == pytest.approx(0.3)


def test_files(tmp_path: Path) -> None:
    cells = [
        cell(name, method, 0, 0.2 * i + 0.1 * j)
        for i, method in enumerate(["none", "lora", "a <b> method"])
        for j, name in enumerate(["koto", "reggae"])
    ]
    tables = make_tables(
        cells, [], "musictune bench concepts --x 'a b'", {"base": "mini"}, ["gone"]
    )
    write_tables(tables, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table.csv", "table.html", "table.json"]
    content = json.loads((tmp_path / "table.json").read_text())
    figure = content["table"][1]["values"]["audio_gain"]
    assert figure["value"] == pytest.approx(0.2) and figure["concepts"] == 2
    assert content["concepts"]["koto"][1]["values"]["audio_gain"]["low"] is None
    with (tmp_path / "table.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [r["concept"] for r in found] == ["all"] * 3 + ["koto"] * 3 + ["reggae"] * 3
    assert found[0]["audio_gain"] == "" and found[4]["audio_alignment"] == repr(0.2)
    page = (tmp_path / "table.html").read_text()
    assert "--x &#39;a b&#39;" in page and "a &lt;b&gt; method" in page and "gone" in page
    picture = draw(tables.overall)
    assert picture is not None and picture.startswith(b"\x89PNG")
    assert picture == draw(tables.overall)
    assert draw(tables.overall[:1]) is None


def test_shown() -> None:
    assert shown(Value(0.12345, 0.1, 0.2), "+.3f") == "+0.123 (+0.100 to +0.200)"
    assert shown(Value(0.12345, 0.1, 0.2), ".3f", interval=False) == "0.123"
    assert shown(Value(743_000.0), "bytes") == "0.74 MB"
    assert shown(Value(91_942.0, 1.0, 2.0), "count") == "91,942"
    assert shown(Value(None), ".3f") == "–"


@pytest.mark.parametrize(
    ("text", "name", "sets"),
    [
        ("pivotal", "pivotal", ()),
        ("peft:oft", "peft:oft", ()),
        ("pivotal:method.fraction=0.02", "pivotal", ("method.fraction=0.02",)),
        ("peft:oft:training.lr=1e-4", "peft:oft", ("training.lr=1e-4",)),
        (
            "lora:method.options={r: 4, lora_alpha: 8},training.steps=5",
            "lora",
            ("method.options={r: 4, lora_alpha: 8}", "training.steps=5"),
        ),
        ("lora.yaml:training.lr=1", "lora.yaml", ("training.lr=1",)),
    ],
)
def test_methods_are_read(text: str, name: str, sets: tuple[str, ...]) -> None:
    method = Method.parse(text)
    shown = text.replace(".yaml", "")  # a recipe's row has its name
    assert (method.text, method.name, method.sets) == (shown, name, sets)
    assert method.reference_seconds is None
    assert "/" not in method.slug and ":" not in method.slug


def test_a_shorter_reference_is_no_change_of_the_recipe() -> None:
    method = Method.parse("configs/lora.yaml:reference.seconds=30,training.lr=1")
    assert (method.text, method.sets) == (
        "lora:reference.seconds=30,training.lr=1",
        ("training.lr=1",),
    )
    assert method.reference_seconds == 30
    for value in ("0.5", "nan", "half", "-3"):
        with pytest.raises(InputError, match="must be a number of seconds, 1 or more"):
            Method.parse(f"lora:reference.seconds={value}")


def test_two_recipes_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="would both be called 'lora'"):
        read_methods(["a/lora.yaml", "b/lora.yaml"])
    assert len(read_methods(["a/lora.yaml", "a/lora.yaml", "lora.yaml:training.lr=1"])) == 2


def test_methods_keep_apart_and_the_base_is_none_of_them() -> None:
    texts = ["none", "lora", "lora", "lora:training.lr=1", "lora:training-lr=1", "LORA"]
    with pytest.raises(InputError, match="cannot be read"):
        read_methods(texts)
    methods = read_methods([texts[0], texts[1], texts[2], texts[3], texts[5]])
    assert [m.text for m in methods] == ["lora", "lora:training.lr=1", "LORA"]
    assert len({m.slug for m in methods}) == 3


def concept(name: str, kind: str) -> BenchConcept:
    keep = tuple(f"{{concept}} {i}" for i in range(3))
    move = tuple(f"other {{concept}} {i}" for i in range(3))
    return BenchConcept(name, kind, "harp", keep, move, Path(), Path())


def test_half_of_the_prompts_keep_the_class() -> None:
    koto = concept("koto", "instrument")
    assert [part for part, _ in Plan(prompts=4).chosen(koto)] == ["keep", "keep", "move", "move"]
    assert [part for part, _ in Plan(prompts=3).chosen(koto)] == ["keep", "keep", "move"]
    assert len(Plan(prompts=20).chosen(koto)) == 6


def test_a_prompt_for_both_has_a_counterpart_for_each() -> None:
    koto, reggae = concept("koto", "instrument"), concept("reggae", "style")
    (pair,) = read_pairs(["koto+reggae", "reggae+koto"], [koto, reggae])
    assert pair == Pair(reggae, koto)
    prompts = pair.prompts(3)
    assert prompts["both"] == [
        "{first} with {second}",
        "slow {first} with {second}",
        "fast {first} with {second}",
    ]
    assert prompts["first"] == ["{first}", "slow {first}", "fast {first}"]
    assert prompts["second"][1] == "slow {second} solo"
    assert not any("{" in prompt for prompt in prompts["neither"])
    assert len(set(prompts["neither"])) == 3
    for bad in ("koto", "koto+koto", "koto+", "a+b+c"):
        with pytest.raises(InputError, match="cannot be read"):
            read_pairs([bad], [koto, reggae])
