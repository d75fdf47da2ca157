"""Proposals that multiply the model's own law of z_t by a Gaussian factor of the data::

    q(z_t | state_{t-1}, x) ~ N(z_t; m_t, Q) exp(h_t' z_t - z_t' J_t z_t / 2)
                            = N(P_t (Q^-1 m_t + h_t), P_t),     P_t = (Q^-1 + J_t)^-1

m_t and Q are mean and noise of the model's step. `OptimalFactor` takes for the factor the
likelihood itself, where that is linear and Gaussian; `EncoderFactor` has a network say it.

What depends on the data or on the weights alone (h, J, P and their factors) is worked out once per
batch.

Source: Pals et al., NeurIPS 2024; the adapted filter: Pitt & Shephard 1999.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.gaussian import LOG_2PI, Covariance, times
from pyrodyn.models.state_space import Law, Proposal, State


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


class Factor(NamedTuple):
    """Gaussian factors of all bins, combined with the process noise.

    Attributes:
        h: ``(trial, time, dim)``.
        J: ``(dim, dim)``, or ``(trial, time, dim, dim)`` where it changes.
        first: P of the first bin, whose noise may be its own.
        later: P of later bins.
        first_noise: Q of the first bin.
        later_noise: Q of later bins.
        log_scale: what the factor lacks to be the density of the visible entries,
            ``(trial, time)``; None for a factor that is no density.
        is_exact: whether those are all the entries that are scored.
    """

    h: Float[Tensor, "trial time dim"]
    J: Float[Tensor, "... dim dim"]
    first: Covariance
    later: Covariance
    first_noise: Covariance
    later_noise: Covariance
    log_scale: Float[Tensor, "trial time"] | None
    is_exact: bool

    @classmethod
    def combined(
        cls,
        h: Float[Tensor, "trial time dim"],
        J: Float[Tensor, "*trial_time dim dim"],
        noises: tuple[Covariance, Covariance],
        log_scale: Float[Tensor, "trial time"] | None = None,
        is_exact: bool = False,
    ) -> "Factor":
        """From h, J and the process noise of the first and of later bins."""
        first_J = J if J.ndim == 2 else J[:, :1]
        first = Covariance.of_precision(noises[0].precision + first_J)
        later = Covariance.of_precision(noises[1].precision + J)
        return cls(h, J, first, later, *noises, log_scale, is_exact)

    def at(self, t: int, is_first: bool) -> tuple[Tensor, Tensor, Covariance, Covariance]:
        """h, J, P and Q of bin t."""
        J = self.J if self.J.ndim == 2 else self.J[:, t]
        if is_first:
            return self.h[:, t], J, self.first.at(0), self.first_noise
        return self.h[:, t], J, self.later.at(t), self.later_noise


class FactorProposal(Proposal):
    """Abstract proposal by a Gaussian factor."""

    def propose(self, prior: Law, memory: Any, encoding: Factor, t: int, is_first: bool) -> Law:
        """N(P (Q^-1 m + h), P), or a Student-t law with that mean and scale where the prior is one:
        its tails must be as heavy.
        """
        h, _, posterior, noise = encoding.at(t, is_first)
        information = times(prior.mean, noise.precision) + h
        return prior.around(times(information, posterior.matrix), posterior)


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
        h = (x / r) @ C
        if visible.all():
            J = C.mT @ (C / r[:, None])
        else:
            J = torch.einsum("btn,nd,ne->btde", visible / r, C, C)
        constants = torch.where(visible, (LOG_2PI + r.log()), 0.0)
        log_scale = -0.5 * (x.square() / r + constants).sum(-1)
        told = torch.zeros_like(batch.visible[:, bins])
        told[..., emission.columns] = visible
        is_exact = batch.scored_weight == 1 and torch.equal(told, batch.scored[:, bins])
        return Factor.combined(h, J, model.process_noise(), log_scale, bool(is_exact))

    def lookahead(
        self, prior: Law, encoding: Factor, t: int, is_first: bool
    ) -> Float[Tensor, "*left"]:
        """Log p(x_t | state_{t-1}) over the visible entries."""
        h, J, posterior, noise = encoding.at(t, is_first)
        assert encoding.log_scale is not None
        mean = prior.mean
        pulled = times(mean, J)
        surprise = h - pulled
        return (
            encoding.log_scale[:, t]
            + (mean * (h - 0.5 * pulled)).sum(-1)
            + 0.5 * times(surprise, posterior.factor.mT).square().sum(-1)
            + posterior.half_log_det
            - noise.half_log_det
        )

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
                f"this encoder was made for {made_for[0]} neurons and {made_for[1]} latents, but"
                f" the model has {wanted[0]} and {wanted[1]}"
            )
        bins = slice(model.first_bin, None)
        hidden, kept = batch.seen[:, bins].mT, []
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
