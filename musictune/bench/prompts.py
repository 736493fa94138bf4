"""Prompts with known truth: what the language model is asked for when it is judged.

Each prompt tells of a score the composer would write from a held-out seed, in the manner of its
captions, so that the same truth can be asked of the model and rendered for comparison.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from musictune.compose.captions import tempo_words
from musictune.compose.instruments import DRUMS, FAMILIES, INSTRUMENTS
from musictune.compose.notes import Score, Truth
from musictune.compose.score import TEXTURES, write_score

_ROUND = len(FAMILIES) * len(TEXTURES) + 1  # each family in each texture, and a drum solo
_SAID = 4  # of five prompts name the tempo, and four of five the key
_REDRAW = 1_000_000  # seeds apart, where a seed gives no drum solo


@dataclass(frozen=True)
class Prompt:
    """One thing to ask for.

    Attributes:
        text: what the model reads. It always names the lead.
        seed: of the score, and of the effects when it is rendered.
        score: music of which the text is true.
        says_tempo: the text names the beats per minute.
        says_key: the text names the key.
        says_drums: the text lists drums, or says that there are none.
    """

    text: str
    seed: int
    score: Score
    says_tempo: bool
    says_key: bool
    says_drums: bool

    @property
    def truth(self) -> Truth:
        """What a render of the score would be."""
        return self.score.truth

    @property
    def solo(self) -> bool:
        """Whether one instrument plays alone."""
        return self.score.truth.texture == "solo"


def write_prompts(count: int = 200, seed: int = 70_100_000, seconds: float = 10.0) -> list[Prompt]:
    """``count`` prompts, even over families and textures; 200 are five of each.

    Four in five name the tempo in beats per minute, four in five of those that have a key name
    it, and all with more than one player say whether there are drums.

    Args:
        count: how many.
        seed: of the first score; no corpus the model learned from may hold the next ``count``.
        seconds: length of the scores.
    """
    return [_prompt(number, seed, seconds) for number in range(count)]


def _prompt(number: int, seed: int, seconds: float) -> Prompt:
    turn, place = divmod(number, _ROUND)
    own, score = _score(turn, place, seed + number, seconds)
    truth = score.truth
    # Shifted from turn to turn, so that no family always or never names its tempo or key.
    says_tempo = (place + turn) % 5 < _SAID
    says_key = bool(truth.key) and (place + 2 * turn + 2) % 5 < _SAID
    text = _front(truth, number) + _body(truth, number)
    if text.split(",")[0].endswith((" solo", " melody")) or " melody over " in text:
        text = ("an " if text[0] in "aeiou" else "a ") + text
    if says_key:
        text += f" in {truth.key}"
    if says_tempo:
        text += f", {round(truth.tempo)} bpm"
    says_drums = truth.texture != "solo"
    if says_drums and not truth.has_drums:
        text += ", no drums"
    return Prompt(text, own, score, says_tempo, says_key, says_drums)


def _score(turn: int, place: int, seed: int, seconds: float) -> tuple[int, Score]:
    """The score for a place in a turn over all families and textures, and its seed."""
    if place == _ROUND - 1:
        tries = itertools.count(seed, _REDRAW)
        made = ((own, write_score(own, seconds=seconds, texture="solo")) for own in tries)
        return next((own, score) for own, score in made if score.truth.lead_family == DRUMS)
    # 13 families and 3 textures have no common divisor: counting on meets every pair once.
    family, texture = FAMILIES[place % len(FAMILIES)], place % len(TEXTURES)
    programs = [item.program for item in INSTRUMENTS.values() if item.family == family]
    program = programs[(turn * len(TEXTURES) + texture) % len(programs)]
    return seed, write_score(seed, seconds=seconds, program=program, texture=TEXTURES[texture])


def _front(truth: Truth, number: int) -> str:
    words = []
    if number % 4 < 2:
        words.append(tempo_words(truth.tempo)[0])
    if number % 4 in (1, 2) and truth.moods:
        words.append(truth.moods[0])
    return "".join(word + " " for word in words)


def _body(truth: Truth, number: int) -> str:
    others = [name for name in truth.instruments if name != truth.lead]
    if truth.texture == "solo":
        return "solo drums" if truth.lead == DRUMS else f"{truth.lead} solo"
    if truth.texture == "duo":
        return f"{truth.lead} {('melody over', 'with')[number % 2]} {_listed(others)}"
    return f"{truth.style} with {_listed([truth.lead, *others])}"


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + " and " + names[-1]
