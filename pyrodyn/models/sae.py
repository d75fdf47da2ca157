"""Sequential autoencoders: dynamics from an encoded initial state, `NodeSAE` and `RnnSAE`.

Generative program, per trial::

    z_1 = z0 ~ N(mu, S_1)                          the first bin's state
    z_t = Phi(z_{t-1}, i_t)                        dynamics; i: known external inputs
    x_t ~ p(x | readout(z_t))                      observation, Poisson(exp(.)) by default

    NodeSAE   Phi is the flow of dz/dt = f(z, i) over one bin, f a perceptron
    RnnSAE    Phi is a recurrent cell

and with process noise, which makes it a latent SDE on the grid of bins::

    z_t ~ N(Phi(z_{t-1}, i_t), Q)

In place of the normal prior, a kernel density around given points can be the distribution of the
initial state (`with_initial_states`).

Guide, without process noise::

    q(z_1) = N(m(e), s(e))                         e: last states of a bidirectional GRU

and with it, so that the data correct the path bin by bin, for diagonal Q and J::

    q(z_t | z_{t-1}) ~ N(z_t; Phi(z_{t-1}, i_t), Q) exp(h_t' z_t - z_t' J_t z_t / 2)
                     = N(g_t Phi(z_{t-1}, i_t) + P_t h_t, P_t)
    P_t = 1 / (1 / Q + J_t),  g_t = P_t / Q        h, J: from both directions of the GRU at bin t

(at the first bin mu and S_1 stand for Phi and Q). log q of a draw depends only on its noise and P.

Source: Sedler, Versteeg & Pandarinath 2023 (arXiv 2212.03771). Departures: theirs is deterministic,
which is this model at a KL weight of 0; process noise is an addition.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import is_number
from pyrodyn.distributions.gaussian import LOG_2PI, Covariance, SharedNormal
from pyrodyn.distributions.kernel_density import KernelDensity
from pyrodyn.distributions.paths import LastDraw, StatePath
from pyrodyn.kernels.runge_kutta import Correction
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.latent_dynamics import check_config
from pyrodyn.models.observations import ObservationSpec
from pyrodyn.models.observations import observation as observation_model
from pyrodyn.models.rollout_cache import RolloutCache
from pyrodyn.models.state_space import (
    Distribution,
    Proposal,
    StateSpaceModel,
    empty_distribution,
)
from pyrodyn.nn.cells import GRUCell, MapCell
from pyrodyn.nn.cells import cell as recurrent_cell
from pyrodyn.nn.fields import MLPField
from pyrodyn.nn.recurrence import roll_both_ways
from pyrodyn.nn.solvers import Flow, SolverCheck, solver_check

SCALE_FLOOR = 1e-3
"""Smallest standard deviation of process noise and of the guide: a density must exist."""

START_PRECISION = 2.0
"""Approximate precision of the data's factor per bin before training."""

INITIAL_SCALE_FRACTION = 0.15
"""Standard deviation of the guide that `without_noise` sets, as a fraction of the prior's."""

KERNEL_WIDTH = 0.03
"""Standard deviation of the kernels around given initial states, as a fraction of that of the
states."""

STEP = ("initial", "transition", "initial_state", "advance")
"""The methods that a latent path is made of."""

MAY_BE_ZERO = ("input_dim", "readout_width", "num_initial_states")
"""Sizes of parts that 0 leaves out."""


class LatentState(NamedTuple):
    """State of a sequential autoencoder.

    Attributes:
        z: latents.
    """

    z: Float[Tensor, "... latent"]


