"""Linear-Gaussian state-space models, whose evidence and posterior are known exactly::

    z_1 ~ N(b_1, S_0)
    z_t ~ N(A z_{t-1} + b_t, Q)
    x_t ~ N(C z_t + d_t, diag(r))

What depends on known inputs is part of b_t and d_t. A model whose densities have this form states
its matrices by `StateSpaceModel.linear_gaussian`; `pyrodyn.infer.kalman` does the rest.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyrodyn.distributions.gaussian import Covariance


class LinearGaussian(NamedTuple):
    """The matrices of a linear-Gaussian model on given inputs.

    Attributes:
        A: ``(dim, dim)``.
        b: mean of z_1, then what is added to A z_{t-1}; ``(trial, time, dim)``, or with one trial
            if all trials share it.
        initial_noise: S_0.
        noise: Q.
        C: ``(neuron, dim)``.
        d: ``(neuron,)``, or ``(trial, time, neuron)``.
        r: ``(neuron,)``.
    """

    A: Float[Tensor, "dim dim"]
    b: Float[Tensor, "trial_or_one time dim"]
    initial_noise: Covariance
    noise: Covariance
    C: Float[Tensor, "neuron dim"]
    d: Float[Tensor, "... neuron"]
    r: Float[Tensor, " neuron"]

    def double(self) -> "LinearGaussian":
        """The same in double precision."""
        initial_noise, noise = (
            Covariance(*(field.double() for field in each))
            for each in (self.initial_noise, self.noise)
        )
        A, b, C, d, r = (each.double() for each in (self.A, self.b, self.C, self.d, self.r))
        return LinearGaussian(A, b, initial_noise, noise, C, d, r)


class LinearEmission(NamedTuple):
    """A linear-Gaussian observation x_t ~ N(C z_t + offset_t, diag(r)).

    Attributes:
        matrix: C, ``(neuron, dim)``.
        offset: ``(neuron,)`` or ``(trial, time, neuron)``.
        variance: r, ``(neuron,)``.
        columns: which entries of x it describes.
    """

    matrix: Float[Tensor, "neuron dim"]
    offset: Float[Tensor, "... neuron"]
    variance: Float[Tensor, " neuron"]
    columns: slice
