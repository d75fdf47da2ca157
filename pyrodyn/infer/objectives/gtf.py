"""Generalised teacher forcing (GTF): prediction errors of trajectories that are pulled to the data.

For a state-space model whose observation is a linear function of z with Gaussian noise, and whose
latents follow a map F with noise of their own::

    x_t ~ N(C z_t + d, diag(r)),                 zbar_t = C^+ (x_t - d)          C^+: pseudo-inverse
    z_1 = zbar_1,    ztilde_t = (1 - alpha) z_t + alpha zbar_t,    z_{t+1} = F(ztilde_t, i_{t+1})

    GTF = -sum_{t > 1} log N(x_t; C z_t + d, diag(r))

z is the prediction before it is forced. With alpha = 0 this is a free run from the first bin, and
with alpha = 1 regression on the previous bin. The gradient of F's weights passes through T bins as
(1 - alpha)^T J_T ... J_1, with J the Jacobians of F, so that on chaotic data, where the product
grows, alpha = 0 cannot be trained. The adaptive alpha just balances the growth: with sigma the
spectral norm of the product, per bin (its geometric mean), and the largest of the batch,

    alpha_new = max(0, 1 - 1 / sigma)
    alpha <- alpha_new                                  if alpha_new > alpha, at once
    alpha <- gamma alpha + (1 - gamma) alpha_new        otherwise, starting at alpha = 1

GTF fits the map, the readout and r as if the latents had no noise. Noise is estimated beside, with
gradients that reach no other parameter of the step: S as the covariance of zbar_t - z_t, which is
an upper limit since it includes the noise of observation, and the distribution of z_1 from zbar_1.
These terms leave the loss's value as it is. For estimates of process noise go on with `VSMC`.

Bins in which an entry is not measured, or hidden from the encoder, are not forced; the entries that
are scored count. Bins of a forecast are therefore predicted freely.

Source: Hess, Monfared, Brenner & Durstewitz, ICML 2023, who minimise the squared error, which is
this loss with equal and fixed r. Departures: the noise, and alpha from forced states of the batch.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.distributions.gaussian import LOG_2PI, SharedNormal
from pyrodyn.infer.objectives.objective import Evaluation, Loss, Objective, check_guide_unused
from pyrodyn.infer.traces import Program, priors_of
from pyrodyn.models.linear_gaussian import LinearEmission
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import State, StateSpaceModel

VALIDATION_ALPHA = 0.1
"""Forcing outside training where it is adaptive, so that the losses of all epochs compare. Source:
the constant forcing of Hess et al. 2023 on EEG."""


class AdaptiveForcing(NamedTuple):
    """Forcing that follows the growth of the Jacobians; equations in the module's docstring.

    Attributes:
        every: training steps between updates.
        gamma: weight of the previous alpha when alpha falls.
    """

    every: int = 5
    gamma: float = 0.999


class GTF(Objective):
    """Generalised teacher forcing. Equations in the module's docstring.

    It takes models that state a linear-Gaussian readout (`StateSpaceModel.linear_emission`):
    `ShallowPLRNN`, `LowRankRNN` and `LinearDynamics`, each with a Gaussian observation. The loss is
    no bound on the evidence.

    Args:
        alpha: the forcing, from 0 to 1, or an `AdaptiveForcing`.

    Raises:
        ValueError: for a forcing outside [0, 1], and settings of an adaptive one that are invalid.
    """

    is_bound = False

    def __init__(self, alpha: float | AdaptiveForcing = AdaptiveForcing()) -> None:  # noqa: B008
        super().__init__(num_particles=1)
        if isinstance(alpha, AdaptiveForcing):
            check_integer(1, every=alpha.every)
            if not 0 <= alpha.gamma < 1:
                raise ValueError(f"gamma={alpha.gamma} weights the previous alpha; take [0, 1)")
        elif not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must lie between 0 (free) and 1 (forced to the data)")
        self.alpha = alpha

    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""
        alpha = self.alpha
        shown = alpha._asdict() if isinstance(alpha, AdaptiveForcing) else alpha
        return {"name": "GTF", "alpha": shown}

    def loss(self, model: Program, guide: Program) -> "GTFLoss":
        """The loss of a model; its own guide is not used.

        Raises:
            ValueError: for a model without a Gaussian observation or with a proposal whose encoder
                would not be trained, for a guide that would have no effect, and for adaptive
                forcing of a model with priors.
        """
        space = check_guide_unused(self, model, guide)
        name = type(space).__name__
        if not space.observation.is_gaussian():
            raise ValueError(
                f"GTF forces latents to the pseudo-inverse of a Gaussian readout, which this {name}"
                " does not have: fit counts by VSMC, or build the model with observation='gaussian'"
            )
        if space.proposal.has_encoder:
            raise ValueError(
                f"GTF draws nothing, so that the encoder of this {name} would not be trained: build"
                " the model with proposal='optimal', or take VSMC"
            )
        if isinstance(self.alpha, AdaptiveForcing) and priors_of(model) is not None:
            raise ValueError(
                "adaptive forcing follows one set of weights, and this model draws parameters from"
                " their priors: take a constant forcing, such as GTF(0.1)"
            )
        return GTFLoss(self, space, guide)


class ForcedRun(NamedTuple):
    """A trajectory forced to data.

    Attributes:
        inferred: zbar of all bins, 0 where a bin is not forced.
        is_forced: bins whose entries are all visible.
        predicted: z from the second bin on, before it is forced.
        states: states of all bins, forced.
        prior: the distribution of the last bin's z, whose covariance is that of all later bins.
    """

    inferred: Float[Tensor, "trial time latent"]
    is_forced: Bool[Tensor, "trial time"]
    predicted: Float[Tensor, "trial later latent"]
    states: State
    prior: SharedNormal


def forced_run(
    model: StateSpaceModel, batch: Batch, emission: LinearEmission, alpha: Float[Tensor, ""]
) -> ForcedRun:
    """Run a model's map from the first bin, forced by alpha. A first bin that is not forced is the
    mean of z_1.

    Raises:
        ValueError: for a batch without a bin to force to, and a model with other noise.
    """
    bins = slice(model.first_bin, None)
    visible = batch.visible[:, bins]
    is_forced = visible.all(-1)
    if not is_forced.any():
        raise ValueError(
            "GTF forces bins whose entries are all visible, and this batch has none: leave"
            " CoordinatedDropout and held-out neurons out (transforms=[])"
        )
    x = torch.where(visible, batch.seen[:, bins] / batch.gain, 0.0)
    inferred = (x - emission.offset) @ torch.linalg.pinv(emission.matrix).mT
    inferred = torch.where(is_forced[..., None], inferred, 0.0)
    strength, towards = (alpha * is_forced).unbind(1), inferred.unbind(1)
    inputs = model.known_inputs(batch)
    prior = model.initial(None, inputs[:, 0])
    z = torch.where(is_forced[:, :1], towards[0], prior.mean)
    states, predicted = [model.initial_state(None, z, inputs[:, 0])], []
    for t in range(1, len(towards)):
        prior = model.transition(states[-1], inputs[:, t])
        predicted.append(prior.mean)
        z = torch.lerp(prior.mean, towards[t], strength[t][:, None])
        states.append(model.advance(states[-1], z, inputs[:, t]))
    if not isinstance(prior, SharedNormal):
        raise ValueError(
            f"GTF needs a step with Gaussian or Student-t noise (SharedNormal), not a"
            f" {type(prior).__name__}, which {type(model).__name__}.transition returns"
        )
    stacked = type(states[0])(*(torch.stack(fields, 1) for fields in zip(*states, strict=True)))
    return ForcedRun(inferred, is_forced, torch.stack(predicted, 1), stacked, prior)


class GTFLoss(Loss):
    """Negative log density of the predictions.

    Attributes:
        alpha: the forcing, which is saved in checkpoints.
    """

    objective: GTF
    model: StateSpaceModel
    alpha: Tensor

    def __init__(self, objective: GTF, model: StateSpaceModel, guide: Program) -> None:
        super().__init__(model, guide)
        self.objective = objective
        forcing = objective.alpha
        start = 1.0 if isinstance(forcing, AdaptiveForcing) else forcing
        like = next(model.parameters())
        self.register_buffer("alpha", torch.tensor(start, dtype=like.dtype, device=like.device))

    @local_parameters()
    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative log density of the scored entries from the second bin on; ``alpha`` is logged.

        Raises:
            ValueError: for a batch or a model that cannot be forced.
        """
        if batch.x is None:
            raise ValueError("the batch holds no observations to predict")
        model, forcing = self.model, self.objective.alpha
        alpha = self.alpha
        if isinstance(forcing, AdaptiveForcing) and step is None:
            alpha = torch.full_like(alpha, VALIDATION_ALPHA)
        with model.hoisting():
            emission = model.linear_emission(batch)
            run = forced_run(model, batch, emission, alpha)
            noise = _noise_terms(model, batch, run)
            fit = _log_density(batch, emission, run.predicted, model.first_bin)
            if isinstance(forcing, AdaptiveForcing) and step is not None:
                self._adapt(forcing, step, run, model.known_inputs(batch))
        priors = model.weight_priors()
        total = fit + noise - noise.detach()
        return Evaluation(
            loss=-(batch.weight * total + sum(priors.values())),
            logged={"alpha": batch.weight * batch.num_trials * alpha},
            factors=tuple(priors),
        )

    @torch.no_grad()
    def _adapt(
        self,
        forcing: AdaptiveForcing,
        step: int,
        run: ForcedRun,
        inputs: Float[Tensor, "trial time input"],
    ) -> None:
        """Update alpha for the steps to come."""
        if step % forcing.every:
            return
        found = (1 - 1 / growth(self.model, run.states, inputs).amax()).clamp_min(0)
        lowered = torch.lerp(found, self.alpha, forcing.gamma)
        # A new tensor: the graph of this step holds the old one.
        self.alpha = torch.where(found > self.alpha, found, lowered).to(self.alpha)


