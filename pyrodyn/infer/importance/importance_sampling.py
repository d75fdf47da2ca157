"""Importance sampling: draws of a guide, weighted per trial to follow the posterior::

    w_k = p(x, z_k) / q(z_k | x),     log p(x) ~ log mean_k w_k

The largest weights are smoothed by a generalised Pareto distribution, whose shape k-hat measures
their reliability (Vehtari et al., JMLR 25:72, 2024): below 0.7 they can be trusted; above, the
guide misses mass of the posterior, or K is too small for its dimension.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.guides.check_guide import GuideError, check_guide, unusable
from pyrodyn.infer.guides.per_trial import tie_to_first_run
from pyrodyn.infer.objectives.importance_weighted import (
    local_draws,
    log_densities,
    weighted_draws,
)
from pyrodyn.infer.smc.resampling import effective_sample_size
from pyrodyn.infer.traces import (
    Program,
    guide_program,
    is_local,
    latent_sites,
    point_sites,
)
from pyrodyn.infer.training.fitted import guide_name
from pyrodyn.models.latent_dynamics import LatentDynamics

LEAST_TAILS = 5
"""The tail is at most this fraction (1 / 5) of all weights."""

FEWEST_PARTICLES = 30
"""Their tail has six weights, the fewest to which arviz can fit the distribution."""

MOST_ENTRIES = 2**25
"""Observations whose densities are in memory at once: more particles are drawn in parts."""

LOWEST_TAIL = 700.0
"""Nats below the largest weight at which weights round to 0 in double precision."""


class Smoothed(NamedTuple):
    """Pareto-smoothed weights.

    Attributes:
        log_weights: normalised over particles.
        pareto_k: k-hat per trial; minus infinity if the largest weights are all equal, so that
            there is no tail, and infinity if most of them are negligible beside the very largest,
            so that no distribution can be fitted.
    """

    log_weights: Float[Tensor, "particle trial"]
    pareto_k: Float[Tensor, " trial"]

    def resampled(self, num_draws: int) -> Int[Tensor, "draw trial"]:
        """Indices of ``num_draws`` particles per trial, sampled by their weights."""
        return torch.multinomial(self.log_weights.exp().T, num_draws, replacement=True).T


class ImportanceSample(NamedTuple):
    """Weighted draws of a guide.

    Attributes:
        sites: latent sites by name, ``(particle, trial, *event)``.
        log_weights: log w, unnormalised.
        smoothed: the same, Pareto-smoothed, with k-hat.
        effective_sample_size: of the smoothed weights.
        log_evidence: log p(x) per trial, from the unsmoothed weights, whose mean is unbiased.
        log_evidence_error: its standard error (that of the mean weight, relative to the mean).
    """

    sites: dict[str, Tensor]
    log_weights: Float[Tensor, "particle trial"]
    smoothed: Smoothed
    effective_sample_size: Float[Tensor, " trial"]
    log_evidence: Float[Tensor, " trial"]
    log_evidence_error: Float[Tensor, " trial"]


def pareto_smoothed(log_weights: Float[Tensor, "particle trial"]) -> Smoothed:
    """Smooth the largest weights of every trial.

    Raises:
        ValueError: for fewer than `FEWEST_PARTICLES`.
    """
    num_tail = _num_tail(len(log_weights))
    smoothed, shapes = zip(
        *(_pareto_smoothed(of_trial, num_tail) for of_trial in log_weights.T), strict=True
    )
    weights = torch.from_numpy(np.stack(smoothed, -1)).to(log_weights)
    return Smoothed(torch.log_softmax(weights, 0), log_weights.new_tensor(shapes))


def pareto_k(log_weights: Float[Tensor, "particle trial"]) -> Float[Tensor, " trial"]:
    """K-hat only, without sorting all weights.

    Raises:
        ValueError: for fewer than `FEWEST_PARTICLES`.
    """
    num_tail = _num_tail(len(log_weights))
    num_given = LEAST_TAILS * num_tail
    # With this relative efficiency psislw takes the same tail of the given weights as of all.
    shapes = [
        _pareto_smoothed(of_trial.topk(num_given).values, num_tail, r_eff=1 / num_given)[1]
        for of_trial in log_weights.T
    ]
    return log_weights.new_tensor(shapes)


def _pareto_smoothed(
    log_weights: Float[Tensor, " particle"], num_tail: int, r_eff: float = 1.0
) -> tuple[NDArray[np.double], float]:
    """Smoothed log weights of one trial, and k-hat."""
    given = log_weights.double().cpu().numpy()
    tail = np.sort(given)[-num_tail:]
    if tail[-1] - tail[num_tail // 4] > LOWEST_TAIL:
        return given, math.inf
    try:
        # psislw is written for leave-one-out, whose weights are 1 / likelihood: it takes -log w.
        with np.errstate(over="ignore"):  # quantiles of very heavy tails overflow
            smoothed, pareto_k = array_stats.psislw(-given, r_eff=r_eff)
    except ValueError:  # the largest weights are all equal
        return given, -math.inf
    return np.asarray(smoothed), float(pareto_k)


def _num_tail(num_particles: int) -> int:
    """Number of the largest weights that the distribution is fitted to."""
    _check_enough(num_particles)
    return math.floor(min(num_particles / LEAST_TAILS, 3 * math.sqrt(num_particles)))


def _check_enough(num_particles: int) -> None:
    check_integer(1, num_particles=num_particles)
    if num_particles < FEWEST_PARTICLES:
        raise ValueError(
            f"num_particles={num_particles}; smoothing the largest weights needs at least"
            f" {FEWEST_PARTICLES}, and some hundreds to be reliable"
        )


def _check_weights(
    log_weights: Float[Tensor, "particle trial"], trials: Int[Tensor, " trial"]
) -> None:
    is_undefined = log_weights.isnan() | log_weights.isposinf()
    is_failed = is_undefined.any(0) | log_weights.isneginf().all(0)
    if is_failed.any():
        at = int(is_failed.nonzero()[0])
        number = int(is_undefined[:, at].sum())
        what = f"{number} of {len(log_weights)} are not finite" if number else "all are 0"
        raise ArithmeticError(
            f"trial {int(trials[at])} has no usable importance weights: {what};"
            " trajectories may diverge from where the guide starts them (fit longer, or with a"
            " lower learning_rate; for a neural ODE also with more substeps)"
        )


def log_evidence(
    log_weights: Float[Tensor, "particle trial"],
) -> tuple[Float[Tensor, " trial"], Float[Tensor, " trial"]]:
    """Log of the mean weight and its standard error (that of the mean, relative to it)."""
    num_particles = len(log_weights)
    relative_variance = torch.softmax(log_weights, 0).square().sum(0) - 1 / num_particles
    return (
        log_weights.logsumexp(0) - math.log(num_particles),
        relative_variance.clamp_min(0).sqrt(),
    )


@torch.no_grad()
def importance_sample(
    model: Program, guide: Program, batch: Batch, num_particles: int = 1000
) -> ImportanceSample:
    """Draw from a guide and compute importance weights.

    Args:
        model: a model of the zoo, or any Pyro program with the plate ``trials`` at dim -1.
        guide: its guide; every latent site must lie inside the plate ``trials``. With the model's
            own guide, parameters that have priors are at the location of their guide;
            ``model.at`` gives a model with other values.
        batch: trials.
        num_particles: K; the smoothing needs about 100.

    Raises:
        ValueError: for too few particles, a batch of another kind of recording, or a guide that
            is a point estimate, draws trials jointly or has sites that all trials share.
        GuideError: for a guide of a model of the zoo that does not pass `check_guide`.
        ArithmeticError: if a trial's weights are all 0, or one is infinite or NaN.
    """
    _check_enough(num_particles)
    problem = unusable(model, guide)
    if problem:
        raise GuideError(problem)
    if isinstance(model, LatentDynamics):
        model.check_batch(batch)
        model.require_latents("importance sampling")
        if guide_name(model, guide) is not None:
            tie_to_first_run(guide)
            check_guide(model, guide, batch, training=False).require()
        elif model.priors is not None:
            model = model.at()
            guide = model.guide
    sites, log_weights = weighted_particles(model, guide, batch, num_particles)
    smoothed = pareto_smoothed(log_weights)
    evidence, error = log_evidence(log_weights)
    return ImportanceSample(
        sites=sites,
        log_weights=log_weights,
        smoothed=smoothed,
        effective_sample_size=effective_sample_size(smoothed.log_weights),
        log_evidence=evidence,
        log_evidence_error=error,
    )


@torch.no_grad()
def weighted_particles(
    model: Program, guide: Program, batch: Batch, num_particles: int
) -> tuple[dict[str, Tensor], Float[Tensor, "particle trial"]]:
    """Latent sites by name, ``(particle, trial, *event)``, and log weights of a guide's draws.

    The particles are drawn and weighted in parts, so that memory is that of the latent sites and of
    `MOST_ENTRIES` observations.

    Raises:
        ValueError: for a guide that is a point estimate, draws trials jointly or has sites that all
            trials share.
        ArithmeticError: if a trial's weights are all 0, or one is infinite or NaN.
    """
    program = guide_program(guide)
    size = max(1, MOST_ENTRIES // batch.seen.numel())
    parts: list[Tensor] = []
    sites: dict[str, Tensor] = {}
    for start in range(0, num_particles, size):
        part = slice(start, min(start + size, num_particles))
        drawn = local_draws(program, batch, part.stop - start)
        _check_has_density(drawn)
        weighted = weighted_draws(model, drawn, log_densities(drawn), batch, part.stop - start)
        parts.append(weighted.log_weights)
        for name in latent_sites(drawn):
            site = drawn.nodes[name]
            _check_local(name, site)
            event = site["value"].shape[site["value"].ndim - site["fn"].event_dim :]
            if name not in sites:
                sites[name] = site["value"].new_empty(num_particles, batch.num_trials, *event)
            sites[name][part] = site["value"]
    log_weights = torch.cat(parts)
    _check_weights(log_weights, batch.trial)
    return sites, log_weights


def _check_has_density(drawn: poutine.Trace) -> None:
    """Refuse a guide that is a point estimate."""
    points = point_sites(drawn)
    if points:
        raise ValueError(
            f"the guide puts all mass of {points[-1]!r} on one point (a point estimate), so that"
            " its draws have no importance weights; take a guide with a density"
        )


def _check_local(name: str, site: Mapping[str, Any]) -> None:
    """Refuse a site that all trials share."""
    if not is_local(site):
        raise ValueError(
            f"site {name!r} is shared by all trials, so no trial has importance weights of its own;"
            " take a guide whose sites lie in the plate over trials"
        )
