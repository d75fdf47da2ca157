"""Steps of a low-rank network by hand, against their definition."""

import pytest
import torch
from agreement import LAYOUTS, assert_agrees, normal

from pyrodyn.kernels.activations import ACTIVATIONS
from pyrodyn.kernels.low_rank import low_rank_step, reference_low_rank_step

SHAPES = {
    "one row": ((1,), None),
    "no row": ((0,), None),
    "driven": ((3,), (3,)),
    "left dims": ((2, 1, 3), (3,)),
    "shared drive": ((2, 3), ()),
    "no left dims": ((), ()),
}
"""Left dims of the states and of their drive."""


def case(kind: str, left: tuple[int, ...], drive: tuple[int, ...] | None, decays: int):
    return {
        "z": normal(*left, 2),
        "drive": None if drive is None else normal(*drive, 4, seed=1),
        "m": normal(4, 2, seed=2),
        "n": normal(2, 4, seed=3),
        "threshold": normal(4, seed=4) if ACTIVATIONS[kind].has_threshold else None,
        "decay": torch.linspace(0.5, 0.9, decays, dtype=torch.float64),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_kernel_is_its_reference(kind, shape):
    assert_agrees(
        lambda *given: low_rank_step(*given, kind),
        lambda *given: reference_low_rank_step(*given, kind),
        case(kind, *SHAPES[shape], decays=1 if shape == "driven" else 2),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_layout_of_memory_makes_no_difference(kind, layout):
    assert_agrees(
        lambda *given: low_rank_step(*given, kind),
        lambda *given: reference_low_rank_step(*given, kind),
        case(kind, (2, 3), (3,), decays=2),
        layout,
    )


@pytest.mark.parametrize("is_driven", [False, True])
def test_clipped_relus_of_small_thresholds_keep_their_digits(is_driven):
    threshold = torch.tensor([0.0, 1e-12, -1e-6, 1e-4, -1e-2, 5.0])
    z, drive = normal(2000, 2).float(), normal(6).float() if is_driven else None
    m, n = normal(6, 2).float(), normal(2, 6).float()
    given = [z, drive, m, n, threshold, torch.tensor([0.9])]
    wanted = [tensor.requires_grad_() for tensor in given if tensor is not None]
    ours = low_rank_step(*given, "clipped_relu")
    theirs = reference_low_rank_step(*given, "clipped_relu")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6)
    weight = normal(2000, 2).float()
    for one, other in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=5e-2)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_slopes_are_derivatives(kind):
    phi = ACTIVATIONS[kind]
    currents = normal(5, 4).requires_grad_()
    threshold = normal(4, seed=1) if phi.has_threshold else None
    (expected,) = torch.autograd.grad(phi.rates(currents, threshold).sum(), currents)
    torch.testing.assert_close(phi.slope(currents.detach(), threshold), expected)
