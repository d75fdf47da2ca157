"""Variational sequential Monte Carlo (FIVO): the evidence estimate of a particle filter as a
bound::

    VSMC_K = E[ sum_t log (1/K sum_k w_t^k) ]  <=  log p(x)

With one particle it is the ELBO, without resampling the importance-weighted bound. Gradients flow
through the reparameterised particles. Resampling is a discrete choice, whose contribution to the
gradient is

* omitted by ``gradient="biased"``: low variance, the choice of the papers and the default;
* estimated by the score of the ancestors with ``gradient="unbiased"``, which has high variance. It
  needs multinomial resampling, whose ancestor probabilities are known, and an ESS threshold of 0 or
  1: in between, the bound is discontinuous where a trial begins to be resampled, and the score does
  not account for that;
* avoided by ``resampling="soft"``, whose weights are differentiable.

Sources: Maddison et al. 2017, Naesseth et al. 2018, Le et al. 2018.
"""

from typing import Any

import torch
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.objectives.objective import Evaluation, Loss, Objective, check_own_guide
from pyrodyn.infer.smc.particle_filter import SequentialMonteCarlo, check_threshold
from pyrodyn.infer.smc.resampling import scheme_named
from pyrodyn.infer.traces import Program
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import Observed


class VSMC(Objective):
    """The variational SMC bound of a state-space model and its proposal.

    Args:
        num_particles: K.
        resampling: a name in `pyrodyn.infer.smc.resampling.RESAMPLING`.
        ess_threshold: resample a trial when its effective sample size is below this fraction
            of K; 1 resamples at every bin, 0 never (the importance-weighted bound).
        gradient: ``"biased"`` or ``"unbiased"``, see the module's docstring.
    """

    def __init__(
        self,
        num_particles: int,
        resampling: str = "systematic",
        ess_threshold: float = 1.0,
        gradient: str = "biased",
    ) -> None:
        super().__init__(num_particles)
        scheme_named(resampling)
        check_threshold(ess_threshold)
        if gradient not in ("biased", "unbiased"):
            raise ValueError(f"gradient={gradient!r} is unknown; it is 'biased' or 'unbiased'")
        if gradient == "unbiased" and resampling != "multinomial":
            raise ValueError(
                "the unbiased gradient needs the probabilities of the ancestors, which are known"
                " only for resampling='multinomial'"
            )
        if gradient == "unbiased" and ess_threshold not in (0, 1):
            raise ValueError(
                f"the unbiased gradient does not hold for ess_threshold={ess_threshold}, where the"
                " bound is discontinuous; take 1 (resample at every bin) or 0 (never)"
            )
        self.resampling, self.ess_threshold, self.gradient = resampling, ess_threshold, gradient

    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""
        return {
            "name": "VSMC",
            "num_particles": self.num_particles,
            "resampling": self.resampling,
            "ess_threshold": self.ess_threshold,
            "gradient": self.gradient,
        }

    @property
    def is_plain(self) -> bool:
        """Whether particles are resampled at every bin and without a gradient."""
        is_classical = self.resampling != "soft" and self.gradient == "biased"
        return is_classical and self.num_particles > 1 and self.ess_threshold == 1

    def loss(self, model: Program, guide: Program) -> "VSMCLoss":
        """The loss of a state-space model and its own guide.

        Raises:
            ValueError: for a guide that is not the model's own: replace ``model.proposal`` instead.
        """
        algorithm = SequentialMonteCarlo(
            check_own_guide(self, model, guide),
            self.num_particles,
            self.resampling,
            self.ess_threshold,
        )
        return VSMCLoss(self, algorithm, guide)


class VSMCLoss(Loss):
    """Negative VSMC bound."""

    objective: VSMC

    def __init__(self, objective: VSMC, algorithm: SequentialMonteCarlo, guide: Program) -> None:
        super().__init__(algorithm.model, guide)
        self.objective, self.algorithm = objective, algorithm

    @local_parameters()
    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative bound; ``ess``, the mean effective sample size as a fraction of K, is logged."""
        model, objective = self.algorithm.model, self.objective
        with model.hoisting():
            observed = Observed.of(model, batch)
            found = None
            if objective.is_plain:
                scheme = scheme_named(objective.resampling)
                found = model.fused_vsmc(
                    observed, objective.num_particles, lambda log_w: scheme(log_w).ancestors
                )
            bound, ess = self._run(observed) if found is None else found
        fraction = ess / objective.num_particles
        priors = model.weight_priors()
        return Evaluation(
            loss=-(batch.weight * bound.sum() + sum(priors.values())),
            logged={"ess": batch.weight * fraction.sum()},
            factors=tuple(priors),
        )

    def _run(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """The bound of every trial, and the effective sample size, its mean over bins."""
        sizes, scores = [], []
        particles = self.algorithm.init(observed)
        for t in range(observed.x.shape[1]):
            evidence_before = particles.log_evidence.detach()
            particles, record = self.algorithm.step(particles, observed, t)
            sizes.append(record.effective_sample_size)
            scores.append((record.ancestor_log_prob, evidence_before))
        bound = particles.log_evidence
        if self.objective.gradient == "unbiased":
            score = _score_term(scores, bound.detach())
            bound = bound + score - score.detach()
        return bound, torch.stack(sizes).mean(0)


def _score_term(scores: list[tuple[Tensor, Tensor]], evidence: Tensor) -> Tensor:
    """A term with the gradient sum_t score_t (log Z - log Z_{t-1}); evidence from before a bin does
    not depend on the ancestors chosen there, so leaving it out reduces the variance only.
    """
    terms = [log_prob * (evidence - before) for log_prob, before in scores]
    return torch.stack(terms).sum(0)
