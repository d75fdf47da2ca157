"""Shallow PLRNNs: the equations, against low-rank networks, linear systems and all regions."""

import numpy as np
import pytest
import torch
import xarray as xr
from linear_gaussian import copies_of

import pyrodyn
from pyrodyn.analysis import fixed_points
from pyrodyn.data import recording
from pyrodyn.infer import kalman_filter, particle_filter
from pyrodyn.models import LinearDynamics, LowRankRNN, ShallowPLRNN
from pyrodyn.models.low_rank_rnn import LowRankState
from pyrodyn.models.proposals import EncoderFactor, OptimalFactor


def signals(num_channels: int = 4, num_inputs: int = 0, num_bins: int = 6) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (5, num_bins)
    inputs = {"inputs": rng.normal(size=(*shape, num_inputs))} if num_inputs else {}
    return recording(signal=rng.normal(size=(*shape, num_channels)), bin_width=0.01, **inputs)


def random_model(data: xr.Dataset, **options: object) -> ShallowPLRNN:
    """A network with weights far from their initial values."""
    sizes = {"latent_dim": 2, "num_units": 7}
    model = ShallowPLRNN.for_recording(data, seed=0, **{**sizes, **options}).double()
    torch.manual_seed(1)
    with torch.no_grad():
        model.A.copy_(torch.linspace(-0.7, 0.9, len(model.A)))
        model.W1.copy_(0.6 * torch.randn(model.W1.shape))
        for parameter in (model.h1, model.h2, model.C, model.start_mean, model.raw_noise):
            parameter.copy_(torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("is_clipped", [True, False])
@torch.no_grad()
def test_the_densities_are_those_of_the_equations(is_clipped):
    data = signals(num_inputs=1)
    model = random_model(data, is_clipped=is_clipped)
    batch = model.trials_of(data).batch()
    z = torch.randn(5, 6, 2, dtype=torch.double)
    currents = z @ model.W2.mT
    rates = (currents + model.h2).clamp(min=0) - is_clipped * currents.clamp(min=0)
    mean = model.A * z + rates @ model.W1.mT + model.h1
    mean = mean[:, :-1] + batch.inputs[:, 1:] @ model.C.mT
    sd = model.raw_noise.exp() + 1e-4
    wanted = torch.distributions.Normal(mean, sd).log_prob(z[:, 1:]).sum(-1)
    states = model.states(None, z, batch.inputs)
    found = model.transitions(z, states, batch.inputs).log_prob(z[:, 1:])
    torch.testing.assert_close(found, wanted)
    dynamics = model.dynamics()
    torch.testing.assert_close(dynamics.step(z[:, :-1], batch.inputs[:, 1:]), mean)
    part = model.observation.gaussian_part()
    read = part.offset + part.unit * (z @ model.loading.mT + model.bias)
    torch.testing.assert_close(model.emission(states).mean, read)
    emission = model.linear_emission(batch)
    torch.testing.assert_close(z @ emission.matrix.mT + emission.offset, read)


@pytest.mark.parametrize("is_clipped", [True, False])
@torch.no_grad()
def test_it_is_the_low_rank_network_of_the_same_weights(is_clipped):
    """Without h1 and with a decay per latent; the filter's evidence is the same per seed."""
    data = signals()
    model = random_model(data, is_clipped=is_clipped)
    model.h1.zero_()
    model.A.copy_(torch.tensor([0.4, 0.9]))
    twin = LowRankRNN.for_recording(
        data,
        latent_dim=2,
        num_units=7,
        activation="clipped_relu" if is_clipped else "relu",
        decay_per_latent=True,
    ).double()
    twin.load_state_dict(
        {
            **{name: v for name, v in model.state_dict().items() if name in twin.state_dict()},
            "m": model.W2,
            "n": model.W1,
            "threshold": model.h2 if is_clipped else -model.h2,
            "log_rate": (-model.A.log()).log(),
            "input_weights": twin.input_weights,
        }
    )
    z = torch.randn(9, 2, dtype=torch.double)
    nothing = z[:, :0]
    expected = twin.mean_step(LowRankState(z, nothing, nothing))
    torch.testing.assert_close(model.mean_step(z, nothing), expected)
    batch = model.trials_of(data).batch()
    evidence = []
    for each in (model, twin):
        torch.manual_seed(0)
        evidence.append(particle_filter(each, batch, 20).log_evidence)
    torch.testing.assert_close(*evidence)
    found, wanted = fixed_points(model), fixed_points(twin)
    assert found.attrs["complete"] == wanted.attrs["complete"] == 1
    np.testing.assert_allclose(found["point"], wanted["point"], atol=1e-9)


@torch.no_grad()
def test_without_units_the_filter_estimates_the_evidence_of_the_linear_system():
    data = signals(num_inputs=1)
    model = random_model(data)
    assert isinstance(model.proposal, OptimalFactor)
    for parameter in (model.W1, model.h1):
        parameter.zero_()
    model.raw_noise.fill_(-0.5)
    linear = LinearDynamics.for_recording(data, latent_dim=2, noise="diagonal").double()
    shared = {k: v for k, v in model.state_dict().items() if k in linear.state_dict()}
    linear.load_state_dict({**shared, "A": torch.diag(model.A), "B": model.C})
    batch = model.trials_of(data).batch()
    evidence = kalman_filter(linear, batch).log_evidence.sum(0)
    torch.manual_seed(0)
    runs = particle_filter(model, copies_of(batch, 40), 200).log_evidence.sum(0).reshape(40, -1)
    ratio = (runs - evidence).exp()
    assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 40**0.5).all()


