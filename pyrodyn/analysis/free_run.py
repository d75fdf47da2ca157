"""Free runs: trajectories that a state-space model generates without observations."""

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from pyrodyn.analysis.dynamics import check_finite, state_space
from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import Block, blocks_of
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.observations import Joint, Observation
from pyrodyn.models.state_space import State, StateSpaceModel


@torch.no_grad()
def free_run(
    model: LatentDynamics | Fit[LatentDynamics],
    num_trials: int,
    num_bins: int,
    *,
    inputs: ArrayLike | None = None,
    start: ArrayLike | None = None,
    burn_in: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Simulate a model with its process noise.

    Args:
        model: a state-space model, or its `Fit`.
        num_trials: independent runs.
        num_bins: bins returned of each.
        inputs: known inputs, ``(num_trials, burn_in + num_bins, input)``; required by a model with
            inputs.
        start: initial condition (LFADS' ``g0``), or otherwise the latents of the first bin, one per
            run, such as posterior draws; drawn from the prior by default.
        burn_in: number of bins simulated and discarded before those.
        seed: seeds the run.

    Returns:
        ``latents (trial, time, latent)``, the latent variables drawn in each bin; ``states
        (trial, time, state)``, the states of the dynamics (the same for most models; for LFADS the
        generator's state, whose drawn latents are inferred inputs); ``rates`` and ``x``
        ``(trial, time, neuron)``; for a model of counts and a signal ``rates`` and ``counts``,
        ``signal_mean`` and ``signal`` ``(trial, time, channel)``.

    Raises:
        ValueError: for a model without dynamics, lengths below 1, inputs that are missing, and
            inputs or starts that are not finite or of the wrong shape.
        ArithmeticError: for a trajectory that does not stay finite, naming its trial and bin.
    """
    model = state_space(model)
    check_integer(1, num_trials=num_trials, num_bins=num_bins)
    check_integer(0, burn_in=burn_in)
    like = next(model.parameters())
    total = burn_in + num_bins
    driven = _inputs(model, inputs, (num_trials, total), like)
    given = None if start is None else torch.as_tensor(np.asarray(start)).to(like)
    latents: list[Tensor] = []
    states: list[State] = []
    with torch.random.fork_rng(), model.hoisting():
        torch.manual_seed(seed)
        initial = None
        if model.initial_condition_site:
            initial = model.initial_condition().expand(torch.Size((num_trials,))).rsample()
            if given is not None:
                initial, given = _checked(given, initial), None
        state: State = None
        for t in range(total):
            i = driven[:, t]
            if state is None:
                distribution = model.initial(initial, i)
            else:
                distribution = model.transition(state, i)
            z = distribution.expand(torch.Size((num_trials,))).rsample()
            if state is None and given is not None:
                z = _checked(given, z)
            state = (
                model.initial_state(initial, z, i) if state is None else model.advance(state, z, i)
            )
            latents.append(z)
            states.append(state)
        kept = type(state)(
            *(torch.stack(field[burn_in:], 1) for field in zip(*states, strict=True))
        )
        moved = model.dynamics_state(kept)
        check_finite(moved, burn_in)
        emission = model.emission(kept)
        check_finite(emission.mean, burn_in)
        x = emission.sample()
    rates = emission.mean
    run = {
        "latents": (("trial", "time", "latent"), torch.stack(latents[burn_in:], 1).cpu().numpy()),
        "states": (("trial", "time", "state"), moved.cpu().numpy()),
    }
    for block in _blocks(model.observation):
        for name, values in ((block.rates, rates), (block.x, x)):
            run[name] = (block.dims, values[..., block.columns].cpu().numpy())
    return xr.Dataset(run)


def _blocks(observation: Observation) -> tuple[Block, ...]:
    """The observed variables of a model; those of a single kind are called neurons."""
    if isinstance(observation, Joint):
        return observation.blocks
    return blocks_of({"counts": observation.num_neurons})


def _checked(given: Tensor, drawn: Tensor) -> Tensor:
    if given.shape != drawn.shape:
        raise ValueError(
            f"start must be {tuple(drawn.shape)}, one row per run, not {tuple(given.shape)}"
        )
    if not torch.isfinite(given).all():
        run = int((~torch.isfinite(given)).nonzero()[0, 0])
        raise ValueError(f"start is not finite in run {run}")
    return given


def _inputs(
    model: StateSpaceModel, inputs: ArrayLike | None, shape: tuple[int, int], like: Tensor
) -> Tensor:
    wanted = (*shape, int(model.config["input_dim"]))
    if inputs is None:
        if wanted[-1]:
            raise ValueError(f"this model has {wanted[-1]} inputs; give inputs of shape {wanted}")
        return like.new_zeros(wanted)
    array = np.asarray(inputs, float)
    if array.shape != wanted:
        raise ValueError(f"inputs must be of shape {wanted} (burn-in included), not {array.shape}")
    if not np.isfinite(array).all():
        run, t, position = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"input {position} is not finite in run {run}, bin {t}")
    return torch.from_numpy(array).to(like)
