"""Models of several sessions with other neurons each: a common start, and a new session.

The read-ins W_s and readouts C_s of the sessions s start alike, so that the same state of the
population is read in alike whichever neurons were recorded::

    L      loadings of all neurons on components that the sessions have in common: those of the
           averages of each condition, which every session has of all its neurons
    P_s    rows of L of session s, made orthonormal by (L_s' L_s)^-1/2
    W_s    = A P_s' sqrt(N_s / K),    C_s = P_s B sqrt(N_s / K)

A ``(hidden, K)`` and B ``(K, factor)`` are the same for all sessions, with entries of the initial
weights. A regression of the common components on the activity of a session's neurons is such a
read-in (Pandarinath et al. 2018, Nat Methods 15:805, use principal components regression). Where
there are no conditions the average is that of all trials.
"""

from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import SESSIONS, blocks
from pyrodyn.models.initial_loadings import initial_loadings
from pyrodyn.models.latent_dynamics import LatentDynamics

MOST_COMPONENTS = 8
"""Common components at most; a session with fewer neurons limits them further."""


class OfUnits(NamedTuple):
    """The parameters and buffers of a model whose shape follows the number of neurons and channels.

    Attributes:
        read_in: by name, those with the units along the second dim, ``(hidden, unit, ...)``.
        readout: by name, those with the units (or their predictors) along the first.
    """

    read_in: dict[str, Tensor]
    readout: dict[str, Tensor]


def of_units(model: LatentDynamics) -> OfUnits:
    """The parameters and buffers whose shape changes with one more unit of every block."""
    more = dict(model.config)
    if isinstance(more["observation"], str):
        more["num_neurons"] += 1
    else:
        spec = {name: [kind, size + 1] for name, (kind, size) in more["observation"].items()}
        more |= {"observation": spec, "num_neurons": more["num_neurons"] + len(spec)}
    with torch.random.fork_rng(devices=[]):
        larger = type(model)(**more).state_dict(keep_vars=True)
    found = OfUnits({}, {})
    for name, value in model.state_dict(keep_vars=True).items():
        if value.shape != larger[name].shape:
            is_readout = value.shape[0] != larger[name].shape[0]
            (found.readout if is_readout else found.read_in)[name] = value
    return found


def for_session(
    model: LatentDynamics, recording: xr.Dataset, *, seed: int | None = None
) -> LatentDynamics:
    """A fitted model for the neurons of another session, in which only what belongs to neurons is
    trained: read-ins, readouts and the noise of single channels. The dynamics, the prior of the
    initial state and the rest of the guide are those of the fitted model and fixed.

    Args:
        model: the fitted model, such as that of several `pyrodyn.data.sessions`.
        recording: trials of the new session.
        seed: of the new weights.

    Returns:
        A model of the same class and sizes, to be fitted to the recording by `pyrodyn.fit`.

    Raises:
        ValueError: for anything but a model, a model with priors, and a recording of other inputs
            or observed variables.
    """
    if not isinstance(model, LatentDynamics):
        raise ValueError(
            f"expected a model of pyrodyn.models, not a {type(model).__name__}; of a Fit pass its"
            " .model"
        )
    if model.priors is not None:
        raise ValueError(
            "this model has priors of parameters, which a new session would not train: take"
            " model.at(values)"
        )
    sizes = dict(model.config)
    num_inputs, observation = sizes.pop("input_dim"), sizes.pop("observation")
    del sizes["num_neurons"]
    if not isinstance(observation, str):
        observation = {name: kind for name, (kind, _) in observation.items()}
    new = type(model).for_recording(recording, seed=seed, observation=observation, **sizes)
    if new.config["input_dim"] != num_inputs:
        raise ValueError(
            f"the model has {num_inputs} inputs, but the recording {new.config['input_dim']}"
        )
    new.to(next(model.parameters()))
    own = {name for names in of_units(new) for name in names}
    fitted = model.state_dict()
    with torch.no_grad():
        for name, value in new.state_dict(keep_vars=True).items():
            if name not in own:
                value.copy_(fitted[name])
                value.requires_grad_(False)
    return new


