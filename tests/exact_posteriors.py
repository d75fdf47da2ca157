"""Models of one or two initial latents whose posterior is known by quadrature, and is not Gaussian.
Nothing moves after the initial state z, so that every bin has the rates of z.
"""

from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor, nn

from pyrodyn.data import recording
from pyrodyn.data.batch import Batch
from pyrodyn.models import NodeSAE

NUM_TRIALS = 3


class TwoSides(nn.Module):
    """Log rates that z and -z share."""

    def forward(self, z: Tensor) -> Tensor:
        return (z.abs() - 0.5).expand(*z.shape[:-1], 4)


class Bow(nn.Module):
    """Log rates that are constant along the curve z_2 = z_1^2 / 2."""

    def forward(self, z: Tensor) -> Tensor:
        first, second = z.split(1, -1)
        return (1.0 + second - first**2 / 2).expand(*z.shape[:-1], 4)


class Quadrature(NamedTuple):
    """The posterior on a grid.

    Attributes:
        log_evidence: of each trial.
        mean: of z.
        square: E[z_d^2].
    """

    log_evidence: Tensor
    mean: Tensor
    square: Tensor


def data(num_trials: int = NUM_TRIALS, num_bins: int = 3, seed: int = 0) -> xr.Dataset:
    counts = np.random.default_rng(seed).poisson(3.0, (num_trials, num_bins, 4))
    return recording(counts=counts, bin_width=0.01)


def standing(recorded: xr.Dataset, readout: TwoSides | Bow) -> NodeSAE:
    """A model with this readout; only its guide is left to train."""
    torch.manual_seed(0)
    dim = 1 if isinstance(readout, TwoSides) else 2
    model = NodeSAE.for_recording(recorded, latent_dim=dim, encoder_dim=8, dropout=0.0)
    with torch.no_grad():
        for parameter in model.phi.field.linear_layers()[-1].parameters():
            parameter.zero_()
    model.readout = nn.Sequential(readout)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.proposal.parameters():
        parameter.requires_grad_(True)
    return model.eval()


@torch.no_grad()
def log_joint(model: NodeSAE, batch: Batch, z: Tensor) -> Tensor:
    """Log p(z, x) of ``(point, trial, dim)``, by the model's own program."""
    conditioned = poutine.condition(model.model, data={"z0": z})
    trace = poutine.trace(conditioned).get_trace(batch)
    trace.compute_log_prob()
    return trace.nodes["z0"]["log_prob"] + trace.nodes["x"]["log_prob"]


def quadrature(model: NodeSAE, batch: Batch, num_points: int) -> Quadrature:
    """Sums over a grid from -5 to 5 in every latent."""
    dim = model.config["latent_dim"]
    axis = torch.linspace(-5, 5, num_points)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    points = grid[:, None].expand(-1, batch.num_trials, -1)
    density = torch.cat([log_joint(model, batch, part) for part in points.split(4000)]).double()
    weights = density.softmax(0)
    volume = dim * (axis[1] - axis[0]).log()
    return Quadrature(
        density.logsumexp(0) + volume,
        torch.einsum("gt,gd->td", weights, grid.double()),
        torch.einsum("gt,gd->td", weights, grid.double() ** 2),
    )
