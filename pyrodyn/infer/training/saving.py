"""Fits on disk: the model as `pyrodyn.models.saving` writes it, its guide and history beside it.

::

    folder/card.json            the model's class, sizes and record
    folder/weights.safetensors  its weights
    folder/fit.json             history, diagnostics, and the class of a guide of the user's own
    folder/guide.safetensors    the state of that guide
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import torch
import xarray as xr
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyrodyn.data.batch import Batch
from pyrodyn.infer.guides.check_guide import GuideError
from pyrodyn.infer.guides.per_trial import (
    RecordedTrials,
    cut_from_recording,
    recorded_trials,
    set_trials,
)
from pyrodyn.infer.traces import Program, guide_program, module_of
from pyrodyn.infer.training.fitted import Fit, guide_name
from pyrodyn.models import saving
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.parameters import local_parameters

Guide = nn.Module | Callable[[LatentDynamics], Program]
"""A guide, or what makes one for a model, such as its class."""


def save(fitted: LatentDynamics | Fit[Any], folder: str | Path) -> None:
    """Write a model, or a `Fit` with its guide and history, into a folder.

    Each file is written beside its target and renamed, so an interrupted write leaves the last
    good one.

    Args:
        fitted: what to keep. A guide of one's own is written only with its `Fit`.
        folder: made where it does not exist.
    """
    folder = Path(folder)
    model = fitted.model if isinstance(fitted, Fit) else fitted
    saving.save(model, folder)
    if not isinstance(fitted, Fit):
        for name in ("fit.json", "guide.safetensors"):  # of a fit written here before
            (folder / name).unlink(missing_ok=True)
        return
    owner, trials = module_of(fitted.guide), recorded_trials(fitted.guide)
    if owner is not None and owner is not model:
        state = {name: value.contiguous().clone() for name, value in owner.state_dict().items()}
        _replace(folder / "guide.safetensors", lambda part: save_file(state, part))
    else:
        (folder / "guide.safetensors").unlink(missing_ok=True)
    card = {
        "guide": guide_name(model, fitted.guide),
        "trials": None if trials is None else trials.keys,
        "needs_all_trials": trials is not None and trials.needs_all,
        "history": {name: values.values.tolist() for name, values in fitted.history.items()},
        "best_epoch": fitted.best_epoch,
        "num_steps": fitted.num_steps,
        "diagnostics": list(fitted.diagnostics),
    }
    _replace(folder / "fit.json", lambda part: part.write_text(json.dumps(card, indent=2)))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    beside = path.with_name(f"{path.name}.part")
    write(beside)
    beside.replace(path)


@overload
def load(folder: str | Path, *, guide: None = None, **parts: Any) -> LatentDynamics: ...


@overload
def load(folder: str | Path, *, guide: Guide, **parts: Any) -> Fit[LatentDynamics]: ...


def load(
    folder: str | Path, *, guide: Guide | None = None, **parts: Any
) -> LatentDynamics | Fit[LatentDynamics]:
    """What `save` wrote, in evaluation mode on the CPU.

    Args:
        folder: written by `save`, or ``model`` in a folder written by `fit`.
        guide: for a fit with a guide of one's own: a guide of the class that ``fit.json`` names,
            or what makes it for the loaded model, such as ``AutoNormal`` or
            ``lambda model: MyGuide(model, width=16)``. Its weights are read.
        parts: what else the model was built from, see `pyrodyn.models.saving.load`: a ``proposal``
            of one's own, or the ``model`` from `StateSpaceModel.of` itself.

    Returns:
        The model alone; with ``guide`` the `Fit`. `predict` and `to_datatree` refuse the model
        alone if it was fitted with a guide of one's own.

    Raises:
        FileNotFoundError: where there is no card.
        ValueError: where the files are broken or do not fit together.
        GuideError: for a guide of another class or size than the saved one.
    """
    folder = Path(folder)
    model = saving.load(folder, **parts)
    if guide is None:
        return model
    if not (folder / "fit.json").exists():
        raise GuideError(
            f"{folder} holds a model without the guide that it was fitted with; save the Fit that"
            " fit(...) returned, or leave guide= out"
        )
    card = json.loads((folder / "fit.json").read_text())
    if card["guide"] is None:
        raise GuideError(
            f"the fit in {folder} used the model's own guide, which is part of the model; leave"
            " guide= out"
        )
    built = guide if isinstance(guide, nn.Module) else guide(model)
    found = guide_name(model, built)
    if found != card["guide"]:
        raise GuideError(
            f"the fit in {folder} used a guide of the class {card['guide']}, not {found}; pass"
            f" load(..., guide={card['guide']}) or what makes one for a model"
        )
    _restore(built, model, card, folder)
    history = xr.Dataset(
        {name: ("epoch", values) for name, values in card["history"].items()},
        coords={"epoch": range(len(next(iter(card["history"].values()), [])))},
    )
    diagnostics = tuple(card["diagnostics"])
    return Fit(model, built, history, card["best_epoch"], card["num_steps"], diagnostics)


def _restore(guide: Program, model: LatentDynamics, card: dict[str, Any], folder: Path) -> None:
    """Give a new guide the parameters that were saved."""
    owner = module_of(guide)
    if owner is None:
        return
    num_trials = 2
    if card["trials"] is not None and isinstance(guide, AutoGuide | AutoMessenger):
        set_trials(guide, RecordedTrials(card["trials"], card["needs_all_trials"]))
        num_trials = len(card["trials"])
    try:
        weights = load_file(folder / "guide.safetensors")
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            local_parameters(),
            cut_from_recording(guide),
        ):
            guide_program(guide)(_blank(model, num_trials))  # makes what its first run makes
        for parameter in owner.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        owner.load_state_dict(weights)
    except (SafetensorError, FileNotFoundError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[:2][-1].strip()
        raise GuideError(f"the guide in {folder} cannot be loaded: {reason}") from None
    owner.eval()


def _blank(model: LatentDynamics, num_trials: int) -> Batch:
    """Trials of the shape that a model was fitted to, in which nothing was measured."""
    data, weight = model.record["data"], next(model.parameters())
    num_bins, num_units = data["num_bins"], model.observation.num_neurons
    zeros: Tensor = weight.new_zeros(num_trials, num_bins, num_units)
    nothing = torch.zeros(zeros.shape, dtype=torch.bool)
    return Batch(
        x=zeros,
        seen=zeros,
        visible=nothing,
        scored=nothing,
        inputs=weight.new_zeros(num_trials, num_bins, model.config["input_dim"]),
        trial=torch.arange(num_trials),
        horizon=num_bins,
    )
