"""Dynamics to analyse, in double precision: those that a model has learned, and known systems.

A known system of differential equations z' = f(z) becomes the map over one bin of T units of its
time, by n Runge-Kutta steps of order four that are no longer than the system's largest step::

    step(z) = (Phi_{T / n} o ... o Phi_{T / n})(z),       n = ceil(T / max_step)

Every analysis of a model's dynamics therefore also applies to the system that generated its data.
"""

import copy
import math

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from pyrodyn.data.schema import validate
from pyrodyn.data.systems import SYSTEMS, System
from pyrodyn.infer.guides.check_guide import check_guide
from pyrodyn.infer.traces import Program, guide_program, traced
from pyrodyn.infer.training.fitted import (
    Fit,
    guide_name,
    model_and_guide,
    require_own_guide,
)
from pyrodyn.kernels.runge_kutta import TABLEAUX, Tableau, explicit_step
from pyrodyn.models.dynamics import Dynamics, jvp
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import StateSpaceModel


def dynamics_of(model_or_dynamics: object) -> Dynamics:
    """The dynamics of a model in double precision on the CPU; dynamics pass through as they are, if
    they take such states.

    The model itself is not changed: a copy of it is in evaluation mode, and no gradient is recorded
    for the copy's parameters.

    Args:
        model_or_dynamics: a model of the zoo, a `Fit` of one, or dynamics.

    Raises:
        ValueError: for anything else, for a model that has no dynamics, and for dynamics in single
            precision or on a GPU, such as ``model.dynamics()``.
    """
    if isinstance(model_or_dynamics, Fit):
        return dynamics_of(model_or_dynamics.model)
    if isinstance(model_or_dynamics, Dynamics):
        _check_takes_doubles(model_or_dynamics)
        return model_or_dynamics
    if not isinstance(model_or_dynamics, LatentDynamics):
        raise ValueError(
            f"{type(model_or_dynamics).__name__} has no dynamics; give a model of pyrodyn.models,"
            " a Dynamics, or known_dynamics of a system"
        )
    return copy.deepcopy(model_or_dynamics).cpu().double().eval().requires_grad_(False).dynamics()


@torch.no_grad()
def _check_takes_doubles(dynamics: Dynamics) -> None:
    state = torch.zeros(1, dynamics.state_dim, dtype=torch.double)
    try:
        dynamics.step(state, dynamics.no_inputs(state))
    except RuntimeError as problem:
        raise ValueError(
            "these dynamics do not take states in double precision on the CPU, where they are"
            f" analysed ({problem}): give the model itself, or dynamics_of(model)"
        ) from problem


def state_space(model: LatentDynamics | Fit[LatentDynamics]) -> StateSpaceModel:
    """The model itself, or that of a `Fit`, if it is a state-space model.

    Raises:
        ValueError: for a model without dynamics, and for what is not a model.
    """
    if isinstance(model, Fit):
        model = model.model
    if not isinstance(model, LatentDynamics):
        raise ValueError(
            f"{type(model).__name__} has no initial-state distribution and no observation model;"
            " give a model of pyrodyn.models"
        )
    if not isinstance(model, StateSpaceModel):
        raise ValueError(f"{type(model).__name__} has no dynamics of its own to analyse")
    return model


def check_finite(trajectory: Float[Tensor, "trial time *dims"], first_bin: int = 0) -> None:
    """Raise an error that names the first bin in which a trajectory is not finite.

    Args:
        trajectory: states, or values computed from them.
        first_bin: index of its first bin.

    Raises:
        ArithmeticError: naming trial and bin.
    """
    is_off = ~trajectory.isfinite().flatten(2).all(-1)
    if is_off.any():
        t = int(is_off.any(0).nonzero()[0])
        trial = int(is_off[:, t].nonzero()[0])
        raise ArithmeticError(
            f"the trajectory of trial {trial} is not finite from bin {first_bin + t} on: start it"
            " inside the basin of an attractor; for a NodeSAE, also compare its solver with an"
            " exact one by solver_check"
        )