@torch.no_grad()
def start_alike(model: LatentDynamics, recording: xr.Dataset, everything: Batch) -> None:
    """Start the read-ins and readouts of all sessions alike, see above.

    Readouts that start from the covariances of a recording start from those of its averages.

    Args:
        model: the model, initialised by `LatentDynamics.start_from`.
        recording: of several sessions.
        everything: its trials.
    """
    groups = _groups(recording)
    average = _averages(recording, everything)
    if average is None:
        return
    its = of_units(model)
    at_random = {name: value.clone() for name, value in its.readout.items() if value.ndim > 1}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.start_from(average)
    started = {
        name: value.clone()
        for name, value in its.readout.items()
        if value.ndim > 1 and not torch.equal(value, at_random[name])
    }
    model.load_state_dict(state)

    K = min(MOST_COMPONENTS, *(len(group) for group in groups))
    assert average.x is not None
    x = model.observation.standardised(average.x, average.scored)
    loadings = initial_loadings(x, average.scored, K)
    directions = torch.zeros_like(loadings)
    for group in groups:
        left, _, right = torch.linalg.svd(loadings[group].double(), full_matrices=False)
        directions[group] = (left @ right * (len(group) / K) ** 0.5).to(loadings)
    num_units = len(loadings)
    for weight in its.read_in.values():
        # Further columns, if any, belong to no unit.
        common = weight[:, _columns(num_units, K)]
        read = torch.einsum("hk...,nk->hn...", common, directions.to(weight))
        weight[:, :num_units] = read
    unit_of, _ = model.observation.predictors()
    for name, weight in its.readout.items():
        if weight.ndim == 1:
            continue
        if name in started:
            weight.copy_(started[name])
        elif len(unit_of) == len(weight):
            common = weight[_columns(num_units, K).to(weight.device)]
            weight.copy_(directions.to(weight)[unit_of.to(weight.device)] @ common)


def _columns(num_units: int, num_components: int) -> Tensor:
    """Evenly spaced units, whose random weights become those of the components."""
    return torch.linspace(0, num_units - 1, num_components).round().long()


def _groups(recording: xr.Dataset) -> list[NDArray[np.int_]]:
    """Columns of the units of each session."""
    names = np.concatenate([recording[SESSIONS[block.unit]].values for block in blocks(recording)])
    return [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]


def _averages(recording: xr.Dataset, everything: Batch) -> Batch | None:
    """The average of each condition as a trial in which every unit is measured. Conditions that a
    session lacks are left out; if none is left, or there are none, one average of all trials; None
    if there are units that no trial measured.
    """
    assert everything.x is not None
    trials = everything.num_trials
    labels = recording["condition"].values if "condition" in recording else np.zeros(trials)
    found: list[Float[Tensor, "time unit"]] = []
    for kept in [*(labels == label for label in np.unique(labels)), np.ones(trials, bool)]:
        chosen = torch.from_numpy(kept).to(everything.x.device)
        scored = everything.scored[chosen].to(everything.x)
        number = scored.sum(0)
        if (number.sum(0) == 0).any() or (kept.all() and found):
            continue
        overall = (everything.x[chosen] * scored).sum((0, 1)) / scored.sum((0, 1))
        total = (everything.x[chosen] * scored).sum(0)
        found.append(torch.where(number > 0, total / number.clamp_min(1), overall))
    if not found:
        return None
    x = torch.stack(found)
    measured = torch.ones_like(x, dtype=torch.bool)
    return everything.take(slice(0, 1)).replace(
        x=x,
        seen=x,
        visible=measured,
        scored=measured,
        inputs=everything.inputs.new_zeros(*x.shape[:2], everything.inputs.shape[-1]),
        trial=torch.arange(len(x), device=x.device),
    )
