"""One step of a low-rank network, forward and backward by hand::

    step(z) = a z + n phi(m z + d)            m (units x R), n (R x units), R much less than units

`reference_low_rank_step` is the definition in plain torch. The time of a step goes into products of
a tall matrix with a narrow one and into passes over the rates of all units, and the former depends
on their memory layout: a product takes two to ten times as long if its last dim is the short one R
instead of the many states. Here states lie latents first, ``(latent, state)``, and rates ``(unit,
state)``. Only z and the rates are kept for the backward pass.

A row of ones below z adds the thresholds in the product, and returns their gradient in that of m.
The thresholds of clipped relus are folded into m and n (m divided by the size of h, and n h), so
that two passes over the rates suffice for phi.
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pyrodyn.kernels.activations import ACTIVATIONS
from pyrodyn.kernels.blocks import blocks
from pyrodyn.kernels.double_backward import differentiable_gradients


def low_rank_step(
    z: Float[Tensor, "*left latent"],
    drive: Float[Tensor, "*shared unit"] | None,
    m: Float[Tensor, "unit latent"],
    n: Float[Tensor, "latent unit"],
    threshold: Float[Tensor, " unit"] | None,
    decay: Float[Tensor, " latent_or_one"],
    kind: str,
) -> Float[Tensor, "*left latent"]:
    """The states one bin later, without noise: a z + n phi(m z + d).

    Args:
        z: states.
        drive: d, broadcasting against the currents of ``z``; None for none.
        m: from latents to units.
        n: from units to latents.
        threshold: h, None for units without one.
        decay: a.
        kind: activation phi, a name in `ACTIVATIONS`.
    """
    after: Tensor = _Step.apply(z, drive, m, n, threshold, decay, kind)
    return after


def reference_low_rank_step(
    z: Float[Tensor, "*left latent"],
    drive: Float[Tensor, "*shared unit"] | None,
    m: Float[Tensor, "unit latent"],
    n: Float[Tensor, "latent unit"],
    threshold: Float[Tensor, " unit"] | None,
    decay: Float[Tensor, " latent_or_one"],
    kind: str,
) -> Float[Tensor, "*left latent"]:
    """`low_rank_step` in plain torch, to which every transform of `torch.func` applies."""
    currents = functional.linear(z, m)
    if drive is not None:
        currents = currents + drive
    rates = ACTIVATIONS[kind].rates(currents, threshold)
    return torch.addcmul(functional.linear(rates, n), decay, z)


class LowRankSteps:
    """Steps of one network, whose backward passes accumulate the gradients of its weights.

    Args:
        m, n, threshold, decay, kind: see `low_rank_step`.
    """

    def __init__(
        self,
        m: Float[Tensor, "unit latent"],
        n: Float[Tensor, "latent unit"],
        threshold: Float[Tensor, " unit"] | None,
        decay: Float[Tensor, " latent_or_one"],
        kind: str,
    ) -> None:
        self.m, self.n, self.threshold, self.kind = m, n, threshold, kind
        self._decay = decay[:, None]
        self._phi = ACTIVATIONS[kind]
        self._scale: Tensor | None = None  # 1 / |h| of units that it scales
        bias: Tensor | None = None
        if threshold is not None and self._phi.threshold_by == "shift":
            bias = -threshold
        if threshold is not None and self._phi.threshold_by == "scale":
            bias = (threshold > 0).to(threshold.dtype)
            self._scale = threshold.abs().clamp(min=torch.finfo(m.dtype).eps).reciprocal()
            m, n = m * self._scale[:, None], n * threshold
        self._has_bias, self._ones = bias is not None, m.new_ones(1, 0)
        self._in = m if bias is None else torch.cat([m, bias[:, None]], 1)
        self._out, self._back = n.contiguous(), m.t().contiguous()

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0, before each backward pass."""
        self._d_in = self._in.new_zeros(self._in.shape[::-1])
        self._d_out = torch.zeros_like(self._out)
        self._d_decay: Tensor | None = None
        # Gradient of the scaled drive times the drive.
        self._by_drive = self._d_in.new_zeros(self._d_in.shape[1])

    def forward(
        self, z: Float[Tensor, "latent ..."], drive: Float[Tensor, "unit ..."] | None
    ) -> tuple[Float[Tensor, "latent ..."], tuple[Tensor, Tensor, Tensor | None]]:
        """The next states, and what the backward pass needs."""
        rows = z.reshape(z.shape[0], math.prod(z.shape[1:]))
        read = rows
        if self._has_bias:
            if self._ones.shape[1] != rows.shape[1]:
                self._ones = rows.new_ones(1, rows.shape[1])
            read = torch.cat([rows, self._ones])
        currents = torch.mm(self._in, read)
        if drive is not None:
            scaled = drive if self._scale is None else drive * _column(self._scale, drive)
            currents.view(len(self.m), *z.shape[1:]).add_(scaled)
        rates = self._phi.forward(currents)
        after = torch.mm(self._out, rates).addcmul_(self._decay, rows)
        return after.view(z.shape), (read, rates, drive)

    def predict(
        self,
        z: Float[Tensor, "latent trial particle"],
        drive: Float[Tensor, "unit trial 1"] | None,
    ) -> Float[Tensor, "latent trial particle"]:
        """The next states alone, in blocks of trials whose rates stay in the cache."""
        _, num_trials, num_particles = z.shape
        its_blocks = blocks(num_trials, 2 * num_particles * len(self.m))
        if len(its_blocks) == 1:
            return self.forward(z, drive)[0]
        after = torch.empty_like(z)
        for block in its_blocks:
            its_drive = None if drive is None else drive[:, block]
            after[:, block] = self.forward(z[:, block], its_drive)[0]
        return after

    def backward(
        self,
        kept: tuple[Tensor, Tensor, Tensor | None],
        d_after: Float[Tensor, "latent ..."],
    ) -> tuple[Float[Tensor, "latent ..."], Float[Tensor, "unit ..."]]:
        """Gradients of the states and of the drive (before any sum over what shares it), from that
        of the next states.
        """
        read, rates, drive = kept
        d_rows = d_after.reshape(d_after.shape[0], math.prod(d_after.shape[1:]))
        d_currents = self._phi.backward(torch.mm(self._out.t(), d_rows), rates)
        self._d_in.addmm_(read, d_currents.t())
        self._d_out.addmm_(d_rows, rates.t())
        rows = read[: len(d_rows)]
        if self._d_decay is None:
            self._d_decay = d_rows * rows
        else:
            self._d_decay.addcmul_(d_rows, rows)
        d_z = torch.mm(self._back, d_currents).addcmul_(self._decay, d_rows).view(d_after.shape)
        d_drive = d_currents.view(len(self.m), *d_after.shape[1:])
        if self._scale is not None and drive is not None:
            d_drive = d_drive * _column(self._scale, d_drive)
            self._by_drive += (d_drive * drive).view(d_currents.shape).sum(1)
        return d_z, d_drive

    def gradients(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Gradients of m, n, threshold and decay, after the backward pass of every step."""
        d_decay = torch.zeros_like(self._decay)
        if self._d_decay is not None:
            d_decay = self._d_decay.sum_to_size(self._decay.shape)
        d_m, d_n = self._d_in[: len(self._back)].t(), self._d_out
        d_threshold = -self._d_in[-1] if self._phi.threshold_by == "shift" else None
        if self._scale is not None and self.threshold is not None:
            # h enters by n h, and by 1 / |h| in m / |h| and in the scaled drive.
            d_m = d_m * self._scale[:, None]
            by_scale = (d_m * self.m).sum(1) + self._by_drive
            d_threshold = (d_n * self.n).sum(0) - self.threshold.sign() * self._scale * by_scale
            d_n = d_n * self.threshold
        return d_m, d_n, d_threshold, d_decay[:, 0]


def _column(values: Float[Tensor, " unit"], like: Float[Tensor, "unit ..."]) -> Tensor:
    """Values per unit, which broadcast over the other dims of a tensor."""
    return values.view(-1, *[1] * (like.ndim - 1))


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        drive: Tensor | None,
        m: Tensor,
        n: Tensor,
        threshold: Tensor | None,
        decay: Tensor,
        kind: str,
    ) -> Tensor:
        ctx.step = LowRankSteps(m, n, threshold, decay, kind)
        first = None
        if drive is not None:  # units first, then the left dims that it shares
            first = drive.view(*[1] * (z.ndim - drive.ndim), *drive.shape).movedim(-1, 0)
        after, ctx.kept = ctx.step.forward(z.movedim(-1, 0).contiguous(), first)
        ctx.save_for_backward(z, drive, m, n, threshold, decay)
        return after.movedim(0, -1).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_after,) = grads
        given = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            step = partial(reference_low_rank_step, kind=ctx.step.kind)
            return *differentiable_gradients(step, given, d_after), None
        drive = given[1]
        ctx.step.reset_gradients()
        d_z, d_drives = ctx.step.backward(ctx.kept, d_after.movedim(-1, 0).contiguous())
        d_drive = None if drive is None else d_drives.movedim(0, -1).sum_to_size(drive.shape)
        return d_z.movedim(0, -1).contiguous(), d_drive, *ctx.step.gradients(), None
