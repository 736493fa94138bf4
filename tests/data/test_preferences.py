"""Pairs, votes and ratings as files, and the comparisons that come of them."""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musictune.data.preferences import (
    Comparison,
    Pair,
    Rating,
    Vote,
    comparisons,
    pair_id,
    read_pairs,
    read_ratings,
    read_votes,
    write_pairs,
    write_ratings,
    write_votes,
)
from musictune.data.vote_store import VoteStore
from musictune.errors import InputError
from musictune.files import sha256


def put(path: Path, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(800, level), 8_000)
    return path


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    a, b = put(tmp_path / "one" / "x.wav", 0.1), put(tmp_path / "two" / "x.wav", 0.2)
    return Pair(pair_id("a waltz", sha256(a), sha256(b)), "a waltz", a, b, "one", "two")


# What a spreadsheet may run, CSV may break and people may write, besides any other text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "=1+1",
        "'=1",
        "''-x",
        "@a",
        "-1",
        "+1",
        "\tx",
        "\rx",
        "a,b",
        'a"b',
        "a\nb",
        "a\r\nb",
        "[",
        "'",
    ]
)
NAME = TEXT.filter(bool)
FILE = st.text("ab=-+@' \n,\"ü", min_size=1, max_size=8).map(lambda name: f"{name}.wav")
TAGS = st.lists(TEXT, max_size=3).map(tuple)
SECONDS = st.floats(0, 1e6)


@st.composite
def votes(draw: st.DrawFn) -> Vote:
    folder = Path(draw(st.sampled_from(["/nowhere/in", "/nowhere", "/else where"])))
    paths = folder / draw(FILE), folder / draw(FILE)
    pair = Pair(draw(NAME), draw(TEXT), *paths, draw(TEXT), draw(TEXT))
    choice = draw(st.sampled_from(["a", "b", "tie", "skip"]))
    first = draw(st.sampled_from(["a", "b"]))
    return Vote(pair, choice, draw(NAME), first, draw(TAGS), draw(SECONDS), draw(TEXT))


@st.composite
def ratings(draw: st.DrawFn) -> Rating:
    clip = Path("/nowhere") / draw(FILE)
    about = draw(TEXT), draw(TEXT), draw(NAME)
    return Rating(clip, *about, draw(st.floats(0, 100)), draw(TAGS), draw(TEXT))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@settings(max_examples=30, deadline=None)
@given(st.lists(votes(), max_size=4), st.lists(ratings(), max_size=4))
def test_votes_and_ratings_come_back_as_they_were(
    suffix: str, given_votes: list[Vote], given_ratings: list[Rating]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"votes{suffix}"
        write_votes(given_votes, file)
        assert read_votes(file) == given_votes
        write_ratings(given_ratings, file)
        assert read_ratings(file) == given_ratings


def test_csv_gives_a_spreadsheet_no_formula(tmp_path: Path, pair: Pair) -> None:
    file = tmp_path / "votes.csv"
    write_votes([Vote(replace(pair, prompt="=HYPERLINK(1)"), "a", "@me", "a", ("-x",))], file)
    with file.open(newline="") as stream:
        cells = next(csv.DictReader(stream))
    assert cells["prompt"] == "'=HYPERLINK(1)"
    assert cells["rater"] == "'@me"
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells.values())


