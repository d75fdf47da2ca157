"""Which posterior draws are calibrated? Every method on data drawn from the fitted model itself.

Four models are fitted to simulated recordings (Lorenz system, 28 neurons, 40 spikes/s; for the
low-rank network a limit cycle with Poisson spikes), 300 trials of 50 bins. Each fitted model then
generates trials of its own, whose true rates its posterior would cover at every level if inference
were exact: the parameters are right, so that only inference can be wrong.

Printed per model and method: the share of true rates inside central 50 % and 90 % intervals, the R2
of the posterior mean of rates, the ratio of its error to the posterior standard deviation, seconds
for all trials, and what the method reports about itself (k-hat, effective draws, R-hat), as medians
over trials. A finished fit is stored and not repeated.

    uv run python benchmarks/calibration.py --seeds 0 1 2
    uv run python benchmarks/calibration.py --seeds 0 --models "LFADS" --methods guide mcmc
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import results
import torch
import xarray as xr

import pyrodyn
from pyrodyn import data, models
from pyrodyn.infer import VSMC

NUM_TRIALS, NUM_BINS, NUM_NEURONS = 300, 50, 28
METHODS: dict[str, dict[str, Any]] = {
    "guide": {"num_draws": 400},
    "importance": {"num_draws": 400, "num_particles": 1000},
    "smoother": {"num_draws": 400, "num_particles": 500},
    "mcmc": {},
}


class Case(NamedTuple):
    """A model and its recording.

    Attributes:
        simulate: the recording, from its seed.
        build: the model for training trials.
        options: of `fit`, beside the recommended ones.
    """

    simulate: Callable[[int], xr.Dataset]
    build: Callable[[xr.Dataset], models.LatentDynamics]
    options: dict[str, Any]


def lorenz(seed: int) -> xr.Dataset:
    return data.simulate("lorenz", NUM_TRIALS, NUM_BINS, NUM_NEURONS, mean_rate=40, seed=seed)


def limit_cycle(seed: int) -> xr.Dataset:
    sizes = ("limit_cycle", NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    return data.teacher(*sizes, observation="poisson", seed=seed)


CASES = {
    "LFADS": Case(
        lorenz,
        lambda train: models.LFADS.for_recording(train, factor_dim=3, inferred_input_dim=0),
        {},
    ),
    "LFADS, one inferred input": Case(
        lorenz,
        lambda train: models.LFADS.for_recording(train, factor_dim=3, inferred_input_dim=1),
        {},
    ),
    "NodeSAE with process noise": Case(
        lorenz,
        lambda train: models.NodeSAE.for_recording(train, latent_dim=3, process_noise=True),
        {},
    ),
    "LowRankRNN by VSMC": Case(
        limit_cycle,
        lambda train: models.LowRankRNN.for_recording(train, latent_dim=2, link="softplus"),
        {"objective": VSMC(16)},
    ),
}


def fitted(name: str, seed: int, steps: int, out: Path) -> models.LatentDynamics:
    folder = out / f"{name.replace(' ', '_').replace(',', '')}_{seed}_{steps}"
    if folder.exists():
        return pyrodyn.load(folder)
    case = CASES[name]
    train, valid = data.split(case.simulate(seed), (0.8, 0.2), seed=seed)
    torch.manual_seed(seed)
    model = case.build(train)
    pyrodyn.fit(model, train, valid, max_steps=steps, seed=seed, progress=False, **case.options)
    pyrodyn.save(model, folder)
    return model


def generated(
    model: models.LatentDynamics, name: str, seed: int, num_trials: int
) -> tuple[xr.Dataset, np.ndarray]:
    """Trials drawn from the model, and their true rates."""
    template = CASES[name].simulate(seed).isel(trial=slice(num_trials))
    drawn = pyrodyn.to_datatree(
        model, template, num_draws=2, num_prior_draws=1, method="guide", seed=seed + 1
    )
    counts = drawn["prior_predictive/x"].values[0, 0]
    own = data.recording(counts=counts, bin_width=float(template.attrs["bin_width"]))
    return own, drawn["prior/rates"].values[0, 0]


def scored(
    model: models.LatentDynamics, own: xr.Dataset, truth: np.ndarray, method: str, seed: int
) -> dict[str, Any]:
    """The scores of one method."""
    options = METHODS[method]
    started = time.process_time()
    tree = pyrodyn.to_datatree(model, own, method=method, seed=seed, **options)
    row: dict[str, Any] = {"seconds": time.process_time() - started}
    rates = tree["posterior/rates"].stack(sample=("chain", "draw"), create_index=False)
    rates = rates.transpose("sample", "trial", "time", "neuron").values
    for level in (0.5, 0.9):
        low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2], axis=0)
        row[f"c{100 * level:.0f}"] = float(((truth >= low) & (truth <= high)).mean())
    error = rates.mean(0) - truth
    row["rate R2"] = float(1 - (error**2).sum() / ((truth - truth.mean((0, 1))) ** 2).sum())
    row["error/sd"] = float(np.sqrt((error**2).mean() / rates.var(0).mean()))
    stats = tree["sample_stats"]
    for reported in ("pareto_k", "effective_sample_size", "r_hat"):
        if reported in stats:
            row[reported] = float(stats[reported].median())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--trials", type=int, default=40, help="drawn from the fitted model")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--out", type=Path, default=Path("calibration"), help="folder of fits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.models:
        for seed in arguments.seeds:
            model = fitted(name, seed, arguments.steps, arguments.out)
            own, truth = generated(model, name, seed, arguments.trials)
            for method in arguments.methods:
                row = {"model": name, "seed": seed, "method": method}
                row |= scored(model, own, truth, method, seed)
                rows.append(row)
                print(row, flush=True)
                results.save("calibration", rows)


if __name__ == "__main__":
    main()
