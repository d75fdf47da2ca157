"""What neurons share from bin to bin: where a readout of a few latents can start::

    r_n(t) = (x_n(t) - mean_n) / sd_n
    C_l = E[r(t) r(t + l)']
    M = mean over lags l = 1 ... L of (C_l C_l' + C_l' C_l) / 2 = V diag(lambda^2) V'
    components_nk = sd_n V_nk sqrt(lambda_k),    the largest lambda

Covariances between *different* bins hold what latents carry from one to the next and nothing of the
noise of single bins, that of spike counts included: counts need no smoothing, whose width would
have to be chosen. Their squares do not cancel where latents oscillate and covariances change sign.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NUM_LAGS = 5
"""L."""


@torch.no_grad()
def initial_loadings(
    x: Float[Tensor, "trial time neuron"],
    scored: Bool[Tensor, "trial time neuron"],
    num_components: int,
) -> Float[Tensor, "neuron component"]:
    """The components, in units of x per standard deviation of a latent; signs are those that make
    the largest entry of each positive.

    Args:
        x: observations.
        scored: which of them there are.
        num_components: how many; those beyond what is shared are 0.
    """
    num_bins, num_neurons = x.shape[1:]
    there = scored.double()
    mean = (x * there).sum((0, 1)) / there.sum((0, 1)).clamp_min(1)
    away = torch.where(scored, x - mean, 0.0)
    sd = (away.square().sum((0, 1)) / there.sum((0, 1)).clamp_min(1)).sqrt()
    r = away / torch.where(sd > 0, sd, 1.0)
    lags = range(1, min(NUM_LAGS, num_bins - 1) + 1)
    M = r.new_zeros(num_neurons, num_neurons)
    for lag in lags:
        products, pairs = (
            value[:, :-lag].flatten(0, 1).mT @ value[:, lag:].flatten(0, 1) for value in (r, there)
        )
        C = products / pairs.clamp_min(1)
        M += (C @ C.mT + C.mT @ C) / (2 * len(lags))
    squares, vectors = torch.linalg.eigh(M)
    values = squares.clamp_min(0).sqrt()
    largest = min(num_components, num_neurons)
    values, vectors = values.flip(0)[:largest], vectors.flip(1)[:, :largest]
    heaviest = vectors.abs().argmax(0, keepdim=True)
    components = sd[:, None] * vectors * values.sqrt()
    components = components * vectors.gather(0, heaviest).sign()
    return torch.nn.functional.pad(components, (0, num_components - largest)).to(x.dtype)
