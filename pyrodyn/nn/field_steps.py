"""Explicit Runge-Kutta steps of a perceptron's vector field, forward and back by hand::

    k_s = f(z_t + a_s k_{s-1}),        s = 1 ... S, a_1 = 0
    Phi(z_t) = z_t + sum_s b_s k_s
    z_{t+1} = Phi(z_t), or steered: z_{t+1} = gain_{t+1} * Phi(z_t) + shift_{t+1}

Steering by diagonal gains is how a Gaussian factor of the data bends a path (see `models.sae`).

Autograd would record a dozen nodes per stage. Here a stage is three products on memory laid out
beforehand, and only its hidden units are kept for the way back. Two identities save the rest::

    tanh(y) = 2 sigmoid(2 y) - 1       so that a tanh network is a sigmoid network of other weights;
                                       on a CPU sigmoid costs a fifth of tanh
    A z + W h + b                      [A W] [z; h] in two products that add into one place

Source of the schemes: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", II.1.
"""

import functools
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.nn.recorded import recorded_gradients

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


class Tableau(NamedTuple):
    """An explicit scheme whose stages each look at the one before, over one step of length 1.

    Attributes:
        reach: a_1 ... a_S; a_1 = 0.
        weight: b_1 ... b_S.
    """

    reach: tuple[float, ...]
    weight: tuple[float, ...]

    def repeated(self, substeps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Reach and weight of a step of length 1 / substeps."""
        return (
            tuple(a / substeps for a in self.reach),
            tuple(b / substeps for b in self.weight),
        )


TABLEAUX = {
    "euler": Tableau((0.0,), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), (0.0, 1.0)),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class SigmoidNetwork(NamedTuple):
    """A vector field f(z, d) = A z + W_L s(... s(W_1 z + d) ...) + b_L, s the logistic function.

    d is the drive of the first layer, its bias included; hidden biases lie in ``biases``.

    Attributes:
        weights: W_1 ... W_L, at least two.
        biases: b_2 ... b_L.
        linear: A, or None.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    linear: Tensor | None

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors in a row."""
        return (*self.weights, *self.biases, *(() if self.linear is None else (self.linear,)))

    @classmethod
    def of_flat(cls, flat: tuple[Tensor, ...]) -> "SigmoidNetwork":
        """The inverse of `flat`: L weights, L - 1 biases and perhaps A."""
        num_layers = (len(flat) + 1) // 2
        biases = flat[num_layers : 2 * num_layers - 1]
        linear = flat[-1] if len(flat) == 2 * num_layers else None
        return cls(flat[:num_layers], biases, linear)

    def field(self, z: Tensor, drive: Tensor) -> Tensor:
        """f, as autograd sees it."""
        hidden = torch.nn.functional.linear(z, self.weights[0]) + drive
        for weight, bias in zip(self.weights[1:], self.biases, strict=True):
            hidden = torch.nn.functional.linear(torch.sigmoid(hidden), weight, bias)
        return hidden if self.linear is None else hidden + z @ self.linear.mT


class Steering(NamedTuple):
    """What is made of the state that a bin would end with.

    Attributes:
        gain: what it is multiplied by.
        shift: what is added to that.
    """

    gain: Float[Tensor, "... time state"]
    shift: Float[Tensor, "... time state"]


def roll_network(
    network: SigmoidNetwork,
    initial: Float[Tensor, "row state"],
    drive: Float[Tensor, "time row_or_one width"],
    steering: Steering | None,
    tableau: Tableau,
    substeps: int,
) -> Float[Tensor, "time row state"]:
    """States after each of T bins.

    Args:
        network: the field.
        initial: z_0.
        drive: of every bin, held over it; broadcasts over rows.
        steering: of every bin, ``(time, row, state)``; None for the field's own path.
        tableau: the scheme.
        substeps: steps per bin.
    """
    gain, shift = (None, None) if steering is None else steering
    states: Tensor = _Roll.apply(initial, drive, gain, shift, tableau, substeps, *network.flat())
    return states


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
        network = SigmoidNetwork.of_flat(flat)
        reach, weight = tableau.repeated(substeps)
        num_bins, num_stages = len(drive), len(reach)
        rows, dim = initial.shape
        widths = [w.shape[0] for w in network.weights[:-1]]
        transposed = [w.t().contiguous() for w in network.weights]
        linear = None if network.linear is None else network.linear.t().contiguous()
        num_steps = num_bins * substeps
        keeps = any(ctx.needs_input_grad)
        # One buffer per step: one for all would be too large for the C library to keep for reuse.
        kept = num_steps if keeps else 1
        hidden = [
            [initial.new_empty(num_stages, rows, width) for width in widths] for _ in range(kept)
        ]
        at = initial.new_empty(kept, num_stages, rows, dim)
        states = initial.new_empty(num_bins, rows, dim)
        reached = states if gain is None else torch.empty_like(states)
        slope = initial.new_empty(rows, dim)
        z = initial
        for step in range(num_steps):
            bin_drive = drive[step // substeps]
            slot = step if keeps else 0
            end = z.clone()
            for stage in range(num_stages):
                where = at[slot, stage]
                if stage == 0:
                    where.copy_(z)
                else:
                    torch.add(z, slope, alpha=reach[stage], out=where)
                below = where
                entering = bin_drive
                for layer, kept_hidden in enumerate(hidden[slot]):
                    units = kept_hidden[stage]
                    torch.addmm(entering, below, transposed[layer], out=units)
                    units.sigmoid_()
                    below, entering = units, network.biases[layer]
                torch.addmm(network.biases[-1], below, transposed[-1], out=slope)
                if linear is not None:
                    slope.addmm_(where, linear)
                if weight[stage]:
                    end.add_(slope, alpha=weight[stage])
            z = end
            if (step + 1) % substeps == 0:
                t = step // substeps
                reached[t] = z
                if gain is not None and shift is not None:
                    z = torch.addcmul(shift[t], gain[t], z, out=states[t])
        ctx.schedule = (tableau, substeps)
        ctx.save_for_backward(initial, drive, gain, shift, *flat)
        ctx.tape = (at, hidden, reached)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_states,) = grads
        given = ctx.saved_tensors
        tableau, substeps = ctx.schedule
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: let autograd record it
            roll = functools.partial(_recorded_roll, tableau, substeps)
            gradients = recorded_gradients(roll, given, d_states)
            return *gradients[:4], None, None, *gradients[4:]
        initial, drive, gain, _, *flat = given
        network = SigmoidNetwork.of_flat(tuple(flat))
        at, hidden, reached = ctx.tape
        reach, weight = tableau.repeated(substeps)
        d_weights = [torch.zeros_like(w) for w in network.weights]
        d_biases = [torch.zeros_like(b) for b in network.biases]
        d_linear = None if network.linear is None else torch.zeros_like(network.linear)
        d_drive = torch.zeros_like(drive) if ctx.needs_input_grad[1] else None
        is_steered = gain is not None
        d_gain, d_shift = (torch.empty_like(reached) if is_steered else d_states for _ in "gs")
        d_z = torch.zeros_like(initial)
        above = [torch.empty_like(h[0]) for h in hidden[0]]
        ones = initial.new_ones(len(initial))
        for step in range(len(drive) * substeps - 1, -1, -1):
            t = step // substeps
            if (step + 1) % substeps == 0:
                d_z = d_z + d_states[t]
                if is_steered:
                    d_shift[t] = d_z
                    torch.mul(d_z, reached[t], out=d_gain[t])
                    d_z = d_z * gain[t]
            d_end, d_slope = d_z, None
            for stage in range(len(reach) - 1, -1, -1):
                d_k = _slope_gradient(d_end, weight[stage], d_slope, reach, stage)
                # Through the network, from its output to the state at which it was evaluated.
                d_out = d_k
                for layer in range(len(network.weights) - 1, 0, -1):
                    units = hidden[step][layer - 1][stage]
                    d_weights[layer].addmm_(d_out.t(), units)
                    d_biases[layer - 1].addmv_(d_out.t(), ones)
                    torch.mm(d_out, network.weights[layer], out=above[layer - 1])
                    d_out = _sigmoid_backward(above[layer - 1], units, grad_input=above[layer - 1])
                where = at[step, stage]
                d_weights[0].addmm_(d_out.t(), where)
                if d_drive is not None:
                    d_drive[t] += d_out.sum_to_size(d_drive[t].shape)
                d_slope = torch.mm(d_out, network.weights[0])
                if d_linear is not None:
                    assert network.linear is not None
                    d_linear.addmm_(d_k.t(), where)
                    d_slope.addmm_(d_k, network.linear)
                d_z = d_z + d_slope
        gradients = SigmoidNetwork(tuple(d_weights), tuple(d_biases), d_linear).flat()
        d_steering = (d_gain, d_shift) if is_steered else (None, None)
        return d_z, d_drive, *d_steering, None, None, *gradients


def _slope_gradient(
    d_end: Tensor, weight: float, d_next: Tensor | None, reach: tuple[float, ...], stage: int
) -> Tensor:
    """The gradient of k_s: from the step's end, and from the place that the next stage looks at."""
    if d_next is None:
        return d_end * weight
    from_next = reach[stage + 1]
    if weight:
        return torch.add(d_end * weight, d_next, alpha=from_next)
    return d_next * from_next


def _recorded_roll(
    tableau: Tableau,
    substeps: int,
    initial: Tensor,
    drive: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    *flat: Tensor,
) -> Tensor:
    """The roll as autograd records it."""
    network = SigmoidNetwork.of_flat(flat)
    z, states = initial, []
    for t in range(len(drive)):
        z = explicit_step(lambda at, d=drive[t]: network.field(at, d), z, tableau, substeps)
        if gain is not None and shift is not None:
            z = torch.addcmul(shift[t], gain[t], z)
        states.append(z)
    return torch.stack(states)


def explicit_step(field: Any, z: Tensor, tableau: Tableau, substeps: int) -> Tensor:
    """One bin of any vector field ``field(z)``, recorded by autograd."""
    reach, weight = tableau.repeated(substeps)
    for _ in range(substeps):
        end, slope = z, None
        for a, b in zip(reach, weight, strict=True):
            slope = field(z if slope is None else torch.add(z, slope, alpha=a))
            if b:
                end = torch.add(end, slope, alpha=b)
        z = end
    return z
