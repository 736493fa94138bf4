"""``musictune generate``: prompts to music."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.audio import Clip
    from musictune.data.concepts import Concept
    from musictune.generation.engine import Engine
    from musictune.generation.jobs import Job
    from musictune.generation.longform import LongForm
    from musictune.generation.request import Request
    from musictune.generation.writing import Recording
    from musictune.methods.composition import Addition, Depth
    from musictune.models.musicgen import MusicGen


class Format(StrEnum):
    """Sound file formats that can be written."""

    wav = "wav"
    flac = "flac"


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to play, one clip or more for each.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the music.")] = Path("out/generate"),
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="More prompts: a text file, one per line, or .jsonl, where each line may have an "
            "adapter, seconds, seed and count of its own.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A run of `tune`, with a weight if wanted: RUN=0.7. Repeatable."),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST",
            help="How much of the adapters the decoder's first and last layer keep, the ones "
            "between in a straight line (LiNeS): 0.3:1.",
        ),
    ] = None,
    base: Annotated[str, typer.Option(help="mini, a model folder, or a Hugging Face id.")] = "mini",
    seconds: Annotated[
        float,
        typer.Option(
            help="Length of each clip, up to an hour; with --continue, of the new music alone."
        ),
    ] = 10.0,
    count: Annotated[int, typer.Option(help="Clips of each prompt.")] = 1,
    seed: Annotated[
        int, typer.Option(help="Of each prompt's first clip; the next has one more.")
    ] = 0,
    temperature: Annotated[float, typer.Option(help="Below 1 plays safer, above 1 wilder.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0: all.")] = 250,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest with this probability; 0: all.")
    ] = 0.0,
    guidance: Annotated[
        float, typer.Option(help="How strictly to follow the prompt; 1: not at all extra.")
    ] = 3.0,
    going_on: Annotated[
        Path | None, typer.Option("--continue", help="A recording that the music goes on from.")
    ] = None,
    part: Annotated[
        str, typer.Option("--from", metavar="START:END", help="Part of it, in seconds; 5: or :8.")
    ] = ":",
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Write what follows the recording, not the whole.")
    ] = False,
    filled: Annotated[
        Path | None, typer.Option("--infill", help="A recording in which to fill a gap.")
    ] = None,
    gap: Annotated[
        str | None, typer.Option(metavar="START:END", help="Where the gap is, in seconds.")
    ] = None,
    candidates: Annotated[
        int, typer.Option(help="Fillings to choose from: the one that what follows fits best.")
    ] = 8,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Music longer than the base knows is played in windows: seconds of the one "
            "before that each hears; a third of a window if not given."
        ),
    ] = None,
    redraws: Annotated[
        int, typer.Option(help="How often to redraw a window whose beginning stands out.")
    ] = 2,
    melody: Annotated[
        Path | None,
        typer.Option(help="A recording whose tune to follow, for bases that listen to one."),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="One clip to standard output as WAV while it is made; no folder."
        ),
    ] = False,
    batch: Annotated[int, typer.Option(help="Clips made at once; fewer need less memory.")] = 8,
    precision: Annotated[
        str,
        typer.Option(help="auto, float32, float16, bfloat16; int8: fastest on CPUs, rougher."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    format_: Annotated[Format, typer.Option("--format", help="Of the files.")] = Format.wav,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
) -> None:
    """Make music from prompts, with or without adapters.

    Writes NNN-prompt.wav and manifest.jsonl, which says for each file how it was made. The same
    command gives the same bytes on the same machine. To hear what an adapter does, run the same
    prompts and seed with and without it.

    A tuned sound is called by its name, as it was given to `tune --concept`:

        musictune generate "a slow melody on <musicbox>" --adapter runs/musicbox --out out/music

    Several adapters add up, each with its weight; of pivotal ones it is said how much their masks
    overlap.

    Of several sounds each clip can have its own, all in one batch. A line of jobs.jsonl:

        {"prompt": "slow <musicbox>", "adapter": "runs/musicbox", "seconds": 8, "seed": 1}

    Music goes on from a recording, or fills a gap in one:

        musictune generate "jazz piano" --continue take.wav --from :8 --seconds 20
        musictune generate "jazz piano" --infill take.wav --gap 4.2:6

    With --stream it can be heard half a second later, by any player that reads a pipe:

        musictune generate "jazz piano" --seconds 60 --stream | ffplay -
    """
    from musictune import console
    from musictune.files import check_target
    from musictune.generation.engine import Engine, check_seconds
    from musictune.generation.fidelity import require_fidelity
    from musictune.generation.folder import write_requests
    from musictune.generation.longform import LongForm
    from musictune.generation.precision import find_precision
    from musictune.generation.sampling import Sampling
    from musictune.generation.writing import write_any
    from musictune.methods import load_adapter
    from musictune.methods.adapter import live_methods
    from musictune.methods.composition import Addition, Depth, check_together
    from musictune.methods.overlap import overlap_notes
    from musictune.models import checkpoint, load_model
    from musictune.models.devices import find_device

    jobs = _jobs(prompts or [], prompts_file)
    sampling = Sampling(temperature, top_k, top_p, guidance)
    check_seconds(seconds)
    _check_numbers(count=count, seed=seed, batch=batch)
    adapters = [Addition.read(given) for given in adapter or []]
    scale = Depth.read(depth) if depth is not None else None
    own = {job.name: job.adapter for job in jobs if job.adapter and job.name}
    for alone in [[], *([each] for each in own.values())]:
        check_together([each.folder for each in (*adapters, *alone)])
    place = Path(checkpoint.check(base))
    find_precision(precision, find_device(device))
    recording = _recording(going_on, part, only_new, filled, gap, candidates)
    inputs = [place, *(each.folder for each in (*adapters, *own.values()))]
    inputs += [recording.path] if recording else []
    if stream:
        _check_stream(sum(job.count or count for job in jobs), recording)
    else:
        check_target(out, overwrite=overwrite, inputs=inputs)
    for line in overlap_notes([each.folder for each in adapters]):
        console.note(line)

    model = load_model(base, device)
    # What stays attached comes last: the layers of the others would no longer be plain.
    for each in sorted(adapters, key=lambda each: bool(live_methods(each.folder))):
        concepts = load_adapter(model, each.folder, each.weight, scale)
        _remark_unused(concepts, [job.prompt for job in jobs], each.folder)
    engine = Engine(model, precision)
    for name, each in own.items():
        concepts = engine.adapters.add(name, each.folder, each.weight)
        _remark_unused(concepts, [job.prompt for job in jobs if job.name == name], each.folder)
    require_fidelity(engine)
    _remark_long(model, [job.prompt for job in jobs])
    tune = _melody(model, melody)
    requests = [
        request for job in jobs for request in job.requests(seconds, seed, count, sampling, tune)
    ]
    longest = max(requests, key=lambda request: request.seconds)
    windows = longest.seconds > model.max_seconds
    if own and (recording or windows):
        raise _lines_refused(model.max_seconds)
    long = LongForm(engine, overlap, redraws)
    if windows and not filled:
        long.check(longest)
        console.note(long.describe(longest.seconds))
    if stream:
        _stream(long, requests[0])
        return
    loaded = [_facts(each, scale) for each in adapters]
    alone_with = {name: _facts(each, None) for name, each in own.items()}
    facts = [_made_with(engine, each, loaded, alone_with, melody) for each in requests]
    if recording or windows:
        files = write_any(
            long, requests, out, facts=facts, recording=recording, batch=batch,
            suffix=format_.value, overwrite=overwrite,
        )  # fmt: skip
    else:
        files = write_requests(
            engine, requests, out, facts=facts, batch=batch, suffix=format_.value,
            overwrite=overwrite,
        )  # fmt: skip
    lengths = sorted({request.seconds for request in requests})
    length = f"of {' to '.join(f'{each:g}' for each in dict.fromkeys((lengths[0], lengths[-1])))} s"
    length = "with the gap filled" if filled else length
    console.say(f"{len(files)} clips {length} in {out}")


def _check_stream(clips: int, recording: Recording | None) -> None:
    import sys

    from musictune.errors import InputError

    if clips != 1 or recording:
        raise InputError(
            f"--stream plays one clip from nothing, not {clips}"
            f"{' with a recording' if recording else ''}; give one prompt and no --count"
        )
    if sys.stdout.isatty():
        raise InputError("--stream writes sound to standard output; pipe it: ... | ffplay -")


def _stream(long: LongForm, request: Request) -> None:
    """Sound to standard output; whoever hears it may stop at any time."""
    import os
    import sys

    from musictune.generation.longform import stream_long
    from musictune.generation.wav import pcm16, wav_header

    model, sink = long.model, sys.stdout.buffer
    try:
        sink.write(wav_header(model.sample_rate, model.channels))
        for piece in stream_long(long, request):
            sink.write(pcm16(piece))
            sink.flush()
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _melody(model: MusicGen, path: Path | None) -> Clip | None:
    from musictune.errors import InputError
    from musictune.models.chroma import read_melody

    if path is None:
        return None
    settings = getattr(model, "chroma", None)
    if settings is None:
        raise InputError(
            f"base {model.base} does not listen to melodies; use one that does, such as "
            "facebook/musicgen-melody"
        )
    return read_melody(path, settings)


def _recording(
    going_on: Path | None,
    part: str,
    only_new: bool,
    filled: Path | None,
    gap: str | None,
    candidates: int,
) -> Recording | None:
    """The recording that was named, checked before any work is done."""
    from musictune.audio import info
    from musictune.errors import InputError
    from musictune.generation.continuing import parse_span
    from musictune.generation.writing import Recording

    if going_on and filled:
        raise InputError("--continue and --infill are two things; give one of them")
    if (part != ":" or only_new) and not going_on:
        raise InputError("--from and --only-new need --continue FILE, a recording to go on from")
    if bool(gap) != bool(filled):
        raise InputError("--infill FILE and --gap START:END need each other")
    if candidates < 1:
        raise InputError(f"candidates {candidates} must be at least 1")
    if filled and gap:
        start, end = parse_span(gap, "gap")
        length = info(filled).seconds
        if end is None or end > length:
            raise InputError(f"gap {gap} must end within the {length:.2f} s of {filled}")
        return Recording(filled, start, end, candidates)
    if going_on:
        start, end = parse_span(part, "from")
        info(going_on)
        return Recording(going_on, start, end, only_new=only_new)
    return None


def _jobs(given: list[str], path: Path | None) -> list[Job]:
    from musictune.errors import InputError
    from musictune.generation.jobs import Job, read_jobs

    if any(not prompt.strip() for prompt in given):
        raise InputError('prompt "" is empty; say what to play, such as "slow piano"')
    jobs = [Job(prompt) for prompt in given] + (read_jobs(path) if path else [])
    if not jobs:
        raise InputError('no prompt given; say what to play, such as "slow piano"')
    return jobs


def _lines_refused(longest: float) -> Exception:
    from musictune.errors import InputError

    return InputError(
        "adapters of single lines are for clips from nothing of up to "
        f"{longest:g} s; give --adapter for all of them instead"
    )


def _check_numbers(count: int, seed: int, batch: int) -> None:
    from musictune.errors import InputError

    if count < 1:
        raise InputError(f"count {count} must be at least 1")
    if batch < 1:
        raise InputError(f"batch {batch} must be at least 1")
    if not 0 <= seed < 2**62:
        raise InputError(f"seed {seed} must be 0 or a positive number below 2^62")


def _remark_long(model: MusicGen, prompts: list[str]) -> None:
    from musictune import console

    most = model.tokenizer.model_max_length
    for prompt in dict.fromkeys(prompts):
        tokens = len(model.tokenizer(prompt, truncation=False, verbose=False)["input_ids"])
        if tokens > most:
            console.note(
                f'of prompt "{prompt[:30]}..." only the first {most} of {tokens} tokens are read'
            )


def _remark_unused(concepts: list[Concept], prompts: list[str], folder: Path) -> None:
    """Most disappointment with adapters is a prompt that never calls them."""
    from musictune import console
    from musictune.data.concepts import plain

    if concepts and all(plain(prompt, concepts) == prompt for prompt in prompts):
        names = " or ".join(concept.trigger for concept in concepts)
        console.note(f"no prompt says {names}, so adapter {folder} has little to act on")


def _made_with(
    engine: Engine,
    request: Request,
    loaded: list[dict[str, object]],
    own: dict[str, dict[str, object]],
    melody: Path | None,
) -> dict[str, object]:
    """What the manifest says of a clip besides its request."""
    from musictune.data.concepts import plain

    facts: dict[str, object] = {"melody": str(melody)} if melody else {}
    if request.adapter is None:
        return facts | {"adapters": loaded}
    concepts = [*engine.model.concepts, *engine.adapters.concepts(request.adapter)]
    text = plain(request.prompt, concepts)
    return facts | {"adapters": [*loaded, own[request.adapter]], "text": text}


def _facts(adapter: Addition, depth: Depth | None) -> dict[str, object]:
    """What the manifest says about an adapter; the hash is over its files' names and hashes."""
    import hashlib

    from musictune.files import sha256

    folder = adapter.folder
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    scale = {"depth": [depth.first, depth.last]} if depth else {}
    facts = {"path": str(folder), "weight": adapter.weight, "sha256": digest.hexdigest()}
    return facts | scale
