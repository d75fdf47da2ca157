"""A pool of paths that a model draws by itself, weighed for every trial::

    z_k ~ p(z),     w_kn = p(x_n | z_k)          k: particles, n: trials

Nothing is searched for and no guide is asked, so that nothing is missed: every first state from
which a trial may have started, and with process noise every way that it may have gone, is in a pool
that is large enough. The same paths serve all trials, and an observation x enters its log density,
for every observation model of the zoo, with the linear predictors eta as::

    log p(x | eta) = a(eta) [x = 0] + (b(eta) + c(eta) x) [x != 0] + d(x)

so that a pool is drawn once and weighed by a product of matrices: what most trials saw of an entry,
of sparse counts silence, once for all of them, and for each what it saw otherwise. For models of
few latent dimensions, whose noise is small beside what the data leave open of a path, this tells
the posterior itself; the number of paths that count says when a pool is too small for the data.
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
from pyrodyn.infer.traces import latent_sites
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import Distribution

MOST_ENTRIES = 2**21
"""Observations whose laws are held at once."""

SPARSE_BELOW = 0.1
"""Share of entries that differ from what most trials saw, below which only these are looked at."""


class PathPool(NamedTuple):
    """Draws of the posterior of every trial, from among the paths of a pool.

    Attributes:
        sites: latent sites by name, ``(draw, trial, *event)``.
        pareto_k: k-hat of the weights, see `importance_sample`; large also where fewer paths
            count than it looks at, three times the root of their number.
        effective_sample_size: of the weights, in paths.
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
    model: LatentDynamics, batch: Batch, num_draws: int = 100, *, num_particles: int = 100_000
) -> PathPool:
    """Draw from the posterior of every trial given what the batch scores.

    Args:
        model: a model of the zoo; the fewer its latent dims, the smaller a pool will do.
        batch: trials, all with the same known inputs.
        num_draws: per trial, independent given the pool.
        num_particles: paths in the pool.

    Raises:
        ValueError: for too few draws or particles, a batch without observations or of another kind
            of recording, and trials whose known inputs differ.
        ArithmeticError: for a trial that no path explains, all having run off.
    """
    check_integer(1, num_draws=num_draws)
    check_integer(FEWEST_PARTICLES, num_particles=num_particles)
    model.check_batch(batch)
    if batch.x is None:
        raise ValueError("a pool is weighed by what was observed, and this batch's x is None")
    _check_inputs(batch)
    weigh, chosen = _Weights(model, batch), _Chosen(num_draws, batch)
    size = max(1, MOST_ENTRIES // (batch.num_bins * batch.seen.shape[-1]))
    log_weights = batch.seen.new_empty(num_particles, batch.num_trials)
    for part in log_weights.split(size):
        sites, law = _drawn(model, batch, len(part))
        chosen.meet(sites, part.copy_(weigh(law)))
    _check_told(chosen.log_sum, batch, num_particles)
    evidence, error = log_evidence(log_weights)
    evidence += _log_likelihood(model, batch, chosen.sites) - chosen.log_weights[0]
    return PathPool(
        sites=chosen.sites,
        pareto_k=pareto_k(log_weights),
        effective_sample_size=effective_sample_size(log_weights),
        log_evidence=evidence,
        log_evidence_error=error,
    )


def _drawn(
    model: LatentDynamics, batch: Batch, size: int
) -> tuple[dict[str, Tensor], Distribution]:
    """Paths under the inputs that all trials have, and the law of what each shows."""
    trial = batch.take(slice(0, 1))
    # Whatever x is given: the program is asked for its law alone.
    trial = trial.replace(x=torch.zeros_like(trial.seen))
    particles = pyro.plate("particles", size, dim=-2)
    trace = poutine.trace(particles(model.model)).get_trace(trial)
    sites = {
        name: trace.nodes[name]["value"].expand(size, 1, *trace.nodes[name]["fn"].event_shape)
        for name in latent_sites(trace)
    }
    return sites, trace.nodes["x"]["fn"].base_dist.law


def _log_likelihood(
    model: LatentDynamics, batch: Batch, sites: dict[str, Tensor]
) -> Float[Tensor, " trial"]:
    """Log p(x | z) of the first draw, in full."""
    first = {name: value[0] for name, value in sites.items()}
    alone = batch.replace(weight=1.0)  # trials stand for no others here
    trace = poutine.trace(poutine.condition(model.model, data=first)).get_trace(alone)
    trace.compute_log_prob(lambda name, site: name == "x")
    told: Tensor = trace.nodes["x"]["log_prob"]
    return told


class _Weights:
    """Log p(x_n | z_k) but for d(x_n), from laws of what paths show.

    Args:
        model: whose observations they are.
        batch: the trials.
    """

    def __init__(self, model: LatentDynamics, batch: Batch) -> None:
        assert batch.x is not None
        x, scored = batch.x[:, model.first_bin :], batch.scored[:, model.first_bin :]
        is_inflated = any(single.num_predictors > 1 for single in model.observation.singles())
        # Of an inflated law zeros are something else; of others they lie on the same line.
        on_line = scored & (x != 0) if is_inflated else scored
        # Two values per neuron, inside its support, through which that line is laid: one of them
        # the median, of sparse counts 0, so that few entries of a trial lie elsewhere.
        told = torch.where(on_line, x, torch.nan).flatten(0, 1)
        anchor = told.nanmedian(0).values.nan_to_num(nan=1.0)
        largest = torch.where(on_line, x, -torch.inf).amax((0, 1))
        smallest = torch.where(on_line, x, torch.inf).amin((0, 1))
        reach = torch.where(largest > anchor, largest, smallest) - anchor
        reach = torch.where(reach.isfinite() & (reach != 0), reach, 1.0)
        self.probes = [anchor, anchor + reach]
        seen = [on_line.to(x), torch.where(on_line, (x - anchor) / reach, 0.0)]
        if is_inflated:
            self.probes.append(torch.zeros_like(anchor))
            seen.append((scored & (x == 0)).to(x))
        by_entry = torch.stack(seen, 1).flatten(1) * batch.scored_weight
        # The trials' median, which is what most of them saw if most agree, is weighed once for all.
        self.shared = by_entry.median(0).values
        own = by_entry - self.shared
        self.differing = own.any(0).nonzero()[:, 0]
        self.own = own[:, self.differing]
        if self.own.count_nonzero() < SPARSE_BELOW * self.own.numel():
            self.own = self.own.to_sparse()

    def __call__(self, law: Distribution) -> Float[Tensor, "particle trial"]:
        """Of each path; minus infinity where it ran off."""
        at_anchor, beyond, *at_zero = (law.log_prob(value)[:, 0] for value in self.probes)
        parts = (at_anchor, beyond.sub_(at_anchor), *at_zero)
        told = torch.cat([part.flatten(1).T for part in parts])
        weights = self.own @ told[self.differing] + self.shared @ told
        return weights.nan_to_num_(nan=-torch.inf).T


class _Chosen:
    """Draws by their weights, kept while a pool goes by.

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

    def meet(self, sites: dict[str, Tensor], log_weights: Float[Tensor, "particle trial"]) -> None:
        """Take each draw from among these paths with the share that they have in all weights."""
        shape = self.log_weights.shape
        if not self.sites:
            self.sites = {k: v.new_zeros(*shape, *v.shape[2:]) for k, v in sites.items()}
        log_sum = log_weights.logsumexp(0)
        self.log_sum = torch.logaddexp(self.log_sum, log_sum)
        # No number where every weight so far is 0.
        share = (log_sum - self.log_sum).exp().nan_to_num(nan=0.0)
        weights = (log_weights - log_sum).exp().nan_to_num(nan=1.0)
        is_new = torch.rand(shape).to(share) < share
        places = torch.multinomial(weights.T, shape[0], replacement=True).T
        self.log_weights[is_new] = log_weights.gather(0, places)[is_new]
        for name, value in sites.items():
            self.sites[name][is_new] = value[places[is_new], 0]


def _check_inputs(batch: Batch) -> None:
    """Refuse trials that no pool can serve together."""
    is_other = (batch.inputs != batch.inputs[:1]).flatten(1).any(1)
    if is_other.any():
        first, other = int(batch.trial[0]), int(batch.trial[is_other][0])
        raise ValueError(
            f"the known inputs of trial {other} differ from those of trial {first}, and a pool of"
            " paths serves only trials whose inputs are the same: take method='importance' or"
            " 'smoother', or trials of one condition at a time"
        )


def _check_told(log_sum: Float[Tensor, " trial"], batch: Batch, num_particles: int) -> None:
    is_lost = log_sum.isneginf()
    if is_lost.any():
        raise ArithmeticError(
            f"of {num_particles} paths none explains trial {int(batch.trial[is_lost][0])}: all run"
            " off; fit longer, or with a lower learning_rate"
        )
