"""The tables of a base: codec, language model and CLAP, each measured on held-out seeds."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from musictune.bench.clap_quality import measure_clap
from musictune.bench.codec_quality import measure_codec
from musictune.bench.opus import libopus_version
from musictune.bench.rows import Row, judged, print_table
from musictune.compose.render import find_soundfont
from musictune.console import note, quiet_transformers
from musictune.data.sources import discover
from musictune.errors import InputError
from musictune.files import publish_file, sha256
from musictune.metrics.embedders import ClapEmbedder
from musictune.models import load_model

SCHEMA = 1
PARTS = ("codec", "language", "clap")
HELD_OUT_SEED = 70_000_000
"""Training corpora stay below 2,000,000, concepts lie from 50,000,000 on."""

_LANGUAGE_SEED = 100_000  # after the first seed; the codec and CLAP stay below that
_PACKAGES = (
    "musictune",
    "torch",
    "transformers",
    "numpy",
    "librosa",
    "mir_eval",
    "soxr",
    "av",
    "tinysoundfont",
)


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        parts: of `PARTS`.
        base: ``mini``, a folder or an id of a MusicGen.
        codec, clap: folders that are measured instead of the base's own codec and of the bundled
            CLAP.
        recordings: real audio for the codec's rows.
        count: clips of each part; None for each part's own number.
        seed: the first held-out seed.
    """

    parts: tuple[str, ...] = PARTS
    base: str = "mini"
    codec: Path | None = None
    clap: Path | None = None
    recordings: Path | None = None
    count: int | None = None
    seed: int = HELD_OUT_SEED
    soundfont: Path | None = None


def bench_mini(wanted: Wanted, target: Path) -> list[Row]:
    """Measure, print each part's table as soon as it is there, and write all rows as JSON.

    The file is ``{"schema": 1, "rows": [...], "left_out": [...], "made_with": {...}}``.

    Raises:
        InputError: an unknown part, or models, recordings or a SoundFont that cannot be used;
            nothing is measured before all of them were found.
    """
    _check(wanted, target)
    codec = _load_codec(wanted) if "codec" in wanted.parts else None
    embedder = _load_clap(wanted) if "clap" in wanted.parts else None
    facts = _made_with(wanted, codec, embedder)
    sizes: dict[str, Any] = {} if wanted.count is None else {"count": wanted.count}
    left_out = [f"{part}: not asked for" for part in PARTS if part not in wanted.parts]
    rows: list[Row] = []
    if codec is not None:
        if wanted.recordings is None:
            left_out.append("codec on real recordings: give a folder of them with --recordings")
            note(left_out[-1])
        made = measure_codec(
            codec,
            seed=wanted.seed,
            recordings=wanted.recordings,
            soundfont=wanted.soundfont,
            **sizes,
        )
        rows += _shown(made, "codec")
    if "language" in wanted.parts:
        from musictune.bench.language_quality import measure_language

        heard = measure_language(
            wanted.base,
            seed=wanted.seed + _LANGUAGE_SEED,
            soundfont=wanted.soundfont,
            **sizes,
        )
        made = [judged(row) for row in heard]
        rows += _shown(made, "language model")
    if embedder is not None:
        made = measure_clap(embedder, seed=wanted.seed, soundfont=wanted.soundfont, **sizes)
        rows += _shown(made, "CLAP")
    document = {
        "schema": SCHEMA,
        "rows": [row.as_json for row in rows],
        "left_out": left_out,
        "made_with": facts,
    }
    with publish_file(target) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return rows


def load_codec(folder: Path) -> Any:
    """The codec of a folder that `pretrain` or transformers wrote, in float32 on the CPU.

    Raises:
        InputError: it is not there, is no codec, or lacks weights.
    """
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise InputError(f"codec {folder} has no config.json; give the folder of a trained codec")
    try:
        with quiet_transformers():
            codec, loaded = AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many kinds; each means the folder is no use
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"codec {folder} cannot be loaded: {reason}") from error
    if loaded["missing_keys"]:
        lost = sorted(loaded["missing_keys"])
        raise InputError(f"codec {folder} lacks {len(lost)} weights, the first {lost[0]}")
    if not hasattr(codec, "encode") or not hasattr(codec.config, "codebook_size"):
        raise InputError(f"{folder} holds a {codec.config.model_type}, not a codec")
    return codec.eval().float()


def _check(wanted: Wanted, target: Path) -> None:
    for part in wanted.parts:
        if part not in PARTS:
            raise InputError(f"--part {part!r} is not known; give one of {', '.join(PARTS)}")
    if target.is_dir():
        raise InputError(f"--json {target} is a folder; name a file in it")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--json {target}: its folder does not exist; make it first")
    if wanted.recordings is not None:
        discover(wanted.recordings)
    find_soundfont(wanted.soundfont)


def _load_codec(wanted: Wanted) -> Any:
    if wanted.codec is not None:
        return load_codec(wanted.codec)
    return load_model(wanted.base, "cpu").network.audio_encoder


def _load_clap(wanted: Wanted) -> ClapEmbedder:
    return ClapEmbedder.load(wanted.clap)


def _shown(rows: Sequence[Row], title: str) -> list[Row]:
    print_table(rows, title)
    return list(rows)


def _made_with(wanted: Wanted, codec: Any, embedder: ClapEmbedder | None) -> dict[str, Any]:
    hashes: dict[str, str] = {"soundfont": sha256(find_soundfont(wanted.soundfont))}
    if codec is not None:
        hashes["codec"] = _weights_hash(codec)
    if embedder is not None:
        hashes["clap"] = embedder.hash
    recordings = {}
    if wanted.recordings is not None:
        recordings = {s.name: sha256(s.path) for s in discover(wanted.recordings)}
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "opus": libopus_version(),
        "base": wanted.base,
        "codec": "of the base" if wanted.codec is None else wanted.codec.name,
        "clap": "bundled" if wanted.clap is None else wanted.clap.name,
        "count": wanted.count,
        "seed": wanted.seed,
        "checkpoint_hashes": hashes,
        "recordings": recordings,
    }


def _weights_hash(model: Any) -> str:
    """Hex SHA-256 over names and values, whatever the file they came from."""
    import hashlib

    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
