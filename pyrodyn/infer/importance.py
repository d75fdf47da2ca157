"""Importance sampling: a guide's draws, weighed into the posterior's::

    w_k = p(x, z_k) / q(z_k | x),     log p(x) ~ log mean_k w_k

trial by trial. The weights' largest ones are smoothed by a generalised Pareto law, whose shape
k-hat tells whether they can be trusted (Vehtari et al., JMLR 25:72, 2024): below 0.7 they can;
above, the guide misses mass of the posterior, or K is too small for its dimension.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from jaxtyping import Float, Int
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.importance_weighted import local_draws, weigh
from pyrodyn.infer.resampling import effective_sample_size
from pyrodyn.infer.traces import Program, latent_sites


class ImportanceSample(NamedTuple):
    """Weighed draws of a guide.

    Attributes:
        sites: latent sites by name, ``(particle, trial, *event)``.
        log_weights: log w, unnormalised.
        smoothed: log of the Pareto-smoothed weights, normalised over particles.
        pareto_k: k-hat per trial.
        effective_sample_size: of the smoothed weights.
        log_evidence: log p(x) per trial, from the unsmoothed weights, whose mean is unbiased.
        log_evidence_error: its standard error (that of the mean weight, relative to the mean).
    """

    sites: dict[str, Tensor]
    log_weights: Float[Tensor, "particle trial"]
    smoothed: Float[Tensor, "particle trial"]
    pareto_k: Float[Tensor, " trial"]
    effective_sample_size: Float[Tensor, " trial"]
    log_evidence: Float[Tensor, " trial"]
    log_evidence_error: Float[Tensor, " trial"]

    def resampled(self, num_draws: int) -> Int[Tensor, "draw trial"]:
        """Which particles to take as ``num_draws`` draws of every trial's posterior."""
        weights = self.smoothed.exp().T
        return torch.multinomial(weights, num_draws, replacement=True).T


@torch.no_grad()
def importance_sample(
    model: Program, guide: Program, batch: Batch, num_particles: int = 1000
) -> ImportanceSample:
    """Weigh draws of a guide.

    Args:
        model: a model of the zoo or any Pyro program with the plate of trials at dim -1.
        guide: its guide; every latent site must lie inside the plate over trials.
        batch: trials.
        num_particles: K; the smoothing needs some 100.

    Raises:
        ValueError: for too few particles, or a guide with sites that all trials share.
    """
    if num_particles < 2:
        raise ValueError(f"num_particles={num_particles}; weights need at least 2 to be compared")
    drawn = local_draws(guide, batch, num_particles)
    weighed = weigh(model, drawn, drawn, batch, num_particles)
    shape = weighed.log_weights.shape
    sites: dict[str, Any] = {}
    for name in latent_sites(drawn):
        site = drawn.nodes[name]
        if not any(frame.dim == -1 for frame in site["cond_indep_stack"]):
            raise ValueError(
                f"site {name!r} is shared by all trials, so no trial has weights of its own;"
                " importance_sample is for guides whose sites lie in the plate over trials"
            )
        value = site["value"]
        sites[name] = value.expand(*shape, *value.shape[value.ndim - site["fn"].event_dim :])
    log_weights = weighed.log_weights
    by_trial = log_weights.T.double().cpu().contiguous().numpy()
    # psislw is written for leave-one-out, whose weights are 1 / likelihood: it takes -log w.
    smoothed, pareto_k = array_stats.psislw(-by_trial, axis=-1)
    smoothed_weights = torch.from_numpy(np.asarray(smoothed).T.copy()).to(log_weights)
    weights = torch.softmax(log_weights, 0)
    return ImportanceSample(
        sites=sites,
        log_weights=log_weights,
        smoothed=torch.log_softmax(smoothed_weights, 0),
        pareto_k=torch.from_numpy(np.asarray(pareto_k)).to(log_weights),
        effective_sample_size=effective_sample_size(smoothed_weights),
        log_evidence=log_weights.logsumexp(0) - math.log(num_particles),
        log_evidence_error=(weights.square().sum(0) - 1 / num_particles).clamp_min(0).sqrt(),
    )
