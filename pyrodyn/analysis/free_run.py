"""Free runs: what a state-space model generates when nothing is observed."""

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from pyrodyn.analysis.dynamics import check_finite, state_space
from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import Block, blocks_of
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.observations import Joint, Observation
from pyrodyn.models.state_space import State, StateSpaceModel


@torch.no_grad()
def free_run(
    model: LatentDynamics,
    num_trials: int,
    num_bins: int,
    *,
    inputs: ArrayLike | None = None,
    start: ArrayLike | None = None,
    burn_in: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Let a model run with its process noise.

    Args:
        model: a state-space model.
        num_trials: independent runs.
        num_bins: bins kept of each.
        inputs: known inputs, ``(num_trials, burn_in + num_bins, input)``: conditional generation
            with inputs of any kind. May be left out by a model without inputs alone.
        start: value of the start site (LFADS' ``g0``) or else of the first bin's latents, one per
            run, such as posterior draws; drawn from the prior if left out.
        burn_in: first bins that are not kept.
        seed: seeds the run.

    Returns:
        ``latents (trial, time, latent)``, what is drawn in each bin; ``states (trial, time,
        state)``, what the dynamics move (the same for most models; of LFADS the generator's state,
        which moves under inferred inputs that are drawn); ``rates`` and ``x``
        ``(trial, time, neuron)``; of a model of counts and a signal ``rates`` and ``counts``,
        ``signal_mean`` and ``signal`` ``(trial, time, channel)``.

    Raises:
        ValueError: for a model without dynamics, lengths below 1, inputs that are missing, and
            inputs or starts that are not finite or of the wrong shape.
        ArithmeticError: for a path that does not stay finite, naming its trial and bin.
    """
    model = state_space(model)
    check_integer(1, num_trials=num_trials, num_bins=num_bins)
    check_integer(0, burn_in=burn_in)
    like = next(model.parameters())
    total = burn_in + num_bins
    driven = _inputs(model, inputs, (num_trials, total), like)
    given = None if start is None else torch.as_tensor(np.asarray(start)).to(like)
    path: list[Tensor] = []
    states: list[State] = []
    with torch.random.fork_rng(), model.hoisting():
        torch.manual_seed(seed)
        begun = None
        if model.initial_condition_site:
            begun = model.initial_condition().expand(torch.Size((num_trials,))).rsample()
            if given is not None:
                begun, given = _checked(given, begun), None
        state: State = None
        for t in range(total):
            i = driven[:, t]
            law = model.initial(begun, i) if state is None else model.transition(state, i)
            z = law.expand(torch.Size((num_trials,))).rsample()
            if state is None and given is not None:
                z = _checked(given, z)
            state = model.first_state(begun, z, i) if state is None else model.advance(state, z, i)
            path.append(z)
            states.append(state)
        kept = type(state)(
            *(torch.stack(field[burn_in:], 1) for field in zip(*states, strict=True))
        )
        moving = model.dynamics_state(kept)
        check_finite(moving, burn_in)
        emission = model.emission(kept)
        check_finite(emission.mean, burn_in)
        x = emission.sample()
    rates = emission.mean
    run = {
        "latents": (("trial", "time", "latent"), torch.stack(path[burn_in:], 1).cpu().numpy()),
        "states": (("trial", "time", "state"), moving.cpu().numpy()),
    }
    for block in _blocks(model.observation):
        for name, values in ((block.rates, rates), (block.x, x)):
            run[name] = (block.dims, values[..., block.columns].cpu().numpy())
    return xr.Dataset(run)


def _blocks(observation: Observation) -> tuple[Block, ...]:
    """What a model observes; without a recording all that is alike counts as neurons."""
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
            raise ValueError(
                f"this model was made for {wanted[-1]} inputs; give inputs of shape {wanted}"
            )
        return like.new_zeros(wanted)
    array = np.asarray(inputs, float)
    if array.shape != wanted:
        raise ValueError(f"inputs must be of shape {wanted} (burn-in included), not {array.shape}")
    if not np.isfinite(array).all():
        run, t, position = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"input {position} is not finite in run {run}, bin {t}")
    return torch.from_numpy(array).to(like)
