"""``musictune generate``: prompts to music."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from musictune.audio import Clip
    from musictune.data.concepts import Concept
    from musictune.generation.jobs import Job
    from musictune.models.musicgen import MusicGen

_BY_REWARD = "Choosing by a reward"


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
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of",
            rich_help_panel=_BY_REWARD,
            help="Make this many clips for each that is wanted and keep the best. N of them differ "
            "from plain music by at most log N - (N - 1) / N nats: 8 by 1.2.",
        ),
    ] = None,
    guided: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=_BY_REWARD,
            help="Choose while the music is made, from this many continuations at a time.",
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_BY_REWARD,
            metavar="NAME[=WEIGHT]",
            help="What to choose by: text_alignment, audio_alignment, quality, tempo, key, "
            "novelty, originality, aesthetics, or reward:FOLDER, a learned one. Repeatable: the "
            "weights multiply the values as they are.",
        ),
    ] = None,
    every: Annotated[
        float,
        typer.Option(rich_help_panel=_BY_REWARD, help="Seconds between two choices of --guided."),
    ] = 1.0,
    strength: Annotated[
        float,
        typer.Option(
            rich_help_panel=_BY_REWARD,
            help="How strictly --guided chooses: 0 not at all, inf always the best.",
        ),
    ] = 2.0,
    reference: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_BY_REWARD, help="Clips to come close to, for audio_alignment."
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_BY_REWARD,
            help="Clips not to repeat, for novelty and originality.",
        ),
    ] = None,
    embedder: Annotated[
        str,
        typer.Option(
            rich_help_panel=_BY_REWARD,
            help="A CLAP folder or Hugging Face id that rewards hear by; the bundled one if not "
            "given.",
        ),
    ] = "",
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

    A reward can choose, among whole clips or while they are made, in one window of the base:

        musictune generate "jazz piano" --best-of 8 --reward text_alignment
        musictune generate "jazz piano" --guided 4 --reward audio_alignment --reference takes

    With --stream it can be heard half a second later, by any player that reads a pipe:

        musictune generate "jazz piano" --seconds 60 --stream | ffplay -
    """
    from musictune import console
    from musictune.files import check_target
    from musictune.generation.choosing import Choosing, write_chosen
    from musictune.generation.engine import Engine, check_seconds
    from musictune.generation.facts import adapter_facts, clip_facts
    from musictune.generation.fidelity import require_fidelity
    from musictune.generation.folder import write_requests
    from musictune.generation.longform import LongForm
    from musictune.generation.piping import check_pipe, pipe
    from musictune.generation.precision import find_precision
    from musictune.generation.sampling import Sampling
    from musictune.generation.writing import Recording, write_any
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
    recording = Recording.read(going_on, part, only_new, filled, gap, candidates)
    choosing = None
    if reward or best_of is not None or guided is not None:
        from musictune.evaluation.rewards import load_reward, parse_reward

        choosing = Choosing(tuple(reward or []), best_of, guided, every, strength)
        choosing.check(recording)
        for name in choosing.names:
            parse_reward(name)
    inputs = [place, *(each.folder for each in (*adapters, *own.values()))]
    inputs += [recording.path] if recording else []
    inputs += [each for each in (reference, training) if each]
    if stream:
        check_pipe(sum(job.count or count for job in jobs), bool(recording), bool(choosing))
    else:
        check_target(out, overwrite=overwrite, inputs=inputs)
    for line in overlap_notes([each.folder for each in adapters]):
        console.note(line)

    judge = None
    if choosing:
        judge = load_reward(
            choosing.names, embedder=embedder, reference=reference, training=training
        )
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
    if windows and not (filled or choosing):
        long.check(longest)
        console.note(long.describe(longest.seconds))
    if stream:
        pipe(long, requests[0])
        return
    loaded = [adapter_facts(each, scale) for each in adapters]
    alone_with = {name: adapter_facts(each) for name, each in own.items()}
    facts = [clip_facts(engine, each, loaded, alone_with, melody) for each in requests]
    said = ""
    if choosing and judge:
        files, said = write_chosen(
            engine, requests, out, choosing, judge, facts=facts, recording=recording, batch=batch,
            suffix=format_.value, overwrite=overwrite,
        )  # fmt: skip
        said = f"; {said}"
    elif recording or windows:
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
    console.say(f"{len(files)} clips {length} in {out}{said}")


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
