"""The interface of objectives.

``objective(model, guide)`` is a loss: a module with the model's and the guide's parameters. Called
with a batch it returns the negative bound of the whole recording in nats, estimated from the batch.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.traces import Program, module_of
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
    """

    num_particles: int
    final_step: int = 0
    is_bound: bool = True

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
            f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items() if value)})"
        )

    @abstractmethod
    def __call__(self, model: Program, guide: Program) -> "Loss":
        """The loss of this model and guide."""


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
