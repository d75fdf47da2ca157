"""Teachers: each does its task, the truth obeys the equations, a student can be the teacher."""

import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.data import Trials, teacher
from pyrodyn.data.systems import Array
from pyrodyn.data.teachers import BOUND, PERIOD, RADIUS, TASKS, teacher_network
from pyrodyn.models import LowRankRNN

# --- the noise-free networks --------------------------------------------------------------------


@pytest.mark.parametrize("num_units", [8, 13, 20, 40])
def test_limit_cycle_attracts_and_closes_after_its_period(num_units: int) -> None:
    network = teacher_network("limit_cycle", num_units)
    z = np.array([[0.05, 0.0], [2 * RADIUS, RADIUS]])
    for _ in range(2000):
        z = network.mean_step(z)
    path = [z]
    for _ in range(int(PERIOD)):
        path.append(network.mean_step(path[-1]))
    np.testing.assert_allclose(path[-1], path[0], atol=1e-4)
    radii = np.linalg.norm(path, axis=-1)
    np.testing.assert_allclose(radii, RADIUS, rtol=0.005)
    # and no sooner: half a turn away lies the point opposite
    np.testing.assert_allclose(path[int(PERIOD) // 2], -path[0], atol=0.02)


def test_inside_the_circle_the_map_is_linear() -> None:
    network = teacher_network("limit_cycle", 21)
    z = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2))
    np.testing.assert_allclose(
        network.mean_step(z[0] + z[1]), network.mean_step(z[0]) + network.mean_step(z[1])
    )


def test_line_attractor_and_its_bound() -> None:
    network = teacher_network("evidence_integration", 11)
    inside = np.linspace(-BOUND, BOUND, 9)[:, None]
    np.testing.assert_allclose(network.mean_step(inside), inside, atol=1e-12)
    far = network.mean_step(np.array([[BOUND + 1.0], [-BOUND - 1.0]]))
    np.testing.assert_allclose(far, [[BOUND + 0.2], [-BOUND - 0.2]])


# --- the tasks ----------------------------------------------------------------------------------


def angles(data: xr.Dataset) -> Array:
    latents = data["latents"].values
    return np.arctan2(latents[..., 1], latents[..., 0])


def test_ring_attractor_holds_the_cued_angle() -> None:
    data = teacher("ring_attractor", 100, 250, 60, process_noise=0.0)
    wrong = np.exp(1j * (angles(data) - data["cue_angle"].values[:, None]))
    assert np.abs(np.angle(wrong)).max() < 0.01
    radii = np.linalg.norm(data["latents"].values[:, -1], axis=-1)
    np.testing.assert_allclose(radii, RADIUS, rtol=0.01)
    np.testing.assert_array_equal(data["inputs"].values[:, 10:], 0.0)


def test_on_the_ring_noise_alone_moves_the_angle() -> None:
    noise, num_trials = 0.02, 400
    data = teacher("ring_attractor", num_trials, 250, 60, process_noise=noise)
    late = np.unwrap(angles(data), axis=1)[:, 150:]
    moved = (late[:, -1] - late[:, 0]).std() / np.sqrt(late.shape[1] - 1)
    # A random walk whose step is the noise across the radius.
    assert abs(moved - noise / RADIUS) < 4 * noise / RADIUS / np.sqrt(2 * num_trials)


def test_choice_follows_the_sign_of_the_summed_evidence() -> None:
    data = teacher("evidence_integration", 500, 75, 20, process_noise=0.0)
    evidence = data["inputs"].values[:, :-1, 0].sum(1)
    choice = np.sign(data["latents"].values[:, -1, 0])
    assert (choice == np.sign(evidence)).mean() > 0.98
    assert np.abs(data["latents"].values).max() < BOUND + 1.0
    by_coherence = data["latents"][:, -1, 0].groupby(data["condition"]).mean()
    assert (np.diff(by_coherence) > 0).all()


# --- the recording ------------------------------------------------------------------------------


