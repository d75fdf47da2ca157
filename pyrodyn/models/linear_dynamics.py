"""Linear dynamical systems (LDS)::

    z_1 ~ N(m, S_0)
    z_t ~ N(A z_{t-1} + B i_t, S)               i_t: known inputs
    x_t ~ p(x | C z_t + d)                      any observation model

The zoo's baseline. With a Gaussian observation everything is exact: the evidence by the Kalman
filter (the objective `Kalman`), the posterior by the smoother (``method="exact"``). With counts, as
the Poisson LDS, it is fitted and filtered like any other state-space model.

Guide: the proposals of `pyrodyn.models.proposals`, ``"optimal"`` for Gaussian observations,
``"encoder"`` or ``"causal_encoder"`` for any, ``"bootstrap"`` for the prior itself.

A change of basis z' = T z changes no density of x: A, S and C are known up to it.

Sources: Kalman (1960); Ghahramani & Hinton (1996); for counts Macke et al., NeurIPS 2011.
"""

from typing import Any, ClassVar, NamedTuple

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch, num_units
from pyrodyn.distributions.gaussian import Covariance, SharedNormal
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.initial_loadings import start_loading
from pyrodyn.models.latent_dynamics import check_config
from pyrodyn.models.linear_gaussian import LinearGaussian
from pyrodyn.models.observations import ObservationSpec
from pyrodyn.models.observations import observation as observation_model
from pyrodyn.models.process_noise import NOISE_DIMS, NOISES, covariance_of, raw_noise
from pyrodyn.models.proposals import (
    FEWEST_ENCODER_BINS,
    PROPOSALS,
    LinearEmission,
    encoder_bins_for,
    proposal_named,
)
from pyrodyn.models.state_space import Distribution, StateSpaceModel

STEP = ("initial", "transition", "initial_state", "advance", "states", "transitions")
"""The methods that a latent path is made of."""

INITIAL_DECAY, INITIAL_NOISE = 0.9, 0.4
"""A = 0.9 I and S = 0.4^2 I, under which latents keep about the unit variance of S_0 = I."""


class LinearState(NamedTuple):
    """State of a linear dynamical system.

    Attributes:
        z: latents.
    """

    z: Float[Tensor, "... latent"]


