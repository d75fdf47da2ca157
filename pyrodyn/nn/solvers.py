"""From a vector field to a map over one bin::

    Phi(z, i) = z(1),   z(0) = z,   dz/dt = f(z, i)         t in bins, the input held over the bin

``"midpoint"`` (the default) and ``"rk4"`` take ``substeps`` explicit steps per bin, at a cost that
does not depend on the batch; `solver_check` says how far their path is from the exact one.
``"euler"`` at one step per bin is a residual map z + f(z) and should be analysed as that.
``"dopri5"`` and the other adaptive methods of `torchdiffeq` choose their own steps;
``"dopri5_adjoint"`` keeps no path for the gradient.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from pyrodyn.kernels.runge_kutta import (
    TABLEAUX,
    SigmoidNetwork,
    Steering,
    explicit_step,
    roll_network,
)
from pyrodyn.nn.fields import MLPField

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "dopri5_adjoint")
SOLVERS = (*TABLEAUX, *ADAPTIVE)

ADAPTIVE_TOLERANCE = 1e-4
"""Relative and absolute tolerance of adaptive solvers in training: that of one bin's path, not of
its statistics."""

CHECK_TOLERANCE = 1e-6
"""Tolerance of the path that a trained field's own path is checked against."""


class PathError(ArithmeticError):
    """An adaptive solver cannot follow a path.

    Attributes:
        row: of the batch, whose state is farthest out.
    """

    def __init__(self, row: int, first: float, last: float, problem: Exception) -> None:
        super().__init__(
            f"the path of row {row} of the batch cannot be followed from bin {first:g} to {last:g}"
            f" ({problem}): the vector field runs off to infinity"
        )
        self.row = row


