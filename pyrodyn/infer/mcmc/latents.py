"""Posterior draws of the latents of every trial by Hamiltonian Monte Carlo.

All latent sites of a trial make one vector y of real numbers: a site with constrained support is
mapped to them by Pyro's bijection, whose log determinant enters the density::

    L(y) = log p(z, x) + log|dz/dy|,      x: the entries that the encoder may see

Chains start at draws of the guide, and are whitened by these at first (`hamiltonian`). The guide
needs no density; where it puts all draws on one point, the prior's standard deviation takes the
place of theirs.

A path with process noise stays in its own coordinates. There the densities of all its bins are
computed at once, whereas coordinates of the noise would roll the process bin by bin at every
step; and the whitening by the curvature takes its correlations along time into account.
"""

from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from arviz_stats.base import array_stats
from jaxtyping import Float
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.frozen import frozen
from pyrodyn.infer.mcmc.hamiltonian import hamiltonian_monte_carlo
from pyrodyn.infer.traces import (
    PARTICLES,
    Program,
    guide_program,
    is_local,
    latent_sites,
    module_of,
    observed_sites,
    traced,
    with_particles,
)
from pyrodyn.models.latent_dynamics import LatentDynamics

NUM_CHAINS, NUM_WARMUP, NUM_LEAPFROG = 4, 100, 5

NUM_INITIAL = 64
"""Draws of the guide from which starts and standard deviations are taken."""

FEWEST_DRAWS = 4
"""Per chain, which R-hat needs."""


class MCMCSample(NamedTuple):
    """Draws of the latents, chains kept.

    Attributes:
        sites: latent sites by name, ``(chain, draw, trial, *event)``.
        r_hat: of the log joint density L, rank-normalised and split.
        effective_sample_size: of L in the bulk, of all chains together.
        acceptance: mean acceptance probability.
        divergences: divergent trajectories of all chains.
        step_size: of the leapfrog steps.
    """

    sites: dict[str, Tensor]
    r_hat: Float[Tensor, " trial"]
    effective_sample_size: Float[Tensor, " trial"]
    acceptance: Float[Tensor, " trial"]
    divergences: Float[Tensor, " trial"]
    step_size: Float[Tensor, " trial"]


class LogJoint:
    """L of a batch as a function of one real vector per chain and trial.

    Args:
        model: the model.
        batch: the trials; their scored entries are conditioned on.

    Raises:
        ValueError: for latent sites that all trials share or that are discrete.
    """

    def __init__(self, model: LatentDynamics, batch: Batch) -> None:
        model.require_latents("Hamiltonian Monte Carlo")
        self.model, self.batch = model, batch
        with torch.no_grad():
            prior = traced(with_particles(model, 2), batch)
        self.sites = latent_sites(prior)
        self.maps: dict[str, Any] = {}
        self.shapes: dict[str, torch.Size] = {}
        for name in self.sites:
            site = prior.nodes[name]
            if not is_local(site):
                raise ValueError(
                    f"this method does not draw {name!r} of the model, which all trials share:"
                    " take method='guide', with a guide that does"
                )
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"the latent site {name!r} is discrete, and Hamiltonian Monte Carlo moves real"
                    " numbers: take method='importance'"
                )
            self.maps[name] = biject_to(site["fn"].support)
            value = site["value"].expand(2, batch.num_trials, *site["fn"].event_shape)
            self.shapes[name] = self.maps[name].inv(value).shape[2:]

    def __call__(self, y: Float[Tensor, "chain trial dim"]) -> Float[Tensor, "chain trial"]:
        """L."""
        shape = y.shape[:2]
        total = y.new_zeros(shape)
        values = {}
        for name, real in self._split(y).items():
            mapping = self.maps[name]
            values[name] = mapping(real)
            log_det = mapping.log_abs_det_jacobian(real, values[name])
            total = total + log_det.reshape(*shape, -1).sum(-1)
        chains = pyro.plate(PARTICLES, len(y), dim=-2)
        trace = traced(poutine.condition(chains(self.model), data=values), self.batch)
        trace.compute_log_prob()
        # In a fixed order: sums of floats depend on it, and the order of a set on the process.
        for name in dict.fromkeys([*self.sites, *observed_sites(trace)]):
            if is_local(trace.nodes[name]):
                total = total + trace.nodes[name]["log_prob"]
        return total

    def vector(self, trace: poutine.Trace, num_draws: int) -> Float[Tensor, "draw trial dim"]:
        """The latent sites of a trace of so many draws as vectors."""
        shape, parts = (num_draws, self.batch.num_trials), []
        for name in self.sites:
            value = trace.nodes[name]["value"].detach()
            event_dim = trace.nodes[name]["fn"].event_dim
            value = value.expand(*shape, *value.shape[value.ndim - event_dim :])
            parts.append(self.maps[name].inv(value).reshape(*shape, -1))
        return torch.cat(parts, -1)

    def values(self, y: Float[Tensor, "*left trial dim"]) -> dict[str, Tensor]:
        """Vectors as values of the latent sites."""
        return {name: self.maps[name](real) for name, real in self._split(y).items()}

    def _split(self, y: Tensor) -> dict[str, Tensor]:
        sizes = [self.shapes[name].numel() for name in self.sites]
        parts = zip(self.sites, y.split(sizes, -1), strict=True)
        return {name: part.reshape(*y.shape[:-1], *self.shapes[name]) for name, part in parts}


