"""Rows: targets are judged on their side, and JSON takes every one of them."""

from __future__ import annotations

import json
import math

import pytest

from musictune.bench.rows import Row, against, judged, print_table
from musictune.errors import InputError


@pytest.mark.parametrize(
    ("ours", "target", "met"),
    [
        (0.92, 0.92, True),
        (0.91, 0.92, False),
        (0.4, "<= 0.5", True),
        (0.6, "<= 0.5", False),
        (0.6, ">= 0.5", True),
        (1.9, "<= peer", True),
        (2.1, "<= peer", False),
        (math.nan, 0.5, False),
        (math.nan, "<= 0.5", False),
        (0.1, None, None),
    ],
)
def test_a_target_is_judged_on_its_side(
    ours: float, target: str | float | None, met: bool | None
) -> None:
    assert judged(Row("codec", "x", ours, peer=2.0, target=target)).met is met


@pytest.mark.parametrize("target", ["0.5", "about 0.5", ">= some", "<= peer"])
def test_a_target_that_says_nothing_is_refused(target: str) -> None:
    with pytest.raises(InputError, match="target"):
        judged(Row("codec", "x", 1.0, target=target))


def test_a_ratio_over_one_means_that_ours_is_better() -> None:
    assert against(2.0, 1.0, higher_is_better=True) == 2
    assert against(2.0, 1.0, higher_is_better=False) == 0.5
    assert against(0.0, 1.0, higher_is_better=False) is None
    assert against(math.nan, 1.0, higher_is_better=True) is None


def test_rows_become_json_without_numbers_that_json_lacks() -> None:
    row = Row("clap", "x", math.nan, peer=math.inf, low=0.5, n=3)
    read = json.loads(json.dumps(row.as_json, allow_nan=False))
    assert (read["ours"], read["peer"], read["low"], read["n"]) == (None, None, 0.5, 3)


def test_the_table_is_aligned_and_shows_notes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        judged(Row("clap", "a long case", 0.5, unit="share", target=0.4, note="read me")),
        Row("clap", "b", 1234.5, peer=2.0, peer_name="them", low=1.0, high=2.0),
    ]
    print_table(rows, "title")
    title, header, first, note, second, last = capsys.readouterr().out.split("\n")[:6]
    assert title == "title"
    assert note.strip() == "read me"
    assert last == ""
    place = header.index("ours")
    assert first[place:].startswith("0.500 share")
    assert second[place:].startswith("1234 ")
    assert "yes" in first
    assert "2.000 them" in second