@torch.no_grad()
def growth(
    model: StateSpaceModel, states: State, inputs: Float[Tensor, "trial time input"]
) -> Float[Tensor, " trial"]:
    """The spectral norm of the product of the Jacobians along states, per bin: its geometric mean
    over bins, which estimates the exponential of the largest Lyapunov exponent.
    """
    dynamics = model.dynamics()
    z, driving = model.dynamics_state(states), model.dynamics_inputs(states, inputs)
    product = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand(len(z), -1, -1)
    log_scale = z.new_zeros(len(z))
    num_steps = z.shape[1] - 1
    for t in range(num_steps):
        product = dynamics.jacobian(z[:, t], driving[:, t]) @ product
        # Kept near 1, as the product of many Jacobians exceeds the range of numbers.
        scale = torch.linalg.matrix_norm(product).clamp_min(torch.finfo(z.dtype).tiny)
        product = product / scale[:, None, None]
        log_scale = log_scale + scale.log()
    norm = torch.linalg.matrix_norm(product, ord=2)
    return ((log_scale + norm.log()) / num_steps).exp()


def _log_density(
    batch: Batch,
    emission: LinearEmission,
    predicted: Float[Tensor, "trial later latent"],
    first_bin: int,
) -> Float[Tensor, ""]:
    """Log density of the scored entries from the second bin on."""
    assert batch.x is not None
    later = slice(first_bin + 1, None)
    offset = emission.offset if emission.offset.ndim == 1 else emission.offset[:, 1:]
    error = batch.x[:, later] - offset - predicted @ emission.matrix.mT
    terms = -0.5 * (error.square() / emission.variance + emission.variance.log() + LOG_2PI)
    return torch.where(batch.scored[:, later], terms, 0.0).sum() * batch.scored_weight


def _noise_terms(model: StateSpaceModel, batch: Batch, run: ForcedRun) -> Float[Tensor, ""]:
    """Log densities of zbar, from which the noise and the distribution of z_1 learn."""
    inferred = run.inferred.detach()
    first = model.initial(None, model.known_inputs(batch)[:, 0]).log_prob(inferred[:, 0])
    step = run.prior.with_mean(run.predicted.detach(), run.prior.covariance)
    terms = torch.cat([first[:, None], step.log_prob(inferred[:, 1:])], 1)
    return torch.where(run.is_forced, terms, 0.0).sum()
