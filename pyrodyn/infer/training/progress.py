"""The progress of a fit in one line, at a terminal, in a notebook and in a log file."""

import math
import sys
import time
from typing import Any, TextIO

import lightning
from lightning.pytorch.callbacks import ProgressBar

from pyrodyn.infer.training.callbacks import KeepBest

SECONDS_SHOWN, SECONDS_LOGGED = 0.5, 60.0
"""Between two states of the line where it is overwritten, and where each is a line of its own."""


class FitProgress(ProgressBar):
    """One line for the whole fit::

        step 1200 of at most 20000, 0:42, at most 4:18 left; validation loss 231.42,
        best 230.87 (epoch 57)

    The time left is that until the last step or minute allowed, whichever comes first; early
    stopping may end the fit before. At a terminal and in a notebook the line is overwritten; in a
    log file a new one is written every minute.

    Args:
        best: the callback that records the best validation loss.
        max_minutes: limit of the fit's duration, if any.
        stream: where to write; ``sys.stdout`` by default.
    """

    def __init__(
        self, best: KeepBest, max_minutes: float | None, stream: TextIO | None = None
    ) -> None:
        super().__init__()
        self._best, self._max_minutes = best, max_minutes
        self._stream = sys.stdout if stream is None else stream
        self._is_overwritten = self._stream.isatty() or "ipykernel" in sys.modules
        self._is_enabled = True
        self._width = 0
        self._started = self._shown = time.monotonic()
        self._first_step = 0

    def disable(self) -> None:
        """Write nothing from now on (Lightning calls this for all processes but the first)."""
        self._is_enabled = False

    def enable(self) -> None:
        """Write again."""
        self._is_enabled = True

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clock; steps before a resume do not count for the speed."""
        super().on_train_start(trainer, module)
        self._started = self._shown = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        """Show the line if enough time has passed."""
        super().on_train_batch_end(trainer, *arguments)
        pause = SECONDS_SHOWN if self._is_overwritten else SECONDS_LOGGED
        if time.monotonic() - self._shown >= pause:
            self._show(trainer, is_running=True)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Show the final state, and end the line."""
        self._show(trainer, is_running=False)
        if self._is_enabled and self._is_overwritten:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, trainer: lightning.Trainer, is_running: bool) -> None:
        self._shown = time.monotonic()
        if not self._is_enabled:
            return
        line = self._line(trainer, is_running)
        if self._is_overwritten:
            # Blanks erase what is left of a longer line.
            self._stream.write(f"\r{line:<{self._width}}")
            self._width = len(line)
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def _line(self, trainer: lightning.Trainer, is_running: bool) -> str:
        step, elapsed = trainer.global_step, time.monotonic() - self._started
        last_step = _last_step(trainer)
        remaining = [] if self._max_minutes is None else [60 * self._max_minutes - elapsed]
        if last_step is not None and step > self._first_step:
            remaining.append((last_step - step) * elapsed / (step - self._first_step))
        parts = [f"step {step}" + (f" of at most {last_step}" if last_step else "")]
        parts.append(_clock(elapsed))
        if remaining and is_running:
            parts.append(f"at most {_clock(min(remaining))} left")
        return ", ".join(parts) + _losses(trainer, self._best)


def _last_step(trainer: lightning.Trainer) -> int | None:
    """The last step that the limits of steps and epochs allow, if any."""
    batches = trainer.num_training_batches
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(batches):
        limits.append(int(trainer.max_epochs * batches))
    return min(limits, default=None)


def _losses(trainer: lightning.Trainer, best: KeepBest) -> str:
    """The latest losses per trial in nats, and the best validation loss so far."""
    metrics = trainer.callback_metrics
    if "valid_loss" in metrics:
        shown = f"; validation loss {float(metrics['valid_loss']):.2f}"
        if best.best_loss < math.inf:
            shown += f", best {best.best_loss:.2f} (epoch {best.best_epoch})"
        return shown
    return f"; training loss {float(metrics['train_loss']):.2f}" if "train_loss" in metrics else ""


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
