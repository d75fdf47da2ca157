"""Weights of the particles of a low-rank network, forward and backward by hand.

They are quadratic in the means of the network's steps for the optimal proposal of a linear-Gaussian
observation, and a density of counts times a density ratio for draws of a proposal::

    log w = constant_t + (m - s_t)' v_t - (m - s_t)' M_t (m - s_t) / 2
    log w = log p(x_t | z) + (|eps|^2 - |R (z - m)|^2) / 2 + log det L_t R

`pyrodyn.kernels.low_rank_vsmc` and `pyrodyn.kernels.low_rank_filter` take a bin at a time.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.kernels.affine_poisson import AffinePoissonSteps


class GaussianWeights(NamedTuple):
    """The weights of an optimal proposal, which are quadratic in the means of the steps.

    Attributes:
        slope: v, ``(trial, time, dim)``.
        curvature: M, ``(trial, time, dim, dim)``.
        constant: ``(trial, time)``.
        centre: s, ``(trial, time, dim)``; has no gradient.
    """

    slope: Tensor
    curvature: Tensor
    constant: Tensor
    centre: Tensor


class PoissonWeights(NamedTuple):
    """The weights of counts with an affine readout of z.

    Attributes:
        loading: ``(neuron, dim)``.
        offset: ``(neuron,)`` or ``(trial, time, neuron)``.
        whitening: R of the first and of later bins, ``(2, dim, dim)``; None where the draws are
            those of the transition, whose ratio is 1.
        constant: the same for all particles of a bin, ``(trial, time)``.
        x: counts, ``(trial, time, neuron)``; have no gradient.
        weight: weight of every count, 0 where it is not scored; has no gradient.
        link: of the mean, see `pyrodyn.kernels.affine_poisson`.
    """

    loading: Tensor
    offset: Tensor
    whitening: Tensor | None
    constant: Tensor
    x: Tensor
    weight: Tensor
    link: str


class GaussianWeighting:
    """Weights that are quadratic in states ``(trial, dim, particle)``."""

    is_exact = True

    def __init__(
        self, fixed: GaussianWeights, slope: Tensor, curvature: Tensor, constant: Tensor
    ) -> None:
        self._centres, self._slopes = (each[..., None].unbind(1) for each in (fixed.centre, slope))
        self._curvatures = curvature.unbind(1)
        self._constants = constant[..., None].unbind(1)
        self._tape: list[tuple[Tensor, Tensor]] = []

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0."""
        self._weighted: list[Tensor] = []

    def forward(self, t: int, mean: Tensor, is_recording: bool) -> Tensor:
        """Log w, ``(trial, particle)``."""
        slope, deviation = self._slopes[t], mean - self._centres[t]
        # M is symmetric.
        gradient = torch.baddbmm(slope, self._curvatures[t], deviation, alpha=-1)
        if is_recording:
            self._tape.append((deviation, gradient))
        return half_sum(deviation * (gradient + slope)).add_(self._constants[t])

    def backward(self, t: int, d_log_w: Tensor, d_mean: Tensor) -> Tensor:
        """The gradient of the means: that of the weights added to ``d_mean``."""
        deviation, gradient = self._tape[t]
        each = d_log_w[:, None]
        self._weighted.append(each * deviation)
        return torch.addcmul(d_mean, each, gradient)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of slope and curvature."""
        weighted = torch.stack(self._weighted[::-1], 1)
        deviation = torch.stack([deviation for deviation, _ in self._tape], 1)
        return weighted.sum(3), (weighted @ deviation.mT).mul_(-0.5)


class PoissonWeighting:
    """Weights of counts, from draws ``(trial, dim, particle)`` of the proposal."""

    is_exact = False

    def __init__(
        self,
        fixed: PoissonWeights,
        loading: Tensor,
        offset: Tensor,
        whitening: Tensor | None,
        constant: Tensor,
    ) -> None:
        self._weighted_x, self._weight = (
            each[:, None].unbind(2) for each in (fixed.weight * fixed.x, fixed.weight)
        )
        self._counts = AffinePoissonSteps(loading, fixed.link)
        is_shared = offset.ndim == 1
        self._offsets = [offset] * len(self._weight) if is_shared else offset[:, None].unbind(2)
        self._constants = constant[..., None].unbind(1)
        self._whitenings: tuple[Tensor, ...] = ()
        if whitening is not None:
            self._whitenings = whitening[:, None].expand(-1, len(constant), -1, -1).unbind(0)
        self._tape: list[Any] = []
        self._offset = offset

    def reset_gradients(self) -> None:
        """Set the accumulated gradients to 0."""
        self._counts.reset_gradients()
        self._d_offset = torch.zeros_like(self._offset)
        self._d_whitened: list[Tensor] = []

    def forward(self, t: int, mean: Tensor, is_recording: bool, z: Tensor, noise: Tensor) -> Tensor:
        """Log w, ``(trial, particle)``."""
        weighted_x, weight, offset = self._weighted_x[t], self._weight[t], self._offsets[t]
        log_p, slope = self._counts.forward(z.mT, offset, weighted_x, weight, is_recording)
        if not self._whitenings:
            return log_p.add_(self._constants[t])
        deviation = z - mean
        whitened = torch.bmm(self._whitenings[min(t, 1)], deviation)
        half_squares = half_sum(noise.square().addcmul_(whitened, whitened, value=-1))
        if is_recording:
            self._tape.append((slope, deviation, whitened))
        return log_p.add_(half_squares).add_(self._constants[t])

    def backward(self, t: int, d_log_w: Tensor, d_z: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the draws, that of the weights added to ``d_z``, and of the means."""
        slope, _, whitened = self._tape[t]
        d_offset = self._counts.offset_gradient(slope, d_log_w, self._offsets[t])
        if self._d_offset.ndim == 1:
            self._d_offset += d_offset
        else:
            self._d_offset[:, t] = d_offset[:, 0]
        d_whitened = d_log_w[:, None] * whitened
        self._d_whitened.append(d_whitened)
        d_mean = torch.bmm(self._whitenings[min(t, 1)].mT, d_whitened)
        d_counts = self._counts.backward(z.mT, slope, d_log_w).mT
        return torch.add(d_z, d_counts).sub_(d_mean), d_mean

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of loading, offset and whitening."""
        d_whitened = torch.stack(self._d_whitened[::-1])
        deviation = torch.stack([deviation for _, deviation, _ in self._tape])
        per_bin = -(d_whitened @ deviation.mT).sum(1)
        d_whitening = torch.stack([per_bin[0], per_bin[1:].sum(0)])
        return self._counts.gradient(), self._d_offset, d_whitening


def half_sum(values: Float[Tensor, "trial dim particle"]) -> Float[Tensor, "trial particle"]:
    """Half the sum over dims."""
    return values.sum(1).mul_(0.5)
