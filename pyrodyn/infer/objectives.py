"""Objectives: what a fit minimises::

    ELBO = E_q[log p(x, z) - log q(z | x)]
         = E_q[log p(x | z)] - sum over sites KL(q || p)   <= log p(x)

An objective is used as ``objective(model, guide)(batch)``: a module that holds the model's and the
guide's parameters and returns the negative bound of the whole recording in nats, estimated from the
batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrodyn.data.batch import Batch

Program = Callable[[Batch], Any]


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
        factors: what the model weighs beside its observations, such as ``recurrent_weights``; with
            any, the bound is one on the evidence times these.
    """

    log_likelihood: Float[Tensor, ""]
    kl: dict[str, Float[Tensor, ""]]
    factors: tuple[str, ...]


class ELBO:
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
        if num_particles < 1:
            raise ValueError(f"num_particles={num_particles}; a bound needs at least one draw")
        self.num_particles = num_particles
        self.ramps = {
            site: weight if isinstance(weight, Ramp) else Ramp(final=float(weight))
            for site, weight in (beta or {}).items()
        }
        for site, ramp in self.ramps.items():
            if min(ramp) < 0:
                raise ValueError(f"beta[{site!r}] is {ramp}; weights and steps must be >= 0")

    @property
    def final_step(self) -> int:
        """First step at which every weight is final."""
        return max((ramp.end for ramp in self.ramps.values()), default=0)

    @property
    def is_bound(self) -> bool:
        """Whether the final weights make this a bound on the evidence."""
        return all(ramp.final == 1 for ramp in self.ramps.values())

    def describe(self) -> dict[str, Any]:
        """What a card says of this objective."""
        beta = {site: ramp._asdict() for site, ramp in self.ramps.items()}
        return {"name": "ELBO", "num_particles": self.num_particles, "beta": beta}

    def __call__(self, model: Program, guide: Program) -> "ELBOLoss":
        """The loss of this model and guide."""
        return ELBOLoss(self, model, guide)


class ELBOLoss(nn.Module):
    """Negative ELBO of a model and a guide, a module of their parameters."""

    def __init__(self, objective: ELBO, model: Program, guide: Program) -> None:
        super().__init__()
        self.objective, self.model, self.guide = objective, model, guide

    def forward(self, batch: Batch, step: int | None = None) -> Float[Tensor, ""]:
        """Negative ELBO in nats with the weights of a training step (the final ones without it)."""
        return self.weighted(self.terms(batch, step), step)

    def weighted(self, terms: Terms, step: int | None = None) -> Float[Tensor, ""]:
        """Negative bound from its terms."""
        kl = [self._weight(site, step) * value for site, value in terms.kl.items()]
        return torch.stack([-terms.log_likelihood, *kl]).sum()

    def terms(self, batch: Batch, step: int | None = None) -> Terms:
        """Log likelihood and KLs, from one vectorised run of both programs."""
        num_particles = self.objective.num_particles
        guide_trace, model_trace = paired_traces(self.model, self.guide, batch, num_particles)
        kl = {
            name: value / num_particles
            for name, value in _kl_terms(guide_trace, model_trace).items()
        }
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        observed = _observed_sites(model_trace)
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


def paired_traces(
    model: Program, guide: Program, batch: Batch, num_particles: int
) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of the guide and of the model replayed on its draws; particles are plate dim -2."""
    if num_particles > 1:
        particles = pyro.plate("particles", num_particles, dim=-2)
        model, guide = particles(model), particles(guide)
    guide_trace = poutine.trace(guide).get_trace(batch)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
    return guide_trace, model_trace


def latent_sites(guide_trace: poutine.Trace) -> list[str]:
    """Names of the model's latent sites that a guide drew."""
    return [
        name
        for name in drawn_sites(guide_trace)
        if not guide_trace.nodes[name]["infer"].get("is_auxiliary", False)
    ]


def is_plate(site: Mapping[str, Any]) -> bool:
    """Whether a trace's site is a plate's subsample."""
    return type(site["fn"]).__name__ == "_Subsample"


def drawn_sites(trace: poutine.Trace) -> list[str]:
    """Names of the sites that a trace drew, an automatic guide's auxiliary ones included."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not is_plate(site)
    ]


def _observed_sites(trace: poutine.Trace) -> list[str]:
    """Observations and factors."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not site["infer"].get("_deterministic", False)
    ]


def _kl_terms(
    guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> dict[str, Float[Tensor, ""]]:
    """KL per latent site, summed over particles; one KL where the guide's sites hang together."""
    latent = latent_sites(guide_trace)
    for name in latent:
        if name not in model_trace:
            raise ValueError(f"the guide draws {name!r}, which is no site of this model")
    own = [*drawn_sites(guide_trace), *_observed_sites(guide_trace)]
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
