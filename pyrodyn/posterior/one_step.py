"""One-step-ahead predictions of a particle filter: is each bin predicted from those before it?"""

from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import blocks, validate
from pyrodyn.distributions.gaussian import picked, rows_of
from pyrodyn.infer.smc.particle_filter import FilterResult, particle_filter
from pyrodyn.infer.smc.resampling import multinomial
from pyrodyn.infer.training.fitted import Fit, model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import State, StateSpaceModel
from pyrodyn.posterior.draws import refuse_shared
from pyrodyn.posterior.ranks import fractional_rank


def one_step_predictions(
    fitted: LatentDynamics | Fit[Any],
    recording: xr.Dataset,
    *,
    num_particles: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
) -> xr.Dataset:
    """Compare every bin with its prediction from the bins before, p(x_t | x_1, ..., x_{t-1}).

    The particle filter conditions on what the encoder may see of earlier bins; unlike posterior
    predictive checks, no prediction uses the bin it is compared with, so that the PIT is uniform
    under the right model, held-out neurons included.

    The evidence of the bins from ``t`` on given those before, leave-future-out cross-validation
    with fixed parameters, is ``log_score.isel(time=slice(t, None)).sum("time")``.

    Source: Buerkner, Gabry & Vehtari, Journal of Statistical Computation and Simulation 90:2499
    (2020), for leave-future-out; Czado, Gneiting & Held, Biometrics 65:1254 (2009), for the PIT of
    counts.

    Args:
        fitted: a state-space model, or the `Fit` that `fit` returned. Parameters with priors are at
            the location of their guide.
        recording: trials of the neurons that the model was fitted to.
        num_particles: particles per trial, and draws of every prediction. A proposal that reads
            later bins, such as ``"encoder"``, makes the weights of early bins uneven.
        batch_size: trials at once.
        seed: seeds filter and predictions.

    Returns:
        ``pit (trial, time, neuron)``, randomised as in `randomised_pit`, and ``expected``, the mean
        prediction, NaN where nothing was measured; ``log_score (trial, time)``, the filter's
        estimate of log p(x_t | x_1, ..., x_{t-1}) in nats, whose sum over time is the log evidence;
        ``effective_sample_size (trial, time)``. Of counts and a signal ``pit_counts``,
        ``pit_signal`` and so on.

    Raises:
        ValueError: for a model that is no state-space model, or has sites that all trials share,
            and a recording that does not fit it.
        ArithmeticError: when every particle of a trial has weight 0.
    """
    recording = validate(recording)
    model, _ = model_and_guide(fitted)
    model.check(recording)
    check_integer(2, num_particles=num_particles)
    check_integer(1, batch_size=batch_size)
    if not isinstance(model, StateSpaceModel):
        raise ValueError(
            f"one-step predictions need a StateSpaceModel; {type(model).__name__} is none"
        )
    model = model if model.priors is None else model.at()
    rng = np.random.default_rng(seed)
    parts: list[dict[str, NDArray[Any]]] = []
    with model.evaluating(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in model.trials_of(recording).batches(batch_size):
            refuse_shared(model, batch)
            parts.append(_of_batch(model, batch, num_particles, rng))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    observed = blocks(recording)
    variables: dict[str, Any] = {}
    for name in ("pit", "expected"):
        for block in observed:
            own = name if len(observed) == 1 else f"{name}_{block.x}"
            variables[own] = (block.dims, values[name][..., block.columns])
    for name in ("log_score", "effective_sample_size"):
        variables[name] = (("trial", "time"), values[name])
    found = xr.Dataset(
        variables,
        coords={
            "trial": recording["trial"].values,
            "time": recording["time"].values[model.first_bin :],
            **{block.unit: recording[block.unit].values for block in observed},
        },
        attrs={"model": type(model).__name__, "num_particles": num_particles, "seed": seed},
    )
    found["log_score"].attrs["units"] = "nats"
    return found


@torch.no_grad()
@local_parameters()
def _of_batch(
    model: StateSpaceModel, batch: Batch, num_particles: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    filtered = particle_filter(model, batch.as_seen(), num_particles)
    assert batch.x is not None
    bins = slice(model.first_bin, None)
    x, scored, inputs = batch.x[:, bins], batch.scored[:, bins], batch.inputs[:, bins]
    shape = torch.Size((num_particles, batch.num_trials))
    pit, expected = [], []
    with model.hoisting():
        for t in range(x.shape[1]):
            if t == 0:
                start = None
                if model.initial_condition_site:
                    start = model.initial_condition().expand(shape).sample()
                z = model.initial(start, inputs[:, 0]).expand(shape).sample()
                state = model.initial_state(start, z, inputs[:, 0])
            else:
                before = _resampled(filtered, t - 1)
                z = model.transition(before, inputs[:, t]).expand(shape).sample()
                state = model.advance(before, z, inputs[:, t])
            emission = model.emission(state)
            draws = xr.DataArray(emission.sample().cpu().numpy(), dims=("draw", "trial", "unit"))
            value = xr.DataArray(x[:, t].cpu().numpy(), dims=("trial", "unit"))
            pit.append(fractional_rank(value, draws, rng).values)
            expected.append(emission.mean.mean(0).cpu().numpy())
    measured = scored.cpu().numpy()
    return {
        "pit": np.where(measured, np.stack(pit, 1), np.nan),
        "expected": np.where(measured, np.stack(expected, 1), np.nan),
        "log_score": filtered.log_evidence.T.cpu().numpy(),
        "effective_sample_size": filtered.effective_sample_size.T.cpu().numpy(),
    }


def _resampled(filtered: FilterResult, t: int) -> State:
    """States of bin t with equal weights."""
    rows = rows_of(multinomial(filtered.log_weights[t])[0])
    states = filtered.states
    fields = (field[t] for field in states)
    # What all particles share has no dim of particles.
    return type(states)(*(picked(each, rows) if each.ndim == 3 else each for each in fields))