def residuals(data: xr.Dataset, task: str, num_units: int) -> Array:
    """What noise added to the teacher's map."""
    latents = data["latents"].values.astype(float)
    inputs = data["inputs"].values[:, :-1] if "inputs" in data else 0.0
    return latents[:, 1:] - teacher_network(task, num_units).mean_step(latents[:, :-1], inputs)


@pytest.mark.parametrize("task", TASKS)
def test_truth_obeys_the_equations(task: str) -> None:
    data = teacher(task, 100, 60, 12, process_noise=0.3, observation_noise=0.05, seed=4)
    noise = residuals(data, task, 12)
    for values, sd in ((noise, 0.3), ((data["signal"] - data["rates"]).values, 0.05)):
        assert abs(values.mean()) < 4 * sd / np.sqrt(values.size)
        assert abs(values.std() - sd) < 4 * sd / np.sqrt(2 * values.size)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean() / 0.3**2
    assert abs(neighbours) < 4 / np.sqrt(noise[:, 1:].size)
    read = data["latents"].values @ data["teacher_loading"].values.T + data["teacher_bias"].values
    np.testing.assert_allclose(data["rates"], read, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_student_can_be_the_teacher(task: str) -> None:
    data = teacher(task, 50, 40, 12, observation="poisson")
    network = teacher_network(task, 12)
    latent_dim = network.m.shape[1]
    student = LowRankRNN.for_recording(
        data, latent_dim=latent_dim, num_units=12, noise="scalar", link="softplus"
    )
    with torch.no_grad():
        student.m.copy_(torch.tensor(network.m))
        student.n.copy_(torch.tensor(network.n))
        student.threshold.copy_(torch.tensor(network.threshold))
        if "inputs" in data:
            student.input_weights.copy_(student.m * network.input_gain)
    path = torch.tensor(data["latents"].values)
    batch = Trials(data).batch()
    states = student.states(None, path, batch.inputs)
    step = student.mean_step(states).detach().numpy()[:, :-1]
    noise = data["latents"].values[:, 1:] - step
    np.testing.assert_allclose(noise, residuals(data, task, 12), atol=1e-5)
    start = student.initial(None, batch.inputs[:, 0]).mean.detach().numpy()
    first = data["latents"].values[:, 0] - start
    sd = data.attrs["initial_sd"]
    assert abs(first.std() - sd) < 4 * sd / np.sqrt(2 * first.size)


def test_counts_are_poisson_of_the_softplus() -> None:
    data = teacher("limit_cycle", 100, 100, 20, observation="poisson")
    rates, counts = data["rates"].values.astype(float), data["counts"].values
    read = data["latents"].values @ data["teacher_loading"].values.T + data["teacher_bias"].values
    np.testing.assert_allclose(rates, np.logaddexp(0, read), rtol=1e-4)
    # Pearson's chi-square of Poisson counts: each term has mean 1 and variance 2 + 1 / rate.
    pearson = (counts - rates) ** 2 / rates
    assert abs((pearson - 1).sum() / np.sqrt((2 + 1 / rates).sum())) < 4


def test_same_seed_same_recording() -> None:
    first, again, other = (teacher("limit_cycle", 5, 20, 8, seed=seed) for seed in (3, 3, 4))
    xr.testing.assert_identical(first, again)
    assert not np.allclose(first["latents"], other["latents"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "juggling"}, "unknown task 'juggling'; choose one of limit_cycle"),
        ({"num_neurons": 5}, "5 units cannot perform limit_cycle; give num_neurons at least 8"),
        ({"num_trials": 0}, "num_trials is 0; it must be a positive number"),
        ({"process_noise": -0.1}, "process_noise is -0.1; it must not be negative"),
        ({"observation_noise": np.nan}, "observation_noise is nan; it must not be negative"),
        ({"observation": "gamma"}, "unknown observation 'gamma'; choose one of gaussian, poisson"),
        ({"bin_width": 0.0}, "bin_width is 0.0; it must be a positive number"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        teacher(**{"task": "limit_cycle", **changes})
