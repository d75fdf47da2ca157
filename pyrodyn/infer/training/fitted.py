"""What a fit yields: a model together with the guide that was trained with it."""

import dataclasses
from typing import Any

import xarray as xr
from torch import nn

from pyrodyn.infer.traces import Program
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.summary import as_html, as_text


@dataclasses.dataclass(frozen=True)
class Fit[Model: LatentDynamics]:
    """A fitted model with its guide and its history.

    Attributes:
        model: the fitted model, with the weights of the best validation epoch (the last weights
            without validation), in evaluation mode.
        guide: the guide that was trained with it: ``model.guide``, or the one passed to `fit`,
            with the weights of the same epoch and in evaluation mode.
        history: losses and KLs per epoch, in nats per trial, as a dataset along ``epoch``.
        best_epoch: epoch of the kept weights.
        num_steps: training steps taken.
        diagnostics: what is doubtful about how the fit ended, a sentence each; each was a
            warning, too.
    """

    model: Model
    guide: Program
    history: xr.Dataset
    best_epoch: int
    num_steps: int
    diagnostics: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """The data that the model was fitted to and the settings that were used, see
        `LatentDynamics.record`.
        """
        return self.model.record

    def __repr__(self) -> str:
        return as_text(self._summary())

    def _repr_html_(self) -> str:
        return as_html(self._summary())

    def _summary(self) -> list[tuple[str, str]]:
        (name, state), *rest = self.model._summary()
        kept = f"epoch {self.best_epoch} of {self.history.sizes.get('epoch', 0)}"
        for loss in ("valid_loss", "train_loss"):
            if loss in self.history:
                value = float(self.history[loss][self.best_epoch])
                kept += f", {loss.replace('_', ' ')} {value:.2f} nats per trial"
                break
        rows = [(f"Fit of {name}", state), ("kept", kept), *rest]
        return [*rows, *(("warning", sentence) for sentence in self.diagnostics)]


def model_and_guide[Model: LatentDynamics](
    fitted: Model | Fit[Model],
) -> tuple[Model, Program | None]:
    """The model of a `Fit` and the guide trained with it; a model alone comes with None.

    With None, ``model.guide`` may be used only if `require_own_guide` accepts the model.
    """
    if isinstance(fitted, Fit):
        return fitted.model, fitted.guide
    return fitted, None


def require_own_guide(model: LatentDynamics) -> None:
    """Refuse a model that was fitted with a guide other than its own.

    Raises:
        ValueError: naming that guide.
    """
    fitted_with = model.record.get("training", {}).get("guide")
    if fitted_with is not None:
        raise ValueError(
            f"this {type(model).__name__} was fitted with the guide {fitted_with}, so that its own"
            " guide was never trained: pass guide=, or the Fit that fit(...) returned"
        )


def guide_name(model: LatentDynamics, guide: Program) -> str | None:
    """The name under which ``model.record["training"]["guide"]`` records a guide.

    Returns:
        None for ``model.guide`` itself; otherwise the class of a module, or the qualified name of
        a function or method.
    """
    if getattr(guide, "__self__", None) is model:
        return None
    if isinstance(guide, nn.Module) or not hasattr(guide, "__qualname__"):
        return type(guide).__name__
    return str(guide.__qualname__)
