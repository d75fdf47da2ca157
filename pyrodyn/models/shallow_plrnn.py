"""Shallow piecewise-linear recurrent neural networks (PLRNN), with process noise::

    z_1 ~ N(m, S_0)
    z_t ~ N(A z_{t-1} + W1 phi(z_{t-1}) + h1 + C i_t, S)         A diagonal, i_t: known inputs
    x_t ~ p(x | B z_t + d)                                       or of z_t itself
    phi(z) = relu(W2 z + h2)                                     ``is_clipped=False``
           = relu(W2 z + h2) - relu(W2 z)                        ``is_clipped=True``

W1 is latents x units, W2 units x latents. The units of the clipped network are bounded by h2, so
that no trajectory diverges while every entry of A is within (-1, 1). It differs from a low-rank RNN
of the same units in that A has an entry of either sign per latent, in the constant h1, and in its
inputs, which reach the latents directly.

Without process noise it is the model that generalised teacher forcing was made for (the objective
`GTF`); with it, it is fitted, filtered and smoothed like any other state-space model. For few
latents its fixed points and cycles are enumerated, see `pyrodyn.analysis.fixed_points`.

Guide: the proposals of `pyrodyn.models.proposals`, ``"optimal"`` for Gaussian observations,
``"encoder"`` or ``"causal_encoder"`` for any, ``"bootstrap"`` for the prior itself.

Source: Hess, Monfared, Brenner & Durstewitz, ICML 2023, whose model is deterministic. Departures:
process noise, observation models other than the Gaussian, and initial weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.kernels.activations import ACTIVATIONS
from pyrodyn.kernels.low_rank import low_rank_step, reference_low_rank_step
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.noisy_map import INITIAL_DECAY, NoisyMap
from pyrodyn.models.observations import ObservationSpec
from pyrodyn.models.proposals import FEWEST_ENCODER_BINS

READOUTS = ("affine", "identity")


class ShallowPLRNN(NoisyMap):
    """A shallow PLRNN. Equations in the module's docstring.

    Args:
        num_neurons: neurons or channels observed, or both together.
        input_dim: known external inputs.
        latent_dim: dimensions of z.
        num_units: units of the hidden layer.
        is_clipped: whether units are bounded.
        noise: form of S and S_0: ``"scalar"``, ``"diagonal"`` or ``"full"``.
        readout: ``"affine"``, B z + d, or ``"identity"``, z: then every neuron or channel is a
            latent, in the unit of the observation model's linear predictor (for a signal,
            standardised).
        observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
            `ObservationSpec`).
        proposal: ``"optimal"``, ``"encoder"``, ``"causal_encoder"`` or ``"bootstrap"``.
            `for_recording` takes the optimal one if all that is observed is Gaussian.
        encoder_bins: bins that the first layer of an encoder reads. `for_recording` chooses those
            of 0.3 s, at least 21 and at most 61.

    Raises:
        ValueError: for invalid sizes and options, and for an identity readout where latents and
            linear predictors differ in number.
    """

    def __init__(
        self,
        num_neurons: int,
        *,
        input_dim: int = 0,
        latent_dim: int = 5,
        num_units: int = 128,
        is_clipped: bool = True,
        noise: str = "diagonal",
        readout: str = "affine",
        observation: ObservationSpec = "poisson",
        proposal: str = "encoder",
        encoder_bins: int = FEWEST_ENCODER_BINS,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if readout not in READOUTS:
            raise ValueError(f"readout={readout!r} is unknown; it is one of {', '.join(READOUTS)}")
        super().__init__(config, has_loading=readout == "affine")
        num_predictors = self.observation.predictor_dim
        if readout == "identity" and num_predictors != latent_dim:
            raise ValueError(
                f"readout='identity' makes every linear predictor a latent, but there are"
                f" {latent_dim} latents and {num_predictors} linear predictors of"
                f" {num_neurons} neurons or channels: set latent_dim={num_predictors}, or take"
                " readout='affine'"
            )
        self.activation = "clipped_relu" if is_clipped else "relu"
        self.A = nn.Parameter(torch.full((latent_dim,), INITIAL_DECAY))
        self.W1 = nn.Parameter(torch.randn(latent_dim, num_units) * 0.5 / num_units)
        self.W2 = nn.Parameter(torch.randn(num_units, latent_dim) / latent_dim**0.5)
        self.h1 = nn.Parameter(torch.zeros(latent_dim))
        # Kinks cover the range of the latents, so that units differ from the first step.
        grid = torch.linspace(-1.0, 1.0, num_units)
        self.h2 = nn.Parameter(1.0 + grid.abs() if is_clipped else grid)
        self.C = nn.Parameter(torch.zeros(latent_dim, input_dim))

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of the dynamics."""
        return {
            **super().parameter_dims(),
            "A": ("latent",),
            "W1": ("latent", "unit"),
            "W2": ("unit", "latent"),
            "h1": ("latent",),
            "h2": ("unit",),
            "C": ("latent", "input"),
        }

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """The bias d; with an identity readout the mean of z_1, around which z then decays."""
        super().start_readout(predictors)
        if not self.has_loading:
            self.h1.copy_((1 - self.A) * predictors)

    def threshold(self) -> Float[Tensor, " unit"]:
        """The threshold of `pyrodyn.kernels.activations`, which plain relus subtract."""
        return self.h2 if self.activation == "clipped_relu" else -self.h2

    def mean_step(
        self, z: Float[Tensor, "*left latent"], inputs: Float[Tensor, "*shared input"]
    ) -> Float[Tensor, "*left latent"]:
        """A z + W1 phi(z) + h1 + C i."""
        threshold = self.hoisted("threshold", self.threshold)
        moved = low_rank_step(z, None, self.W2, self.W1, threshold, self.A, self.activation)
        return moved + self.offset(inputs)

    def offset(self, inputs: Float[Tensor, "*left input"]) -> Float[Tensor, "*left_or_none latent"]:
        """h1 + C i."""
        return functional.linear(inputs, self.C, self.h1) if inputs.shape[-1] else self.h1

    # ------------------------------------------------------------------ analysis

    def dynamics(self) -> Dynamics:
        """The map A z + W1 phi(z) + h1 + C i."""
        threshold = self.threshold()

        def step(
            z: Float[Tensor, "*left latent"], inputs: Float[Tensor, "*left input"]
        ) -> Float[Tensor, "*left latent"]:
            moved = reference_low_rank_step(
                z, None, self.W2, self.W1, threshold, self.A, self.activation
            )
            return moved + self.offset(inputs)

        def jacobian(z: Tensor, inputs: Tensor) -> Float[Tensor, "*left latent latent"]:
            """diag(A) + W1 diag(phi') W2."""
            slope = ACTIVATIONS[self.activation].slope(functional.linear(z, self.W2), threshold)
            J = (slope[..., None, :] * self.W1) @ self.W2
            J.diagonal(dim1=-2, dim2=-1).add_(self.A)
            return J

        return Dynamics(
            step=step,
            state_dim=len(self.A),
            input_dim=self.C.shape[1],
            bin_width=self.bin_width,
            step_derivative=jacobian,
        )
