import pytest
import torch
from torch import Tensor

from pyrodyn.nn.closed_loop import ClosedLoopPath, ClosedLoopWeights, roll_closed_loop
from pyrodyn.nn.recurrence import gru_step

SCALE_FLOOR = 0.05


def drawn(
    num_bins: int = 4, batch: int = 3, controller: int = 2, generator: int = 5, inputs: int = 2
) -> tuple[list[Tensor], ClosedLoopWeights]:
    """Drives, noise and first states; and weights: all random, double, asking for gradients."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.5) -> Tensor:
        values = scale * torch.randn(shape, generator=rng, dtype=torch.float64)
        return values.requires_grad_()

    weights = ClosedLoopWeights(
        controller=normal(controller, 3 * controller),
        controller_bias=normal(3 * controller),
        feedback=normal(generator, 3 * controller),
        readout=normal(controller, 2 * inputs),
        readout_bias=normal(2 * inputs),
        drive=normal(inputs, 3 * generator),
        generator=normal(generator, 3 * generator),
        generator_bias=normal(3 * generator),
    )
    given = [
        normal(num_bins, batch, 3 * controller),
        normal(num_bins, batch, 3 * generator),
        normal(num_bins, batch, inputs, scale=1.0),
        normal(batch, controller),
        normal(batch, generator),
    ]
    return given, weights


def rolled_by_steps(given: list[Tensor], w: ClosedLoopWeights) -> ClosedLoopPath:
    """The same roll, written bin by bin from the equations for autograd to differentiate."""
    encoded, known, noise, c, g = given
    path = []
    for t in range(len(noise)):
        c = gru_step(encoded[t] + g @ w.feedback, c @ w.controller + w.controller_bias, c)
        mean, log_scale = (c @ w.readout + w.readout_bias).chunk(2, -1)
        scale = log_scale.exp() + SCALE_FLOOR
        u = mean + scale * noise[t]
        g = gru_step(known[t] + u @ w.drive, g @ w.generator + w.generator_bias, g)
        path.append((u, mean, scale, g))
    return ClosedLoopPath(*(torch.stack(field) for field in zip(*path, strict=True)))


def rolled(given: list[Tensor], weights: ClosedLoopWeights) -> ClosedLoopPath:
    return roll_closed_loop(*given, weights, SCALE_FLOOR)


@pytest.mark.parametrize("inputs", [1, 2])
def test_the_loop_is_its_steps(inputs):
    given, weights = drawn(num_bins=9, inputs=inputs)
    for field, one, other in zip(
        ClosedLoopPath._fields, rolled(given, weights), rolled_by_steps(given, weights), strict=True
    ):
        torch.testing.assert_close(one, other, msg=field)


@pytest.mark.parametrize("wanted", [*ClosedLoopPath._fields, "all"])
def test_every_gradient_is_that_of_the_steps(wanted):
    given, weights = drawn(num_bins=9)
    names = ["encoded", "known", "noise", "c_0", "g_0", *ClosedLoopWeights._fields]
    leaves = [*given, *weights]

    def gradients(path: ClosedLoopPath) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(1)
        total = torch.zeros((), dtype=torch.float64)
        for field, values in path._asdict().items():
            weight = torch.randn(values.shape, generator=rng, dtype=values.dtype)
            if wanted in (field, "all"):
                total = total + (weight * values.square()).sum()
        return torch.autograd.grad(total, leaves, materialize_grads=True)

    for name, one, other in zip(
        names,
        gradients(rolled(given, weights)),
        gradients(rolled_by_steps(given, weights)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, msg=name)
        assert (one != 0).any(), name


def test_the_loop_has_the_right_gradient():
    given, weights = drawn()

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(rolled(list(leaves[:5]), ClosedLoopWeights(*leaves[5:])))

    assert torch.autograd.gradcheck(flat, [*given, *weights])


def test_weights_that_ask_for_no_gradient_leave_the_others_right():
    given, weights = drawn()
    frozen = ClosedLoopWeights(*(weight.detach() for weight in weights))
    noise = given[2].detach()
    given = [*given[:2], noise, *given[3:]]
    leaves = [given[0], given[4]]
    one = torch.autograd.grad(rolled(given, frozen).states.sum(), leaves)
    other = torch.autograd.grad(rolled_by_steps(given, frozen).states.sum(), leaves)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_derivative_is_refused_instead_of_wrong():
    given, weights = drawn()
    loss = rolled(given, weights).inputs.sum()
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        torch.autograd.grad(loss, weights.drive, create_graph=True)


def test_the_same_leaves_can_be_rolled_and_differentiated_twice():
    given, weights = drawn()
    path = rolled(given, weights)
    loss = path.states.square().sum()
    first = torch.autograd.grad(loss, weights.generator, retain_graph=True)[0]
    rolled(given, weights)  # another roll between must not disturb what the first kept
    second = torch.autograd.grad(loss, weights.generator)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("bound", [1.0, 5.0])
def test_no_generator_state_leaves_the_bound_of_the_first(bound):
    given, weights = drawn(num_bins=200, batch=8)
    with torch.no_grad():
        strong = ClosedLoopWeights(*(8 * weight for weight in weights))
        first = (20 * given[4]).clamp(-bound, bound)
        states = rolled([*given[:4], first], strong).states
    assert first.abs().max() == bound
    assert states.abs().max() <= bound * (1 + 1e-12)
    assert states.std() > 0.1
