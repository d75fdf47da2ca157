"""From a vector field to a map over one bin::

    Phi(z, i) = z(1),   z(0) = z,   dz/dt = f(z, i)         t in bins, i constant within the bin

``"midpoint"`` (the default) and ``"rk4"`` take ``substeps`` explicit steps per bin, at a cost that
does not depend on the data; `solver_check` measures how far their trajectory is from the exact one.
``"euler"`` at one step per bin is a residual map z + f(z) and should be analysed as that.
``"dopri5"`` and the other adaptive methods of `torchdiffeq` choose their own steps;
``"dopri5_adjoint"`` stores no trajectory for the gradient.
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
    Correction,
    TanhNetwork,
    explicit_step,
    roll_network,
)
from pyrodyn.nn.fields import MLPField

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun", "dopri5_adjoint")
SOLVERS = (*TABLEAUX, *ADAPTIVE)

ADAPTIVE_TOLERANCE = 1e-4
"""Relative and absolute tolerance of adaptive solvers in training, per bin."""

CHECK_TOLERANCE = 1e-6
"""Tolerance of the trajectory with which `solver_check` compares."""


class DivergenceError(ArithmeticError):
    """An adaptive solver cannot integrate a trajectory.

    Attributes:
        row: the row of the batch whose state is largest.
    """

    def __init__(self, row: int, first: float, last: float, problem: Exception) -> None:
        super().__init__(
            f"the trajectory of row {row} of the batch cannot be integrated from bin {first:g} to"
            f" {last:g} ({problem}): the vector field diverges"
        )
        self.row = row


class Flow(nn.Module):
    """The flow of a vector field over bins.

    Args:
        field: f.
        solver: one of `SOLVERS`.
        substeps: explicit steps per bin; adaptive solvers ignore it.
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
        correction: Correction | None = None,
    ) -> Float[Tensor, "*left time state"]:
        """Predictions Phi(z_t) of each bin, before any correction.

        Without one these are the trajectory; with one, z_{t+1} is the corrected prediction.
        """
        if inputs.shape[-2] == 0:
            return z.new_zeros(*z.shape[:-1], 0, z.shape[-1])
        if self.solver in ADAPTIVE and correction is None and inputs.shape[-1] == 0:
            # In one call: without inputs and corrections the trajectory is smooth.
            times = torch.arange(inputs.shape[-2] + 1, device=z.device, dtype=z.dtype)
            return self.at_times(z, times)[..., 1:, :]
        if self.solver in ADAPTIVE or self.field.activation != "tanh":
            return roll_by_steps(self._step, z, inputs, correction)
        num_bins, left = inputs.shape[-2], z.shape[:-1]
        rows = z.reshape(-1, z.shape[-1])
        drive = _time_first(self.field.drive(inputs), left) if inputs.shape[-1] else None
        if correction is not None:
            correction = Correction(*(_time_first(field, left) for field in correction))
        predicted = roll_network(
            tanh_network(self.field),
            rows,
            drive,
            correction,
            TABLEAUX[self.solver],
            self.substeps,
            num_bins,
        )
        return predicted.transpose(0, 1).reshape(*left, num_bins, z.shape[-1])

    def _step(self, z: Tensor, inputs: Tensor) -> Tensor:
        if self.solver in ADAPTIVE:
            return self.at_times(z, z.new_tensor([0.0, 1.0]), inputs)[..., 1, :]
        return self.plain_step(z, inputs)

    @property
    def is_map(self) -> bool:
        """Whether one Euler step per bin makes this a residual map and not a flow."""
        return self.solver == "euler" and self.substeps == 1

    def plain_step(
        self, z: Float[Tensor, "*left state"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left state"]:
        """Phi in plain torch, to which every transform of `torch.func` applies.

        Adaptive solvers are replaced by eight steps of RK4.
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
        """The trajectory at any times, solved adaptively (by dopri5 if the solver is explicit).

        Args:
            z: the state at the first time.
            times: in bins, increasing.
            inputs: constant over all times; none by default.
            tolerance: relative and absolute.

        Raises:
            ValueError: for times that do not increase.
            DivergenceError: for a trajectory that cannot be integrated, naming a row of ``z``.
        """
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
            raise ValueError(
                "times must be at least two and increase strictly; sort them and drop duplicates"
            )
        constant = z.new_zeros(0) if inputs is None else inputs
        try:
            path = self._solve(z, times, constant, tolerance)
        except AssertionError as problem:  # torchdiffeq's, of steps that have become too small
            row = int(z.detach().abs().amax(-1).argmax()) % (z.shape[-2] if z.ndim > 1 else 1)
            raise DivergenceError(row, float(times[0]), float(times[-1]), problem) from problem
        return path.movedim(0, -2)

    def _solve(self, z: Tensor, times: Tensor, inputs: Tensor, tolerance: float) -> Tensor:
        method = self.solver if self.solver in ADAPTIVE else "dopri5"
        if method == "dopri5_adjoint":
            path = odeint_adjoint(
                _ConstantInput(self.field, inputs),
                z,
                times,
                rtol=tolerance,
                atol=tolerance,
                method="dopri5",
                # Weights of inputs without columns are empty and have no gradient.
                adjoint_params=tuple(p for p in self.field.parameters() if p.numel()),
            )
        else:
            path = odeint(
                lambda _, at: self.field(at, inputs),
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
    correction: Correction | None,
) -> Float[Tensor, "*left time state"]:
    """Any map bin by bin, in plain torch; the result is that of `Flow.roll`."""
    predicted = []
    for t in range(inputs.shape[-2]):
        z = step(z, inputs[..., t, :])
        predicted.append(z)
        if correction is not None:
            z = torch.addcmul(correction.shift[..., t, :], correction.gain[..., t, :], z)
    return torch.stack(predicted, -2) if predicted else z[..., None, :][..., :0, :]


def _time_first(field: Tensor, left: Sequence[int]) -> Float[Tensor, "time row dim"]:
    """From ``(*left or fewer, time, dim)`` to one row per element of ``left``."""
    return field.expand(*left, *field.shape[-2:]).reshape(-1, *field.shape[-2:]).transpose(0, 1)


class _ConstantInput(nn.Module):
    """A field with a constant input, in the form required by the adjoint method."""

    def __init__(self, field: MLPField, inputs: Tensor) -> None:
        super().__init__()
        self.field, self.inputs = field, inputs

    def forward(self, _: Tensor, z: Tensor) -> Tensor:
        return torch.as_tensor(self.field(z, self.inputs))


def tanh_network(field: MLPField) -> TanhNetwork:
    """A tanh field in the form of the kernel."""
    layers = field.linear_layers()
    weights, biases = zip(*((layer.weight, layer.bias) for layer in layers), strict=True)
    return TanhNetwork(weights, biases, field.linear)


class SolverCheck(NamedTuple):
    """A field's trajectory at the step size of training, compared with the exact one.

    Attributes:
        r2: fraction of the exact trajectory's variance that it explains, pooled over trials, bins
            and dims.
        largest_error: in units of the state's standard deviation along the exact trajectory.
        tolerance: of the exact trajectory.
    """

    r2: float
    largest_error: float
    tolerance: float

    @property
    def is_fine(self) -> bool:
        """Whether the trained map is the flow of its vector field: an R2 of at least 0.99."""
        return self.r2 >= 0.99


@torch.no_grad()
def solver_check(
    flow: Flow, z: Float[Tensor, "trial state"], inputs: Float[Tensor, "trial time input"]
) -> SolverCheck:
    """Solve from the same states at the step of training and by dopri5 to a tolerance of 1e-6.

    Raises:
        ArithmeticError: for a trajectory that does not stay finite, naming its trial and bin.
    """
    z, inputs = z.double(), inputs.double()
    double = copy.deepcopy(flow).double()
    own = double.roll(z, inputs)
    is_off = ~own.isfinite().all(-1)
    if is_off.any():
        t = int(is_off.any(0).nonzero()[0])
        raise ArithmeticError(
            f"the trajectory of trial {int(is_off[:, t].nonzero()[0])} is not finite {t + 1} bins"
            f" after its start: a step of {flow.solver!r} with substeps={flow.substeps} is too"
            " coarse for this vector field, or the field itself diverges"
        )
    exact, states = z, []
    unit = z.new_tensor([0.0, 1.0])
    for t in range(inputs.shape[-2]):
        exact = double.at_times(exact, unit + t, inputs[:, t], CHECK_TOLERANCE)[:, 1]
        states.append(exact)
    truth = torch.stack(states, 1)
    centred = truth - truth.mean((0, 1))
    r2 = 1 - (own - truth).square().sum() / centred.square().sum()
    scale = centred.square().mean((0, 1)).sqrt()
    return SolverCheck(float(r2), float(((own - truth).abs() / scale).max()), CHECK_TOLERANCE)