@torch.no_grad()
def test_fixed_points_and_cycles_are_those_of_the_map():
    """Each is mapped to itself or around; as many fixed points as a dense set of starts reaches."""
    data = signals(num_inputs=1)
    model = random_model(data)
    model.W1 *= 4
    dynamics, inputs = model.dynamics(), torch.tensor([0.4], dtype=torch.double)
    found = fixed_points(model, inputs=inputs.numpy())
    assert found.attrs["complete"] == 1
    points = torch.from_numpy(found["point"].values)
    assert len(points) > 1
    torch.testing.assert_close(dynamics.step(points, inputs.expand(len(points), 1)), points)
    # Newton's method reaches the solution of a region from any point inside it.
    low, high = found.attrs["lower"], found.attrs["upper"]
    axes = [torch.linspace(*ends, 400, dtype=torch.double) for ends in zip(low, high, strict=True)]
    z = torch.cartesian_prod(*axes)
    i = inputs.expand(len(z), 1)
    residual = dynamics.step(z, i) - z
    J = dynamics.jacobian(z, i)
    solved = z - torch.linalg.solve(J - torch.eye(2, dtype=z.dtype), residual)
    is_own = (dynamics.step(solved, i) - solved).abs().amax(-1) < 1e-9
    reached = torch.unique(solved[is_own].round(decimals=6), dim=0)
    apart = torch.cdist(reached, points)
    assert (apart.amin(1) < 1e-5).all()
    assert (apart.amin(0) < 1e-5).all()
    cycles = torch.from_numpy(fixed_points(model, inputs=inputs.numpy(), period=2)["point"].values)
    assert len(cycles)
    around = dynamics.step(cycles, inputs.expand(*cycles.shape[:2], 1))
    torch.testing.assert_close(around, cycles.flip(1))


@torch.no_grad()
def test_with_an_identity_readout_a_latent_is_a_channel():
    data = signals(num_channels=3)
    model = random_model(data, readout="identity", latent_dim=3)
    assert not {"loading", "bias"} & {name for name, _ in model.named_parameters()}
    z = torch.randn(2, 4, 3, dtype=torch.double)
    mean = model.emission(model.states(None, z, z[..., :0])).mean
    x = data["signal"].values.reshape(-1, 3)
    np.testing.assert_allclose(mean, x.mean(0) + x.std(0) * z.numpy(), rtol=1e-5)
    counts = recording(np.random.default_rng(0).poisson(4.0, (6, 9, 3)), bin_width=0.01)
    of_counts = ShallowPLRNN.for_recording(counts, readout="identity", latent_dim=3, seed=0)
    assert isinstance(of_counts.proposal, EncoderFactor)
    mean = of_counts.start_mean[None]
    rates = of_counts.emission(of_counts.initial_state(None, mean, mean[:, :0])).mean[0]
    np.testing.assert_allclose(rates, counts["counts"].mean(("trial", "time")), rtol=0.05)
    of_counts.W1.zero_()
    torch.testing.assert_close(of_counts.mean_step(mean, mean[:, :0]), mean)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="there are 2 latents and 4 linear predictors of 4"):
        ShallowPLRNN(4, latent_dim=2, readout="identity")
    with pytest.raises(ValueError, match="readout='rates' is unknown; it is one of affine"):
        ShallowPLRNN(4, readout="rates")
    with pytest.raises(ValueError, match="optimal proposal needs a gaussian observation"):
        ShallowPLRNN(4, proposal="optimal")


@pytest.mark.parametrize("readout", ["affine", "identity"])
def test_a_saved_network_is_the_same(tmp_path, readout):
    data = signals(num_channels=2)
    model = random_model(data, readout=readout).float()
    pyrodyn.save(model, tmp_path)
    loaded = pyrodyn.load(tmp_path)
    assert isinstance(loaded, ShallowPLRNN)
    batch = model.trials_of(data).batch()
    runs = []
    for each in (model, loaded):
        torch.manual_seed(0)
        runs.append(particle_filter(each, batch, 5).log_evidence)
    assert torch.equal(*runs)
