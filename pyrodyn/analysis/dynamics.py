"""Dynamics to analyse, in double precision: those that a model has learned, and known ones.

A known system of differential equations z' = f(z) becomes the map over one bin of T units of its
time, by n Runge-Kutta steps of order four, no longer than the system asks for::

    step(z) = (Phi_{T / n} o ... o Phi_{T / n})(z),       n = ceil(T / max_step)

so that what is computed of a model can be computed of the system whose data it was fitted to.
"""

import copy
import math

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import ArrayLike
from pyro import poutine
from torch import Tensor

from pyrodyn.data.schema import validate
from pyrodyn.data.systems import SYSTEMS, System
from pyrodyn.kernels.runge_kutta import TABLEAUX, Tableau, explicit_step
from pyrodyn.models.dynamics import Dynamics, pushed
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import StateSpaceModel


def dynamics_of(model_or_dynamics: object) -> Dynamics:
    """The dynamics of a model in double precision on the CPU; dynamics pass through as they are.

    The model itself is left alone: its copy is in evaluation mode, and no gradient is recorded
    for its parameters.

    Args:
        model_or_dynamics: a model of the zoo, or dynamics.

    Raises:
        ValueError: for anything else, and for a model that has no dynamics.
    """
    if isinstance(model_or_dynamics, Dynamics):
        return model_or_dynamics
    if not isinstance(model_or_dynamics, LatentDynamics):
        raise ValueError(
            f"{type(model_or_dynamics).__name__} has no dynamics; give a model of pyrodyn.models,"
            " a Dynamics, or known_dynamics of a system"
        )
    return copy.deepcopy(model_or_dynamics).cpu().double().eval().requires_grad_(False).dynamics()


def state_space(model: LatentDynamics) -> StateSpaceModel:
    """The model itself, where it has states that move.

    Raises:
        ValueError: for a model without them, and for what is no model.
    """
    if not isinstance(model, LatentDynamics):
        raise ValueError(
            f"{type(model).__name__} does not say where paths begin and what is seen of them; give"
            " a model of pyrodyn.models"
        )
    if not isinstance(model, StateSpaceModel):
        raise ValueError(f"{type(model).__name__} has no dynamics of its own to analyse")
    return model


def refuse_divergence(path: Float[Tensor, "trial time *dims"], first_bin: int = 0) -> None:
    """Stop at the first bin at which a path is not finite.

    Args:
        path: states, or what follows from them.
        first_bin: the number of its first bin.

    Raises:
        ArithmeticError: naming trial and bin.
    """
    is_off = ~path.isfinite().flatten(2).all(-1)
    if is_off.any():
        t = int(is_off.any(0).nonzero()[0])
        trial = int(is_off[:, t].nonzero()[0])
        raise ArithmeticError(
            f"the path of trial {trial} is not finite from bin {first_bin + t} on: start it inside"
            " the basin of an attractor; of a NodeSAE, also compare its step with the exact path"
            " by solver_check"
        )


@torch.no_grad()
def visited_states(
    model: LatentDynamics, recording: xr.Dataset, *, seed: int = 0
) -> Float[Tensor, "trial time state"]:
    """Where a model's dynamics are on a recording: one draw of the guide per trial.

    What a search for fixed points begins at, and a portrait shows.

    Args:
        model: a state-space model.
        recording: its trials.
        seed: seeds the draw.

    Raises:
        ValueError: for a model without dynamics, or a recording that it cannot read.
        ArithmeticError: for a path that does not stay finite, naming its trial and bin.
    """
    model = state_space(model)
    recording = validate(recording)
    model.check(recording)
    batch = model.trials_of(recording).batch()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nodes = poutine.trace(model.guide).get_trace(batch).nodes
    inputs = model.known_inputs(batch)
    start = nodes[model.initial_condition_site]["value"] if model.initial_condition_site else None
    if model.path_site in nodes:
        path = nodes[model.path_site]["value"]
    else:
        path = inputs.new_zeros(*inputs.shape[:2], 0)
    states = model.dynamics_state(model.states(start, path, inputs))
    refuse_divergence(states, model.first_bin)
    return states


