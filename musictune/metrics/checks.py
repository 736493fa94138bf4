"""What makes scores of these files meaningless, or doubtful: asked before any is believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from musictune.audio import AudioInfo, info
from musictune.errors import InputError
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.suite import Evaluation, HeardSet

_SHOWN = 3  # names in a warning
_OFF = 0.02  # of its length; codecs pad by less
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
    rates = Counter(audio.sample_rate for audio in found)
    if len(rates) < 2:
        return []
    listed = ", ".join(f"{count} at {rate} Hz" for rate, count in rates.most_common())
    return [
        f"{clips.name} mixes sample rates ({listed}); all are resampled, but a lower rate sounds "
        f"duller and scores otherwise"
    ]


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


def check_sound(evaluation: Evaluation, reference: dict[str, np.ndarray]) -> list[str]:
    """Look at the health of what was heard.

    Args:
        evaluation: of the made set.
        reference: the same values of the reference's clips.

    Returns:
        warnings, one line each.

    Raises:
        InputError: every clip is silent.
    """
    silence = evaluation.made["silence"]
    silent = int((silence > _SILENT).sum())
    if silent == len(silence):
        raise InputError(
            f"all {silent} made clips are silent: there is nothing to measure; check the model"
        )
    warnings = []
    if silent:
        warnings.append(f"{silent} of {len(silence)} made clips are silent, and score as such")
    if "bandwidth" in reference and not np.isnan(reference["bandwidth"]).all():
        ours = float(np.nanmedian(evaluation.made["bandwidth"]))
        theirs = float(np.nanmedian(reference["bandwidth"]))
        if ours < _NARROW * theirs:
            warnings.append(
                f"the made clips end at {ours:.0f} Hz, the reference at {theirs:.0f} Hz: embedders "
                f"hear this as another sound; compare with a reference resampled alike as well"
            )
    return warnings


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
