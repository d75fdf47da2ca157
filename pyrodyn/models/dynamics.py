"""The interface between models and the analysis of dynamics: a map over one bin, on tensors::

    state_{t+1} = step(state_t, inputs_t)              noise left out
    d state / d time = vector_field(state, inputs)     for models in continuous time

Fixed points, Lyapunov spectra, autonomous simulations and phase portraits use this interface alone,
both for trained models and for known systems.
"""

import dataclasses
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
"""A function of states ``(..., state)`` and inputs ``(..., input)`` with values ``(..., state)``.
"""

Derivative = Callable[[Tensor, Tensor], Tensor]
"""A function of states and inputs whose value is the Jacobian of a `Field` with respect to the
state, ``(..., state, state)``.
"""

CHUNK = 64
"""Number of states whose Jacobians are computed at once; their tangents then fit into the cache."""


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """Deterministic dynamics.

    Attributes:
        step: the state one bin later; states ``(*left, state)`` and inputs ``(*left, input)`` to
            states.
        state_dim: dimension of the state.
        input_dim: dimension of the inputs.
        bin_width: duration of a step, in seconds (or in the unit of a known system).
        vector_field: derivative of the state per unit of that time, for continuous time; None for a
            map.
        step_derivative: the Jacobian of `step` with respect to the state, if it has a closed form;
            otherwise forward-mode differentiation is used.
        field_derivative: the same for `vector_field`.
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
        """Jacobian of `step` with respect to the state."""
        if self.step_derivative is not None:
            return self.step_derivative(state, inputs)
        return derivative(self.step, state, inputs)

    def input_jacobian(
        self, state: Float[Tensor, "*left state"], inputs: Float[Tensor, "*left input"]
    ) -> Float[Tensor, "*left state input"]:
        """Jacobian of `step` with respect to the inputs: the effect of a small input on the
        state of the next bin.

        Raises:
            ValueError: for dynamics without inputs.
        """
        if self.input_dim == 0:
            raise ValueError("these dynamics have no inputs, so they have no input Jacobian")
        return derivative(lambda at, fixed: self.step(fixed, at), inputs, state)

    def field_jacobian(
        self, state: Float[Tensor, "*left state"], inputs: Float[Tensor, "*left input"]
    ) -> Float[Tensor, "*left state state"]:
        """Jacobian of `vector_field` with respect to the state.

        Raises:
            ValueError: for a map, which has no vector field.
        """
        if self.vector_field is None:
            raise ValueError("these dynamics are a map over one bin; they have no vector field")
        if self.field_derivative is not None:
            return self.field_derivative(state, inputs)
        return derivative(self.vector_field, state, inputs)

    def no_inputs(self, state: Float[Tensor, "*left state"]) -> Float[Tensor, "*left input"]:
        """Inputs of 0, in the batch shape of the states."""
        return state.new_zeros(*state.shape[:-1], self.input_dim)


def jvp(function: Callable[[Tensor], Tensor], at: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """A function's value and its Jacobian-vector product with a tangent, by forward mode."""
    with warnings.catch_warnings():
        # At its first forward-mode derivative torch calls torch.jit.script, which it deprecates.
        warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
        result = torch.func.jvp(function, (at,), (tangent,))
    return result[0], result[1]


def derivative(
    function: Field, at: Float[Tensor, "*left entry"], other: Float[Tensor, "*left other"]
) -> Float[Tensor, "*left row entry"]:
    """Jacobians with respect to the first argument, by forward-mode differentiation.

    ``function`` must treat the rows of a batch independently. All directions are differentiated in
    one pass, in which ``function`` is evaluated once.
    """
    eye = torch.eye(at.shape[-1], dtype=at.dtype, device=at.device)

    def of_chunk(at: Tensor, other: Tensor) -> Tensor:
        return torch.func.vmap(
            lambda direction: jvp(
                lambda moved: function(moved, other), at, direction.expand_as(at).clone()
            )[1],
            out_dims=-1,
        )(eye)

    rows = (torch.atleast_2d(part).flatten(0, -2) for part in (at, other))
    chunks = zip(*(part.split(CHUNK) for part in rows), strict=True)
    jacobians = torch.cat([of_chunk(*chunk) for chunk in chunks])
    return jacobians.reshape(*at.shape[:-1], *jacobians.shape[-2:])
