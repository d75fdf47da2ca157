"""Dynamics to analyse: known systems step as numpy does, models in double precision."""

import numpy as np
import pytest
import torch

from pyrodyn.analysis.dynamics import constant_inputs, dynamics_of, known_dynamics, states_for
from pyrodyn.data.simulate import rk4_step
from pyrodyn.data.systems import SYSTEMS, rate_network
from pyrodyn.models import Dynamics, LowRankRNN, NodeSAE

ORDINARY = [name for name, system in SYSTEMS.items() if not system.delay]


@pytest.mark.parametrize("name", ORDINARY)
def test_a_known_system_is_that_of_the_simulator(name):
    system, dynamics = SYSTEMS[name], known_dynamics(name)
    states = np.random.default_rng(0).uniform(
        system.initial_low, system.initial_high, (4, system.dim)
    )
    tensor = torch.from_numpy(states)
    none = dynamics.no_inputs(tensor)
    assert dynamics.bin_width == system.time_per_bin
    assert dynamics.vector_field is not None
    np.testing.assert_allclose(
        dynamics.vector_field(tensor, none), system.field(states), rtol=1e-12, atol=1e-12
    )
    assert system.jacobian is not None
    np.testing.assert_allclose(
        dynamics.field_jacobian(tensor, none), system.jacobian(states), rtol=1e-12, atol=1e-12
    )
    substeps = int(np.ceil(system.time_per_bin / system.max_step))
    stepped = states
    for _ in range(substeps):
        stepped = rk4_step(system, stepped, system.time_per_bin / substeps)
    np.testing.assert_allclose(dynamics.step(tensor, none), stepped, rtol=1e-12, atol=1e-12)


def test_a_system_of_ones_own():
    dynamics = known_dynamics(rate_network(num_units=6, seed=1))
    assert dynamics.state_dim == 6
    state = torch.zeros(2, 6, dtype=torch.float64)
    torch.testing.assert_close(dynamics.step(state, state[:, :0]), state)


def test_a_model_is_copied_to_double_and_not_changed():
    torch.manual_seed(0)
    model = NodeSAE(4, input_dim=2, latent_dim=3, field_width=5)
    dynamics = dynamics_of(model)
    state = torch.randn(6, 3, dtype=torch.float64)
    inputs = torch.randn(6, 2, dtype=torch.float64)
    stepped = dynamics.step(state, inputs)
    assert stepped.dtype == torch.float64
    assert not stepped.requires_grad
    expected = model.dynamics().step(state.float(), inputs.float())
    torch.testing.assert_close(stepped.float(), expected.detach())
    assert next(model.parameters()).dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert dynamics_of(dynamics) is dynamics


def test_objects_without_dynamics_raise():
    with pytest.raises(ValueError, match="str has no dynamics; give a model"):
        dynamics_of("lorenz")
    with pytest.raises(ValueError, match="mackey_glass has a delay of 16"):
        known_dynamics("mackey_glass")
    with pytest.raises(ValueError, match="no system is called 'lorentz'; choose one of lorenz"):
        known_dynamics("lorentz")
    numpy_only = SYSTEMS["lorenz"]._replace(field=lambda state: np.sin(state) - state)
    with pytest.raises(ValueError, match="cannot be differentiated by torch"):
        known_dynamics(numpy_only)
    short = SYSTEMS["lorenz"]._replace(field=lambda state: state[..., :2])
    with pytest.raises(ValueError, match=r"maps \(3,\) to \(2,\)"):
        known_dynamics(short)


def test_states_and_inputs_are_checked():
    driven = Dynamics(lambda z, i: z, 2, input_dim=3)
    assert states_for(2, np.zeros((4, 5, 2)), "start").shape == (20, 2)
    assert states_for(2, torch.zeros(2), "start").shape == (1, 2)
    with pytest.raises(ValueError, match=r"start must be states of shape \(..., 2\)"):
        states_for(2, np.zeros((4, 3)), "start")
    with pytest.raises(ValueError, match="start must be finite"):
        states_for(2, [0.0, np.nan], "start")
    np.testing.assert_array_equal(constant_inputs(driven, None), np.zeros(3))
    np.testing.assert_array_equal(constant_inputs(driven, [1, 2, 3]), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="inputs must be 3 finite numbers"):
        constant_inputs(driven, [1.0])


def test_models_without_dynamics_raise():
    class Still(LowRankRNN):
        def dynamics(self):
            raise ValueError("Still has no dynamics of its own to analyse")

    with pytest.raises(ValueError, match="no dynamics of its own"):
        dynamics_of(Still(4))


def test_dynamics_in_single_precision_are_refused():
    model = LowRankRNN(4, latent_dim=2, num_units=5)
    with pytest.raises(ValueError, match=r"give the model itself, or dynamics_of\(model\)"):
        dynamics_of(model.dynamics())
    assert dynamics_of(model.double().dynamics()).state_dim == 2
