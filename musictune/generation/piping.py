"""One clip to standard output while it is made."""

from __future__ import annotations

import os
import sys

from musictune.errors import InputError
from musictune.generation.longform import LongForm, stream_long
from musictune.generation.request import Request
from musictune.generation.wav import pcm16, wav_header


def check_pipe(clips: int, recording: bool, chosen: bool) -> None:
    """Refuse what cannot be played while it is made.

    Args:
        clips: how many are asked for.
        recording: whether they go on from one, or fill a gap in it.
        chosen: whether a reward is to choose them.

    Raises:
        InputError: not one clip from nothing, or standard output is a terminal.
    """
    if chosen:
        raise InputError(
            "--stream is heard while it is made, before --best-of or --guided could choose; give "
            "one of them"
        )
    if clips != 1 or recording:
        raise InputError(
            f"--stream plays one clip from nothing, not {clips}"
            f"{' with a recording' if recording else ''}; give one prompt and no --count"
        )
    if sys.stdout.isatty():
        raise InputError("--stream writes sound to standard output; pipe it: ... | ffplay -")


def pipe(long: LongForm, request: Request) -> None:
    """Sound to standard output as WAV; whoever hears it may stop at any time."""
    model, sink = long.model, sys.stdout.buffer
    try:
        sink.write(wav_header(model.sample_rate, model.channels))
        for piece in stream_long(long, request):
            sink.write(pcm16(piece))
            sink.flush()
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
