"""Steps of a low-rank network by hand, against autograd."""

import pytest
import torch

from pyrodyn.kernels.low_rank import low_rank_step, recorded_step
from pyrodyn.nn.activations import ACTIVATIONS


def weights(kind: str, is_driven: bool, decays: int = 1) -> tuple[torch.Tensor | None, ...]:
    torch.manual_seed(3)
    z, drive = torch.randn(2, 2, 2), torch.randn(2, 3)
    m, n, threshold = torch.randn(3, 2), torch.randn(2, 3), torch.randn(3)
    given = (
        z,
        drive if is_driven else None,
        m,
        n,
        threshold if ACTIVATIONS[kind].has_threshold else None,
        torch.rand(decays),
    )
    return tuple(None if each is None else each.double().requires_grad_() for each in given)


@pytest.mark.parametrize("is_driven", [False, True])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_step_and_its_gradients_are_those_of_autograd(kind, is_driven):
    given = weights(kind, is_driven, decays=2)
    torch.testing.assert_close(low_rank_step(*given, kind), recorded_step(*given, kind))
    assert torch.autograd.gradcheck(lambda *each: low_rank_step(*each, kind), given)
    assert torch.autograd.gradgradcheck(lambda *each: low_rank_step(*each, kind), given)
