import pytest
import torch
from torch import Tensor

from pyrodyn.kernels import blocks
from pyrodyn.kernels.closed_loop import ClosedLoopPath, ClosedLoopWeights, roll_closed_loop
from pyrodyn.kernels.gru import GRUWeights
from pyrodyn.nn.recurrence import gru_step

SCALE_FLOOR = 0.05


def drawn(
    num_bins: int = 4,
    batch: int = 3,
    encoder: int = 3,
    known: int = 1,
    controller: int = 2,
    generator: int = 5,
    inputs: int = 2,
    factors: int = 3,
) -> tuple[list[Tensor], ClosedLoopWeights]:
    """What the encoder says, known inputs, noise and first states; and weights: all random, double,
    asking for gradients.
    """
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 0.5) -> Tensor:
        values = scale * torch.randn(shape, generator=rng, dtype=torch.float64)
        return values.requires_grad_()

    def gru(reads: int, dim: int) -> GRUWeights:
        return GRUWeights(
            normal(3 * dim, reads), normal(3 * dim, dim), normal(3 * dim), normal(3 * dim)
        )

    weights = ClosedLoopWeights(
        controller=gru(encoder, controller),
        feedback=normal(3 * controller, factors),
        readout=normal(2 * inputs, controller),
        readout_bias=normal(2 * inputs),
        generator=gru(known, generator),
        inferred=normal(3 * generator, inputs),
        factors=normal(factors, generator),
    )
    given = [
        normal(batch, num_bins, encoder),
        normal(batch, num_bins, known),
        normal(num_bins, batch, inputs, scale=1.0),
        normal(batch, controller),
        normal(batch, generator),
    ]
    return given, weights


def leaves_of(weights: ClosedLoopWeights) -> dict[str, Tensor]:
    """Every weight by its name."""
    leaves = {}
    for name, weight in weights._asdict().items():
        if isinstance(weight, GRUWeights):
            leaves |= {f"{name}.{part}": tensor for part, tensor in weight._asdict().items()}
        else:
            leaves[name] = weight
    return leaves


def from_leaves(leaves: list[Tensor]) -> ClosedLoopWeights:
    """The weights from the values of `leaves_of`."""
    return ClosedLoopWeights(
        GRUWeights(*leaves[:4]), *leaves[4:7], GRUWeights(*leaves[7:11]), *leaves[11:]
    )


def rolled_by_steps(given: list[Tensor], w: ClosedLoopWeights) -> ClosedLoopPath:
    """The same roll, written bin by bin from the equations for autograd to differentiate."""
    encoded, known, noise, c, g = given
    path = []
    for t in range(len(noise)):
        from_factors = g @ w.factors.t() @ w.feedback.t()
        drive = encoded[:, t] @ w.controller.drive.t() + w.controller.bias + from_factors
        c = gru_step(drive, c @ w.controller.recurrent.t() + w.controller.recurrent_bias, c)
        mean, log_scale = (c @ w.readout.t() + w.readout_bias).chunk(2, -1)
        scale = log_scale.exp() + SCALE_FLOOR
        u = mean + scale * noise[t]
        drive = known[:, t] @ w.generator.drive.t() + w.generator.bias + u @ w.inferred.t()
        g = gru_step(drive, g @ w.generator.recurrent.t() + w.generator.recurrent_bias, g)
        path.append((u, mean, scale, g @ w.factors.t()))
    return ClosedLoopPath(*(torch.stack(field) for field in zip(*path, strict=True)), last_state=g)


def rolled(given: list[Tensor], weights: ClosedLoopWeights) -> ClosedLoopPath:
    return roll_closed_loop(*given, weights, SCALE_FLOOR)


@pytest.fixture(params=[2**19, 2 * 4 * 3 * 5], ids=["one block", "blocks of two bins"])
def block_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Numbers per block of gates: by default, and so few that nine bins make five blocks."""
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", request.param)
    return request.param


@pytest.mark.parametrize("inputs", [1, 2])
def test_the_loop_is_its_steps(inputs, block_numbers):
    given, weights = drawn(num_bins=9, inputs=inputs)
    for field, one, other in zip(
        ClosedLoopPath._fields, rolled(given, weights), rolled_by_steps(given, weights), strict=True
    ):
        torch.testing.assert_close(one, other, msg=field)


@pytest.mark.parametrize("wanted", [*ClosedLoopPath._fields, "all"])
def test_every_gradient_is_that_of_the_steps(wanted, block_numbers):
    given, weights = drawn(num_bins=9)
    names = ["encoded", "known", "noise", "c_0", "g_0", *leaves_of(weights)]
    leaves = [*given, *leaves_of(weights).values()]

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
        return tuple(rolled(list(leaves[:5]), from_leaves(list(leaves[5:]))))

    assert torch.autograd.gradcheck(flat, [*given, *leaves_of(weights).values()])


def test_known_inputs_without_columns_drive_nothing():
    given, weights = drawn(known=0)
    for field, one, other in zip(
        ClosedLoopPath._fields, rolled(given, weights), rolled_by_steps(given, weights), strict=True
    ):
        torch.testing.assert_close(one, other, msg=field)
    leaves = [given[0], *weights.generator[1:]]
    one_gradients = torch.autograd.grad(rolled(given, weights).factors.sum(), leaves)
    other_gradients = torch.autograd.grad(rolled_by_steps(given, weights).factors.sum(), leaves)
    for one, other in zip(one_gradients, other_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_that_ask_for_no_gradient_leave_the_others_right():
    given, weights = drawn()
    frozen = from_leaves([weight.detach() for weight in leaves_of(weights).values()])
    noise = given[2].detach()
    given = [*given[:2], noise, *given[3:]]
    leaves = [given[0], given[4]]
    one = torch.autograd.grad(rolled(given, frozen).factors.sum(), leaves)
    other = torch.autograd.grad(rolled_by_steps(given, frozen).factors.sum(), leaves)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_derivative_is_refused_instead_of_wrong():
    given, weights = drawn()
    loss = rolled(given, weights).inputs.sum()
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        torch.autograd.grad(loss, weights.inferred, create_graph=True)


def test_the_same_leaves_can_be_rolled_and_differentiated_twice():
    given, weights = drawn()
    path = rolled(given, weights)
    loss = path.factors.square().sum()
    first = torch.autograd.grad(loss, weights.generator.recurrent, retain_graph=True)[0]
    rolled(given, weights)  # another roll between must not disturb what the first kept
    second = torch.autograd.grad(loss, weights.generator.recurrent)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("bound", [1.0, 5.0])
def test_no_generator_state_leaves_the_bound_of_the_first(bound):
    given, weights = drawn(num_bins=200, batch=8)
    with torch.no_grad():
        strong = from_leaves([8 * weight for weight in leaves_of(weights).values()])
        first = (20 * given[4]).clamp(-bound, bound)
        # With an identity for F the factors are the states.
        strong = strong._replace(
            feedback=strong.feedback @ strong.factors,
            factors=torch.eye(strong.factors.shape[1], dtype=torch.float64),
        )
        states = rolled([*given[:4], first], strong).factors
    assert first.abs().max() == bound
    assert states.abs().max() <= bound * (1 + 1e-12)
    assert states.std() > 0.1
