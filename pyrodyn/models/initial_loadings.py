"""Initial loadings of a readout, from what neurons share across bins::

    r_n(t) = (x_n(t) - mean_n) / sd_n
    C_l = E[r(t) r(t + l)']
    M = mean over lags l = 1 ... L of (C_l C_l' + C_l' C_l) / 2 = V diag(lambda^2) V'
    loadings_nk = sd_n V_nk sqrt(lambda_k),    the largest lambda

Covariances between *different* bins reflect what the latents carry over from bin to bin and are not
affected by noise that is independent across bins, such as that of spike counts, so that counts need
no smoothing. Their squares do not cancel if latents oscillate and covariances change sign.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyrodyn.data.batch import Batch
from pyrodyn.models.observations import Gaussian, Observation

NUM_LAGS = 5
"""L."""

MAX_EXPLAINED = 0.99
"""Largest fraction of a channel's variance that the initial loading assigns to the latents."""


@torch.no_grad()
def initial_loadings(
    x: Float[Tensor, "trial time neuron"],
    scored: Bool[Tensor, "trial time neuron"],
    num_components: int,
) -> Float[Tensor, "neuron component"]:
    """Loadings in units of x per standard deviation of a latent; signs make the largest entry of
    each column positive.

    Args:
        x: observations.
        scored: which of them were measured.
        num_components: number of columns; those beyond the rank of M are 0.
    """
    num_bins, num_neurons = x.shape[1:]
    measured = scored.double()
    mean = (x * measured).sum((0, 1)) / measured.sum((0, 1)).clamp_min(1)
    residual = torch.where(scored, x - mean, 0.0)
    sd = (residual.square().sum((0, 1)) / measured.sum((0, 1)).clamp_min(1)).sqrt()
    r = residual / torch.where(sd > 0, sd, 1.0)
    lags = range(1, min(NUM_LAGS, num_bins - 1) + 1)
    M = r.new_zeros(num_neurons, num_neurons)
    for lag in lags:
        products, pairs = (
            value[:, :-lag].flatten(0, 1).mT @ value[:, lag:].flatten(0, 1)
            for value in (r, measured)
        )
        C = products / pairs.clamp_min(1)
        M += (C @ C.mT + C.mT @ C) / (2 * len(lags))
    squares, vectors = torch.linalg.eigh(M)
    values = squares.clamp_min(0).sqrt()
    largest = min(num_components, num_neurons)
    values, vectors = values.flip(0)[:largest], vectors.flip(1)[:, :largest]
    largest_entry = vectors.abs().argmax(0, keepdim=True)
    loadings = sd[:, None] * vectors * values.sqrt()
    loadings = loadings * vectors.gather(0, largest_entry).sign()
    return torch.nn.functional.pad(loadings, (0, num_components - largest)).to(x.dtype)


@torch.no_grad()
def start_loading(
    loading: nn.Parameter,
    bias: nn.Parameter,
    observation: Observation,
    linked: Callable[[Tensor], Tensor],
    batch: Batch,
) -> None:
    """Initialise the loading of a linear readout so that latents have unit variance, and the noise
    of Gaussian channels with the rest of their variance.

    `initial_loadings` are divided by the derivative of the mean by the readout at its bias, and for
    log means reduced to preserve the variance of the mean, log(1 + q) in place of q. Latents beyond
    their rank keep their random loadings.

    Args:
        loading: ``(predictor, latent)``.
        bias: ``(predictor,)``, initialised already.
        observation: its Gaussian parts are initialised already.
        linked: from the readout to the linear predictors.
        batch: the recording.
    """
    assert batch.x is not None
    neuron, is_log_mean = (each.to(loading.device) for each in observation.predictors())
    # In standardised units, so that no channel counts for more because of its unit.
    x = observation.standardised(batch.x, batch.scored)
    components = initial_loadings(x, batch.scored, loading.shape[1])
    with torch.enable_grad():
        at = bias.detach().requires_grad_()
        mean = observation(linked(at)[None]).mean
        (slope,) = torch.autograd.grad(mean.sum(), at)
    raises_mean = (slope > 0)[:, None]  # not so the logits of zero inflation
    tiny = torch.finfo(slope.dtype).tiny
    units = observation.units().to(components)[:, None] * components
    start = units[neuron] / slope.clamp_min(tiny)[:, None]
    q = start.square().sum(-1, keepdim=True)
    shrinkage = (torch.log1p(q) / q.clamp_min(tiny)).sqrt()
    start = torch.where(is_log_mean[:, None], start * shrinkage, start)
    loading.copy_(torch.where(raises_mean & (start != 0).any(0), start, loading))
    # The rest of the variance is noise, if the noise has a variance of its own.
    explained, column = components.square().sum(-1), 0
    for single in observation.singles():
        end = column + single.num_neurons
        if isinstance(single, Gaussian):
            fraction = explained[column:end] / single.log_scale.exp().square()
            single.log_scale.add_(0.5 * torch.log1p(-fraction.clamp_max(MAX_EXPLAINED)))
        column = end
