"""Particle smoothing: latent trajectories drawn from p(z_{1:T} | x_{1:T})::

    p(z_{1:T} | x) = p(z_T | x) prod_t p(z_t | z_{t+1}, x_{1:t}),
    p(z_t | z_{t+1}, x_{1:t})  ~  p(z_{t+1} | z_t) p(z_t | x_{1:t})

A filter's particles approximate p(z_t | x_{1:t}); a backward pass over them gives joint draws of
whole trajectories. (The filter's particles at bin t do not depend on data after t, and the k-th
particle of one bin does not descend from the k-th of the bin before.)

* ``"ffbsi"``: backward simulation (Godsill, Doucet & West 2004), exact as the number of particles
  grows; K weights per draw and bin.
* ``"mcmc"``: in place of all K weights, a few Metropolis steps among the particles, started at the
  ancestor of the particle chosen last (Bunch & Godsill 2013). For many particles.
* ``"ancestral"``: trace ancestors back. Needs no transition density, hence also for models whose
  state has a deterministic part, but trajectories coalesce in early bins.
* ``"fixed_lag"``: ancestral, each bin from the particles `lag` bins later: no degeneracy, and a
  bias that vanishes as the lag exceeds the memory of the process (Kitagawa & Sato 2001). Bins are
  drawn independently: marginals are right, joint trajectories are not.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.smc.particle_filter import FilterResult, particle_filter
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import State, StateSpaceModel


class SmoothedPaths(NamedTuple):
    """Draws of whole latent trajectories.

    Attributes:
        starts: of the initial condition, None for a model without one.
        paths: z.
    """

    starts: Float[Tensor, "draw trial start"] | None
    paths: Float[Tensor, "draw trial time dim"]


METHODS = ("ffbsi", "mcmc", "ancestral", "fixed_lag")


@torch.no_grad()
@local_parameters()
def particle_smoother(
    model: StateSpaceModel | Fit[StateSpaceModel],
    batch: Batch,
    num_draws: int = 100,
    *,
    method: str = "ffbsi",
    filtered: FilterResult | None = None,
    num_particles: int = 256,
    num_moves: int = 10,
    lag: int = 20,
) -> SmoothedPaths:
    """Draw latent trajectories given all bins.

    Args:
        model: a state-space model with its proposal, or its `Fit`.
        batch: trials.
        num_draws: trajectories per trial.
        method: ``"ffbsi"``, ``"mcmc"``, ``"ancestral"`` or ``"fixed_lag"``, see the module.
        filtered: the result of `particle_filter` on the same batch; None runs the filter.
        num_particles: of that filter.
        num_moves: Metropolis steps per bin of ``"mcmc"``.
        lag: bins by which ``"fixed_lag"`` looks ahead.

    Raises:
        ValueError: for an unknown method or a number below 1, and for backward simulation of a
            model whose latent path alone is not a Markov chain.
    """
    if isinstance(model, Fit):
        model = model.model
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; it is one of {', '.join(METHODS)}")
    check_integer(1, num_draws=num_draws, num_moves=num_moves, lag=lag)
    if method in ("ffbsi", "mcmc") and not model.path_is_markov:
        raise ValueError(
            f"{type(model).__name__} has a deterministic part in its state, so z_t+1 depends on"
            " more than z_t and backward simulation is impossible; use method='ancestral'"
        )
    if filtered is None:
        filtered = particle_filter(model, batch, num_particles)
    wanted, found = (batch.num_bins - model.first_bin, batch.num_trials), filtered.resampled.shape
    if wanted != tuple(found):
        raise ValueError(
            f"filtered has {found[1]} trials of {found[0]} bins, the batch {wanted[1]} of"
            f" {wanted[0]}; filter this batch, or omit filtered"
        )
    with model.hoisting():
        match method:
            case "ancestral":
                chosen = _ancestral(filtered, num_draws)
            case "fixed_lag":
                chosen = _fixed_lag(filtered, num_draws, lag)
            case "ffbsi":
                return SmoothedPaths(None, _backward(model, batch, filtered, num_draws, None))
            case _:
                return SmoothedPaths(None, _backward(model, batch, filtered, num_draws, num_moves))
    paths = torch.take_along_dim(filtered.paths, chosen[..., None], 1).permute(1, 2, 0, 3)
    if filtered.starts is None:
        return SmoothedPaths(None, paths)
    # The initial condition may have been resampled before the first bin.
    started = filtered.ancestors[0].gather(0, chosen[0])
    return SmoothedPaths(_rows(filtered.starts, started), paths)


def _last(filtered: FilterResult, t: int, num_draws: int) -> Int[Tensor, "draw trial"]:
    """Particles of bin t, sampled by weight."""
    log_weights = filtered.log_weights[t]
    return _searched(log_weights.T, num_draws).T


def _drawn(log_weights: Float[Tensor, "particle draw trial"]) -> Int[Tensor, "draw trial"]:
    """One particle per draw and trial, sampled by weight."""
    return _searched(log_weights.permute(1, 2, 0), 1)[..., 0]


def _searched(log_weights: Float[Tensor, "*left particle"], number: int) -> Int[Tensor, "*left n"]:
    """Particles sampled by the weights of their row."""
    summed = torch.softmax(log_weights.double(), -1).cumsum(-1).contiguous()
    points = summed.new_empty(*summed.shape[:-1], number).uniform_()
    total = summed[..., -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(summed, torch.minimum(points * total, below), right=True)


def _ancestral(filtered: FilterResult, num_draws: int) -> Int[Tensor, "time draw trial"]:
    """Particles of all bins, traced back from the last."""
    num_bins = len(filtered.paths)
    chosen = [_last(filtered, num_bins - 1, num_draws)]
    for t in range(num_bins - 1, 0, -1):
        chosen.append(filtered.ancestors[t].gather(0, chosen[-1]))
    return torch.stack(chosen[::-1])


def _fixed_lag(filtered: FilterResult, num_draws: int, lag: int) -> Int[Tensor, "time draw trial"]:
    """Ancestors at every bin of particles sampled ``lag`` bins later."""
    num_bins, chosen = len(filtered.paths), []
    for t in range(num_bins):
        end = min(t + lag, num_bins - 1)
        particle = _last(filtered, end, num_draws)
        for later in range(end, t, -1):
            particle = filtered.ancestors[later].gather(0, particle)
        chosen.append(particle)
    return torch.stack(chosen)


def _backward(
    model: StateSpaceModel,
    batch: Batch,
    filtered: FilterResult,
    num_draws: int,
    num_moves: int | None,
) -> Float[Tensor, "draw trial time dim"]:
    """Backward simulation, by all weights or by Metropolis steps."""
    inputs = model.known_inputs(batch)
    num_bins = len(filtered.paths)
    particle = _last(filtered, num_bins - 1, num_draws)
    path = [_rows(filtered.paths[-1], particle)]
    for t in range(num_bins - 2, -1, -1):
        state = type(filtered.states)(*(field[t] for field in filtered.states))
        if num_moves is None:
            transition = model.transition(_with_axis(state), inputs[:, t + 1])
            log_weights = transition.log_prob(path[-1]) + filtered.log_weights[t][:, None]
            particle = _drawn(log_weights)
        else:
            particle = filtered.ancestors[t + 1].gather(0, particle)
            particle = _metropolis(
                model,
                state,
                inputs[:, t + 1],
                path[-1],
                filtered.log_weights[t],
                particle,
                num_moves,
            )
        path.append(_rows(filtered.paths[t], particle))
    return torch.stack(path[::-1], 2)


def _metropolis(
    model: StateSpaceModel,
    state: State,
    inputs: Float[Tensor, "trial input"],
    later: Float[Tensor, "draw trial dim"],
    log_weights: Float[Tensor, "particle trial"],
    particle: Int[Tensor, "draw trial"],
    num_moves: int,
) -> Int[Tensor, "draw trial"]:
    """Particles after Metropolis steps that propose by the filter's weights, so that the ratio of
    transition densities is the acceptance ratio. Proposals do not depend on the current particle:
    all are drawn, and their densities computed, at once.
    """
    num_draws, num_trials = particle.shape
    proposed = _searched(log_weights.T, num_moves * num_draws).T
    candidates = torch.cat([particle, proposed])
    of_candidates = type(state)(*(_rows(field, candidates) for field in state))
    transition = model.transition(of_candidates, inputs)
    shape = (num_moves + 1, num_draws, num_trials)
    density = transition.log_prob(later.repeat(num_moves + 1, 1, 1)).view(shape)
    candidates, log_uniforms = candidates.view(shape), torch.rand_like(density).log()
    here = density[0]
    for there, its, log_uniform in zip(candidates[1:], density[1:], log_uniforms[1:], strict=True):
        accepted = log_uniform < its - here
        particle, here = torch.where(accepted, there, particle), torch.where(accepted, its, here)
    return particle


def _rows(field: Tensor, chosen: Int[Tensor, "draw trial"]) -> Tensor:
    """Rows of ``(particle, trial, dim)``; a tensor shared by all particles is returned as is."""
    if field.ndim < 3:
        return field
    return torch.take_along_dim(field, chosen[..., None], 0)


def _with_axis(state: State) -> State:
    """States ``(particle, 1, trial, dim)``, which broadcast over draws."""
    return type(state)(*(field[:, None] if field.ndim == 3 else field for field in state))
