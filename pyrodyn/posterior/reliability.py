"""Whether the weights, particles or chains that made draws can be relied on."""

import warnings
from collections.abc import Mapping

from torch import Tensor

LARGEST_K = 0.7
"""k-hat above which Pareto-smoothed weights are unreliable (Vehtari et al., JMLR 25:72, 2024)."""

FEWEST_EFFECTIVE = 20
"""Effective draws below which posterior means of a trial are mostly Monte Carlo noise."""

LARGEST_R_HAT = 1.05
"""R-hat above which the chains of a trial have not mixed."""

FEWEST_DESCENDANTS = 20
"""Initial particles with descendants below which a smoother's draws share their initial states."""


class Reliability:
    """Counts of trials whose draws are unreliable, over the batches of a recording.

    Attributes:
        num_trials: trials looked at.
        num_heavy: those with k-hat above `LARGEST_K`.
        num_few: those with fewer than `FEWEST_EFFECTIVE` effective draws.
        num_apart: those with R-hat above `LARGEST_R_HAT`.
        num_degenerate: those with fewer than `FEWEST_DESCENDANTS` initial particles that have
            descendants at the last bin.
    """

    def __init__(self) -> None:
        self.num_trials = self.num_heavy = self.num_few = self.num_apart = self.num_degenerate = 0

    def add(self, diagnostics: Mapping[str, Tensor]) -> None:
        """Count the trials of one batch."""
        effective = diagnostics.get("effective_sample_size")
        if effective is None:
            return
        self.num_trials += effective.numel()
        self.num_few += int((effective < FEWEST_EFFECTIVE).sum())
        if "pareto_k" in diagnostics:
            self.num_heavy += int((diagnostics["pareto_k"] > LARGEST_K).sum())
        if "r_hat" in diagnostics:
            self.num_apart += int((diagnostics["r_hat"] > LARGEST_R_HAT).sum())
        if "first_particles_with_descendants" in diagnostics:
            survivors = diagnostics["first_particles_with_descendants"]
            self.num_degenerate += int((survivors < FEWEST_DESCENDANTS).sum())

    def warn(self, method: str, stacklevel: int = 3) -> None:
        """Warn in one sentence if any trial's draws are unreliable."""
        faults = []
        if self.num_heavy:
            faults.append(f"k-hat is above {LARGEST_K} in {self.num_heavy}")
        if self.num_few:
            what = "draws" if method == "mcmc" else "particles"
            faults.append(
                f"there are fewer than {FEWEST_EFFECTIVE} effective {what} in {self.num_few}"
            )
        if self.num_degenerate:
            faults.append(
                f"fewer than {FEWEST_DESCENDANTS} initial particles have descendants in"
                f" {self.num_degenerate}"
            )
        if self.num_apart:
            faults.append(f"R-hat is above {LARGEST_R_HAT} in {self.num_apart}")
        if not faults:
            return
        remedy = "take method='mcmc', which needs no weights, or more particles"
        if method == "mcmc":
            remedy = "take more draws (num_draws=) and a longer warm-up (num_warmup=)"
        warnings.warn(
            f"draws by method={method!r} are unreliable: {' and '.join(faults)} of"
            f" {self.num_trials} trials; {remedy}",
            stacklevel=stacklevel,
        )
