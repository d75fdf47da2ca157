"""The Lightning module that `fit` trains: an objective on a recording.

Everything random in a training step follows from (seed, step).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning
import torch
import xarray as xr
from torch import Tensor, nn

from pyrodyn.data.batch import Batch, Transform, Trials, at_step
from pyrodyn.infer.objectives.objective import Loss
from pyrodyn.infer.traces import latent_sites, paired_traces, priors_of
from pyrodyn.infer.training.batches import (
    OrderedBatches,
    ShuffledBatches,
    epochs_of,
    mixed_seed,
)
from pyrodyn.infer.training.checkpoint import IDENTITY
from pyrodyn.infer.training.finite import FiniteCheck
from pyrodyn.infer.training.schedule import NonFiniteLossError, Schedule
from pyrodyn.infer.training.weight_average import WeightAverage
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.nn.solvers import DivergenceError


class LastStep(NamedTuple):
    """The last training step, cached until the next so that a failure can be explained.

    Attributes:
        original: the batch before transforms.
        batch: the batch whose loss was computed.
        loss: the loss per trial.
        step: the training step.
    """

    original: Batch
    batch: Batch
    loss: Tensor
    step: int


class Training(lightning.LightningModule):
    """An objective trained on a recording.

    Losses are reported per trial and in nats. The validation loss uses the objective's final
    weights and no training transforms, so that it is a bound if the objective is one.

    Args:
        loss: the objective of model and guide.
        train: recording to fit.
        valid: recording to validate on.
        transforms: applied to each training batch, in order.
        valid_transforms: applied to each validation batch, in order.
        batch_size: trials per training step and per validation batch.
        schedule: learning rates, the growing horizon and the annealing of process noise.
        first_bin: the first bin that the model generates.
        seed: seeds the order of trials, masks and noise.
        identity: identifies the run in its checkpoints; None for a run that writes none.
    """

    def __init__(
        self,
        loss: Loss,
        train: xr.Dataset,
        valid: xr.Dataset | None,
        transforms: Sequence[Transform],
        valid_transforms: Sequence[Transform],
        batch_size: int,
        schedule: Schedule,
        first_bin: int,
        seed: int,
        identity: dict[str, str] | None,
    ) -> None:
        super().__init__()
        self.loss, self.identity = loss, identity
        self._train, self._valid = train, valid
        self._transforms, self._valid_transforms = transforms, valid_transforms
        self._batch_size, self._schedule, self._seed = batch_size, schedule, seed
        self._first_bin = first_bin
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._finite = FiniteCheck[LastStep]()
        self._average = WeightAverage(loss) if schedule.average_weights else None

    def train_dataloader(self) -> ShuffledBatches:
        """Minibatches of the training recording."""
        trials = self._trials(self._train)
        return ShuffledBatches(trials, self._batch_size, self._seed, lambda: self.current_epoch)

    def val_dataloader(self) -> OrderedBatches:
        """The validation recording in order; Lightning calls this only if there is one."""
        assert self._valid is not None
        return OrderedBatches(self._trials(self._valid), self._batch_size)

    def _trials(self, recording: xr.Dataset) -> Trials:
        """A recording's tensors, on the device and in the precision of the parameters."""
        return Trials(recording, self.device, next(self.loss.parameters()).dtype)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the identity of the run to its checkpoint."""
        checkpoint[IDENTITY] = self.identity

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """The batch itself: it is indexed from tensors that are on the device already."""
        return batch

    def configure_optimizers(self) -> Any:
        """Adam; with a validation recording and no ``final_learning_rate`` the learning rate falls
        on plateaus of the validation loss.
        """
        optimizer = torch.optim.Adam(
            [p for p in self.loss.parameters() if p.requires_grad],
            lr=self._schedule.learning_rate,
            fused=True,
        )
        if self._valid is None or self._schedule.final_learning_rate is not None:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=self._schedule.factor,
            patience=epochs_of(
                self._schedule.patience, self._train.sizes["trial"], self._batch_size
            ),
            min_lr=1e-5,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "valid_loss"},
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Does nothing: Lightning would take this step after writing the epoch's checkpoint."""

    @property
    def _ramps_have_ended(self) -> bool:
        ends = self.loss.objective.final_step, self._schedule.final_step
        return self.global_step >= max(ends)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss per trial."""
        torch.manual_seed(mixed_seed(self._seed, self.global_step))
        if self._schedule.noise is not None:
            self._schedule.noise.apply(self.loss.model, self.global_step)
        if self._schedule.final_learning_rate is not None:
            num_steps = self.trainer.estimated_stepping_batches
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self._schedule.rate(self.global_step, num_steps)
        original = batch
        for transform in self._transforms:
            batch = at_step(transform, self.global_step)(batch)
        if self._schedule.horizon is not None:
            batch = self._schedule.horizon.cut(batch, self.global_step, self._first_bin)
        with self._divergence_named(batch):
            evaluation = self.loss.evaluate(batch, self.global_step)
        num_represented = batch.num_trials * batch.weight
        loss = evaluation.loss / num_represented
        self._last = LastStep(original, batch, loss.detach(), self.global_step)
        self._add("train_loss", loss, batch.num_trials)
        for name, value in evaluation.logged.items():
            self._add(name, value / num_represented, batch.num_trials)
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the gradient; raise if loss or gradient is not finite, before the weights change, on
        a GPU one step later.
        """
        norm = nn.utils.clip_grad_norm_(self.loss.parameters(), self._schedule.gradient_clip)
        is_finite = torch.isfinite(norm + self._last.loss)
        self._raise_for(self._finite.add(self._last, is_finite, optimizer))

    def on_train_end(self) -> None:
        """Raise if the last step was not finite."""
        self._raise_for(self._finite.last())

    def _raise_for(self, failed: LastStep | None) -> None:
        if failed is not None:
            raise NonFiniteLossError(failed.step, self._non_finite_site(failed))

    def on_train_batch_end(self, *_: Any) -> None:
        """Include the new weights in their running average."""
        if self._average is not None:
            self._average.update(self.loss, self.global_step)

    def take_average(self) -> None:
        """Replace the weights by their running average, if the schedule asks for one."""
        if self._average is not None:
            self._average.copy_to(self.loss)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within the context the loss has the averaged weights, if the schedule asks for them.

        Weights and averages are exchanged in place, because a guide may refer to the very
        parameters that are trained.
        """
        if self._average is None:
            yield
            return
        self._average.swap(self.loss)
        try:
            yield
        finally:
            self._average.swap(self.loss)

    def on_validation_epoch_start(self) -> None:
        """Use the same random numbers at every validation, so that epochs are comparable."""
        self._raise_for(self._finite.last())
        torch.manual_seed(mixed_seed(self._seed, -1))  # every training step seeds its own

    def validation_step(self, batch: Batch, index: int) -> None:
        """Add a batch to the validation loss."""
        for transform in self._valid_transforms:
            batch = transform(batch)
        with torch.no_grad(), self._averaged(), self._divergence_named(batch):
            loss = self.loss(batch) / batch.num_trials
        self._add("valid_loss", loss, batch.num_trials)

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss, also as ``settled_loss`` once all ramps have ended."""
        valid_loss = self._log_mean("valid_loss")
        if not torch.isfinite(valid_loss):
            raise NonFiniteLossError(self.global_step, "the validation loss")
        if self._ramps_have_ended:
            self.log("settled_loss", valid_loss, logger=False)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means and lower the learning rate on a plateau."""
        self._raise_for(self._finite.last())
        for name in list(self._sums):
            self._log_mean(name)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        plateau: Any = self.lr_schedulers()
        if plateau is not None and self._ramps_have_ended:
            plateau.step(self.trainer.callback_metrics["valid_loss"])

    @contextlib.contextmanager
    def _divergence_named(self, batch: Batch) -> Iterator[None]:
        """A divergence in an adaptive solver ends training like a trajectory that is not finite."""
        try:
            yield
        except DivergenceError as problem:
            what = f"the trajectory of trial {int(batch.trial[problem.row])}"
            raise NonFiniteLossError(self.global_step, what) from problem

    def _add(self, name: str, value: Tensor, count: int) -> None:
        """Accumulate a mean over the epoch's trials, which is logged once per epoch."""
        total, number = value.detach() * count, count
        if name in self._sums:
            total, number = self._sums[name][0] + total, self._sums[name][1] + count
        self._sums[name] = total, number

    def _log_mean(self, name: str) -> Tensor:
        total, count = self._sums.pop(name)
        mean = total / count
        self.log(name, mean, prog_bar=name.endswith("loss"))
        return mean

    def _non_finite_site(self, failed: LastStep) -> str:
        """The first quantity of the failed step, in order of computation, that is not finite."""
        for name, parameter in self.loss.named_parameters():
            if not torch.isfinite(parameter).all():
                return f"parameter {name}"
        torch.manual_seed(mixed_seed(self._seed, failed.step))
        for transform in self._transforms:  # which advance the random number generator
            at_step(transform, failed.step)(failed.original)
        with torch.no_grad():
            guide_trace, model_trace = paired_traces(
                self.loss.model,
                self.loss.guide,
                failed.batch,
                1 if priors_of(self.loss.model) else self.loss.objective.num_particles,
            )
        for name in latent_sites(guide_trace):
            value = guide_trace.nodes[name]["value"]
            if not torch.isfinite(value).all():
                return f"the guide's draw of site {name!r}{self._place(name, value, failed)}"
        for name, site in model_trace.nodes.items():
            is_computed = site["type"] == "sample" and site["infer"].get("_deterministic")
            if is_computed and not torch.isfinite(site["value"]).all():
                place = self._place(name, site["value"], failed)
                return f"the trajectory of site {name!r}{place}"
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and not torch.isfinite(site["log_prob"]).all():
                    return f"the log density of site {name!r}"
        return "the gradient"

    def _place(self, name: str, value: Tensor, failed: LastStep) -> str:
        """Trial and bin in which a trajectory is not finite for the first time."""
        model = self.loss.model
        if not isinstance(model, LatentDynamics) or model.site_dims.get(name, ())[:1] != ("time",):
            return ""
        is_invalid = ~torch.isfinite(value).all(-1)
        is_invalid = is_invalid.reshape(-1, *is_invalid.shape[-2:]).any(0)  # of any particle
        first = int(is_invalid.any(0).nonzero()[0])
        trial = int(failed.batch.trial[is_invalid[:, first].nonzero()[0]])
        return f" in trial {trial} from bin {first + model.first_bin} on"
