"""The evidence lower bound::

    ELBO = E_q[log p(x, z) - log q(z | x)]
         = E_q[log p(x | z)] - sum over sites KL(q || p)   <= log p(x)

The KL of every site, and every factor, may be given a weight.
"""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.guides.site_checks import check_reparameterised, check_sites
from pyrodyn.infer.objectives.objective import Evaluation, Loss, Objective, Ramp, kl_of_site
from pyrodyn.infer.traces import (
    Program,
    drawn_sites,
    is_local,
    joint_sites,
    latent_sites,
    observed_sites,
    paired_traces,
    priors_of,
)
from pyrodyn.models.rollout_cache import constant_weights


class Terms(NamedTuple):
    """Parts of a bound, for the whole recording in nats.

    Attributes:
        log_likelihood: E_q[log p(x | z)], factors of the model included.
        kl: KL(q || p) per latent site, unweighted; a single one named ``latents`` if the guide has
            auxiliary draws.
        factors: see `Evaluation`.
    """

    log_likelihood: Float[Tensor, ""]
    kl: dict[str, Float[Tensor, ""]]
    factors: tuple[str, ...]


class ELBO(Objective):
    """The evidence lower bound, optionally annealed.

    KL(q || p) of a site is computed in closed form if torch has one, and otherwise estimated by
    log q - log p of the guide's draw, which is unbiased and exactly 0 where guide and prior agree.

    Args:
        num_particles: draws of the guide per step, vectorised; one by one where parameters have
            priors, each with a draw of these.
        beta: weight per site (a number or a `Ramp`); sites not named have weight 1, which is the
            plain bound. A weight multiplies a latent site's KL, or the log density of a factor such
            as ``recurrent_weights``.
    """

    def __init__(
        self, num_particles: int = 1, beta: Mapping[str, float | Ramp] | None = None
    ) -> None:
        super().__init__(num_particles)
        if beta is not None and not isinstance(beta, Mapping):
            raise ValueError(f"beta={beta!r}; give weights by site, such as {{'z0': 0.5}}")
        self.ramps = {
            site: weight if isinstance(weight, Ramp) else Ramp(final=float(weight))
            for site, weight in (beta or {}).items()
        }
        for site, ramp in self.ramps.items():
            if min(ramp) < 0:
                raise ValueError(f"beta[{site!r}] is {ramp}; weights and steps must be >= 0")
        self.final_step = max((ramp.end for ramp in self.ramps.values()), default=0)
        self.is_bound = all(ramp.final == 1 for ramp in self.ramps.values())

    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""
        beta = {site: ramp._asdict() for site, ramp in self.ramps.items()}
        return {"name": "ELBO", "num_particles": self.num_particles, "beta": beta}

    def loss(self, model: Program, guide: Program) -> "ELBOLoss":
        """The loss of this model and guide."""
        return ELBOLoss(self, model, guide)

    @property
    def num_parameter_draws(self) -> int:  # type: ignore[override]
        """As many as draws of the latents."""
        return self.num_particles

    def given_parameters(self, names: Container[str]) -> "ELBO":
        """One draw of the latents, without the weights of the parameters' KL."""
        return ELBO(1, {site: ramp for site, ramp in self.ramps.items() if site not in names})

    def weight(self, site: str, step: int | None) -> float:
        """The ramp's weight."""
        ramp = self.ramps.get(site)
        if ramp is None:
            return 1.0
        return ramp.final if step is None else ramp.at(step)


class ELBOLoss(Loss):
    """Negative ELBO of a model and a guide."""

    objective: ELBO

    def __init__(self, objective: ELBO, model: Program, guide: Program) -> None:
        super().__init__(model, guide)
        self.objective = objective

    @constant_weights()
    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative ELBO; the unweighted KL of every site is logged."""
        terms = self.terms(batch, step)
        kl = [self.objective.weight(site, step) * value for site, value in terms.kl.items()]
        loss = torch.stack([-terms.log_likelihood, *kl]).sum()
        logged = {f"kl_{site}": value for site, value in terms.kl.items()}
        return Evaluation(loss, logged, terms.factors)

    def terms(self, batch: Batch, step: int | None = None) -> Terms:
        """Log likelihood and KLs, from one vectorised run of both programs, or from one run per
        particle where each has parameters of its own.
        """
        num_particles = self.objective.num_particles
        if num_particles > 1 and priors_of(self.model) is not None:
            runs = [self._terms(batch, step, 1) for _ in range(num_particles)]
            return Terms(
                torch.stack([run.log_likelihood for run in runs]).mean(0),
                {name: torch.stack([r.kl[name] for r in runs]).mean(0) for name in runs[0].kl},
                runs[0].factors,
            )
        return self._terms(batch, step, num_particles)

    def _terms(self, batch: Batch, step: int | None, num_particles: int) -> Terms:
        guide_trace, model_trace = paired_traces(self.model, self.guide, batch, num_particles)
        check_sites(guide_trace, model_trace)
        check_reparameterised(guide_trace, "the ELBO")
        kl = {
            name: value / num_particles
            for name, value in _kl_terms(guide_trace, model_trace, batch).items()
        }
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        observed = observed_sites(model_trace)
        factors = tuple(name for name in observed if name != "x")
        weighable = [*kl, *factors]
        for name in self.objective.ramps:
            if name not in weighable:
                raise ValueError(
                    f"beta names the site {name!r}, which has no weight in this bound; the sites"
                    f" with a weight are {', '.join(weighable)}"
                )
        evidence = [
            (1.0 if name == "x" else self.objective.weight(name, step))
            * model_trace.nodes[name]["log_prob_sum"]
            for name in observed
        ]
        return Terms(torch.stack(evidence).sum() / num_particles, kl, factors)


def _kl_terms(
    guide_trace: poutine.Trace, model_trace: poutine.Trace, batch: Batch
) -> dict[str, Float[Tensor, ""]]:
    """KL per latent site, summed over particles; one KL of all if the guide has auxiliary draws."""
    latent = latent_sites(guide_trace)
    own = [*drawn_sites(guide_trace), *observed_sites(guide_trace)]
    if own == latent:
        return {name: _kl(guide_trace.nodes[name], model_trace.nodes[name]) for name in latent}
    joint = joint_sites(guide_trace, model_trace)
    if joint and batch.weight != 1 and not all(is_local(model_trace.nodes[n]) for n in latent):
        raise ValueError(
            f"the guide draws all trials and what they share jointly, in {joint[0]!r}, and such a"
            " density cannot be weighted for a minibatch: train with all trials in one batch"
        )
    log_q = []
    for name in own:
        site = guide_trace.nodes[name]
        scale, mask = site["scale"], site["mask"]
        if name in model_trace:
            scale, mask = model_trace.nodes[name]["scale"], model_trace.nodes[name]["mask"]
        elif is_local(site) or name in joint:
            scale = batch.weight
        log_q.append(scale_and_mask(site["fn"].log_prob(site["value"]), scale, mask).sum())
    model_trace.compute_log_prob(lambda name, site: name in latent)
    log_p = torch.stack([model_trace.nodes[name]["log_prob_sum"] for name in latent]).sum()
    return {"latents": torch.stack(log_q).sum() - log_p}


def _kl(guide_site: Mapping[str, Any], model_site: Mapping[str, Any]) -> Float[Tensor, ""]:
    divergence = kl_of_site(guide_site["fn"], model_site["fn"], guide_site["value"])
    # The model's scale for both: a guide need not know the size of the recording.
    return scale_and_mask(divergence, model_site["scale"], model_site["mask"]).sum()
