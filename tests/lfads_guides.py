"""Guides of an LFADS with inferred inputs, whole and in parts, for the tests of `check_guide`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyrodyn.data.batch import Batch

NUM_TRIALS, NUM_BINS, DIM, INPUT_DIM = 6, 8, 4, 2


def normal(*shape: int) -> dist.Normal:
    return dist.Normal(torch.zeros(shape), 1.0)


def g0(batch: Batch) -> None:
    pyro.sample("g0", normal(batch.num_trials, DIM).to_event(1))


def u(batch: Batch, name: str = "u") -> None:
    pyro.sample(name, normal(batch.num_trials, NUM_BINS, INPUT_DIM).to_event(2))


def trials(batch: Batch, dim: int = -1, name: str = "trials") -> pyro.plate:
    return pyro.plate(name, batch.num_trials, dim=dim)


def in_plate(*parts: Callable[[Batch], None]) -> Callable[[Batch], None]:
    """A guide of parts."""

    def guide(batch: Batch) -> None:
        with trials(batch):
            for part in parts:
                part(batch)

    return guide


def sample(name: str, distribution: Callable[[Batch], Any], **infer: Any) -> Callable[..., None]:
    return lambda batch: pyro.sample(name, distribution(batch), infer=infer)


class Amortised(nn.Module):
    """A guide without fault."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2 * DIM)

    def forward(self, batch: Batch) -> None:
        mean, log_scale = self.head(batch.seen.mean(1)).chunk(2, -1)
        with trials(batch):
            pyro.sample("g0", dist.Normal(mean, log_scale.exp()).to_event(1))
            u(batch)

    def by_method(self, batch: Batch) -> None:
        self(batch)
