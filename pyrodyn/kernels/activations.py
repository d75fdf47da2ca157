"""Activations phi(y; h) of the units of a low-rank network, forward and backward.

With y the current of a unit and h its threshold::

    relu            max(y - h, 0)
    leaky_relu      max(y - h, 0) + LEAK min(y - h, 0)
    clipped_relu    max(y + h, 0) - max(y, 0)
    hard_tanh       y - h clipped to [-1, 1]
    tanh            tanh(y)
    identity        y

All but tanh are piecewise linear. Source of relu, clipped relu, tanh and identity: Pals, Sagtekin,
Pei, Gloeckler & Macke 2024; leaky relu and hard tanh are additions.

Each activation has its definition in plain torch (`rates`), its derivative (`slope`), and an
in-place form with a backward pass by hand (`forward`, `backward`). A step of a network
(`pyrodyn.kernels.low_rank`) consists of the latter and of products, and its time goes into tensors
over all units and particles.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LEAK = 0.1
"""Slope of a leaky relu below its threshold."""

_aten = torch.ops.aten


class Activation(ABC):
    """The map from a unit's current to its rate.

    Attributes:
        has_threshold: whether phi depends on h, which otherwise is None.
        is_shifted: whether phi is a function of y - h alone; a network's step then includes -h in
            the currents.
    """

    has_threshold: ClassVar[bool] = False
    is_shifted: ClassVar[bool] = False

    @abstractmethod
    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """phi(y), ``(..., unit)``, in plain torch; h is ``(unit,)``."""

    @abstractmethod
    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """phi'(y), ``(..., unit)``."""

    @abstractmethod
    def forward(
        self, currents: Float[Tensor, "row unit"], threshold: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """phi(y) in the memory of y, and what `backward` needs in addition.

        Shifted activations expect y - h in place of y.
        """

    @abstractmethod
    def backward(
        self, d_rates: Float[Tensor, "row unit"], rates: Tensor, saved: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of y and of h, from that of phi(y) and the results of `forward`."""


class Shifted(Activation):
    """phi(y; h) = f(y - h), with an f whose slope is a function of its value."""

    has_threshold = is_shifted = True

    @abstractmethod
    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """The function f."""

    @abstractmethod
    def input_gradient(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """The gradient of y, from that of f(y)."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """f(y - h)."""
        assert threshold is not None
        return self.of(currents - threshold)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """f'(y - h)."""
        rates = self.rates(currents, threshold)
        return self.input_gradient(torch.ones_like(rates), rates)

    def forward(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, None]:
        """f, given y - h."""
        return self.of(currents, inplace=True), None

    def backward(
        self, d_rates: Tensor, rates: Tensor, saved: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of h is minus the sum of that of the currents."""
        d_currents = self.input_gradient(d_rates, rates)
        return d_currents, d_currents.sum(0).neg_()


class Relu(Shifted):
    """max(y - h, 0)."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """max(y, 0)."""
        return functional.relu(y, inplace)

    def input_gradient(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """1 where the rate is above 0."""
        return _aten.threshold_backward(d_rates, rates, 0.0)


class LeakyRelu(Shifted):
    """max(y - h, 0) + LEAK min(y - h, 0)."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """F."""
        return functional.leaky_relu(y, LEAK, inplace)

    def input_gradient(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """1 where the rate is above 0, LEAK elsewhere."""
        return _aten.leaky_relu_backward(d_rates, rates, LEAK, True)


class HardTanh(Shifted):
    """y - h clipped to [-1, 1]."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """F."""
        return functional.hardtanh(y, inplace=inplace)

    def input_gradient(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """1 where the rate is within (-1, 1)."""
        return _aten.hardtanh_backward(d_rates, rates, -1.0, 1.0)


class ClippedRelu(Activation):
    """max(y + h, 0) - max(y, 0)."""

    has_threshold = True

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """As two relus."""
        assert threshold is not None
        return torch.relu(currents + threshold) - torch.relu(currents)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """1 between the kinks, of either sign."""
        assert threshold is not None
        return (currents > -threshold).to(currents.dtype) - (currents > 0).to(currents.dtype)

    def forward(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, Tensor]:
        """Saves max(y, 0)."""
        assert threshold is not None
        above = (currents + threshold).relu_()
        below = currents.relu_()
        return above.sub_(below), below

    def backward(
        self, d_rates: Tensor, rates: Tensor, saved: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of phi = above - below, where above = phi + below."""
        assert saved is not None
        d_above = _aten.threshold_backward(d_rates, rates + saved, 0.0)
        d_threshold = d_above.sum(0)
        return d_above.sub_(_aten.threshold_backward(d_rates, saved, 0.0)), d_threshold


class Tanh(Activation):
    """tanh(y)."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """The same."""
        return torch.tanh(currents)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """1 - tanh(y)^2."""
        return 1 - torch.tanh(currents).square()

    def forward(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, None]:
        """In place."""
        return currents.tanh_(), None

    def backward(self, d_rates: Tensor, rates: Tensor, saved: Tensor | None) -> tuple[Tensor, None]:
        """The slope is 1 - phi^2."""
        return _aten.tanh_backward(d_rates, rates), None


class Identity(Activation):
    """y: a linear network."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """The currents."""
        return currents

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """1."""
        return torch.ones_like(currents)

    def forward(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, None]:
        """The same."""
        return currents, None

    def backward(self, d_rates: Tensor, rates: Tensor, saved: Tensor | None) -> tuple[Tensor, None]:
        """The same."""
        return d_rates, None


ACTIVATIONS: dict[str, Activation] = {
    "relu": Relu(),
    "leaky_relu": LeakyRelu(),
    "clipped_relu": ClippedRelu(),
    "hard_tanh": HardTanh(),
    "tanh": Tanh(),
    "identity": Identity(),
}
"""By name."""
