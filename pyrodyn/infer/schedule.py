"""How training proceeds, and how it fails."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate falls and when training ends.

    Attributes:
        learning_rate: Adam's initial step size.
        factor: the learning rate is multiplied by this on a plateau of the validation loss.
        patience: epochs without improvement that make a plateau.
        stop_patience: epochs without improvement after which training ends.
        gradient_clip: largest norm of the gradient of the loss per trial.
    """

    learning_rate: float = 4e-3
    factor: float = 0.5
    patience: int = 15
    stop_patience: int = 60
    gradient_clip: float = 10.0


class NonFiniteLossError(ArithmeticError):
    """Training met NaN or infinity; the model holds the last good weights.

    Attributes:
        step: training step at which it happened.
        site: the first site whose draw or density was not finite, or what else was not finite.
    """

    def __init__(self, step: int, site: str) -> None:
        super().__init__(
            f"training stopped at step {step}: {site} is not finite; the last good weights are kept"
            " (a lower learning_rate or gradient_clip is the usual remedy)"
        )
        self.step, self.site = step, site