@torch.no_grad()
def mcmc_sample(
    model: LatentDynamics,
    guide: Program,
    batch: Batch,
    num_draws: int = 100,
    *,
    num_chains: int = NUM_CHAINS,
    num_warmup: int = NUM_WARMUP,
    num_leapfrog: int = NUM_LEAPFROG,
) -> MCMCSample:
    """Draw from every trial's posterior given what the encoder may see.

    Args:
        model: a model of the zoo, or any other with all latent sites in the plate ``trials``.
        guide: where the chains start.
        batch: trials; held-out neurons and forecast bins are not conditioned on.
        num_draws: per chain.
        num_chains: per trial.
        num_warmup: trajectories before the draws, by which the sampler adapts.
        num_leapfrog: gradients per trajectory.

    Raises:
        ValueError: for latent sites that all trials share, discrete ones, and a guide that does
            not draw the model's sites.
        ArithmeticError: if the density is finite at no draw of the guide, naming the trial.
    """
    check_integer(FEWEST_DRAWS, num_draws=num_draws)
    check_integer(2, num_chains=num_chains, num_warmup=num_warmup)
    check_integer(1, num_leapfrog=num_leapfrog)
    batch = batch.as_seen().replace(weight=1.0)
    weights = {w for part in (model, module_of(guide)) if part for w in part.parameters()}
    with poutine.block(), frozen(weights), pyro.validation_enabled(False):
        log_joint = LogJoint(model, batch)
        start, scale = _start(log_joint, guide, num_chains)
        chains = hamiltonian_monte_carlo(
            log_joint,
            start,
            scale,
            num_draws=num_draws,
            num_warmup=num_warmup,
            num_leapfrog=num_leapfrog,
        )
    by_trial = chains.log_density.double().cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # of chains that never moved
        r_hat = array_stats.rhat(by_trial, chain_axis=0, draw_axis=1)
        effective = array_stats.ess(by_trial, chain_axis=0, draw_axis=1)
    return MCMCSample(
        sites=log_joint.values(chains.positions),
        r_hat=torch.as_tensor(np.asarray(r_hat)).to(scale).nan_to_num(nan=torch.inf),
        effective_sample_size=torch.as_tensor(np.asarray(effective)).to(scale).nan_to_num(nan=1.0),
        acceptance=chains.acceptance,
        divergences=chains.divergences,
        step_size=chains.step_size,
    )


def _start(
    log_joint: LogJoint, guide: Program, num_chains: int
) -> tuple[Float[Tensor, "chain trial dim"], Float[Tensor, "trial dim"]]:
    """A start of every chain, and the standard deviation of every coordinate."""
    num = max(NUM_INITIAL, num_chains)
    drawn = traced(with_particles(guide_program(guide), num), log_joint.batch)
    missing = [name for name in log_joint.sites if name not in drawn.nodes]
    if missing:
        raise ValueError(
            f"the guide does not draw {', '.join(map(repr, missing))} of the model, whose latent"
            f" sites are {', '.join(map(repr, log_joint.sites))}"
        )
    y = log_joint.vector(drawn, num)
    is_finite = log_joint(y).isfinite()
    if not is_finite.any(0).all():
        trial = int(log_joint.batch.trial[(~is_finite.any(0)).nonzero()[0]])
        raise ArithmeticError(
            f"log p(x, latents) of trial {trial} is finite at no draw of the guide: the dynamics"
            " diverge from where the guide starts them (fit longer, or with a lower learning_rate;"
            " for a neural ODE also with more substeps)"
        )
    # Finite draws first, repeated if there are fewer of them than chains.
    order = (~is_finite).to(torch.uint8).argsort(dim=0, stable=True)
    numbers = torch.arange(num_chains, device=y.device)[:, None] % is_finite.sum(0)
    chosen = order.gather(0, numbers)
    start = torch.take_along_dim(y, chosen[..., None], 0)
    scale = torch.where(is_finite[..., None], y, torch.nan)
    scale = (scale - scale.nanmean(0)).square().nanmean(0).sqrt()
    if (scale <= 0).any():
        prior = traced(with_particles(log_joint.model, num), log_joint.batch.unobserved())
        scale = torch.where(scale > 0, scale, log_joint.vector(prior, num).std(0))
    return start, scale
