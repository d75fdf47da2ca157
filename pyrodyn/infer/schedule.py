"""How training proceeds, and how it fails."""

import dataclasses

import torch

from pyrodyn.data.batch import Batch


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
        if self.first_bins < 1 or self.num_steps < 1:
            raise ValueError(
                f"first_bins={self.first_bins} and num_steps={self.num_steps} must be at least 1"
            )

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
class Schedule:
    """How the learning rate falls and when training ends.

    Attributes:
        learning_rate: Adam's initial step size.
        factor: the learning rate is multiplied by this on a plateau of the validation loss.
        patience: epochs without improvement that make a plateau.
        stop_patience: epochs without improvement after which training ends.
        gradient_clip: largest norm of the gradient of the loss per trial.
        horizon: how many bins are scored at first; None scores all from the start.
    """

    learning_rate: float = 4e-3
    factor: float = 0.5
    patience: int = 15
    stop_patience: int = 60
    gradient_clip: float = 10.0
    horizon: GrowingHorizon | None = None


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
