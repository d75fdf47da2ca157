"""The log evidence of a linear-Gaussian state-space model, by the Kalman filter::

    log p(x) = sum_t log p(x_t | x_<t)

Not a bound but the evidence itself, and its gradient has no noise but that of minibatches. The
recursion is that of `pyrodyn.infer.kalman`.
"""

from typing import Any

from pyrodyn.data.batch import Batch
from pyrodyn.infer.kalman.kalman_filter import model_recursion
from pyrodyn.infer.objectives.objective import Evaluation, Loss, Objective, check_guide_unused
from pyrodyn.infer.traces import Program
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import StateSpaceModel


class Kalman(Objective):
    """The evidence itself, for models that state their matrices by
    `StateSpaceModel.linear_gaussian`.

    Nothing is drawn: a proposal with parameters, such as an encoder, is not trained.
    """

    def __init__(self) -> None:
        super().__init__(num_particles=1)

    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""
        return {"name": "Kalman"}

    def loss(self, model: Program, guide: Program) -> "KalmanLoss":
        """The loss of a linear-Gaussian model; its own guide is not used.

        Raises:
            ValueError: for a model that is not a state-space model, and a guide that is not its
                own, which would have no effect.
        """
        return KalmanLoss(self, check_guide_unused(self, model, guide), guide)


class KalmanLoss(Loss):
    """Negative log evidence."""

    objective: Kalman

    def __init__(self, objective: Kalman, model: StateSpaceModel, guide: Program) -> None:
        super().__init__(model, guide)
        self.objective = objective

    @local_parameters()
    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative log evidence of the scored entries.

        Raises:
            ValueError: for a model that is not linear and Gaussian.
        """
        assert isinstance(self.model, StateSpaceModel)
        log_evidence = model_recursion(self.model, batch).log_evidence.sum()
        priors = self.model.weight_priors()
        return Evaluation(
            loss=-(batch.weight * log_evidence + sum(priors.values())),
            logged={},
            factors=tuple(priors),
        )
