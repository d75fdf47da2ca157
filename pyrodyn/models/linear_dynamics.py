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

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.linear_gaussian import LinearGaussian
from pyrodyn.models.noisy_map import INITIAL_DECAY, STEP, NoisyMap
from pyrodyn.models.observations import ObservationSpec
from pyrodyn.models.proposals import FEWEST_ENCODER_BINS


class LinearDynamics(NoisyMap):
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
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.A = nn.Parameter(INITIAL_DECAY * torch.eye(latent_dim))
        self.B = nn.Parameter(torch.zeros(latent_dim, input_dim))

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of A and B."""
        own = {"A": ("latent", "latent_from"), "B": ("latent", "input")}
        return {**super().parameter_dims(), **own}

    def mean_step(
        self, z: Float[Tensor, "*left latent"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left latent"]:
        """A z + B i."""
        moved = functional.linear(z, self.A)
        return moved + functional.linear(inputs, self.B) if inputs.shape[-1] else moved

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
        emission = self.gaussian_emission()
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
