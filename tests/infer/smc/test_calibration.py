"""The particle smoother where no exact posterior is known: simulation-based calibration.

Whatever the model, a truth z* ~ p(z) that made the data x ~ p(x | z*) is one more draw from
p(z | x): among L draws of the smoother every rank of f(z*, x) is equally likely, for every f. Here
chi-square over 1000 trials measures how far ranks are from that.

An f of z alone does not do: draws of the prior, or of a filter, which pass over some of the data,
are as uniform in their ranks (the last test but one). The likelihood log p(x | z) and a product of
z with later data tell them apart.

Sources: Talts et al. 2018 (arXiv 1804.06788); Modrak et al. 2023 (Bayesian Analysis: f of data).
"""

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from pyrodyn.analysis import free_run
from pyrodyn.data import Trials, recording
from pyrodyn.data.batch import Batch
from pyrodyn.data.teachers import teacher_network
from pyrodyn.infer import particle_filter, particle_smoother
from pyrodyn.infer.smc.particle_filter import FilterResult
from pyrodyn.models import LowRankRNN

pytestmark = pytest.mark.slow

NUM_TRIALS, NUM_BINS, NUM_DRAWS, NUM_PARTICLES = 1000, 12, 9, 250

FALSE_ALARM = 1e-4
"""A right smoother is called wrong at this rate per rank statistic, of which there are some 30."""

POWER = 1e-8
"""A wrong one must be found out beyond all doubt."""


class Simulated(NamedTuple):
    """Trials of a model, with the truth."""

    model: LowRankRNN
    batch: Batch
    truth: Float[Tensor, "trial time latent"]


