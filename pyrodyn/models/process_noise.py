"""Covariances of process noise as unconstrained parameters: log standard deviations, and below the
diagonal of a full one the entries of its Cholesky factor L themselves.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.distributions.gaussian import Covariance

NOISES = ("scalar", "diagonal", "full")

NOISE_DIMS = {"diagonal": ("latent",), "full": ("latent", "latent_from")}
"""Names of the dims of the unconstrained form of a noise that has a value per latent."""
"""Forms: one standard deviation for all latents, one for each, or any covariance."""

NOISE_FLOOR = 1e-4
"""Smallest standard deviation of process noise, so that a density exists."""


def raw_noise(kind: str, dim: int, scale: float) -> Float[Tensor, "..."]:
    """The unconstrained form of scale^2 I."""
    log_scale = torch.tensor(scale - NOISE_FLOOR).log()
    if kind == "scalar":
        return log_scale[None].clone()
    diagonal = log_scale.expand(dim).clone()
    return diagonal if kind == "diagonal" else torch.diag(diagonal)


def raw_of(covariance: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """The unconstrained form of a full covariance."""
    factor = torch.linalg.cholesky(covariance)
    return factor.tril(-1) + torch.diag((factor.diagonal() - NOISE_FLOOR).clamp_min(1e-12).log())


def covariance_of(raw: Float[Tensor, "..."], kind: str, dim: int) -> Covariance:
    """The covariance of an unconstrained form."""
    if kind != "full":
        return Covariance.of_factor(torch.diag_embed((raw.exp() + NOISE_FLOOR).expand(dim)))
    diagonal = raw.diagonal().exp() + NOISE_FLOOR
    return Covariance.of_factor(raw.tril(-1) + torch.diag_embed(diagonal))
