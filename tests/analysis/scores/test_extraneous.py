"""Scores of dynamics that are not there, where their values are known."""

import numpy as np
import pytest
import torch

import pyrodyn
from pyrodyn.analysis import (
    bits_per_spike,
    cycle_consistency,
    few_shot_co_smoothing,
    input_leakage,
    readout_null_fraction,
    steering_gap,
)
from pyrodyn.data import recording
from pyrodyn.models import LowRankRNN

SHAPE = NUM_TRIALS, NUM_BINS = 30, 20


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_latents_that_no_neuron_shows_break_the_cycle(rng):
    """Two latents of variance 1 and 4 of which the rates show the first: a fifth is recovered."""
    z = rng.normal(size=(2, 400, 20, 2)) * [1, 2]
    readout = np.array([[1.0, 0.0], [-0.5, 0.0], [0.3, 0.0]])
    train, test = (np.exp(part @ readout.T - 1) for part in z)
    found = cycle_consistency(z[0], train, z[1], test)
    assert found == pytest.approx(0.2, abs=0.02)
    readout[:, 1] = [0.2, 0.1, 0.7]
    train, test = (np.exp(part @ readout.T - 1) for part in z)
    assert cycle_consistency(z[0], train, z[1], test) == pytest.approx(1, abs=1e-10)
    valid = np.ones((400, 20), bool)
    valid[:, 15:] = False
    train[:, 15:] = np.nan
    assert cycle_consistency(z[0], train, z[1], test, valid_train=valid) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"rates is -1 at .* must be >= 0"):
        cycle_consistency(z[0], -np.ones_like(test), z[1], test)
    with pytest.raises(ValueError, match="latents are constant"):
        cycle_consistency(z[0], test, np.ones_like(z[1]), test)


def test_variance_in_the_null_space(rng):
    z = rng.normal(size=(50, 10, 3)) + 7  # means do not count
    orthogonal, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    readout = rng.normal(size=(8, 2)) @ orthogonal[:2]
    off = np.square((z - z.mean((0, 1))) @ orthogonal[2]).sum()
    total = np.square(z - z.mean((0, 1))).sum()
    assert readout_null_fraction(z, readout) == pytest.approx(off / total)
    assert readout_null_fraction(z, np.eye(3)) == pytest.approx(0, abs=1e-12)
    assert readout_null_fraction(z, np.zeros((4, 3))) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"readout has shape \(3, 2\); it must be \(neuron, 3\)"):
        readout_null_fraction(z, np.ones((3, 2)))


def test_inputs_that_follow_the_state_leak(rng):
    states = rng.normal(size=(2, *SHAPE, 3))
    noise = rng.normal(size=(2, *SHAPE, 2))
    follows = np.roll(states, 1, axis=2)[..., :2]
    # Half of the variance of each input is that of the state one bin before.
    leaky = (follows + noise) / np.sqrt(2)
    error = 4 * np.sqrt(2 / (NUM_TRIALS * NUM_BINS))
    assert input_leakage(leaky[0], states[0], leaky[1], states[1]) == pytest.approx(0.5, abs=error)
    assert input_leakage(noise[0], states[0], noise[1], states[1]) < 0.02
    same_bin = states[..., :2]  # which the state before does not determine
    assert input_leakage(same_bin[0], states[0], same_bin[1], states[1]) < 0.02


def test_few_shots_punish_extraneous_dimensions(rng):
    z = rng.normal(size=(2, *SHAPE, 2))
    weights = np.array([[0.6, -0.4, 0.5], [0.3, 0.7, -0.6]])
    rates = np.exp(z @ weights)
    counts = rng.poisson(rates)
    null = counts[0].mean((0, 1))
    ceiling = bits_per_spike(rates[1], counts[1], null=null)

    def score(latents, num_shots):
        return few_shot_co_smoothing(
            latents[0], counts[0], latents[1], counts[1], num_shots=num_shots, num_repeats=3
        )

    extraneous = np.concatenate([z, rng.normal(size=(2, *SHAPE, 12))], -1)
    assert score(z, NUM_TRIALS) == pytest.approx(ceiling, abs=0.02)
    assert score(extraneous, NUM_TRIALS) == pytest.approx(ceiling, abs=0.05)
    assert score(z, 2) > 0.5 * ceiling
    assert score(extraneous, 2) < score(z, 2) - 0.2
    # Latents without information: the mean of the shots, here of all.
    assert score(np.zeros_like(z), NUM_TRIALS) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="num_shots=31 exceeds the 30 training trials"):
        score(z, 31)


def autoregression(decay: float, noise: float, num_trials: int):
    """A latent z_t = a z_{t-1} + e_t, stationary, that three channels show almost exactly."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 1, "num_units": 1, "activation": "identity", "noise": "scalar"}
    model = LowRankRNN(3, **sizes, observation="gaussian", proposal="optimal")
    with torch.no_grad():
        model.log_rate.fill_(np.log(-np.log(decay)))
        model.n.zero_()
        model.raw_noise.fill_(np.log(noise))
        model.raw_start_noise.fill_(np.log(1.0))
        model.loading.fill_(1.0)
        model.observation.use_raw_units()
        model.observation.log_scale.fill_(np.log(1e-2))
    run = pyrodyn.analysis.free_run(model, num_trials, 6, seed=1)
    return model, recording(signal=run["x"].values, bin_width=0.01)


@pytest.mark.filterwarnings("ignore:draws by method")
def test_the_gap_of_an_autoregression_is_known():
    """An observed z_t leaves a^t z_0 by 1 - a^2t of its variance."""
    decay, num_trials = 0.7, 2000
    model, recorded = autoregression(decay, np.sqrt(1 - decay**2), num_trials)
    tree = pyrodyn.to_datatree(
        model, recorded, num_draws=20, method="smoother", num_particles=20, batch_size=2000
    )
    gap = steering_gap(model, tree)
    expected = 1 - decay ** (2 * np.arange(6))
    # Twenty free runs per trial average noise of variance 1 - a^2t.
    expected += expected / 20
    np.testing.assert_allclose(gap, expected, atol=5 * np.sqrt(2 / num_trials))
    with pytest.raises(ValueError, match="steering_gap compares trials; the tree has one"):
        steering_gap(model, tree.isel(trial=slice(1)))


@pytest.mark.filterwarnings("ignore:draws by method")
def test_dynamics_without_noise_have_no_gap():
    model, recorded = autoregression(0.9, 1e-4, 50)
    tree = pyrodyn.to_datatree(model, recorded, num_draws=10, method="smoother", num_particles=200)
    assert (steering_gap(model, tree) < 1e-3).all()


def test_the_gap_asks_for_the_models_sites(make_recording, make_lfads):
    counts = make_recording()
    lfads = make_lfads(counts, inferred_input_dim=1)
    tree = pyrodyn.to_datatree(lfads, counts, num_draws=2)
    assert steering_gap(lfads, tree).shape == (8,)
    model, _ = autoregression(0.9, 0.1, 2)
    with pytest.raises(ValueError, match="the posterior has no 'z' and rates of a LowRankRNN"):
        steering_gap(model, tree)
