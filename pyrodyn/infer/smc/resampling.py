"""Resampling: which particles live on, and how often.

Every scheme draws ancestors a_1 ... a_K, a particle k with weight W_k being expected K W_k times.
They differ in how much the numbers of offspring vary:

* ``systematic``: one uniform per trial shifts a comb of K teeth; offspring within 1 of K W_k.
  The place to start.
* ``stratified``: one uniform per tooth of the comb.
* ``residual``: floor(K W_k) offspring for sure, the rest multinomial.
* ``multinomial``: K independent draws. The one whose law is a product, which the unbiased gradient
  of VSMC needs.
* ``soft``: systematic from the mixture W' = a W + (1 - a)/K, the survivors keeping the weights
  W/W'. These carry a gradient (Karkus, Hsu & Lee 2018); the price is weights that stay uneven.

Weights arrive as logarithms, ``(particle, trial)``, in any normalisation; trials are resampled
independently of each other.

Source of the classical four: Douc, Cappe & Moulines, ISPA 2005.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

SOFT_SHARE = 0.5
"""a of soft resampling."""

BELOW_ONE = math.nextafter(1.0, 0.0)
"""The largest number of double precision below 1."""

ROUNDING = 1e-9
"""An expected number of offspring this close to a whole number is one."""


class Resampled(NamedTuple):
    """Ancestors and the weights with which they go on.

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
    teeth = torch.arange(len(log_weights), device=shifts.device, dtype=shifts.dtype)
    # Below 1 also where the last of them rounds to it.
    points = (teeth + shifts).div_(len(log_weights)).clamp_max_(BELOW_ONE)
    return _classical(_at_points(log_weights, points))


@torch.no_grad()
def systematic(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """A comb of K teeth (j + u) / K with one random shift u.

    As many of them as K W - u, rounded up, lie below a sum W of weights. Counting them takes a
    third of the time of looking for every tooth.
    """
    num_particles = len(log_weights)
    summed = _summed(log_weights)
    share = summed.div_(summed[:, -1:].clone())  # whose end is 1, exactly
    shift = _uniforms(log_weights, 1).clamp_max_(1 - ROUNDING)
    up_to = share.mul_(num_particles).sub_(shift).ceil_()
    up_to.nan_to_num_(num_particles)  # of a trial without any weight, which the run then refuses
    return _classical(_repeated(up_to.long()))


@torch.no_grad()
def residual(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """The whole parts of K W_k for sure, the remainders multinomially."""
    num_particles = len(log_weights)
    expected = num_particles * torch.softmax(log_weights.t(), 1, dtype=torch.float64)
    sure = (expected + ROUNDING).floor()
    rest = (expected - sure).clamp_min(0.0)
    # The first slots go to the sure offspring in order, the others to chance.
    slot = torch.arange(num_particles, device=expected.device).expand_as(expected)
    in_order = _searched(sure.cumsum(1), slot + 0.5)
    has_rest = rest.sum(1, keepdim=True) > ROUNDING
    by_chance = _at_points(
        torch.where(has_rest, rest, expected).log().t(), _uniforms(log_weights, num_particles)
    )
    is_sure = slot < sure.sum(1, keepdim=True)
    return _classical(torch.where(is_sure.t(), in_order, by_chance))


def soft(log_weights: Float[Tensor, "particle trial"]) -> Resampled:
    """Systematic from a mixture with the uniform law, corrected by weights with a gradient."""
    # In logarithms throughout: a weight that rounds to 0 may be chosen, and has a gradient then.
    own = torch.log_softmax(log_weights, 0)
    uniform = own.new_tensor(math.log((1 - SOFT_SHARE) / len(log_weights)))
    mixture = torch.logaddexp(own + math.log(SOFT_SHARE), uniform)
    ancestors = systematic(mixture).ancestors
    return Resampled(ancestors, (own - mixture).gather(0, ancestors))


RESAMPLING: dict[str, Scheme] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
    "soft": soft,
}


def scheme_named(name: str) -> Scheme:
    """A scheme by its name.

    Raises:
        ValueError: naming the schemes there are.
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
    """Survivors all weigh the same."""
    return Resampled(ancestors, torch.zeros(ancestors.shape, device=ancestors.device))


def _uniforms(
    log_weights: Float[Tensor, "particle trial"], num_columns: int
) -> Float[Tensor, "trial columns"]:
    shape = (log_weights.shape[1], num_columns)
    return torch.rand(shape, device=log_weights.device, dtype=torch.float64)


def _at_points(
    log_weights: Float[Tensor, "particle trial"], points: Float[Tensor, "trial particle"]
) -> Int[Tensor, "particle trial"]:
    """The particles under whose share of the unit interval the points lie.

    Of the interval as long as its sum was rounded to be, in which a point below 1 stays below its
    end: a particle without weight is never met, not even as the last.
    """
    summed = _summed(log_weights)
    return _searched(summed, points * summed[:, -1:])


def _summed(
    log_weights: Float[Tensor, "particle trial"],
) -> Float[Tensor, "trial particle"]:
    """Sums of the first weights, in double precision: in single, many of them sum to below 1."""
    return torch.softmax(log_weights.t(), 1, dtype=torch.float64).cumsum_(1)


def _repeated(up_to: Int[Tensor, "trial particle"]) -> Int[Tensor, "particle trial"]:
    """Every particle as often as it lives on, given how many slots it and those before it take."""
    num_trials, num_particles = up_to.shape
    ends = up_to.new_zeros(num_trials, num_particles + 1)
    ends.scatter_add_(1, up_to, torch.ones_like(up_to))
    # A slot belongs to the first particle that ends after it: as many end up to there.
    return ends[:, :-1].cumsum(1).t()


def _searched(
    summed: Float[Tensor, "trial particle"], points: Float[Tensor, "trial particle"]
) -> Int[Tensor, "particle trial"]:
    """Per trial the first particle whose sum exceeds the point (the last where none does)."""
    found = torch.searchsorted(summed, points, right=True)
    return found.clamp_max_(summed.shape[1] - 1).t()
