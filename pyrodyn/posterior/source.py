"""Where draws come from: a model, its guide and a method, resolved from what a user passes."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import xarray as xr

from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import blocks
from pyrodyn.data.trial_hashes import trial_hashes
from pyrodyn.infer.guides.check_guide import check_guide
from pyrodyn.infer.guides.per_trial import tie_to_first_run
from pyrodyn.infer.traces import Program, module_of
from pyrodyn.infer.training.fitted import Fit, guide_name, model_and_guide, require_own_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import StateSpaceModel

WITHOUT_GUIDE = {
    "VSMC": "smoother",
    "SmoothedScore": "smoother",
    "GTF": "smoother",
    "Kalman": "exact",
}
"""Methods after objectives under which the guide is not what was fitted: it is the proposal of a
particle filter, or not used.
"""

BY_GUIDE = ("guide", "dropout", "importance", "mcmc")
"""Methods that draw from the guide, or start there."""


class Source(NamedTuple):
    """A model, the guide that is drawn from and the method.

    Attributes:
        model: the model.
        guide: the guide.
        method: one of `pyrodyn.posterior.samplers.METHODS`.
    """

    model: LatentDynamics
    guide: Program
    method: str

    @property
    def attrs(self) -> dict[str, str]:
        """The same by name, for the attributes of a tree."""
        return {
            "model": type(self.model).__name__,
            "guide": guide_name(self.model, self.guide) or f"{type(self.model).__name__}.guide",
            "method": self.method,
        }

    def check(
        self, recording: xr.Dataset, first: Batch, *, seed: int, is_simulated: bool = False
    ) -> None:
        """Refuse a guide that does not fit the model, and warn of neurons or channels that an
        encoder would read for which it has no trained weights.

        Args:
            recording: the trials that it will draw for.
            first: the first of these trials that are drawn for at once.
            seed: of what the guide draws meanwhile; one that is solved per batch keeps solutions.
            is_simulated: whether it will draw for data that the model simulates in their place.

        Raises:
            GuideError: naming every problem.
        """
        self._warn_of_untrained_units(recording)
        if self.method not in BY_GUIDE or guide_name(self.model, self.guide) is None:
            return
        tie_to_first_run(self.guide)
        hashes = trial_hashes(recording)
        trained = self.model.record.get("training", {}).get("trials", {}).get("train", hashes)
        with self.evaluating(), torch.random.fork_rng():
            torch.manual_seed(seed)
            check_guide(
                self.model,
                self.guide,
                first,
                sees_other_trials=is_simulated or hashes != trained[: len(hashes)],
                training=False,
            ).require()

    def _warn_of_untrained_units(self, recording: xr.Dataset) -> None:
        is_own = self.method not in BY_GUIDE or guide_name(self.model, self.guide) is None
        if is_own and isinstance(self.model, StateSpaceModel):
            reads = self.model.proposal.has_encoder
        else:
            reads = not self.model.has_latents or module_of(self.guide) is not None
        if not reads:
            return
        for block, argument in zip(blocks(recording), ("neurons", "channels"), strict=False):
            hidden = self.model.record.get("data", {}).get(block.held_out, [])
            marks = recording.coords.get(block.held_out)
            shown = [n for n in hidden if marks is None or not marks.values[n]]
            if shown:
                warnings.warn(
                    f"{len(shown)} {block.unit}s were held out of the encoder during the fit, which"
                    " has no trained weights for them, but the recording shows them to it; mark"
                    f" them by pyrodyn.data.held_out(recording, {argument}={shown})",
                    stacklevel=4,
                )

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, model and guide are in evaluation mode; afterwards every module is as before."""
        guide = module_of(self.guide)
        modules = {*self.model.modules(), *(guide.modules() if guide is not None else ())}
        modes = {module: module.training for module in modules}
        self.model.eval()
        if guide is not None:
            guide.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def source(fitted: LatentDynamics | Fit[Any], guide: Program | None, method: str | None) -> Source:
    """The guide and method to draw by.

    Args:
        fitted: a model, or a `Fit`, which brings the guide that was trained with it.
        guide: the guide to use; None takes that of the fit, or else the model's own.
        method: None takes the smoother for models fitted by `VSMC`, `SmoothedScore` or `GTF`, exact
            draws for those fitted by `Kalman`, dropout for models without latents, and otherwise
            the guide.

    Raises:
        ValueError: for a model without ``guide=`` that was fitted with a guide other than its own,
            and a guide that the method does not use.
    """
    model, trained = model_and_guide(fitted)
    training = model.record.get("training", {})
    chosen = trained if guide is None else guide
    if method is None:
        is_own = chosen is None or guide_name(model, chosen) is None
        objective = training.get("objective", {}).get("name")
        method = WITHOUT_GUIDE.get(objective, "guide") if is_own else "guide"
        if not model.has_latents and model.has_dropout:
            method = "dropout"
    if chosen is None and method in BY_GUIDE:
        require_own_guide(model)
    is_used = method in BY_GUIDE or model.priors is not None
    if guide is not None and guide_name(model, guide) is not None and not is_used:
        raise ValueError(
            f"guide={guide_name(model, guide)} is not used by method={method!r}; it is for"
            f" {', '.join(map(repr, BY_GUIDE))}"
        )
    return Source(model, model.guide if chosen is None else chosen, method)
