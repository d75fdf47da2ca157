"""Activations phi(y; h) of the units of a low-rank network, forward and back.

With y the current that enters a unit and h its threshold::

    relu            max(y - h, 0)
    leaky_relu      max(y - h, 0) + LEAK min(y - h, 0)
    clipped_relu    max(y + h, 0) - max(y, 0)
    hard_tanh       y - h held within -1 and 1
    tanh            tanh(y)
    identity        y

All but tanh are piecewise linear. Sources: Pals, Sagtekin, Pei, Gloeckler & Macke 2024 for relu,
clipped relu, tanh and identity; leaky relu and hard tanh are ours.

Each is said three times: as autograd sees it, its slope, and in place with a way back by hand. A
step of a network (`pyrodyn.kernels.low_rank`) has no more to do than this and its products, and
tensors of all units of all particles are what it spends its time on.
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
    """How a kind of unit turns currents into rates.

    Attributes:
        has_threshold: whether phi depends on h; if not, None stands for it.
        is_shifted: whether phi is a function of y - h alone, which a network's step then takes in
            as it sums up currents.
    """

    has_threshold: ClassVar[bool] = False
    is_shifted: ClassVar[bool] = False

    @abstractmethod
    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """phi(y), ``(..., unit)``, recorded by autograd; h is ``(unit,)``."""

    @abstractmethod
    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """phi'(y), ``(..., unit)``."""

    @abstractmethod
    def overwrite(
        self, currents: Float[Tensor, "row unit"], threshold: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """phi(y) in the memory of y, and what `back` needs beside it.

        A shifted activation is given y - h.
        """

    @abstractmethod
    def back(
        self, d_rates: Float[Tensor, "row unit"], rates: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of y and of h from that of phi(y), and from what `overwrite` returned."""


class Shifted(Activation):
    """phi(y; h) = f(y - h), with an f whose slope its value tells."""

    has_threshold = is_shifted = True

    @abstractmethod
    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """The function f."""

    @abstractmethod
    def pulled_back(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """The gradient of y by that of f(y)."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """f(y - h)."""
        assert threshold is not None
        return self.of(currents - threshold)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """f'(y - h)."""
        rates = self.rates(currents, threshold)
        return self.pulled_back(torch.ones_like(rates), rates)

    def overwrite(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, None]:
        """From y - h, which is what a shifted activation is given."""
        return self.of(currents, inplace=True), None

    def back(
        self, d_rates: Tensor, rates: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The threshold's gradient is the currents', summed and of the other sign."""
        d_currents = self.pulled_back(d_rates, rates)
        return d_currents, d_currents.sum(0).neg_()


class Relu(Shifted):
    """max(y - h, 0)."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """max(y, 0)."""
        return functional.relu(y, inplace)

    def pulled_back(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """1 where the rate is above 0."""
        return _aten.threshold_backward(d_rates, rates, 0.0)


class LeakyRelu(Shifted):
    """max(y - h, 0) + LEAK min(y - h, 0)."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """The same without h."""
        return functional.leaky_relu(y, LEAK, inplace)

    def pulled_back(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """1 where the rate is above 0, LEAK elsewhere."""
        return _aten.leaky_relu_backward(d_rates, rates, LEAK, True)


class HardTanh(Shifted):
    """y - h held within -1 and 1."""

    def of(self, y: Tensor, inplace: bool = False) -> Tensor:
        """The same without h."""
        return functional.hardtanh(y, inplace=inplace)

    def pulled_back(self, d_rates: Tensor, rates: Tensor) -> Tensor:
        """1 where the rate is between its ends."""
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

    def overwrite(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keeps max(y, 0)."""
        assert threshold is not None
        above = (currents + threshold).relu_()
        below = currents.relu_()
        return above.sub_(below), below

    def back(self, d_rates: Tensor, rates: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of phi = above - below; above is 0 where phi + below is."""
        assert kept is not None
        d_above = _aten.threshold_backward(d_rates, rates + kept, 0.0)
        d_threshold = d_above.sum(0)
        return d_above.sub_(_aten.threshold_backward(d_rates, kept, 0.0)), d_threshold


class Tanh(Activation):
    """tanh(y)."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """The same."""
        return torch.tanh(currents)

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """1 - tanh(y)^2."""
        return 1 - torch.tanh(currents).square()

    def overwrite(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, None]:
        """tanh(y) = 2 sigmoid(2 y) - 1, which CPUs compute several times faster than tanh."""
        return currents.mul_(2).sigmoid_().mul_(2).sub_(1), None

    def back(self, d_rates: Tensor, rates: Tensor, kept: Tensor | None) -> tuple[Tensor, None]:
        """The slope follows from the rate."""
        return _aten.tanh_backward(d_rates, rates), None


class Identity(Activation):
    """y: a linear network."""

    def rates(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """The currents."""
        return currents

    def slope(self, currents: Tensor, threshold: Tensor | None) -> Tensor:
        """1."""
        return torch.ones_like(currents)

    def overwrite(self, currents: Tensor, threshold: Tensor | None) -> tuple[Tensor, None]:
        """Nothing to do."""
        return currents, None

    def back(self, d_rates: Tensor, rates: Tensor, kept: Tensor | None) -> tuple[Tensor, None]:
        """Nothing to do."""
        return d_rates, None


ACTIVATIONS: dict[str, Activation] = {
    "relu": Relu(),
    "leaky_relu": LeakyRelu(),
    "clipped_relu": ClippedRelu(),
    "hard_tanh": HardTanh(),
    "tanh": Tanh(),
    "identity": Identity(),
}
"""By the name that a model gives."""
