"""Stochastic low-rank recurrent neural networks.

Generative program, per trial::

    v_t = a_v v_{t-1} + (1 - a_v) i_{t-1},  v_1 = i_1      filtered inputs; or raw, v_t = i_t
    z_1 ~ N(mu_0 + P_m W_u v_1, S_0)                       P_m = (m' m)^-1 m'
    z_t = a z_{t-1} + n phi(m z_{t-1} + W_u v_{t-1}) + e_t,  e_t ~ N(0, S)
    x_t ~ p(x | readout(z_t, v_t))

z has the dimension R of the rank; m (units x R) and n (R x units) make the recurrent weights
J = m n. The full-rank alternative has one latent per unit::

    z_t = a z_{t-1} + W phi(z_{t-1}) + W_u v_{t-1} + e_t

Guide: a proposal q(z_t | z_{t-1}, x), see `proposals`: ``"optimal"`` for Gaussian observations
(with spikes beside a field potential it uses the potential alone, and the spikes enter the
weights), ``"encoder"`` or ``"causal_encoder"`` for any, ``"bootstrap"`` for the prior itself.

Source: Pals, Sagtekin, Pei, Gloeckler & Macke, NeurIPS 2024. Departures: the decay may be one per
latent, the noise may have heavy tails (Student-t), units may be leaky or hard tanh, observation
models are those of all models of the package.
"""

import copy
import math
from typing import Any, ClassVar, NamedTuple

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch, num_units
from pyrodyn.distributions.gaussian import (
    LOG_2PI,
    Covariance,
    SharedNormal,
    SharedStudentT,
)
from pyrodyn.kernels.activations import ACTIVATIONS
from pyrodyn.kernels.affine_poisson import affine_poisson_log_prob, softplus_and_log
from pyrodyn.kernels.gaussian import log_factor
from pyrodyn.kernels.low_rank import low_rank_step
from pyrodyn.kernels.low_rank_filter import low_rank_filter
from pyrodyn.kernels.low_rank_vsmc import NetworkSteps, low_rank_vsmc
from pyrodyn.kernels.low_rank_weights import GaussianWeights, PoissonWeights
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.initial_loadings import start_loading
from pyrodyn.models.latent_dynamics import check_config
from pyrodyn.models.linear_gaussian import LinearEmission, LinearGaussian
from pyrodyn.models.observations import (
    GaussianPart,
    Observation,
    ObservationSpec,
    Poisson,
)
from pyrodyn.models.observations import observation as observation_model
from pyrodyn.models.process_noise import NOISE_DIMS, NOISES, covariance_of, raw_noise, raw_of
from pyrodyn.models.proposals import (
    FEWEST_ENCODER_BINS,
    PROPOSALS,
    EncoderFactor,
    OptimalFactor,
    encoder_bins_for,
    likelihood_mode,
    proposal_named,
    regularised_inverse,
)
from pyrodyn.models.state_space import (
    Bootstrap,
    Bound,
    Distribution,
    Filtered,
    Observed,
    Resample,
    StateSpaceModel,
)

READOUTS = ("latents", "latents_and_inputs", "currents", "rates")

STEP = ("initial", "transition", "initial_state", "advance")
"""The methods that a latent path is made of."""

EMISSION = ("initial_state", "advance", "emission")
"""The methods that p(x_t | z_t) is made of."""


class LowRankState(NamedTuple):
    """State of a low-rank network.

    Attributes:
        z: latents.
        v: the inputs, filtered or raw, that drive the next bin; shared by all particles.
        i: the raw inputs of this bin.
    """

    z: Float[Tensor, "... latent"]
    v: Float[Tensor, "... input"]
    i: Float[Tensor, "... input"]


