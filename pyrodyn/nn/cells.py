"""Recurrent dynamics: maps from one bin's state to the next, with the interface of
`pyrodyn.nn.solvers.Flow`::

    gru            GRU(i, z)                    see `recurrence`
    vanilla        tanh(W z + V i + b)
    residual       z + 0.1 tanh(W z + V i + b)  the state passes through
    next_state     MLP(z, i)                    an MLP, no pass-through
    residual_mlp   z + 0.1 MLP(z, i)            an MLP and pass-through: an Euler step

These are the comparisons and ablations of Sedler, Versteeg & Pandarinath (2023).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.kernels.gru import GRUWeights, gru_step
from pyrodyn.kernels.runge_kutta import Correction
from pyrodyn.nn.fields import MLPField
from pyrodyn.nn.recurrence import gru_jacobian, roll
from pyrodyn.nn.solvers import roll_by_steps

RESIDUAL_SCALE = 0.1
"""Factor of the network in a residual map (Sedler et al. 2023)."""

CELLS = ("gru", "vanilla", "residual", "next_state", "residual_mlp")


class GRUCell(nn.Module):
    """A gated recurrent unit."""

    def __init__(self, state_dim: int, input_dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(max(1, input_dim), state_dim, batch_first=True)
        if input_dim == 0:  # it reads zeros, so these weights have no gradient
            self.gru.weight_ih_l0.requires_grad_(False)

    def forward(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state"]:
        """The next state."""
        return gru_step(*self._drive_and_product(z, inputs), z)

    def jacobian(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state state"]:
        """Its derivative by z."""
        return gru_jacobian(*self._drive_and_product(z, inputs), z, self.gru.weight_hh_l0)

    def _drive_and_product(self, z: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        weights = GRUWeights.of(self.gru)
        known = inputs if inputs.shape[-1] else z.new_zeros(1)
        drive = functional.linear(known, weights.drive, weights.bias)
        product = functional.linear(z, weights.recurrent, weights.recurrent_bias)
        return drive.expand(product.shape), product

    def roll(
        self,
        z: Float[Tensor, "*left state"],
        inputs: Float[Tensor, "*shared time input"],
        correction: Correction | None = None,
    ) -> Float[Tensor, "*left time state"]:
        """The states at the end of each bin, before any correction (see `Flow.roll`)."""
        if correction is not None:
            return roll_by_steps(self, z, inputs, correction)
        return roll(self.gru, inputs.expand(*z.shape[:-1], *inputs.shape[-2:]), z)


class MapCell(nn.Module):
    """Any of the other maps.

    Args:
        state_dim: dimension of z.
        input_dim: dimension of i.
        kind: one of `CELLS` but ``"gru"``.
        width: hidden units of the MLP.
        depth: hidden layers of the MLP.
    """

    def __init__(self, state_dim: int, input_dim: int, kind: str, width: int, depth: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("next_state", "residual_mlp"):
            self.network: MLPField | nn.Linear = MLPField(state_dim, input_dim, width, depth)
        else:
            self.network = nn.Linear(state_dim + input_dim, state_dim)

    def forward(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state"]:
        """The next state."""
        if isinstance(self.network, MLPField):
            output = self.network(z, inputs)
        else:
            output = self._layer(z, inputs)
        if self.kind.startswith("residual"):
            return torch.add(z, output, alpha=RESIDUAL_SCALE)
        return torch.as_tensor(output)

    def jacobian(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state state"]:
        """Its derivative by z."""
        if isinstance(self.network, MLPField):
            d_output = self.network.jacobian(z, inputs)
        else:
            slope = 1 - self._layer(z, inputs).square()
            d_output = slope[..., None] * self.network.weight[:, : z.shape[-1]]
        if self.kind.startswith("residual"):
            return torch.eye(z.shape[-1]).to(z) + RESIDUAL_SCALE * d_output
        return d_output

    def _layer(self, z: Tensor, inputs: Tensor) -> Tensor:
        driven = inputs.expand(*z.shape[:-1], inputs.shape[-1])
        return torch.tanh(self.network(torch.cat([z, driven], -1)))

    def roll(
        self,
        z: Float[Tensor, "*left state"],
        inputs: Float[Tensor, "*shared time input"],
        correction: Correction | None = None,
    ) -> Float[Tensor, "*left time state"]:
        """The states at the end of each bin, before any correction (see `Flow.roll`)."""
        return roll_by_steps(self, z, inputs, correction)


def cell(kind: str, state_dim: int, input_dim: int, width: int, depth: int) -> GRUCell | MapCell:
    """Recurrent dynamics by name.

    Raises:
        ValueError: for an unknown name.
    """
    if kind not in CELLS:
        raise ValueError(f"cell={kind!r} is unknown; it is one of {', '.join(CELLS)}")
    if kind == "gru":
        return GRUCell(state_dim, input_dim)
    return MapCell(state_dim, input_dim, kind, width, depth)
