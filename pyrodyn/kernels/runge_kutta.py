"""Explicit Runge-Kutta steps of a perceptron's vector field, forward and backward by hand::

    k_s = f(z_t + a_s k_{s-1}),        s = 1 ... S, a_1 = 0
    Phi(z_t) = z_t + sum_s b_s k_s     the prediction
    z_{t+1} = Phi(z_t), or corrected: z_{t+1} = gain_{t+1} * Phi(z_t) + shift_{t+1}

A correction by diagonal gains conditions a trajectory on Gaussian factors of the data (see
`pyrodyn.models.sae`). A roll returns the predictions Phi(z_t), which without corrections are the
trajectory itself.

`reference_roll` is the definition in plain torch. Autograd would record a dozen nodes per stage.
Here a stage is two products on preallocated memory, and only its hidden units are kept for the
backward pass. States lie dims first, ``(state, row)``, the layout in which products with few dims
are fast (see `pyrodyn.kernels.low_rank`), and above a row of ones, which adds the biases in the
products and returns their gradients in those of the weights.

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
    """A vector field f(z, d) = A z + W_L tanh(... tanh(W_1 z + b_1 + d) ...) + b_L.

    d is the drive of the first layer.

    Attributes:
        weights: W_1 ... W_L, at least two.
        biases: b_1 ... b_L.
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
        """The inverse of `flat`: L weights, L biases and perhaps A."""
        num_layers = len(flat) // 2
        linear = flat[-1] if len(flat) % 2 else None
        return cls(flat[:num_layers], flat[num_layers : 2 * num_layers], linear)

    def field(self, z: Tensor, drive: Tensor | None) -> Tensor:
        """f, in plain torch."""
        hidden = functional.linear(z, self.weights[0], self.biases[0])
        if drive is not None:
            hidden = hidden + drive
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
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
    drive: Float[Tensor, "time row width"] | None,
    correction: Correction | None,
    tableau: Tableau,
    substeps: int,
    num_bins: int,
) -> Float[Tensor, "time row state"]:
    """Predictions Phi(z_0) ... Phi(z_{T-1}).

    Args:
        network: the field.
        initial: z_0.
        drive: of every bin, constant within it; None without inputs.
        correction: of every bin, ``(time, row, state)``; None for the field's own trajectory.
        tableau: the scheme.
        substeps: steps per bin.
        num_bins: T.
    """
    gain, shift = (None, None) if correction is None else correction
    schedule = (tableau, substeps, num_bins)
    predicted: Tensor = _Roll.apply(*schedule, initial, drive, gain, shift, *network.flat())
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
    num_bins: int,
    initial: Tensor,
    drive: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    *flat: Tensor,
) -> Float[Tensor, "time row state"]:
    """`roll_network` in plain torch."""
    network = TanhNetwork.of_flat(flat)
    z, predicted = initial, []
    for t in range(num_bins):
        driven = None if drive is None else drive[t]
        z = explicit_step(lambda at, d=driven: network.field(at, d), z, tableau, substeps)
        predicted.append(z)
        if gain is not None and shift is not None:
            z = torch.addcmul(shift[t], gain[t], z)
    return torch.stack(predicted)


class _Tape(NamedTuple):
    """Every evaluation of the field in a block of bins, in order: what its layers read.

    Attributes:
        values: the state and the hidden units of every layer.
        with_ones: the same above a row of ones.
    """

    values: list[tuple[Float[Tensor, "entry row"], ...]]
    with_ones: list[tuple[Float[Tensor, "entry_and_one row"], ...]]

    @classmethod
    def of(cls, num_evaluations: int, sizes: list[int], initial: Tensor) -> "_Tape":
        """One without values.

        Args:
            num_evaluations: of the block.
            sizes: entries of the state and of every layer.
            initial: z_0, ``(state, row)``.
        """
        read = [initial.new_empty(num_evaluations, size + 1, initial.shape[1]) for size in sizes]
        for layer in read:
            layer[:, -1] = 1.0
        values = [layer[:, :-1].unbind(0) for layer in read]
        with_ones = [layer.unbind(0) for layer in read]
        return cls(list(zip(*values, strict=True)), list(zip(*with_ones, strict=True)))


