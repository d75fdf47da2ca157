"""Callbacks of the Trainer: one keeps the best weights, one writes checkpoints."""

import math
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor


class KeepBest(Checkpoint):
    """Keeps the weights of the lowest settled validation loss, and the history of all epochs.

    Both are part of the checkpoint. (Lightning calls a `Checkpoint` after all other callbacks at
    the end of an epoch, when all metrics of the epoch are known.)
    """

    # Listed by name, because Lightning adds attributes of its own to a callback.
    _kept = ("best_loss", "best_epoch", "best_weights", "first_epoch", "history")

    def __init__(self) -> None:
        self.best_loss = math.inf
        self.best_epoch = -1
        self.first_epoch = -1  # with a settled loss
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    @property
    def kept_epoch(self) -> int:
        """Epoch of the weights that a fit returns: the best, or the last if no loss has settled."""
        return self.best_epoch if self.best_weights else len(self.history) - 1

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Append the epoch's metrics; keep its weights if they are the best so far."""
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
        """Best weights and history, for the checkpoint."""
        return {name: getattr(self, name) for name in self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore best weights and history from a checkpoint."""
        for name in self._kept:
            setattr(self, name, state_dict[name])


class SaveCheckpoint(Checkpoint):
    """Writes the training state after the first epoch, then at the end of an epoch if ``seconds``
    have passed since the last time, and after the run.

    The state in the middle of an epoch, where ``max_minutes`` may end a run, is not written: a
    resumed run would skip the rest of that epoch. The checkpoint of the previous epoch remains.

    Lightning writes a temporary file and renames it: after an interrupted write the previous
    checkpoint is intact.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._last = -math.inf

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Must come after `KeepBest` in the list of callbacks, to include this epoch's metrics."""
        if time.monotonic() - self._last >= self.seconds:
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the final state."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step % int(trainer.num_training_batches) == 0:
            trainer.save_checkpoint(self.path)
            self._last = time.monotonic()
