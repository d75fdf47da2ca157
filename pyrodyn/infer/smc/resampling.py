"""Resampling: which particles survive, and how many offspring each has.

Every scheme draws ancestors a_1 ... a_K such that particle k with weight W_k has K W_k offspring in
expectation. They differ in the variance of the numbers of offspring:

* ``systematic``: one uniform per trial shifts a grid of K points; offspring within 1 of K W_k. The
  default.
* ``stratified``: one independent uniform per stratum.
* ``residual``: floor(K W_k) offspring deterministically, the rest multinomial.
* ``multinomial``: K independent draws. Their joint probability is a product, which the unbiased
  gradient of VSMC needs.
* ``soft``: systematic from the mixture W' = a W + (1 - a)/K, the survivors keeping the weights
  W/W'. These carry a gradient (Karkus, Hsu & Lee 2018), but remain unequal.

Weights are given as logarithms, ``(particle, trial)``, in any normalisation; trials are resampled
independently.

Source of the classical four: Douc, Cappe & Moulines, ISPA 2005.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

SOFT_FRACTION = 0.5
"""a of soft resampling."""

BELOW_ONE = math.nextafter(1.0, 0.0)
"""The largest number of double precision below 1."""

ROUNDING = 1e-9
"""An expected number of offspring this close to an integer counts as one."""


class Resampled(NamedTuple):
    """Ancestors and the weights of the survivors.

    Attributes:
        ancestors: ``(particle, trial)``.
        log_weights: log of the survivors' weights, of mean 1 in expectation; 0 for the classical
            schemes.
    """

    ancestors: Int[Tensor, "particle trial"]
    log_weights: Float[Tensor, "particle trial"]


Scheme = Callable[[Float[Tensor, "particle trial"]], Resampled]


@torch.no_grad()
def multinomial(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """K independent draws."""
    return _classical(_at_points(log_weights, _uniforms(log_weights, len(log_weights))))


@torch.no_grad()
def stratified(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """One draw in each of K equal strata."""
    shifts = _uniforms(log_weights, len(log_weights))
    strata = torch.arange(len(log_weights), device=shifts.device, dtype=shifts.dtype)
    # Below 1 even if the last point rounds up to it.
    points = (strata + shifts).div_(len(log_weights)).clamp_max_(BELOW_ONE)
    return _classical(_at_points(log_weights, points))


def systematic(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """A grid of K points (j + u) / K with one random shift u.

    The number of points below a cumulative weight W is K W - u, rounded up. Counting them takes a
    third of the time of searching for every point.
    """
    num_particles = len(log_weights)
    summed = _summed(log_weights)
    fraction = summed.div_(summed[:, -1:].clone())  # the last is exactly 1
    shift = _uniforms(log_weights, 1).clamp_max_(1 - ROUNDING)
    up_to = fraction.mul_(num_particles).sub_(shift).ceil_()
    up_to.nan_to_num_(
        num_particles
    )  # a trial whose weights are all 0, which the filter then refuses
    return _classical(_repeated(up_to.long()))


@torch.no_grad()
def residual(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """floor(K W_k) offspring deterministically, the remainders multinomially."""
    num_particles = len(log_weights)
    expected = num_particles * torch.softmax(log_weights.t(), 1, dtype=torch.float64)
    certain = (expected + ROUNDING).floor()
    rest = (expected - certain).clamp_min(0.0)
    # The first slots hold the deterministic offspring in order, the others are random.
    slot = torch.arange(num_particles, device=expected.device).expand_as(expected)
    in_order = _searched(certain.cumsum(1), slot + 0.5)
    has_rest = rest.sum(1, keepdim=True) > ROUNDING
    at_random = _at_points(
        torch.where(has_rest, rest, expected).log().t(), _uniforms(log_weights, num_particles)
    )
    is_certain = slot < certain.sum(1, keepdim=True)
    return _classical(torch.where(is_certain.t(), in_order, at_random))


def soft(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """Systematic from a mixture with the uniform distribution; weights correct for it, with a
    gradient.
    """
    # In logarithms throughout: a weight that underflows may be chosen, and then has a gradient.
    own = torch.log_softmax(log_weights, 0)
    uniform = own.new_full((), math.log((1 - SOFT_FRACTION) / len(log_weights)))
    mixture = torch.logaddexp(own + math.log(SOFT_FRACTION), uniform)
    ancestors = systematic(mixture).ancestors
    return Resampled(ancestors, (own - mixture).gather(0, ancestors))


RESAMPLING: dict[str, Scheme] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
    "soft": soft,
}
"""Resampling schemes by name."""


def scheme_named(name: str) -> Scheme:
    """A scheme by its name.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if name not in RESAMPLING:
        raise ValueError(f"resampling={name!r} is unknown; it is one of {', '.join(RESAMPLING)}")
    return RESAMPLING[name]


def effective_sample_size(
    log_weights: Float[Tensor, "particle trial"],
) -> Float[Tensor, " trial"]:
    """1 / sum of squared normalised weights, between 1 and K."""
    return torch.softmax(log_weights, 0).square().sum(0).reciprocal()


def _classical(ancestors: Int[Tensor, "particle trial"]) -> Resampled:
    """Survivors with equal weights."""
    return Resampled(ancestors, torch.zeros(ancestors.shape, device=ancestors.device))


def _uniforms(
    log_weights: Float[Tensor, "particle trial"], num_columns: int
) -> Float[Tensor, "trial columns"]:
    shape = (log_weights.shape[1], num_columns)
    return torch.rand(shape, device=log_weights.device, dtype=torch.float64)


def _at_points(
    log_weights: Float[Tensor, "particle trial"], points: Float[Tensor, "trial particle"]
) -> Int[Tensor, "particle trial"]:
    """The particles in whose part of the unit interval the points lie.

    Points are scaled by the rounded sum of the weights, so that a point below 1 stays below the
    end of the interval: a particle of weight 0 is never chosen, not even the last.
    """
    summed = _summed(log_weights)
    return _searched(summed, points * summed[:, -1:])


def _summed(
    log_weights: Float[Tensor, "particle trial"],
) -> Float[Tensor, "trial particle"]:
    """Cumulative weights, in double precision: in single, many weights sum to less than 1."""
    return torch.softmax(log_weights.detach().t(), 1, dtype=torch.float64).cumsum_(1)


def _repeated(up_to: Int[Tensor, "trial particle"]) -> Int[Tensor, "particle trial"]:
    """Every particle as often as it has offspring, from the cumulative numbers of offspring."""
    num_trials, num_particles = up_to.shape
    ends = up_to.new_zeros(num_trials, num_particles + 1)
    ends.scatter_add_(1, up_to, torch.ones_like(up_to))
    # A slot belongs to the first particle whose slots end after it.
    return ends[:, :-1].cumsum(1).t()


def _searched(
    summed: Float[Tensor, "trial particle"], points: Float[Tensor, "trial particle"]
) -> Int[Tensor, "particle trial"]:
    """Per trial the first particle whose sum exceeds the point (the last where none does)."""
    found = torch.searchsorted(summed, points, right=True)
    return found.clamp_max_(summed.shape[1] - 1).t()
