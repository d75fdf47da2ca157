"""Rolls of GRUs over any left dims, in both directions, and in the form for cuDNN."""

import pytest
import torch
from torch import Tensor, nn

from pyrodyn.kernels import blocks
from pyrodyn.kernels.gru import gru_step
from pyrodyn.nn.recurrence import _by_cudnn, roll, roll_both_ways


def a_gru(input_size: int, hidden_size: int, seed: int = 0, scale: float = 1.0) -> nn.GRU:
    """A GRU in double precision with weights of a chosen size."""
    generator = torch.Generator().manual_seed(seed)
    gru = nn.GRU(input_size, hidden_size, batch_first=True).double()
    with torch.no_grad():
        for weight in gru.parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return gru


def rolled_by_steps(gru: nn.GRU, inputs: Tensor, initial: Tensor) -> Tensor:
    """The roll bin by bin, by `gru_step`."""
    states, state = [], initial
    for t in range(inputs.shape[-2]):
        drive = inputs[..., t, :] @ gru.weight_ih_l0.t() + gru.bias_ih_l0
        product = state @ gru.weight_hh_l0.t() + gru.bias_hh_l0
        state = gru_step(drive, product, state)
        states.append(state)
    return torch.stack(states, -2)


@pytest.fixture(params=[2**19, 2 * 4 * 5 * 3], ids=["one block", "blocks of two bins"])
def block_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Numbers per block of gates: by default, and so few that five trials of three units and an odd
    number of bins make several blocks, the last of them short.
    """
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", request.param)
    return request.param


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("left", [(4,), (2, 4), (3, 2, 4)])
def test_a_roll_is_its_steps_over_any_left_dims(left):
    gru = a_gru(2, 3)
    inputs = normal(*left, 6, 2, seed=3).requires_grad_()
    initial = normal(*left, 3, seed=4).requires_grad_()
    states, expected = roll(gru, inputs, initial), rolled_by_steps(gru, inputs, initial)
    assert states.shape == (*left, 6, 3)
    torch.testing.assert_close(states, expected)
    weight = normal(*left, 6, 3, seed=5)
    leaves = [inputs, initial, *gru.parameters()]
    gradients = torch.autograd.grad((states * weight).sum(), leaves)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_blocks_are_all_bins_in_order():
    for num_bins, batch, dim in [(1, 1, 1), (7, 64, 64), (100, 64, 64), (45, 256, 200), (3, 0, 5)]:
        parts = blocks.blocks(num_bins, 4 * batch * dim)
        bins = [t for part in parts for t in range(num_bins)[part]]
        assert bins == list(range(num_bins))
        for part in parts:
            numbers = 4 * batch * dim * (part.stop - part.start)
            assert numbers <= blocks.BLOCK_NUMBERS or part.stop - part.start == 1


def test_a_roll_is_differentiated_again_and_again():
    gru = a_gru(2, 3)
    inputs = normal(5, 7, 2, seed=3).requires_grad_()
    loss = roll(gru, inputs, normal(5, 3, seed=4)).square().sum()
    first = torch.autograd.grad(loss, [inputs, gru.weight_hh_l0], retain_graph=True)
    second = torch.autograd.grad(loss, [inputs, gru.weight_hh_l0])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_a_roll_is_that_of_torch(block_numbers):
    gru = a_gru(2, 3)
    inputs = normal(5, 41, 2, seed=3).requires_grad_()
    initial = normal(5, 3, seed=4).requires_grad_()
    leaves = [inputs, initial, *gru.parameters()]
    states, theirs = roll(gru, inputs, initial), gru(inputs, initial[None])[0]
    torch.testing.assert_close(states, theirs)
    weight = normal(5, 41, 3, seed=5)
    gradients = torch.autograd.grad((states * weight).sum(), leaves)
    their_gradients = torch.autograd.grad((theirs * weight).sum(), leaves)
    for one, other in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_both_ways_are_those_of_torch(block_numbers):
    gru = nn.GRU(2, 3, batch_first=True, bidirectional=True).double()
    inputs = normal(5, 7, 2, seed=3).requires_grad_()
    forward, backward = roll_both_ways(gru, inputs)
    states, last = gru(inputs)
    torch.testing.assert_close(torch.cat([forward, backward], -1), states)
    torch.testing.assert_close(torch.stack([forward[:, -1], backward[:, 0]]), last)
    leaves = [inputs, *gru.parameters()]
    weight = normal(5, 7, 6, seed=5)
    loss = (torch.cat([forward, backward], -1) * weight).sum()
    gradients = torch.autograd.grad(loss, leaves)
    their_gradients = torch.autograd.grad((states * weight).sum(), leaves)
    for one, other in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("left", [(4,), (2, 4)])
def test_inputs_without_columns_are_zeros(left):
    gru = a_gru(1, 3)
    initial = normal(*left, 3)
    states = roll(gru, initial.new_zeros(*left, 5, 0), initial)
    torch.testing.assert_close(
        states, rolled_by_steps(gru, initial.new_zeros(*left, 5, 1), initial)
    )


@pytest.mark.parametrize("bound", [1.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_state_leaves_the_bound_of_the_initial_one(bound, seed):
    gru = a_gru(2, 8, seed, scale=4.0).float()
    inputs = 20 * normal(16, 200, 2, seed=seed).float()
    initial = (20 * normal(16, 8, seed=seed + 100).float()).clamp(-bound, bound)
    assert initial.abs().max() == bound
    states = roll(gru, inputs, initial)
    # A convex combination may exceed its ends by rounding alone.
    assert states.abs().max() <= bound * (1 + 4 * torch.finfo(torch.float32).eps)
    assert states.std() > 0.1


@pytest.mark.parametrize("is_training", [True, False])
def test_the_form_for_cudnn_is_torchs_gru(is_training):
    one_way = a_gru(3, 4).train(is_training)
    inputs, first = normal(5, 6, 3), normal(1, 5, 4, seed=1)
    (states,) = _by_cudnn(one_way, inputs, first)
    torch.testing.assert_close(states, one_way(inputs, first)[0])
    both = nn.GRU(3, 4, batch_first=True, bidirectional=True).double().train(is_training)
    forward, backward = _by_cudnn(both, inputs, torch.zeros(2, 5, 4).double())
    torch.testing.assert_close(torch.cat([forward, backward], -1), both(inputs)[0])


def test_no_bins_make_no_states():
    assert roll(a_gru(3, 4), normal(2, 5, 0, 3), normal(2, 5, 4)).shape == (2, 5, 0, 4)
