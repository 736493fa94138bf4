"""Folders of music that needs more than one window, goes on from a recording, or fills a gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from musictune import console
from musictune.audio import Clip, info, read
from musictune.data.windows import is_silent
from musictune.errors import InputError
from musictune.generation.continuing import continued, encode_long, infill, parse_span, steps
from musictune.generation.folder import write_played
from musictune.generation.longform import Grown, LongForm, decode_long, luck
from musictune.generation.request import Request
from musictune.models.musicgen import MusicGen

Facts = Mapping[str, object]


@dataclass(frozen=True)
class Recording:
    """A file that music goes on from, or has its gap filled.

    Attributes:
        path: an audio file.
        start: seconds where the part that is continued begins, or the gap.
        end: seconds where it ends; None for the end of the file.
        candidates: to fill the gap with; 0 if it is to be continued instead.
        only_new: whether what was continued is left out of what is written.
    """

    path: Path
    start: float = 0.0
    end: float | None = None
    candidates: int = 0
    only_new: bool = False

    @classmethod
    def read(
        cls,
        going_on: Path | None = None,
        part: str = ":",
        only_new: bool = False,
        filled: Path | None = None,
        gap: str | None = None,
        candidates: int = 8,
    ) -> Recording | None:
        """The recording that was named, checked before any work is done; None if none was.

        Args:
            going_on: to be continued.
            part: of it, ``START:END``.
            only_new: leave out what was continued.
            filled: to have a gap filled.
            gap: where, ``START:END``.
            candidates: to fill it with.

        Raises:
            AudioError: a file that cannot be read.
            InputError: options that do not go together, or a span that cannot be used.
        """
        if going_on and filled:
            raise InputError("--continue and --infill are two things; give one of them")
        if (part != ":" or only_new) and not going_on:
            raise InputError(
                "--from and --only-new need --continue FILE, a recording to go on from"
            )
        if bool(gap) != bool(filled):
            raise InputError("--infill FILE and --gap START:END need each other")
        if candidates < 1:
            raise InputError(f"candidates {candidates} must be at least 1")
        if filled and gap:
            start, end = parse_span(gap, "gap")
            length = info(filled).seconds
            if end is None or end > length:
                raise InputError(f"gap {gap} must end within the {length:.2f} s of {filled}")
            return cls(filled, start, end, candidates)
        if going_on:
            start, end = parse_span(part, "from")
            info(going_on)
            return cls(going_on, start, end, only_new=only_new)
        return None


def write_any(
    long: LongForm,
    requests: Sequence[Request],
    out: Path,
    *,
    facts: Sequence[Facts],
    recording: Recording | None = None,
    batch: int = 8,
    suffix: str = "wav",
    overwrite: bool = False,
) -> list[Path]:
    """Make music of any length, from nothing or from a recording, and write it.

    Args:
        long: what plays.
        requests: with the length of the new music.
        out: the folder to make.
        facts: for each request, what its line in the manifest says besides.
        recording: what to go on from, or to fill.
        batch: clips made at once.
        suffix: ``wav`` or ``flac``.
        overwrite: replace ``out`` if it is there.

    Returns:
        The sound files, in order.

    Raises:
        AudioError: a recording that cannot be read.
        InputError: a value that cannot be used, or a folder that cannot be written.
    """
    kept: dict[str, Any] = {"batch": batch, "suffix": suffix, "overwrite": overwrite}
    facts = [{**each, "precision": long.engine.precision} for each in facts]
    if recording is None:
        return write_long(long, requests, out, facts=facts, **kept)
    facts = [{**each, "recording": str(recording.path)} for each in facts]
    if recording.candidates and recording.end is not None:
        whole, gap = read(recording.path), (recording.start, recording.end)
        return write_infilled(
            long, whole, gap, requests, out, facts=facts, candidates=recording.candidates, **kept
        )
    given = given_codes(long.model, recording)
    asked = [continued(long.model, given, request) for request in requests]
    return write_long(long, asked, out, facts=facts, only_new=recording.only_new, **kept)


def write_long(
    long: LongForm,
    requests: Sequence[Request],
    out: Path,
    *,
    facts: Sequence[Facts],
    batch: int = 8,
    only_new: bool = False,
    suffix: str = "wav",
    overwrite: bool = False,
) -> list[Path]:
    """Make music of any length and write it with its manifest, as ``folder.write_played`` does.

    A line of the manifest also has ``seams``, and ``given_seconds`` where music was given.

    Args:
        long: what plays.
        requests: of any lengths, with or without given codes.
        out: the folder to make.
        facts: for each request, what its line in the manifest says besides.
        batch: clips made at once.
        only_new: leave out what was given.
        suffix: ``wav`` or ``flac``.
        overwrite: replace ``out`` if it is there.

    Returns:
        The sound files, in order.

    Raises:
        InputError: a request that cannot be played, or a folder that cannot be written.
    """
    model, lines = long.model, [dict(each) for each in facts]

    def made(grown: Grown) -> Tensor | Clip:
        request, line = requests[grown.index], lines[grown.index]
        line["seams"] = [asdict(seam) for seam in grown.seams]
        if request.given is None:
            return grown.codes
        given = request.given.shape[-1] / model.frame_rate
        line["given_seconds"] = given
        if not only_new:
            return grown.codes
        line["only_new"] = True
        return after_given(decode_long(model, grown.codes, request.prompt), given)

    def played(advance: console.Advance) -> Iterator[tuple[int, Tensor | Clip]]:
        for grown in long.play(requests, batch):
            # Counted in frames that stay: how often seams are drawn again is not known before.
            advance(grown.codes.shape[-1] - known[grown.index])
            known[grown.index] = grown.codes.shape[-1]
            if grown.done:
                yield grown.index, made(grown)

    known = [0 if each.given is None else each.given.shape[-1] for each in requests]
    total = sum(model.frames(each.seconds) for each in requests) - sum(known)
    with console.progress("making music (frames)", total) as advance:
        return write_played(
            model, requests, played(advance), out, facts=lines, suffix=suffix, overwrite=overwrite
        )


def write_infilled(
    long: LongForm,
    recording: Clip,
    gap: tuple[float, float],
    requests: Sequence[Request],
    out: Path,
    *,
    facts: Sequence[Facts],
    candidates: int = 8,
    batch: int = 8,
    suffix: str = "wav",
    overwrite: bool = False,
) -> list[Path]:
    """Fill a gap once for each request and write the recordings with their manifest.

    A line of the manifest also has ``gap`` and, for every candidate, its seed and the likelihood
    of what stands after it.

    Args:
        long: whose engine plays.
        recording: with the gap in it.
        gap: in seconds.
        requests: prompts and seeds.
        out, facts, batch, suffix, overwrite: as for :func:`write_long`.
        candidates: made for each request.

    Returns:
        The sound files, in order.

    Raises:
        InputError: as :func:`musictune.generation.continuing.infill`, or a folder that cannot be
            written.
    """
    engine, lines = long.engine, [dict(each) for each in facts]

    def made(advance: console.Advance) -> Iterator[tuple[int, Clip]]:
        for index, request in enumerate(requests):
            filled = infill(
                engine, recording, gap, request, candidates=candidates, batch=batch, on_step=advance
            )
            lines[index] |= _choice(gap, request, filled.nll, filled.chosen)
            yield index, filled.clip

    total = len(requests) * steps(engine, gap, candidates)
    with console.progress("filling the gap", total) as advance:
        return write_played(
            engine.model, requests, made(advance), out,
            facts=lines, suffix=suffix, overwrite=overwrite,
        )  # fmt: skip


def given_codes(model: MusicGen, recording: Recording) -> Tensor:
    """Codes of the part that is continued; a remark if it ends in silence.

    Raises:
        AudioError: a file that cannot be read.
        InputError: less than one codec frame is there.
    """
    start, end = recording.start, recording.end
    clip = read(recording.path, start, None if end is None else end - start)
    if is_silent(clip.crop(max(0.0, clip.seconds - 1), 1.0).mono()):
        console.note(
            f"{recording.path} ends in silence, which music rarely gets out of; choose the part "
            "with --from"
        )
    return encode_long(model, clip)


def _choice(
    gap: tuple[float, float], request: Request, nll: Sequence[float], chosen: int
) -> dict[str, Any]:
    each = [
        {"seed": luck(request.seed, 0, draw), "nll_after": value} for draw, value in enumerate(nll)
    ]
    return {"gap": list(gap), "candidates": each, "chosen": chosen}


def after_given(clip: Clip, seconds: float) -> Clip:
    """The new music of a clip that begins with ``seconds`` of given music."""
    return replace(clip, wave=clip.wave[:, round(seconds * clip.sample_rate) :])
