"""Initial loadings of a readout, from what neurons share across bins::

    r_n(t) = (x_n(t) - mean_n) / sd_n
    C_l = E[r(t) r(t + l)']
    M = mean over lags l = 1 ... L of (C_l C_l' + C_l' C_l) / 2 = V diag(lambda^2) V'
    loadings_nk = sd_n V_nk sqrt(lambda_k),    the largest lambda

Covariances between *different* bins reflect what the latents carry over from bin to bin and are not
affected by noise that is independent across bins, such as that of spike counts, so that counts need
no smoothing. Their squares do not cancel if latents oscillate and covariances change sign.
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
