"""Minibatches of a recording.

Their order follows from (seed, epoch), so that a run resumed from a checkpoint takes the same steps
as the uninterrupted run.
"""

import math
from collections.abc import Callable, Iterator

import torch

from pyrodyn.data.batch import Batch, Trials


class ShuffledBatches:
    """Minibatches of a recording in an order that follows from (seed, epoch).

    A single batch of all trials has their recorded order.

    Args:
        trials: the recording's tensors.
        batch_size: trials per batch; the last batch of an epoch may be smaller.
        seed: seeds the order.
        epoch: returns the current epoch; called at the start of each pass.
    """

    def __init__(
        self, trials: Trials, batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.trials, self.batch_size, self.seed, self.epoch = trials, batch_size, seed, epoch

    def __len__(self) -> int:
        return math.ceil(len(self.trials) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if len(self) == 1:
            yield self.trials.batch()
            return
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch()))
        order = torch.randperm(len(self.trials), generator=generator)
        device = self.trials.batch().trial.device
        for positions in order.to(device).split(self.batch_size):
            yield self.trials.batch(positions)


class OrderedBatches:
    """All trials of a recording in order."""

    def __init__(self, trials: Trials, batch_size: int) -> None:
        self.trials, self.batch_size = trials, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.trials) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.trials.batches(self.batch_size)


def mixed_seed(seed: int, counter: int) -> int:
    """A different seed for each pair of seed and counter."""
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) % 2**63


def epochs_of(num_steps: int, num_trials: int, batch_size: int) -> int:
    """The smallest number of epochs with at least so many steps."""
    return math.ceil(num_steps / math.ceil(num_trials / batch_size))