def known_dynamics(system: str | System) -> Dynamics:
    """The dynamics of a known system, without pulses; a unit of its time stands for a second.

    Args:
        system: a name in `pyrodyn.data.systems.SYSTEMS`, or a system whose field also takes
            tensors.

    Returns:
        Its flow over ``time_per_bin``, with ``vector_field`` per unit of system time.

    Raises:
        ValueError: for names that are not known, systems with a delay (their state is a whole
            history) and fields that torch cannot differentiate.
    """
    if isinstance(system, str):
        if system not in SYSTEMS:
            raise ValueError(f"no system is called {system!r}; choose one of {', '.join(SYSTEMS)}")
        system = SYSTEMS[system]
    known = system
    if known.delay:
        raise ValueError(
            f"{known.name} has a delay of {known.delay}: its state is a history, not a vector;"
            " choose a system without delay"
        )
    _check_field(known)
    substeps = math.ceil(known.time_per_bin / known.max_step)
    # The bin's length goes into the scheme and leaves the field alone: in forward derivatives a
    # product with a constant costs as much as all the rest.
    reach, weight = TABLEAUX["rk4"]
    one_bin = Tableau(
        tuple(known.time_per_bin * a for a in reach), tuple(known.time_per_bin * b for b in weight)
    )

    def step(
        state: Float[Tensor, "*left state"], inputs: Float[Tensor, "*left input"]
    ) -> Float[Tensor, "*left state"]:
        stepped: Tensor = explicit_step(known.field, state, one_bin, substeps)
        return stepped

    return Dynamics(
        step=step,
        state_dim=known.dim,
        bin_width=known.time_per_bin,
        vector_field=lambda state, inputs: known.field(state),
    )


def states_for(
    dynamics: Dynamics, states: ArrayLike | Tensor, name: str
) -> Float[Tensor, "row state"]:
    """States in double precision, one per row; leading dims are flattened.

    Args:
        dynamics: whose states they are.
        states: ``(..., state)``.
        name: what the caller calls them.

    Raises:
        ValueError: for no states, states of the wrong dimension and such as are not finite.
    """
    array = _double(states)
    if array.ndim == 0 or array.shape[-1] != dynamics.state_dim or array.size == 0:
        raise ValueError(
            f"{name} must be states of shape (..., {dynamics.state_dim}), at least one, not"
            f" {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; leave out states that hold NaN or infinity")
    return torch.from_numpy(array.reshape(-1, dynamics.state_dim))


def held_inputs(dynamics: Dynamics, inputs: ArrayLike | Tensor | None) -> Float[Tensor, " input"]:
    """Inputs held constant, in double precision; 0 where none are given.

    Raises:
        ValueError: for inputs of the wrong number and such as are not finite.
    """
    if inputs is None:
        return torch.zeros(dynamics.input_dim, dtype=torch.float64)
    array = _double(inputs)
    if array.shape != (dynamics.input_dim,) or not np.isfinite(array).all():
        raise ValueError(
            f"inputs must be {dynamics.input_dim} finite numbers, one per input held constant, not"
            f" {inputs!r}"
        )
    return torch.from_numpy(array)


def _double(values: ArrayLike | Tensor) -> np.ndarray:
    """Numbers of any kind as a new array of doubles."""
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.array(plain, np.float64)


def _check_field(system: System) -> None:
    """Refuse a field that only numpy understands."""
    middle = torch.as_tensor(0.5 * (system.initial_low + system.initial_high)).double()
    try:
        value, _ = pushed(system.field, middle, torch.ones_like(middle))
    except (RuntimeError, TypeError, AttributeError) as problem:
        raise ValueError(
            f"the field of {system.name!r} cannot be differentiated by torch ({problem}); write it"
            " with functions that take tensors too"
        ) from problem
    if value.shape != middle.shape:
        raise ValueError(
            f"the field of {system.name!r} maps {tuple(middle.shape)} to {tuple(value.shape)};"
            " it must return one derivative per state variable"
        )