class _Roll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tableau: Tableau,
        substeps: int,
        num_bins: int,
        initial: Tensor,
        drive: Tensor | None,
        gain: Tensor | None,
        shift: Tensor | None,
        *flat: Tensor,
    ) -> Tensor:
        network = TanhNetwork.of_flat(flat)
        node, weight = tableau.repeated(substeps)
        matrices = [
            torch.cat([matrix, bias[:, None]], 1)
            for matrix, bias in zip(network.weights, network.biases, strict=True)
        ]
        z = initial.t().contiguous()
        sizes = [len(z), *(len(matrix) for matrix in matrices[:-1])]
        evaluations_per_bin = substeps * len(node)
        ctx.blocks = blocks(num_bins, evaluations_per_bin * len(initial) * max(sizes))
        ctx.tapes = []
        predicted = z.new_empty(num_bins, *z.shape)
        slope = torch.empty_like(z)
        for block in ctx.blocks:
            tape = _Tape.of(evaluations_per_bin * (block.stop - block.start), sizes, z)
            if any(ctx.needs_input_grad):
                ctx.tapes.append(tape)
            evaluations = zip(*tape, strict=True)
            for t in range(block.start, block.stop):
                for _ in range(substeps):
                    end = z
                    for stage, (a, b) in enumerate(zip(node, weight, strict=True)):
                        (at, *hidden), read = next(evaluations)
                        if stage:
                            torch.add(z, slope, alpha=a, out=at)
                        else:
                            at.copy_(z)
                        for layer, units in enumerate(hidden):
                            torch.mm(matrices[layer], read[layer], out=units)
                            if drive is not None and layer == 0:
                                units.add_(drive[t].t())
                            units.tanh_()
                        torch.mm(matrices[-1], read[-1], out=slope)
                        if network.linear is not None:
                            slope.addmm_(network.linear, at)
                        if b:
                            end = torch.add(end, slope, alpha=b)
                    z = end
                predicted[t] = z
                if gain is not None and shift is not None:
                    z = torch.addcmul(shift[t].t(), gain[t].t(), z)
        ctx.schedule = (tableau, substeps, num_bins)
        ctx.predicted = predicted
        ctx.save_for_backward(initial, drive, gain, shift, *flat)
        return predicted.mT.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_predicted,) = grads
        given = ctx.saved_tensors
        tableau, substeps, _ = ctx.schedule
        if torch.is_grad_enabled():  # create_graph=True
            roll = functools.partial(reference_roll, *ctx.schedule)
            return None, None, None, *differentiable_gradients(roll, given, d_predicted)
        _, drive, gain, _, *flat = given
        network = TanhNetwork.of_flat(tuple(flat))
        node, weight = tableau.repeated(substeps)
        stages = tuple(zip((*node[1:], 0.0), weight, strict=True))[::-1]
        transposed = [matrix.t().contiguous() for matrix in network.weights]
        totals = [_Total(matrix) for matrix in network.weights]
        d_linear = None if network.linear is None else torch.zeros_like(network.linear)
        d_drive = torch.zeros_like(drive) if drive is not None else None
        d_gain, d_shift = (
            (None, None) if gain is None else (gain.new_empty(gain.shape) for _ in range(2))
        )
        d_z = torch.zeros_like(ctx.predicted[0])
        d_slope, d_predicted = torch.empty_like(d_z), d_predicted.mT.contiguous()
        d_units = [d_z.new_empty(len(matrix), d_z.shape[1]) for matrix in network.weights[:-1]]
        for block, tape in zip(reversed(ctx.blocks), reversed(ctx.tapes), strict=True):
            evaluations = zip(reversed(tape.values), reversed(tape.with_ones), strict=True)
            for t in reversed(range(block.start, block.stop)):
                if gain is not None and d_gain is not None and d_shift is not None:
                    d_shift[t] = d_z.t()
                    torch.mul(d_z.t(), ctx.predicted[t].t(), out=d_gain[t])
                    d_z = d_z * gain[t].t()
                d_z = d_z + d_predicted[t]
                for _ in range(substeps):
                    d_end, d_at = d_z, None
                    for next_node, b in stages:
                        (at, *hidden), read = next(evaluations)
                        # Through the step's end, and through the state of the next stage.
                        if d_at is None:
                            torch.mul(d_end, b, out=d_slope)
                        else:
                            torch.mul(d_at, next_node, out=d_slope)
                            if b:
                                d_slope.add_(d_end, alpha=b)
                        totals[-1].add(d_slope, read[-1])
                        d_out = d_slope
                        for layer in reversed(range(len(hidden))):
                            d_hidden = torch.mm(transposed[layer + 1], d_out, out=d_units[layer])
                            d_out = _tanh_backward(d_hidden, hidden[layer], grad_input=d_hidden)
                            totals[layer].add(d_out, read[layer])
                        d_at = torch.mm(transposed[0], d_out)
                        if network.linear is not None and d_linear is not None:
                            d_at.addmm_(network.linear.t(), d_slope)
                            d_linear.addmm_(d_slope, at.t())
                        if d_drive is not None:
                            d_drive[t] += d_out.t()
                        d_z = d_z + d_at
        weights, biases = zip(*(total.split() for total in totals), strict=True)
        d_network = TanhNetwork(weights, biases, d_linear)
        return None, None, None, d_z.t(), d_drive, d_gain, d_shift, *d_network.flat()


class _Total:
    """The accumulated gradient of a layer's weight and bias.

    Args:
        weight: of the layer.
    """

    def __init__(self, weight: Float[Tensor, "out entry"]) -> None:
        num_out, num_entries = weight.shape
        # The product is faster with the shorter side first.
        self._is_transposed = num_entries < num_out
        shape = (num_entries + 1, num_out) if self._is_transposed else (num_out, num_entries + 1)
        self._sum = weight.new_zeros(shape)

    def add(
        self, d_out: Float[Tensor, "out row"], read: Float[Tensor, "entry_and_one row"]
    ) -> None:
        """Add the part of one evaluation."""
        if self._is_transposed:
            self._sum.addmm_(read, d_out.t())
        else:
            self._sum.addmm_(d_out, read.t())

    def split(self) -> tuple[Float[Tensor, "out entry"], Float[Tensor, " out"]]:
        """The gradients of weight and bias."""
        total = self._sum.t() if self._is_transposed else self._sum
        return total[:, :-1], total[:, -1]
