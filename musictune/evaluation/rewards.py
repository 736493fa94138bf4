"""Rewards by the names that people give on the command line."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musictune.audio import Clip
from musictune.data.clips import is_prepared, load_prepared, read_clips
from musictune.errors import InputError
from musictune.metrics.aesthetics import AXES, Aesthetics
from musictune.metrics.alignment import AudioAlignment, TextAlignment
from musictune.metrics.base import About, Reward
from musictune.metrics.combined import Weighted, checked
from musictune.metrics.copying import Originality
from musictune.metrics.embedders import ClapEmbedder, Embedder, load_embedder
from musictune.metrics.musical_asked import KeyCloseness, TempoCloseness
from musictune.metrics.novelty import Novelty
from musictune.metrics.quality import SignalQuality
from musictune.models.base import MusicModel

LEARNED = "reward:"
"""What stands before the folder of a learned reward."""

REWARDS: Mapping[str, About] = {
    "text_alignment": About(
        "Text alignment", "Cosine of the clip with its own prompt, by CLAP.", "higher", -1, 1
    ),
    "audio_alignment": About(
        "Audio alignment", "Mean cosine with the clips of --reference, by CLAP.", "higher", -1, 1
    ),
    "quality": About(
        "Signal quality",
        "1 for a clip without faults; noise, clipping, silence, offset, dropouts and missing "
        "treble lower it.",
        "higher",
        0,
        1,
    ),
    "tempo": About(
        "Tempo as asked",
        "1 for the bpm its prompt names, octaves folded; 0 far off.",
        "higher",
        0,
        1,
    ),
    "key": About(
        "Key as asked",
        "Correlation of its pitch classes with the key its prompt names.",
        "higher",
        -1,
        1,
    ),
    "novelty": About(
        "Novelty",
        "1 minus its likeness to clips of --training by sound, times that by notes.",
        "higher",
        0,
        1,
    ),
    "originality": About(
        "Original notes", "1 minus the likeness of its notes to any of --training.", "higher", 0, 1
    ),
    "aesthetics": About(
        "Aesthetics",
        "Audiobox-Aesthetics: production quality, or aesthetics:CE, :CU, :PC; needs its package "
        "and weights.",
        "higher",
        1,
        10,
    ),
    f"{LEARNED}FOLDER": About(
        "Learned reward", "What a reward model in that folder learned from votes.", "higher"
    ),
}
"""What `load_reward` knows, by name."""  # fmt: skip

_REMEMBERED = 128  # clips; more than any batch of rollouts has


def load_reward(
    names: Sequence[str],
    *,
    embedder: str = "",
    reference: Path | None = None,
    training: Path | None = None,
    model: MusicModel | None = None,
) -> Weighted:
    """The weighted sum of the rewards named, each checked but not yet on one scale.

    All that listen by CLAP share one, which hears each clip once.

    Args:
        names: of `REWARDS`, each as ``NAME`` or ``NAME=WEIGHT``; a weight below 0 turns it round.
        embedder: as for `load_embedder`; the bundled CLAP if empty.
        reference: clips to come close to; needed by ``audio_alignment``.
        training: clips not to repeat; needed by ``novelty`` and ``originality``.
        model: whose codec a learned reward may hear by; if not given, the base it names is loaded.

    Raises:
        InputError: no name, an unknown one, one twice, a weight of 0, or what a reward needs is
            not given or cannot be used.
    """
    if not names:
        raise InputError(f"no reward given; choose from {_known()}")
    wanted: dict[str, float] = {}
    for text in names:
        name, weight = parse_reward(text)
        if name in wanted:
            raise InputError(f"reward {name} is given twice; give it once, with one weight")
        wanted[name] = weight
    sources = _Sources(embedder, reference, training, model)
    return Weighted(
        {name: (checked(_build(name, sources), name), weight) for name, weight in wanted.items()}
    )


def parse_reward(text: str) -> tuple[str, float]:
    """Name and weight of ``NAME`` or ``NAME=WEIGHT``; nothing is loaded.

    Raises:
        InputError: an unknown name, or a weight that is not a finite number other than 0.
    """
    name, equals, number = text.strip().rpartition("=")
    weight = _number(number)
    if not equals or (weight is None and text.strip().startswith(LEARNED)):
        name, weight = text.strip(), 1.0  # a folder may have = in its name
    if not _is_known(name):
        raise InputError(f"reward {name!r} is not known; choose from {_known()}")
    if weight is None or not math.isfinite(weight) or weight == 0:
        raise InputError(
            f"weight {number!r} of reward {name} must be a finite number other than 0, as in "
            f"{name}=0.5"
        )
    return name, weight


@dataclass
class _Sources:
    """What rewards are built from, each part loaded when the first reward asks for it."""

    spec: str
    reference: Path | None
    training: Path | None
    model: MusicModel | None
    _embedder: Embedder | None = None
    _training: list[Clip] | None = None

    def clap(self, name: str) -> ClapEmbedder:
        if self._embedder is None:
            found = load_embedder(self.spec or None)
            self._embedder = _Remembering(found) if isinstance(found, ClapEmbedder) else found
        if not isinstance(self._embedder, ClapEmbedder):
            raise InputError(
                f"reward {name} needs a CLAP, and --embedder {self.spec} is none; leave it out for "
                f"the bundled one"
            )
        return self._embedder

    def reference_clips(self, name: str) -> list[Clip]:
        if self.reference is None:
            raise InputError(f"reward {name} needs --reference: clips to come close to")
        return _clips(self.reference)

    def training_clips(self, name: str) -> list[Clip]:
        if self.training is None:
            raise InputError(f"reward {name} needs --training: the clips not to repeat")
        if self._training is None:
            self._training = _clips(self.training)
        return self._training


class _Remembering(ClapEmbedder):
    """The same CLAP, which does not listen again to a clip it has just heard."""

    def __init__(self, embedder: ClapEmbedder) -> None:
        self.__dict__.update(vars(embedder))
        # By identity, with the clip itself, so that no other can have its id meanwhile.
        self._heard: OrderedDict[int, tuple[Clip, np.ndarray]] = OrderedDict()
        self._true_key = embedder.key

    @property
    def key(self) -> str:  # type: ignore[override]
        return self._true_key

    def hear(self, clip: Clip) -> np.ndarray:
        known = self._heard.get(id(clip))
        if known is None:
            known = self._heard[id(clip)] = clip, super().hear(clip)
            if len(self._heard) > _REMEMBERED:
                self._heard.popitem(last=False)
        return known[1].copy()


def _build(name: str, sources: _Sources) -> Reward:
    if name.startswith(LEARNED):
        return _learned(Path(name.removeprefix(LEARNED)), name, sources)
    base, _, axis = name.partition(":")
    if base == "aesthetics":
        return Aesthetics(axis or "PQ")
    makers: Mapping[str, Callable[[], Reward]] = {
        "text_alignment": lambda: TextAlignment(sources.clap(name)),
        "audio_alignment": lambda: AudioAlignment(
            sources.clap(name), sources.reference_clips(name)
        ),
        "quality": SignalQuality,
        "tempo": TempoCloseness,
        "key": KeyCloseness,
        "novelty": lambda: Novelty(sources.clap(name), sources.training_clips(name)),
        "originality": lambda: Originality(sources.training_clips(name)),
    }
    return makers[base]()


def _learned(folder: Path, name: str, sources: _Sources) -> Reward:
    # Here, as it brings the training of rewards with it.
    from musictune.training.reward import LearnedReward, reward_needs

    own, base = reward_needs(folder)
    hears: Embedder | None = None
    if own is not None:
        # What it learned with, whatever the other rewards hear with.
        hears = sources.clap(name) if sources.spec == own else load_embedder(own or None)
    model = sources.model
    if base is not None and model is None:
        from musictune.models.loading import load_model

        model = load_model(base)
    learned: Reward = LearnedReward.load(folder, embedder=hears, model=model)
    return learned


def _clips(path: Path) -> list[Clip]:
    clips = load_prepared(path) if is_prepared(path) else read_clips(path)
    if not clips:
        raise InputError(f"there is no audio in {path}; give a folder with some")
    return clips


def _is_known(name: str) -> bool:
    if name.startswith(LEARNED):
        return len(name) > len(LEARNED)
    base, colon, axis = name.partition(":")
    if base == "aesthetics" and colon:
        return axis in AXES
    return name in REWARDS


def _known() -> str:
    return ", ".join(REWARDS)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
