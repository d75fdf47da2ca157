"""The closed loop by hand, against its definition bin by bin."""

import pytest
import torch
from agreement import assert_agrees, combinations, normal
from torch import Tensor

from pyrodyn.kernels import blocks
from pyrodyn.kernels.closed_loop import (
    ClosedLoopPath,
    ClosedLoopWeights,
    reference_closed_loop,
    roll_closed_loop,
)
from pyrodyn.kernels.gru import GRUWeights

SCALE_FLOOR = 0.05

SHAPES = {
    "one bin": {"num_bins": 1},
    "one trial": {"batch": 1},
    "no known inputs": {"known": 0},
    "one inferred input": {"inputs": 1},
    "several of each": {},
}


def case(
    num_bins: int = 4,
    batch: int = 3,
    encoder: int = 3,
    known: int = 1,
    controller: int = 2,
    generator: int = 5,
    inputs: int = 2,
    factors: int = 3,
) -> dict[str, Tensor]:
    """Arguments of the loop by name, weights in the order of `ClosedLoopWeights.flat`."""

    def gru(reads: int, dim: int, seed: int) -> GRUWeights:
        shapes = [(3 * dim, reads), (3 * dim, dim), (3 * dim,), (3 * dim,)]
        return GRUWeights(
            *(normal(*shape, seed=seed + each, scale=0.5) for each, shape in enumerate(shapes))
        )

    weights = ClosedLoopWeights(
        controller=gru(encoder, controller, 10),
        feedback=normal(3 * controller, factors, seed=20, scale=0.5),
        readout=normal(2 * inputs, controller, seed=21, scale=0.5),
        readout_bias=normal(2 * inputs, seed=22, scale=0.5),
        generator=gru(known, generator, 30),
        inferred=normal(3 * generator, inputs, seed=23, scale=0.5),
        factors=normal(factors, generator, seed=24, scale=0.5),
    )
    return {
        "encoded": normal(batch, num_bins, encoder, scale=0.5),
        "known": normal(batch, num_bins, known, scale=0.5),
        "noise": normal(num_bins, batch, inputs),
        "controller_state": normal(batch, controller, scale=0.5),
        "generator_state": normal(batch, generator, scale=0.5),
        **{f"weight {position}": weight for position, weight in enumerate(weights.flat())},
    }


def rolled(*given: Tensor) -> ClosedLoopPath:
    return roll_closed_loop(*given[:5], ClosedLoopWeights.of_flat(given[5:]), SCALE_FLOOR)


def reference(*given: Tensor) -> ClosedLoopPath:
    return reference_closed_loop(*given[:5], ClosedLoopWeights.of_flat(given[5:]), SCALE_FLOOR)


def one_field(function, field: str):
    return lambda *given: getattr(function(*given), field)


@pytest.mark.parametrize(("shape", "layout"), combinations(SHAPES))
def test_the_kernel_is_its_reference(shape, layout):
    assert_agrees(rolled, reference, case(**SHAPES[shape]), layout, twice=False)


@pytest.mark.parametrize("field", ClosedLoopPath._fields)
def test_every_result_has_its_own_gradient(field):
    given = case(num_bins=3)
    assert_agrees(one_field(rolled, field), one_field(reference, field), given, twice=False)


@pytest.mark.parametrize("bins_per_block", [1, 2])
def test_blocks_make_no_difference(bins_per_block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", bins_per_block * 4 * 3 * 5)
    assert_agrees(rolled, reference, case(num_bins=5), twice=False)


def weights_of(given: dict[str, Tensor]) -> ClosedLoopWeights:
    return ClosedLoopWeights.of_flat(tuple(given.values())[5:])


def test_a_second_derivative_is_refused_instead_of_wrong():
    given = {name: tensor.requires_grad_() for name, tensor in case().items()}
    loss = rolled(*given.values()).inputs.sum()
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        torch.autograd.grad(loss, weights_of(given).inferred, create_graph=True)


def test_the_same_leaves_can_be_rolled_and_differentiated_twice():
    given = {name: tensor.requires_grad_() for name, tensor in case().items()}
    recurrent = weights_of(given).generator.recurrent
    loss = rolled(*given.values()).factors.square().sum()
    first = torch.autograd.grad(loss, recurrent, retain_graph=True)[0]
    rolled(*given.values())  # another roll must not disturb what the first has stored
    second = torch.autograd.grad(loss, recurrent)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("bound", [1.0, 5.0])
def test_no_generator_state_leaves_the_bound_of_the_initial_one(bound):
    given = list(case(num_bins=200, batch=8).values())
    w = ClosedLoopWeights.of_flat(tuple(8 * weight for weight in given[5:]))
    initial = (20 * given[4]).clamp(-bound, bound)
    # With an identity for F the factors are the states.
    w = w._replace(
        feedback=w.feedback @ w.factors, factors=torch.eye(w.factors.shape[1]).to(w.factors)
    )
    states = roll_closed_loop(*given[:4], initial, w, SCALE_FLOOR).factors
    assert initial.abs().max() == bound
    assert states.abs().max() <= bound * (1 + 1e-12)
    assert states.std() > 0.1
