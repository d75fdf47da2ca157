"""Objectives: what a fit minimises::

    ELBO = E_q[log p(x, z) - log q(z | x)]
         = E_q[log p(x | z)] - sum over sites KL(q || p)   <= log p(x)

An objective is used as ``objective(model, guide)(batch)``: a module that holds the model's and the
guide's parameters and returns the negative bound of the whole recording in nats, estimated from the
batch.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrodyn.data.batch import Batch
from pyrodyn.data.whole import check_whole
from pyrodyn.infer.traces import (
    Program,
    drawn_sites,
    latent_sites,
    observed_sites,
    paired_traces,
)
from pyrodyn.models.state_space import StateSpaceModel


class Ramp(NamedTuple):
    """A weight that moves linearly to its final value.

    Attributes:
        num_steps: length of the ramp in training steps; 0 for none.
        start: step at which it begins.
        final: the weight after it.
        initial: the weight before it; above ``final`` it holds a site to its prior at first.
    """

    num_steps: int = 0
    start: int = 0
    final: float = 1.0
    initial: float = 0.0

    def at(self, step: int) -> float:
        """The weight at a training step."""
        if step >= self.end:
            return self.final
        if step <= self.start:
            return self.initial
        return self.initial + (self.final - self.initial) * (step - self.start) / self.num_steps

    @property
    def end(self) -> int:
        """First step at which the weight is final."""
        return self.start + self.num_steps


class Terms(NamedTuple):
    """Parts of a bound, for the whole recording in nats.

    Attributes:
        log_likelihood: E_q[log p(x | z)], factors of the model included.
        kl: KL(q || p) per latent site, unweighted; or one for all ``latents``, where the guide
            makes them from auxiliary draws.
        factors: see `Evaluation`.
    """

    log_likelihood: Float[Tensor, ""]
    kl: dict[str, Float[Tensor, ""]]
    factors: tuple[str, ...]


class Evaluation(NamedTuple):
    """An objective on one batch.

    Attributes:
        loss: what training lowers, for the whole recording in nats; its gradient is the estimator
            that the objective promises.
        shown: what is worth watching, by name, in the same units.
        factors: what the model weighs beside its observations, such as ``recurrent_weights``; with
            any, the bound is one on the evidence times these.
    """

    loss: Float[Tensor, ""]
    shown: dict[str, Float[Tensor, ""]]
    factors: tuple[str, ...]


class Objective:
    """Abstract objective; called with a model and a guide it yields their loss.

    Attributes:
        num_particles: draws per trial.
        final_step: first training step at which every weight is final.
        is_bound: whether the loss, with final weights, is a bound on the evidence.
    """

    num_particles: int
    final_step: int = 0
    is_bound: bool = True

    def __init__(self, num_particles: int) -> None:
        check_whole(1, num_particles=num_particles)
        self.num_particles = num_particles

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a card says of this objective."""

    @abstractmethod
    def __call__(self, model: Program, guide: Program) -> "Loss":
        """The loss of this model and guide."""


class Loss(nn.Module):
    """Abstract loss of a model and a guide, a module of their parameters."""

    objective: Objective

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        self.model, self.guide = model, guide

    @abstractmethod
    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """The loss with the weights of a training step (the final ones without it)."""

    def forward(self, batch: Batch, step: int | None = None) -> Float[Tensor, ""]:
        """Negative bound of the whole recording in nats, estimated from the batch."""
        return self.evaluate(batch, step).loss


def check_own_guide(objective: Objective, model: Program, guide: Program) -> StateSpaceModel:
    """The model, for an objective that runs a filter.

    Raises:
        ValueError: for a model that is no state-space model, and a guide that is not its own.
    """
    name = type(objective).__name__
    if not isinstance(model, StateSpaceModel):
        raise ValueError(f"{name} needs a StateSpaceModel; {type(model).__name__} is none")
    if getattr(guide, "__self__", None) is not model:
        raise ValueError(
            f"{name} draws from model.proposal and takes model.guide alone; to guide it otherwise,"
            " set another Proposal as model.proposal"
        )
    return model


