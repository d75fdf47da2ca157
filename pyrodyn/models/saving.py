"""Models on disk: weights as safetensors beside a JSON card. Nothing is ever unpickled."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.lfads import LFADS
from pyrodyn.models.low_rank_rnn import LowRankRNN
from pyrodyn.models.sae import NodeSAE, RnnSAE
from pyrodyn.models.state_space import Bootstrap, Proposal, StateSpaceModel

MODELS: dict[str, type[LatentDynamics]] = {
    kind.__name__: kind for kind in (LFADS, NodeSAE, RnnSAE, LowRankRNN)
}
"""The zoo by name."""


def save(model: LatentDynamics, folder: str | Path) -> None:
    """Write ``weights.safetensors`` and ``card.json`` into a folder.

    Each file is written beside its target and renamed, so an interrupted write leaves the last
    good one.

    Args:
        model: the model to keep.
        folder: created if it does not exist.

    Raises:
        ValueError: for a class of one's own that has the name of one of `MODELS`, for which it
            would be taken on loading.
        TypeError: for a config or record that JSON cannot express.
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
    text = json.dumps(card, indent=2, default=_plain)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    beside = folder / "weights.safetensors.part"
    save_file(weights, beside)
    beside.replace(folder / "weights.safetensors")
    beside = folder / "card.json.part"
    beside.write_text(text)
    beside.replace(folder / "card.json")


def load(
    folder: str | Path,
    proposal: Proposal | None = None,
    model_class: type[LatentDynamics] | None = None,
) -> LatentDynamics:
    """The model that `save` wrote, in evaluation mode on the CPU.

    Args:
        folder: written by `save`, or ``model`` in a folder written by `pyrodyn.fit`.
        proposal: of the kind that stood in place of the model's own; its weights are read too. Not
            needed for `Bootstrap`.
        model_class: the class of the model, if it is not one of `pyrodyn.models.MODELS`.

    Raises:
        FileNotFoundError: where there is no card.
        ValueError: where card and weights are broken or do not fit together, the model is of
            another class or of one that is not in `MODELS`, or it was saved with a proposal of
            another kind.
    """
    folder = Path(folder)
    card = read_card(folder)
    try:
        model = _class_of(card["model"], model_class, folder)(**card["config"])
        model.record = card["record"]
    except KeyError as error:
        raise ValueError(f"{folder}/card.json lacks {error}") from None
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder}/card.json describes no {card['model']}: {reason}") from None
    if isinstance(model, StateSpaceModel):
        _propose(model, card.get("proposal"), proposal, folder)
    try:
        weights = load_file(folder / "weights.safetensors")
        if any(tensor.dtype == torch.double for tensor in weights.values()):
            model.double()
        model.load_state_dict(weights)
    except (SafetensorError, FileNotFoundError, RuntimeError) as error:
        # torch names what does not fit in its second line.
        reason = str(error).splitlines()[:2][-1].strip()
        raise ValueError(f"the weights in {folder} cannot be loaded: {reason}") from None
    return model.eval()


def _class_of(name: str, given: type[LatentDynamics] | None, folder: Path) -> type[LatentDynamics]:
    """The class of a saved model: the one given, or the one of that name in `MODELS`."""
    if given is None:
        if name not in MODELS:
            raise ValueError(
                f"the model in {folder} is a {name}, which is none of {', '.join(MODELS)}; give its"
                f" class, load(..., model_class={name})"
            )
        return MODELS[name]
    if not (isinstance(given, type) and issubclass(given, LatentDynamics)):
        raise ValueError("model_class must be a subclass of LatentDynamics: the class, no instance")
    if given.__name__ != name:
        raise ValueError(
            f"the model in {folder} is a {name}, not a {given.__name__}; give model_class={name}"
        )
    return given


def _propose(
    model: StateSpaceModel, saved: str | None, given: Proposal | None, folder: Path
) -> None:
    """Let a model have the kind of proposal that it was saved with."""
    if given is None and saved == Bootstrap.__name__:
        given = Bootstrap()
    if given is not None:
        model.proposal = given
    found = type(model.proposal).__name__
    if saved not in (None, found):
        raise ValueError(
            f"the model in {folder} was saved with a proposal of the class {saved}, not {found};"
            f" hand one to load(..., proposal={saved}(...))"
        )


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a saved model: class, sizes, record of its making, package version."""
    path = Path(folder) / "card.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no saved model (no card.json there)")
    try:
        card: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(card, dict):
        raise ValueError(f"{path} is no card, which names a model, its config and its record")
    return card


def _plain(value: object) -> object:
    """A number of numpy's as one that JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} has no place in a model's card")
