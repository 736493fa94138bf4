"""What happens between steps: a bar, figures on disk, previews, checkpoints, a clean stop."""

from __future__ import annotations

import contextlib
import csv
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from musictune import console
from musictune.training.checkpoints import save_checkpoint
from musictune.training.stepped import Stepped

COLUMNS = ("step", "loss", "held_out_loss", "lr", "seconds")


class AfterStep(pl.Callback):
    """Calls ``after_step`` once per optimiser step, however many passes that takes.

    Attributes:
        columns: of ``metrics.csv``, which it fills through ``module.figures``.
    """

    columns: tuple[str, ...] = ()

    _seen = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Lightning's hook."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        self.after_step(trainer, pl_module)

    def after_step(self, trainer: pl.Trainer, module: Stepped) -> None:
        """``module.step`` steps are done."""


class Metrics(AfterStep):
    """``metrics.csv``, TensorBoard events and the progress bar.

    Columns are ours and those of the other callbacks, which must come before this one. Rows of
    steps after ``module.start`` are dropped first: a resumed run makes them again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.events = folder / "tensorboard"
        self._stack = contextlib.ExitStack()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the files and the bar."""
        from torch.utils.tensorboard import SummaryWriter

        module: Stepped = pl_module
        rows = read_metrics(self.path, module.start)
        self._before = float(rows[-1]["seconds"]) if rows else 0.0
        stream = self._stack.enter_context(self.path.open("w", encoding="utf-8", newline=""))
        others: list[Any] = [c for c in trainer.callbacks if isinstance(c, AfterStep)]  # type: ignore[attr-defined]
        columns = [*COLUMNS, *module.columns, *(n for other in others for n in other.columns)]
        self._rows = csv.DictWriter(stream, columns, extrasaction="ignore")
        self._rows.writeheader()
        self._rows.writerows(rows)
        self._stream = stream
        self._board = SummaryWriter(str(self.events), purge_step=module.start + 1)
        self._stack.callback(self._board.close)
        steps = module.settings.steps
        bar = console.progress("tuning", steps, module.start)
        self._advance = self._stack.enter_context(bar)
        self._began = time.monotonic()
        if not rows:
            self._write(module, {"step": 0, "held_out_loss": module.held_out_loss()})

    def after_step(self, trainer: pl.Trainer, module: Stepped) -> None:
        """One row."""
        step, settings = module.step, module.settings
        passes = module.passes
        means = {name: sum(one[name] for one in passes) / len(passes) for name in passes[0]}
        every = settings.held_out_every
        # What is scored has its loss beside it.
        due = step == settings.steps or (every and step % every == 0) or module.figures
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        held_out = module.held_out_loss() if due else None
        module.passes.clear()
        self._write(module, {"step": step, "held_out_loss": held_out, "lr": rate, **means})
        speed = (step - module.start) / (time.monotonic() - self._began)
        name, value = next(iter(means.items()))
        self._advance(1, f"{name} {value:.3f}, {speed:.1f} steps/s")

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Close what is open, also after an error."""
        self._stack.close()

    def _write(self, module: Stepped, row: dict[str, float | int | None]) -> None:
        row |= module.figures
        module.figures.clear()
        seconds = self._before + time.monotonic() - self._began
        # repr keeps every bit, so that equal files mean equal runs.
        text = {k: repr(v) for k, v in row.items() if v is not None}
        if module.stopped:
            text["stopped"] = module.stopped
        self._rows.writerow({**text, "seconds": f"{seconds:.3f}"})
        self._stream.flush()
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])


class Checkpoints(AfterStep):
    """A checkpoint every so many steps, and one when Ctrl-C or SIGTERM asks to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen for signals, after Lightning has set up its own way of dying."""
        self._asked = self._stack.enter_context(stop_signal())

    def after_step(self, trainer: pl.Trainer, module: Stepped) -> None:
        """Save if it is time, or the last chance."""
        if module.stopped:
            # As after the last step: all that is left is to finish.
            return
        every, step = module.settings.checkpoint_every, module.step
        stopping = self._asked()
        if stopping or (every and step % every == 0 and step < module.settings.steps):
            save_checkpoint(module, trainer.optimizers[0], self.folder)
        if stopping:
            trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Stop listening, also after an error."""
        self._stack.close()


class Previews(AfterStep):
    """Calls ``play(name)`` every so many steps."""

    def __init__(self, play: Callable[[str], None]) -> None:
        self.play = play

    def after_step(self, trainer: pl.Trainer, module: Stepped) -> None:
        """Play if it is time."""
        every = module.settings.preview_every
        if every and module.step % every == 0:
            self.play(f"step-{module.step:06d}")


def read_metrics(path: Path, last: int | None = None) -> list[dict[str, str]]:
    """Rows of ``metrics.csv``, up to step ``last``; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["step"] or "").isdigit()]
    return [row for row in rows if last is None or int(row["step"]) <= last]


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM only makes the yielded function answer True.

    The second interrupts at once. Outside the main thread, where Python handles no signals,
    nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        console.note("stopping after this step; press Ctrl-C again to stop at once")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
