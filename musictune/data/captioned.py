"""Recordings with captions, held apart by recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musictune.data.sources import discover, written_caption
from musictune.errors import InputError


@dataclass(frozen=True)
class CaptionedClip:
    """An audio file with what is written about it.

    Attributes:
        path: where it lies.
        captions: one or more; the first is the one it is looked up by.
        recording: what it was cut from; its own name if nothing says so.
    """

    path: Path
    captions: tuple[str, ...]
    recording: str


def read_captioned(source: Path | str) -> list[CaptionedClip]:
    """What `musictune.data.sources.discover` finds, each with its captions.

    A manifest may hold a list ``captions`` beside ``text``.

    Raises:
        InputError: nothing there, a clip without a caption, fewer than two clips, or captions that
            are all equal.
    """
    clips, bare = [], []
    for item in discover(source):
        written = written_caption(item)
        captions = tuple(dict.fromkeys(text for text in (written, *item.captions) if text))
        if not captions:
            bare.append(item.name)
            continue
        clips.append(CaptionedClip(item.path, captions, item.origin or item.name))
    if bare:
        raise InputError(
            f"{len(bare)} of {len(clips) + len(bare)} clips in {source} have no caption, the first "
            f"{bare[0]}; write one for each, or let `musictune prepare` do so"
        )
    if len(clips) < 2:
        raise InputError(f"{source} holds one clip; contrast needs two or more")
    if len({clip.captions[0] for clip in clips}) < 2:
        raise InputError(
            f"all {len(clips)} clips in {source} have the caption {clips[0].captions[0]!r}, so "
            "there is nothing to tell apart; say what is different in each"
        )
    return clips


def by_recording(
    clips: Sequence[CaptionedClip], share: float, seed: int
) -> tuple[list[CaptionedClip], list[CaptionedClip]]:
    """Clips to train on and clips held out; those of one recording stay together.

    Args:
        clips: all.
        share: of the recordings to hold out; at least one of them where it is above 0, and never so
            many that fewer than two different captions are left to train on.
        seed: of the choice.

    Raises:
        InputError: there is no such choice.
    """
    if share <= 0:
        return list(clips), []
    recordings = list(dict.fromkeys(clip.recording for clip in clips))
    order = np.random.default_rng([seed, 17]).permutation(len(recordings))
    for count in range(max(1, round(share * len(recordings))), 0, -1):
        held = {recordings[i] for i in order[:count]}
        train = [clip for clip in clips if clip.recording not in held]
        if len({clip.captions[0] for clip in train}) >= 2:
            return train, [clip for clip in clips if clip.recording in held]
    raise InputError(
        f"{len(recordings)} recordings cannot be parted so that two different captions are left to "
        "train on; add more, or set training.held_out=0"
    )
