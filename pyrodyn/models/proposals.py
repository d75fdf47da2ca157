"""Proposals that multiply the model's own law of z_t by a Gaussian factor of the data::

    q(z_t | state_{t-1}, x) ~ N(z_t; m_t, Q) exp(h_t' z_t - z_t' J_t z_t / 2)
                            = N(P_t (Q^-1 m_t + h_t), P_t),     P_t = (Q^-1 + J_t)^-1

m_t and Q are mean and noise of the model's step. `OptimalFactor` takes for the factor the
likelihood itself, where that is linear and Gaussian; `EncoderFactor` has a network say it.

What depends on the data or on the weights alone (h, J, P and their factors) is worked out once per
batch, in double precision. The likelihood of a signal far above its noise is a difference of terms
larger than itself by the square of their ratio: it is written around a centre s near its maximum,

    log factor(z) = log_scale + (z - s)' h - (z - s)' J (z - s) / 2,

which changes no value and no gradient, but what rounding leaves of them.

Source: Pals et al., NeurIPS 2024; the adapted filter: Pitt & Shephard 1999.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.gaussian import LOG_2PI, Covariance, SharedNormal
from pyrodyn.kernels.gaussian import affine, log_factor, times
from pyrodyn.models.state_space import Distribution, Proposal, State


class LinearEmission(NamedTuple):
    """A linear-Gaussian observation x_t ~ N(C z_t + offset_t, diag(r)).

    Attributes:
        matrix: C, ``(neuron, dim)``.
        offset: ``(neuron,)`` or ``(trial, time, neuron)``.
        variance: r, ``(neuron,)``.
        columns: which entries of x it is about; others may be observed in another way.
    """

    matrix: Float[Tensor, "neuron dim"]
    offset: Float[Tensor, "... neuron"]
    variance: Float[Tensor, " neuron"]
    columns: slice


class Density(NamedTuple):
    """What makes a factor the density of what was seen.

    Attributes:
        centre: s, around which h is the factor's slope; a constant.
        log_scale: its logarithm there.
    """

    centre: Float[Tensor, "trial time dim"]
    log_scale: Float[Tensor, "trial time"]


class Conditioned(NamedTuple):
    """Factors met with the noise of a step from mean m: q = N(A m + c, P).

    Attributes:
        gain: A = P Q^-1, ``(*left, dim, dim)``, with left dims where P has them.
        shift: c = P h + s - A s, ``(trial, time, dim)``, or without time for a single bin, as those
            below.
        covariance: P.
        centre: s; None for a factor that is no density, as those below.
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
        density: "Density | None",
    ) -> "Conditioned":
        """From h, J, Q and what makes the factor a density."""
        like, h, J = h, h.double(), J.double()
        noise = noise.to(h)
        posterior = Covariance.of_precision(noise.precision + J)
        gain, shift = posterior.matrix @ noise.precision, times(h, posterior.matrix)
        if density is None:
            return cls(gain.to(like), shift.to(like), posterior.to(like), None, None, None, None)
        centre = density.centre.double()
        constant = density.log_scale + 0.5 * (h * shift).sum(-1)
        constant = constant + posterior.half_log_det - noise.half_log_det
        return cls(
            gain.to(like),
            (shift + centre - times(centre, gain)).to(like),
            posterior.to(like),
            density.centre,
            times(h, gain.mT).to(like),
            (gain.mT @ J).to(like),
            constant.to(like),
        )

    def bins(self) -> list["Conditioned"]:
        """Every bin by itself: taken apart once, as a slice has a whole tensor for a gradient."""
        num_bins = self.shift.shape[1]

        def apart(field: Tensor | None, is_shared: bool) -> Sequence[Tensor | None]:
            if field is None or is_shared:
                return [field] * num_bins
            return field.unbind(1)

        is_shared = self.gain.ndim == 2
        covariances = zip(*(apart(field, is_shared) for field in self.covariance), strict=True)
        return [
            Conditioned(gain, shift, Covariance(*covariance), centre, slope, curvature, constant)
            for gain, shift, covariance, centre, slope, curvature, constant in zip(
                apart(self.gain, is_shared),
                apart(self.shift, False),
                covariances,
                apart(self.centre, False),
                apart(self.slope, False),
                apart(self.curvature, is_shared),
                apart(self.constant, False),
                strict=True,
            )
        ]


