"""What models share whose latents follow a map with Gaussian noise and are read out affinely::

    z_1 ~ N(m, S_0)
    z_t ~ N(F(z_{t-1}, i_t), S)                 i_t: known inputs
    x_t ~ p(x | C z_t + d)                      any observation model

A model of this form states F (`mean_step`) and its own parameters. Its guide is a proposal of
`pyrodyn.models.proposals`: ``"optimal"`` for Gaussian observations, ``"encoder"`` or
``"causal_encoder"`` for any, ``"bootstrap"`` for the prior itself.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.batch import Batch, num_units
from pyrodyn.distributions.gaussian import Covariance, SharedNormal
from pyrodyn.models.initial_loadings import start_loading
from pyrodyn.models.latent_dynamics import check_config
from pyrodyn.models.linear_gaussian import LinearEmission
from pyrodyn.models.observations import observation as observation_model
from pyrodyn.models.process_noise import NOISE_DIMS, NOISES, covariance_of, raw_noise
from pyrodyn.models.proposals import PROPOSALS, encoder_bins_for, proposal_named
from pyrodyn.models.state_space import Distribution, StateSpaceModel

STEP = (
    "initial",
    "transition",
    "initial_state",
    "advance",
    "states",
    "transitions",
)
"""The methods that a latent path is made of."""

INITIAL_DECAY, INITIAL_NOISE = 0.9, 0.4
"""With F(z) = 0.9 z and S = 0.4^2 I, latents keep about the unit variance of S_0 = I."""


class LatentState(NamedTuple):
    """State of a model whose state is z alone.

    Attributes:
        z: latents.
    """

    z: Float[Tensor, "... latent"]


class NoisyMap(StateSpaceModel):
    """Abstract model of latents that follow a map with Gaussian noise.

    Args:
        config: the arguments of the model's class: ``num_neurons``, ``input_dim``, ``latent_dim``,
            ``noise``, ``observation``, ``proposal``, ``encoder_bins`` and those of its own.
        has_loading: whether C and d are parameters; otherwise C = I and d = 0, and every latent is
            the linear predictor of one neuron or channel.
    """

    site_dims: ClassVar[dict[str, tuple[str, ...]]] = {
        "z": ("time", "latent"),
        "rates": ("time", "neuron"),
        "x": ("time", "neuron"),
    }

    loading: Tensor
    bias: Tensor

    def __init__(self, config: dict[str, Any], *, has_loading: bool = True) -> None:
        super().__init__()
        check_config(config, ("input_dim",))
        for name, allowed in {"noise": NOISES, "proposal": PROPOSALS}.items():
            if config[name] not in allowed:
                raise ValueError(
                    f"{name}={config[name]!r} is unknown; it is one of {', '.join(allowed)}"
                )
        num_neurons, latent_dim = config["num_neurons"], config["latent_dim"]
        self.observation = observation_model(config["observation"], num_neurons)
        if config["proposal"] == "optimal" and self.observation.gaussian_part() is None:
            raise ValueError(
                "the optimal proposal needs a gaussian observation; take proposal='encoder' or"
                " 'bootstrap'"
            )
        self.config: dict[str, Any] = config
        self.noise: str = config["noise"]
        self.start_mean = nn.Parameter(torch.zeros(latent_dim))
        self.raw_start_noise = nn.Parameter(raw_noise(self.noise, latent_dim, 1.0))
        self.raw_noise = nn.Parameter(raw_noise(self.noise, latent_dim, INITIAL_NOISE))
        self.has_loading = has_loading
        num_predictors = self.observation.predictor_dim
        if has_loading:
            self.loading = nn.Parameter(torch.randn(num_predictors, latent_dim) / latent_dim**0.5)
            self.bias = nn.Parameter(torch.zeros(num_predictors))
        else:
            self.register_buffer("loading", torch.eye(latent_dim), persistent=False)
            self.register_buffer("bias", torch.zeros(latent_dim), persistent=False)
        self.proposal = proposal_named(
            config["proposal"], num_neurons, latent_dim, config["encoder_bins"]
        )

    @classmethod
    def sizes_for(cls, recording: xr.Dataset, sizes: dict[str, Any]) -> dict[str, Any]:
        """The best proposal for the observations, and an encoder's reach in seconds."""
        observed = observation_model(sizes["observation"], num_units(recording))
        is_exact = observed.is_gaussian() and cls.emission is NoisyMap.emission
        reach = encoder_bins_for(recording.attrs["bin_width"])
        proposal = "optimal" if is_exact else "encoder"
        return {"proposal": proposal, "encoder_bins": reach, **sizes}

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of initial state, noise and readout; a second dim of latents is
        ``latent_from``.
        """
        dims: dict[str, tuple[str, ...]] = {
            **super().parameter_dims(),
            "start_mean": ("latent",),
            "loading": ("predictor", "latent"),
            "bias": ("predictor",),
        }
        if self.noise in NOISE_DIMS:
            dims |= dict.fromkeys(("raw_noise", "raw_start_noise"), NOISE_DIMS[self.noise])
        return dims

    def start_from(self, batch: Batch) -> None:
        """Also the loading, see `start_loading`."""
        super().start_from(batch)
        if isinstance(self.loading, nn.Parameter) and isinstance(self.bias, nn.Parameter):
            start_loading(self.loading, self.bias, self.observation, lambda read: read, batch)

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """The bias d; without one, the mean of z_1."""
        (self.bias if self.has_loading else self.start_mean).copy_(predictors)

    # ------------------------------------------------------------------ the four densities

    def initial(self, start: Tensor | None, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """N(m, S_0)."""
        mean = self.start_mean.expand(*inputs.shape[:-1], -1)
        return SharedNormal(mean, self.process_noise()[0])

    def transition(self, state: LatentState, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """N(F(z, i), S)."""
        return SharedNormal(self.mean_step(state.z, inputs), self.process_noise()[1])

    def initial_state(
        self,
        start: Tensor | None,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LatentState:
        """The state is z."""
        return LatentState(z)

    def advance(
        self,
        state: LatentState,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> LatentState:
        """The state is z."""
        return LatentState(z)

    def emission(self, state: LatentState) -> Distribution:
        """The observation model of C z + d."""
        return self.observation(functional.linear(state.z, self.loading, self.bias))

    # ------------------------------------------------------------------ their parts

    @abstractmethod
    def mean_step(
        self, z: Float[Tensor, "*left latent"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left latent"]:
        """F(z, i)."""

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
        return self.has_own("initial_state", "advance", "states", of=NoisyMap)

    def has_gaussian_steps(self) -> bool:
        """Whether z_t is drawn around a mean with the Gaussian noise of `process_noise`."""
        return self.has_own(*STEP, of=NoisyMap)

    def states(
        self,
        start: Tensor | None,
        path: Float[Tensor, "*left time dim"],
        inputs: Float[Tensor, "trial time input"],
    ) -> LatentState:
        """The path itself."""
        if not self.has_own("initial_state", "advance", of=NoisyMap):
            return super().states(start, path, inputs)
        return LatentState(path)

    def linear_emission(self, batch: Batch, before: LatentState | None = None) -> LinearEmission:
        """The Gaussian part of the observation as a linear function of z.

        Raises:
            ValueError: if there is none, or a subclass overrides the emission.
        """
        is_own = self.has_own("initial_state", "advance", "emission", of=NoisyMap)
        if self.observation.gaussian_part() is None or not is_own:
            raise ValueError(
                "the optimal proposal follows from the Gaussian part of a model's own emission,"
                f" which this {type(self).__name__} does not have: build the model with"
                " proposal='encoder' or 'bootstrap', or set model.proposal to a Proposal of your"
                " own"
            )
        return self.gaussian_emission()

    def gaussian_emission(self) -> LinearEmission:
        """C, d and the variances of the Gaussian part, in the unit of the data."""
        part = self.observation.gaussian_part()
        assert part is not None
        return LinearEmission(
            part.unit[:, None] * self.loading[part.predictors],
            torch.addcmul(part.offset, part.unit, self.bias[part.predictors]),
            part.scale.square(),
            part.columns,
        )
