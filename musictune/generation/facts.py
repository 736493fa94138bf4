"""What the manifest says of a clip besides its request: adapters, their weights, a melody."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from musictune.data.concepts import plain
from musictune.files import sha256
from musictune.generation.engine import Engine
from musictune.generation.request import Request
from musictune.methods.composition import Addition, Depth

Facts = dict[str, object]


def adapter_facts(adapter: Addition, depth: Depth | None = None) -> Facts:
    """Path, weight and hash of an adapter; the hash is over its files' names and hashes."""
    folder = adapter.folder
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    scale: Facts = {"depth": [depth.first, depth.last]} if depth else {}
    return {"path": str(folder), "weight": adapter.weight, "sha256": digest.hexdigest()} | scale


def clip_facts(
    engine: Engine,
    request: Request,
    loaded: Sequence[Facts],
    own: Mapping[str, Facts],
    melody: Path | None,
) -> Facts:
    """What made a clip.

    Args:
        engine: whose model and adapters know the words of the prompt.
        request: of the clip.
        loaded: the adapters of all clips.
        own: those of single clips, by name.
        melody: the recording whose tune is followed.
    """
    facts: Facts = {"melody": str(melody)} if melody else {}
    if request.adapter is None:
        return facts | {"adapters": list(loaded)}
    concepts = [*engine.model.concepts, *engine.adapters.concepts(request.adapter)]
    text = plain(request.prompt, concepts)
    return facts | {"adapters": [*loaded, own[request.adapter]], "text": text}
