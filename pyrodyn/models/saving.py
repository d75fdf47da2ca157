"""Saving and loading models: weights as safetensors and a JSON card. Nothing is pickled."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pyrodyn.models.density_model import DensityModel
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.lfads import LFADS
from pyrodyn.models.linear_dynamics import LinearDynamics
from pyrodyn.models.low_rank_rnn import LowRankRNN
from pyrodyn.models.ndt import NDT
from pyrodyn.models.sae import NodeSAE, RnnSAE
from pyrodyn.models.shallow_plrnn import ShallowPLRNN
from pyrodyn.models.state_space import Bootstrap, Proposal, StateSpaceModel

MODELS: dict[str, type[LatentDynamics]] = {
    kind.__name__: kind
    for kind in (LFADS, NodeSAE, RnnSAE, LowRankRNN, ShallowPLRNN, LinearDynamics, NDT)
}
"""The models of pyrodyn by name."""


def save(model: LatentDynamics, folder: str | Path) -> None:
    """Write ``weights.safetensors`` and ``card.json`` into a folder.

    Each file is written under a temporary name and then renamed, so that an interrupted write
    leaves the previous file intact.

    Args:
        model: the model to save.
        folder: created if it does not exist.

    Raises:
        ValueError: for a user's class with the name of one of `MODELS`, since `load` could not
            distinguish them.
        TypeError: for a config or record that cannot be written as JSON.
    """
    name = type(model).__name__
    if MODELS.get(name, type(model)) is not type(model):
        raise ValueError(
            f"{type(model).__module__}.{name} has the name of a model of pyrodyn, which it would be"
            " loaded as; rename the class"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = {
        "pyrodyn": version("pyrodyn"),
        "model": name,
        "config": model.config,
        "record": model.record,
    }
    if isinstance(model, StateSpaceModel):
        card["proposal"] = type(model.proposal).__name__
    if model.priors is not None:
        card["priors"] = model.priors.cards
    text = json.dumps(card, indent=2, default=_to_json)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    temporary = folder / "weights.safetensors.part"
    save_file(weights, temporary)
    temporary.replace(folder / "weights.safetensors")
    temporary = folder / "card.json.part"
    temporary.write_text(text)
    temporary.replace(folder / "card.json")


def load(
    folder: str | Path,
    proposal: Proposal | None = None,
    model_class: type[LatentDynamics] | None = None,
    model: LatentDynamics | None = None,
) -> LatentDynamics:
    """Load a model that `save` wrote, in evaluation mode on the CPU.

    Args:
        folder: the folder written by `save`, or ``model`` in a folder written by `pyrodyn.fit`.
        proposal: a proposal of the class that the model was saved with, if that is not the model's
            default; its weights are loaded too. Not needed for `Bootstrap`.
        model_class: the class of the model, if it is not one of `pyrodyn.models.MODELS`.
        model: for one from `StateSpaceModel.of`: a model built again from the same functions, which
            are not saved; it is given the saved weights and returned.

    Raises:
        FileNotFoundError: if there is no card.
        ValueError: if the card or the weights are damaged or do not match, if the model is of
            another class or of one that is not in `MODELS`, or if it was saved with a proposal of
            another class.
    """
    folder = Path(folder)
    card = read_card(folder)
    try:
        if card["model"] == DensityModel.__name__ or model is not None:
            model = _built_again(model, card, folder)
        else:
            model = _class_of(card["model"], model_class, folder)(**card["config"])
        model.record = card["record"]
    except KeyError as error:
        raise ValueError(f"{folder}/card.json lacks {error}") from None
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder}/card.json is no valid config of {card['model']}: {reason}"
        ) from None
    if isinstance(model, StateSpaceModel):
        _set_proposal(model, card.get("proposal"), proposal, folder)
    try:
        model.set_priors(card.get("priors", {}))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder}/card.json has priors that do not fit: {error}") from None
    try:
        weights = load_file(folder / "weights.safetensors")
        if any(tensor.dtype == torch.double for tensor in weights.values()):
            model.double()
        model.load_state_dict(weights)
    except (SafetensorError, FileNotFoundError, RuntimeError) as error:
        # The second line of torch's message names the entry that does not match.
        reason = str(error).splitlines()[:2][-1].strip()
        raise ValueError(f"the weights in {folder} cannot be loaded: {reason}") from None
    return model.eval()


def _class_of(name: str, given: type[LatentDynamics] | None, folder: Path) -> type[LatentDynamics]:
    """The class of a saved model: the one given, or the one of that name in `MODELS`."""
    if given is None:
        if name not in MODELS:
            raise ValueError(
                f"the model in {folder} is a {name}, which is none of {', '.join(MODELS)}; pass its"
                f" class, load(..., model_class={name})"
            )
        return MODELS[name]
    if not (isinstance(given, type) and issubclass(given, LatentDynamics)):
        raise ValueError("model_class must be a subclass of LatentDynamics, not an instance")
    if given.__name__ != name:
        raise ValueError(
            f"the model in {folder} is a {name}, not a {given.__name__}; pass model_class={name}"
        )
    return given


def _built_again(
    given: LatentDynamics | None, card: dict[str, Any], folder: Path
) -> LatentDynamics:
    """The model that a user has built again."""
    if given is None:
        raise ValueError(
            f"the model in {folder} was built by StateSpaceModel.of from functions, which are not"
            " saved: build it again from the same functions and pass it, load(..., model=...)"
        )
    found = {"model": type(given).__name__, "config": json.loads(json.dumps(given.config))}
    for name, value in found.items():
        if card[name] != value:
            raise ValueError(
                f"the model in {folder} has {name} {card[name]}, not {value}; pass load(...,"
                " model=...) a model built in the same way"
            )
    return given


def _set_proposal(
    model: StateSpaceModel, saved: str | None, given: Proposal | None, folder: Path
) -> None:
    """Give a model a proposal of the class that it was saved with."""
    if given is None and saved == Bootstrap.__name__:
        given = Bootstrap()
    if given is not None:
        model.proposal = given
    found = type(model.proposal).__name__
    if saved not in (None, found):
        raise ValueError(
            f"the model in {folder} was saved with a proposal of the class {saved}, not {found};"
            f" pass one to load(..., proposal={saved}(...))"
        )


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a saved model: class, config, record of its fit, package version."""
    path = Path(folder) / "card.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} contains no saved model (it has no card.json)")
    try:
        card: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(card, dict):
        raise ValueError(
            f"{path} is not a model card: it must name a model, its config and its record"
        )
    return card


def _to_json(value: object) -> object:
    """Convert a numpy scalar to a Python number."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written to a model's card")
