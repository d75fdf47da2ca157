"""Whether importance weights carry the draws that were made with them."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST_K = 0.7
"""k-hat above which Pareto-smoothed weights are unreliable (Vehtari et al., JMLR 25:72, 2024)."""

FEWEST_EFFECTIVE = 20
"""Effective draws below which posterior means of a trial are mostly Monte Carlo noise."""


class Reliability:
    """Counts of trials whose weights are unreliable, over the batches of a recording.

    Attributes:
        num_trials: trials looked at.
        num_heavy: those with k-hat above `LARGEST_K`.
        num_few: those with fewer than `FEWEST_EFFECTIVE` effective draws.
    """

    def __init__(self) -> None:
        self.num_trials = self.num_heavy = self.num_few = 0

    def add(self, diagnostics: Mapping[str, Tensor]) -> None:
        """Count the trials of one batch."""
        effective = diagnostics.get("effective_sample_size")
        if effective is None:
            return
        heavy = diagnostics.get("pareto_k", torch.zeros_like(effective)) > LARGEST_K
        self.num_trials += effective.numel()
        self.num_heavy += int(heavy.sum())
        self.num_few += int((effective < FEWEST_EFFECTIVE).sum())

    def warn(self, method: str, stacklevel: int = 3) -> None:
        """Warn in one sentence if any trial's weights are unreliable."""
        faults = []
        if self.num_heavy:
            faults.append(f"k-hat is above {LARGEST_K} in {self.num_heavy}")
        if self.num_few:
            fewest = f"fewer than {FEWEST_EFFECTIVE} effective particles"
            faults.append(f"there are {fewest} in {self.num_few}")
        if faults:
            warnings.warn(
                f"draws by method={method!r} are unreliable: {' and '.join(faults)} of"
                f" {self.num_trials} trials; take more particles, or compare with another method",
                stacklevel=stacklevel,
            )
