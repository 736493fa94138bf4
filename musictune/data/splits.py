"""Parts of labelled clips: to learn from, to choose the epoch by, to measure on.

What was published with the data is kept. Else recordings (or performers) stay whole and classes
stay in proportion, by the iterative stratification of Sechidis et al. (ECML PKDD 2011), applied to
groups. Ours is that each part first gets a group of each class, the training part before all
others, as long as there are any. Everything is a pure function of the clips and the seed, whatever
their order and wherever they lie.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from musictune.console import note
from musictune.data.labelled import Example, LabelledClips, Split
from musictune.errors import InputError

_OF_TWO_FOLDS = 0.2  # of what is left for training when there is no third fold to validate on


def split(clips: LabelledClips, validation: float, test: float, seed: int) -> Split:
    """One division into training, validation and test.

    A published part is taken as it is, whatever its share; with published folds the first one is
    the test and the second one the validation. Only what was not published is drawn.

    Args:
        clips: all of them.
        validation, test: shares to hold out; 0 for none but a published one.
        seed: of what is drawn.

    Raises:
        InputError: shares that leave nothing, or a label that is held out but not learned.
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise InputError(f"{name} share {share} must be at least 0 and below 1")
    if validation + test >= 1:
        raise InputError(
            f"validation {validation:g} and test {test:g} leave nothing to learn from; their sum "
            f"must be below 1"
        )
    name, given = _as_published(clips, validation, test)
    rest, held = given["train"], {"validation": given["validation"], "test": given["test"]}
    wanted = {"test": test, "validation": validation}
    missing = [part for part, share in wanted.items() if share and not held[part]]
    if missing:
        shares = [wanted[part] for part in missing]
        rest, *drawn = _divide(rest, [1 - sum(shares), *shares], seed)
        held |= dict(zip(missing, drawn, strict=True))
    parts = Split(_ordered(rest), _ordered(held["validation"]), _ordered(held["test"]), name)
    _check_learned(parts)
    return parts


def k_folds(clips: LabelledClips, folds: int, seed: int) -> list[Split]:
    """As many divisions, in each of which another fold is the test and the next one validation.

    Published folds are taken if there are as many. Theirs is only the test: UrbanSound8K's authors
    name no fold for validation, and to take the next one is ours. With two folds a fifth of the
    other one is drawn for it.

    Args:
        clips: all of them; a published training and test part are put together.
        folds: 2 or more.
        seed: of what is drawn.

    Raises:
        InputError: fewer clips than folds, in all or of a class, or a label that is not learned.
    """
    if folds < 2:
        raise InputError(f"{folds} folds cannot be made; choose 2 or more")
    if len(clips.examples) < folds:
        raise InputError(f"{len(clips.examples)} clips are fewer than {folds} folds; take fewer")
    counts = Counter(label for example in clips.examples for label in example.labels)
    rare = min(sorted(counts), key=lambda label: counts[label])
    if counts[rare] < folds:
        raise InputError(
            f"class {rare!r} has {counts[rare]} clips, fewer than {folds} folds; take fewer folds, "
            f"add clips or remove the class"
        )
    published = _folds(clips.examples)
    if published and len(published) != folds:
        note(f"{folds} folds of our own; {len(published)} were published")
    own = len(published) != folds
    parts = _divide(clips.examples, [1 / folds] * folds, seed) if own else published
    found = []
    for number in range(folds):
        rest: Sequence[Example] = [
            example for i in range(2, folds) for example in parts[(number + i) % folds]
        ]
        validation = parts[(number + 1) % folds]
        if folds == 2:
            rest, validation = _divide(validation, [1 - _OF_TWO_FOLDS, _OF_TWO_FOLDS], seed)
        name = f"fold {number + 1} of {folds}"
        divided = Split(_ordered(rest), _ordered(validation), _ordered(parts[number]), name)
        _check_learned(divided)
        found.append(divided)
    return found


