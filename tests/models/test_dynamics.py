"""`Dynamics`: derivatives against finite differences, and steps against the model's rollout."""

import dataclasses

import pytest
import torch

from pyrodyn.kernels.activations import ACTIVATIONS
from pyrodyn.models import (
    LFADS,
    Dynamics,
    LinearDynamics,
    LowRankRNN,
    NodeSAE,
    RnnSAE,
    ShallowPLRNN,
)

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


def node(**settings):
    return lambda num_inputs: NodeSAE(
        4, input_dim=num_inputs, latent_dim=3, field_width=7, **settings
    )


def rnn(cell):
    return lambda num_inputs: RnnSAE(
        4, input_dim=num_inputs, latent_dim=3, cell=cell, cell_width=7, cell_depth=2
    )


def low_rank(**settings):
    return lambda num_inputs: LowRankRNN(4, input_dim=num_inputs, num_units=7, **settings)


CLOSED_FORMS = {
    "lfads": lambda num_inputs: LFADS(4, inferred_input_dim=num_inputs, generator_dim=6),
    "gru": rnn("gru"),
    "vanilla": rnn("vanilla"),
    "residual": rnn("residual"),
    "next_state": rnn("next_state"),
    "residual_mlp": rnn("residual_mlp"),
    "tanh field": node(),
    "deep softplus field": node(field_depth=3, field_activation="softplus"),
    "relu field": node(field_depth=2, field_activation="relu", linear_term=True),
    "residual map": node(solver="euler"),
    **{f"low-rank {kind}": low_rank(activation=kind) for kind in ACTIVATIONS},
    "linear": lambda num_inputs: LinearDynamics(4, input_dim=num_inputs),
    "clipped PLRNN": lambda num_inputs: ShallowPLRNN(4, input_dim=num_inputs, num_units=7),
    "PLRNN": lambda num_inputs: ShallowPLRNN(
        4, input_dim=num_inputs, num_units=7, is_clipped=False
    ),
    "full-rank": low_rank(activation="tanh", is_full_rank=True),
}


@pytest.mark.parametrize("num_inputs", [0, 2])
@pytest.mark.parametrize("kind", CLOSED_FORMS)
def test_closed_forms_equal_automatic_differentiation(kind, num_inputs):
    torch.manual_seed(0)
    model = CLOSED_FORMS[kind](num_inputs).double().requires_grad_(False)
    for parameter in model.parameters():  # strongly nonlinear, with nonzero biases
        parameter.add_(0.5 * torch.randn_like(parameter))
    dynamics = model.dynamics()
    state = torch.randn(2, 70, dynamics.state_dim, dtype=torch.float64)
    inputs = torch.randn(2, 70, num_inputs, dtype=torch.float64)
    if dynamics.vector_field is None:
        function, closed = dynamics.step, dynamics.step_derivative
        plain = dataclasses.replace(dynamics, step_derivative=None).jacobian
    else:
        function, closed = dynamics.vector_field, dynamics.field_derivative
        plain = dataclasses.replace(dynamics, field_derivative=None).field_jacobian
    assert closed is not None
    expected = torch.func.vmap(torch.func.vmap(torch.func.jacrev(function)))(state, inputs)
    torch.testing.assert_close(closed(state, inputs), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        closed(state[0, 0], inputs[0, 0]), expected[0, 0], atol=1e-10, rtol=0
    )
    # Forward-mode differentiation, which is used without a closed form, gives the same.
    torch.testing.assert_close(plain(state, inputs), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(plain(state[0, 0], inputs[0, 0]), expected[0, 0], atol=1e-10, rtol=0)


def test_jacobians_use_the_closed_form_if_there_is_one():
    known = Dynamics(
        lambda z, i: z,
        2,
        vector_field=lambda z, i: z,
        step_derivative=lambda z, i: torch.full((2, 2), 3.0),
        field_derivative=lambda z, i: torch.full((2, 2), 4.0),
    )
    state = torch.zeros(2)
    assert (known.jacobian(state, state[:0]) == 3).all()
    assert (known.field_jacobian(state, state[:0]) == 4).all()


def test_field_jacobians_exist_for_a_vector_field_but_not_for_a_map():
    matrix = torch.tensor([[0.0, 1.0], [-2.0, -0.5]])
    flow = Dynamics(lambda z, i: z, 2, vector_field=lambda z, i: z @ matrix.mT)
    state = torch.randn(5, 2)
    jacobian = flow.field_jacobian(state, flow.no_inputs(state))
    torch.testing.assert_close(jacobian, matrix.expand(5, 2, 2))
    with pytest.raises(ValueError, match="no vector field"):
        Dynamics(lambda z, i: z, 2).field_jacobian(state, state[:, :0])
    with pytest.raises(ValueError, match="have no inputs"):
        flow.input_jacobian(state, flow.no_inputs(state))


def test_steps_of_the_generator_equal_the_rollout_of_the_model():
    torch.manual_seed(0)
    model = MODELS["lfads"]()
    g0, u, i = torch.randn(2, 64), torch.randn(2, 3, 2), torch.randn(2, 3, 1)
    rolled = model.generate(g0, u, i)
    state, dynamics = model.first_generator_state(g0), model.dynamics()
    for t in range(3):
        state = dynamics.step(state, torch.cat([u[:, t], i[:, t]], -1))
        torch.testing.assert_close(state, rolled[:, t])
