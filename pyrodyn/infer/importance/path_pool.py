"""A pool of latent trajectories drawn from the prior, weighted for every trial::

    z_k ~ p(z),     w_kn = p(x_n | z_k)          k: particles, n: trials

A guide or proposal can miss modes of the posterior; a large enough pool covers every initial state
and, with process noise, every trajectory from it. All trials share the trajectories. For every
observation model of the zoo the log density of x given linear predictors eta has the form::

    log p(x | eta) = a(eta) [x = 0] + (b(eta) + c(eta) x) [x != 0] + d(x)

so the pool is drawn once and its weights are a product of matrices. Entries in which a trial equals
the median over trials (with sparse counts: zeros) are computed once for all trials, the others per
trial. This is exact importance sampling from the prior: it suits models of few latent dimensions
whose process noise is small compared with the posterior uncertainty. The effective sample size
shows when a pool is too small for the data.
"""

from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.importance.importance_sampling import FEWEST_PARTICLES, log_evidence, pareto_k
from pyrodyn.infer.smc.resampling import effective_sample_size
from pyrodyn.infer.traces import latent_sites, traced
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import Distribution

MOST_ENTRIES = 2**21
"""Observations whose distributions are in memory at once."""

SPARSE_BELOW = 0.1
"""Fraction of entries that differ from the median, below which a sparse product is used."""


class PathPool(NamedTuple):
    """Posterior draws of every trial, resampled from a pool of trajectories.

    Attributes:
        sites: latent sites by name, ``(draw, trial, *event)``.
        pareto_k: k-hat of the weights, see `importance_sample`; also large where the
            effective sample size is below the tail size (three times the root of the pool size).
        effective_sample_size: of the weights, in trajectories.
        log_evidence: log p(x) per trial, in nats.
        log_evidence_error: its standard error.
    """

    sites: dict[str, Tensor]
    pareto_k: Float[Tensor, " trial"]
    effective_sample_size: Float[Tensor, " trial"]
    log_evidence: Float[Tensor, " trial"]
    log_evidence_error: Float[Tensor, " trial"]


