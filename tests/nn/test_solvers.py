"""Solvers against single steps in plain torch, exact flows and torchdiffeq."""

import gc
import weakref

import pytest
import torch
from torchdiffeq import odeint

from pyrodyn.kernels import blocks
from pyrodyn.kernels.runge_kutta import Correction
from pyrodyn.nn.fields import MLPField
from pyrodyn.nn.solvers import (
    ADAPTIVE,
    SOLVERS,
    DivergenceError,
    Flow,
    roll_by_steps,
    solver_check,
)

EXPLICIT = ("euler", "midpoint", "rk4")


def flow(solver, input_dim=0, **sizes):
    torch.manual_seed(1)
    field = MLPField(3, input_dim, 6, **sizes).double()
    if field.linear is not None:
        torch.nn.init.normal_(field.linear, std=0.3)
    return Flow(field, solver, substeps=2 if solver == "euler" else 1).double()


def case(input_dim=0, corrected=False):
    torch.manual_seed(0)
    z = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(4, 5, input_dim, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(4, 5, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    return z, inputs, Correction(gain, shift) if corrected else None


@pytest.fixture(params=[2**19, 2 * 4 * 8 * 6], ids=["one block", "blocks of a bin or two"])
def block_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Numbers per block of hidden units: by default, and so few that five bins make more blocks."""
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", request.param)
    return request.param


@pytest.mark.parametrize("solver", EXPLICIT)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(
    "sizes", [{}, {"input_dim": 2, "depth": 2, "linear_term": True}], ids=["plain", "full"]
)
def test_a_roll_and_its_gradient_are_those_of_single_steps(solver, corrected, sizes, block_numbers):
    phi = flow(solver, **sizes)
    z, inputs, correction = case(sizes.get("input_dim", 0), corrected)
    wanted = [z, *(correction or ()), *(p for p in phi.parameters() if p.numel())]
    if inputs.shape[-1]:
        wanted.append(inputs)
    by_hand = phi.roll(z, inputs, correction)
    reference = roll_by_steps(phi.plain_step, z, inputs, correction)
    torch.testing.assert_close(by_hand, reference)
    weight = torch.randn_like(by_hand)
    for ours, theirs in zip(
        torch.autograd.grad((weight * by_hand).sum(), wanted),
        torch.autograd.grad((weight * reference).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("corrected", [False, True])
def test_an_unused_trajectory_is_freed_at_once(corrected):
    """Without waiting for the garbage collector: a training step stores much memory."""
    path = flow("midpoint").roll(*case(corrected=corrected))
    node = weakref.ref(path.grad_fn.next_functions[0][0].next_functions[0][0])
    gc.disable()
    try:
        del path
        assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("corrected", [False, True])
def test_gradients_of_gradients(corrected):
    phi = flow("midpoint")
    z, inputs, correction = case(corrected=corrected)
    weights = [z, *(correction or ()), phi.field.linear_layers()[0].weight]

    def penalty(path):
        first = torch.autograd.grad(path.square().sum(), weights, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), weights)

    by_hand = penalty(phi.roll(z, inputs, correction))
    for ours, theirs in zip(
        by_hand, penalty(roll_by_steps(phi.plain_step, z, inputs, correction)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_states_are_the_same_without_gradients():
    phi = flow("rk4")
    z, inputs, _ = case()
    with torch.no_grad():
        alone = phi.roll(z, inputs)
    torch.testing.assert_close(alone, phi.roll(z, inputs))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_errors_shrink_with_the_order_of_the_scheme(solver, order):
    """On a rotation with decay, whose flow is a matrix exponential."""
    A = torch.tensor([[-0.1, 1.0, 0.0], [-1.0, -0.1, 0.0], [0.0, 0.0, -0.5]], dtype=torch.float64)
    phi = flow(solver, linear_term=True)
    with torch.no_grad():
        phi.field.linear.copy_(A)
        for layer in phi.field.linear_layers():
            layer.weight.zero_()
            layer.bias.zero_()
    z, inputs, _ = case()
    exact = z @ torch.linalg.matrix_exp(5 * A).mT
    errors = []
    for phi.substeps in (16, 32):
        errors.append(float((phi.roll(z, inputs)[..., -1, :] - exact).norm().detach()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize("input_dim", [0, 1])
def test_adaptive_solvers_agree_with_rk4_and_have_gradients(solver, input_dim):
    phi, fine = flow(solver, input_dim), flow("rk4", input_dim)
    fine.substeps = 8
    z, inputs, _ = case(input_dim)
    paths = [either.roll(z, inputs) for either in (phi, fine)]
    torch.testing.assert_close(*paths, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(phi(z, inputs[:, 0]), paths[0][..., 0, :], atol=1e-2, rtol=1e-2)
    gradients = [
        torch.autograd.grad(path.sum(), either.field.linear_layers()[0].weight)[0]
        for path, either in zip(paths, (phi, fine), strict=True)
    ]
    torch.testing.assert_close(*gradients, atol=5e-2, rtol=5e-2)


def test_any_times_are_torchdiffeqs():
    phi = flow("midpoint")
    z, _, _ = case()
    times = torch.tensor([0.0, 0.3, 1.7, 4.0], dtype=torch.float64)
    ours = phi.at_times(z, times, tolerance=1e-8)
    theirs = odeint(lambda _, at: phi.field(at, z.new_zeros(0)), z, times, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, theirs.movedim(0, -2), atol=1e-6, rtol=1e-6)
    for wrong in ([0.0, 1.0, 1.0], [1.0, 0.0], [0.0]):
        with pytest.raises(ValueError, match="increase"):
            phi.at_times(z, torch.tensor(wrong, dtype=torch.float64))


def test_the_check_distinguishes_a_fine_step_from_a_coarse_one():
    z, inputs, _ = case()
    fine = solver_check(flow("rk4"), z[0], inputs)
    assert fine.is_fine
    assert fine.r2 > 0.999999
    stiff = flow("euler")
    stiff.substeps = 1
    with torch.no_grad():
        stiff.field.linear_layers()[-1].weight.mul_(20.0)
    coarse = solver_check(stiff, z[0], inputs)
    assert not coarse.is_fine
    assert coarse.largest_error > 10 * fine.largest_error


def test_unknown_solvers_and_steps():
    with pytest.raises(ValueError, match="solver='heun' is unknown; it is one of euler"):
        Flow(MLPField(2), "heun")
    with pytest.raises(ValueError, match="substeps=0"):
        Flow(MLPField(2), substeps=0)
    with pytest.raises(ValueError, match="field_activation='gelu' is unknown"):
        MLPField(2, activation="gelu")
    assert set(EXPLICIT) | set(ADAPTIVE) == set(SOLVERS)


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_other_activations_roll(activation):
    phi = flow("midpoint", activation=activation)
    z, inputs, correction = case(corrected=True)
    predicted = phi.roll(z, inputs, correction)
    torch.testing.assert_close(predicted[..., 0, :], phi(z, inputs[:, 0]))
    states = correction(predicted)
    torch.testing.assert_close(
        states[..., 0, :],
        torch.addcmul(
            correction.shift[..., 0, :], correction.gain[..., 0, :], phi(z, inputs[:, 0])
        ),
    )
    torch.testing.assert_close(predicted[..., 1:, :], phi(states[..., :-1, :], inputs[:, 1:]))


def test_a_diverging_trajectory_is_named_by_trial_and_bin():
    phi = flow("midpoint", linear_term=True)
    with torch.no_grad():
        phi.field.linear.copy_(1e60 * torch.eye(3, dtype=torch.float64))
        for layer in phi.field.linear_layers():
            layer.weight.zero_()
            layer.bias.zero_()
    z, inputs = torch.zeros(4, 3), torch.zeros(4, 5, 0)
    z[2] = 1.0
    # (1e60)^2 / 2 per bin: the third is beyond 1e308.
    with pytest.raises(ArithmeticError, match="trial 2 is not finite 3 bins after its"):
        solver_check(phi, z, inputs)
    with pytest.raises(DivergenceError, match=r"row 2 of the batch .* from bin 4 to 7"):
        phi.at_times(z.double(), torch.tensor([4.0, 7.0]))