class SequentialAutoencoder(StateSpaceModel):
    """Abstract sequential autoencoder; a subclass provides Phi.

    Attributes:
        phi: from states and inputs to the states one bin later.
    """

    site_dims: ClassVar[dict[str, tuple[str, ...]]] = {
        "z0": ("latent",),
        "z": ("time", "latent"),
        "rates": ("time", "neuron"),
        "x": ("time", "neuron"),
    }

    def __init__(self, phi: Flow | GRUCell | MapCell, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        num_neurons, dim = config["num_neurons"], config["latent_dim"]
        self.process_noise: bool = config["process_noise"]
        self.path_site = "z" if self.process_noise else None
        self.initial_condition_site = None if self.process_noise else "z0"

        # Generative program
        self.phi = phi
        self.start_mean = nn.Parameter(torch.zeros(dim))
        self.start_log_scale = nn.Parameter(torch.zeros(dim))
        self.initial_states: Tensor | None
        points = torch.randn(config["num_initial_states"], dim)
        self.register_buffer("initial_states", points if len(points) else None)
        if self.process_noise:
            self.log_noise = nn.Parameter(torch.full((dim,), config["initial_noise"]).log())
            # Imposed during training by `pyrodyn.infer.NoiseAnnealing`.
            self.log_noise_limit: Tensor
            self.register_buffer("log_noise_limit", torch.full((dim,), torch.inf))
        self.observation = observation_model(config["observation"], num_neurons)
        width = config["readout_width"]
        hidden = [nn.Linear(dim, width), nn.Tanh()] if width else []
        self.readout = nn.Sequential(
            *hidden, nn.Linear(width or dim, self.observation.predictor_dim)
        )

        # Guide
        self.proposal: Proposal
        if self.process_noise:
            self.proposal = RecurrentFactor(num_neurons, dim, config["encoder_dim"])
        else:
            self.proposal = RecurrentStart(
                num_neurons, dim, config["encoder_dim"], config["dropout"]
            )
        self.rollout_cache = RolloutCache()

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of the initial state, the process noise and the readout."""
        last = len(self.readout) - 1
        hidden = {
            "readout.0.weight": ("readout_unit", "latent"),
            "readout.0.bias": ("readout_unit",),
        }
        return {
            **super().parameter_dims(),
            **(hidden if last else {}),
            f"readout.{last}.weight": ("predictor", "readout_unit" if last else "latent"),
            f"readout.{last}.bias": ("predictor",),
            "start_mean": ("latent",),
            "start_log_scale": ("latent",),
            "log_noise": ("latent",),
        }

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """The bias of the readout's last layer."""
        last = self.readout[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(predictors)

    @property
    def path_is_markov(self) -> bool:
        """True with process noise, unless a subclass overrides the update of the state: such a
        class sets it to True if its state still consists of z and the inputs alone.
        """
        return self.process_noise and self.has_own(
            "initial_state", "advance", of=SequentialAutoencoder
        )

    # ------------------------------------------------------------------ the four densities

    def initial_condition(self) -> Distribution:
        """p(z0), without process noise."""
        if self.initial_states is not None:
            return self._kernel_density(self.initial_states)
        scale = self.start_log_scale.exp() + SCALE_FLOOR
        return dist.Normal(self.start_mean, scale, validate_args=False).to_event(1)

    def initial(self, start: Tensor | None, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """p(z_1) with process noise; empty without."""
        if start is not None:
            return empty_distribution(start)
        left = inputs.shape[:-1]
        if self.initial_states is not None:
            return self._kernel_density(self.initial_states).expand(left)
        return SharedNormal(self.start_mean.expand(*left, -1), self.noises()[0])

    def transition(self, state: LatentState, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """N(Phi(z, i), Q) with process noise; empty without."""
        if not self.process_noise:
            return empty_distribution(state.z)
        return SharedNormal(self.phi(state.z, inputs), self.noises()[1])

    def transitions(
        self,
        path: Float[Tensor, "*left time dim"],
        states: LatentState,
        inputs: Float[Tensor, "trial time input"],
    ) -> Distribution:
        """The same along a path, with the Phi(z, i) of the guide's rollout if it is cached."""
        reached = self.rollout_cache.take((path,), inputs, self.phi.parameters())
        if reached is None or not self.has_own(*STEP, of=SequentialAutoencoder):
            return super().transitions(path, states, inputs)
        return SharedNormal(reached, self.noises()[1])

    def initial_state(
        self,
        start: Tensor | None,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LatentState:
        """The first bin's state."""
        return LatentState(z if start is None else start)

    def advance(
        self,
        state: LatentState,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LatentState:
        """The drawn z, or Phi(z, i)."""
        return LatentState(z if self.process_noise else self.phi(state.z, inputs))

    def states(
        self,
        start: Tensor | None,
        path: Float[Tensor, "*left time dim"],
        inputs: Float[Tensor, "trial time input"],
    ) -> LatentState:
        """The path itself, or the trajectory of Phi from the initial state."""
        if not self.has_own("initial_state", "advance", of=SequentialAutoencoder):
            return super().states(start, path, inputs)
        if start is None:
            return LatentState(path)
        later = self.phi.roll(start, inputs[:, 1:])
        return LatentState(torch.cat([start[..., None, :], later], -2))

    def emission(self, state: LatentState) -> Distribution:
        """The observation model of the readout."""
        return self.observation(self.readout(state.z))

    def record_deterministic(self, states: LatentState) -> None:
        """The path as site ``z`` if it is not drawn."""
        if not self.process_noise:
            pyro.deterministic("z", states.z, event_dim=2)

    def _kernel_density(self, points: Float[Tensor, "point latent"]) -> KernelDensity:
        width = self.hoisted("kernel_width", lambda: KERNEL_WIDTH * points.std(0))
        return KernelDensity(points, width)

    def noises(self) -> tuple[Covariance, Covariance]:
        """S_1 and Q."""

        def work() -> tuple[Covariance, Covariance]:
            first, later = (Covariance.of_factor(torch.diag(s)) for s in self.noise_scales())
            return first, later

        return self.hoisted("noises", work)

    def noise_scales(self) -> tuple[Float[Tensor, " latent"], Float[Tensor, " latent"]]:
        """The standard deviations of S_1 and Q."""
        return self.start_log_scale.exp() + SCALE_FLOOR, self.log_noise.exp() + SCALE_FLOOR

    def without_noise(self) -> "SequentialAutoencoder":
        """The same dynamics without process noise: a model whose path follows from its initial
        state.

        Its guide is initialised by the noisy guide's encoding of the first bin, which is only an
        initial guess (and untrained if another proposal had replaced that guide): train it, or
        infer the initial state by `pyrodyn.infer.LaplaceStart` or `pyrodyn.infer.MixtureStart`.

        Raises:
            ValueError: for a model without process noise.
        """
        if not self.process_noise:
            raise ValueError("this model has no process noise")
        quiet = type(self)(**{**self.config, "process_noise": False})
        is_own_guide = isinstance(self.proposal, RecurrentFactor)
        weights = {
            name: value
            for name, value in self.state_dict().items()
            if is_own_guide or not name.startswith("proposal.")
        }
        quiet.to(self.start_mean)
        quiet.load_state_dict(weights, strict=False)  # all but the noise itself
        if is_own_guide and isinstance(quiet.proposal, RecurrentStart):
            quiet.proposal.initialise_from_factor(quiet.initial_condition().stddev)
        quiet.train(self.training)
        quiet.record = copy.deepcopy(self.record)
        return quiet

    def with_initial_states(self, states: Float[Tensor, "point latent"]) -> "SequentialAutoencoder":
        """The same model with a kernel density as the prior of the initial state::

            z_1 ~ mean_k N(s_k, diag(h)^2),     h: `KERNEL_WIDTH` times the points' sd

        If trials are cut from continuing activity, a trial may begin in any state that others visit
        at any bin: a few thousand of these inferred states are a prior that lies on the attractor,
        which a normal distribution does not. If trials begin in particular states, use posterior
        draws of the initial states instead. The guide uses the mean and standard deviation of the
        points in place of mu and S_1.

        Args:
            states: s_k, of this model.

        Raises:
            ValueError: for points of another shape, that are not finite or all alike in one dim.
        """
        dim = self.config["latent_dim"]
        if states.ndim != 2 or len(states) < 2 or states.shape[1] != dim:
            raise ValueError(
                f"states of shape {tuple(states.shape)}; a prior around points needs at"
                f" least 2 points, (point, {dim})"
            )
        if not states.isfinite().all():
            raise ValueError(f"state {int((~states.isfinite()).nonzero()[0, 0])} is not finite")
        if (states.std(0) == 0).any():
            raise ValueError(
                f"all states have the same latent {int((states.std(0) == 0).nonzero()[0])}: give"
                " states that differ in every latent"
            )
        moved = copy.deepcopy(self)
        moved.config = {**self.config, "num_initial_states": len(states)}
        moved.initial_states = states.to(self.start_mean).clone()
        with torch.no_grad():
            moved.start_mean.copy_(states.mean(0))
            moved.start_log_scale.copy_(states.std(0).log())
        return moved

    # ------------------------------------------------------------------ guide

    def guide(self, batch: Batch) -> None:
        """Site ``z0``, or with process noise ``z``, drawn at once from the model's own proposal."""
        own_steps = self.has_own(*STEP, of=SequentialAutoencoder)
        if type(self.proposal) is not RecurrentFactor or not own_steps:
            return super().guide(batch)
        with self.trials(batch):
            correction = self.proposal.encode(self, batch)
            pyro.sample("z", CorrectedPath(self, correction, self.known_inputs(batch)))
        return None


class NodeSAE(SequentialAutoencoder):
    """An autoencoder whose dynamics are a neural ODE. Equations in the module's docstring.

    Args:
        num_neurons: neurons or channels observed, or both together.
        input_dim: known external inputs.
        latent_dim: dimension of z.
        field_width: units per hidden layer of the vector field.
        field_depth: its hidden layers.
        field_activation: ``"tanh"``, ``"relu"`` or ``"softplus"``.
        linear_term: add a linear part A z to the vector field.
        solver: ``"midpoint"``, ``"rk4"``, ``"euler"`` (a residual map) or an adaptive one of
            `pyrodyn.nn.solvers.SOLVERS`.
        substeps: steps per bin of the first three.
        process_noise: whether there is process noise.
        initial_noise: standard deviation of process noise before training, in units of latents of
            standard deviation 1: wide enough that the data determine the path until the dynamics
            are learned. Sparse counts may need 2.
        readout_width: hidden units of the readout; 0 for a linear one.
        encoder_dim: hidden units per direction of the encoder.
        dropout: on the encoding of the trial, without process noise.
        observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
            `ObservationSpec`).
        num_initial_states: number of kernels of the prior of the initial state, set by
            `with_initial_states`; 0 for a normal prior.
    """

    phi: Flow

    def __init__(
        self,
        num_neurons: int,
        *,
        input_dim: int = 0,
        latent_dim: int = 6,
        field_width: int = 128,
        field_depth: int = 1,
        field_activation: str = "tanh",
        linear_term: bool = False,
        solver: str = "midpoint",
        substeps: int = 1,
        process_noise: bool = False,
        initial_noise: float = 0.5,
        readout_width: int = 0,
        encoder_dim: int = 64,
        dropout: float = 0.05,
        observation: ObservationSpec = "poisson",
        num_initial_states: int = 0,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        _check(config)
        field = MLPField(
            latent_dim, input_dim, field_width, field_depth, field_activation, linear_term
        )
        super().__init__(Flow(field, solver, substeps), config)

    def dynamics(self) -> Dynamics:
        """The flow over one bin and, unless the solver makes it a map, its vector field."""
        field = self.phi.field
        dynamics = Dynamics(
            step=self.phi.plain_step,
            state_dim=self.config["latent_dim"],
            input_dim=self.config["input_dim"],
            bin_width=self.bin_width,
        )
        if self.phi.is_map:
            return dataclasses.replace(
                dynamics,
                step_derivative=lambda z, inputs: (
                    torch.eye(z.shape[-1]).to(z) + field.jacobian(z, inputs)
                ),
            )
        return dataclasses.replace(
            dynamics,
            vector_field=lambda z, inputs: field(z, inputs) / self.bin_width,
            field_derivative=lambda z, inputs: field.jacobian(z, inputs) / self.bin_width,
        )

    @torch.no_grad()
    def solver_check(self, batch: Batch) -> SolverCheck:
        """The path at the training step beside the exact one, from initial states of the guide."""
        inputs = self.known_inputs(batch)
        encoding = self.proposal.encode(self, batch)
        if self.process_noise:
            prior = self.initial(None, inputs[:, 0])
            first = self.proposal.propose(prior, None, encoding, 0, True).mean
        else:
            first = self.proposal.initial_condition(self, encoding).mean
        return solver_check(self.phi, first, inputs[:, 1:])

    def diagnose(self, batch: Batch) -> list[str]:
        """A solver whose step is too coarse for the trained field."""
        if self.phi.is_map:
            return []
        try:
            check = self.solver_check(batch)
        except ArithmeticError as problem:
            return [str(problem)]
        if check.is_fine:
            return []
        return [
            f"the path of {self.phi.solver!r} with substeps={self.phi.substeps} explains only"
            f" R2 = {check.r2:.3f} of its vector field's exact path: analyse this model as a map,"
            " or train with more substeps"
        ]


class RnnSAE(SequentialAutoencoder):
    """An autoencoder with recurrent dynamics. Equations in the module's docstring.

    Args:
        num_neurons: neurons or channels observed, or both together.
        input_dim: known external inputs.
        latent_dim: dimension of z.
        cell: ``"gru"``, ``"vanilla"``, ``"residual"``, ``"next_state"`` or ``"residual_mlp"``, see
            `pyrodyn.nn.cells`.
        cell_width: hidden units per layer of the last two.
        cell_depth: their hidden layers.
        process_noise: whether there is process noise.
        initial_noise: standard deviation of process noise before training, in units of latents of
            standard deviation 1: wide enough that the data determine the path until the dynamics
            are learned. Sparse counts may need 2.
        readout_width: hidden units of the readout; 0 for a linear one.
        encoder_dim: hidden units per direction of the encoder.
        dropout: on the encoding of the trial, without process noise.
        observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
            `ObservationSpec`).
        num_initial_states: number of kernels of the prior of the initial state, set by
            `with_initial_states`; 0 for a normal prior.
    """

    phi: GRUCell | MapCell

    def __init__(
        self,
        num_neurons: int,
        *,
        input_dim: int = 0,
        latent_dim: int = 6,
        cell: str = "gru",
        cell_width: int = 128,
        cell_depth: int = 1,
        process_noise: bool = False,
        initial_noise: float = 0.5,
        readout_width: int = 0,
        encoder_dim: int = 64,
        dropout: float = 0.05,
        observation: ObservationSpec = "poisson",
        num_initial_states: int = 0,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        _check(config)
        super().__init__(
            recurrent_cell(cell, latent_dim, input_dim, cell_width, cell_depth), config
        )

    def dynamics(self) -> Dynamics:
        """The cell."""
        return Dynamics(
            step=self.phi,
            state_dim=self.config["latent_dim"],
            input_dim=self.config["input_dim"],
            bin_width=self.bin_width,
            step_derivative=self.phi.jacobian,
        )


class RecurrentStart(Proposal):
    """q(z0) from the last states of a bidirectional GRU over the visible bins."""

    def __init__(self, num_neurons: int, latent_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.encoder = nn.GRU(num_neurons, hidden_dim, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden_dim, 2 * latent_dim)

    @torch.no_grad()
    def initialise_from_factor(self, prior_scale: Float[Tensor, " latent"]) -> None:
        """Turn the weights of a `RecurrentFactor` into an initial guess: the mean that its backward
        direction gives the first bin, with a fixed standard deviation.

        Args:
            prior_scale: standard deviation of p(z0).
        """
        dim, width = self.head.out_features // 2, self.encoder.hidden_size
        self.head.weight[:, :width] = 0.0  # the forward direction encodes all bins here, not one
        self.head.weight[dim:] = 0.0
        self.head.bias[dim:] = (INITIAL_SCALE_FRACTION * prior_scale).log()

    def encode(self, model: SequentialAutoencoder, batch: Batch) -> Distribution:
        """q(z0)."""
        forward, backward = roll_both_ways(
            self.encoder, model.encoder_view(batch)[:, : batch.horizon]
        )
        last = torch.cat([forward[:, -1], backward[:, 0]], -1)
        mean, log_scale = self.head(self.dropout(last)).chunk(2, -1)
        scale = log_scale.exp() + SCALE_FLOOR
        return dist.Normal(mean, scale, validate_args=False).to_event(1)

    def initial_condition(
        self, model: SequentialAutoencoder, encoding: Distribution
    ) -> Distribution:
        """q(z0)."""
        return encoding

    def propose(
        self, prior: Distribution, memory: Any, encoding: Distribution, t: int, is_first: bool
    ) -> Distribution:
        """Nothing is drawn after the initial state."""
        return prior


class PathCorrection(NamedTuple):
    """How the data correct the model's prediction, per trial and bin.

    Attributes:
        gain: g_t, the weight of the model's prediction.
        offset: P_t h_t.
        scale: standard deviation of z_t, the root of P_t.
    """

    gain: Float[Tensor, "trial time latent"]
    offset: Float[Tensor, "trial time latent"]
    scale: Float[Tensor, "trial time latent"]


class RecurrentFactor(Proposal):
    """q(z_t | z_{t-1}): the prior times a Gaussian factor from both directions of a GRU."""

    def __init__(self, num_neurons: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.encoder = nn.GRU(num_neurons, hidden_dim, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden_dim, 2 * latent_dim)
        with torch.no_grad():
            self.head.bias[latent_dim:] = START_PRECISION

    def encode(self, model: SequentialAutoencoder, batch: Batch) -> PathCorrection:
        """The correction of the visible bins; none in forecast bins."""
        forward, backward = roll_both_ways(
            self.encoder, model.encoder_view(batch)[:, : batch.horizon]
        )
        mean, raw_precision = self.head(torch.cat([forward, backward], -1)).chunk(2, -1)
        forecast = (0, 0, 0, batch.num_bins - batch.horizon)
        J = functional.pad(functional.softplus(raw_precision), forecast)
        h = J * functional.pad(mean, forecast)
        first, later = model.noise_scales()
        num_later = batch.num_bins - 1
        prior_precision = (
            torch.cat([first[None], later.expand(num_later, -1)]).square().reciprocal()
        )
        P = 1 / (prior_precision + J)
        return PathCorrection(P * prior_precision, P * h, P.sqrt())

    def propose(
        self, prior: Distribution, memory: Any, encoding: PathCorrection, t: int, is_first: bool
    ) -> Distribution:
        """N(g m + P h, P), m the prior's mean."""
        mean = torch.addcmul(encoding.offset[:, t], encoding.gain[:, t], prior.mean)
        return dist.Normal(mean, encoding.scale[:, t], validate_args=False).to_event(1)


class CorrectedPath(StatePath):
    """q(z_{1:T}): the path of `RecurrentFactor`, rolled by one kernel.

    Args:
        model: the model whose dynamics are corrected.
        correction: by the data.
        inputs: known inputs ``(trial, time, input)``.
        batch_shape: by default one path per trial.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        model: SequentialAutoencoder,
        correction: PathCorrection,
        inputs: Float[Tensor, "trial time input"],
        batch_shape: Sequence[int] | None = None,
    ) -> None:
        self.model, self.correction, self.inputs = model, correction, inputs
        left = correction.gain.shape[:1] if batch_shape is None else torch.Size(batch_shape)
        self._last_draw = LastDraw()
        super().__init__(left, correction.gain.shape[1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "CorrectedPath":
        """The same distribution for more particles."""
        return CorrectedPath(self.model, self.correction, self.inputs, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*all time latent"]:
        """Roll the corrected path; its density follows from the noise."""
        gain, offset, scale = self.correction
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        noise = torch.randn(shape, device=gain.device, dtype=gain.dtype)
        shift = torch.addcmul(offset, scale, noise)
        first = torch.addcmul(shift[..., 0, :], gain[:, 0], self.model.start_mean)
        later = Correction(gain[:, 1:], shift[..., 1:, :])
        reached = self.model.phi.roll(first, self.inputs[:, 1:], later)
        drawn = torch.cat([first[..., None, :], later(reached)], -2)
        self._last_draw.keep(drawn, self._log_density(noise))
        # The model is replayed on this tensor.
        self.model.rollout_cache.keep(reached, (drawn,), self.inputs, self.model.phi.parameters())
        return drawn

    def log_prob_steps(
        self, path: Float[Tensor, "*path time latent"]
    ) -> Float[Tensor, "*all time"]:
        """Log q(z_t | z_<t) of any path."""
        kept: Tensor | None = self._last_draw.recall(path)
        if kept is not None:
            return kept
        gain, offset, scale = self.correction
        start = self.model.start_mean.expand(*path.shape[:-2], 1, -1)
        predicted = torch.cat([start, self.model.phi(path[..., :-1, :], self.inputs[:, 1:])], -2)
        return self._log_density((path - torch.addcmul(offset, gain, predicted)) / scale)

    def _log_density(self, noise: Float[Tensor, "*all time latent"]) -> Float[Tensor, "*all time"]:
        constant = 0.5 * LOG_2PI
        return -(0.5 * noise.square() + self.correction.scale.log() + constant).sum(-1)


def _check(config: dict[str, Any]) -> None:
    """Refuse invalid sizes."""
    check_config(config, MAY_BE_ZERO)
    if not 0 <= config["dropout"] < 1:
        raise ValueError(f"dropout={config['dropout']} is a probability below 1")
    if config["num_initial_states"] == 1:
        raise ValueError("num_initial_states=1 has no standard deviation; give at least 2, or 0")
    noise = config["initial_noise"]
    if not (is_number(noise) and 0 < noise < math.inf):
        raise ValueError(f"initial_noise={noise!r} must be a finite standard deviation above 0")
