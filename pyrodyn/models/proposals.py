"""Proposals that multiply the prior of z_t by a Gaussian factor of the data::

    q(z_t | state_{t-1}, x) ~ N(z_t; m_t, Q) exp(h_t' z_t - z_t' J_t z_t / 2)
                            = N(P_t (Q^-1 m_t + h_t), P_t),     P_t = (Q^-1 + J_t)^-1

m_t and Q are mean and covariance of the model's step. The factor of `OptimalFactor` is the
likelihood itself, if that is linear and Gaussian; that of `EncoderFactor` is output by a network.

What depends on the data or on the weights alone (h, J, P and their factors) is computed once per
batch, in double precision. The likelihood of a signal of low noise is a small difference of large
terms: it is written around a centre s near its maximum,

    log factor(z) = log_scale + (z - s)' h - (z - s)' J (z - s) / 2,

which reduces rounding errors and changes nothing else.

Source: Pals et al., NeurIPS 2024; the adapted filter: Pitt & Shephard 1999.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.gaussian import LOG_2PI, Covariance, SharedNormal
from pyrodyn.kernels.gaussian import affine, log_factor, times
from pyrodyn.models.linear_gaussian import LinearEmission
from pyrodyn.models.state_space import Bootstrap, Distribution, Proposal, State

PROPOSALS = ("optimal", "encoder", "causal_encoder", "bootstrap")
"""Names of the proposals from which a model with Gaussian noise may be built."""

ENCODER_SECONDS = 0.3
FEWEST_ENCODER_BINS, MOST_ENCODER_BINS = 21, 61


def encoder_bins_for(bin_width: float) -> int:
    """Bins that the first layer of an encoder reads: 0.3 s, at least 21 and at most 61."""
    num_bins = round(ENCODER_SECONDS / bin_width) | 1
    return min(max(num_bins, FEWEST_ENCODER_BINS), MOST_ENCODER_BINS)


def proposal_named(kind: str, num_neurons: int, dim: int, encoder_bins: int) -> Proposal:
    """The proposal of a name in `PROPOSALS`."""
    match kind:
        case "optimal":
            return OptimalFactor()
        case "bootstrap":
            return Bootstrap()
        case _:
            kernels = (encoder_bins, (encoder_bins + 1) // 2 | 1, 1)
            return EncoderFactor(num_neurons, dim, kernels, is_causal=kind == "causal_encoder")


class FactorScale(NamedTuple):
    """What makes a factor the density of the visible entries.

    Attributes:
        centre: s, around which h is the factor's slope; a constant.
        log_scale: the logarithm of the factor there.
    """

    centre: Float[Tensor, "trial time dim"]
    log_scale: Float[Tensor, "trial time"]


class Conditioned(NamedTuple):
    """Factors combined with the noise of a step from mean m: q = N(A m + c, P).

    Attributes:
        gain: A = P Q^-1, ``(*left, dim, dim)``, with the left dims of P.
        shift: c = P h + s - A s, ``(trial, time, dim)``, or without time for a single bin, as those
            below.
        covariance: P.
        centre: s; None if the factor is not a density, as the fields below.
        slope: A' h.
        curvature: A' J.
        constant: with which the integral over z of N(z; m, Q) and the factor has the logarithm
            constant + (m - s)' slope - (m - s)' curvature (m - s) / 2.
    """

    gain: Float[Tensor, "... dim dim"]
    shift: Float[Tensor, "... dim"]
    covariance: Covariance
    centre: Float[Tensor, "... dim"] | None
    slope: Float[Tensor, "... dim"] | None
    curvature: Float[Tensor, "... dim dim"] | None
    constant: Float[Tensor, "..."] | None

    @classmethod
    def of(
        cls,
        h: Float[Tensor, "trial time dim"],
        J: Float[Tensor, "*trial_time dim dim"],
        noise: Covariance,
        scale: FactorScale | None,
    ) -> "Conditioned":
        """From h, J, Q and the scale of the factor, if it is a density."""
        like, h, J = h, h.double(), J.double()
        noise = noise.to(h)
        posterior = Covariance.of_precision(noise.precision + J)
        gain, shift = posterior.matrix @ noise.precision, times(h, posterior.matrix)
        if scale is None:
            return cls(gain.to(like), shift.to(like), posterior.to(like), None, None, None, None)
        centre = scale.centre.double()
        constant = scale.log_scale + 0.5 * (h * shift).sum(-1)
        constant = constant + posterior.half_log_det - noise.half_log_det
        return cls(
            gain.to(like),
            (shift + centre - times(centre, gain)).to(like),
            posterior.to(like),
            scale.centre,
            times(h, gain.mT).to(like),
            (gain.mT @ J).to(like),
            constant.to(like),
        )

    def bins(self) -> list["Conditioned"]:
        """A list of all bins: unbound at once, as the gradient of a slice is a whole tensor."""
        num_bins = self.shift.shape[1]

        def unbind(field: Tensor | None, is_shared: bool) -> Sequence[Tensor | None]:
            if field is None or is_shared:
                return [field] * num_bins
            return field.unbind(1)

        is_shared = self.gain.ndim == 2
        covariances = zip(*(unbind(field, is_shared) for field in self.covariance), strict=True)
        return [
            Conditioned(gain, shift, Covariance(*covariance), centre, slope, curvature, constant)
            for gain, shift, covariance, centre, slope, curvature, constant in zip(
                unbind(self.gain, is_shared),
                unbind(self.shift, False),
                covariances,
                unbind(self.centre, False),
                unbind(self.slope, False),
                unbind(self.curvature, is_shared),
                unbind(self.constant, False),
                strict=True,
            )
        ]


@dataclasses.dataclass(frozen=True)
class Factor:
    """Gaussian factors of all bins, combined with the process noise.

    Attributes:
        h: slope at the centre (at 0 if there is none), ``(trial, time, dim)``.
        J: ``(dim, dim)``, or ``(trial, time, dim, dim)`` if it varies.
        first: that of the first bin, combined with the noise of z_1.
        later: of every bin, combined with the noise of later bins.
        is_exact: whether the factor is the density of all the entries that are scored.
    """

    h: Float[Tensor, "trial time dim"]
    J: Float[Tensor, "... dim dim"]
    first: Conditioned
    later: Conditioned
    is_exact: bool

    @classmethod
    def combined(
        cls,
        h: Float[Tensor, "trial time dim"],
        J: Float[Tensor, "*trial_time dim dim"],
        noises: tuple[Covariance, Covariance],
        scale: FactorScale | None = None,
        is_exact: bool = False,
    ) -> "Factor":
        """From h, J, the process noise of the first and of later bins, and the scale of the factor
        (None if it is not a density).
        """
        first_J = J if J.ndim == 2 else J[:, :1]
        its = None if scale is None else FactorScale(*(field[:, :1] for field in scale))
        first = Conditioned.of(h[:, :1], first_J, noises[0], its)
        later = Conditioned.of(h, J, noises[1], scale)
        return cls(h, J, first, later, is_exact)

    def of_all_bins(
        self, first: Float[Tensor, "..."], later: Float[Tensor, "..."], event_dims: int
    ) -> Float[Tensor, "trial time *event"]:
        """A field of `first` and of `later`, joined along time and expanded to all bins."""
        event = first.shape[first.ndim - event_dims :]
        num_trials, num_bins = self.h.shape[:2]
        first = first.expand(num_trials, 1, *event)
        return torch.cat([first, later.expand(num_trials, num_bins, *event)[:, 1:]], 1)

    @functools.cached_property
    def bins(self) -> tuple[Conditioned, list[Conditioned]]:
        """The first bin, and a list of all bins with the noise of later ones."""
        # With a graph even if first accessed under no_grad, or densities computed later would lack
        # a gradient.
        with torch.enable_grad():
            return self.first.bins()[0], self.later.bins()

    def at(self, t: int, is_first: bool) -> Conditioned:
        """The factor of bin t."""
        first, later = self.bins
        return first if is_first else later[t]


@torch.no_grad()
def regularised_inverse(J: Float[Tensor, "*left dim dim"]) -> Float[Tensor, "*left dim dim"]:
    """J^-1 in double precision, of a slightly larger J if J is singular; a constant, used only to
    choose a centre.
    """
    ridge = 1e-7 * J.double().diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-30
    eye = torch.eye(J.shape[-1], dtype=torch.double, device=J.device)
    inverse, _ = torch.linalg.inv_ex(J.double() + ridge[..., None, None] * eye)
    return inverse


@torch.no_grad()
def likelihood_mode(
    h: Float[Tensor, "*left dim"], inverse: Float[Tensor, "*left_or_none dim dim"]
) -> Float[Tensor, "*left dim"]:
    """The z that maximises z' h - z' J z / 2, from the `regularised_inverse` of J."""
    return times(h.double(), inverse).to(h)


class FactorProposal(Proposal):
    """Abstract proposal by a Gaussian factor."""

    def propose(
        self, prior: Distribution, memory: Any, encoding: Factor, t: int, is_first: bool
    ) -> Distribution:
        """N(P (Q^-1 m + h), P), or a Student-t distribution of that mean and scale if the prior is
        one: its tails must be as heavy.
        """
        if not isinstance(prior, SharedNormal):
            raise ValueError(
                f"{type(self).__name__} multiplies the distribution of z_t by a Gaussian factor,"
                " which takes a SharedNormal or SharedStudentT, but this model's is a"
                f" {type(prior).__name__}: set model.proposal to Bootstrap() or a Proposal of your"
                " own"
            )
        bin_ = encoding.at(t, is_first)
        return prior.with_mean(affine(prior.mean, bin_.gain, bin_.shift), bin_.covariance)


class OptimalFactor(FactorProposal):
    """The exact p(z_t | state_{t-1}, x_t) of a linear-Gaussian observation.

    A particle's weight is p(x_t | state_{t-1}), known before z_t is drawn; it is computed in the
    dimensions of z, not of x. Hidden entries, and spikes recorded together with a Gaussian field
    potential, enter only the weights.
    """

    looks_ahead: ClassVar[bool] = True
    has_encoder: ClassVar[bool] = False

    def encode(self, model: Any, batch: Batch) -> Factor:
        """The likelihood of the visible entries as a factor of z."""
        return self._factor(model, batch, model.linear_emission(batch))

    def encode_next(
        self, model: Any, batch: Batch, state: State | None, past: None
    ) -> tuple[Factor, None]:
        """The same of one new bin, whose filtered inputs continue those of the state."""
        return self._factor(model, batch, model.linear_emission(batch, state)), None

    def _factor(self, model: Any, batch: Batch, emission: LinearEmission) -> Factor:
        bins = slice(model.first_bin, None)
        visible = batch.visible[:, bins, emission.columns]
        seen = batch.seen[:, bins, emission.columns]
        x = torch.where(visible, seen / batch.gain - emission.offset, 0.0)
        C, r = emission.matrix, emission.variance
        # In double precision: with fewer entries than latents and little noise, rounding in single
        # precision exceeds Q^-1, and Q^-1 + J is not positive definite.
        C_, r_ = C.double(), r.double()
        # Of masks that are not known to be complete a GPU is not asked, which would wait for it.
        if batch.is_complete or not (visible.is_cuda or not visible.all()):
            J = C_.mT @ (C_ / r_[:, None])
        else:
            J = torch.einsum("btn,nd,ne->btde", visible / r_, C_, C_)
        centre = likelihood_mode((x / r) @ C, regularised_inverse(J))
        residual = torch.where(visible, x - centre @ C.mT, 0.0)
        constants = torch.where(visible, (LOG_2PI + r.log()), 0.0)
        scale = FactorScale(centre, -0.5 * (residual.square() / r + constants).sum(-1))
        h = (residual / r) @ C
        is_exact = (
            batch.scored_weight == 1
            and model.has_gaussian_steps()
            and _scores_exactly(batch, bins, emission.columns)
        )
        return Factor.combined(h, J, model.process_noise(), scale, is_exact)

    def lookahead(
        self, prior: Distribution, encoding: Factor, t: int, is_first: bool
    ) -> Float[Tensor, "*left"]:
        """Log p(x_t | state_{t-1}) over the visible entries."""
        bin_ = encoding.at(t, is_first)
        assert bin_.centre is not None and bin_.slope is not None
        assert bin_.curvature is not None and bin_.constant is not None
        return log_factor(prior.mean - bin_.centre, bin_.slope, bin_.curvature, bin_.constant)

    def is_exact(self, encoding: Factor) -> bool:
        """Whether every scored entry is in the factor and z_t has the model's Gaussian noise."""
        return encoding.is_exact


