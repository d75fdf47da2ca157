"""The interface of objectives.

``objective(model, guide)`` is a loss: a module with the model's and the guide's parameters. Called
with a batch it returns the negative bound of the whole recording in nats, estimated from the batch.

Where parameters theta of the model have priors, every objective is the expectation of its bound
given the parameters, drawn once for all trials and particles::

    E_q(theta)[bound(theta)] - KL(q(theta) || p(theta))   <=  log p(x)
"""

from abc import abstractmethod
from collections.abc import Container
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions import Delta
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.traces import Program, module_of, priors_of
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.parameters import refuse_pyro_samples
from pyrodyn.models.state_space import StateSpaceModel


class Ramp(NamedTuple):
    """A weight that moves linearly to its final value.

    Attributes:
        num_steps: length of the ramp in training steps; 0 for none.
        start: step at which it begins.
        final: the weight after it.
        initial: the weight before it; a value above ``final`` keeps a site near its prior at first.
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


class Evaluation(NamedTuple):
    """An objective on one batch.

    Attributes:
        loss: the quantity that training minimises, for the whole recording in nats; its gradient is
            the objective's estimator.
        logged: further quantities for the training log, by name, summed over trials.
        factors: names of the model's factors, such as ``recurrent_weights``; with any, the bound is
            one on the evidence times these.
    """

    loss: Float[Tensor, ""]
    logged: dict[str, Float[Tensor, ""]]
    factors: tuple[str, ...]


class Objective:
    """Abstract objective; called with a model and a guide it yields their loss.

    Attributes:
        num_particles: draws per trial.
        final_step: first training step at which every weight is final.
        is_bound: whether the loss, with final weights, is a bound on the negative log evidence.
        num_parameter_draws: draws of the parameters with priors, averaged.
    """

    num_particles: int
    final_step: int = 0
    is_bound: bool = True
    num_parameter_draws: int = 1

    def __init__(self, num_particles: int) -> None:
        check_integer(1, num_particles=num_particles)
        self.num_particles = num_particles

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""

    def __repr__(self) -> str:
        settings = self.describe()
        name = settings.pop("name")
        return (
            f"{name}("
            + ", ".join(f"{key}={value!r}" for key, value in settings.items() if value != {})
            + ")"
        )

    def __call__(self, model: Program, guide: Program) -> "Loss":
        """The loss of this model and guide.

        Raises:
            ValueError: for a model or a guide that the objective does not accept.
        """
        owner = module_of(model)
        if owner is not None:
            refuse_pyro_samples(owner)
        loss = self.loss(model, guide)
        if priors_of(model) is None or getattr(guide, "__self__", None) is not model:
            return loss
        assert isinstance(model, LatentDynamics)
        return ParameterLoss(self, model, guide)

    @abstractmethod
    def loss(self, model: Program, guide: Program) -> "Loss":
        """The loss of a model that has no priors on parameters, or whose guide draws them."""

    def given_parameters(self, names: Container[str]) -> "Objective":
        """The objective for one draw of the parameters that have priors."""
        return self

    def weight(self, site: str, step: int | None) -> float:
        """The weight of a site's KL, or of a factor, at a training step; the final one without."""
        return 1.0


class Loss(nn.Module):
    """Abstract loss of a model and a guide, a module of their parameters.

    A guide that is a method of a module brings the parameters of that module.
    """

    objective: Objective

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        owner = module_of(guide)
        if owner is not guide and owner is not model:
            self.guide_owner = owner  # of a method, so that its parameters are trained

    @abstractmethod
    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """The loss with the weights of a training step (the final ones without it)."""

    def forward(self, batch: Batch, step: int | None = None) -> Float[Tensor, ""]:
        """Negative bound of the whole recording in nats, estimated from the batch."""
        return self.evaluate(batch, step).loss


class ParameterLoss(Loss):
    """Negative bound of a model that has priors on parameters, with the model's own guide.

    The parameters are drawn from their guide, and the objective is that of the model at the values
    drawn, which is an ordinary model.
    """

    model: LatentDynamics

    def __init__(self, objective: Objective, model: LatentDynamics, guide: Program) -> None:
        super().__init__(model, guide)
        assert model.priors is not None
        self.objective = objective
        self._inner = objective.given_parameters(model.priors.cards)

    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative bound; the KL of every parameter is logged."""
        num_draws = self.objective.num_parameter_draws
        drawn = [self._evaluate_one(batch, step) for _ in range(num_draws)]
        if num_draws == 1:
            return drawn[0]
        logged = {
            name: torch.stack([each.logged[name] for each in drawn]).mean(0)
            for name in drawn[0].logged
        }
        loss = torch.stack([each.loss for each in drawn]).mean(0)
        return Evaluation(loss, logged, drawn[0].factors)

    def _evaluate_one(self, batch: Batch, step: int | None) -> Evaluation:
        assert self.model.priors is not None
        values, kls = {}, {}
        for name, (q, p) in self.model.priors.pairs(self.model).items():
            values[name] = q.rsample()
            kls[name] = kl_of_site(q, p, values[name]).sum()
        at = self.model.at(values)
        given = self._inner.loss(at, at.guide).evaluate(batch, step)
        weighted = [self.objective.weight(name, step) * value for name, value in kls.items()]
        logged = {f"kl_{name}": value for name, value in kls.items()}
        return Evaluation(given.loss + sum(weighted), {**given.logged, **logged}, given.factors)


def kl_of_site(q: Any, p: Any, value: Tensor) -> Tensor:
    """KL(q || p) in closed form if torch has one, and otherwise log q - log p of a draw of q."""
    try:
        # Pyro's closed form for a Delta leaves its log density out.
        closed_form = None if isinstance(q, Delta) else kl_divergence(q, p)
    except NotImplementedError:
        closed_form = None
    if closed_form is None:
        closed_form = q.log_prob(value) - p.log_prob(value)
    return closed_form


def check_own_guide(objective: Objective, model: Program, guide: Program) -> StateSpaceModel:
    """The model, for an objective that runs a particle filter.

    Raises:
        ValueError: for a model that is not a state-space model, and a guide that is not its own.
    """
    name = type(objective).__name__
    if not isinstance(model, StateSpaceModel):
        raise ValueError(f"{name} needs a StateSpaceModel; {type(model).__name__} is not one")
    if getattr(guide, "__self__", None) is not model:
        raise ValueError(
            f"{name} draws from model.proposal and accepts no guide but model.guide; to change the"
            " proposal distribution, set another Proposal as model.proposal"
        )
    return model


def check_guide_unused(objective: Objective, model: Program, guide: Program) -> StateSpaceModel:
    """The model, for an objective that draws nothing.

    Raises:
        ValueError: for a model that is not a state-space model, and a guide that is not its own,
            which would have no effect.
    """
    name = type(objective).__name__
    if not isinstance(model, StateSpaceModel):
        raise ValueError(f"{name} needs a StateSpaceModel; {type(model).__name__} is not one")
    if getattr(guide, "__self__", None) is not model:
        raise ValueError(
            f"{name} computes its loss without a guide, so that another guide than the model's own"
            " would have no effect; leave guide= out, or take ELBO() to train it"
        )
    return model
