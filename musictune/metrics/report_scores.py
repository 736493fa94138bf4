"""The scores as the report tells them: in which order, under which heading, in which words."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from musictune.metrics.alignment import ABOUT_ALIGNMENT
from musictune.metrics.base import About, Score
from musictune.metrics.comparison import ABOUT_FORGETTING
from musictune.metrics.plots import Strip, forest, strip
from musictune.metrics.suite import Evaluation

AGAINST, DIFFERENCE = "against/", "difference/"
"""What the names of scores of the other set, and of paired differences, begin with."""

_ALIGNMENTS = ("audio_alignment", "text_alignment")
_FRECHET, _KERNEL = "frechet_distance", "kernel_distance"
_WIDTH = 2 * 1.96  # standard errors that a 95 % interval spans
_ARROWS = {"higher": "↑ higher is better", "lower": "↓ lower is better"}
_SETS, _CLIPS = "sets", "clips"
_HEADINGS = {
    _SETS: (
        "Sets as wholes",
        "How near the reference and how varied the music is, all clips taken together.",
    ),
    _CLIPS: ("Signal health", "Faults of the recordings themselves: means over clips."),
    "music": ("Musical agreement", "Whether tempo, key and harmony are those asked for or played."),
    "forgetting": ("Forgetting", "What the model lost where its concept was not asked for."),
    "copying": ("Copying", "How near the music comes to the clips the model was trained on."),
    "steerability": (
        "Steerability",
        "Whether changing the prompt changes the sound; chance is 0.5.",
    ),
    "compat": ("As other tools count", "Their numbers, quirks included, to compare with papers."),
}
_FAMILIES = {"followed": "music", "agreement": "music", "steered": "steerability"}
_FAMILIES |= dict.fromkeys(("fadtk", "kadtk", "audiocraft"), "compat")
_CLAIMS = {
    "audio_alignment": ("sounds {} the reference than {}", "closer to", "less like"),
    "text_alignment": ("follows its prompts {} than {}", "better", "less well"),
}


@dataclass(frozen=True)
class Line:
    """A score of one set.

    Attributes:
        label: the set.
        kind: ``made`` or ``against``.
        text: figures, or why there are none.
        score: None where there is none.
    """

    label: str
    kind: str
    text: str
    score: Score | None


@dataclass(frozen=True)
class Entry:
    """A score of all sets, with what people should know of it.

    Attributes:
        name: as in ``metrics.json``.
        title, meaning: in words.
        better: which way is better, as shown; empty where neither is.
        lines: one for each set.
        difference: figures of the paired difference, empty without one.
        notes: why it should be read with care.
        plot: the sets over one axis.
    """

    name: str
    title: str
    meaning: str
    better: str
    lines: tuple[Line, ...]
    difference: str
    notes: tuple[str, ...]
    plot: Strip | None


@dataclass
class Section:
    """Scores that belong together; ``missing`` says for each reason which could not be computed."""

    title: str
    meaning: str
    entries: list[Entry] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """A paired difference.

    Attributes:
        title: of the score.
        verdict: ``better``, ``worse`` or ``unclear``, by its interval; what colours it.
        text: figures.
        plot: None where it cannot be drawn.
    """

    title: str
    verdict: str
    text: str
    plot: Strip | None


def about(evaluation: Evaluation, name: str) -> About:
    """What a score is; of one nobody described, its name and direction."""
    known = ABOUT_ALIGNMENT | ABOUT_FORGETTING | evaluation.about
    if name in known:
        return known[name]
    score = evaluation.scores.get(name) or evaluation.scores.get(AGAINST + name)
    words = name.replace("/", ": ").replace("_", " ")
    return About(words[:1].upper() + words[1:], "", score.better if score else "higher")


def score_names(evaluation: Evaluation) -> list[str]:
    """Names of all scores of a set, computed or not, each once: those described first."""
    found: dict[str, None] = dict.fromkeys([*leading(evaluation), *evaluation.about])
    for name in [*evaluation.scores, *evaluation.not_computed]:
        found[name.removeprefix(AGAINST).removeprefix(DIFFERENCE)] = None
    given = {*evaluation.scores, *evaluation.not_computed}
    return [n for n in found if given & {n, AGAINST + n, DIFFERENCE + n}]


def leading(evaluation: Evaluation) -> list[str]:
    """Names of the scores to be read first, in that order.

    The kernel distance comes before a Fréchet distance that should be read with care, unless it
    should be so itself.
    """
    distances = [_FRECHET, _KERNEL]
    frechet, kernel = evaluation.scores.get(_FRECHET), evaluation.scores.get(_KERNEL)
    if kernel and "unreliable" not in kernel.note and (frechet is None or frechet.note):
        distances.reverse()
    given = {*evaluation.scores, *evaluation.not_computed}
    return [n for n in (*_ALIGNMENTS, *distances) if given & {n, AGAINST + n}]


def entry(evaluation: Evaluation, name: str, made: str, against: str) -> Entry:
    """A score of both sets; ``against`` is empty where there is one set."""
    what = about(evaluation, name)
    keys = [(against, "against", AGAINST + name)] if against else []
    lines = tuple(_line(evaluation, *key) for key in [*keys, (made, "made", name)])
    scores = [line.score for line in lines if line.score]
    lines = tuple(line for line in lines if line.text)
    return Entry(
        name=name,
        title=what.title,
        meaning=what.meaning,
        better=_ARROWS.get(what.better, ""),
        lines=lines,
        difference=_difference(evaluation, name),
        notes=tuple(dict.fromkeys(score.note for score in scores if score.note)),
        plot=strip([(line.kind, line.score) for line in lines if line.score]),
    )


def sections(evaluation: Evaluation, made: str, against: str) -> list[Section]:
    """All scores but the leading ones, grouped; those that nobody knows, too."""
    grouped: dict[str, list[str]] = defaultdict(list)
    first = leading(evaluation)
    for name in score_names(evaluation):
        if name not in first:
            grouped[_group(evaluation, name)].append(name)
    known = [group for group in _HEADINGS if group in grouped]
    found = []
    for group in [*known, *(group for group in grouped if group not in known)]:
        section = Section(*_HEADINGS.get(group, (group[:1].upper() + group[1:], "")))
        reasons: dict[str, list[str]] = defaultdict(list)
        for name in grouped[group]:
            if {name, AGAINST + name} & set(evaluation.scores):
                section.entries.append(entry(evaluation, name, made, against))
            elif name in evaluation.not_computed:
                reasons[evaluation.not_computed[name]].append(about(evaluation, name).title)
        section.missing = [(", ".join(titles), why) for why, titles in reasons.items()]
        if section.entries or section.missing:
            found.append(section)
    return found


def changes(evaluation: Evaluation) -> list[Change]:
    """The paired differences over one axis: right of its middle is better.

    Each is divided by the standard deviation of its pairs' differences, so that scores of other
    units stand beside each other, and turned round where lower is better.
    """
    names = [
        name
        for name in score_names(evaluation)
        if DIFFERENCE + name in evaluation.scores and about(evaluation, name).better in _ARROWS
    ]
    verdicts = [_verdict(evaluation, name) for name in names]
    spans = [_span(evaluation, n, verdict) for n, verdict in zip(names, verdicts, strict=True)]
    return [
        Change(
            title=about(evaluation, name).title,
            verdict=verdict,
            text=_difference(evaluation, name),
            plot=plot,
        )
        for name, verdict, plot in zip(names, verdicts, forest(spans), strict=True)
    ]


def without_change(evaluation: Evaluation) -> list[str]:
    """Why paired differences are missing, each reason once."""
    reasons = (w for n, w in evaluation.not_computed.items() if n.startswith(DIFFERENCE))
    return list(dict.fromkeys(reasons))


def headline(evaluation: Evaluation, made: str, against: str) -> list[tuple[str, str]]:
    """What the paired differences say: a sentence and its figures; nothing without pairs."""
    found = []
    for name, (frame, better, worse) in _CLAIMS.items():
        score = evaluation.scores.get(DIFFERENCE + name)
        if not score:
            continue
        claim = f"{made} {frame.format(better if score.value > 0 else worse, against)}."
        if not _told_apart(evaluation, name):
            claim = f"Whether {made} {frame.format(better, against)} is not clear."
        pairs = "pair" if score.n == 1 else "pairs"
        found.append(
            (
                claim,
                f"{about(evaluation, name).title} {number(score.value, '+')} {interval(score)} "
                f"over {score.n} {pairs} of one prompt and seed"
                f"{f' ({score.note})' if score.note else ''}"
                f"{_chance(evaluation, DIFFERENCE + name)}",
            )
        )
    return found


def figures(evaluation: Evaluation, name: str, sign: str = "") -> str:
    """Value and interval of a score; empty without one."""
    score = evaluation.scores.get(name)
    return f"{number(score.value, sign)} {interval(score)}".strip() if score else ""


def number(value: float, sign: str = "") -> str:
    """A value as people read it, with ``sign`` "+" also before positive ones."""
    if math.isnan(value):
        return "not known"
    size = abs(value)
    if 0 < size < 0.0005:
        text = f"{value:{sign}.1e}"
    else:
        text = f"{value:{sign}.{max(0, 3 - int(math.log10(max(size, 1))))}f}"
    return text.replace("-", "−")


def interval(score: Score) -> str:
    """The 95 % interval in brackets, empty where there is none."""
    if math.isnan(score.low) or math.isnan(score.high):
        return ""
    return f"({number(score.low)} to {number(score.high)})"


def _difference(evaluation: Evaluation, name: str) -> str:
    name = DIFFERENCE + name
    return figures(evaluation, name, "+") + _chance(evaluation, name)


def _chance(evaluation: Evaluation, name: str) -> str:
    p = evaluation.p.get(name)
    return "" if p is None or math.isnan(p) else f", p\u00a0=\u00a0{p:.2g}"


def _line(evaluation: Evaluation, label: str, kind: str, name: str) -> Line:
    score = evaluation.scores.get(name)
    if score:
        return Line(label, kind, figures(evaluation, name) + _chance(evaluation, name), score)
    reason = evaluation.not_computed.get(name, "")
    return Line(label, kind, f"not computed: {reason}" if reason else "", None)


def _group(evaluation: Evaluation, name: str) -> str:
    prefix, slash, _ = name.partition("/")
    if slash:
        return prefix
    for word in (name.split("_")[0], name.split("_")[-1]):
        if word in _FAMILIES:
            return _FAMILIES[word]
    return _CLIPS if name in evaluation.made or name in evaluation.against else _SETS


def _verdict(evaluation: Evaluation, name: str) -> str:
    score = evaluation.scores[DIFFERENCE + name]
    if not _told_apart(evaluation, name):
        return "unclear"
    return "better" if (score.value > 0) == (score.better == "higher") else "worse"


def _told_apart(evaluation: Evaluation, name: str) -> bool:
    """Whether both the interval and the permutation say that a difference is more than chance."""
    score = evaluation.scores[DIFFERENCE + name]
    p = evaluation.p.get(DIFFERENCE + name, 0.0)
    return (score.low > 0 or score.high < 0) and not p > 0.05


def _span(
    evaluation: Evaluation, name: str, verdict: str
) -> tuple[str, float, float, float] | None:
    score = evaluation.scores[DIFFERENCE + name]
    spread = _spread(evaluation, name, score)
    if score.value == 0 and not spread:
        return verdict, 0.0, 0.0, 0.0
    if not spread:
        return None
    value, low, high = (end / spread for end in (score.value, score.low, score.high))
    if score.better == "lower":
        value, low, high = -value, -high, -low
    return verdict, value, low, high


def _spread(evaluation: Evaluation, name: str, score: Score) -> float:
    """Standard deviation of the pairs' differences; 0 where none is known."""
    mine, theirs = evaluation.made.get(name), evaluation.against.get(name)
    if mine is None or theirs is None:
        # Not a value of single clips: what its interval tells of it.
        width = score.high - score.low
        return 0.0 if math.isnan(width) else width * math.sqrt(score.n) / _WIDTH
    differences = np.array([mine[i] - theirs[j] for i, j in evaluation.pairs], np.float64)
    known = differences[~np.isnan(differences)]
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0
