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

Each activation has its definition in plain torch (`rates`), its derivative (`slope`), and a kernel
(`forward`, `backward`): an in-place function f of one argument whose slope is a function of its
value, so that the rates alone are kept for the backward pass. A step of a network
(`pyrodyn.kernels.low_rank`) consists of the latter and of products, and its time goes into tensors
over all units and particles; the threshold enters f through the products, as `threshold_by` states.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

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
        threshold_by: how h enters: ``"shift"``, phi(y; h) = f(y - h); ``"scale"``,
            phi(y; h) = h f(y / abs(h) + 1) if h > 0, h f(y / abs(h)) otherwise; None for a
            phi(y) = f(y) without threshold.
    """

    threshold_by: ClassVar[Literal["shift", "scale"] | None] = None

    @property
    def has_threshold(self) -> bool:
        """Whether phi depends on h, which otherwise is None."""
        return self.threshold_by is not None

    @abstractmethod
    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """phi(y), ``(..., unit)``, in plain torch; h is ``(unit,)``."""

    @abstractmethod
    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """phi'(y), ``(..., unit)``."""

    @abstractmethod
    def forward(self, y: Float[Tensor, "unit state"]) -> Float[Tensor, "unit state"]:
        """f(y), in the memory of y."""

    @abstractmethod
    def backward(
        self, d_rates: Float[Tensor, "unit state"], rates: Float[Tensor, "unit state"]
    ) -> Float[Tensor, "unit state"]:
        """The gradient of y, in the memory of that of f(y), from it and f(y)."""


class Shifted(Activation):
    """phi(y; h) = f(y - h)."""

    threshold_by = "shift"

    @abstractmethod
    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """The function f."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """f(y - h)."""
        assert threshold is not None
        return self.of(currents - threshold)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """f'(y - h)."""
        rates = self.rates(currents, threshold)
        return self.backward(torch.ones_like(rates), rates)

    def forward(self, y: Tensor) -> Tensor:
        """f(y), in place."""
        return self.of(y, inplace=True)


class Relu(Shifted):
    """max(y - h, 0)."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """max(y, 0)."""
        return functional.relu(y, inplace)

    def backward(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """Slope 1 where the rate is above 0."""
        return _aten.threshold_backward.grad_input(d_rates, rates, 0.0, grad_input=d_rates)


class LeakyRelu(Shifted):
    """max(y - h, 0) + LEAK min(y - h, 0)."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """max(y, 0) + LEAK min(y, 0)."""
        return functional.leaky_relu(y, LEAK, inplace)

    def backward(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """Slope 1 where the rate is above 0, LEAK elsewhere."""
        return _aten.leaky_relu_backward.grad_input(d_rates, rates, LEAK, True, grad_input=d_rates)


class HardTanh(Shifted):
    """y - h clipped to [-1, 1]."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """Clip to [-1, 1]."""
        return functional.hardtanh(y, inplace=inplace)

    def backward(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """Slope 1 where the rate is within (-1, 1)."""
        return _aten.hardtanh_backward.grad_input(d_rates, rates, -1.0, 1.0, grad_input=d_rates)


class ClippedRelu(Activation):
    """max(y + h, 0) - max(y, 0), which is h times a clipped linear function of y / abs(h)."""

    threshold_by = "scale"

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """The difference of two relus."""
        assert threshold is not None
        return torch.relu(currents + threshold) - torch.relu(currents)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """The sign of h between the kinks."""
        assert threshold is not None
        return (currents > -threshold).to(currents.dtype) - (currents > 0).to(currents.dtype)

    def forward(self, y: Tensor) -> Tensor:
        """Clip to [0, 1], in place."""
        return functional.hardtanh(y, 0.0, 1.0, inplace=True)

    def backward(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """Slope 1 where the rate is within (0, 1)."""
        return _aten.hardtanh_backward.grad_input(d_rates, rates, 0.0, 1.0, grad_input=d_rates)


class Tanh(Activation):
    """tanh(y)."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """tanh(y)."""
        return torch.tanh(currents)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """1 - tanh(y)^2."""
        return 1 - torch.tanh(currents).square()

    def forward(self, y: Tensor) -> Tensor:
        """tanh(y), in place."""
        return y.tanh_()

    def backward(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """Slope 1 - phi^2."""
        return _aten.tanh_backward.grad_input(d_rates, rates, grad_input=d_rates)


class Identity(Activation):
    """y: a linear network."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """The currents."""
        return currents

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """1."""
        return torch.ones_like(currents)

    def forward(self, y: Tensor) -> Tensor:
        """The same."""
        return y

    def backward(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """The same."""
        return d_rates


ACTIVATIONS: dict[str, Activation] = {
    "relu": Relu(),
    "leaky_relu": LeakyRelu(),
    "clipped_relu": ClippedRelu(),
    "hard_tanh": HardTanh(),
    "tanh": Tanh(),
    "identity": Identity(),
}
"""By name."""
