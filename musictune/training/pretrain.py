"""Training the bundled base from nothing: the part they share, and the run.

Each part of the base (codec, language model, CLAP) is one :class:`Pretraining`: it draws its own
batches from a folder that ``musictune compose`` wrote, and exports a Hugging Face folder. A batch
is a pure function of (seed, step), so a resumed run goes on with the data it would have seen.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import soundfile
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from musictune import console
from musictune.errors import CheckFailed, InputError
from musictune.files import check_target, publish_folder, sha256


@dataclass(frozen=True)
class Corpus:
    """Captioned clips on disk, as ``musictune compose`` writes them.

    Attributes:
        folder: the AudioFolder.
        rows: its ``metadata.jsonl``, one dictionary per clip.
    """

    folder: Path
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path | str) -> Corpus:
        """Read ``folder/metadata.jsonl``.

        Raises:
            InputError: there is none.
        """
        folder = Path(folder)
        listing = folder / "metadata.jsonl"
        if not listing.is_file():
            raise InputError(f"corpus {folder} has no metadata.jsonl; make one: musictune compose")
        with listing.open(encoding="utf-8") as lines:
            return cls(folder, [json.loads(line) for line in lines])

    def path(self, index: int) -> Path:
        """The audio file of clip ``index``."""
        return self.folder / self.rows[index]["file_name"]

    @property
    def key(self) -> str:
        """Changes with what the corpus holds; for the names of what is kept beside it."""
        return sha256(self.folder / "metadata.jsonl")[:12]

    def wave(self, index: int, rate: int) -> Tensor:
        """Clip ``index`` in mono, ``(samples,)``.

        Raises:
            InputError: it is not at ``rate`` Hz.
        """
        wave, found = soundfile.read(self.path(index), dtype="float32", always_2d=True)
        if found != rate:
            raise InputError(
                f"{self.path(index)} is at {found} Hz and this part needs {rate}; "
                "make the corpus with musictune compose"
            )
        return torch.from_numpy(wave.mean(1))

    def captions(self, index: int) -> list[str]:
        """All captions of clip ``index``."""
        row = self.rows[index]
        return row.get("captions") or [row["text"]]


@dataclass(frozen=True)
class PretrainSettings:
    """How long and how fast; the same for every part."""

    steps: int = 10000
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    seed: int = 0
    precision: str = "bf16-mixed"
    checkpoint_every: int = 1000
    device: str = "auto"


class Pretraining(pl.LightningModule, ABC):
    """One part of the base in training.

    Attributes:
        progress: how far into the training the batch being drawn lies, 0 to 1.
    """

    settings: PretrainSettings
    progress = 0.0

    @abstractmethod
    def open(self, corpus: Corpus) -> None:
        """Look at the corpus once, before the first batch."""

    @abstractmethod
    def batch(self, rng: np.random.Generator) -> Any:
        """Draw a batch; all chance comes from ``rng``."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss and figures worth watching."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained part as a Hugging Face folder."""

    def train_dataloader(self) -> Any:
        """Batches from the step reached so far."""
        source = _Batches(self, self.settings.seed, self.global_step)
        return torch.utils.data.DataLoader(source, batch_size=None)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """One loss; a non-finite one stops the run."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.global_step)
        loss, figures = self.loss(batch)
        if not torch.isfinite(loss):
            raise CheckFailed(f"loss is {loss.item()} at step {self.global_step}; lower the rate")
        self.log_dict({"loss": loss.detach(), **figures}, on_step=True)
        self.figures = {"loss": float(loss.detach()), **figures}
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine to a hundredth."""
        s = self.settings
        decayed = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": s.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=s.learning_rate,
            betas=(0.9, 0.95),
        )

        def factor(step: int) -> float:
            if step < s.warmup:
                return (step + 1) / s.warmup
            done = min(1.0, (step - s.warmup) / max(1, s.steps - s.warmup))
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Batches(IterableDataset):
    def __init__(self, part: Pretraining, seed: int, start: int) -> None:
        self.part, self.seed, self.start = part, seed, start

    def __iter__(self) -> Iterator[Any]:
        steps = self.part.settings.steps
        for step in range(self.start, steps):
            self.part.progress = step / steps
            yield self.part.batch(np.random.default_rng((self.seed, step)))


class _Progress(pl.Callback):
    def __init__(self, what: str, steps: int) -> None:
        self.what, self.steps = what, steps

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.context = console.progress(self.what, self.steps, trainer.global_step)
        self.advance = self.context.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.advance(1, " ".join(f"{k} {v:.3f}" for k, v in module.figures.items()))

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)


def pretrain(
    part: Pretraining,
    corpus: Path,
    out: Path,
    *,
    resume: bool = False,
    until: int | None = None,
    overwrite: bool = False,
) -> None:
    """Train ``part`` on ``corpus`` and export it to ``out``.

    ``out.work`` beside it keeps logs and the last checkpoint.

    Args:
        part: what to train.
        corpus: an AudioFolder that ``musictune compose`` wrote.
        out: the folder to make.
        resume: go on from the last checkpoint.
        until: stop at this step of the schedule, to go on another day.
        overwrite: replace ``out`` if it is there.

    Raises:
        InputError: no corpus, nothing to resume, or ``out`` is taken.
        CheckFailed: the loss became non-finite.
    """
    check_target(out, overwrite=overwrite or resume)
    work = out.with_name(out.name + ".work")
    last = work / "checkpoints" / "last.ckpt"
    if resume and not last.is_file():
        raise InputError(f"nothing to resume: no {last}; run without --resume")
    pl.seed_everything(part.settings.seed, verbose=False)
    part.open(Corpus.read(corpus))
    trainer = pl.Trainer(
        max_steps=until or part.settings.steps,
        accelerator=part.settings.device,
        devices=1,
        precision=part.settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        logger=pl.loggers.CSVLogger(work, name="", version="logs"),
        log_every_n_steps=50,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            _Progress(out.name, part.settings.steps),
            pl.callbacks.ModelCheckpoint(
                work / "checkpoints",
                filename="{step}",
                save_last=True,
                save_top_k=1,
                every_n_train_steps=part.settings.checkpoint_every,
            ),
        ],
    )
    trainer.fit(part, ckpt_path=str(last) if resume else None, weights_only=True)
    part.eval()
    with publish_folder(out, overwrite=overwrite or resume) as folder:
        part.export(folder)


def read_part(config: Path, changes: list[str]) -> Pretraining:
    """Build the part that a recipe describes, with ``key=value`` changes on top.

    Raises:
        InputError: no such file, or a key or value that does not fit.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    # Imported so that their short names work in a recipe.
    from musictune.training import (  # noqa: F401
        pretrain_ast,
        pretrain_clap,
        pretrain_codec,
        pretrain_codec_decoder,
        pretrain_judge,
        pretrain_language,
    )

    if not config.is_file():
        raise InputError(f"no recipe {config}; see configs/pretrain_codec.yaml for one")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--part", type=Pretraining)
    try:
        arguments = parser.parse_args(["--config", str(config), *(f"--{c}" for c in changes)])
    except ArgumentError as error:
        raise InputError(f"recipe {config}: {error}") from error
    return parser.instantiate_classes(arguments).part