@dataclasses.dataclass(frozen=True)
class Factor:
    """Gaussian factors of all bins, combined with the process noise.

    Attributes:
        h: slope at the centre (at 0 where there is none), ``(trial, time, dim)``.
        J: ``(dim, dim)``, or ``(trial, time, dim, dim)`` where it changes.
        first: the first bin's met with the noise that may be its own.
        later: of every bin, met with the noise of later ones.
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
        density: Density | None = None,
        is_exact: bool = False,
    ) -> "Factor":
        """From h, J, the process noise of the first and of later bins, and what makes the factor
        the density of the visible entries (None where it is none).
        """
        first_J = J if J.ndim == 2 else J[:, :1]
        its = None if density is None else Density(*(field[:, :1] for field in density))
        first = Conditioned.of(h[:, :1], first_J, noises[0], its)
        later = Conditioned.of(h, J, noises[1], density)
        return cls(h, J, first, later, is_exact)

    def of_all_bins(
        self, first: Float[Tensor, "..."], later: Float[Tensor, "..."], event_dims: int
    ) -> Float[Tensor, "trial time *event"]:
        """A field of `first` and of `later`, joined along time; what bins share is repeated."""
        event = first.shape[first.ndim - event_dims :]
        num_trials, num_bins = self.h.shape[:2]
        first = first.expand(num_trials, 1, *event)
        return torch.cat([first, later.expand(num_trials, num_bins, *event)[:, 1:]], 1)

    @functools.cached_property
    def bins(self) -> tuple[Conditioned, list[Conditioned]]:
        """The first bin by itself, and each of the later ones."""
        # With a graph whoever asks first: a draw made under no_grad must not leave the density that
        # is computed afterwards without its gradient.
        with torch.enable_grad():
            return self.first.bins()[0], self.later.bins()

    def at(self, t: int, is_first: bool) -> Conditioned:
        """Bin t by itself."""
        first, later = self.bins
        return first if is_first else later[t]


@torch.no_grad()
def explaining(J: Float[Tensor, "*left dim dim"]) -> Float[Tensor, "*left dim dim"]:
    """What takes h near the z that maximises z' h - z' J z / 2, in double precision: a constant, to
    write a likelihood around. J may be singular; then it is J^-1 of a J a little larger.
    """
    ridge = 1e-7 * J.double().diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-30
    eye = torch.eye(J.shape[-1], dtype=torch.double, device=J.device)
    inverse, _ = torch.linalg.inv_ex(J.double() + ridge[..., None, None] * eye)
    return inverse


@torch.no_grad()
def best_explanation(
    h: Float[Tensor, "*left dim"], inverse: Float[Tensor, "*left_or_none dim dim"]
) -> Float[Tensor, "*left dim"]:
    """That z, by what `explaining` returns."""
    return times(h.double(), inverse).to(h)


class FactorProposal(Proposal):
    """Abstract proposal by a Gaussian factor."""

    def propose(
        self, prior: Distribution, memory: Any, encoding: Factor, t: int, is_first: bool
    ) -> Distribution:
        """N(P (Q^-1 m + h), P), or a Student-t law with that mean and scale where the prior is one:
        its tails must be as heavy.
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

    A particle's weight is p(x_t | state_{t-1}), known before z_t is drawn; it is worked out in the
    dimensions of z, not of x. Entries that the encoder may not see, and spikes beside a Gaussian
    field potential, enter the weight alone.
    """

    looks_ahead: ClassVar[bool] = True

    def encode(self, model: Any, batch: Batch) -> Factor:
        """The likelihood of the visible entries as a factor of z."""
        return self._factor(model, batch, model.linear_emission(batch))

    def encode_next(
        self, model: Any, batch: Batch, state: State | None, past: None
    ) -> tuple[Factor, None]:
        """The same of one new bin, whose inputs may be filtered on from those of the state."""
        return self._factor(model, batch, model.linear_emission(batch, state)), None

    def _factor(self, model: Any, batch: Batch, emission: LinearEmission) -> Factor:
        bins = slice(model.first_bin, None)
        visible = batch.visible[:, bins, emission.columns]
        seen = batch.seen[:, bins, emission.columns]
        x = torch.where(visible, seen / batch.gain - emission.offset, 0.0)
        C, r = emission.matrix, emission.variance
        if visible.all():
            J = C.mT @ (C / r[:, None])
        else:
            J = torch.einsum("btn,nd,ne->btde", visible / r, C, C)
        centre = best_explanation((x / r) @ C, explaining(J))
        left = torch.where(visible, x - centre @ C.mT, 0.0)
        constants = torch.where(visible, (LOG_2PI + r.log()), 0.0)
        density = Density(centre, -0.5 * (left.square() / r + constants).sum(-1))
        told = torch.zeros_like(batch.visible[:, bins])
        told[..., emission.columns] = visible
        all_is_told = batch.scored_weight == 1 and torch.equal(told, batch.scored[:, bins])
        is_exact = all_is_told and model.has_gaussian_steps()
        h = (left / r) @ C
        return Factor.combined(h, J, model.process_noise(), density, bool(is_exact))

    def lookahead(
        self, prior: Distribution, encoding: Factor, t: int, is_first: bool
    ) -> Float[Tensor, "*left"]:
        """Log p(x_t | state_{t-1}) over the visible entries."""
        bin_ = encoding.at(t, is_first)
        assert bin_.centre is not None and bin_.slope is not None
        assert bin_.curvature is not None and bin_.constant is not None
        return log_factor(prior.mean - bin_.centre, bin_.slope, bin_.curvature, bin_.constant)

    def is_exact(self, encoding: Factor) -> bool:
        """Whether every scored entry is visible."""
        return encoding.is_exact


class EncoderFactor(FactorProposal):
    """A factor that a convolutional network reads off the data: its mean, and its precision per
    dimension.

    Args:
        num_neurons: entries per bin.
        latent_dim: dimensions of z.
        kernels: width in bins of each layer's kernel; the layers between have ``num_channels``.
        num_channels: channels of the hidden layers.
        is_causal: whether a bin sees itself and the past alone, as online use needs.
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
        # From the latents to those that the network speaks of, once a model changes its basis.
        self.basis: Tensor
        self.register_buffer("basis", torch.eye(latent_dim))

    def encode(self, model: Any, batch: Batch) -> Factor:
        """Factors of all bins; in forecast bins there is nothing to say, and q is the model."""
        return self._read(model, batch, None)[0]

    def encode_next(
        self, model: Any, batch: Batch, state: State | None, past: list[Tensor] | None
    ) -> tuple[Factor, list[Tensor]]:
        """Factors of a new bin; handed on are the last inputs of every layer, as many as its kernel
        reaches back to.

        Raises:
            ValueError: for an encoder that looks ahead.
        """
        ahead = 0 if self.is_causal else sum(kernel // 2 for kernel in self.kernels)
        if ahead:
            raise ValueError(
                f"this encoder looks {ahead} bins ahead, so it cannot follow bins as they arrive;"
                " build the model with proposal='causal_encoder' or set model.proposal ="
                " Bootstrap()"
            )
        return self._read(model, batch, past)

    def _read(
        self, model: Any, batch: Batch, past: list[Tensor] | None
    ) -> tuple[Factor, list[Tensor]]:
        """Factors, and the last inputs of every layer. Before the first bin every layer meets 0."""
        noises = model.process_noise()
        made_for = self.num_neurons, len(self.basis)
        wanted = batch.seen.shape[-1], len(noises[1].matrix)
        if made_for != wanted:
            raise ValueError(
                f"this encoder was made for {made_for[0]} neurons and {made_for[1]} latents; the"
                f" recording has {wanted[0]} and the model {wanted[1]}"
            )
        bins = slice(model.first_bin, None)
        hidden, kept = model.encoder_view(batch)[:, bins].mT, []
        for position, (layer, kernel) in enumerate(zip(self.layers, self.kernels, strict=True)):
            reach = kernel - 1
            before = reach if self.is_causal else reach // 2
            if past is None:
                hidden = functional.pad(hidden, (before, reach - before))
            else:
                hidden = torch.cat([past[position], hidden], -1)
            kept.append(hidden[..., hidden.shape[-1] - reach :])
            hidden = layer(hidden)
            if position < len(self.layers) - 1:
                hidden = functional.gelu(hidden)
        mean, raw_precision = hidden.mT.chunk(2, -1)
        says = torch.arange(mean.shape[1], device=mean.device) < batch.horizon - model.first_bin
        precision = functional.softplus(raw_precision) * says[:, None]
        J = self.basis.mT @ (precision[..., None] * self.basis)
        return Factor.combined((precision * mean) @ self.basis, J, noises), kept