@torch.no_grad()
def path_pool(
    model: LatentDynamics | Fit[LatentDynamics],
    batch: Batch,
    num_draws: int = 100,
    *,
    num_particles: int = 100_000,
) -> PathPool:
    """Draw from the posterior of every trial given what the batch scores.

    Args:
        model: a model of the zoo, or its `Fit`; the pool size needed grows with the number of
            latent dims. Parameters with priors are at the location of their guide; ``model.at``
            gives a model with other values.
        batch: trials, all with the same known inputs.
        num_draws: per trial, independent given the pool.
        num_particles: trajectories in the pool.

    Raises:
        ValueError: for too few draws or particles, a batch without observations or of another kind
            of recording, and trials whose known inputs differ.
        ArithmeticError: if all weights of a trial are 0 because the trajectories diverged.
    """
    if isinstance(model, Fit):
        model = model.model
    model.require_latents("a pool of trajectories")
    model = model if model.priors is None else model.at()
    check_integer(1, num_draws=num_draws)
    check_integer(FEWEST_PARTICLES, num_particles=num_particles)
    model.check_batch(batch)
    if batch.x is None:
        raise ValueError("a pool is weighted by the observations, and this batch has x=None")
    _check_inputs(batch)
    weights_of, chosen = _Weights(model, batch), _Reservoir(num_draws, batch)
    size = max(1, MOST_ENTRIES // (batch.num_bins * batch.seen.shape[-1]))
    log_weights = batch.seen.new_empty(num_particles, batch.num_trials)
    for part in log_weights.split(size):
        sites, observation = _sample(model, batch, len(part))
        chosen.add(sites, part.copy_(weights_of(observation)))
    _check_explained(chosen.log_sum, batch, num_particles)
    evidence, error = log_evidence(log_weights)
    evidence += _log_likelihood(model, batch, chosen.sites) - chosen.log_weights[0]
    return PathPool(
        sites=chosen.sites,
        pareto_k=pareto_k(log_weights),
        effective_sample_size=effective_sample_size(log_weights),
        log_evidence=evidence,
        log_evidence_error=error,
    )


def _sample(
    model: LatentDynamics, batch: Batch, size: int
) -> tuple[dict[str, Tensor], Distribution]:
    """Trajectories under the inputs that all trials share, and their observation distribution."""
    trial = batch.take(slice(0, 1))
    # Any x serves: only the distribution at this site is used.
    trial = trial.replace(x=torch.zeros_like(trial.seen))
    particles = pyro.plate("particles", size, dim=-2)
    trace = traced(particles(model.model), trial)
    sites = {
        name: trace.nodes[name]["value"].expand(size, 1, *trace.nodes[name]["fn"].event_shape)
        for name in latent_sites(trace)
    }
    return sites, trace.nodes["x"]["fn"].base_dist.base


def _log_likelihood(
    model: LatentDynamics, batch: Batch, sites: dict[str, Tensor]
) -> Float[Tensor, " trial"]:
    """Log p(x | z) of the first draw, with all constants."""
    first = {name: value[0] for name, value in sites.items()}
    unscaled = batch.replace(weight=1.0)
    trace = traced(poutine.condition(model.model, data=first), unscaled)
    trace.compute_log_prob(lambda name, site: name == "x")
    log_likelihood: Tensor = trace.nodes["x"]["log_prob"]
    return log_likelihood


class _Weights:
    """Log p(x_n | z_k) up to d(x_n), from the observation distribution of the trajectories.

    Args:
        model: whose observations they are.
        batch: the trials.
    """

    def __init__(self, model: LatentDynamics, batch: Batch) -> None:
        assert batch.x is not None
        x, scored = batch.x[:, model.first_bin :], batch.scored[:, model.first_bin :]
        is_inflated = any(single.num_predictors > 1 for single in model.observation.singles())
        # Zeros of an inflated distribution have a density of their own; otherwise log p is linear
        # in x (up to d) at every count.
        on_line = scored & (x != 0) if is_inflated else scored
        # Two values per neuron, inside its support, determine that line. One is the median (0 for
        # sparse counts), so that few entries of a trial differ from it.
        observed = torch.where(on_line, x, torch.nan).flatten(0, 1)
        anchor = observed.nanmedian(0).values.nan_to_num(nan=1.0)
        largest = torch.where(on_line, x, -torch.inf).amax((0, 1))
        smallest = torch.where(on_line, x, torch.inf).amin((0, 1))
        gap = torch.where(largest > anchor, largest, smallest) - anchor
        gap = torch.where(gap.isfinite() & (gap != 0), gap, 1.0)
        self.probes = [anchor, anchor + gap]
        coefficients = [on_line.to(x), torch.where(on_line, (x - anchor) / gap, 0.0)]
        if is_inflated:
            self.probes.append(torch.zeros_like(anchor))
            coefficients.append((scored & (x == 0)).to(x))
        by_entry = torch.stack(coefficients, 1).flatten(1) * batch.scored_weight
        # The median over trials is weighted once for all trials, deviations from it per trial.
        self.shared = by_entry.median(0).values
        own = by_entry - self.shared
        self.differing = own.any(0).nonzero()[:, 0]
        self.own = own[:, self.differing]
        if self.own.count_nonzero() < SPARSE_BELOW * self.own.numel():
            self.own = self.own.to_sparse()

    def __call__(self, observation: Distribution) -> Float[Tensor, "particle trial"]:
        """Log weights of the trajectories; minus infinity for diverged ones."""
        at_anchor, beyond, *at_zero = (observation.log_prob(value)[:, 0] for value in self.probes)
        parts = (at_anchor, beyond.sub_(at_anchor), *at_zero)
        densities = torch.cat([part.flatten(1).T for part in parts])
        weights = self.own @ densities[self.differing] + self.shared @ densities
        return weights.nan_to_num_(nan=-torch.inf).T


class _Reservoir:
    """Weighted reservoir sampling: draws by weight from a pool that arrives in parts.

    Args:
        num_draws: per trial.
        batch: the trials.

    Attributes:
        sites: latent sites of the draws, ``(draw, trial, *event)``.
        log_weights: of the draws.
        log_sum: log of the sum of all weights so far.
    """

    def __init__(self, num_draws: int, batch: Batch) -> None:
        self.sites: dict[str, Tensor] = {}
        self.log_weights = batch.seen.new_zeros(num_draws, batch.num_trials)
        self.log_sum = torch.full_like(self.log_weights[0], -torch.inf)

    def add(self, sites: dict[str, Tensor], log_weights: Float[Tensor, "particle trial"]) -> None:
        """Replace each draw by one of these trajectories, by their fraction of the total weight."""
        shape = self.log_weights.shape
        if not self.sites:
            self.sites = {k: v.new_zeros(*shape, *v.shape[2:]) for k, v in sites.items()}
        log_sum = log_weights.logsumexp(0)
        self.log_sum = torch.logaddexp(self.log_sum, log_sum)
        # NaN where every weight so far is 0.
        fraction = (log_sum - self.log_sum).exp().nan_to_num(nan=0.0)
        weights = (log_weights - log_sum).exp().nan_to_num(nan=1.0)
        is_new = torch.rand(shape).to(fraction) < fraction
        places = torch.multinomial(weights.T, shape[0], replacement=True).T
        self.log_weights[is_new] = log_weights.gather(0, places)[is_new]
        for name, value in sites.items():
            self.sites[name][is_new] = value[places[is_new], 0]


def _check_inputs(batch: Batch) -> None:
    """Refuse trials of different inputs, which cannot share a pool."""
    is_other = (batch.inputs != batch.inputs[:1]).flatten(1).any(1)
    if is_other.any():
        first, other = int(batch.trial[0]), int(batch.trial[is_other][0])
        raise ValueError(
            f"the known inputs of trial {other} differ from those of trial {first}, and a pool"
            " serves only trials of equal inputs: use method='importance' or 'smoother', or the"
            " trials of one condition at a time"
        )


def _check_explained(log_sum: Float[Tensor, " trial"], batch: Batch, num_particles: int) -> None:
    is_unexplained = log_sum.isneginf()
    if is_unexplained.any():
        raise ArithmeticError(
            f"none of {num_particles} trajectories explains trial"
            f" {int(batch.trial[is_unexplained][0])}: all of them diverge; fit"
            " longer, or with a lower learning_rate"
        )
