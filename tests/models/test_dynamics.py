"""The face of dynamics: derivatives against differences, and the same path as the model's own."""

import pytest
import torch

from pyrodyn.models import LFADS, Dynamics, LowRankRNN

MODELS = {
    "lfads": lambda: LFADS(4, input_dim=1, inferred_input_dim=2, generator_dim=6),
    "low_rank": lambda: LowRankRNN(4, input_dim=1, num_units=7, activation="tanh"),
    "full_rank": lambda: LowRankRNN(
        4, input_dim=2, num_units=5, is_full_rank=True, activation="tanh"
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_jacobians_are_the_derivatives_of_the_step(kind):
    torch.manual_seed(0)
    dynamics = MODELS[kind]().double().dynamics()
    state = torch.randn(3, dynamics.state_dim, dtype=torch.float64)
    inputs = torch.randn(3, dynamics.input_dim, dtype=torch.float64)
    shift = 1e-6 * torch.eye(dynamics.state_dim, dtype=torch.float64)
    differences = [
        (dynamics.step(state + d, inputs) - dynamics.step(state - d, inputs)) / 2e-6 for d in shift
    ]
    torch.testing.assert_close(
        dynamics.jacobian(state, inputs), torch.stack(differences, -1), atol=1e-8, rtol=1e-6
    )
    shift = 1e-6 * torch.eye(dynamics.input_dim, dtype=torch.float64)
    differences = [
        (dynamics.step(state, inputs + d) - dynamics.step(state, inputs - d)) / 2e-6 for d in shift
    ]
    torch.testing.assert_close(
        dynamics.input_jacobian(state, inputs), torch.stack(differences, -1), atol=1e-8, rtol=1e-6
    )


def test_a_field_has_derivatives_and_a_map_has_none():
    matrix = torch.tensor([[0.0, 1.0], [-2.0, -0.5]])
    flow = Dynamics(lambda z, i: z, 2, vector_field=lambda z, i: z @ matrix.mT)
    state = torch.randn(5, 2)
    jacobian = flow.field_jacobian(state, flow.no_inputs(state))
    torch.testing.assert_close(jacobian, matrix.expand(5, 2, 2))
    with pytest.raises(ValueError, match="no vector field"):
        Dynamics(lambda z, i: z, 2).field_jacobian(state, state[:, :0])
    with pytest.raises(ValueError, match="have no inputs"):
        flow.input_jacobian(state, flow.no_inputs(state))


def test_the_generator_steps_as_the_model_rolls_it():
    torch.manual_seed(0)
    model = MODELS["lfads"]()
    g0, u, i = torch.randn(2, 64), torch.randn(2, 3, 2), torch.randn(2, 3, 1)
    rolled = model.generate(g0, u, i)
    state, dynamics = model.first_generator_state(g0), model.dynamics()
    for t in range(3):
        state = dynamics.step(state, torch.cat([u[:, t], i[:, t]], -1))
        torch.testing.assert_close(state, rolled[:, t])
