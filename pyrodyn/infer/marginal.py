"""The evidence of a state-space model as a factor of a Pyro program, its latents integrated out::

    p(x | theta) = integral of p(x, z | theta) dz

By the Kalman filter it is exact; by a particle filter it is estimated without bias, which suffices
for a Metropolis-Hastings chain that keeps the estimate of its current state (pseudo-marginal;
`pyro.infer.mcmc.RandomWalkKernel` does).

Sources: Andrieu & Roberts (2009); Andrieu, Doucet & Holenstein (2010).
"""

from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.kalman.kalman_filter import model_recursion
from pyrodyn.infer.smc.particle_filter import SequentialMonteCarlo
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.parameters import registered
from pyrodyn.models.priors import sites_from_priors
from pyrodyn.models.state_space import Observed, StateSpaceModel


def marginal(
    model: LatentDynamics | Fit[Any],
    batch: Batch,
    num_particles: int | None = None,
    *,
    name: str = "evidence",
) -> Float[Tensor, " trial"]:
    """Add the log evidence of a batch to a Pyro program, and return it.

    It takes the place of ``model(batch)`` in a program: the parameters of the model are those of
    `pyro.infer.SVI`, or random where they have priors, each a site of the program, and no latent is
    left for NUTS or a guide to sample. Of a Bayesian treatment of A alone::

        model.set_priors({"A": Normal(0, 1)})
        MCMC(NUTS(functools.partial(marginal, model)), num_samples=500).run(batch)

    Outside a Pyro engine it is the log evidence itself, of which a loop makes a profile
    (``marginal(model.at({"A": value}), batch)``; without ``at``, parameters with priors are drawn
    from these). Gradients flow to the parameters; those of the estimate by particles leave the
    contribution of resampling out, as `VSMC` does, so that NUTS should be given the exact evidence
    alone.

    Args:
        model: the model, or its `Fit`.
        batch: its trials; the factor is multiplied by ``batch.weight``.
        num_particles: of the particle filter that estimates the evidence; None for the exact one.
        name: of the factor's site, in the plate over trials.

    Returns:
        Log p(x) of every trial of the batch, in double precision.

    Raises:
        ValueError: without ``num_particles`` for a model that is not linear and Gaussian, and for a
            batch that does not fit the model.
    """
    if isinstance(model, Fit):
        model = model.model
    if not isinstance(model, StateSpaceModel):
        raise ValueError(
            f"the evidence needs a StateSpaceModel; {type(model).__name__} is none: estimate it by"
            " importance_sample"
        )
    model.check_batch(batch)
    found: list[Tensor] = []

    def program(model: StateSpaceModel, batch: Batch) -> None:
        for factor, log_prob in model.weight_priors().items():
            pyro.factor(factor, log_prob)
        log_evidence = _log_evidence(model, batch, num_particles)
        with model.trials(batch):
            pyro.factor(name, log_evidence)
        found.append(log_evidence)

    registered(program, sites_from_priors)(model, batch)
    return found[0]


def _log_evidence(
    model: StateSpaceModel, batch: Batch, num_particles: int | None
) -> Float[Tensor, " trial"]:
    """Exact, or estimated by particles."""
    if num_particles is None:
        return model_recursion(model, batch).log_evidence.sum(1)
    algorithm = SequentialMonteCarlo(model, num_particles)
    with model.hoisting():
        observed = Observed.of(model, batch)
        particles = algorithm.init(observed)
        for t in range(observed.x.shape[1]):
            particles, _ = algorithm.step(particles, observed, t)
    # NaN where all particles have weight 0: parameters that a chain must reject.
    return torch.nan_to_num(particles.log_evidence, nan=-torch.inf, neginf=-torch.inf)
