"""Distributions of which only some entries are scored::

    log p(x_e) where entry e is scored, 0 elsewhere

Entries that are not scored do not enter the density or its gradient, even if theirs would be
infinite or NaN.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their number of bytes."""

BITMASK_FROM = 2**18
"""Number of values from which masking their bits is faster than `torch.where`."""


class Masked(TorchDistribution):
    """The scored entries of a distribution; the others are sampled as usual and have density 1.

    Args:
        base: distribution of every entry, without event dims.
        scored: which entries are scored; broadcasts against the batch shape of ``base``.
        filler: a value inside the support, which replaces the values that are not scored before
            the density is evaluated.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, base: TorchDistributionMixin, scored: Bool[Tensor, "..."], filler: float
    ) -> None:
        self.base, self.scored, self.filler = base, scored, filler
        super().__init__(base.batch_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Masked":
        """The same for more particles."""
        return Masked(self.base.expand(torch.Size(batch_shape)), self.scored, self.filler)

    @property
    def support(self) -> constraints.Constraint:
        """The values that an entry may take, scored or not."""
        return self.base.support

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected entries, scored or not."""
        mean: Tensor = self.base.mean
        return mean

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Entries, scored or not, ``(*sample_shape, *batch_shape)``."""
        drawn: Tensor = self.base.sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density of every entry in nats, 0 where it is not scored."""
        if self.filler == 0:
            value = zero_unless(self.scored, value)
        else:
            value = torch.where(self.scored, value, self.filler)
        return zero_unless(self.scored, self.base.log_prob(value))


def zero_unless(kept: Bool[Tensor, "..."], values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``torch.where(kept, values, 0)``.

    On a CPU `torch.where` is slow for random masks; the bits of large tensors are masked instead.
    """
    if values.device.type != "cpu" or values.numel() < BITMASK_FROM:
        return torch.where(kept, values, 0.0)
    bits = kept.to(_BITS[values.element_size()]).neg_()
    masked: Tensor = _Masked.apply(values, bits)
    return masked


class _Masked(torch.autograd.Function):
    """Floating-point numbers and the bits of a mask, all 1 or all 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, bits: Tensor) -> Tensor:
        return (values.view(bits.dtype) & bits).view(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values, bits = inputs
        ctx.shape = values.shape
        ctx.save_for_backward(bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (bits,) = ctx.saved_tensors
        return _Masked.apply(grad, bits).sum_to_size(ctx.shape), None