class LowRankRNN(StateSpaceModel):
    """A stochastic low-rank RNN. Equations in the module's docstring.

    Args:
        num_neurons: neurons or channels observed, or both together.
        input_dim: known external inputs.
        latent_dim: R, the rank; the number of units if ``is_full_rank``.
        num_units: units of the network; ``num_neurons`` if the readout is one-to-one.
        activation: phi: ``"relu"``, ``"leaky_relu"``, ``"clipped_relu"``, ``"hard_tanh"`` (these
            with a threshold h per unit), ``"tanh"`` or ``"identity"``; see
            `pyrodyn.kernels.activations`
        noise: S: ``"scalar"``, ``"diagonal"`` or ``"full"``; S_0 is of the same kind.
        noise_df: degrees of freedom (> 2) of Student-t process noise; None for Gaussian noise.
        decay_per_latent: one decay a per latent instead of one for all.
        filters_inputs: low-pass filter the inputs.
        is_full_rank: the full-rank alternative.
        readout: what is read out: ``"latents"``, ``"latents_and_inputs"`` (both affinely), or unit
            by unit ``"currents"`` (m z + W_u v) or ``"rates"`` (phi of them).
        observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
            `ObservationSpec`).
        link: ``"canonical"``, or ``"softplus"`` for observations parametrised by their log mean,
            whose mean is then softplus of the readout; of two observations it applies to those.
        proposal: ``"optimal"``, ``"encoder"``, ``"causal_encoder"`` or ``"bootstrap"``.
        encoder_bins: bins that the first layer of an encoder reads. `for_recording` chooses those
            of 0.3 s, at least 21 and at most 61.
    """

    site_dims: ClassVar[dict[str, tuple[str, ...]]] = {
        "z": ("time", "latent"),
        "rates": ("time", "neuron"),
        "x": ("time", "neuron"),
    }

    def __init__(
        self,
        num_neurons: int,
        *,
        input_dim: int = 0,
        latent_dim: int = 5,
        num_units: int = 128,
        activation: str = "relu",
        noise: str = "diagonal",
        noise_df: float | None = None,
        decay_per_latent: bool = False,
        filters_inputs: bool = False,
        is_full_rank: bool = False,
        readout: str = "latents",
        observation: ObservationSpec = "poisson",
        link: str = "canonical",
        proposal: str = "encoder",
        encoder_bins: int = FEWEST_ENCODER_BINS,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        _check(config)
        self.observation = observation_model(observation, num_neurons)
        _check_observation(config, self.observation)
        self.config: dict[str, Any] = config
        self.activation, self.noise, self.noise_df = activation, noise, noise_df
        self.filters_inputs, self.is_full_rank, self.readout_from = (
            filters_inputs,
            is_full_rank,
            readout,
        )
        self.link = link

        # Dynamics
        dim = num_units if is_full_rank else latent_dim
        start_rate = math.log(-math.log(0.9))
        self.log_rate = nn.Parameter(torch.full((dim if decay_per_latent else 1,), start_rate))
        if filters_inputs:
            self.input_log_rate = nn.Parameter(torch.tensor(start_rate))
        if is_full_rank:
            # Weaker than the decay, or states would diverge before training.
            self.recurrent = nn.Parameter(torch.randn(dim, dim) * 0.05 / math.sqrt(dim))
        else:
            self.m = nn.Parameter(torch.randn(num_units, dim) / math.sqrt(dim))
            self.n = nn.Parameter(torch.randn(dim, num_units) * 0.5 / num_units)
        self.input_weights = nn.Parameter(
            torch.randn(num_units, input_dim) / math.sqrt(max(1, input_dim))
        )
        phi = ACTIVATIONS[activation]
        if phi.has_threshold:
            # Thresholds cover the range of the latents, so that units differ from the first step.
            grid = torch.linspace(-1.0, 1.0, num_units)
            self.threshold = nn.Parameter(grid if phi.threshold_by == "shift" else 1.0 + grid.abs())
        self.start_mean = nn.Parameter(torch.zeros(dim))
        self.raw_noise = nn.Parameter(raw_noise(noise, dim, 0.3))
        self.raw_start_noise = nn.Parameter(raw_noise(noise, dim, 1.0))

        # Observation
        num_predictors = self.observation.predictor_dim
        self.neuron_of_predictor: Tensor
        self.is_log_mean: Tensor
        neuron, is_log_mean = self.observation.predictors()
        self.register_buffer("neuron_of_predictor", neuron, persistent=False)
        self.register_buffer("is_log_mean", is_log_mean, persistent=False)
        if readout in ("latents", "latents_and_inputs"):
            self.loading = nn.Parameter(torch.randn(num_predictors, dim) / math.sqrt(dim))
        else:
            self.gain = nn.Parameter(torch.ones(num_predictors))
        if readout == "latents_and_inputs":
            self.input_loading = nn.Parameter(torch.zeros(num_predictors, input_dim))
        self.bias = nn.Parameter(torch.zeros(num_predictors))

        # Guide
        self.proposal = proposal_named(proposal, num_neurons, dim, encoder_bins)

    @classmethod
    def sizes_for(cls, recording: xr.Dataset, sizes: dict[str, Any]) -> dict[str, Any]:
        """The best proposal for the observations; one unit per neuron for unit-wise readouts; an
        encoder's reach in seconds.
        """
        sizes = {**sizes}
        observed = observation_model(sizes["observation"], num_units(recording))
        if "proposal" not in sizes and observed.is_gaussian():
            is_linear = (
                sizes.get("readout", "latents") != "rates"
                and not sizes.get("noise_df")
                and all(getattr(cls, name) is getattr(LowRankRNN, name) for name in EMISSION)
            )
            sizes["proposal"] = "optimal" if is_linear else "encoder"
        if sizes.get("readout") in ("currents", "rates"):
            sizes.setdefault("num_units", num_units(recording))
        sizes.setdefault("encoder_bins", encoder_bins_for(recording.attrs["bin_width"]))
        return sizes

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of dynamics and readout; a second dim of latents is ``latent_from``."""
        dims: dict[str, tuple[str, ...]] = {
            **super().parameter_dims(),
            "recurrent": ("latent", "latent_from"),
            "m": ("unit", "latent"),
            "n": ("latent", "unit"),
            "input_weights": ("latent" if self.is_full_rank else "unit", "input"),
            "threshold": ("latent" if self.is_full_rank else "unit",),
            "start_mean": ("latent",),
            "loading": ("predictor", "latent"),
            "input_loading": ("predictor", "input"),
            "gain": ("predictor",),
            "bias": ("predictor",),
        }
        if self.noise in NOISE_DIMS:
            dims |= dict.fromkeys(("raw_noise", "raw_start_noise"), NOISE_DIMS[self.noise])
        if self.config["decay_per_latent"]:
            dims["log_rate"] = ("latent",)
        return dims

    def start_from(self, batch: Batch) -> None:
        """Also the loading, see `start_loading`."""
        super().start_from(batch)
        if not self.is_full_rank and self._reads_latents:
            start_loading(self.loading, self.bias, self.observation, self._linked, batch)

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """The bias, through the inverse of the link."""
        if self.link == "softplus":
            mean = predictors.exp()
            read = mean + torch.log(-torch.expm1(-mean))
            predictors = torch.where(self.is_log_mean, read, predictors)
        self.bias.copy_(predictors)

    # ------------------------------------------------------------------ the four densities

    def initial(self, start: Tensor | None, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """N(mu_0 + P_m W_u v_1, S_0)."""
        pushed = functional.linear(inputs, self._inputs_to_latents())
        return self._noisy(self.start_mean + pushed, self.process_noise()[0])

    def transition(self, state: LowRankState, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """N(a z + n phi(m z + W_u v), S)."""
        own_step = self.has_own("mean_step", "currents", "activate", of=LowRankRNN)
        if own_step and not self.is_full_rank:
            mean = low_rank_step(*self._step_of(state))
        else:
            mean = self.mean_step(state)
        return self._noisy(mean, self.process_noise()[1])

    def initial_state(
        self,
        start: Tensor | None,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LowRankState:
        """The state of the first bin: v_1 = i_1."""
        return LowRankState(z, inputs, inputs)

    def advance(
        self,
        state: LowRankState,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LowRankState:
        """The state of a later bin."""
        v = torch.lerp(state.i, state.v, self.input_decay()) if self.filters_inputs else inputs
        return LowRankState(z, v, inputs)

    def emission(self, state: LowRankState) -> Distribution:
        """The observation model of the readout."""
        return self.observation(self._linked(self._read(state)))

    # ------------------------------------------------------------------ their parts

    @property
    def path_is_markov(self) -> bool:
        """True, unless a subclass overrides the update of the state: such a class sets it to True
        if its state still consists of z and the inputs alone.
        """
        return self.has_own("initial_state", "advance", of=LowRankRNN)

    def has_gaussian_steps(self) -> bool:
        """Whether z_t is drawn around a mean with the Gaussian noise of `process_noise`."""
        return self.noise_df is None and self.has_own(*STEP, of=LowRankRNN)

    def states(
        self,
        start: Tensor | None,
        path: Float[Tensor, "*left time dim"],
        inputs: Float[Tensor, "trial time input"],
    ) -> LowRankState:
        """The states along a path; v depends on the inputs alone."""
        if not self.has_own("initial_state", "advance", of=LowRankRNN):
            return super().states(start, path, inputs)
        return LowRankState(path, self.filtered(inputs), inputs)

    def filtered(
        self, inputs: Float[Tensor, "*batch time input"], before: LowRankState | None = None
    ) -> Float[Tensor, "*batch time input"]:
        """The inputs v of all bins, continued from the state ``before`` if it is given."""
        if not self.filters_inputs:
            return inputs
        decay = self.input_decay()
        v = [inputs[..., 0, :] if before is None else torch.lerp(before.i, before.v, decay)]
        for t in range(1, inputs.shape[-2]):
            v.append(torch.lerp(inputs[..., t - 1, :], v[-1], decay))
        return torch.stack(v, -2)

    def decay(self) -> Float[Tensor, " latent_or_one"]:
        """The decay a = exp(-exp(theta)), in (0, 1)."""
        return self.hoisted("decay", lambda: torch.exp(-torch.exp(self.log_rate)))

    def input_decay(self) -> Float[Tensor, ""]:
        """The decay of the inputs' filter."""
        return self.hoisted("input_decay", lambda: torch.exp(-torch.exp(self.input_log_rate)))

    def activate(self, currents: Float[Tensor, "*left unit"]) -> Float[Tensor, "*left unit"]:
        """The rates phi(currents)."""
        return ACTIVATIONS[self.activation].rates(currents, self.step_threshold())

    def slope(self, currents: Float[Tensor, "*left unit"]) -> Float[Tensor, "*left unit"]:
        """The derivative of `activate`."""
        return ACTIVATIONS[self.activation].slope(currents, self.step_threshold())

    def currents(self, state: LowRankState) -> Float[Tensor, "*left unit"]:
        """M z + W_u v; in the full-rank network z itself."""
        if self.is_full_rank:
            return state.z
        currents = functional.linear(state.z, self.m)
        if state.v.shape[-1]:
            currents = currents + functional.linear(state.v, self.input_weights)
        return currents

    def mean_step(self, state: LowRankState) -> Float[Tensor, "*left latent"]:
        """The mean of the next state, a z + n phi(m z + W_u v)."""
        rates = self.activate(self.currents(state))
        weights = self.recurrent if self.is_full_rank else self.n
        moved = torch.addcmul(functional.linear(rates, weights), self.decay(), state.z)
        if not self.is_full_rank:
            return moved
        return moved + functional.linear(state.v, self.input_weights)

    def mean_step_jacobian(self, state: LowRankState) -> Float[Tensor, "*left latent latent"]:
        """The derivative of `mean_step` by z: diag(a) + n diag(phi') m."""
        slope = self.slope(self.currents(state))[..., None, :]
        J = slope * self.recurrent if self.is_full_rank else (slope * self.n) @ self.m
        J.diagonal(dim1=-2, dim2=-1).add_(self.decay())
        return J

    def _step_of(self, state: LowRankState) -> tuple[Any, ...]:
        """The arguments of `low_rank_step`."""
        drive = functional.linear(state.v, self.input_weights) if state.v.shape[-1] else None
        return state.z, drive, self.m, self.n, self.step_threshold(), self.decay(), self.activation

    def step_threshold(self) -> Float[Tensor, " unit"] | None:
        """h, None for activations without a threshold."""
        return self.threshold if ACTIVATIONS[self.activation].has_threshold else None

    def process_noise(self) -> tuple[Covariance, Covariance]:
        """S_0 and S."""
        return self.hoisted(
            "process_noise",
            lambda: (
                covariance_of(self.raw_start_noise, self.noise, len(self.start_mean)),
                covariance_of(self.raw_noise, self.noise, len(self.start_mean)),
            ),
        )

    def linear_emission(self, batch: Batch, before: LowRankState | None = None) -> LinearEmission:
        """The observation, or its gaussian part, as a linear function of z, for `OptimalFactor`;
        the bins follow the state ``before`` if it is given.

        Raises:
            ValueError: if there is none, or a subclass overrides it.
        """
        if not self.has_own(*EMISSION, of=LowRankRNN):
            raise ValueError(
                "the optimal proposal follows from LowRankRNN's own emission, but one of"
                f" {', '.join(EMISSION)} of {type(self).__name__} is overridden: build the model"
                " with proposal='encoder' or 'bootstrap', or set model.proposal to a Proposal of"
                " your own"
            )
        return self._linear_emission(self.filtered(self.known_inputs(batch), before))

    def _gaussian_part(self) -> GaussianPart | None:
        """The part of the observation that is Gaussian given a linear readout, if any."""
        if self.readout_from == "rates":
            return None
        return self.hoisted("gaussian_part", self.observation.gaussian_part)

    def _linear_emission(self, v: Float[Tensor, "*left input"]) -> LinearEmission:
        part = self._gaussian_part()
        if part is None:
            raise ValueError(
                "the optimal proposal needs a gaussian observation read from latents or currents"
            )
        rows = part.predictors
        offset = self.bias[rows] + functional.linear(v, self._input_loading()[rows])
        return LinearEmission(
            part.unit[:, None] * self._loading()[rows],
            torch.addcmul(part.offset, part.unit, offset),
            part.scale.square(),
            part.columns,
        )

    def log_likelihood(
        self,
        state: LowRankState,
        x: Float[Tensor, "trial neuron"],
        scored: Tensor,
        scored_weight: float = 1.0,
    ) -> Float[Tensor, "*left"]:
        """Log p of the scored entries of one bin.

        Of a linear-Gaussian observation scored in full, in the dimensions of z: log p(x | z) =
        constant + (z - s)' h - (z - s)' J (z - s) / 2, with s the most likely z: what has the size
        of x is computed per trial and not per particle.
        """
        if not self.has_own("emission", of=LowRankRNN):
            return super().log_likelihood(state, x, scored, scored_weight)
        if isinstance(self.observation, Poisson) and self.readout_from != "rates":
            counted = torch.where(scored, x, self.observation.filler)
            weight = scored.to(x.dtype) * scored_weight
            loading, offset = self.affine_readout(state.v)
            return affine_poisson_log_prob(
                state.z, loading, offset, counted, weight, self.rate_link()
            )
        is_linear = self.readout_from != "rates" and self.observation.is_gaussian()
        # A GPU computes the terms of every entry faster than it answers whether all are scored.
        if not is_linear or scored.is_cuda or not scored.all():
            return super().log_likelihood(state, x, scored, scored_weight)
        seen = self._quadratic_likelihood(state.v, x)
        deviation = state.z - seen.centre
        return log_factor(deviation, seen.slope, seen.curvature, seen.constant) * scored_weight

    def _quadratic_likelihood(
        self, v: Float[Tensor, "*left input"], x: Float[Tensor, "*left neuron"]
    ) -> GaussianWeights:
        """Log p(x | z) of a linear-Gaussian observation."""
        emission = self._linear_emission(v)
        error, C, r = x - emission.offset, emission.matrix, emission.variance
        J = self.hoisted("observed_precision", lambda: C.mT @ (C / r[:, None]))
        inverse = self.hoisted("regularised_inverse", lambda: regularised_inverse(J))
        centre = likelihood_mode((error / r) @ C, inverse)
        residual = error - centre @ C.mT
        constant = -0.5 * (residual.square() / r + r.log() + LOG_2PI).sum(-1)
        return GaussianWeights((residual / r) @ C, J, constant, centre)

    def fused_vsmc(
        self, observed: Observed, num_particles: int, resample: Resample
    ) -> Bound | None:
        """The bound by `pyrodyn.kernels.low_rank_vsmc`: of low-rank networks with Gaussian noise,
        for the optimal proposal of a Gaussian observation whose scored entries are all visible, and
        for Poisson counts with an encoder and an affine readout.
        """
        fused = None if type(self.proposal) is Bootstrap else self._fused(observed)
        if fused is None:
            return None
        return Bound(*low_rank_vsmc(*fused, self.activation, num_particles, resample))

    def fused_filter(
        self, observed: Observed, num_particles: int, resample: Resample, ess_threshold: float
    ) -> Filtered | None:
        """The filter by `pyrodyn.kernels.low_rank_filter`: where there is a fused bound, and for
        the bootstrap proposal of Poisson counts, or of a Gaussian observation scored in full, with
        an affine readout.
        """
        fused = self._fused(observed)
        if fused is None:
            return None
        bins = low_rank_filter(*fused, self.activation, num_particles, resample, ess_threshold)
        v, i = (each.transpose(0, 1) for each in (self.filtered(observed.inputs), observed.inputs))
        return Filtered(bins, LowRankState(bins.z.permute(0, 3, 2, 1), v, i))

    def _fused(
        self, observed: Observed
    ) -> tuple[NetworkSteps, GaussianWeights | PoissonWeights] | None:
        """The steps and weights of particles for the kernels; None where they do not serve."""
        bypassed = ("emission", "log_likelihood", "mean_step", "currents", "activate")
        if self.is_full_rank or not self.has_gaussian_steps():
            return None
        if not self.has_own(*bypassed, of=LowRankRNN):
            return None
        encoding, proposal = observed.encoding, type(self.proposal)
        is_affine = self.readout_from != "rates"
        counts = isinstance(self.observation, Poisson) and is_affine
        is_exact = proposal is OptimalFactor and encoding.is_exact
        is_bootstrap = proposal is Bootstrap
        is_linear = (
            is_bootstrap
            and is_affine
            and self.observation.is_gaussian()
            and bool(observed.scored.all())
        )
        is_counted = counts and (is_bootstrap or proposal is EncoderFactor)
        if not (is_exact or is_linear or is_counted):
            return None
        v, noises = self.filtered(observed.inputs), self.process_noise()
        num_trials, num_bins = v.shape[:2]
        if is_bootstrap:
            first_factor, later_factor = (noise.factor for noise in noises)
            factor = torch.stack([first_factor, *[later_factor] * (num_bins - 1)])
            drawn = None, None, factor.expand(num_trials, *factor.shape)
        else:
            first, later = encoding.first, encoding.later
            drawn = (
                encoding.of_all_bins(first.gain, later.gain, 2),
                encoding.of_all_bins(first.shift, later.shift, 1),
                encoding.of_all_bins(first.covariance.factor, later.covariance.factor, 2),
            )
        steps = NetworkSteps(
            self.initial(None, observed.inputs[:, 0]).mean,
            functional.linear(v, self.input_weights) if v.shape[-1] else None,
            self.m,
            self.n,
            self.step_threshold(),
            self.decay(),
            *drawn,
        )
        if is_linear:
            seen = self._quadratic_likelihood(v, observed.x)
            slope, curvature, constant = (
                field * observed.scored_weight
                for field in (seen.slope, seen.curvature, seen.constant)
            )
            curvature = curvature.expand(num_trials, num_bins, *curvature.shape)
            return steps, GaussianWeights(slope, curvature, constant, seen.centre)
        if is_exact:
            return steps, GaussianWeights(
                encoding.of_all_bins(first.slope, later.slope, 1),
                encoding.of_all_bins(first.curvature, later.curvature, 2),
                encoding.of_all_bins(first.constant, later.constant, 0),
                later.centre,
            )
        weight = observed.scored.to(observed.x.dtype) * observed.scored_weight
        x = torch.where(observed.scored, observed.x, self.observation.filler)
        constant, whitening = -(weight * torch.lgamma(x + 1)).sum(-1), None
        if not is_bootstrap:
            first_ratio, later_ratio = (
                posterior.covariance.half_log_det - noise.half_log_det
                for posterior, noise in zip((first, later), noises, strict=True)
            )
            constant = encoding.of_all_bins(first_ratio, later_ratio, 0) + constant
            whitening = torch.stack([noise.inverse for noise in noises])
        return steps, PoissonWeights(
            *self.affine_readout(v), whitening, constant, x, weight, self.rate_link()
        )

    def linear_gaussian(self, inputs: Float[Tensor, "trial time input"]) -> LinearGaussian:
        """The matrices of a network without kinks whose observation is Gaussian::

            A = a + n m,    b_1 = mu_0 + P_m W_u v_1,    b_t = n W_u v_{t-1}

        Raises:
            ValueError: for any other network, naming the option that is in the way.
        """
        steps = ("mean_step", "currents", "activate", "states", "log_likelihood")
        obstacles = {
            f"activation={self.activation!r} (not 'identity')": self.activation != "identity",
            f"noise_df={self.noise_df}": self.noise_df is not None,
            "readout='rates'": self.readout_from == "rates",
            "observation other than gaussian": not self.observation.is_gaussian(),
            "a density that a subclass overrides": not self.has_own(
                *STEP, *steps, "emission", of=LowRankRNN
            ),
        }
        found = [name for name, is_there in obstacles.items() if is_there]
        if found:
            raise ValueError(
                f"this {type(self).__name__} has no exact inference, because of its"
                f" {' and '.join(found)}: take particles instead, by VSMC, particle_filter or"
                " method='smoother'"
            )
        v = self.filtered(inputs)
        drive = functional.linear(v, self.input_weights)
        weights = self.recurrent if self.is_full_rank else self.n @ self.m
        later = drive if self.is_full_rank else functional.linear(drive, self.n)
        first = self.start_mean + functional.linear(v[:, :1], self._inputs_to_latents())
        emission = self._linear_emission(v)
        return LinearGaussian(
            torch.diag(self.decay().expand(len(self.start_mean))) + weights,
            torch.cat([first, later[:, :-1]], 1),
            *self.process_noise(),
            emission.matrix,
            emission.offset,
            emission.variance,
        )

    def _noisy(self, mean: Float[Tensor, "*left latent"], covariance: Covariance) -> Distribution:
        if self.noise_df is None:
            return SharedNormal(mean, covariance)
        return SharedStudentT(mean, covariance, self.noise_df)

    def _inputs_to_latents(self) -> Float[Tensor, "latent input"]:
        """P_m W_u."""
        if self.is_full_rank:
            return self.input_weights
        if not self.input_weights.shape[1]:
            return self.input_weights.new_zeros(len(self.start_mean), 0)
        return self.hoisted("inputs_to_latents", self._projected_inputs)

    def _projected_inputs(self) -> Float[Tensor, "latent input"]:
        if not self.m.is_cuda:  # where m may lack full rank
            return torch.linalg.lstsq(self.m, self.input_weights).solution
        # By QR: the gradient of lstsq is computed by an SVD, for which a GPU must be waited for.
        Q, R = torch.linalg.qr(self.m)
        return torch.linalg.solve_triangular(R, Q.mT @ self.input_weights, upper=True)

    @property
    def _reads_latents(self) -> bool:
        return self.readout_from in ("latents", "latents_and_inputs")

    def _loading(self) -> Float[Tensor, "predictor latent"]:
        """The matrix by which the readout multiplies z."""
        if self._reads_latents:
            return self.loading
        eye = torch.eye(self.config["num_units"], device=self.gain.device, dtype=self.gain.dtype)
        units = eye if self.is_full_rank else self.m
        return self.gain[:, None] * units[self.neuron_of_predictor]

    def _input_loading(self) -> Float[Tensor, "predictor input"]:
        """The matrix by which the readout multiplies v."""
        if self.readout_from == "latents_and_inputs":
            return self.input_loading
        if self.readout_from == "currents" and not self.is_full_rank:
            return self.gain[:, None] * self.input_weights[self.neuron_of_predictor]
        return self.input_weights.new_zeros(len(self.bias), self.input_weights.shape[1])

    def affine_readout(
        self, v: Float[Tensor, "*left input"]
    ) -> tuple[Float[Tensor, "predictor latent"], Float[Tensor, "*left_or_none predictor"]]:
        """The matrix and the offset of a readout that is affine in z; the offset includes the
        contribution of the inputs.
        """
        if not v.shape[-1]:
            return self._loading(), self.bias
        return self._loading(), self.bias + functional.linear(v, self._input_loading())

    def rate_link(self) -> str:
        """The name of the link in `pyrodyn.kernels.affine_poisson`."""
        return "exp" if self.link == "canonical" else self.link

    def _read(self, state: LowRankState) -> Float[Tensor, "*left predictor"]:
        match self.readout_from:
            case "latents":
                return functional.linear(state.z, self.loading, self.bias)
            case "latents_and_inputs":
                from_inputs = functional.linear(state.v, self.input_loading)
                return functional.linear(state.z, self.loading, self.bias) + from_inputs
            case "currents":
                units = self.currents(state)
            case _:
                units = self.activate(self.currents(state))
        if len(self.bias) > units.shape[-1]:  # neurons with two predictors
            units = units.index_select(-1, self.neuron_of_predictor)
        return torch.addcmul(self.bias, self.gain, units)

    def _linked(self, read: Float[Tensor, "*left predictor"]) -> Float[Tensor, "*left predictor"]:
        """The predictors: the readout, or its log softplus where a predictor is a log mean."""
        if self.link == "canonical":
            return read
        return torch.where(self.is_log_mean, log_softplus(read), read)

    # ------------------------------------------------------------------ analysis

    def dynamics_inputs(
        self, states: LowRankState, inputs: Float[Tensor, "trial time input"]
    ) -> Float[Tensor, "trial step input"]:
        """The inputs v of the bin from which a step leads on."""
        return states.v[:, :-1]

    def dynamics(self) -> Dynamics:
        """The map a z + n phi(m z + W_u v), driven by v, the filtered inputs if the network filters
        them.
        """
        return Dynamics(
            step=lambda z, v: self.mean_step(LowRankState(z, v, v)),
            state_dim=len(self.start_mean),
            input_dim=self.input_weights.shape[1],
            bin_width=self.bin_width,
            step_derivative=lambda z, v: self.mean_step_jacobian(LowRankState(z, v, v)),
        )

    @torch.no_grad()
    def orthonormal(self) -> "LowRankRNN":
        """The same model in the basis in which m has orthonormal columns and J = m n is a singular
        value decomposition::

            z' = T z,  m' = m T^-1 = U,  n' = T n = S V',   J = U S V'

        Noise, initial state, readout and the encoder's factors are transformed too, so that the
        distribution of x is unchanged. Signs are fixed by the largest entry of each column of m'.

        Raises:
            ValueError: for models whose form this change of basis would not preserve, and
                subclasses that override a density.
        """
        if not self.has_own(*STEP, "emission", of=LowRankRNN):
            raise ValueError(
                f"{type(self).__name__} overrides a density of LowRankRNN, which may not keep its"
                " form in another basis"
            )
        if self.is_full_rank or len(self.log_rate) > 1:
            raise ValueError(
                "only a low-rank network whose latents share one decay can change its basis"
            )
        Q, R = torch.linalg.qr(self.m)
        U, S, V = torch.linalg.svd(R @ self.n, full_matrices=False)
        largest = (Q @ U).abs().argmax(0)
        signs = (Q @ U).gather(0, largest[None])[0].sign()
        U, V = U * signs, V * signs[:, None]
        T = U.mT @ R
        back = torch.linalg.inv(T)
        start_noise, noise = self.process_noise()
        moved = type(self)(**{**self.config, "noise": "full"}).to(self.m)
        moved.proposal = copy.deepcopy(self.proposal)
        moved.load_state_dict(
            {
                **self.state_dict(),
                "m": Q @ U,
                "n": S[:, None] * V,
                "start_mean": T @ self.start_mean,
                "raw_noise": raw_of(T @ noise.matrix @ T.mT),
                "raw_start_noise": raw_of(T @ start_noise.matrix @ T.mT),
                **({"loading": self.loading @ back} if self._reads_latents else {}),
                **(
                    {"proposal.basis": self.proposal.basis @ back}
                    if isinstance(self.proposal, EncoderFactor)
                    else {}
                ),
            }
        )
        moved.record = {**self.record}
        return moved.train(self.training)


def log_softplus(y: Float[Tensor, "*left"]) -> Float[Tensor, "*left"]:
    """Log log(1 + e^y)."""
    return softplus_and_log(y)[1]


def _check(config: dict[str, Any]) -> None:
    """Refuse invalid sizes and options."""
    check_config(config, ("input_dim",))
    for name, allowed in {
        "activation": ACTIVATIONS,
        "noise": NOISES,
        "readout": READOUTS,
        "proposal": PROPOSALS,
        "link": ("canonical", "softplus"),
    }.items():
        if config[name] not in allowed:
            raise ValueError(
                f"{name}={config[name]!r} is unknown; it is one of {', '.join(allowed)}"
            )
    df = config["noise_df"]
    if df is not None and not 2 < df < math.inf:
        raise ValueError(
            f"noise_df={df} must exceed 2, or the noise has no variance; None is Gaussian"
        )
    one_to_one = config["readout"] in ("currents", "rates")
    if one_to_one and config["num_units"] != config["num_neurons"]:
        raise ValueError(
            f"readout={config['readout']!r} gives every neuron a unit of its own, but there are"
            f" {config['num_units']} units and {config['num_neurons']} neurons"
        )
    if not config["is_full_rank"] and config["latent_dim"] > config["num_units"]:
        raise ValueError(
            f"latent_dim={config['latent_dim']} is the rank of {config['num_units']} units and"
            " cannot exceed them"
        )


def _check_observation(config: dict[str, Any], observation: Observation) -> None:
    """Refuse options that do not fit the observation model."""
    if config["link"] == "softplus" and not observation.predictors().is_log_mean.any():
        raise ValueError(
            f"link='softplus' is for observations with a log mean, not for"
            f" {config['observation']!r}"
        )
    linear = observation.gaussian_part() is not None and config["readout"] != "rates"
    if config["proposal"] == "optimal" and not (linear and config["noise_df"] is None):
        raise ValueError(
            "the optimal proposal needs a gaussian observation read from latents or currents, and"
            " gaussian process noise; take proposal='encoder' or 'bootstrap'"
        )
