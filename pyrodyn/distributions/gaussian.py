"""Gaussian and Student-t distributions of vectors that share a covariance::

    z = mean + L eps,                eps ~ N(0, I),  C = L L'       Gaussian
    z = mean + L eps / sqrt(g),      g ~ Gamma(df/2, df/2)          Student-t, heavy tails

Process noise has the same covariance at every bin and for every particle. Its factor L, the inverse
of L and the log determinant are computed once (`Covariance`), whereas
`torch.distributions.MultivariateNormal` would compute them for every sample and density.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from pyrodyn.kernels.gaussian import Drawn, affine, draw_with_log_ratio, times

LOG_2PI = math.log(2 * math.pi)


class Covariance(NamedTuple):
    """A covariance in the forms that sampling and densities need, with any left dims.

    Attributes:
        factor: L, triangular, ``(*left, dim, dim)``.
        inverse: L^-1.
        half_log_det: log det L, ``(*left,)``.
        precision: C^-1.
        matrix: C.
    """

    factor: Float[Tensor, "... dim dim"]
    inverse: Float[Tensor, "... dim dim"]
    half_log_det: Float[Tensor, "..."]
    precision: Float[Tensor, "... dim dim"]
    matrix: Float[Tensor, "... dim dim"]

    @classmethod
    def of_factor(cls, factor: Float[Tensor, "*left dim dim"]) -> "Covariance":
        """From L."""
        eye = torch.eye(factor.shape[-1], device=factor.device, dtype=factor.dtype)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(factor, inverse, half_log_det, inverse.mT @ inverse, factor @ factor.mT)

    @classmethod
    def of_precision(cls, precision: Float[Tensor, "*left dim dim"]) -> "Covariance":
        """From C^-1. All fields are NaN where it is not positive definite, so that the checks of
        losses and rates can report it.
        """
        root, failed = torch.linalg.cholesky_ex(precision)
        off = nan_where(failed)
        root, precision = root + off, precision + off
        eye = torch.eye(precision.shape[-1], device=precision.device, dtype=precision.dtype)
        # C^-1 = R R', so that C = L L' with L = R^-T and L^-1 = R'.
        factor = torch.linalg.solve_triangular(root.mT, eye.expand_as(precision), upper=True)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(factor, root.mT, half_log_det, precision, factor @ factor.mT)

    def to(self, like: Tensor) -> "Covariance":
        """The same with the dtype and on the device of another tensor."""
        return Covariance(*(field.to(like) for field in self))

    def at(self, t: int) -> "Covariance":
        """The covariance of bin t if left dims are ``(trial, time)``, or the shared one if none."""
        if self.half_log_det.ndim == 0:
            return self
        return Covariance(*(field[:, t] for field in self))


def nan_where(failed: Int[Tensor, "*left"]) -> Float[Tensor, "*left 1 1"]:
    """0 for matrices that `torch.linalg.cholesky_ex` has factorised and NaN for others, to be added
    to the result; to ask whether any has failed, the host would have to wait for a GPU.
    """
    return failed.neg().sqrt()[..., None, None]


def picked(
    values: Shaped[Tensor, "particle trial *dim"], rows: Int[Tensor, " row"]
) -> Shaped[Tensor, "particle trial *dim"]:
    """The values of resampled particles, from the `rows_of` their ancestors."""
    return values.flatten(0, 1).index_select(0, rows).view(values.shape)


def rows_of(ancestors: Int[Tensor, "particle trial"]) -> Int[Tensor, " row"]:
    """Indices of the ancestors when particles and trials are flattened into one dim."""
    num_trials = ancestors.shape[1]
    trials = torch.arange(num_trials, device=ancestors.device)
    return ancestors.mul(num_trials).add_(trials).flatten()


class SharedNormal(TorchDistribution):
    """N(mean, C), event shape ``(dim,)``.

    Args:
        mean: ``(*batch, dim)``.
        covariance: C, shared by all of the batch or broadcasting against it from the right.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: Float[Tensor, "*batch dim"], covariance: Covariance) -> None:
        self._mean, self.covariance = mean, covariance
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """The mean."""
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """The diagonal of C."""
        diagonal = self.covariance.matrix.diagonal(dim1=-2, dim2=-1)
        return diagonal.expand(self._mean.shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "SharedNormal":
        """The same distribution for more independent draws."""
        return self.with_mean(self._mean.expand(*batch_shape, -1), self.covariance)

    def with_mean(
        self, mean: Float[Tensor, "*batch dim"], covariance: Covariance
    ) -> "SharedNormal":
        """A distribution of the same family with another mean and covariance."""
        return SharedNormal(mean, covariance)

    def picked(self, rows: Int[Tensor, " row"]) -> "SharedNormal":
        """The distribution of resampled particles, from the `rows_of` their ancestors; one that all
        particles share is returned unchanged.
        """
        if self.batch_shape.numel() < len(rows):
            return self
        return self.with_mean(picked(self._mean, rows), self.covariance)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*all dim"]:
        """Mean + L eps."""
        shape = (*sample_shape, *self._mean.shape)
        noise = torch.randn(shape, dtype=self._mean.dtype, device=self._mean.device)
        return affine(noise, self.covariance.factor, self._mean)

    def log_prob(self, value: Float[Tensor, "*value dim"]) -> Float[Tensor, "*all"]:
        """Log density in nats."""
        whitened = times(value - self._mean, self.covariance.inverse)
        constant = 0.5 * self._mean.shape[-1] * LOG_2PI
        return -0.5 * whitened.square().sum(-1) - self.covariance.half_log_det - constant


class SharedStudentT(SharedNormal):
    """Multivariate Student-t: all entries of a sample share the mixing variable g.

    Args:
        mean: ``(*batch, dim)``.
        covariance: C, the scale matrix (the covariance is C df / (df - 2)).
        df: degrees of freedom, above 1.
    """

    def __init__(
        self, mean: Float[Tensor, "*batch dim"], covariance: Covariance, df: float
    ) -> None:
        super().__init__(mean, covariance)
        self.df = df

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """The diagonal of C df / (df - 2); infinite up to two degrees of freedom."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return super().variance * factor

    def with_mean(
        self, mean: Float[Tensor, "*batch dim"], covariance: Covariance
    ) -> "SharedStudentT":
        """A distribution of the same family with another mean and covariance."""
        return SharedStudentT(mean, covariance, self.df)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*all dim"]:
        """Mean + L eps / sqrt(g)."""
        draw = super().rsample(sample_shape)
        half = draw.new_full((), 0.5 * self.df)
        g = torch.distributions.Gamma(half, half).sample(draw.shape[:-1])
        return self._mean + (draw - self._mean) / g.sqrt()[..., None]

    def log_prob(self, value: Float[Tensor, "*value dim"]) -> Float[Tensor, "*all"]:
        """Log density in nats."""
        df, dim = self.df, self._mean.shape[-1]
        square = times(value - self._mean, self.covariance.inverse).square().sum(-1)
        constant = (
            math.lgamma(0.5 * (df + dim))
            - math.lgamma(0.5 * df)
            - 0.5 * dim * math.log(df * math.pi)
        )
        return constant - self.covariance.half_log_det - 0.5 * (df + dim) * torch.log1p(square / df)


def sample_with_log_ratio(proposal: TorchDistributionMixin, prior: TorchDistributionMixin) -> Drawn:
    """A sample of a proposal, and its log density ratio to a prior of the same batch shape."""
    if type(proposal) is SharedNormal and type(prior) is SharedNormal:
        one, other = proposal.covariance, prior.covariance
        mean = proposal.mean
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        means = (noise, mean, one.factor, prior.mean, other.inverse)
        return draw_with_log_ratio(*means, one.half_log_det, other.half_log_det)
    z = proposal()  # by rsample if it has one
    return Drawn(z, prior.log_prob(z) - proposal.log_prob(z))
