"""How training proceeds, and how it fails."""

import dataclasses
import math

import torch
from torch import nn

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch

AVERAGING = 8
"""Of averaged weights: of n weights on the way the i-th counts about as (i / n) ** `AVERAGING`, so
that the last ninth of them make up two thirds. Source: Shamir & Zhang 2013, section 4."""


@dataclasses.dataclass(frozen=True)
class GrowingHorizon:
    """Score the first bins of every trial, then more, then all of them.

    A path that dynamics take from its first state alone can only be learned from its beginning: the
    gradient of a late bin goes through all the bins before it. Source: Sedler, Versteeg &
    Pandarinath 2023 (5 bins, and 5 more every 150 epochs).

    Attributes:
        first_bins: bins scored at first.
        num_steps: training steps after which all bins are scored; between, their number grows
            linearly.
    """

    first_bins: int
    num_steps: int

    def __post_init__(self) -> None:
        check_integer(1, first_bins=self.first_bins, num_steps=self.num_steps)

    def cut(self, batch: Batch, step: int, first_bin: int = 0) -> Batch:
        """The batch with later bins left out of the likelihood at a training step.

        ``first_bin`` is the first that the model generates.
        """
        if step >= self.num_steps:
            return batch
        grown = (batch.num_bins - first_bin - self.first_bins) * step // self.num_steps
        last = first_bin + self.first_bins + max(0, grown)
        early = torch.arange(batch.num_bins, device=batch.scored.device) < last
        return batch.replace(scored=batch.scored & early[:, None])


@dataclasses.dataclass(frozen=True)
class NoiseAnnealing:
    """Let process noise be as large as it likes at first, then press it down to a share of that.

    Noise lets the data lead the path while the dynamics are poor. Left alone it stays larger than
    it need be, and the dynamics learn no more than to predict one bin: without noise their paths
    come to rest. A limit that falls geometrically makes them predict further and further. It
    limits a parameter; the objective remains the bound that it is.

    For `NodeSAE` and `RnnSAE` with process noise.

    Attributes:
        first_step: training step at which noise is limited to what it then is, per latent.
        num_steps: training steps over which the limit then falls; it stays from there on.
        factor: what the limit is multiplied by in all.
    """

    first_step: int
    num_steps: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_integer(0, first_step=self.first_step)
        check_integer(1, num_steps=self.num_steps)
        if not 0 < self.factor < 1:
            raise ValueError(f"factor={self.factor}; noise falls by a factor between 0 and 1")

    @property
    def last_step(self) -> int:
        """Training step from which on the limit stays."""
        return self.first_step + self.num_steps

    def check(self, model: nn.Module) -> None:
        """Refuse a model whose noise this cannot limit."""
        if not hasattr(model, "log_noise_limit"):
            raise ValueError(
                f"NoiseAnnealing presses down the process noise of a NodeSAE or RnnSAE built with"
                f" process_noise=True; for this {type(model).__name__} leave the schedule's noise"
                " out"
            )

    @torch.no_grad()
    def apply(self, model: object, step: int) -> None:
        """Lower the model's limit, one call per training step in order, and hold its noise to it.

        The limit is part of the model's state, so that a resumed run goes on from where it was.
        """
        if step < self.first_step:
            return
        assert isinstance(model, nn.Module)
        noise, limit = model.log_noise, model.log_noise_limit
        assert isinstance(noise, nn.Parameter) and isinstance(limit, torch.Tensor)
        if step == self.first_step:
            limit.copy_(noise)
        elif step <= self.last_step:
            limit.add_(math.log(self.factor) / self.num_steps)
        noise.copy_(torch.minimum(noise, limit))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate falls, when training ends, and with which weights.

    Training ends, and weights are kept, only after horizon and noise have arrived.

    Attributes:
        learning_rate: Adam's initial step size.
        final_learning_rate: to which it falls geometrically over ``max_epochs``, which are then
            run to the end, whatever the validation loss; None leaves it to plateaus of that.
        factor: the learning rate is multiplied by this on a plateau of the validation loss.
        patience: epochs without improvement that make a plateau.
        stop_patience: epochs without improvement after which training ends.
        average_weights: whether validation scores, and a fit ends with, a running average of the
            weights on the way (`AVERAGING`) in place of the weights themselves. Steps that are
            noisy, or go to and fro, end up in the middle of where they are.
        gradient_clip: largest norm of the gradient of the loss per trial.
        horizon: how many bins are scored at first; None scores all from the start.
        noise: how process noise falls; None leaves it to the objective alone.
    """

    learning_rate: float = 4e-3
    final_learning_rate: float | None = None
    factor: float = 0.5
    patience: int = 15
    stop_patience: int = 60
    average_weights: bool = False
    gradient_clip: float = 10.0
    horizon: GrowingHorizon | None = None
    noise: NoiseAnnealing | None = None

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be a positive number")
        if (
            self.final_learning_rate is not None
            and not 0 < self.final_learning_rate <= self.learning_rate
        ):
            raise ValueError(
                f"final_learning_rate={self.final_learning_rate} must be positive and at most the"
                f" learning_rate of {self.learning_rate}, from which it is reached"
            )
        if not isinstance(self.average_weights, bool):
            raise ValueError(f"average_weights={self.average_weights!r} is True or False")

    def rate(self, share: float) -> float:
        """The learning rate after a fraction of all steps, on its way to the final one."""
        assert self.final_learning_rate is not None
        return self.learning_rate * (self.final_learning_rate / self.learning_rate) ** share

    @property
    def final_step(self) -> int:
        """Training step from which on neither horizon nor noise changes."""
        ends = (
            0 if self.horizon is None else self.horizon.num_steps,
            0 if self.noise is None else self.noise.last_step,
        )
        return max(ends)


class NonFiniteLossError(ArithmeticError):
    """Training met NaN or infinity; the model holds the last good weights.

    Attributes:
        step: training step at which it happened.
        site: the first site whose draw or density was not finite, or what else was not finite.
    """

    def __init__(self, step: int, site: str) -> None:
        super().__init__(
            f"training stopped at step {step}: {site} is not finite; the last good weights are kept"
            " (a lower learning_rate or gradient_clip is the usual remedy)"
        )
        self.step, self.site = step, site
