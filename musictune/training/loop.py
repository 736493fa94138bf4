"""One training run in Lightning: quiet, with our checkpoints and our way of stopping."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from musictune.training.callbacks import Checkpoints, Metrics
from musictune.training.stepped import Stepped


class Interrupted(KeyboardInterrupt):
    """Stopped on request, after a checkpoint."""


def fit(
    module: Stepped,
    batches: IterableDataset[Any],
    folder: Path,
    device: torch.device,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train ``module`` from its ``start`` to ``settings.steps``, or until a callback stops it.

    Args:
        module: with what it trains; stays on ``device``.
        batches: the stream from ``start * accumulate`` on.
        folder: gets ``metrics.csv``, ``tensorboard/`` and ``checkpoints/``.
        device: where to compute.
        callbacks: more of them, called before the figures are written.

    Raises:
        CheckFailed: a loss or gradient became no number.
        KeyboardInterrupt: stopped at once by a second Ctrl-C, without a checkpoint.
        Interrupted: stopped by Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    settings = module.settings
    if module.start >= settings.steps:
        return
    mixed = computes_in_bf16(settings.precision, device) and not module.half
    with _quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision="bf16-mixed" if mixed else "32-true",
            max_steps=settings.steps - module.start,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[*callbacks, Metrics(folder), Checkpoints(folder / "checkpoints")],
        )
        try:
            trainer.fit(module, DataLoader(batches, batch_size=None))
        except SystemExit as error:
            # What Lightning makes of a KeyboardInterrupt, here the second Ctrl-C.
            raise KeyboardInterrupt from error
        # Lightning moves a module off a GPU when it is done.
        module.to(device)
        reached = module.start + trainer.global_step
    if reached < settings.steps and not module.stopped:
        raise Interrupted(f"stopped at step {reached} of {settings.steps}")


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether ``precision`` means bf16 on ``device``: ``auto`` does where it is in hardware."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    # Without these instructions bf16 on a CPU is emulated, and slower than float32.
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks about hardware, workers and its own products."""
    names = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
