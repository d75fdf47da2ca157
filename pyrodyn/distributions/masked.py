"""Laws of which some entries count::

    log p(x_e) where entry e is scored, 0 elsewhere

Whatever an entry that is not scored would give, infinity and NaN included, is left out, of the
density and of its gradient.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their number of bytes."""

WORTH_MASKING = 2**18
"""Numbers of values from which on masking their bits is faster than choosing among them."""


class Masked(TorchDistribution):
    """The scored entries of a law; the others are drawn as it draws them, and weigh nothing.

    Args:
        law: law of every entry, without event dims.
        scored: which entries count; broadcasts against the law's batch shape.
        filler: a value inside the support, looked at in place of what is not scored, so that no
            unmeasured value is.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, law: TorchDistributionMixin, scored: Bool[Tensor, "..."], filler: float
    ) -> None:
        self.law, self.scored, self.filler = law, scored, filler
        super().__init__(law.batch_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Masked":
        """The same for more particles."""
        return Masked(self.law.expand(torch.Size(batch_shape)), self.scored, self.filler)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected entries, scored or not."""
        mean: Tensor = self.law.mean
        return mean

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Entries, scored or not, ``(*sample_shape, *batch_shape)``."""
        drawn: Tensor = self.law.sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density of every entry in nats, 0 where it is not scored."""
        if self.filler == 0:
            value = zero_unless(self.scored, value)
        else:
            value = torch.where(self.scored, value, self.filler)
        return zero_unless(self.scored, self.law.log_prob(value))


def zero_unless(kept: Bool[Tensor, "..."], values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Values where they are kept, 0 elsewhere, as ``torch.where(kept, values, 0)``.

    On a CPU that goes entry by entry, and guesses wrong at every other entry of a random mask. Of
    many values the bits are masked instead, all at once.
    """
    if values.device.type != "cpu" or values.numel() < WORTH_MASKING:
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