class ELBO(Objective):
    """The evidence lower bound, optionally annealed.

    Where torch knows KL(q || p) of a site in closed form, that is used; elsewhere log q - log p of
    the guide's own draw, the same-path estimate, which is unbiased and exactly 0 where guide and
    prior agree.

    Args:
        num_particles: draws of the guide per step, vectorised.
        beta: weight per site (a number or a `Ramp`); sites not named have weight 1, which is the
            plain bound. A weight multiplies a latent site's KL, or a factor's log density (such as
            ``recurrent_weights``).
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
        """What a card says of this objective."""
        beta = {site: ramp._asdict() for site, ramp in self.ramps.items()}
        return {"name": "ELBO", "num_particles": self.num_particles, "beta": beta}

    def __call__(self, model: Program, guide: Program) -> "ELBOLoss":
        """The loss of this model and guide."""
        return ELBOLoss(self, model, guide)


class ELBOLoss(Loss):
    """Negative ELBO of a model and a guide."""

    objective: ELBO

    def __init__(self, objective: ELBO, model: Program, guide: Program) -> None:
        super().__init__(model, guide)
        self.objective = objective

    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative ELBO; the KL of every site is shown, unweighted."""
        terms = self.terms(batch, step)
        kl = [self._weight(site, step) * value for site, value in terms.kl.items()]
        loss = torch.stack([-terms.log_likelihood, *kl]).sum()
        shown = {f"kl_{site}": value for site, value in terms.kl.items()}
        return Evaluation(loss, shown, terms.factors)

    def terms(self, batch: Batch, step: int | None = None) -> Terms:
        """Log likelihood and KLs, from one vectorised run of both programs."""
        num_particles = self.objective.num_particles
        guide_trace, model_trace = paired_traces(self.model, self.guide, batch, num_particles)
        kl = {
            name: value / num_particles
            for name, value in _kl_terms(guide_trace, model_trace).items()
        }
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        observed = observed_sites(model_trace)
        factors = tuple(name for name in observed if name != "x")
        weighable = [*kl, *factors]
        for name in self.objective.ramps:
            if name not in weighable:
                raise ValueError(
                    f"beta names the site {name!r}, which has no weight in this bound; those that"
                    f" have are {', '.join(weighable)}"
                )
        evidence = [
            (1.0 if name == "x" else self._weight(name, step))
            * model_trace.nodes[name]["log_prob_sum"]
            for name in observed
        ]
        return Terms(torch.stack(evidence).sum() / num_particles, kl, factors)

    def _weight(self, site: str, step: int | None) -> float:
        ramp = self.objective.ramps.get(site)
        if ramp is None:
            return 1.0
        return ramp.final if step is None else ramp.at(step)


def _kl_terms(
    guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> dict[str, Float[Tensor, ""]]:
    """KL per latent site, summed over particles; one KL where the guide's sites hang together."""
    latent = latent_sites(guide_trace)
    for name in latent:
        if name not in model_trace:
            raise ValueError(f"the guide draws {name!r}, which is no site of this model")
    own = [*drawn_sites(guide_trace), *observed_sites(guide_trace)]
    if own == latent:
        return {name: _kl(guide_trace.nodes[name], model_trace.nodes[name]) for name in latent}
    guide_trace.compute_log_prob(lambda name, site: name in own)
    model_trace.compute_log_prob(lambda name, site: name in latent)
    log_q = torch.stack([guide_trace.nodes[name]["log_prob_sum"] for name in own]).sum()
    log_p = torch.stack([model_trace.nodes[name]["log_prob_sum"] for name in latent]).sum()
    return {"latents": log_q - log_p}


def _kl(guide_site: Mapping[str, Any], model_site: Mapping[str, Any]) -> Float[Tensor, ""]:
    q, p, value = guide_site["fn"], model_site["fn"], guide_site["value"]
    try:
        # Pyro's closed form for a Delta leaves its log density out.
        closed_form = None if isinstance(q, Delta) else kl_divergence(q, p)
    except NotImplementedError:
        closed_form = None
    kl = q.log_prob(value) - p.log_prob(value) if closed_form is None else closed_form
    # The model's scale for both, so that a guide need not know how many trials a batch stands for.
    return scale_and_mask(kl, model_site["scale"], model_site["mask"]).sum()
