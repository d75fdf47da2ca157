"""The Lightning Trainer of a fit, and one run of it."""

import contextlib
import datetime
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import pyro
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from pyrodyn.infer.training.callbacks import KeepBest, SaveCheckpoint
from pyrodyn.infer.training.module import Training
from pyrodyn.infer.training.progress import FitProgress


def trainer_with(
    best: KeepBest,
    *,
    validates: bool,
    stop_patience: int | None,
    max_epochs: int,
    max_minutes: float | None,
    checkpoint: Path | None,
    checkpoint_seconds: float,
    loggers: Sequence[Logger],
    accelerator: str,
    progress: bool,
) -> lightning.Trainer:
    """A Trainer that calls ``best`` and ``loggers``, stops early if ``stop_patience`` is given, and
    writes a checkpoint, with logs in the same folder, if its path is given.
    """
    callbacks: list[Any] = [best]
    if stop_patience is not None:
        # "settled_loss" is logged only after all ramps: early stopping waits for them.
        callbacks.append(EarlyStopping("settled_loss", patience=stop_patience, strict=False))
    if progress:
        callbacks.append(FitProgress(best, max_minutes))
    all_loggers = [*loggers]
    if checkpoint is not None:
        callbacks.append(SaveCheckpoint(checkpoint, checkpoint_seconds))
        # Without a version Lightning numbers the logs: a resumed run does not replace earlier ones.
        logs = checkpoint.parent / "logs"
        all_loggers += [
            CSVLogger(logs, "csv", flush_logs_every_n_steps=1),
            TensorBoardLogger(logs, "tensorboard"),
        ]
    with _without_notices():
        return lightning.Trainer(
            # Lightning's own choice may be Apple's MPS, which has no double precision.
            accelerator=("cuda" if torch.cuda.is_available() else "cpu")
            if accelerator == "auto"
            else accelerator,
            devices=1,
            max_epochs=max_epochs,
            max_time=None if max_minutes is None else datetime.timedelta(minutes=max_minutes),
            callbacks=callbacks,
            logger=all_loggers,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=None if validates else 0,
            log_every_n_steps=1,
            inference_mode=False,
        )


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Suppress Lightning's notices and its warnings about its own use."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        log.setLevel(level)


def run(trainer: lightning.Trainer, training: Training, resumed: Path | None) -> None:
    """Train, from the checkpoint ``resumed`` if any.

    Ctrl-C raises KeyboardInterrupt, where Lightning alone would end the process. Pyro's validation
    of densities is disabled: it has passed in the first evaluation of the loss, costs time in every
    step, and would raise on NaN before `NonFiniteLossError` can name step and site.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pyro.validation_enabled(False), _without_notices():
            trainer.fit(training, ckpt_path=resumed, weights_only=True)
    except SystemExit:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