def test_csv_written_by_hand_is_read(tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    file.write_text(
        "first,rater,choice,b,a,prompt,why,extra\r\na,Ana,tie,y.wav,x.wav,a waltz,mix; tempo,1\r\n",
        encoding="utf-8-sig",
    )
    (vote,) = read_votes(file)
    assert (vote.pair.a, vote.pair.b) == (tmp_path / "x.wav", tmp_path / "y.wav")
    assert (vote.choice, vote.why, vote.seconds) == ("tie", ("mix", "tempo"), 0.0)
    assert vote.pair.id == read_votes(file)[0].pair.id != ""


def test_a_file_name_that_is_no_text_survives_jsonl_and_is_refused_by_csv(
    tmp_path: Path, pair: Pair
) -> None:
    odd = [Vote(replace(pair, a=tmp_path / "\udcff.wav"), "a", "Ana", "a")]
    write_votes(odd, tmp_path / "votes.jsonl")
    assert read_votes(tmp_path / "votes.jsonl") == odd
    with pytest.raises(InputError, match="CSV cannot hold"):
        write_votes(odd, tmp_path / "votes.csv")
    assert not list(tmp_path.glob("*.csv"))


def test_a_store_is_read_like_a_file(tmp_path: Path, pair: Pair) -> None:
    with VoteStore(tmp_path / "votes.db") as store:
        store.add_pairs([pair])
        trial = store.next_trial("Ana")
        assert trial is not None
        store.vote(trial.id, "tie")
        kept = store.votes()
    assert read_votes(tmp_path / "votes.db") == kept
    assert read_ratings(tmp_path / "votes.db") == []


GOOD = {"prompt": "p", "a": "x.wav", "b": "y.wav", "choice": "a", "rater": "Ana", "first": "a"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"choice": "c"}, "line 2: choice 'c' is unknown; give a, b, tie, skip"),
        ({"first": "left"}, "line 2: first 'left' is unknown"),
        ({"rater": ""}, "line 2: rater is missing"),
        ({"rater": 3}, "line 2: rater 3 must be text"),
        ({"prompt": False}, "line 2: prompt False must be text"),
        ({"a": None}, "line 2: a is missing"),
        ({"b": "x\0"}, "cannot be a path"),
        ({"seconds": "soon"}, "seconds 'soon' must be a finite number"),
        ({"seconds": -1}, "seconds -1.0 must not be negative"),
        ({"seconds": "nan"}, "finite"),
        ({"seconds": True}, "finite"),
        ({"why": "[1"}, "no JSON list"),
        ({"why": [1]}, "must be a list of texts"),
        ({"why": {"a": 1}}, "must be a list of texts"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    file = lines(tmp_path / "votes.jsonl", GOOD, GOOD | change)
    with pytest.raises(InputError, match=complaint.replace("[", r"\[")):
        read_votes(file)


@pytest.mark.parametrize("value", [101, -0.1, "much", None, float("nan"), [50]])
def test_a_bad_rating_is_named(tmp_path: Path, value: object) -> None:
    row = {"clip": "x.wav", "prompt": "p", "rater": "Ana", "value": value}
    with pytest.raises(InputError, match="line 1: value"):
        read_ratings(lines(tmp_path / "ratings.jsonl", row))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("v.csv", b"prompt,a,b,rater\np,x,y,Ana\n", "line 2 lacks choice, first; needed are"),
        ("v.csv", b"prompt,a\np\n", "line 2 has 1 cells for 2 columns"),
        ("v.csv", b'prompt,a\n"p"x,1\n', "is no CSV"),
        ("v.csv", b"prompt\n\xff\n", "is not UTF-8"),
        ("v.jsonl", b"\n{\n", "line 2 is no JSON"),
        ("v.jsonl", b"[" * 100_000, "line 1 is no JSON"),
        ("v.jsonl", b"[1]\n", "is no JSON object"),
        ("v.jsonl", b"{}\n", "lacks prompt, a, b, choice, rater, first"),
        ("v.txt", b"", "must be a .db, .jsonl or .csv file"),
        ("v.db", b"SQL", "no vote store"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read_votes(file)
    assert file.read_bytes() == content


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    for name in ("votes.db", "votes.csv"):
        with pytest.raises(InputError, match="do not exist"):
            read_votes(tmp_path / name)
        with pytest.raises(InputError, match="do not exist"):
            read_ratings(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_where_votes_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must end in"):
        write_votes([], tmp_path / "votes.txt")
    with pytest.raises(InputError, match="folder that exists"):
        write_ratings([], tmp_path / "nowhere" / "ratings.csv")


def test_pairs_come_back_and_move_with_their_folder(tmp_path: Path, pair: Pair) -> None:
    other = replace(pair, id="mine", prompt="ünusual", system_a="", system_b="")
    write_pairs([pair, other], tmp_path)
    assert read_pairs(tmp_path) == [pair, other]
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert [each.a for each in read_pairs(moved)] == [moved / "one" / "x.wav"] * 2
    assert read_pairs(moved)[0].id == pair.id
    moved.rename(tmp_path)


def test_pairs_without_an_id_get_one_that_depends_on_what_is_heard(
    tmp_path: Path, pair: Pair
) -> None:
    row = {"prompt": "a waltz", "a": "one/x.wav", "b": "two/x.wav"}
    lines(tmp_path / "pairs.jsonl", row)
    assert read_pairs(tmp_path)[0].id == pair.id
    put(tmp_path / "one" / "x.wav", 0.3)
    assert read_pairs(tmp_path)[0].id != pair.id


def test_two_folders_of_generate_are_paired_by_name(
    tmp_path: Path, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        lines(tmp_path / folder / "manifest.jsonl", {"file": "x.wav", "prompt": "a waltz"})
    put(tmp_path / "one" / "alone.wav")
    assert read_pairs(tmp_path) == [pair]
    assert "1 sounds" in capsys.readouterr().err


def test_folders_that_are_no_pairs(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_pairs(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no manifest\.jsonl that gives the prompts"):
        read_pairs(tmp_path)
    lines(tmp_path / "one" / "manifest.jsonl", {"file": "x.wav", "prompt": "a waltz"})
    lines(tmp_path / "two" / "manifest.jsonl", {"file": "x.wav", "prompt": "a polka"})
    with pytest.raises(InputError, match="both must say the same"):
        read_pairs(tmp_path)
    put(tmp_path / "three" / "x.wav")
    with pytest.raises(InputError, match="exactly two folders"):
        read_pairs(tmp_path)
    lines(tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match="has no pairs"):
        read_pairs(tmp_path)
    row = {"prompt": "a waltz", "a": "one/x.wav", "b": "two/gone.wav"}
    lines(tmp_path / "pairs.jsonl", row)
    with pytest.raises(InputError, match=r"line 1: sound file .*gone.wav does not exist"):
        read_pairs(tmp_path)
    row["b"] = "two/x.wav"
    lines(tmp_path / "pairs.jsonl", row, row)
    with pytest.raises(InputError, match=r"line 2: pair .* is there twice"):
        read_pairs(tmp_path)


def test_names_in_two_folders_that_do_not_meet(tmp_path: Path) -> None:
    for folder, name in (("one", "x.wav"), ("two", "y.wav")):
        put(tmp_path / folder / name)
        lines(tmp_path / folder / "manifest.jsonl", {"file": name, "prompt": "a waltz"})
    with pytest.raises(InputError, match="no file name in common"):
        read_pairs(tmp_path)


def test_votes_become_comparisons_without_ties_and_skips(pair: Pair) -> None:
    given = [Vote(pair, choice, "Ana", "b") for choice in ("a", "b", "tie", "skip")]  # type: ignore[arg-type]
    assert comparisons(given) == [
        Comparison("a waltz", pair.a, pair.b, "Ana"),
        Comparison("a waltz", pair.b, pair.a, "Ana"),
    ]


def test_ratings_far_enough_apart_become_comparisons(tmp_path: Path) -> None:
    low, middle, high = (put(tmp_path / f"{i}.wav") for i in range(3))

    def rating(clip: Path, value: float, rater: str = "Ana", prompt: str = "p") -> Rating:
        return Rating(clip, prompt, "", rater, value)

    given = [rating(high, 20), rating(low, 40), rating(middle, 49.9), rating(high, 50)]
    given += [rating(low, 0, "Ben"), rating(low, 0, prompt="q")]
    assert comparisons([], given) == [Comparison("p", high, low, "Ana")]


def test_nothing_to_learn_from_and_audio_that_is_gone(pair: Pair) -> None:
    with pytest.raises(InputError, match="leave no comparison"):
        comparisons([])
    tie = Vote(pair, "tie", "Ana", "a")
    with pytest.raises(InputError, match="1 votes and 1 ratings leave no comparison"):
        comparisons([tie], [Rating(pair.a, "p", "", "Ana", 90)])
    pair.b.unlink()
    with pytest.raises(InputError, match=r"1 of 2 sound files of the votes are gone, first .*two"):
        comparisons([Vote(pair, "a", "Ana", "a")])