@torch.no_grad()
def visited_states(
    model: LatentDynamics | Fit[LatentDynamics],
    recording: xr.Dataset,
    *,
    guide: Program | None = None,
    seed: int = 0,
) -> Float[Tensor, "trial time state"]:
    """States of a model's dynamics on a recording: one draw of the guide per trial.

    They serve as starts of a search for fixed points and as trajectories of a phase portrait.

    Args:
        model: a state-space model, or the `Fit` that `fit` returned, which brings its guide.
        recording: its trials.
        guide: the guide to draw from; by default that of the fit, or the model's own.
        seed: seeds the draw.

    Raises:
        ValueError: for a model without dynamics, one that was fitted with another guide that is not
            given, or a recording that it cannot read.
        GuideError: for a guide that does not fit the model.
        ArithmeticError: for a trajectory that does not stay finite, naming its trial and bin.
    """
    given, trained = model_and_guide(model)
    space, chosen = state_space(given), trained if guide is None else guide
    if chosen is None:
        require_own_guide(space)
        chosen = space.guide
    recording = validate(recording)
    space.check(recording)
    batch = space.trials_of(recording).batch()
    with torch.random.fork_rng(), space.evaluating():
        torch.manual_seed(seed)
        if guide_name(space, chosen) is not None:
            check_guide(space, chosen, batch, training=False).require()
        nodes = traced(guide_program(chosen), batch).nodes
    inputs = space.known_inputs(batch)
    start = nodes[space.initial_condition_site]["value"] if space.initial_condition_site else None
    if space.path_site in nodes:
        path = nodes[space.path_site]["value"]
    else:
        path = inputs.new_zeros(*inputs.shape[:2], 0)
    states = space.dynamics_state(space.states(start, path, inputs))
    check_finite(states, space.first_bin)
    return states


def known_dynamics(system: str | System) -> Dynamics:
    """The dynamics of a known system, without pulses; one unit of its time counts as a second.

    Args:
        system: a name in `pyrodyn.data.systems.SYSTEMS`, or a system whose field also takes
            tensors.

    Returns:
        Its flow over ``time_per_bin``, with ``vector_field`` per unit of system time.

    Raises:
        ValueError: for unknown names, systems with a delay (their state is a whole history) and
            fields that torch cannot differentiate.
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
    # The tableau is scaled by the bin's length, not the field: in forward derivatives a product
    # with a constant costs as much as all other operations together.
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


def states_for(state_dim: int, states: ArrayLike | Tensor, name: str) -> Float[Tensor, "row state"]:
    """States in double precision, one per row; leading dims are flattened.

    Args:
        state_dim: dimension of the dynamics.
        states: ``(..., state)``.
        name: the caller's name of the argument, for error messages.

    Raises:
        ValueError: for no states, states of the wrong dimension and states that are not finite.
    """
    array = _double(states)
    if array.ndim == 0 or array.shape[-1] != state_dim or array.size == 0:
        raise ValueError(
            f"{name} must be states of shape (..., {state_dim}), at least one, not {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; leave out states that hold NaN or infinity")
    return torch.from_numpy(array.reshape(-1, state_dim))


def constant_inputs(
    dynamics: Dynamics, inputs: ArrayLike | Tensor | None
) -> Float[Tensor, " input"]:
    """Constant inputs in double precision; 0 if none are given.

    Raises:
        ValueError: for the wrong number of inputs and for inputs that are not finite.
    """
    if inputs is None:
        return torch.zeros(dynamics.input_dim, dtype=torch.float64)
    array = _double(inputs)
    if array.shape != (dynamics.input_dim,) or not np.isfinite(array).all():
        raise ValueError(
            f"inputs must be {dynamics.input_dim} finite numbers, one constant per input, not"
            f" {inputs!r}"
        )
    return torch.from_numpy(array)


def _double(values: ArrayLike | Tensor) -> np.ndarray:
    """Values of any numeric type as a new array of doubles."""
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.array(plain, np.float64)


def _check_field(system: System) -> None:
    """Raise an error for a field that torch cannot differentiate."""
    middle = torch.as_tensor(0.5 * (system.initial_low + system.initial_high)).double()
    try:
        value, _ = jvp(system.field, middle, torch.ones_like(middle))
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
