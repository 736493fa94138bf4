"""Preferences between clips: pairs to compare, votes and ratings, and what can be learnt of them.

A vote is one rater's answer about two clips of one prompt, a rating one about a clip by itself;
either way comparisons come out, a chosen clip and a rejected one.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from musictune.console import note
from musictune.data.vote_files import (
    json_line,
    path_field,
    read_all,
    read_lines,
    read_ratings,
    read_votes,
    relative,
    text_field,
    write_ratings,
    write_votes,
)
from musictune.data.vote_remarks import position_bias, remarks
from musictune.data.vote_types import (
    CHOICES,
    Choice,
    Comparison,
    Pair,
    Rating,
    Vote,
    audio_digest,
    pair_id,
    plain_path,
    rater_name,
)
from musictune.errors import InputError
from musictune.files import publish_file

__all__ = [
    "CHOICES",
    "Choice",
    "Comparison",
    "Pair",
    "Rating",
    "Vote",
    "comparisons",
    "pair_id",
    "position_bias",
    "rater_name",
    "read_all",
    "read_pairs",
    "read_ratings",
    "read_votes",
    "remarks",
    "write_pairs",
    "write_ratings",
    "write_votes",
]

PAIRS = "pairs.jsonl"
_MANIFEST = "manifest.jsonl"
_SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
_APART = 10.0  # of 100: ratings closer than this tell no order


def read_pairs(folder: Path) -> list[Pair]:
    """Pairs of ``pairs.jsonl``, or of two subfolders by equal file names.

    A line of ``pairs.jsonl`` has prompt, a and b, and may have id, system_a and system_b; paths are
    relative to the folder. Without it the prompts are those of the ``manifest.jsonl`` that
    ``generate`` writes into both subfolders, whose names are those of the systems.

    Raises:
        InputError: there are none, a line is bad, a sound is gone, or prompts do not agree.
    """
    if not folder.is_dir():
        raise InputError(f"pairs folder {folder} does not exist; name one with {PAIRS} in it")
    file = folder / PAIRS
    pairs = _listed(file) if file.exists() else _by_name(folder)
    if not pairs:
        raise InputError(f"{folder} has no pairs; put lines into {PAIRS}")
    return pairs


def write_pairs(pairs: Iterable[Pair], folder: Path) -> None:
    """Write ``pairs.jsonl`` into a folder, with paths relative to it.

    Raises:
        InputError: it cannot be written.
    """
    file = folder / PAIRS
    if not folder.is_dir():
        raise InputError(f"pairs folder {folder} does not exist; make it first")
    lines = []
    for pair in pairs:
        paths = {"a": relative(pair.a, file), "b": relative(pair.b, file)}
        systems = {"system_a": pair.system_a, "system_b": pair.system_b}
        lines.append(json_line({"id": pair.id, "prompt": pair.prompt, **paths, **systems}))
    with publish_file(file) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")


def comparisons(votes: Sequence[Vote], ratings: Sequence[Rating] = ()) -> list[Comparison]:
    """Which clip was preferred to which.

    Ties and skips are dropped. Two ratings of one prompt by one rater that lie at least 10 of 100
    apart make one; of several ratings of a clip by one rater the last counts.

    Raises:
        InputError: nothing is left, or sound files are gone.
    """
    found = []
    for vote in votes:
        if vote.choice in ("a", "b"):
            chosen, rejected = vote.pair.a, vote.pair.b
            if vote.choice == "b":
                chosen, rejected = rejected, chosen
            found.append(Comparison(vote.pair.prompt, chosen, rejected, vote.rater))
    last: dict[tuple[str, str], dict[Path, float]] = defaultdict(dict)
    for rating in ratings:
        last[rating.prompt, rating.rater][rating.clip] = rating.value
    for (prompt, rater), values in last.items():
        for one, other in itertools.combinations(values, 2):
            if abs(values[one] - values[other]) >= _APART:
                best, worst = sorted((one, other), key=values.__getitem__, reverse=True)
                found.append(Comparison(prompt, best, worst, rater))
    if not found:
        raise InputError(
            f"{len(votes)} votes and {len(ratings)} ratings leave no comparison: ties, skips and "
            f"ratings less than {_APART:g} apart tell no order; collect more"
        )
    paths = dict.fromkeys(path for each in found for path in (each.chosen, each.rejected))
    if gone := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"{len(gone)} of {len(paths)} sound files of the votes are gone, first {gone[0]}; put "
            "them back, or leave their votes out of an export"
        )
    return found


def _listed(file: Path) -> list[Pair]:
    pairs: dict[str, Pair] = {}
    for line, row in read_lines(file):
        where = f"{file} line {line}"
        prompt = text_field(row, "prompt", where, empty=False)
        a, b = (path_field(row, side, file, where) for side in "ab")
        digests = [_digest(path, where) for path in (a, b)]
        name = text_field(row, "id", where) or pair_id(prompt, *digests)
        if name in pairs:
            raise InputError(f"{where}: pair {name!r} is there twice; leave one out")
        systems = (text_field(row, f"system_{side}", where) for side in "ab")
        pairs[name] = Pair(name, prompt, a, b, *systems)
    return list(pairs.values())


def _digest(path: Path, where: str) -> str:
    try:
        return audio_digest(path)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _by_name(folder: Path) -> list[Pair]:
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    systems = {path: sounds for path in inside if (sounds := _sounds(path))}
    if len(systems) != 2:
        raise InputError(
            f"{folder} has neither {PAIRS} nor exactly two folders of sounds (it has "
            f"{len(systems)}); write {PAIRS} or put two folders of `generate` into it"
        )
    (folder_a, sounds_a), (folder_b, sounds_b) = systems.items()
    prompts_a, prompts_b = _prompts(folder_a), _prompts(folder_b)
    common = [name for name in sounds_a if name in set(sounds_b)]
    if not common:
        raise InputError(
            f"{folder_a} and {folder_b} have no file name in common; make both with the same "
            "prompts and --count"
        )
    if alone := len(sounds_a) + len(sounds_b) - 2 * len(common):
        note(f"{alone} sounds in {folder} have no partner of the same name and are left out")
    pairs: dict[str, Pair] = {}
    for name in common:
        prompt = prompts_a.get(name, "")
        if not prompt or prompt != prompts_b.get(name):
            raise InputError(
                f"{name} has prompt {prompt!r} in {folder_a / _MANIFEST} and "
                f"{prompts_b.get(name, '')!r} in {folder_b / _MANIFEST}; both must say the same"
            )
        a, b = plain_path(folder_a / name), plain_path(folder_b / name)
        key = pair_id(prompt, audio_digest(a), audio_digest(b))
        pairs[key] = Pair(key, prompt, a, b, folder_a.name, folder_b.name)
    return list(pairs.values())


def _sounds(folder: Path) -> list[str]:
    files = (path for path in folder.iterdir() if path.is_file())
    return sorted(path.name for path in files if path.suffix.lower() in _SOUNDS)


def _prompts(folder: Path) -> dict[str, str]:
    file = folder / _MANIFEST
    if not file.is_file():
        raise InputError(
            f"{folder} has no {_MANIFEST} that gives the prompts; make it with `generate`, or "
            f"write {folder.parent / PAIRS}"
        )
    found = {}
    for line, row in read_lines(file):
        where = f"{file} line {line}"
        found[text_field(row, "file", where, empty=False)] = text_field(row, "prompt", where)
    return found
