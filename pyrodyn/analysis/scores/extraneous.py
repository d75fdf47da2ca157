"""Are the dynamics real? Scores that need no truth, of latents that fit the data well.

A model may reconstruct a recording by dynamics that are not there: by latents that no neuron shows,
by inferred inputs that steer the state from bin to bin, or by more dimensions than the data carry.

=========================  ========================================================================
`cycle_consistency`        are latents determined by the rates that they produce?
`readout_null_fraction`    how much latent variance does a linear readout discard?
`input_leakage`            are inferred inputs predictable from the state before?
`few_shot_co_smoothing`    do few trials suffice to read new neurons out of the latents?
`steering_gap`             how far do trajectories leave those that the dynamics alone would follow?
=========================  ========================================================================

Sources: Versteeg et al. 2023 (arXiv 2309.06402) and the Computation-through-Dynamics Benchmark
(Versteeg et al., bioRxiv 2025) for cycle consistency and leakage into inputs; Dabholkar & Barak,
PLOS Computational Biology 21:e1013789 (2025), for few-shot co-smoothing.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike

from pyrodyn.analysis.dynamics import state_space
from pyrodyn.analysis.free_run import free_run
from pyrodyn.analysis.scores.decoding import decode, ridge
from pyrodyn.analysis.scores.poisson_regression import poisson_rates, poisson_regression
from pyrodyn.analysis.scores.rates import (
    SMALLEST_RATE,
    Array,
    bits_per_spike,
    check_entries,
    paired_rows,
)
from pyrodyn.data.arguments import check_integer
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics


def cycle_consistency(
    latents_train: ArrayLike,
    rates_train: ArrayLike,
    latents_test: ArrayLike,
    rates_test: ArrayLike,
    *,
    valid_train: ArrayLike | None = None,
    valid_test: ArrayLike | None = None,
) -> float:
    """Fraction of the variance of latents that an affine map of the log rates recovers.

    1 if every latent direction shows in the rates, linearly in their logarithm; lower if latents
    vary in ways that leave the rates unchanged.

    Args:
        latents_train: ``(trial, time, latent)`` inferred latents on which the map is fitted.
        rates_train: ``(trial, time, neuron)`` the rates that the model reads out of them; smaller
            ones than 1e-9 are raised to it.
        latents_test: latents of the trials that are scored.
        rates_test: their rates.
        valid_train: bool, ``(trial, time)``; false in bins to leave out.
        valid_test: the same for the test trials.

    Returns:
        1 minus the squared error over the variance, both summed over latents.

    Raises:
        ValueError: if trials or bins disagree, a rate is negative, an entry is not finite, or the
            test latents are constant.
    """
    latents, rates = paired_rows("latents and rates", latents_train, rates_train, valid_train)
    new_latents, new_rates = paired_rows("latents and rates", latents_test, rates_test, valid_test)
    logs = []
    for values in (rates, new_rates):
        check_entries("rates", values, values < 0, ">= 0")
        logs.append(np.log(np.maximum(values, SMALLEST_RATE)))
    weights, intercept = ridge(logs[0], latents, 0.0)
    residual = np.square(new_latents - logs[1] @ weights - intercept).sum()
    return 1 - float(residual / _variation(new_latents))


def readout_null_fraction(
    latents: ArrayLike, readout: ArrayLike, *, valid: ArrayLike | None = None
) -> float:
    """Fraction of the variance of latents in the null space of a linear readout.

    Args:
        latents: ``(trial, time, latent)``.
        readout: ``(neuron, latent)`` weights by which predictors of neurons are read out of the
            latents, such as ``model.loading`` of a `LowRankRNN`.
        valid: bool, ``(trial, time)``; false in bins to leave out.

    Returns:
        0 if the readout sees all of their variance, 1 if it sees none.

    Raises:
        ValueError: for shapes that disagree, entries that are not finite, and constant latents.
    """
    rows, _ = paired_rows("latents", latents, latents, valid)
    matrix = np.asarray(readout, float)
    if matrix.ndim != 2 or matrix.shape[1] != rows.shape[1]:
        raise ValueError(
            f"readout has shape {matrix.shape}; it must be (neuron, {rows.shape[1]}), one column"
            " per latent"
        )
    check_entries("readout", matrix, ~np.isfinite(matrix), "finite")
    centred = rows - rows.mean(0)
    seen = centred @ np.linalg.pinv(matrix) @ matrix
    return float(np.square(centred - seen).sum() / _variation(rows))


def input_leakage(
    inputs_train: ArrayLike,
    states_train: ArrayLike,
    inputs_test: ArrayLike,
    states_test: ArrayLike,
    *,
    valid_train: ArrayLike | None = None,
    valid_test: ArrayLike | None = None,
) -> float:
    """R2 of inferred inputs decoded from the state one bin before.

    Inputs from outside need not be a function of the state. Where they are one, the model does by
    its inputs what its dynamics should do.

    Args:
        inputs_train: ``(trial, time, input)`` inferred inputs.
        states_train: ``(trial, time, state)`` states that the dynamics act on.
        inputs_test: of the trials that are scored.
        states_test: of the trials that are scored.
        valid_train: bool, ``(trial, time)``; false in bins to leave out.
        valid_test: the same for the test trials.

    Returns:
        The mean R2 over inputs of a ridge decoder (`decode`, lag 1): 0 or below without leakage.

    Raises:
        ValueError: as `decode`.
    """
    found = decode(
        states_train,
        inputs_train,
        states_test,
        inputs_test,
        lag=1,
        valid_train=valid_train,
        valid_test=valid_test,
    )
    return found.r2


def few_shot_co_smoothing(
    latents_train: ArrayLike,
    counts_train: ArrayLike,
    latents_test: ArrayLike,
    counts_test: ArrayLike,
    *,
    num_shots: int,
    num_repeats: int = 10,
    penalty: float = 1e-3,
    seed: int = 0,
) -> float:
    """Bits per spike of new neurons whose readout was fitted on few trials.

    A Poisson regression from the latents to each neuron, log rate = w' z + b, is fitted on
    ``num_shots`` random training trials and scored on the test trials. Among models of equal
    co-smoothing, extraneous latent dimensions lower the few-shot score.

    Args:
        latents_train: ``(trial, time, latent)``, inferred without the neurons that are predicted.
        counts_train: ``(trial, time, neuron)`` counts of those neurons.
        latents_test: latents of the trials that are scored.
        counts_test: their counts.
        num_shots: training trials of each fit.
        num_repeats: random subsets of training trials, over which the score is averaged.
        penalty: factor of ``|w|^2 / 2`` per entry, with standardised latents.
        seed: seeds the subsets.

    Returns:
        Bits per spike over the mean counts of all training trials (`bits_per_spike`).

    Raises:
        ValueError: for shapes that disagree, entries that are not finite, and more shots than
            training trials.
    """
    check_integer(1, num_shots=num_shots, num_repeats=num_repeats)
    latents, counts = np.asarray(latents_train, float), np.asarray(counts_train, float)
    rows, spikes = paired_rows("latents and counts", latents, counts)
    new_latents, new_counts = paired_rows("latents and counts", latents_test, counts_test)
    if num_shots > len(latents):
        raise ValueError(f"num_shots={num_shots} exceeds the {len(latents)} training trials")
    centre, scale = rows.mean(0), rows.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    null = np.maximum(spikes.mean(0), SMALLEST_RATE)
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(num_repeats):
        chosen = rng.choice(len(latents), num_shots, replace=False)
        shown = (latents[chosen].reshape(-1, rows.shape[1]) - centre) / scale
        of_chosen = counts[chosen].reshape(-1, spikes.shape[1])
        fitted = poisson_regression(shown, of_chosen, penalty * len(shown))
        rates = poisson_rates((new_latents - centre) / scale, *fitted)
        scores.append(bits_per_spike(rates, new_counts, null=null))
    return float(np.mean(scores))


def steering_gap(
    model: LatentDynamics | Fit[LatentDynamics], tree: xr.DataTree, *, seed: int = 0
) -> Float[ndarray, " time"]:
    """How far inferred rates leave those of free runs from the same initial states, in each bin.

    Posterior trajectories are steered by noise, or by inferred inputs, towards the data; free runs
    start at the posterior's draws of the initial state and follow the model alone::

        gap_t = sum (E[r_t | x] - E[r_t | initial state])^2 / sum (E[r_t | x] - mean r_t)^2

    with sums over trials and neurons, the mean over trials, and expectations over draws.

    Args:
        model: a state-space model, or its `Fit`.
        tree: its posterior, from `pyrodyn.to_datatree`.
        seed: seeds the free runs.

    Returns:
        0 where the initial state determines the rates, and about 1 where it is of no more use than
        the mean over trials.

    Raises:
        ValueError: for a model without dynamics, a tree without its sites, or fewer than two
            trials.
        ArithmeticError: for a free run that does not stay finite.
    """
    dynamics = state_space(model)
    posterior = tree["posterior"].to_dataset()
    site = dynamics.initial_condition_site or dynamics.path_site
    if site not in posterior or "rates" not in posterior:
        raise ValueError(
            f"the posterior has no {site!r} and rates of a {type(model).__name__}: make the tree by"
            " pyrodyn.to_datatree(model, recording)"
        )
    if posterior.sizes["trial"] < 2:
        raise ValueError("steering_gap compares trials; the tree has one")
    start = posterior[site].stack(run=("chain", "draw", "trial"), create_index=False)
    if not dynamics.initial_condition_site:
        start = start.isel(time=0)
    start = start.transpose("run", ...)
    num_draws = posterior.sizes["chain"] * posterior.sizes["draw"]
    num_trials, num_bins = posterior.sizes["trial"], posterior.sizes["time"]
    constant = tree["constant_data"].to_dataset()
    inputs = None
    if "inputs" in constant:
        inputs = np.tile(constant["inputs"].transpose("trial", "time", ...), (num_draws, 1, 1))
    run = free_run(model, len(start), num_bins, inputs=inputs, start=start.values, seed=seed)
    free = run["rates"].values.reshape(num_draws, num_trials, num_bins, -1).mean(0)
    steered = posterior["rates"].mean(("chain", "draw")).transpose("trial", "time", ...).values
    difference = np.square(steered - free).sum((0, 2))
    variation = np.square(steered - steered.mean(0)).sum((0, 2))
    gap: Array = np.divide(
        difference, variation, out=np.full(num_bins, np.nan), where=variation > 0
    )
    return gap


def _variation(rows: Array) -> float:
    total = float(np.square(rows - rows.mean(0)).sum())
    if not total > 0:
        raise ValueError("latents are constant, so that they have no variance to explain")
    return total