def _scores_exactly(batch: Batch, bins: slice, columns: slice) -> bool:
    """Whether the scored entries are the visible ones of these columns; a GPU, which would have to
    be waited for, is not asked.
    """
    is_all = len(range(*columns.indices(batch.visible.shape[-1]))) == batch.visible.shape[-1]
    if batch.is_complete or batch.visible.is_cuda:
        return bool(batch.is_complete) and is_all
    is_in_factor = torch.zeros_like(batch.visible[:, bins])
    is_in_factor[..., columns] = batch.visible[:, bins, columns]
    return torch.equal(is_in_factor, batch.scored[:, bins])


class EncodedFactor(NamedTuple):
    """The factors that an encoder outputs.

    Attributes:
        h: slope at 0.
        J: precision.
    """

    h: Float[Tensor, "trial time dim"]
    J: Float[Tensor, "trial time dim dim"]


class EncoderFactor(FactorProposal):
    """A factor whose mean and precision per dimension a convolutional network outputs.

    Args:
        num_neurons: entries per bin.
        latent_dim: dimensions of z.
        kernels: width in bins of each layer's kernel; the layers between have ``num_channels``.
        num_channels: channels of the hidden layers.
        is_causal: whether the factor of a bin depends on this and earlier bins only, as online
            filtering requires.
    """

    def __init__(
        self,
        num_neurons: int,
        latent_dim: int,
        kernels: tuple[int, ...] = (21, 11, 1),
        num_channels: int = 64,
        is_causal: bool = False,
    ) -> None:
        super().__init__()
        if not kernels or min(kernels) < 1:
            raise ValueError(f"kernels={kernels} are widths in bins; each must be at least 1")
        self.num_neurons, self.is_causal, self.kernels = num_neurons, is_causal, kernels
        widths = [num_neurons, *[num_channels] * (len(kernels) - 1), 2 * latent_dim]
        self.layers = nn.ModuleList(
            nn.Conv1d(inside, outside, kernel)
            for inside, outside, kernel in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        # From the latents to those that the network was trained with, after a change of basis.
        self.basis: Tensor
        self.register_buffer("basis", torch.eye(latent_dim))

    def encode(self, model: Any, batch: Batch) -> Factor:
        """Factors of all bins; in forecast bins their precision is 0, so that q is the prior."""
        noises = model.process_noise()
        read, _ = self.read(model, batch, len(noises[1].matrix))
        return Factor.combined(*read, noises)

    def encode_next(
        self, model: Any, batch: Batch, state: State | None, past: list[Tensor] | None
    ) -> tuple[Factor, list[Tensor]]:
        """Factors of a new bin, and the last inputs of every layer, as many as its kernel reaches
        back to.

        Raises:
            ValueError: for an encoder that looks ahead.
        """
        self.check_causal()
        noises = model.process_noise()
        read, last = self.read(model, batch, len(noises[1].matrix), past)
        return Factor.combined(*read, noises), last

    def check_causal(self) -> None:
        """Refuse to filter online with an encoder that looks ahead."""
        ahead = 0 if self.is_causal else sum(kernel // 2 for kernel in self.kernels)
        if ahead:
            raise ValueError(
                f"this encoder reads {ahead} later bins, so it cannot filter online;"
                " build the model with proposal='causal_encoder' or set model.proposal ="
                " Bootstrap()"
            )

    def read(
        self, model: Any, batch: Batch, latent_dim: int, past: list[Tensor] | None = None
    ) -> tuple["EncodedFactor", list[Tensor]]:
        """Factors, and the last inputs of every layer. Before the first bin all are 0."""
        made_for = self.num_neurons, len(self.basis)
        wanted = batch.seen.shape[-1], latent_dim
        if made_for != wanted:
            raise ValueError(
                f"this encoder was made for {made_for[0]} neurons and {made_for[1]} latents; the"
                f" recording has {wanted[0]} and the model {wanted[1]}"
            )
        bins = slice(model.first_bin, None)
        hidden, last = model.encoder_view(batch)[:, bins].mT, []
        for position, (layer, kernel) in enumerate(zip(self.layers, self.kernels, strict=True)):
            reach = kernel - 1
            before = reach if self.is_causal else reach // 2
            if past is None:
                hidden = functional.pad(hidden, (before, reach - before))
            else:
                hidden = torch.cat([past[position], hidden], -1)
            last.append(hidden[..., hidden.shape[-1] - reach :])
            hidden = layer(hidden)
            if position < len(self.layers) - 1:
                hidden = functional.gelu(hidden)
        mean, raw_precision = hidden.mT.chunk(2, -1)
        is_visible = (
            torch.arange(mean.shape[1], device=mean.device) < batch.horizon - model.first_bin
        )
        precision = functional.softplus(raw_precision) * is_visible[:, None]
        J = self.basis.mT @ (precision[..., None] * self.basis)
        return EncodedFactor((precision * mean) @ self.basis, J), last


class GeneralEncoderFactor(Proposal):
    """The factor of an encoder for any Gaussian prior of z_t, whose covariance may depend on the
    state: q = N(P (Q^-1 m + h), P), P = (Q^-1 + J)^-1.

    Args:
        encoder: outputs the factor.
    """

    def __init__(self, encoder: EncoderFactor) -> None:
        super().__init__()
        self.encoder = encoder

    def encode(self, model: Any, batch: Batch) -> EncodedFactor:
        """Factors of all bins."""
        return self.encoder.read(model, batch, model.config["latent_dim"])[0]

    def encode_next(
        self, model: Any, batch: Batch, state: State | None, past: list[Tensor] | None
    ) -> tuple[EncodedFactor, list[Tensor]]:
        """Factors of a new bin; see `EncoderFactor.encode_next`."""
        self.encoder.check_causal()
        return self.encoder.read(model, batch, model.config["latent_dim"], past)

    def propose(
        self, prior: Distribution, memory: Any, encoding: EncodedFactor, t: int, is_first: bool
    ) -> Distribution:
        """From mean and covariance of the prior.

        Raises:
            ValueError: for a prior that is not Gaussian.
        """
        gaussian = gaussian_of(prior)
        h, J = encoding.h[:, t], encoding.J[:, t]
        if isinstance(gaussian, torch.distributions.Normal):
            precision = gaussian.scale.pow(-2)
            diagonal = precision + J.diagonal(dim1=-2, dim2=-1)
            mean = (precision * gaussian.loc + h) / diagonal
            return dist.Normal(mean, diagonal.rsqrt(), validate_args=False).to_event(1)
        if isinstance(gaussian, torch.distributions.MultivariateNormal):
            Q_inverse, m = gaussian.precision_matrix, gaussian.loc
            pushed = (Q_inverse @ m[..., None])[..., 0] + h
            P = Covariance.of_precision(Q_inverse + J)
            return SharedNormal((P.matrix @ pushed[..., None])[..., 0], P)
        raise ValueError(
            f"{type(self).__name__} multiplies the distribution of z_t by a Gaussian factor, so"
            " that it must be Gaussian itself: set model.proposal to Bootstrap() or a Proposal of"
            " your own"
        )


def gaussian_of(distribution: Any) -> Any:
    """The `torch.distributions.Normal` or `MultivariateNormal` inside wrappers that change nothing
    but shapes, else None.
    """
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    kinds = (torch.distributions.Normal, torch.distributions.MultivariateNormal)
    return distribution if isinstance(distribution, kinds) else None
