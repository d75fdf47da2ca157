"""LFADS: latent factor analysis via dynamical systems.

Generative program, per trial::

    g0  ~ N(mu_0, sigma_0^2)                           initial condition
    u_t ~ N(alpha u_{t-1}, nvar)                       inferred inputs, alpha = exp(-1/tau)
    g_0 = clip(W_0 g0 + b_0)                           initial state of the generator
    g_t = GRU_gen([u_t, i_t], g_{t-1})                 i_t: known external inputs
    f_t = F g_t                                        factors; rows of F have unit length
    x_t ~ p(x | W f_t + b)                             observation, Poisson(exp(.)) by default

Guide::

    q(g0)         = N(m(e), s(e))                      e: last states of a bidirectional GRU
    e_t           = [fwd_{t-lag}, bwd_{t+lag}]         states of a second bidirectional GRU
    c_t           = GRU_con([e_t, f_{t-1}], c_{t-1})   controller
    q(u_t | u_<t) = N(m(c_t), s(c_t))                  autoregressive through the generator

q(u) is one site: standard normals transformed by the closed loop of controller and generator. The
density of any path u follows from the teacher-forced loop with log|det J| = sum_t log s_t. In
forecast bins u follows its prior, so these bins add no KL.

Sources: Sussillo et al. 2016 (arXiv 1608.06315), Pandarinath et al. 2018 (Nat. Methods 15:805).
Departures: GRUs apply the reset gate after the recurrent product, as `torch.nn.GRU` does; encoders
have initial state zero; u_1 has the stationary distribution of the AR(1) prior; scales are exp(.)
plus a floor.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import blocks, measured
from pyrodyn.distributions.autoregressive import Autoregressive
from pyrodyn.distributions.paths import LastDraw, StatePath
from pyrodyn.distributions.student_t import StudentT
from pyrodyn.kernels.closed_loop import ClosedLoopWeights, roll_closed_loop
from pyrodyn.kernels.gru import GRUWeights, gru_step
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.latent_dynamics import check_config
from pyrodyn.models.observations import ObservationSpec, observe
from pyrodyn.models.observations import observation as observation_model
from pyrodyn.models.rollout_cache import RolloutCache
from pyrodyn.models.state_space import Distribution, Proposal, StateSpaceModel, empty_distribution
from pyrodyn.nn.recurrence import gru_jacobian, roll, roll_both_ways

SCALE_FLOOR = 1e-2
"""Smallest standard deviation of the guide (variance 1e-4, Sussillo et al. 2016)."""

FEWEST_FOR_INPUTS, NUM_INPUTS = 50_000, 2
"""Number of observations (measured bins of neurons) from which `LFADS.for_recording` infers inputs
unasked, and how many inputs.
"""

MAY_BE_ZERO = ("input_dim", "inferred_input_dim", "initial_condition_bins", "lag")
"""Sizes that may be 0, which leaves out a part of the model."""


class LFADSState(NamedTuple):
    """State of LFADS: the latent variable and the deterministic state of the generator.

    Attributes:
        u: inferred inputs.
        g: the generator's state.
    """

    u: Float[Tensor, "... inferred_input"]
    g: Float[Tensor, "... generator"]


class LFADS(StateSpaceModel):
    """LFADS for one recording. The module's docstring has the equations.

    Args:
        num_neurons: number of observed neurons and channels.
        input_dim: number of known external inputs.
        inferred_input_dim: dimension of u; 0 leaves the controller out, so that the dynamics are
            autonomous. `for_recording` takes 2 for recordings of `FEWEST_FOR_INPUTS` observations
            or more, and otherwise 0.
        factor_dim: dimension of f.
        generator_dim: dimension of g.
        initial_condition_dim: dimension of the site ``g0``.
        encoder_dim: hidden units per direction of the initial-condition encoder.
        controller_encoder_dim: hidden units per direction of the controller's encoder.
        controller_dim: dimension of c.
        lag: distance in bins between the bin of u_t and the encoder states that the controller
            reads for it, in both directions.
        initial_condition_bins: number of leading bins that only the initial-condition encoder
            reads; the generator starts after them. If 0, this encoder reads the whole trial.
        input_prior: ``"ar1"``, ``"white"`` (alpha = 0) or ``"student_t"`` (AR(1) with heavy-tailed
            increments).
        observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
            `ObservationSpec`).
        dropout: dropout probability at the inputs and outputs of the encoders. There is none inside
            the closed loop, since the density of u would then depend on the mask.
        state_clip: bound on the absolute value of generator states.
        recurrent_precision: precision of a N(0, 1/precision) prior on the recurrent weights of
            generator and controller, which is equivalent to an L2 penalty; 0 for no prior.
    """

    initial_condition_site = "g0"
    path_is_markov = False
    guide_parameters = (
        "encoder.*",
        "g0_posterior.*",
        "controller*",
        "u_posterior.*",
        "proposal.*",
    )
    site_dims: ClassVar[dict[str, tuple[str, ...]]] = {
        "g0": ("initial_condition",),
        "u": ("time", "inferred_input"),
        "factors": ("time", "factor"),
        "rates": ("time", "neuron"),
        "x": ("time", "neuron"),
    }

    def __init__(
        self,
        num_neurons: int,
        *,
        input_dim: int = 0,
        inferred_input_dim: int = 0,
        factor_dim: int = 20,
        generator_dim: int = 100,
        initial_condition_dim: int = 64,
        encoder_dim: int = 64,
        controller_encoder_dim: int = 64,
        controller_dim: int = 64,
        lag: int = 1,
        initial_condition_bins: int = 0,
        input_prior: str = "ar1",
        observation: ObservationSpec = "poisson",
        dropout: float = 0.0,
        state_clip: float = 5.0,
        recurrent_precision: float = 0.0,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        check_config(config, MAY_BE_ZERO)
        if recurrent_precision < 0 or state_clip < 1:
            raise ValueError(
                f"recurrent_precision={recurrent_precision} must be at least 0 and"
                f" state_clip={state_clip} at least 1, the bound of a GRU's states without"
                " clipping"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be a probability below 1")
        self.config: dict[str, Any] = config
        self.first_bin = initial_condition_bins
        self.inferred_input_dim = inferred_input_dim
        self.path_site = "u" if inferred_input_dim else None
        self.lag = lag
        self.state_clip = state_clip
        self.recurrent_precision = recurrent_precision

        # Generative program
        self.g0_mean = nn.Parameter(torch.zeros(initial_condition_dim))
        self.g0_scale: Tensor
        self.register_buffer("g0_scale", torch.tensor(0.1).sqrt())
        self.generator_start = nn.Linear(initial_condition_dim, generator_dim)
        self.generator = nn.GRU(
            max(1, inferred_input_dim + input_dim), generator_dim, batch_first=True
        )
        if (
            inferred_input_dim + input_dim == 0
        ):  # the input is zero, so these weights have no gradient
            self.generator.weight_ih_l0.requires_grad_(False)
        self.factor_weight = nn.Parameter(nn.Linear(generator_dim, factor_dim).weight.detach())
        self.observation = observation_model(observation, num_neurons)
        self.readout = nn.Linear(factor_dim, self.observation.predictor_dim)

        # Guide
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.GRU(num_neurons, encoder_dim, batch_first=True, bidirectional=True)
        self.g0_posterior = nn.Linear(2 * encoder_dim, 2 * initial_condition_dim)
        if inferred_input_dim:
            self.input_prior = InferredInputPrior(inferred_input_dim, input_prior)
            self.controller_encoder = nn.GRU(
                num_neurons, controller_encoder_dim, batch_first=True, bidirectional=True
            )
            self.controller = nn.GRU(
                2 * controller_encoder_dim + factor_dim, controller_dim, batch_first=True
            )
            self.controller_start = nn.Parameter(torch.zeros(controller_dim))
            self.u_posterior = nn.Linear(controller_dim, 2 * inferred_input_dim)
        self._initialise_guide_at_prior()
        self.proposal = ControllerProposal()
        self.rollout_cache = RolloutCache()

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of the readout and of the initial condition."""
        return {
            **super().parameter_dims(),
            "g0_mean": ("initial_condition",),
            "generator_start.weight": ("generator", "initial_condition"),
            "generator_start.bias": ("generator",),
            "factor_weight": ("factor", "generator"),
            "readout.weight": ("predictor", "factor"),
            "readout.bias": ("predictor",),
            "input_prior.log_tau": ("inferred_input",),
            "input_prior.log_nvar": ("inferred_input",),
            "input_prior.log_df": ("inferred_input",),
        }

    @classmethod
    def sizes_for(cls, recording: xr.Dataset, sizes: dict[str, Any]) -> dict[str, Any]:
        """Inferred inputs if there are data enough for a controller to learn from, unless a
        subclass has a guide of its own.
        """
        num_observations = sum(int(measured(recording, b).sum()) for b in blocks(recording))
        infers = num_observations >= FEWEST_FOR_INPUTS and cls.guide is LFADS.guide
        return {"inferred_input_dim": NUM_INPUTS if infers else 0, **sizes}

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """Initialise the bias of the readout; the factors are centred at 0."""
        self.readout.bias.copy_(predictors)

    # ------------------------------------------------------------------ the densities of one bin

    def initial_condition(self) -> Distribution:
        """p(g0)."""
        return dist.Normal(self.g0_mean, self.g0_scale, validate_args=False).to_event(1)

    def initial(
        self,
        start: Tensor | None,
        inputs: Float[Tensor, "*shared input"],
    ) -> Distribution:
        """p(u_1), stationary; an empty distribution without inferred inputs."""
        assert start is not None
        if not self.inferred_input_dim:
            return empty_distribution(start)
        return self.input_prior.first()

    def transition(self, state: LFADSState, inputs: Float[Tensor, "*shared input"]) -> Distribution:
        """p(u_t | u_{t-1}); an empty distribution without inferred inputs."""
        if not self.inferred_input_dim:
            return empty_distribution(state.g)
        return self.input_prior.next(state.u)

    def initial_state(
        self,
        start: Tensor | None,
        z: Float[Tensor, "*left inferred_input"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LFADSState:
        """(u_1, g_1), from the clipped g_0."""
        assert start is not None
        return LFADSState(z, self._generator_step(self.first_generator_state(start), z, inputs))

    def advance(
        self,
        state: LFADSState,
        z: Float[Tensor, "*left inferred_input"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LFADSState:
        """(u_t, g_t)."""
        return LFADSState(z, self._generator_step(state.g, z, inputs))

    def states(
        self,
        start: Tensor | None,
        path: Float[Tensor, "*left time inferred_input"],
        inputs: Float[Tensor, "trial time input"],
    ) -> LFADSState:
        """The states of all bins given a path of inferred inputs."""
        if not self.has_own("initial_state", "advance", of=LFADS):
            return super().states(start, path, inputs)
        assert start is not None
        u = path if self.inferred_input_dim else None
        return LFADSState(path, self.generate(start, u, inputs))

    def emission(self, state: LFADSState) -> Distribution:
        """p(x_t | f_t)."""
        return self.observation(self.readout(self.factors(state.g)))

    def _generator_step(
        self,
        g: Float[Tensor, "*left generator"],
        u: Float[Tensor, "*left inferred_input"],
        inputs: Float[Tensor, "*shared input"],
    ) -> Float[Tensor, "*left generator"]:
        return gru_step(*self._drive_and_product(g, u, inputs), g)

    def _drive_and_product(self, g: Tensor, u: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        weights = GRUWeights.of(self.generator)
        known = inputs.expand(*g.shape[:-1], inputs.shape[-1])
        driven = torch.cat([u, known], -1)
        if driven.shape[-1] == 0:  # a GRU without inputs reads a zero
            driven = g.new_zeros(*g.shape[:-1], 1)
        drive = functional.linear(driven, weights.drive, weights.bias)
        product = functional.linear(g, weights.recurrent, weights.recurrent_bias)
        return drive, product

    def dynamics(self) -> Dynamics:
        """The generator, driven by inferred and known inputs [u, i]."""
        return Dynamics(
            step=lambda g, driven: self._generator_step(g, driven, driven[..., :0]),
            state_dim=self.config["generator_dim"],
            input_dim=self.inferred_input_dim + self.config["input_dim"],
            bin_width=self.bin_width,
            step_derivative=lambda g, driven: gru_jacobian(
                *self._drive_and_product(g, driven, driven[..., :0]),
                g,
                self.generator.weight_hh_l0,
            ),
        )

    def dynamics_state(self, state: LFADSState) -> Float[Tensor, "*left generator"]:
        """The generator's state."""
        return state.g

    # ------------------------------------------------------------------ generative program

    def model(self, batch: Batch) -> None:
        """Sites ``g0``, ``u`` (if there are inferred inputs), ``factors``, ``rates``, ``x``."""
        if not self._has_own_loop() or not self.has_own("initial", "emission", of=LFADS):
            return super().model(batch)
        for name, log_prob in self.weight_priors().items():
            pyro.factor(name, log_prob)
        num_bins = batch.num_bins - self.first_bin
        with self.trials(batch):
            g0 = pyro.sample("g0", self.initial_condition())
            u = pyro.sample("u", self.input_prior(num_bins)) if self.inferred_input_dim else None
            generated = self.generate_factors(g0, u, batch.inputs[:, self.first_bin :])
            factors = pyro.deterministic("factors", generated, event_dim=2)
            with poutine.scale(scale=batch.scored_weight):
                observe(
                    self.observation(self.readout(factors)),
                    None if batch.x is None else batch.x[:, self.first_bin :],
                    batch.scored[:, self.first_bin :],
                    self.observation.filler,
                )
        return None

    def record_deterministic(self, states: LFADSState) -> None:
        """The factors."""
        pyro.deterministic("factors", self.factors(states.g), event_dim=2)

    def _has_own_loop(self) -> bool:
        """Whether neither the generator nor the prior of u is overridden, so that `ControllerPath`
        agrees with the densities.
        """
        has_own_prior = not self.inferred_input_dim or type(self.input_prior) is InferredInputPrior
        used = ("transition", "initial_state", "advance", "factors")
        return has_own_prior and self.has_own(*used, of=LFADS)

    def generate(
        self,
        g0: Float[Tensor, "*batch initial_condition"],
        u: Float[Tensor, "*batch time inferred_input"] | None,
        inputs: Float[Tensor, "trial time input"],
    ) -> Float[Tensor, "*batch time generator"]:
        """Generator states g_1 ... g_T."""
        return roll(self.generator, _driving_inputs(u, inputs, g0), self.first_generator_state(g0))

    def generate_factors(
        self,
        g0: Float[Tensor, "*batch initial_condition"],
        u: Float[Tensor, "*batch time inferred_input"] | None,
        inputs: Float[Tensor, "trial time input"],
    ) -> Float[Tensor, "*batch time factor"]:
        """Factors f_1 ... f_T.

        If the guide drew this path of u, its cached factors are used instead of rolling out again.
        """
        cached = self.rollout_cache.take((g0, u), inputs, self._generator_weights())
        return self.factors(self.generate(g0, u, inputs)) if cached is None else cached

    def first_generator_state(
        self, g0: Float[Tensor, "*batch initial_condition"]
    ) -> Float[Tensor, "*batch generator"]:
        """g_0, clipped. Later states stay within the same bound, since a step of a GRU is a convex
        combination of the state and a value within [-1, 1].
        """
        return self.generator_start(g0).clamp(-self.state_clip, self.state_clip)

    def factor_matrix(self) -> Float[Tensor, "factor generator"]:
        """F, with rows of unit length."""
        return functional.normalize(self.factor_weight, dim=-1)

    def factors(self, states: Float[Tensor, "*batch generator"]) -> Float[Tensor, "*batch factor"]:
        """The factors F g of generator states."""
        return functional.linear(states, self.factor_matrix())

    def weight_priors(self) -> dict[str, Float[Tensor, ""]]:
        """Log prior ``recurrent_weights`` of the recurrent weights, if their precision is not 0."""
        if self.recurrent_precision == 0:
            return {}
        recurrent = [self.generator.weight_hh_l0]
        if self.inferred_input_dim:
            recurrent.append(self.controller.weight_hh_l0)
        squares = sum(weight.square().sum() for weight in recurrent)
        return {"recurrent_weights": -0.5 * self.recurrent_precision * squares}

    def _generator_weights(self) -> tuple[Tensor, ...]:
        return (
            *self.generator.parameters(),
            *self.generator_start.parameters(),
            self.factor_weight,
        )

    # ------------------------------------------------------------------ guide

    @torch.no_grad()
    def _initialise_guide_at_prior(self) -> None:
        """Initialise the guide's scales at those of the prior, so that the initial KL is small."""
        heads = [(self.g0_posterior, self.g0_scale)]
        if self.inferred_input_dim:
            heads.append((self.u_posterior, self.input_prior.stationary_scale()))
        for head, scale in heads:
            _, log_scale = head.bias.chunk(2)
            log_scale.copy_((scale - SCALE_FLOOR).log())

    def guide(self, batch: Batch) -> None:
        """Sites ``g0`` and, if there are inferred inputs, ``u``."""
        if type(self.proposal) is not ControllerProposal or not self._has_own_loop():
            return super().guide(batch)
        seen = self.visible_to_encoders(batch)
        with self.trials(batch):
            g0 = pyro.sample("g0", self.posterior_g0(seen))
            if self.inferred_input_dim:
                pyro.sample("u", self.posterior_u(seen, g0, batch))
        return None

    def visible_to_encoders(self, batch: Batch) -> Float[Tensor, "trial seen neuron"]:
        """The input of the encoders: the bins before the horizon, with dropout.

        Raises:
            ValueError: if all visible bins belong to the initial-condition window.
        """
        if batch.horizon <= self.first_bin:
            raise ValueError(
                f"the encoder may read {batch.horizon} bins, of which the first {self.first_bin}"
                " only set the initial condition; forecast fewer bins or reduce"
                " initial_condition_bins"
            )
        return self.dropout(self.encoder_view(batch)[:, : batch.horizon])

    def posterior_g0(self, seen: Float[Tensor, "trial time neuron"]) -> TorchDistributionMixin:
        """q(g0), from the initial-condition bins if any, else from all bins seen."""
        window = seen[:, : self.first_bin] if self.first_bin else seen
        forward, backward = roll_both_ways(self.encoder, window)
        last = self.dropout(torch.cat([forward[:, -1], backward[:, 0]], -1))
        mean, log_scale = self.g0_posterior(last).chunk(2, -1)
        return dist.Normal(mean, log_scale.exp() + SCALE_FLOOR).to_event(1)

    def posterior_u(
        self,
        seen: Float[Tensor, "trial time neuron"],
        g0: Float[Tensor, "*batch initial_condition"],
        batch: Batch,
    ) -> "ControllerPath":
        """q(u | g0), the controller in closed loop with the generator."""
        encoded = self.encode_inputs(seen)
        return ControllerPath(self, encoded, batch.inputs[:, self.first_bin :], g0)

    def encode_inputs(
        self, seen: Float[Tensor, "trial time neuron"]
    ) -> Float[Tensor, "trial seen encoder"]:
        """The encoding e of the data, which the controller reads."""
        forward, backward = map(
            self.dropout, roll_both_ways(self.controller_encoder, seen[:, self.first_bin :])
        )
        # Both directions are shifted by `lag` bins, so that u_t cannot be copied from x_t.
        lag = min(self.lag, forward.shape[1])
        forward = functional.pad(forward, (0, 0, lag, -lag))
        backward = functional.pad(backward, (0, 0, -lag, lag))
        return torch.cat([forward, backward], -1)

    def cache_factors(
        self,
        g0: Float[Tensor, "*batch initial_condition"],
        u: Float[Tensor, "*batch time inferred_input"],
        inputs: Float[Tensor, "trial time input"],
        factors: Float[Tensor, "*batch time factor"],
    ) -> None:
        """Cache the factors of (g0, u, i) for the next call of `generate_factors`."""
        self.rollout_cache.keep(factors, (g0, u), inputs, self._generator_weights())


class InferredInputPrior(nn.Module):
    """p(u): AR(1), white or AR(1) with Student-t increments, with learned parameters.

    Initial values: tau = 10 bins, nvar = 0.1 (Pandarinath et al. 2018).
    """

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        if kind not in ("ar1", "white", "student_t"):
            raise ValueError(
                f"input_prior={kind!r} is unknown; it is 'ar1', 'white' or 'student_t'"
            )
        self.log_tau = nn.Parameter(torch.full((dim,), 10.0).log()) if kind != "white" else None
        self.log_nvar = nn.Parameter(torch.full((dim,), 0.1).log())
        # Degrees of freedom are 2 + exp(.), so that the variance is finite.
        self.log_df = nn.Parameter(torch.full((dim,), 3.0).log()) if kind == "student_t" else None

    def alpha(self) -> Float[Tensor, " dim"]:
        """exp(-1/tau), 0 for white noise."""
        if self.log_tau is None:
            return torch.zeros_like(self.log_nvar)
        return torch.exp(-torch.exp(-self.log_tau))

    def stationary_scale(self) -> Float[Tensor, " dim"]:
        """sqrt(nvar / (1 - alpha^2))."""
        return (0.5 * self.log_nvar).exp() / (1 - self.alpha() ** 2).sqrt()

    def first(self) -> Distribution:
        """p(u_1)."""
        return self._increment(torch.zeros_like(self.log_nvar), self.stationary_scale())

    def next(self, u: Float[Tensor, "*left dim"]) -> Distribution:
        """p(u_t | u_{t-1})."""
        return self._increment(self.alpha() * u, (0.5 * self.log_nvar).exp())

    def _increment(
        self, mean: Float[Tensor, "*left dim"], scale: Float[Tensor, " dim"]
    ) -> Distribution:
        df = self.degrees_of_freedom()
        if df is None:
            return dist.Normal(mean, scale, validate_args=False).to_event(1)
        return StudentT(df, mean, scale).to_event(1)

    def degrees_of_freedom(self) -> Float[Tensor, " dim"] | None:
        """Degrees of freedom of the increments; None if these are Gaussian."""
        return None if self.log_df is None else 2 + self.log_df.exp()

    def forward(self, num_bins: int) -> Autoregressive:
        """p(u_1, ..., u_T) for T = ``num_bins``, with a stationary u_1."""
        df = self.degrees_of_freedom()
        return Autoregressive(self.alpha(), (0.5 * self.log_nvar).exp(), num_bins, df=df)


class ControllerPath(StatePath):
    """q(u | g0): the closed loop of the controller and the generator that its inputs drive.

    Args:
        lfads: the model that has the controller and the generator.
        encoded: e_t of the bins seen by the encoder ``(trial, seen bin, encoder)``.
        inputs: known inputs of all generated bins ``(trial, time, input)``; bins beyond
            ``encoded`` are forecast bins, in which u follows its prior.
        g0: initial conditions ``(*batch, initial_condition)``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        lfads: LFADS,
        encoded: Float[Tensor, "trial seen encoder"],
        inputs: Float[Tensor, "trial time input"],
        g0: Float[Tensor, "*batch initial_condition"],
    ) -> None:
        self.lfads, self.encoded, self.inputs, self.g0 = lfads, encoded, inputs, g0
        self.num_bins, self.num_seen = inputs.shape[1], encoded.shape[1]
        self._last_draw = LastDraw()
        event_shape = torch.Size((self.num_bins, lfads.inferred_input_dim))
        super().__init__(g0.shape[:-1], event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "ControllerPath":
        """The same distribution for more particles, which are drawn independently."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        g0 = self.g0.expand(*batch_shape, self.g0.shape[-1])
        return ControllerPath(self.lfads, self.encoded, self.inputs, g0)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Float[Tensor, "*all time dim"]:
        """Transform standard normals by the closed loop; draw forecast bins from the prior."""
        lfads, left = self.lfads, torch.Size(sample_shape) + self.batch_shape
        g0 = self.g0.expand(*left, self.g0.shape[-1])
        first = lfads.first_generator_state(g0)
        rows, dim = left.numel(), self.event_shape[1]
        path = roll_closed_loop(
            _repeated(self.encoded, rows),
            _repeated(self.inputs[:, : self.num_seen], rows),
            torch.randn(self.num_seen, rows, dim, device=first.device, dtype=first.dtype),
            lfads.controller_start.expand(rows, -1),
            first.reshape(rows, -1),
            self._loop_weights(),
            SCALE_FLOOR,
        )
        *by_time, last_state = path
        u, mean, scale, factors = (
            field.transpose(0, 1).reshape(*left, self.num_seen, -1) for field in by_time
        )
        if self.num_bins > self.num_seen:
            future = self._future(u).rsample()
            later = _driving_inputs(future, self.inputs[:, self.num_seen :], g0)
            states = roll(lfads.generator, later, last_state.view(*left, -1))
            factors = torch.cat([factors, lfads.factors(states)], -2)
            u = torch.cat([u, future], -2)
        self._last_draw.keep(u, (mean, scale))
        # Pyro's replay passes this very tensor to the model, whose g0 is that of this distribution
        # unless there is a sample shape.
        if not sample_shape:
            lfads.cache_factors(self.g0, u, self.inputs, factors)
        return u

    def log_prob_steps(self, path: Float[Tensor, "*all time dim"]) -> Float[Tensor, "*all time"]:
        """Log q(u_t | u_<t), from the cached means and scales if the path is the last draw, else
        from the teacher-forced loop.
        """
        mean, scale = self._last_draw.recall(path) or self._teacher_forced(path)
        seen = dist.Normal(mean, scale).log_prob(path[..., : self.num_seen, :]).sum(-1)
        if self.num_bins == self.num_seen:
            return seen
        future = self._future(path[..., : self.num_seen, :])
        return torch.cat([seen, future.log_prob_steps(path[..., self.num_seen :, :])], -1)

    def _future(self, u: Float[Tensor, "*all seen dim"]) -> Autoregressive:
        prior = self.lfads.input_prior(self.num_bins)
        return prior.continue_from(u[..., -1, :], self.num_bins - self.num_seen)

    def _teacher_forced(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales of all bins given the whole path, by one pass through generator and
        controller.
        """
        lfads = self.lfads
        g0 = self.g0.expand(*path.shape[:-2], self.g0.shape[-1])
        first = lfads.first_generator_state(g0)
        driven = _driving_inputs(path, self.inputs, g0)[..., : self.num_seen - 1, :]
        before = torch.cat([first[..., None, :], roll(lfads.generator, driven, first)], -2)
        factors = lfads.factors(before)
        encoded = self.encoded.expand(*factors.shape[:-1], self.encoded.shape[-1])
        start = lfads.controller_start.expand(*path.shape[:-2], -1)
        controller = roll(lfads.controller, torch.cat([encoded, factors], -1), start)
        mean, log_scale = lfads.u_posterior(controller).chunk(2, -1)
        return mean, log_scale.exp() + SCALE_FLOOR

    def _loop_weights(self) -> ClosedLoopWeights:
        """The weights of controller and generator, split by their inputs."""
        lfads, dim = self.lfads, self.event_shape[1]
        controller, generator = GRUWeights.of(lfads.controller), GRUWeights.of(lfads.generator)
        from_encoder, from_factors = controller.drive.split(
            [self.encoded.shape[-1], lfads.factor_weight.shape[0]], -1
        )
        from_u, from_known = generator.drive.split([dim, self.inputs.shape[-1]], -1)
        return ClosedLoopWeights(
            controller=controller._replace(drive=from_encoder),
            feedback=from_factors,
            readout=lfads.u_posterior.weight,
            readout_bias=lfads.u_posterior.bias,
            generator=generator._replace(drive=from_known),
            inferred=from_u,
            factors=lfads.factor_matrix(),
        )


class ControllerEncoding(NamedTuple):
    """Outputs of the encoders of LFADS for a batch.

    Attributes:
        g0: q(g0).
        controller: e_t of the bins seen; None without inferred inputs.
    """

    g0: Distribution
    controller: Float[Tensor, "trial seen encoder"] | None


class ControllerMemory(NamedTuple):
    """The controller's state and the parameters of q(u_t | u_<t).

    Attributes:
        c: state of the controller.
        mean: mean of u_t.
        scale: standard deviation of u_t.
    """

    c: Float[Tensor, "... controller"]
    mean: Float[Tensor, "... inferred_input"]
    scale: Float[Tensor, "... inferred_input"]


class ControllerProposal(Proposal):
    """The guide of LFADS as a proposal: q(g0), and the controller's q(u_t | u_<t) for each bin.

    The joint distribution is that of `ControllerPath`, which draws all bins in one call if there is
    no resampling.
    """

    def encode(self, model: LFADS, batch: Batch) -> ControllerEncoding:
        """Run both encoders."""
        seen = model.visible_to_encoders(batch)
        encoded = model.encode_inputs(seen) if model.inferred_input_dim else None
        return ControllerEncoding(model.posterior_g0(seen), encoded)

    def initial_condition(self, model: LFADS, encoding: ControllerEncoding) -> Distribution:
        """q(g0)."""
        return encoding.g0

    def remember(
        self,
        model: LFADS,
        before: Any,
        memory: ControllerMemory | None,
        encoding: ControllerEncoding,
        t: int,
    ) -> ControllerMemory | None:
        """c_t and the parameters of q(u_t | u_<t); None in forecast bins."""
        if encoding.controller is None or t >= encoding.controller.shape[1]:
            return None
        g = before.g if isinstance(before, LFADSState) else model.first_generator_state(before)
        left = g.shape[:-1]
        weights = GRUWeights.of(model.controller)
        e = encoding.controller[:, t].expand(*left, encoding.controller.shape[-1])
        read = torch.cat([e, model.factors(g)], -1)
        c = model.controller_start.expand(*left, -1) if memory is None else memory.c
        drive = functional.linear(read, weights.drive, weights.bias)
        product = functional.linear(c, weights.recurrent, weights.recurrent_bias)
        c = gru_step(drive, product, c)
        mean, log_scale = model.u_posterior(c).chunk(2, -1)
        return ControllerMemory(c, mean, log_scale.exp() + SCALE_FLOOR)

    def propose(
        self,
        prior: Distribution,
        memory: ControllerMemory | None,
        encoding: ControllerEncoding,
        t: int,
        is_first: bool,
    ) -> Distribution:
        """q(u_t | u_<t); the prior in forecast bins."""
        if memory is None:
            return prior
        return dist.Normal(memory.mean, memory.scale, validate_args=False).to_event(1)


def _driving_inputs(
    u: Float[Tensor, "*batch time inferred_input"] | None,
    inputs: Float[Tensor, "trial time input"],
    like: Float[Tensor, "*batch dim"],
) -> Float[Tensor, "*batch time both"]:
    """[u_t, i_t], the inputs of the generator; all particles share the known inputs."""
    known = inputs.expand(*like.shape[:-2], *inputs.shape)
    return known if u is None else torch.cat([u, known], -1)


def _repeated(
    per_trial: Float[Tensor, "trial time dim"], rows: int
) -> Float[Tensor, "row time dim"]:
    """Values per trial, repeated for every particle (particles are the outer dimension)."""
    return per_trial.repeat(rows // len(per_trial), 1, 1)