def oscillation() -> LowRankRNN:
    """A rank-2 limit cycle of relu units, seen through counts."""
    network = teacher_network("limit_cycle", 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LowRankRNN(5, latent_dim=2, num_units=8, proposal="bootstrap")
    with torch.no_grad():
        model.m.copy_(torch.tensor(network.m))
        model.n.copy_(torch.tensor(network.n))
        model.threshold.copy_(torch.tensor(network.threshold))
        model.raw_noise.fill_(math.log(0.4))
        model.raw_start_noise.fill_(math.log(1.5))
        model.loading.mul_(0.3)
    return model


def two_wells() -> LowRankRNN:
    """A rank-1 network of tanh units with two stable states, seen through sharp noise."""
    model = LowRankRNN(
        3,
        latent_dim=1,
        num_units=4,
        activation="tanh",
        observation="gaussian",
        proposal="optimal",
    )
    with torch.no_grad():
        model.log_rate.fill_(math.log(-math.log(0.5)))
        model.m.copy_(torch.tensor([[1.0], [1.5], [-0.8], [0.5]]))
        model.n.copy_(torch.tensor([[0.4, 0.3, -0.3, 0.2]]))
        model.raw_noise.fill_(math.log(0.6))
        model.loading.copy_(torch.tensor([[1.0], [-0.5], [0.3]]))
        model.observation.use_raw_units()
        model.observation.log_scale.copy_(torch.tensor([1.5, 1.0, 2.0]).log())
    return model


MODELS = {"oscillation": oscillation, "two wells": two_wells}


@cache
def simulated(name: str) -> Simulated:
    model = MODELS[name]()
    drawn = free_run(model, NUM_TRIALS, NUM_BINS, seed=1)
    is_signal = model.observation.observed == "signal"
    x = {"signal" if is_signal else "counts": drawn["x"].values}
    batch = Trials(recording(bin_width=0.01, **x)).batch()
    return Simulated(model, batch, torch.from_numpy(drawn["latents"].values))


@cache
def filtered(name: str) -> FilterResult:
    model, batch, _ = simulated(name)
    torch.manual_seed(2)
    return particle_filter(model, batch, NUM_PARTICLES)


@torch.no_grad()
def functionals(
    model: LowRankRNN, batch: Batch, paths: Float[Tensor, "*draw trial time latent"]
) -> dict[str, Float[Tensor, "*draw trial"]]:
    """What is ranked: places, the size of the noise, and what meets the data."""
    found = {}
    for dim in range(paths.shape[-1]):
        z = paths[..., dim]
        found |= {
            f"first z{dim}": z[..., 0],
            f"middle z{dim}": z[..., NUM_BINS // 2],
            f"last z{dim}": z[..., -1],
            f"sum of z{dim}": z.sum(-1),
        }
    states = model.states(None, paths, model.known_inputs(batch))
    noise = paths[..., 1:, :] - model.mean_step(states)[..., :-1, :]
    emission = model.emission(states)
    read = (batch.x - batch.x.mean((0, 1))) @ model.loading
    return {
        **found,
        "noise": noise.square().sum((-2, -1)),
        "likelihood": emission.log_prob(batch.x).sum((-2, -1)),
        "first z x later data": (paths[..., 0, :] * read[:, 1:4].sum(1)).sum(-1),
    }


def p_values(
    model: LowRankRNN,
    batch: Batch,
    truth: Float[Tensor, "trial time latent"],
    paths: Float[Tensor, "draw trial time latent"],
) -> dict[str, float]:
    """Of chi-square tests that ranks of the truth are uniform."""
    drawn, true = functionals(model, batch, paths), functionals(model, batch, truth)
    ranks = {name: (values < true[name]).sum(0) for name, values in drawn.items()}
    return {
        name: float(stats.chisquare(torch.bincount(rank, minlength=len(paths) + 1).numpy()).pvalue)
        for name, rank in ranks.items()
    }


@pytest.mark.parametrize("method", ["ffbsi", "mcmc"])
@pytest.mark.parametrize("name", MODELS)
def test_the_truth_ranks_as_one_more_draw(name, method):
    model, batch, truth = simulated(name)
    torch.manual_seed(3)
    paths = particle_smoother(model, batch, NUM_DRAWS, method=method, filtered=filtered(name)).paths
    found = p_values(model, batch, truth, paths)
    assert min(found.values()) > FALSE_ALARM, found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_wrong_noise_is_found_out(name, factor):
    """The data keep their noise, the smoother believes in another."""
    model, batch, truth = simulated(name)
    wrong = MODELS[name]()
    with torch.no_grad():
        wrong.raw_noise += math.log(factor)
    torch.manual_seed(3)
    paths = particle_smoother(wrong, batch, NUM_DRAWS, num_particles=NUM_PARTICLES).paths
    found = p_values(model, batch, truth, paths)
    assert found["noise"] < POWER, found


@pytest.mark.parametrize("name", MODELS)
def test_filtered_draws_are_found_out_by_the_data_alone(name):
    """At the first bin a filter knows p(z_1 | x_1). Ranks of z_1 cannot tell, since that is the
    posterior given less; ranks of what meets later data can.
    """
    model, batch, truth = simulated(name)
    run = filtered(name)
    torch.manual_seed(3)
    bins = []
    for z, log_weights in zip(run.paths, run.log_weights, strict=True):
        chosen = torch.multinomial(log_weights.T.exp(), NUM_DRAWS, replacement=True).T
        bins.append(torch.take_along_dim(z, chosen[..., None], 0))
    found = p_values(model, batch, truth, torch.stack(bins, 2))
    assert found["first z x later data"] < POWER, found
    assert min(value for key, value in found.items() if key.startswith("first z0")) > FALSE_ALARM


def test_too_few_particles_are_found_out():
    """Ancestral paths share their early bins: draws that coincide leave the truth at an end."""
    model, batch, truth = simulated("oscillation")
    torch.manual_seed(3)
    paths = particle_smoother(model, batch, NUM_DRAWS, method="ancestral", num_particles=20).paths
    found = p_values(model, batch, truth, paths)
    assert found["first z0"] < POWER, found
