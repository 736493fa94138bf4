"""Captions of composed music: a small grammar over the truth, in lower-case plain English.

Only what is true of the clip is said, and parts of it are left out at random, as people do. The
letter of a key keeps its capital, so that "in A minor" is not read as an article.
"""

from __future__ import annotations

from musictune.compose.instruments import DRUM_NAMES, HELD_OUT, INSTRUMENTS
from musictune.compose.notes import Truth
from musictune.compose.parts import Random, choose
from musictune.compose.styles import find_style

TEMPO_WORDS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (85.0, ("slow", "slow-paced", "unhurried")),
    (120.0, ("mid-tempo", "moderate", "medium-paced")),
    (150.0, ("fast", "fast-paced", "quick")),
    (float("inf"), ("very fast", "rapid", "breakneck")),
)
"""Words for a tempo with the bpm each row ends at: slow below 85, moderate up to and with 120."""

_NAMES = {item.name: item.names for table in (INSTRUMENTS, HELD_OUT) for item in table.values()}
_COUNT = 4


def tempo_words(bpm: float) -> tuple[str, ...]:
    """The words that fit a tempo, the plainest first."""
    if bpm < TEMPO_WORDS[0][0]:
        return TEMPO_WORDS[0][1]
    return next(words for limit, words in TEMPO_WORDS[1:] if bpm <= limit)


def moods_of(
    rng: Random, *, tempo: float, mode: str, loudness: float, register: float, drums: bool
) -> tuple[str, ...]:
    """Two moods that follow from how the music is made: mode, tempo, loudness and register.

    Arguments ``loudness`` and ``register`` run from 0 to 1.
    """
    minor = mode == "minor"
    energy = (tempo - 60) / 120 * 0.5 + loudness * 0.35 + 0.15 * drums
    words: list[str] = []
    if energy < 0.4 and tempo < 100:
        words += ["sad", "melancholic", "sorrowful", "lonely"] if minor else ["calm", "gentle"]
        words += ["wistful"] if minor else ["peaceful", "tender", "warm"]
        words += ["dreamy", "quiet"] if loudness < 0.4 else []
    elif energy < 0.65:
        words += (
            ["serious", "moody", "mysterious"] if minor else ["pleasant", "cheerful", "friendly"]
        )
        words += ["relaxed"] if tempo < 100 else ["lively"] if tempo > 120 else []
    else:
        words += ["energetic", "driving", "powerful"]
        words += ["dark", "intense", "dramatic"] if minor else ["happy", "joyful", "upbeat"]
    if register < 0.3:
        words += ["dark", "deep"] if minor else ["deep"]
    if register > 0.7:
        words += ["bright"] if not minor else ["delicate"] if loudness < 0.5 else []
    first = choose(rng, words)
    rest = [word for word in words if word != first]
    return (first, choose(rng, rest)) if rest else (first,)


def write_captions(truth: Truth, rng: Random) -> tuple[str, ...]:
    """Several captions of the same clip: a sentence, tags, and two more of either kind."""
    made = [_sentence(truth, rng), _tags(truth, rng)]
    while len(made) < _COUNT:
        made.append(choose(rng, (_sentence, _tags), (0.6, 0.4))(truth, rng))
    return tuple(made)


def _call(name: str, rng: Random) -> str:
    if name == "drums":
        return choose(rng, DRUM_NAMES, (5, 1, 1))
    names = _NAMES[name]
    return names[0] if rng.random() < 0.7 else choose(rng, names)


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + " and " + names[-1]


def _article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def _style_said(truth: Truth, rng: Random) -> bool:
    style = find_style(truth.style)
    if truth.texture == "band":
        return rng.random() < 0.85
    if truth.lead_family == "drums":
        return rng.random() < 0.5
    return style.named_alone and rng.random() < 0.55


def _tempo_said(truth: Truth, rng: Random) -> str:
    if rng.random() < 0.25:
        return ""
    words = tempo_words(truth.tempo)
    return words[0] if rng.random() < 0.7 else choose(rng, words)


def _mood_said(truth: Truth, rng: Random) -> str:
    if not truth.moods or rng.random() < 0.4:
        return ""
    if len(truth.moods) > 1 and rng.random() < 0.2:
        return " and ".join(truth.moods[:2])
    return choose(rng, truth.moods)


