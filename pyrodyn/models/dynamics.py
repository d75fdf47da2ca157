"""The face that a model's dynamics show to analysis: a map over one bin, on plain tensors::

    state_{t+1} = step(state_t, inputs_t)              noise left out
    d state / d time = vector_field(state, inputs)     where the model is one of continuous time

Fixed points, Lyapunov spectra, free runs and portraits are written once against this face, for
trained models and for known systems alike.
"""

import dataclasses
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
"""From states ``(..., state)`` and inputs ``(..., input)`` to something of the states' shape."""

Derivative = Callable[[Tensor, Tensor], Tensor]
"""From states and inputs to a field's Jacobians by the state, ``(..., state, state)``."""

CHUNK = 64
"""States whose Jacobians are taken at once: their tangents then stay in the cache."""


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """Deterministic dynamics.

    Attributes:
        step: the state one bin later; states ``(*left, state)`` and inputs ``(*left, input)`` to
            states.
        state_dim: dimension of the state.
        input_dim: dimension of what drives it.
        bin_width: time that a step covers, in seconds (or a known system's own unit).
        vector_field: derivative of the state per unit of that time, for continuous time; None for a
            map.
        step_derivative: the Jacobian of `step` by the state, where there is a closed form; where
            there is none, forward derivatives take its place.
        field_derivative: the same of `vector_field`.
    """

    step: Field
    state_dim: int
    input_dim: int = 0
    bin_width: float = 1.0
    vector_field: Field | None = None
    step_derivative: Derivative | None = None
    field_derivative: Derivative | None = None

    def jacobian(
        self, state: Float[Tensor, "*left state"], inputs: Float[Tensor, "*left input"]
    ) -> Float[Tensor, "*left state state"]:
        """Derivative of `step` by the state."""
        if self.step_derivative is not None:
            return self.step_derivative(state, inputs)
        return derivative(self.step, state, inputs)

    def input_jacobian(
        self, state: Float[Tensor, "*left state"], inputs: Float[Tensor, "*left input"]
    ) -> Float[Tensor, "*left state input"]:
        """Derivative of `step` by the inputs: what a small input does to the state of the next bin.

        Raises:
            ValueError: for dynamics without inputs.
        """
        if self.input_dim == 0:
            raise ValueError("these dynamics have no inputs; there is nothing to derive them by")
        return derivative(lambda at, held: self.step(held, at), inputs, state)

    def field_jacobian(
        self, state: Float[Tensor, "*left state"], inputs: Float[Tensor, "*left input"]
    ) -> Float[Tensor, "*left state state"]:
        """Derivative of `vector_field` by the state.

        Raises:
            ValueError: for a map, which has no vector field.
        """
        if self.vector_field is None:
            raise ValueError("these dynamics are a map over one bin; they have no vector field")
        if self.field_derivative is not None:
            return self.field_derivative(state, inputs)
        return derivative(self.vector_field, state, inputs)

    def no_inputs(self, state: Float[Tensor, "*left state"]) -> Float[Tensor, "*left input"]:
        """Inputs of 0 for some states."""
        return state.new_zeros(*state.shape[:-1], self.input_dim)


def pushed(
    function: Callable[[Tensor], Tensor], at: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """A function's value and how it moves along a tangent (one forward derivative)."""
    with warnings.catch_warnings():
        # On its first forward derivative torch scripts decompositions, which it itself deprecates.
        warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
        moved = torch.func.jvp(function, (at,), (tangent,))
    return moved[0], moved[1]


def derivative(
    function: Field, at: Float[Tensor, "*left entry"], other: Float[Tensor, "*left other"]
) -> Float[Tensor, "*left row entry"]:
    """Jacobians by the first argument, by forward derivatives of many rows at once.

    The rows of a batch do not meet inside ``function``. All directions go in one pass, which visits
    the states themselves once.
    """
    eye = torch.eye(at.shape[-1], dtype=at.dtype, device=at.device)

    def of_chunk(at: Tensor, other: Tensor) -> Tensor:
        return torch.func.vmap(
            lambda direction: pushed(
                lambda moved: function(moved, other), at, direction.expand_as(at).clone()
            )[1],
            out_dims=-1,
        )(eye)

    rows = (torch.atleast_2d(part).flatten(0, -2) for part in (at, other))
    chunks = zip(*(part.split(CHUNK) for part in rows), strict=True)
    jacobians = torch.cat([of_chunk(*chunk) for chunk in chunks])
    return jacobians.reshape(*at.shape[:-1], *jacobians.shape[-2:])
