"""What a guide hands on is taken up for the very same draw, drive and weights alone."""

import copy

import pytest
import torch

from pyrodyn.models.rollout_cache import RolloutCache, WeightSnapshot


def kept():
    room = RolloutCache()
    weight = torch.nn.Parameter(torch.ones(3))
    drawn, inputs = torch.zeros(2, 4), torch.zeros(2, 5, 1)
    room.keep(weight * 2, (drawn,), inputs, [weight])
    return room, weight, drawn, inputs


def test_it_is_taken_once():
    room, weight, drawn, inputs = kept()
    assert torch.equal(room.take((drawn,), inputs[:, :], [weight]), 2 * weight)
    assert room.take((drawn,), inputs, [weight]) is None


@pytest.mark.parametrize("changed", ["draw", "inputs", "inputs in place", "part of the inputs"])
def test_anything_else_is_not_taken(changed):
    room, weight, drawn, inputs = kept()
    if changed == "draw":
        drawn = drawn.clone()
    elif changed == "inputs":
        inputs = inputs.clone()
    elif changed == "inputs in place":
        inputs += 1
    else:
        inputs = inputs[:, 1:]
    assert room.take((drawn,), inputs, [weight]) is None


@pytest.mark.parametrize("by", ["a fused optimiser", "data", "another precision"])
def test_weights_are_told_by_their_values(by):
    room, weight, drawn, inputs = kept()
    version = weight._version
    if by == "a fused optimiser":
        weight.grad = torch.ones(3)
        torch.optim.Adam([weight], lr=0.1, fused=True).step()
    elif by == "data":
        weight.data = 3 * torch.ones(3)
    else:
        weight.data = weight.data.double()
    assert weight._version == version  # which torch's own counter does not tell
    assert room.take((drawn,), inputs, [weight]) is None


def test_a_draw_without_gradient_does_not_serve_one_that_wants_it():
    room, weight, drawn, inputs = kept()
    for is_wanted in (True, False):
        with torch.no_grad():
            room.keep(2 * weight, (drawn,), inputs, [weight])
        with torch.set_grad_enabled(is_wanted):
            assert (room.take((drawn,), inputs, [weight]) is None) == is_wanted


def test_a_copy_starts_empty():
    room, weight, drawn, inputs = kept()
    assert copy.deepcopy(room).take((drawn,), inputs, [weight]) is None
    assert room.take((drawn,), inputs, [weight]) is not None


def test_a_snapshot_does_not_move_with_its_weights():
    weight = torch.zeros(2)
    snapshot = WeightSnapshot([weight])
    assert snapshot.is_of([torch.zeros(2)])
    weight += 1
    assert not snapshot.is_of([weight])