def few_shot(examples: Sequence[Example], shots: int, seed: int) -> tuple[Example, ...]:
    """``shots`` examples of each class, drawn so that a larger draw holds every smaller one.

    Where clips have several labels, a class can come to more through the draws for others.

    Raises:
        InputError: ``shots`` below 1, or a class with fewer examples.
    """
    if shots < 1:
        raise InputError(f"{shots} shots cannot be drawn; choose 1 or more")
    ordered = _ordered(examples)
    chosen: set[int] = set()
    for label in sorted({label for example in ordered for label in example.labels}):
        having = [index for index, example in enumerate(ordered) if label in example.labels]
        if len(having) < shots:
            raise InputError(
                f"class {label!r} has {len(having)} training clips, fewer than {shots} shots; take "
                f"fewer shots or add clips"
            )
        random = np.random.default_rng([seed, zlib.crc32(label.encode())])
        chosen |= {having[index] for index in random.permutation(len(having))[:shots]}
    return tuple(ordered[index] for index in sorted(chosen))


def _as_published(
    clips: LabelledClips, validation: float, test: float
) -> tuple[str, dict[str, Sequence[Example]]]:
    """The published parts, and what to call them; all clips for training if there are none."""
    given: dict[str, Sequence[Example]] = {"train": clips.examples, "validation": (), "test": ()}
    if any(example.split for example in clips.examples):
        given = {part: [e for e in clips.examples if e.split == part] for part in given}
        return "published", given
    folds = _folds(clips.examples)
    if len(folds) < 3 or not (validation or test):
        return "drawn", given
    given["test"] = folds.pop(0) if test else ()
    given["validation"] = folds.pop(0) if validation else ()
    given["train"] = [example for fold in folds for example in fold]
    return "published folds", given


def _folds(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """The clips of each published fold, by its number; none if there are none."""
    folds: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        if example.fold is not None:
            folds[example.fold].append(example)
    return [folds[number] for number in sorted(folds)]


def _ordered(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(sorted(examples, key=lambda e: (str(e.path), e.start, e.seconds or 0.0)))


def _divide(
    examples: Sequence[Example], shares: Sequence[float], seed: int
) -> list[Sequence[Example]]:
    """Groups in parts of about these shares of every class.

    The rarest class comes first; its groups, the largest first, go to a part that has none of it
    yet, in the parts' order, then to the part that lacks most of it.
    """
    groups = _shuffled_groups(_ordered(examples), seed)
    counts = [Counter(label for e in group for label in e.labels) for group in groups]
    left: Counter[str] = sum(counts, Counter())
    lacks = [{label: share * left[label] for label in left} for share in shares]
    room = [share * len(examples) for share in shares]
    has: list[set[str]] = [set() for _ in shares]
    parts: list[list[Example]] = [[] for _ in shares]
    waiting = dict.fromkeys(range(len(groups)))

    def give(index: int, part: int) -> None:
        del waiting[index]
        parts[part].extend(groups[index])
        room[part] -= len(groups[index])
        has[part] |= set(counts[index])
        for label, number in counts[index].items():
            left[label] -= number
            lacks[part][label] -= number

    by_label: dict[str, list[int]] = defaultdict(list)
    for index, own in enumerate(counts):
        for label in own:
            by_label[label].append(index)
    while any(left.values()):
        rarest = min((label for label in sorted(left) if left[label]), key=lambda x: left[x])
        for index in by_label[rarest]:
            if index not in waiting:
                continue
            without = (part for part in range(len(parts)) if rarest not in has[part])
            most = max(range(len(parts)), key=lambda p: (lacks[p][rarest], room[p], -p))
            give(index, next(without, most))
    for index in list(waiting):  # clips of which no label is true
        give(index, max(range(len(parts)), key=lambda p: (room[p], -p)))
    return list(parts)


def _shuffled_groups(examples: Sequence[Example], seed: int) -> list[list[Example]]:
    """Clips of one recording together, the largest groups first, else in random order."""
    groups: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        key = ("group", example.group) if example.group else ("file", str(example.path))
        groups[key].append(example)
    found = list(groups.values())
    order = np.random.default_rng(seed).permutation(len(found))
    return sorted((found[index] for index in order), key=lambda group: -len(group))


def _check_learned(parts: Split) -> None:
    if not parts.train:
        raise InputError("no clips are left to learn from; hold out less")
    learned = {label for example in parts.train for label in example.labels}
    for name in ("validation", "test"):
        held: Sequence[Example] = getattr(parts, name)
        unseen = sorted({label for example in held for label in example.labels} - learned)
        if unseen:
            raise InputError(
                f"class {unseen[0]!r} is in the {name} clips but not in the training clips "
                f"({parts.name}); add training clips from other recordings, or remove the class"
            )