class Flow(nn.Module):
    """The flow of a vector field over bins.

    Args:
        field: f.
        solver: one of `SOLVERS`.
        substeps: explicit steps per bin; adaptive solvers take none.
    """

    def __init__(self, field: MLPField, solver: str = "midpoint", substeps: int = 1) -> None:
        super().__init__()
        if solver not in SOLVERS:
            raise ValueError(f"solver={solver!r} is unknown; it is one of {', '.join(SOLVERS)}")
        if substeps < 1:
            raise ValueError(f"substeps={substeps}; a bin needs at least one step")
        self.field, self.solver, self.substeps = field, solver, substeps

    def forward(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state"]:
        """Phi: the state one bin later."""
        return self.roll(z, inputs[..., None, :])[..., 0, :]

    def roll(
        self,
        z: Float[Tensor, "*left state"],
        inputs: Float[Tensor, "*shared time input"],
        steering: Steering | None = None,
    ) -> Float[Tensor, "*left time state"]:
        """The states that each bin ends with; where steered, before that is done to them."""
        if inputs.shape[-2] == 0:
            return z.new_zeros(*z.shape[:-1], 0, z.shape[-1])
        if self.solver in ADAPTIVE and steering is None and inputs.shape[-1] == 0:
            # In one go: nothing jumps between bins.
            times = torch.arange(inputs.shape[-2] + 1, device=z.device, dtype=z.dtype)
            return self.at_times(z, times)[..., 1:, :]
        if self.solver in ADAPTIVE or self.field.activation != "tanh":
            return roll_by_steps(self._step, z, inputs, steering)
        num_bins, left = inputs.shape[-2], z.shape[:-1]
        rows = z.reshape(-1, z.shape[-1])
        drive = 2 * (self.field.drive(inputs) + self.field.first_bias())
        if inputs.shape[-1] == 0:  # the same for all rows and bins
            drive = (2 * self.field.first_bias()).expand(num_bins, 1, -1)
        else:
            drive = _time_first(drive, left)
        if steering is not None:
            steering = Steering(*(_time_first(field, left) for field in steering))
        reached = roll_network(
            sigmoid_network(self.field),
            rows,
            drive,
            steering,
            TABLEAUX[self.solver],
            self.substeps,
        )
        return reached.transpose(0, 1).reshape(*left, num_bins, z.shape[-1])

    def _step(self, z: Tensor, inputs: Tensor) -> Tensor:
        if self.solver in ADAPTIVE:
            return self.at_times(z, z.new_tensor([0.0, 1.0]), inputs)[..., 1, :]
        return self.recorded(z, inputs)

    @property
    def is_map(self) -> bool:
        """Whether one Euler step per bin makes this a residual map and not a flow."""
        return self.solver == "euler" and self.substeps == 1

    def recorded(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state"]:
        """Phi in operations that every transform of torch knows, forward derivatives among them.

        In place of an adaptive solver stand eight steps of RK4.
        """
        tableau, substeps = TABLEAUX.get(self.solver), self.substeps
        if tableau is None:
            tableau, substeps = TABLEAUX["rk4"], 8
        return explicit_step(lambda at: self.field(at, inputs), z, tableau, substeps)

    def at_times(
        self,
        z: Float[Tensor, "*left state"],
        times: Float[Tensor, " moment"],
        inputs: Float[Tensor, "*shared input"] | None = None,
        tolerance: float = ADAPTIVE_TOLERANCE,
    ) -> Float[Tensor, "*left moment state"]:
        """The path at any moments, solved adaptively (by dopri5 where the solver is explicit).

        Args:
            z: the state at the first of them.
            times: in bins, increasing.
            inputs: held over all of them; none by default.
            tolerance: relative and absolute.

        Raises:
            ValueError: for times that do not increase.
            PathError: for a path that cannot be followed, naming the farthest row of ``z``.
        """
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
            raise ValueError(
                "times must be at least two moments that increase strictly; sort them and drop"
                " duplicates"
            )
        held = z.new_zeros(0) if inputs is None else inputs
        try:
            path = self._solved(z, times, held, tolerance)
        except AssertionError as problem:  # torchdiffeq's, of steps that have become too small
            row = int(z.detach().abs().amax(-1).argmax()) % (z.shape[-2] if z.ndim > 1 else 1)
            raise PathError(row, float(times[0]), float(times[-1]), problem) from problem
        return path.movedim(0, -2)

    def _solved(self, z: Tensor, times: Tensor, held: Tensor, tolerance: float) -> Tensor:
        method = self.solver if self.solver in ADAPTIVE else "dopri5"
        if method == "dopri5_adjoint":
            path = odeint_adjoint(
                _Held(self.field, held),
                z,
                times,
                rtol=tolerance,
                atol=tolerance,
                method="dopri5",
                # Weights of inputs that there are none of have no memory to take a gradient.
                adjoint_params=tuple(p for p in self.field.parameters() if p.numel()),
            )
        else:
            path = odeint(
                lambda _, at: self.field(at, held),
                z,
                times,
                rtol=tolerance,
                atol=tolerance,
                method=method,
            )
        return torch.as_tensor(path)


def roll_by_steps(
    step: Callable[[Tensor, Tensor], Tensor],
    z: Float[Tensor, "*left state"],
    inputs: Float[Tensor, "*shared time input"],
    steering: Steering | None,
) -> Float[Tensor, "*left time state"]:
    """Any map, bin by bin, as autograd records it."""
    reached = []
    for t in range(inputs.shape[-2]):
        z = step(z, inputs[..., t, :])
        reached.append(z)
        if steering is not None:
            z = torch.addcmul(steering.shift[..., t, :], steering.gain[..., t, :], z)
    return torch.stack(reached, -2) if reached else z[..., None, :][..., :0, :]


def _time_first(field: Tensor, left: Sequence[int]) -> Float[Tensor, "time row dim"]:
    """From ``(*left or fewer, time, dim)`` to one row per element of ``left``."""
    return field.expand(*left, *field.shape[-2:]).reshape(-1, *field.shape[-2:]).transpose(0, 1)


class _Held(nn.Module):
    """A field under a held input, in the form that the adjoint method asks for."""

    def __init__(self, field: MLPField, held: Tensor) -> None:
        super().__init__()
        self.field, self.held = field, held

    def forward(self, _: Tensor, z: Tensor) -> Tensor:
        return torch.as_tensor(self.field(z, self.held))


def sigmoid_network(field: MLPField) -> SigmoidNetwork:
    """A tanh field as a sigmoid network: tanh(y) = 2 sigmoid(2 y) - 1.

    The drive of the first layer, with its bias, doubles too.
    """
    first, *later = ((layer.weight, layer.bias) for layer in field.linear_layers())
    weights, biases = [2 * first[0]], []
    for position, (weight, bias) in enumerate(later, 1):
        scale = 2 if position < len(later) else 1
        weights.append(2 * scale * weight)
        biases.append(scale * (bias - weight.sum(-1)))
    return SigmoidNetwork(tuple(weights), tuple(biases), field.linear)


class SolverCheck(NamedTuple):
    """A field's path at the step it was trained with, beside the exact one.

    Attributes:
        r2: share of the exact path's variance that it explains, all trials, bins and dims pooled.
        largest_error: in units of the state's standard deviation along the exact path.
        tolerance: of the exact path.
    """

    r2: float
    largest_error: float
    tolerance: float

    @property
    def is_fine(self) -> bool:
        """Whether what was trained is the flow of its vector field: R2 of .99 at least."""
        return self.r2 >= 0.99


@torch.no_grad()
def solver_check(
    flow: Flow, z: Float[Tensor, "trial state"], inputs: Float[Tensor, "trial time input"]
) -> SolverCheck:
    """Solve from the same states at the trained step and by dopri5 to a tolerance of 1e-6.

    Raises:
        ArithmeticError: for a path that does not stay finite, naming its trial and bin.
    """
    z, inputs = z.double(), inputs.double()
    double = copy.deepcopy(flow).double()
    own = double.roll(z, inputs)
    is_off = ~own.isfinite().all(-1)
    if is_off.any():
        t = int(is_off.any(0).nonzero()[0])
        raise ArithmeticError(
            f"the path of trial {int(is_off[:, t].nonzero()[0])} is not finite {t + 1} bins after"
            f" its start: a step of {flow.solver!r} with substeps={flow.substeps} is too coarse for"
            " this vector field, or the field itself runs off to infinity"
        )
    exact, states = z, []
    unit = z.new_tensor([0.0, 1.0])
    for t in range(inputs.shape[-2]):
        exact = double.at_times(exact, unit + t, inputs[:, t], CHECK_TOLERANCE)[:, 1]
        states.append(exact)
    truth = torch.stack(states, 1)
    spread = truth - truth.mean((0, 1))
    r2 = 1 - (own - truth).square().sum() / spread.square().sum()
    scale = spread.square().mean((0, 1)).sqrt()
    return SolverCheck(float(r2), float(((own - truth).abs() / scale).max()), CHECK_TOLERANCE)
