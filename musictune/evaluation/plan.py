"""What is to be measured, with what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musictune.errors import InputError

PEERS = ("fadtk", "kadtk", "audiocraft")
"""Tools whose numbers can be computed as they do."""


@dataclass(frozen=True)
class Plan:
    """An evaluation; paths may be given as text.

    Attributes:
        made: folder of made music, as ``generate`` writes it, or any folder of audio.
        reference: the sound to compare with: an audio file, folder or manifest, or statistics
            (``.npz``, with ``:name`` behind it where a file holds those of several embedders).
        against: a second folder, such as the base's music of the same prompts and seeds.
        training: what the model was tuned on, to look for copies of it.
        held_out: clips of the same sound that were not trained on, which say how near is near.
        embedder: what hears; the bundled CLAP if not given.
        classifier: an audio tagger, for the Kullback-Leibler divergence of what is heard.
        base: the base model whose codec tokens copies are looked for in; as the manifest says if
            not given.
        compat: peers of `PEERS` whose numbers are wanted too.
        workers: processes that listen; chosen if not given, one where a GPU listens.
        device: where embedders compute: ``auto``, ``cpu`` or ``cuda``.
        cache: folder for what was heard; the user's cache folder if not given.

    Raises:
        InputError: an unknown peer, fewer than one worker, or held-out clips without training.
    """

    made: Path
    reference: Path
    against: Path | None = None
    training: Path | None = None
    held_out: Path | None = None
    embedder: str | None = None
    classifier: str | None = None
    base: str | None = None
    compat: tuple[str, ...] = ()
    workers: int | None = None
    cache: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("made", "reference", "against", "training", "held_out", "cache"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path))
        for peer in self.compat:
            if peer not in PEERS:
                raise InputError(f"--compat {peer} is unknown; choose from {', '.join(PEERS)}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers {self.workers} must be at least 1")
        if self.held_out and not self.training:
            raise InputError(
                "held-out clips say how near to the training clips is near; give --training too"
            )

    @property
    def statistics(self) -> tuple[Path, str] | None:
        """File and name of the statistics that ``reference`` is, if it is some."""
        path, colon, name = str(self.reference).rpartition(":")
        if colon and path.endswith(".npz"):
            return Path(path), name
        return (self.reference, "") if self.reference.suffix == ".npz" else None

    @property
    def reads(self) -> list[Path]:
        """Every input."""
        reference = self.statistics[0] if self.statistics else self.reference
        inputs = [self.made, reference, self.against, self.training, self.held_out]
        return [path for path in inputs if path]
