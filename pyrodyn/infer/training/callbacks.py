"""Callbacks of the Trainer: the best weights are kept, and the training state is written."""

import math
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor


class KeepBest(Checkpoint):
    """Keeps the weights of the lowest settled validation loss, and the history of all epochs.

    Both travel in the checkpoint, so they survive a kill. (Lightning calls what is a `Checkpoint`
    last at the end of an epoch, when all of its metrics are known.)
    """

    # Named one by one: Lightning hangs its own methods on a callback.
    _kept = ("best_loss", "best_epoch", "best_weights", "first_epoch", "history")

    def __init__(self) -> None:
        self.best_loss = math.inf
        self.best_epoch = -1
        self.first_epoch = -1  # whose loss settled
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    @property
    def kept_epoch(self) -> int:
        """Epoch of the weights that a fit ends with: the last where no loss settled."""
        return self.best_epoch if self.best_weights else len(self.history) - 1

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Append the epoch's metrics; keep its weights if they are the best yet."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        settled = metrics.pop("settled_loss", math.inf)
        self.history.append(metrics)
        if self.first_epoch < 0 and settled < math.inf:
            self.first_epoch = trainer.current_epoch
        if settled < self.best_loss:
            self.best_loss, self.best_epoch = settled, trainer.current_epoch
            state = module.state_dict()
            self.best_weights = {name: tensor.detach().clone() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {name: getattr(self, name) for name in self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        for name in self._kept:
            setattr(self, name, state_dict[name])


class SaveCheckpoint(Checkpoint):
    """Writes the whole training state: after the first epoch, then at most every ``seconds`` at the
    end of an epoch, and after the run.

    A run whose time is up within an epoch is not written: what goes on from there would miss the
    rest of that epoch. The checkpoint of the epoch before stays.

    Lightning writes beside the target and renames: an interrupted write leaves the last good file.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._last = -math.inf

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Must come after `KeepBest` in the list of callbacks, to hold this epoch's record."""
        if time.monotonic() - self._last >= self.seconds:
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write what the run ends with."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step % int(trainer.num_training_batches) == 0:
            trainer.save_checkpoint(self.path)
            self._last = time.monotonic()
