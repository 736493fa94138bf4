"""What makes scores of these files meaningless, or doubtful: asked before any is believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from musictune.audio import AudioInfo, info
from musictune.errors import InputError
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.suite import Evaluation, HeardSet

_SHOWN = 3  # names in a warning
_OFF = 0.02  # of its length; codecs pad by less
_SHORT = 1.0  # seconds; windows are ten times as long, and a shorter clip fills one by repetition
_SILENT = 0.99  # share of a clip
_NARROW = 0.6  # of the reference's bandwidth


def check_files(clips: ClipSet) -> list[str]:
    """Look at files before they are heard.

    Returns:
        warnings, one line each.

    Raises:
        InputError: a clip does not last as long as its manifest says, which is what a wrong
            sample rate looks like, or a file that cannot be read.
    """
    found = [info(file.path) for file in clips.files]
    for file, audio in zip(clips.files, found, strict=True):
        _check_length(file, audio)
    warnings = []
    short = [f.file for f, audio in zip(clips.files, found, strict=True) if audio.seconds < _SHORT]
    if short:
        warnings.append(
            f"{clips.name} has {_listed(short)} shorter than {_SHORT:g} s: what is heard is its "
            f"repetition, more a hum than music; leave it out"
        )
    rates = Counter(audio.sample_rate for audio in found)
    if len(rates) > 1:
        listed = ", ".join(f"{count} at {rate} Hz" for rate, count in rates.most_common())
        warnings.append(
            f"{clips.name} mixes sample rates ({listed}); all are resampled, but a lower rate "
            f"sounds duller and scores otherwise"
        )
    return warnings


def check_heard(
    made: HeardSet, reference: HeardSet | None, others: Sequence[HeardSet]
) -> list[str]:
    """Compare the bytes of sets, and of files with what their manifests say.

    Args:
        made: the set to be scored.
        reference: what it is compared with.
        others: further sets whose clips must differ among themselves.

    Returns:
        warnings, one line each.
    """
    warnings = []
    for one in [made, *others]:
        again = Counter(one.heard.digests)
        twice = sum(count - 1 for count in again.values())
        if twice:
            warnings.append(
                f"{one.clips.name} holds {twice} files twice: the same bytes under other names "
                f"count as clips of their own and make intervals too narrow"
            )
        changed = [
            file.file
            for file, digest in zip(one.clips.files, one.heard.digests, strict=True)
            if file.digest and file.digest != digest
        ]
        if changed:
            warnings.append(
                f"{one.clips.name} has {_listed(changed)} changed since the manifest was written"
            )
        if reference is None:
            continue
        known = set(reference.heard.digests)
        same = [
            file.file
            for file, digest in zip(one.clips.files, one.heard.digests, strict=True)
            if digest in known
        ]
        if same:
            warnings.append(
                f"{one.clips.name} and the reference share {_listed(same)}: what is compared with "
                f"itself scores too well"
            )
    return warnings


def check_sound(evaluation: Evaluation, reference: Mapping[str, np.ndarray]) -> list[str]:
    """Look at the health of what was heard.

    Args:
        evaluation: of the made set, and of the one it is held against.
        reference: the values of ``evaluation.made`` for the reference's clips; empty if not known.

    Returns:
        warnings, one line each.

    Raises:
        InputError: every made clip, or every one of the reference, is silent.
    """
    made = evaluation.made
    warnings = []
    sets = {"made": made, "reference": reference, "compared": evaluation.against}
    for name, values in sets.items():
        if "silence" not in values:
            continue
        count, silent = len(values["silence"]), int((values["silence"] > _SILENT).sum())
        if silent == count and values is not evaluation.against:
            raise InputError(
                f"all {count} {name} clips are silent: there is nothing to measure; "
                + ("check the model" if values is made else "give clips that can be heard")
            )
        if silent:
            warnings.append(f"{silent} of {count} {name} clips are silent, and score as such")
    ours, theirs = _bandwidth(made), _bandwidth(reference)
    if ours is not None and theirs is not None and ours < _NARROW * theirs:
        warnings.append(
            f"the made clips end at {ours:.0f} Hz, the reference at {theirs:.0f} Hz: embedders "
            f"hear this as another sound; compare with a reference resampled alike as well"
        )
    return warnings


def _bandwidth(values: Mapping[str, np.ndarray]) -> float | None:
    """Hz, the median of the clips of which it is known."""
    column = values.get("bandwidth", np.empty(0))
    known = column[~np.isnan(column)]
    return float(np.median(known)) if len(known) else None


def _check_length(file: ClipFile, audio: AudioInfo) -> None:
    if file.seconds is None or abs(audio.seconds / file.seconds - 1) <= _OFF:
        return
    raise InputError(
        f"{file.path} lasts {audio.seconds:.2f} s at {audio.sample_rate} Hz where its manifest "
        f"says {file.seconds:g} s: its sample rate is wrong, or it was cut; generate it again"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
