"""One step of a low-rank network, forward and backward by hand::

    step(z) = a z + n phi(m z + d)            m (units x R), n (R x units), R much less than units

`reference_low_rank_step` is the definition in plain torch. Most of the cost of a step is products
of a tall matrix with a narrow one, ``(row, unit)`` by ``(unit, R)``, and it depends on their memory
layout: a product that sums over the long side, or whose narrow side comes first in memory, takes up
to seven times as long; autograd's gradient of a linear map has both. Here units are the last dim of
every product::

    m' is stored as (R, unit)        d_z = d_y m, as a linear map by m'
    d_m' = z' d_y                    and not d_m = d_y' z

and only z and the rates are kept for the backward pass. The thresholds of clipped relus are folded
into the products (m divided by the size of h, and n h), so that two passes over ``(row, unit)``
suffice for phi.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pyrodyn.kernels.activations import ACTIVATIONS
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
        self.m, self.n, self.threshold, self.decay, self.kind = m, n, threshold, decay, kind
        self._phi = ACTIVATIONS[kind]
        self._bias: Tensor | None = None
        self._scale: Tensor | None = None  # 1 / |h| of units that it scales
        self._n = n
        if threshold is not None and self._phi.threshold_by == "shift":
            self._bias = -threshold
        if threshold is not None and self._phi.threshold_by == "scale":
            self._bias = (threshold > 0).to(threshold.dtype)
            self._scale = threshold.abs().clamp(min=torch.finfo(m.dtype).eps).reciprocal()
            m, self._n = m * self._scale[:, None], n * threshold
        self._transposed = m.t().contiguous()

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0, before each backward pass."""
        self._d_transposed = torch.zeros_like(self._transposed)
        self._d_n = self.n.new_zeros(self.n.shape)
        self._d_decay: Tensor | None = None
        # Per unit: the gradient of the currents, or that of the drive times the drive.
        self._per_unit = self._d_transposed.new_zeros(self._transposed.shape[1])

    def forward(
        self, z: Float[Tensor, "*left latent"], drive: Float[Tensor, "*shared unit"] | None
    ) -> tuple[Float[Tensor, "*left latent"], tuple[Tensor, Tensor | None]]:
        """The next states, and what the backward pass needs."""
        rows = z.reshape(-1, z.shape[-1])
        if self._bias is None:
            currents = rows @ self._transposed
        else:
            currents = torch.addmm(self._bias, rows, self._transposed)
        if drive is not None:
            scaled = drive if self._scale is None else drive * self._scale
            currents.view(*z.shape[:-1], drive.shape[-1]).add_(scaled)
        rates = self._phi.forward(currents)
        after = functional.linear(rates, self._n).addcmul_(self.decay, rows)
        return after.view(z.shape), (rates, drive)

    def backward(
        self,
        z: Float[Tensor, "*left latent"],
        kept: tuple[Tensor, Tensor | None],
        d_after: Float[Tensor, "*left latent"],
    ) -> tuple[Float[Tensor, "*left latent"], Float[Tensor, "row unit"]]:
        """Gradients of the states and of the drive (before any sum over what shares it), from that
        of the next states.
        """
        rates, drive = kept
        rows, d_rows = z.reshape(-1, z.shape[-1]), d_after.reshape(-1, z.shape[-1])
        d_currents = self._phi.backward(d_rows @ self._n, rates)
        self._d_transposed.addmm_(rows.t(), d_currents)
        self._d_n.addmm_(d_rows.t(), rates)
        if self._d_decay is None:
            self._d_decay = d_rows * rows
        else:
            self._d_decay.addcmul_(d_rows, rows)
        d_z = functional.linear(d_currents, self._transposed).addcmul_(self.decay, d_rows)
        if self._phi.threshold_by == "shift":
            self._per_unit += d_currents.sum(0)
        elif self._scale is not None and drive is not None:
            d_currents = d_currents * self._scale
            by_drive = d_currents.view(*z.shape[:-1], drive.shape[-1]) * drive
            self._per_unit += by_drive.flatten(0, -2).sum(0) if z.ndim > 1 else by_drive
        return d_z.view(z.shape), d_currents

    def gradients(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Gradients of m, n, threshold and decay, after the backward pass of every step."""
        d_decay = torch.zeros_like(self.decay)
        if self._d_decay is not None:
            d_decay = self._d_decay.sum_to_size(self.decay.shape)
        d_m, d_n = self._d_transposed.t(), self._d_n
        d_threshold = -self._per_unit if self._phi.threshold_by == "shift" else None
        if self._scale is not None and self.threshold is not None:
            # h enters by n h, and by 1 / |h| in m / |h| and in the scaled drive.
            d_m = d_m * self._scale[:, None]
            by_scale = (d_m * self.m).sum(1) + self._per_unit
            d_threshold = (d_n * self.n).sum(0) - self.threshold.sign() * self._scale * by_scale
            d_n = d_n * self.threshold
        return d_m, d_n, d_threshold, d_decay


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
        after, ctx.kept = ctx.step.forward(z, drive)
        ctx.save_for_backward(z, drive, m, n, threshold, decay)
        return after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_after,) = grads
        given = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            step = partial(reference_low_rank_step, kind=ctx.step.kind)
            return *differentiable_gradients(step, given, d_after), None
        z, drive, *_ = given
        ctx.step.reset_gradients()
        d_z, d_currents = ctx.step.backward(z, ctx.kept, d_after)
        d_drive = None
        if drive is not None:
            d_drive = d_currents.view(*z.shape[:-1], drive.shape[-1]).sum_to_size(drive.shape)
        return d_z, d_drive, *ctx.step.gradients(), None