def _tail(truth: Truth, rng: Random) -> str:
    """What may follow a comma: key, metre, bpm, no drums."""
    tail = ""
    keyed = truth.key and rng.random() < 0.45
    if keyed:
        tail += f" in {truth.key}"
    if truth.metre in ("3/4", "6/8") and rng.random() < 0.3:
        tail += ", in three" if truth.metre == "3/4" else ", in six eight"
    if rng.random() < 0.45:
        tail += choose(rng, (", {} bpm", " at {} bpm")).format(round(truth.tempo))
    if not truth.has_drums and truth.texture != "solo" and rng.random() < 0.25:
        tail += choose(rng, (", no drums", ", without drums"))
    return tail


def _sentence(truth: Truth, rng: Random) -> str:
    """Such as ``a slow sad piano solo in A minor`` or ``fast rock with guitar, bass and drums``."""
    tempo, mood = _tempo_said(truth, rng), _mood_said(truth, rng)
    front = [word for word in (tempo, mood) if word]
    if len(front) == 2 and rng.random() < 0.3:
        front.reverse()
    lead = _call(truth.lead, rng)
    others = [_call(name, rng) for name in truth.instruments if name != truth.lead]
    style = choose(rng, find_style(truth.style).names, (4, 1, 1)) if _style_said(truth, rng) else ""
    if truth.texture == "solo":
        body = _solo(lead, style, rng)
    elif truth.texture == "duo":
        body = _duo(lead, others, style, rng)
    else:
        body = _band(lead, others, style, rng)
    text = " ".join([*front, body])
    if rng.random() < 0.4 and not text.startswith(("music", "drums")):
        text = _article(text) if _counts(body) else text
    return text + _tail(truth, rng)


def _counts(body: str) -> bool:
    """Whether an article fits before the noun the sentence is built on."""
    nouns = ("solo", "melody", "duet", "song", "piece", "tune", "waltz", "lullaby", "march", "jig")
    head = body.split(" with ")[0].split(" for ")[0].split(" over ")[0].split(" on ")[0]
    return head.endswith(nouns)


def _solo(lead: str, style: str, rng: Random) -> str:
    if lead in DRUM_NAMES:
        return choose(rng, (f"{lead} solo", f"solo {lead}", f"{style} {lead}".strip()))
    if style:
        return choose(rng, (f"{style} on {lead}", f"{style} for solo {lead}", f"{lead} {style}"))
    forms = (f"{lead} solo", f"solo {lead}", f"{lead} melody", f"music for {lead} alone")
    return choose(rng, forms, (4, 3, 2, 1))


def _duo(lead: str, others: list[str], style: str, rng: Random) -> str:
    other = _listed(others)
    if style:
        return choose(rng, (f"{style} with {lead} and {other}", f"{style} for {lead} and {other}"))
    forms = (
        f"{lead} melody over {other}",
        f"{lead} with {other}",
        f"{lead} and {other} duet",
        f"{lead} accompanied by {other}",
    )
    return choose(rng, forms, (4, 3, 2, 2))


def _band(lead: str, others: list[str], style: str, rng: Random) -> str:
    kept = [name for name in others if rng.random() < 0.75]
    if style:
        if not kept and rng.random() < 0.5:
            return style
        if rng.random() < 0.25:
            return f"{style} led by {lead}"
        return f"{style} with {_listed([lead, *kept])}"
    if not kept:
        return choose(rng, (f"{lead} melody with a band", f"{lead} with accompaniment"))
    return choose(rng, (f"{lead} melody over {_listed(kept)}", f"{lead} with {_listed(kept)}"))


def _tags(truth: Truth, rng: Random) -> str:
    """Such as ``techno, synth lead, drums, 128 bpm, C minor`` or ``solo cello, slow, sad``."""
    tags: list[str] = []
    lead = _call(truth.lead, rng)
    if _style_said(truth, rng):
        tags.append(truth.style)
    if truth.texture == "solo":
        tags.append(choose(rng, (f"solo {lead}", f"{lead} solo", lead), (2, 1, 1)))
    else:
        tags.append(lead)
        tags += [
            _call(name, rng)
            for name in truth.instruments
            if name != truth.lead and rng.random() < 0.7
        ]
    tags += [word for word in (_tempo_said(truth, rng), _mood_said(truth, rng)) if word]
    if rng.random() < 0.5:
        tags.append(f"{round(truth.tempo)} bpm")
    if truth.key and rng.random() < 0.45:
        tags.append(truth.key)
    if not truth.has_drums and truth.texture != "solo" and rng.random() < 0.2:
        tags.append(choose(rng, ("no drums", "without drums")))
    return ", ".join(tags)
