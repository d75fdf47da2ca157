"""The GRU by hand against its definition and `torch.nn.GRU`."""

import pytest
import torch
from agreement import assert_agrees, combinations, normal

from pyrodyn.kernels import blocks
from pyrodyn.kernels.gru import GRUWeights, gru_step, n_first, n_last, reference_gru, roll_gru

SHAPES = {
    "one bin": (1, 3, 2, 3),
    "one trial": (5, 1, 2, 3),
    "no inputs": (4, 3, 0, 2),
    "one unit": (5, 2, 1, 1),
    "several of each": (4, 3, 2, 3),
}
"""Bins, trials, inputs and units."""


def case(num_bins: int, batch: int, inputs: int, dim: int) -> dict[str, torch.Tensor]:
    return {
        "inputs": normal(num_bins, batch, inputs),
        "initial": normal(batch, dim),
        "drive": normal(3 * dim, inputs, seed=1),
        "recurrent": normal(3 * dim, dim, seed=2),
        "bias": normal(3 * dim, seed=3),
        "recurrent_bias": normal(3 * dim, seed=4),
    }


def roll(inputs: torch.Tensor, initial: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    return roll_gru(inputs, initial, GRUWeights(*weights))


@pytest.mark.parametrize(("shape", "layout"), combinations(SHAPES))
def test_the_kernel_is_its_reference(shape, layout):
    assert_agrees(roll, reference_gru, case(*SHAPES[shape]), layout)


@pytest.mark.parametrize("bins_per_block", [1, 2, 3])
def test_blocks_make_no_difference(bins_per_block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", bins_per_block * 4 * 3 * 2)
    assert_agrees(roll, reference_gru, case(7, 3, 2, 2))


def test_the_definition_is_torchs():
    given = case(6, 3, 2, 4)
    gru = torch.nn.GRU(2, 4).double()
    with torch.no_grad():
        for weight, value in zip(gru.parameters(), list(given.values())[2:], strict=True):
            weight.copy_(value)
        expected, _ = gru(given["inputs"], given["initial"][None])
    torch.testing.assert_close(reference_gru(*given.values()), expected)


def test_a_step_is_that_of_the_equations():
    drive, product, state = normal(2, 9), normal(2, 9, seed=1), normal(2, 3)
    r = 1 / (1 + torch.exp(-(drive + product)[:, 0:3]))
    s = 1 / (1 + torch.exp(-(drive + product)[:, 3:6]))
    n = torch.tanh(drive[:, 6:9] + r * product[:, 6:9])
    torch.testing.assert_close(gru_step(drive, product, state), (1 - s) * n + s * state)


def test_the_order_of_gates_is_restored():
    weight = torch.arange(6.0).view(6, 1)
    assert n_first(weight).flatten().tolist() == [4, 5, 0, 1, 2, 3]
    assert torch.equal(n_last(n_first(weight)), weight)


def test_single_precision_keeps_its_digits():
    given = case(100, 4, 2, 8)
    single = roll(*(tensor.float() for tensor in given.values()))
    torch.testing.assert_close(single.double(), reference_gru(*given.values()), rtol=0, atol=2e-5)
