"""Draws that another sampler made, such as Pyro's NUTS and HMC, as the draws of a tree."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.traces import is_local, latent_sites, traced
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.draws import replayed
from pyrodyn.posterior.sites import Draws


class GivenDraws:
    """Draws of every latent site for all trials of a recording, checked against the model.

    Args:
        model: the model.
        recording: its trials.
        draws: by site, ``(chain, draw, trial, *event)``; ``(chain, draw, *event)`` for sites that
            all trials share.

    Attributes:
        num_chains: number of chains.
        num_draws: draws of all chains together.

    Raises:
        ValueError: for sites that are missing or not the model's, shapes that do not fit, and
            values that are not finite.
    """

    def __init__(
        self, model: LatentDynamics, recording: xr.Dataset, draws: Mapping[str, Any]
    ) -> None:
        self.model = model
        if not isinstance(draws, Mapping):
            raise ValueError(
                f"draws is a {type(draws).__name__}; give a dict of arrays by latent site, such as"
                " mcmc.get_samples(group_by_chain=True)"
            )
        everything = model.trials_of(recording).batch()
        with torch.no_grad():
            trace = traced(model, everything.unobserved())
        sites = [name for name in latent_sites(trace) if name != "x"]
        if set(draws) != set(sites):
            raise ValueError(
                f"draws holds {', '.join(sorted(map(str, draws))) or 'nothing'}; the latent sites"
                f" of this {type(model).__name__} are {', '.join(sites)}"
            )
        self._is_local = {name: is_local(trace.nodes[name]) for name in sites}
        self._event_dim = {name: trace.nodes[name]["fn"].event_dim for name in sites}
        self._values: dict[str, Tensor] = {}
        leading: tuple[int, ...] | None = None
        for name in sites:
            value = torch.as_tensor(np.asarray(_detached(draws[name])))
            event = tuple(trace.nodes[name]["value"].shape)
            if value.ndim < 2 or tuple(value.shape[2:]) != event or 0 in value.shape[:2]:
                raise ValueError(
                    f"draws of {name!r} have the shape {tuple(value.shape)}; they must have"
                    f" (chain, draw, {', '.join(map(str, event))})"
                )
            if leading not in (None, tuple(value.shape[:2])):
                raise ValueError(
                    f"draws of {name!r} have {value.shape[0]} chains of {value.shape[1]};"
                    f" those of {sites[0]!r} have {leading[0]} of {leading[1]}"
                )
            leading = (value.shape[0], value.shape[1])
            if not value.isfinite().all():
                where = tuple((~value.isfinite()).nonzero()[0].tolist())
                raise ValueError(f"draws of {name!r} are not finite at {where}")
            self._values[name] = value.to(everything.seen).flatten(0, 1)
        assert leading is not None
        self.num_chains, self.num_draws = leading[0], leading[0] * leading[1]

    @torch.no_grad()
    def __call__(self, batch: Batch, num_draws: int) -> Draws:
        """The draws for the trials of a batch, replayed by the model."""
        sites = {}
        for name, value in self._values.items():
            if self._is_local[name]:
                sites[name] = value[:, batch.trial]
            else:
                num_batch_dims = value.ndim - 1 - self._event_dim[name]
                # Under the plate over draws at dim -2 a site outside any other has a dim of size 1.
                sites[name] = value if num_batch_dims else value[:, None]
        return replayed(self.model, batch, sites)


def _detached(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
