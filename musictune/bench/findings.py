"""What the finished cells of the concept benchmark say, in words and tables that follow from them.

No sentence here knows a result: each is chosen by the figures that stand in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from musictune.bench.contrast import (
    Contrast,
    Where,
    difference,
    friedman_p,
    holm,
    mean_of,
    probability,
    spearman,
)
from musictune.bench.finished import Entry, Finished
from musictune.bench.sweep import LOSS, main_methods
from musictune.bench.table import COLUMNS

FORGETTING = "loss_change"
AUDIO = "audio_gain"
TEXT = "text_gain"

_NEAR = 0.15  # of the size within which two methods are called equally large


@dataclass(frozen=True)
class Compared:
    """A method of the main table.

    Attributes:
        entry: its cells.
        means: over concepts, by column of the table.
        control: the random choice nearest in size; None for the controls and where there is none.
        over_random: held-out loss minus that of the control, on the same concepts and seeds.
        forgot_over_random: the same of the loss of general clips.
        p: of that, made good for the number of equally large methods; NaN where it is not one.
        rank: mean place by held-out loss among methods that have every concept, 1 for the lowest.
    """

    entry: Entry
    means: Mapping[str, Contrast]
    control: Entry | None
    over_random: Contrast | None
    forgot_over_random: Contrast | None
    p: float
    rank: Contrast | None

    @property
    def matched(self) -> bool:
        """Whether it is as large as its control."""
        return self.control is not None and (
            abs(self.entry.trained / self.control.trained - 1) <= _NEAR
        )


def compare_methods(finished: Finished) -> list[Compared]:
    """The methods of the main table, the one with the lowest held-out loss first."""
    methods = main_methods(finished)
    ranks = _ranks(finished, methods)
    drafts = []
    for entry in methods:
        means = {}
        for column in COLUMNS:
            if (mean := mean_of(finished.values(entry, column))) is not None:
                means[column] = mean
        control = None if entry in finished.random else _nearest(finished.random, entry)
        over = forgot = None
        if control is not None:
            over, forgot = (
                difference(finished.values(entry, column), finished.values(control, column))
                for column in (LOSS, FORGETTING)
            )
        rank = mean_of(ranks[entry.label]) if entry.label in ranks else None
        drafts.append(Compared(entry, means, control, over, forgot, math.nan, rank))
    corrected = _corrected(drafts)
    found = [replace(d, p=corrected.get(i, math.nan)) for i, d in enumerate(drafts)]
    return sorted(found, key=lambda c: c.means[LOSS].value if LOSS in c.means else math.inf)


def _corrected(drafts: Sequence[Compared]) -> dict[int, float]:
    places = [
        i
        for i, draft in enumerate(drafts)
        if draft.matched and draft.over_random and not math.isnan(draft.over_random.p)
    ]
    ps = [over.p for i in places if (over := drafts[i].over_random)]
    return dict(zip(places, holm(ps), strict=True))


def _nearest(controls: Sequence[Entry], entry: Entry) -> Entry | None:
    """The control nearest in size, of the same length of training."""
    alike = [each for each in controls if each.steps == entry.steps] or list(controls)
    return min(alike, key=lambda c: abs(math.log(c.trained / entry.trained)), default=None)


def _ranks(finished: Finished, methods: Sequence[Entry]) -> dict[str, dict[Where, float]]:
    """Places by held-out loss, of the methods and cells that make a full table."""
    from scipy.stats import rankdata

    table, names, places = _full(finished, methods)
    if table.shape[1] < 2:
        return {}
    ranks = rankdata(table, axis=1)
    return {
        name: {where: float(ranks[row, column]) for row, where in enumerate(places)}
        for column, name in enumerate(names)
    }


def _full(
    finished: Finished, methods: Sequence[Entry]
) -> tuple[np.ndarray, list[str], list[Where]]:
    """Held-out loss ``(cells, methods)`` without gaps, of methods that have most of the cells."""
    values = {entry.label: finished.values(entry, LOSS) for entry in methods}
    most = max((len(each) for each in values.values()), default=0)
    names = [name for name, each in values.items() if each and 2 * len(each) > most]
    places = [w for w in finished.bases if all(w in values[name] for name in names)]
    table = np.array([[values[name][where] for name in names] for where in places])
    return table.reshape(len(places), len(names)), names, places


def main_choices(found: Sequence[Compared]) -> tuple[Compared | None, list[Compared]]:
    """The control that was made most often, and the methods that are as large as it."""
    controls = [c for c in found if c.entry.rule == "random" and c.control is None]
    control = max(controls, key=lambda c: len(c.entry.cells), default=None)
    if control is None:
        return None, []
    return control, [c for c in found if c.matched and c.over_random and c.control is control.entry]


def said_of_choices(found: Sequence[Compared]) -> list[str]:
    """Which rule of choosing weights wins, and whether it beats chance."""
    control, rules = main_choices(found)
    rules = [c for c in rules if c.entry.rule]
    if not rules or control is None:
        return [
            "There is no rule of choosing weights beside a random choice of equal size here, so "
            "nothing can be said of choosing."
        ]
    best = rules[0]
    over = best.over_random
    assert over is not None and best.control is not None
    own = control.means[LOSS]
    said = [
        f"Of {_many(len(rules), 'rule')} of choosing about {best.entry.trained:,.0f} weights, "
        f"`{best.entry.label}` ends with the lowest loss on clips it was never trained on: "
        f"{best.means[LOSS].shown()} nats from the base. Against a random choice of equal size "
        f"that is {over.shown()} nats ({probability(over.p)}, "
        f"{_many(over.concepts, 'concept')}). {_judged(best)}"
    ]
    for verdict, one, several in (
        ("lower", "beats", "beat"),
        ("open", "cannot be told from", "cannot be told from"),
        ("higher", "is worse than", "are worse than"),
    ):
        names = [c.entry.label for c in rules if c.over_random and c.over_random.verdict == verdict]
        if names:
            words = one if len(names) == 1 else several
            said.append(f"By their 95 % intervals {_listed(names)} {words} the random choice.")
        elif verdict == "lower":
            said.append("By their 95 % intervals no rule beats the random choice.")
    if own.value < 0:
        part = over.value / own.value
        said.append(
            f"The random choice itself takes {own.shown()} nats off the base, so the best rule "
            f"adds {100 * part:+.1f} % to what tuning is worth."
        )
    matched = [c for c in main_choices(found)[1] if not math.isnan(c.p)]
    if matched:
        passed = [c for c in matched if c.p < 0.05]
        least = 2.0 ** (1 - min(c.over_random.concepts for c in matched if c.over_random))
        said.append(
            f"{_many(len(matched), 'method')} of that size, rivals among them, "
            f"{'is' if len(matched) == 1 else 'are'} held against it, of which luck alone would "
            f"show about {0.05 * len(matched):.1f} outside a 95 % interval. After Holm's "
            f"correction {_many(len(passed), 'difference')} {'is' if len(passed) == 1 else 'are'} "
            f"left at p < 0.05"
            + (f" ({_listed([c.entry.label for c in passed])})" if passed else "")
            + f"; with that many concepts no single p can be below {least:.3g}."
        )
    return said


def _judged(best: Compared) -> str:
    assert best.over_random is not None
    if math.isnan(best.over_random.low):
        return "From one concept no interval can be had: this says nothing of other sounds."
    return {
        "lower": "So it beats random at equal size beyond its interval.",
        "open": "The interval holds zero: by this measure it does not beat random at equal size.",
        "higher": "So even the best rule is worse than random at equal size.",
    }[best.over_random.verdict]


def said_of_methods(found: Sequence[Compared]) -> list[str]:
    """Which method wins, at equal size and at any."""
    known = [c for c in found if LOSS in c.means]
    # A mean over fewer concepts is of other sounds.
    known = [c for c in known if c.rank] or known
    if not known:
        return []
    first = known[0]
    said = [
        f"Of all {_many(len(known), 'method')}, `{first.entry.label}` has the lowest held-out "
        f"loss: {first.means[LOSS].shown()} nats from the base, with "
        f"{first.entry.trained:,.0f} trained weights."
    ]
    control, matched = main_choices(known)
    equal = [c for c in known if c is control or c in matched]
    rivals = [c for c in equal if not c.entry.rule]
    if rivals and len(rivals) < len(equal):
        own = next(c for c in equal if c.entry.rule)
        lead, other = sorted((own, rivals[0]), key=lambda c: c.means[LOSS].value)
        said.append(
            f"At equal size (within {100 * _NEAR:g} % of the random control) the best is "
            f"`{lead.entry.label}`, before `{other.entry.label}`, the best of the "
            f"{'rivals' if lead is own else 'choices of weights'}."
        )
    told = [c for c in known if AUDIO in c.means]
    relation = spearman([-c.means[LOSS].value for c in told], [c.means[AUDIO].value for c in told])
    if relation:
        best = max(told, key=lambda c: c.means[AUDIO].value)
        said.append(
            f"By audio alignment the first is `{best.entry.label}` "
            f"({best.means[AUDIO].shown('+.3f')} over the base); the two orders of methods have a "
            f"rank correlation of {relation.shown}."
        )
    return said


def said_of_ranks(finished: Finished, found: Sequence[Compared]) -> list[str]:
    """Whether the methods differ at all."""
    table, names, places = _full(finished, [c.entry for c in found])
    concepts = list(dict.fromkeys(name for name, _ in places))
    if len(names) < 3 or len(concepts) < 2:
        return []
    means = np.array(
        [
            np.mean([row for row, (name, _) in zip(table, places, strict=True) if name == c], 0)
            for c in concepts
        ]
    )
    return [
        f"Ranks are of {_many(len(names), 'method')} within each of "
        f"{_many(len(concepts), 'concept')}; that all are alike has "
        f"{probability(friedman_p(means))} (Friedman)."
    ]


def said_of_losses(found: Sequence[Compared]) -> list[str]:
    """What was forgotten and copied."""
    said = []
    forgot = sorted(
        (c for c in found if FORGETTING in c.means), key=lambda c: c.means[FORGETTING].value
    )
    if len(forgot) > 1:
        least, most = forgot[0], forgot[-1]
        said.append(
            f"General clips, which do not name the concept, lose least with "
            f"`{least.entry.label}` ({least.means[FORGETTING].shown()} nats) and most with "
            f"`{most.entry.label}` ({most.means[FORGETTING].shown()})."
        )
        free = [c for c in found if not _beaten(c, forgot)]
        said.append(
            f"Nobody is better in both, what was learned and what was kept, than "
            f"{_listed([c.entry.label for c in free])}."
        )
    said += _forgot_beside_random(found)
    told = [c for c in found if TEXT in c.means]
    worse = [c.entry.label for c in told if c.means[TEXT].verdict == "lower"]
    if told:
        said.append(
            f"Truth to the prompt falls beyond its interval with {_listed(worse)}."
            if worse
            else "No method's truth to the prompt falls beyond its interval."
        )
    return said


def _forgot_beside_random(found: Sequence[Compared]) -> list[str]:
    control, equal = main_choices(found)
    if control is None:
        return []
    judged = [(c.entry.label, c.forgot_over_random.verdict) for c in equal if c.forgot_over_random]
    said = []
    for verdict, word in (("higher", "more"), ("lower", "less")):
        names = [name for name, each in judged if each == verdict]
        if names:
            said.append(
                f"By their 95 % intervals {_listed(names)} forget{'s' * (len(names) == 1)} {word} "
                "than the random choice of equal size."
            )
    return said or ["By their intervals no method of equal size forgets more or less than chance."]


def _beaten(one: Compared, others: Sequence[Compared]) -> bool:
    if FORGETTING not in one.means or LOSS not in one.means:
        return True
    return any(
        other.means[LOSS].value < one.means[LOSS].value
        and other.means[FORGETTING].value < one.means[FORGETTING].value
        for other in others
        if LOSS in other.means
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    marked = [f"`{name}`" for name in names]
    if len(marked) < 2:
        return "".join(marked)
    return f"{', '.join(marked[:-1])} and {marked[-1]}"