class LinearDynamics(StateSpaceModel):
    """A linear dynamical system. Equations in the module's docstring.

    Args:
        num_neurons: neurons or channels observed, or both together.
        input_dim: known external inputs.
        latent_dim: dimensions of z.
        noise: form of S and S_0: ``"scalar"``, ``"diagonal"`` or ``"full"``.
        observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
            `ObservationSpec`).
        proposal: ``"optimal"``, ``"encoder"``, ``"causal_encoder"`` or ``"bootstrap"``.
            `for_recording` takes the optimal one if all that is observed is Gaussian.
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
        noise: str = "full",
        observation: ObservationSpec = "poisson",
        proposal: str = "encoder",
        encoder_bins: int = FEWEST_ENCODER_BINS,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        check_config(config, ("input_dim",))
        for name, allowed in {"noise": NOISES, "proposal": PROPOSALS}.items():
            if config[name] not in allowed:
                raise ValueError(
                    f"{name}={config[name]!r} is unknown; it is one of {', '.join(allowed)}"
                )
        self.observation = observation_model(observation, num_neurons)
        if proposal == "optimal" and self.observation.gaussian_part() is None:
            raise ValueError(
                "the optimal proposal needs a gaussian observation; take proposal='encoder' or"
                " 'bootstrap'"
            )
        self.config: dict[str, Any] = config
        self.noise = noise
        self.start_mean = nn.Parameter(torch.zeros(latent_dim))
        self.raw_start_noise = nn.Parameter(raw_noise(noise, latent_dim, 1.0))
        self.A = nn.Parameter(INITIAL_DECAY * torch.eye(latent_dim))
        self.B = nn.Parameter(torch.zeros(latent_dim, input_dim))
        self.raw_noise = nn.Parameter(raw_noise(noise, latent_dim, INITIAL_NOISE))
        num_predictors = self.observation.predictor_dim
        self.loading = nn.Parameter(torch.randn(num_predictors, latent_dim) / latent_dim**0.5)
        self.bias = nn.Parameter(torch.zeros(num_predictors))
        self.proposal = proposal_named(proposal, num_neurons, latent_dim, encoder_bins)

    @classmethod
    def sizes_for(cls, recording: xr.Dataset, sizes: dict[str, Any]) -> dict[str, Any]:
        """The best proposal for the observations, and an encoder's reach in seconds."""
        observed = observation_model(sizes["observation"], num_units(recording))
        is_exact = observed.is_gaussian() and cls.emission is LinearDynamics.emission
        reach = encoder_bins_for(recording.attrs["bin_width"])
        proposal = "optimal" if is_exact else "encoder"
        return {"proposal": proposal, "encoder_bins": reach, **sizes}

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of dynamics and readout; a second dim of latents is ``latent_from``."""
        dims: dict[str, tuple[str, ...]] = {
            **super().parameter_dims(),
            "start_mean": ("latent",),
            "A": ("latent", "latent_from"),
            "B": ("latent", "input"),
            "loading": ("predictor", "latent"),
            "bias": ("predictor",),
        }
        if self.noise in NOISE_DIMS:
            dims |= dict.fromkeys(("raw_noise", "raw_start_noise"), NOISE_DIMS[self.noise])
        return dims

    def start_from(self, batch: Batch) -> None:
        """Also the loading, see `start_loading`."""
        super().start_from(batch)
        start_loading(self.loading, self.bias, self.observation, lambda read: read, batch)

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """The bias d."""
        self.bias.copy_(predictors)

    # ------------------------------------------------------------------ the four densities

    def initial(self, start: Tensor | None, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """N(m, S_0)."""
        mean = self.start_mean.expand(*inputs.shape[:-1], -1)
        return SharedNormal(mean, self.process_noise()[0])

    def transition(self, state: LinearState, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """N(A z + B i, S)."""
        return SharedNormal(self.mean_step(state.z, inputs), self.process_noise()[1])

    def initial_state(
        self,
        start: Tensor | None,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LinearState:
        """The state is z."""
        return LinearState(z)

    def advance(
        self,
        state: LinearState,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LinearState:
        """The state is z."""
        return LinearState(z)

    def emission(self, state: LinearState) -> Distribution:
        """The observation model of C z + d."""
        return self.observation(functional.linear(state.z, self.loading, self.bias))

    # ------------------------------------------------------------------ their parts

    def mean_step(
        self, z: Float[Tensor, "*left latent"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left latent"]:
        """A z + B i."""
        moved = functional.linear(z, self.A)
        return moved + functional.linear(inputs, self.B) if inputs.shape[-1] else moved

    def process_noise(self) -> tuple[Covariance, Covariance]:
        """S_0 and S."""
        dim = len(self.start_mean)
        return self.hoisted(
            "process_noise",
            lambda: (
                covariance_of(self.raw_start_noise, self.noise, dim),
                covariance_of(self.raw_noise, self.noise, dim),
            ),
        )

    @property
    def path_is_markov(self) -> bool:
        """True, unless a subclass overrides the update of the state."""
        return self.has_own("initial_state", "advance", "states", of=LinearDynamics)

    def has_gaussian_steps(self) -> bool:
        """Whether z_t is drawn around a mean with the Gaussian noise of `process_noise`."""
        return self.has_own(*STEP, of=LinearDynamics)

    def states(
        self,
        start: Tensor | None,
        path: Float[Tensor, "*left time dim"],
        inputs: Float[Tensor, "trial time input"],
    ) -> LinearState:
        """The path itself."""
        if not self.has_own("initial_state", "advance", of=LinearDynamics):
            return super().states(start, path, inputs)
        return LinearState(path)

    def linear_emission(self, batch: Batch, before: LinearState | None = None) -> LinearEmission:
        """The Gaussian part of the observation as a linear function of z, for `OptimalFactor`.

        Raises:
            ValueError: if there is none, or a subclass overrides the emission.
        """
        is_own = self.has_own("initial_state", "advance", "emission", of=LinearDynamics)
        if self.observation.gaussian_part() is None or not is_own:
            raise ValueError(
                "the optimal proposal follows from the Gaussian part of LinearDynamics' own"
                f" emission, which this {type(self).__name__} does not have: build the model with"
                " proposal='encoder' or 'bootstrap', or set model.proposal to a Proposal of your"
                " own"
            )
        return self._linear_emission()

    def _linear_emission(self) -> LinearEmission:
        part = self.observation.gaussian_part()
        assert part is not None
        return LinearEmission(
            part.unit[:, None] * self.loading[part.predictors],
            torch.addcmul(part.offset, part.unit, self.bias[part.predictors]),
            part.scale.square(),
            part.columns,
        )

    def linear_gaussian(self, inputs: Float[Tensor, "trial time input"]) -> LinearGaussian:
        """The matrices, if the observation is Gaussian.

        Raises:
            ValueError: for another observation, and subclasses that override a density.
        """
        if not self.observation.is_gaussian():
            raise ValueError(
                "exact inference in a LinearDynamics needs a gaussian observation: take particles"
                " instead, by VSMC, particle_filter or method='smoother'"
            )
        if not self.has_own(*STEP, "mean_step", "emission", "log_likelihood", of=LinearDynamics):
            raise ValueError(
                f"{type(self).__name__} overrides a density of LinearDynamics, so that its evidence"
                " has no closed form: take particles instead, by VSMC, particle_filter or"
                " method='smoother'"
            )
        emission = self._linear_emission()
        first = self.start_mean.expand(len(inputs), 1, -1)
        b = torch.cat([first, functional.linear(inputs[:, 1:], self.B)], 1)
        return LinearGaussian(
            self.A, b, *self.process_noise(), emission.matrix, emission.offset, emission.variance
        )

    # ------------------------------------------------------------------ analysis

    def dynamics(self) -> Dynamics:
        """The map A z + B i. Its fixed point for constant inputs is (I - A)^-1 B i."""
        return Dynamics(
            step=self.mean_step,
            state_dim=len(self.start_mean),
            input_dim=self.B.shape[1],
            bin_width=self.bin_width,
            step_derivative=lambda z, i: self.A.expand(*z.shape[:-1], *self.A.shape),
        )
