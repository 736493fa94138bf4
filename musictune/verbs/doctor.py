"""``musictune doctor``: is this machine fit, and if not, what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

# Optional packages that transformers and peft import whenever they are there: one that does not
# load takes both down with it.
_OPTIONAL = ("torchaudio", "torchvision", "torchcodec")
_FREE_GIGABYTES = 2.0

Finding = tuple[bool, str]


def doctor(
    base: Annotated[
        str, typer.Option(help="Also load this base model and make a second of music.")
    ] = "mini",
) -> None:
    """Check packages, decoders, device, disk and the base model; exit 1 if something is wrong.

    Each line is one check; a failed one ends with the remedy.

        musictune doctor
    """
    from musictune import console
    from musictune.errors import CheckFailed

    checks: list[Callable[[], list[Finding]]] = [
        _python,
        _broken,
        _versions,
        _audio,
        _device,
        _precision,
        _disk,
        _soundfont,
        lambda: _base(base),
    ]
    failed = 0
    for check in checks:
        for good, text in check():
            failed += not good
            console.say(f"{'ok ' if good else 'BAD'}  {text}")
        if failed and check is _broken:
            break  # nothing that imports transformers can be checked now
    if failed:
        raise CheckFailed(f"{failed} check{'s' * (failed > 1)} failed; see the lines marked BAD")


def broken_packages() -> list[str]:
    """Optional packages that are installed but do not load, each as one line with the remedy."""
    found = []
    for name in _OPTIONAL:
        if importlib.util.find_spec(name) is None:
            continue
        result = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False
        )
        if result.returncode == 0:
            continue
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1][:160]
        found.append(
            f"{name} is installed but does not load ({reason}), and transformers fails with it; "
            f"musictune does not need it: pip uninstall {name}"
        )
    return found


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [(sys.version_info >= (3, 11), f"Python {version} (3.11 or newer)")]


def _broken() -> list[Finding]:
    broken = broken_packages()
    if broken:
        return [(False, line) for line in broken]
    present = [name for name in _OPTIONAL if importlib.util.find_spec(name)]
    return [(True, f"optional torch packages: {', '.join(present) or 'none'} (none are needed)")]


def _versions() -> list[Finding]:
    from packaging.requirements import Requirement

    findings = []
    for line in importlib.metadata.requires("musictune") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append((False, f"{requirement.name} is missing: pip install '{requirement}'"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            remedy = f"pip install '{requirement}'"
            findings.append(
                (False, f"{requirement.name} {version} does not fit {requirement}: {remedy}")
            )
    if findings:
        return findings
    names = ("torch", "transformers", "peft", "pytorch-lightning", "numpy")
    return [(True, ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names))]


def _audio() -> list[Finding]:
    import av
    import soundfile

    formats = {"WAV", "FLAC", "OGG", "MP3"} - set(soundfile.available_formats())
    return [
        (not formats, f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__})"),
        ("aac" in av.codecs_available, f"PyAV {av.__version__} (m4a and the rest)"),
    ]


def _device() -> list[Finding]:
    import torch

    cores = os.cpu_count()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return [(True, f"device cuda: {name}, {memory:.0f} GB; {cores} cores")]
    return [(True, f"device cpu: {cores} cores, {torch.get_num_threads()} threads")]


def _precision() -> list[Finding]:
    """What ``--precision auto`` means here, and why."""
    import torch

    from musictune.generation.precision import PRECISIONS, find_precision, has_amx, has_fbgemm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        triton = importlib.util.find_spec("triton") is not None
        kernels = "Triton kernels" if triton else "plain torch: install musictune[gpu] for kernels"
        return [(True, f"music is made in {find_precision('auto', device)}, {kernels}")]
    units = [torch.backends.cpu.get_cpu_capability()]
    units += ["AMX"] if has_amx() else []
    there = [p for p in PRECISIONS if has_fbgemm() or p not in ("float16", "int8")]
    chosen = f"music is made in {find_precision('auto', device)} ({', '.join(units)})"
    return [(True, f"{chosen}; --precision takes {', '.join(there)}")]


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    text = f"{free:.1f} GB free in {Path.cwd()}"
    return [(free > _FREE_GIGABYTES, text if free > _FREE_GIGABYTES else text + "; free some")]


def _soundfont() -> list[Finding]:
    from musictune.compose.render import find_soundfont
    from musictune.errors import InputError

    try:
        return [(True, f"SoundFont {find_soundfont()}")]
    except InputError as error:
        return [(True, f"no SoundFont (only `compose` needs one): {error}")]


def _base(base: str) -> list[Finding]:
    from musictune.errors import MusictuneError
    from musictune.models import load_model

    try:
        model = load_model(base)
        _, clips = model.rollout(["a slow piano"], 1.0, 0)
    except MusictuneError as error:
        return [(False, f"base {base}: {error}")]
    loud = float(clips[0].wave.abs().max())
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return [(loud > 0, f"base {base}: {millions:.1f} M weights, made {clips[0].seconds:.1f} s")]
