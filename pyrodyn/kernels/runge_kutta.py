"""Explicit Runge-Kutta steps of a perceptron's vector field, forward and backward by hand::

    k_s = f(z_t + a_s k_{s-1}),        s = 1 ... S, a_1 = 0
    Phi(z_t) = z_t + sum_s b_s k_s     the prediction
    z_{t+1} = Phi(z_t), or corrected: z_{t+1} = gain_{t+1} * Phi(z_t) + shift_{t+1}

A correction by diagonal gains conditions a trajectory on Gaussian factors of the data (see
`pyrodyn.models.sae`). A roll returns the predictions Phi(z_t), which without corrections are the
trajectory itself.

`reference_roll` is the definition in plain torch. Autograd would record a dozen nodes per stage.
Here a stage is three products on preallocated memory, and only its hidden units are kept for the
backward pass, which leaves the gradients of the weights to one product per block of bins.

Source of the schemes: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", II.1.
"""

import functools
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pyrodyn.kernels.blocks import blocks
from pyrodyn.kernels.double_backward import differentiable_gradients
from pyrodyn.kernels.layout import by_columns

_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class Tableau(NamedTuple):
    """An explicit scheme each of whose stages depends on the previous one alone, for a step of
    length 1.

    Attributes:
        node: a_1 ... a_S; a_1 = 0.
        weight: b_1 ... b_S.
    """

    node: tuple[float, ...]
    weight: tuple[float, ...]

    def repeated(self, substeps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Nodes and weights of a step of length 1 / substeps."""
        return (
            tuple(a / substeps for a in self.node),
            tuple(b / substeps for b in self.weight),
        )


TABLEAUX = {
    "euler": Tableau((0.0,), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), (0.0, 1.0)),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class TanhNetwork(NamedTuple):
    """A vector field f(z, d) = A z + W_L tanh(... tanh(W_1 z + d) ...) + b_L.

    d is the drive of the first layer, which includes its bias.

    Attributes:
        weights: W_1 ... W_L, at least two.
        biases: b_2 ... b_L.
        linear: A, or None.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    linear: Tensor | None

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors in one tuple."""
        return (*self.weights, *self.biases, *(() if self.linear is None else (self.linear,)))

    @classmethod
    def of_flat(cls, flat: tuple[Tensor, ...]) -> "TanhNetwork":
        """The inverse of `flat`: L weights, L - 1 biases and perhaps A."""
        num_layers = (len(flat) + 1) // 2
        biases = flat[num_layers : 2 * num_layers - 1]
        linear = flat[-1] if len(flat) == 2 * num_layers else None
        return cls(flat[:num_layers], biases, linear)

    def field(self, z: Tensor, drive: Tensor) -> Tensor:
        """f, in plain torch."""
        hidden = functional.linear(z, self.weights[0]) + drive
        for weight, bias in zip(self.weights[1:], self.biases, strict=True):
            hidden = functional.linear(torch.tanh(hidden), weight, bias)
        return hidden if self.linear is None else hidden + z @ self.linear.mT


class Correction(NamedTuple):
    """An affine map of each bin's prediction to the state with which the next bin begins.

    Attributes:
        gain: factor of the prediction.
        shift: added to that.
    """

    gain: Float[Tensor, "... time state"]
    shift: Float[Tensor, "... time state"]

    def __call__(
        self, predicted: Float[Tensor, "*left time state"]
    ) -> Float[Tensor, "*left time state"]:
        """The corrected states."""
        return torch.addcmul(self.shift, self.gain, predicted)


def roll_network(
    network: TanhNetwork,
    initial: Float[Tensor, "row state"],
    drive: Float[Tensor, "time row_or_one width"],
    correction: Correction | None,
    tableau: Tableau,
    substeps: int,
) -> Float[Tensor, "time row state"]:
    """Predictions Phi(z_0) ... Phi(z_{T-1}).

    Args:
        network: the field.
        initial: z_0.
        drive: of every bin, constant within it; broadcasts over rows.
        correction: of every bin, ``(time, row, state)``; None for the field's own trajectory.
        tableau: the scheme.
        substeps: steps per bin.
    """
    gain, shift = (None, None) if correction is None else correction
    schedule = (tableau, substeps)
    predicted: Tensor = _Roll.apply(initial, drive, gain, shift, *schedule, *network.flat())
    return predicted


def explicit_step(field: Any, z: Tensor, tableau: Tableau, substeps: int) -> Tensor:
    """One bin of any vector field ``field(z)``, in plain torch."""
    node, weight = tableau.repeated(substeps)
    for _ in range(substeps):
        end, slope = z, None
        for a, b in zip(node, weight, strict=True):
            slope = field(z if slope is None else torch.add(z, slope, alpha=a))
            if b:
                end = torch.add(end, slope, alpha=b)
        z = end
    return z


def reference_roll(
    tableau: Tableau,
    substeps: int,
    initial: Tensor,
    drive: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    *flat: Tensor,
) -> Float[Tensor, "time row state"]:
    """`roll_network` in plain torch."""
    network = TanhNetwork.of_flat(flat)
    z, predicted = initial, []
    for t in range(len(drive)):
        z = explicit_step(lambda at, d=drive[t]: network.field(at, d), z, tableau, substeps)
        predicted.append(z)
        if gain is not None and shift is not None:
            z = torch.addcmul(shift[t], gain[t], z)
    return torch.stack(predicted)


class _Tape(NamedTuple):
    """Every evaluation of the field in a block of bins, in order.

    In the backward pass a second one holds gradients: of the field's values (in ``at``) and of the
    arguments of the tanh (in ``hidden``).

    Attributes:
        at: the state at which the field was evaluated.
        hidden: its hidden units there, per layer.
    """

    at: Float[Tensor, "evaluation row state"]
    hidden: list[Float[Tensor, "evaluation row width"]]

    def evaluations(self) -> list[tuple[Tensor, ...]]:
        """One by one: the state and the hidden units of every layer."""
        return list(zip(self.at.unbind(0), *(h.unbind(0) for h in self.hidden), strict=True))

    def rows(self) -> list[Tensor]:
        """The states and the hidden units of every layer, evaluations and trials in one dim."""
        return [self.at.flatten(0, 1), *(h.flatten(0, 1) for h in self.hidden)]


class _Roll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        initial: Tensor,
        drive: Tensor,
        gain: Tensor | None,
        shift: Tensor | None,
        tableau: Tableau,
        substeps: int,
        *flat: Tensor,
    ) -> Tensor:
        network = TanhNetwork.of_flat(flat)
        node, weight = tableau.repeated(substeps)
        rows, dim = initial.shape
        widths = [w.shape[0] for w in network.weights[:-1]]
        *wide, last = network.weights
        matrices = [*(w.t().contiguous() for w in wide), by_columns(last.t())]
        linear = None if network.linear is None else network.linear.t().contiguous()
        evaluations_per_bin = substeps * len(node)
        ctx.blocks = blocks(len(drive), evaluations_per_bin * rows * max(widths))
        ctx.tapes = []
        predicted = initial.new_empty(len(drive), rows, dim)
        slope = initial.new_empty(rows, dim)
        z = initial
        for block in ctx.blocks:
            num_evaluations = evaluations_per_bin * (block.stop - block.start)
            tape = _Tape(
                initial.new_empty(num_evaluations, rows, dim),
                [initial.new_empty(num_evaluations, rows, width) for width in widths],
            )
            if any(ctx.needs_input_grad):
                ctx.tapes.append(tape)
            evaluations = iter(tape.evaluations())
            for t in range(block.start, block.stop):
                for _ in range(substeps):
                    end = z
                    for stage, (a, b) in enumerate(zip(node, weight, strict=True)):
                        at, *hidden = next(evaluations)
                        if stage:
                            torch.add(z, slope, alpha=a, out=at)
                        else:
                            at.copy_(z)
                        below, entering = at, drive[t]
                        for units, matrix, bias in zip(
                            hidden, matrices, network.biases, strict=False
                        ):
                            torch.addmm(entering, below, matrix, out=units).tanh_()
                            below, entering = units, bias
                        torch.addmm(entering, below, matrices[-1], out=slope)
                        if linear is not None:
                            slope.addmm_(at, linear)
                        if b:
                            end = torch.add(end, slope, alpha=b)
                    z = end
                predicted[t] = z
                if gain is not None and shift is not None:
                    z = torch.addcmul(shift[t], gain[t], z)
        ctx.schedule = (tableau, substeps)
        ctx.save_for_backward(predicted, initial, drive, gain, shift, *flat)
        return predicted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_predicted,) = grads
        predicted, *given = ctx.saved_tensors
        tableau, substeps = ctx.schedule
        if torch.is_grad_enabled():  # create_graph=True
            roll = functools.partial(reference_roll, tableau, substeps)
            gradients = differentiable_gradients(roll, given, d_predicted)
            return *gradients[:4], None, None, *gradients[4:]
        initial, drive, gain, _, *flat = given
        network = TanhNetwork.of_flat(tuple(flat))
        node, weight = tableau.repeated(substeps)
        stages = tuple(zip((*node[1:], 0.0), weight, strict=True))[::-1]
        first = by_columns(network.weights[0])
        d_network = TanhNetwork.of_flat(tuple(torch.zeros_like(w) for w in (first, *flat[1:])))
        d_drive = drive.new_empty(drive.shape) if ctx.needs_input_grad[1] else None
        d_gain, d_shift = (
            (None, None) if gain is None else (gain.new_empty(gain.shape) for _ in range(2))
        )
        d_z = torch.zeros_like(initial)
        for block, tape in zip(reversed(ctx.blocks), reversed(ctx.tapes), strict=True):
            gradient = _Tape(torch.empty_like(tape.at), [torch.empty_like(h) for h in tape.hidden])
            evaluations = zip(
                reversed(tape.evaluations()), reversed(gradient.evaluations()), strict=True
            )
            for t in reversed(range(block.start, block.stop)):
                if gain is not None and d_gain is not None and d_shift is not None:
                    d_shift[t] = d_z
                    torch.mul(d_z, predicted[t], out=d_gain[t])
                    d_z = d_z * gain[t]
                d_z = d_z + d_predicted[t]
                for _ in range(substeps):
                    d_end, d_at = d_z, None
                    for next_node, b in stages:
                        (_, *hidden), (d_slope, *d_hidden) = next(evaluations)
                        # Through the step's end, and through the state of the next stage.
                        if d_at is None:
                            torch.mul(d_end, b, out=d_slope)
                        else:
                            torch.mul(d_at, next_node, out=d_slope)
                            if b:
                                d_slope.add_(d_end, alpha=b)
                        d_out = d_slope
                        for units, d_units, matrix in zip(
                            reversed(hidden),
                            reversed(d_hidden),
                            reversed(network.weights),
                            strict=False,
                        ):
                            torch.mm(d_out, matrix, out=d_units)
                            d_out = _tanh_backward(d_units, units, grad_input=d_units)
                        d_at = torch.mm(d_out, first)
                        if network.linear is not None:
                            d_at.addmm_(d_slope, network.linear)
                        d_z = d_z + d_at
            _add_gradients(d_network, tape, gradient)
            if d_drive is not None:
                by_bin = gradient.hidden[0].unflatten(0, (block.stop - block.start, -1))
                if drive.shape[1] == 1:  # as a product, which is faster than a sum
                    by_bin = by_bin.flatten(1, 2)
                    ones = by_bin.new_ones(1, by_bin.shape[1])
                    torch.matmul(ones, by_bin, out=d_drive[block])
                else:
                    torch.sum(by_bin, 1, out=d_drive[block])
        return d_z, d_drive, d_gain, d_shift, None, None, *d_network.flat()


def _add_gradients(network: TanhNetwork, tape: _Tape, gradient: _Tape) -> None:
    """Add a block's part of the gradients of a network's weights."""
    d_slopes, *d_hidden = gradient.rows()
    for d_weight, values, d_out in zip(
        network.weights, tape.rows(), (*d_hidden, d_slopes), strict=True
    ):
        d_weight.addmm_(d_out.t(), values)
    ones = d_slopes.new_ones(len(d_slopes))
    for d_bias, d_out in zip(network.biases, (*d_hidden[1:], d_slopes), strict=True):
        d_bias.addmv_(d_out.t(), ones)
    if network.linear is not None:
        network.linear.addmm_(d_slopes.t(), tape.at.flatten(0, 1))
