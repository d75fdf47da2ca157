"""Vector fields of neural ODEs: the derivative of the state, per bin::

    f(z, i) = A z + W_L s(... s(W_1 z + V i + b_1) ...) + b_L        A with ``linear_term``

s is tanh, relu or softplus. The linear term represents rotation and decay, so that the network
need represent only what is nonlinear.
"""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FIELD_ACTIVATIONS = ("tanh", "relu", "softplus")

INITIAL_SPEED = 0.1
"""Factor of the last layer's default initial weights."""


class MLPField(nn.Module):
    """A multilayer perceptron as a vector field.

    Args:
        state_dim: dimension of z.
        input_dim: dimension of i.
        width: units per hidden layer.
        depth: hidden layers.
        activation: one of `FIELD_ACTIVATIONS`.
        linear_term: whether A z is added.
    """

    def __init__(
        self,
        state_dim: int,
        input_dim: int = 0,
        width: int = 128,
        depth: int = 1,
        activation: str = "tanh",
        linear_term: bool = False,
    ) -> None:
        super().__init__()
        if activation not in FIELD_ACTIVATIONS:
            raise ValueError(
                f"field_activation={activation!r} is unknown; it is one of"
                f" {', '.join(FIELD_ACTIVATIONS)}"
            )
        self.activation = activation
        sizes = [state_dim, *[width] * depth, state_dim]
        self.layers = nn.ModuleList(
            nn.Linear(inside, outside) for inside, outside in itertools.pairwise(sizes)
        )
        with torch.no_grad():  # a fast random field carries the first trajectories far out
            last = self.linear_layers()[-1]
            last.weight.mul_(INITIAL_SPEED)
            last.bias.zero_()
        self.from_inputs = nn.Parameter(
            torch.randn(width, input_dim) / math.sqrt(max(1, input_dim))
        )
        self.linear = nn.Parameter(torch.zeros(state_dim, state_dim)) if linear_term else None

    def forward(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state"]:
        """The derivative per bin."""
        hidden = self.layers[0](z) + self.drive(inputs)
        for layer in self.layers[1:]:
            hidden = layer(self.activate(hidden))
        return hidden if self.linear is None else hidden + functional.linear(z, self.linear)

    def jacobian(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state state"]:
        """The derivative of the field by z, A + W_L diag(s') ... diag(s') W_1."""
        first, *later = self.linear_layers()
        hidden = first(z) + self.drive(inputs)
        product = first.weight
        for layer in later:
            product = layer.weight @ (self.slope(hidden)[..., None] * product)
            hidden = layer(self.activate(hidden))
        return product if self.linear is None else product + self.linear

    def linear_layers(self) -> list[nn.Linear]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def drive(self, inputs: Float[Tensor, "*left input"]) -> Float[Tensor, "*left width"]:
        """V i, the inputs' part of the first layer."""
        return functional.linear(inputs, self.from_inputs)

    def activate(self, hidden: Float[Tensor, "*left width"]) -> Float[Tensor, "*left width"]:
        """The hidden units' nonlinearity."""
        match self.activation:
            case "tanh":
                return torch.tanh(hidden)
            case "relu":
                return torch.relu(hidden)
            case _:
                return functional.softplus(hidden)

    def slope(self, hidden: Float[Tensor, "*left width"]) -> Float[Tensor, "*left width"]:
        """The derivative of `activate`."""
        match self.activation:
            case "tanh":
                return 1 - torch.tanh(hidden).square()
            case "relu":
                return (hidden > 0).to(hidden.dtype)
            case _:
                return torch.sigmoid(hidden)
