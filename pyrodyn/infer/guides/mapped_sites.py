"""Guides whose latent sites are drawn from other distributions than stated: each a function of the
stated one, such as an invertible map of its draws. What a guide draws next is conditioned on the
draws so made.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.affine import TriangularAffine
from pyrodyn.infer.guides.check_guide import GuideError
from pyrodyn.infer.traces import Program, guide_program, is_local, latent_sites, traced
from pyrodyn.models.state_space import Distribution

SiteMap = Callable[[Distribution], Distribution]
"""From the distribution of a site per trial to the one that takes its place."""


class MappedSites(Messenger):
    """Inside, the distributions of latent sites are replaced.

    Args:
        maps: by site.
    """

    def __init__(self, maps: Mapping[str, SiteMap]) -> None:
        super().__init__()
        self.maps = maps

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.maps and not msg["is_observed"]:
            msg["fn"] = self.maps[msg["name"]](msg["fn"])


class TrialMaps(nn.Module):
    """A guide whose draws are mapped affinely, by parameters of every trial of one batch::

        s -> c + D L (D^-1 (s - c) + h),      at first L = I, h = 0

    with c and the diagonal D mean and standard deviation of some draws, L lower triangular along
    the last dim of an event.

    Args:
        guide: whose draws are mapped; it is no part of this module.
        drawn: draws by site, ``(draw, trial, *event)``.
    """

    guide: Program

    def __init__(self, guide: Program, drawn: Mapping[str, Tensor]) -> None:
        super().__init__()
        vars(self)["guide"] = guide
        self.units = {name: (value.mean(0), value.std(0)) for name, value in drawn.items()}
        zeros = {name: torch.zeros_like(value[0]) for name, value in drawn.items()}
        self.shift = nn.ParameterDict(zeros)
        self.raw_triangle = nn.ParameterDict(
            {name: zero.new_zeros(*zero.shape, zero.shape[-1]) for name, zero in zeros.items()}
        )

    def forward(self, batch: Batch) -> None:
        """Draw every latent site."""
        with MappedSites({name: partial(self.mapped, name) for name in self.units}):
            guide_program(self.guide)(batch)

    def mapped(self, name: str, stated: Distribution) -> Distribution:
        """The distribution of a mapped draw."""
        (centre, scale), raw = self.units[name], self.raw_triangle[name]
        L = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
        triangle = scale[..., None] * L / scale[..., None, :]
        shift = centre + (triangle @ (scale * self.shift[name] - centre)[..., None])[..., 0]
        return dist.TransformedDistribution(stated, [TriangularAffine(shift, triangle)])

    def log_densities(self, drawn: poutine.Trace) -> dict[str, Tensor]:
        """Log densities of draws by site, with the gradient of the draws but not of the maps'
        parameters: that of sticking the landing (Roeder et al. 2017).
        """
        found = {}
        for name in self.units:
            site = drawn.nodes[name]
            (affine,) = site["fn"].transforms
            fixed = TriangularAffine(affine.shift.detach(), affine.triangle.detach())
            q = dist.TransformedDistribution(site["fn"].base_dist, [fixed])
            found[name] = q.log_prob(site["value"])
        return found


def real_draws(guide: Program, batch: Batch, num_draws: int) -> dict[str, Tensor]:
    """Draws of a guide by site, ``(draw, trial, *event)``.

    Raises:
        GuideError: for a site that is not drawn per trial as a real vector from a density.
    """
    trials = torch.arange(batch.num_trials, device=batch.seen.device)
    trace = traced(guide_program(guide), batch.take(trials.repeat(num_draws)))
    found = {}
    for name in latent_sites(trace):
        q, drawn = trace.nodes[name]["fn"], trace.nodes[name]["value"].detach()
        ends = (drawn.abs() + 1, -drawn.abs() - 1)
        is_density = is_local(trace.nodes[name]) and q.event_dim and not isinstance(q, Delta)
        if not is_density or not all(q.support.check(end).all() for end in ends):
            raise GuideError(
                "RefinedGuide refines guides that draw every latent site per trial as a real"
                f" vector from a density of its own; {name!r} is not drawn so"
            )
        found[name] = drawn.unflatten(0, (num_draws, -1))
    return found
