"""Settings of training that change with the step, and the error of a step that is not finite."""

import dataclasses
import math

import torch
from torch import nn

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch

AVERAGING = 8
"""Degree of the polynomial decay of averaged weights: in the average after n steps, the coefficient
of the weights after step i is about proportional to (i / n) ** `AVERAGING`, so that the last ninth
of the steps contributes two thirds. Source: Shamir & Zhang 2013, section 4."""

DECAYS = ("geometric", "cosine")
"""How the learning rate falls."""


@dataclasses.dataclass(frozen=True)
class GrowingHorizon:
    """Score the first bins of every trial, then more, then all of them.

    A deterministic trajectory is determined by its initial state, and the gradient of a late bin is
    propagated through all the bins before it. It is therefore learned from its beginning. Source:
    Sedler, Versteeg & Pandarinath 2023 (5 bins, and 5 more every 150 epochs).

    Attributes:
        first_bins: number of bins scored at first.
        num_steps: training steps after which all bins are scored; until then their number grows
            linearly.
    """

    first_bins: int
    num_steps: int

    def __post_init__(self) -> None:
        check_integer(1, first_bins=self.first_bins, num_steps=self.num_steps)

    def cut(self, batch: Batch, step: int, first_bin: int = 0) -> Batch:
        """The batch at a training step, with later bins left out of the likelihood.

        ``first_bin`` is the first bin that the model generates.
        """
        if step >= self.num_steps:
            return batch
        grown = (batch.num_bins - first_bin - self.first_bins) * step // self.num_steps
        last = first_bin + self.first_bins + max(0, grown)
        early = torch.arange(batch.num_bins, device=batch.scored.device) < last
        return batch.replace(scored=batch.scored & early[:, None])


@dataclasses.dataclass(frozen=True)
class NoiseAnnealing:
    """Leave process noise free at first, then lower an upper limit on its scale.

    While the dynamics are poor, process noise lets the trajectory follow the data. Without a limit
    it may stay larger than necessary, and the dynamics then learn to predict one bin only: without
    noise their trajectories converge to a fixed point. A limit that falls geometrically makes the
    dynamics predict over longer and longer horizons. The limit constrains a parameter, so that the
    objective is still a bound if it was one.

    For `NodeSAE` and `RnnSAE` with process noise.

    Attributes:
        first_step: training step at which the limit of each latent is set to its current noise.
        num_steps: training steps over which the limit then falls; afterwards it is constant.
        factor: ratio of the final limit to the first.
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
        """Training step from which on the limit is constant."""
        return self.first_step + self.num_steps

    def check(self, model: nn.Module) -> None:
        """Raise ValueError for a model without process noise that can be limited."""
        if not hasattr(model, "log_noise_limit"):
            raise ValueError(
                f"NoiseAnnealing limits the process noise of a NodeSAE or RnnSAE built with"
                f" process_noise=True; for this {type(model).__name__} leave the schedule's noise"
                " out"
            )

    @torch.no_grad()
    def apply(self, model: object, step: int) -> None:
        """Lower the model's limit and apply it; to be called once per training step, in order.

        The limit is part of the model's state, so that a resumed run continues with it.
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
    """Learning rate, early stopping, and which weights a fit returns.

    Training stops early, and best weights are kept, only after the horizon is full and the limit on
    the noise is final.

    Attributes:
        learning_rate: Adam's initial step size.
        final_learning_rate: the learning rate at the last of the planned steps; there is then no
            early stopping. With None the learning rate falls on plateaus of the validation loss.
        decay: how the learning rate falls to the final one: ``"geometric"``, by the same factor at
            every step, or ``"cosine"``, along half a period of a cosine.
        warmup_steps: training steps over which the learning rate grows linearly to
            ``learning_rate`` before it falls; needs a ``final_learning_rate``.
        factor: the learning rate is multiplied by this on a plateau of the validation loss.
        patience: training steps without improvement after which the learning rate falls; rounded up
            to full epochs, since the validation loss is computed once per epoch.
        stop_patience: training steps without improvement after which training ends; rounded up to
            full epochs.
        average_weights: whether a running average of the weights over training steps (see
            `AVERAGING`) is validated and returned in place of the weights themselves. It averages
            out noise and oscillations of the steps.
        gradient_clip: largest norm of the gradient of the loss per trial.
        horizon: how many bins are scored at first; None scores all from the start.
        noise: how process noise is limited; None sets no limit.
    """

    learning_rate: float = 4e-3
    final_learning_rate: float | None = None
    decay: str = "geometric"
    warmup_steps: int = 0
    factor: float = 0.5
    patience: int = 100
    stop_patience: int = 400
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
                f" initial learning_rate of {self.learning_rate}"
            )
        if not isinstance(self.average_weights, bool):
            raise ValueError(f"average_weights={self.average_weights!r} must be True or False")
        check_integer(
            0,
            patience=self.patience,
            stop_patience=self.stop_patience,
            warmup_steps=self.warmup_steps,
        )
        if self.decay not in DECAYS:
            raise ValueError(f"decay={self.decay!r} is unknown; it is one of {', '.join(DECAYS)}")
        if self.final_learning_rate is None and (self.warmup_steps or self.decay != DECAYS[0]):
            raise ValueError(
                f"decay={self.decay!r} and warmup_steps={self.warmup_steps} need a"
                " final_learning_rate, without which the learning rate falls on plateaus"
            )

    def scaled_to(self, learning_rate: float) -> "Schedule":
        """The schedule with another initial learning rate, and a final one in proportion."""
        final = self.final_learning_rate
        if final is not None:
            final *= learning_rate / self.learning_rate
        return dataclasses.replace(self, learning_rate=learning_rate, final_learning_rate=final)

    def rate(self, step: int, num_steps: int | float) -> float:
        """The learning rate at a step of so many, given a ``final_learning_rate``."""
        first, last = self.learning_rate, self.final_learning_rate
        assert last is not None
        if step < self.warmup_steps:
            return first * (step + 1) / (self.warmup_steps + 1)
        fraction = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        if self.decay == "cosine":
            return last + (first - last) * (1 + math.cos(math.pi * fraction)) / 2
        return first * (last / first) ** fraction

    @property
    def final_step(self) -> int:
        """Training step from which on neither horizon nor limit on the noise changes."""
        ends = (
            0 if self.horizon is None else self.horizon.num_steps,
            0 if self.noise is None else self.noise.last_step,
        )
        return max(ends)


class NonFiniteLossError(ArithmeticError):
    """NaN or infinity in a training step; the model has the last finite weights.

    Attributes:
        step: the training step.
        site: the first quantity that was not finite: a site's draw, trajectory or log density, a
            parameter, the gradient, or the validation loss.
    """

    def __init__(self, step: int, site: str) -> None:
        super().__init__(
            f"training stopped at step {step}: {site} is not finite; the last good weights are kept"
            " (a lower learning_rate or gradient_clip is the usual remedy)"
        )
        self.step, self.site = step, site
