"""The study of Sedler, Versteeg & Pandarinath (2023): do dynamics of the true dimension suffice?

Arneodo's, Rossler's and Lorenz' systems, 10 neurons of rate exp(z), z standard normal, 70 bins, and
1280/320/400 independent trials for training, validation and test. Sequential autoencoders whose
dynamics are a neural ODE (``node``), a GRU (``gru``) or another cell of `pyrodyn.nn.cells` are all
fitted in the same way: with process noise, so that at first the encoder steers the trajectory; the
noise is then reduced, and left out in the end. The score is that of the trajectory from the
*initial state alone*, which `LaplaceStart` infers.

Printed for TEST trials: rate R2 (mean over neurons) and hidden R2 (least squares from true to
inferred latents, mean over inferred dims; fitted on 400 training trials), and its other direction;
the rate R2 of the fit with process noise (``steered``); the remaining noise, in units of the
latents' standard deviation; the largest Lyapunov exponent of the dynamics, per unit of the system's
time, beside the true one. With as many latents as the system has dimensions also the fixed points,
mapped to the true coordinates by least squares, with eigenvalues per unit of the system's time.

A finished run is stored as JSON beside its model and not repeated. A fit ends after a fixed number
of training steps, so that the same seed gives the same row.

    uv run python benchmarks/study.py --dynamics node gru --seeds 0 1 2 3 4
    uv run python benchmarks/study.py --dynamics node gru --dims 3 5 10 --figure study.png
    uv run python benchmarks/study.py --systems arneodo --dynamics residual_mlp next_state vanilla
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import results
import torch
import xarray as xr

from pyrodyn import analysis, data, fit, predict, save
from pyrodyn.infer import ELBO, LaplaceStart, NoiseAnnealing, Schedule
from pyrodyn.models import NodeSAE, RnnSAE
from pyrodyn.nn.cells import CELLS

SYSTEMS = ("arneodo", "rossler", "lorenz")
NUM_TRAIN, NUM_VALID, NUM_TEST = 1280, 320, 400
BATCH_SIZE, FINAL_LEARNING_RATE = 64, 1e-4


class Recipe(NamedTuple):
    """How the models of a system are fitted.

    Attributes:
        steps: training steps.
        learning_rate: the initial one; it falls to `FINAL_LEARNING_RATE`.
        noise: annealing of the process noise.
    """

    steps: int
    learning_rate: float
    noise: NoiseAnnealing


RECIPES = {
    "arneodo": Recipe(5000, 5e-3, NoiseAnnealing(600, 1900)),
    "rossler": Recipe(5000, 5e-3, NoiseAnnealing(600, 1900, factor=0.03)),
    "lorenz": Recipe(8000, 1e-2, NoiseAnnealing(1000, 2500)),
}
"""By system: their noise and time scales differ."""


def recording_of(system: str, seed: int) -> list[xr.Dataset]:
    """Training, validation and test trials; rates exp(z) with mean exp(1/2) counts per bin."""
    bounds = np.cumsum([0, NUM_TRAIN, NUM_VALID, NUM_TEST])
    recording = data.simulate(
        system, int(bounds[-1]), 70, 10, bin_width=0.01, mean_rate=100 * np.exp(0.5), seed=seed
    )
    return [recording.isel(trial=slice(a, b)) for a, b in itertools.pairwise(bounds)]


def model_of(dynamics: str, train: xr.Dataset, dim: int) -> NodeSAE | RnnSAE:
    if dynamics == "node":
        return NodeSAE.for_recording(train, latent_dim=dim, process_noise=True, solver="rk4")
    return RnnSAE.for_recording(train, latent_dim=dim, cell=dynamics, process_noise=True)


def run(system: str, dynamics: str, dim: int, seed: int, out: Path) -> dict[str, Any]:
    name = f"{system}_{dynamics}_{dim}_{seed}"
    kept = out / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    recipe = RECIPES[system]
    train, valid, test = recording_of(system, seed)
    torch.manual_seed(seed)
    model = model_of(dynamics, train, dim)
    started = time.process_time()
    fitted = fit(
        model,
        train,
        valid,
        objective=ELBO(),
        transforms=[],
        max_epochs=recipe.steps * BATCH_SIZE // NUM_TRAIN,
        batch_size=BATCH_SIZE,
        schedule=Schedule(
            learning_rate=recipe.learning_rate,
            final_learning_rate=FINAL_LEARNING_RATE,
            average_weights=True,
            noise=recipe.noise,
        ),
        seed=seed,
        progress=False,
    )
    elapsed = time.process_time() - started
    save(model, out / name)
    row = {
        "system": system,
        "dynamics": dynamics,
        "dim": dim,
        "seed": seed,
        "cpu s": elapsed,
        "steps": fitted.num_steps,
        **scores(model, system, train, test),
    }
    kept.write_text(json.dumps(row))
    return row


def scores(
    model: NodeSAE | RnnSAE, system: str, train: xr.Dataset, test: xr.Dataset
) -> dict[str, Any]:
    """The printed scores of a fitted model."""
    some = train.isel(trial=slice(test.sizes["trial"]))
    deterministic = model.without_noise()
    solved = predict(deterministic, test, num_draws=10, guide=LaplaceStart(deterministic))
    on_train = predict(
        deterministic, some, num_draws=10, guide=LaplaceStart(deterministic, num_searches=1)
    )
    hidden = analysis.latent_r2(on_train["z"], some["latents"], solved["z"], test["latents"])
    steered, on_some = predict(model, test), predict(model, some, num_draws=10)
    spectrum = analysis.lyapunov_spectrum(
        model, steered["z"].values[:16, -1], 3000, num_exponents=1, burn_in=300
    )
    scale = on_some["z"].std(("trial", "time")).values
    found = {
        "rate R2": analysis.rate_r2(solved["rates"], test["rates"]).mean,
        "hidden R2": hidden.true_to_inferred,
        "back": hidden.inferred_to_true,
        "steered": analysis.rate_r2(steered["rates"], test["rates"]).mean,
        "noise": float((model.noise_scales()[1].detach().numpy() / scale).mean()),
        "exponent": float(spectrum["exponents_per_bin"][0]) / train.attrs["time_per_bin"],
        "truth": data.SYSTEMS[system].lyapunov[0],
    }
    if model.config["latent_dim"] == test.sizes["latent"]:
        found["fixed points"] = fixed_points(model, on_some["z"].values, some)
    return found


def fixed_points(model: NodeSAE | RnnSAE, z: np.ndarray, train: xr.Dataset) -> list[str]:
    """Fixed points of the fitted dynamics, one line each, in the true coordinates."""
    to_truth = analysis.align(z, train["latents"])
    found = analysis.fixed_points(to_truth.transform_dynamics(model), starts=to_truth(z))
    eigenvalues = found["eigenvalues"].values
    if found.attrs["kind"] == "flow":
        eigenvalues = eigenvalues * train.attrs["bin_width"] / train.attrs["time_per_bin"]
    else:  # a map: the growth over one bin
        eigenvalues = np.log(eigenvalues.astype(complex)) / train.attrs["time_per_bin"]
    return [
        f"    fixed point {point}, eigenvalues {growth}"
        for point, growth in zip(found["point"].values, eigenvalues, strict=True)
    ]


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Rate R2 by the number of latents: one panel per system, one line per kind of dynamics, the
    mean over seeds, one dot per seed.
    """
    systems = [name for name in SYSTEMS if any(row["system"] == name for row in rows)]
    size = (3.2 * len(systems), 2.8)
    shown, panels = plt.subplots(
        1, len(systems), figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    for panel, system in zip(panels[0], systems, strict=True):
        for color, dynamics in enumerate(("node", *CELLS)):
            own = [r for r in rows if r["system"] == system and r["dynamics"] == dynamics]
            if not own:
                continue
            dims = sorted({row["dim"] for row in own})
            means = [np.mean([r["rate R2"] for r in own if r["dim"] == dim]) for dim in dims]
            panel.plot(dims, means, color=f"C{color}", label=dynamics)
            found = [(row["dim"], row["rate R2"]) for row in own]
            panel.plot(*zip(*found, strict=True), ".", color=f"C{color}")
        panel.set(title=system, xlabel="latents", xticks=sorted({row["dim"] for row in rows}))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set(ylabel="rate R2 on test trials", ylim=(0, 1.02))
    panels[0, 0].legend(frameon=False, loc="lower right")
    shown.savefig(path, dpi=150)


def shown(value: Any) -> str:
    return f"{value:>13.4g}" if isinstance(value, float) else f"{value:>13}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--dynamics", nargs="+", default=["node", "gru"], choices=("node", *CELLS))
    parser.add_argument("--dims", type=int, nargs="+", default=[3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--results", default="study", help="name of the file of results")
    parser.add_argument("--figure", type=Path, help="where to draw R2 by the number of latents")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    np.set_printoptions(precision=3, suppress=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for dynamics in arguments.dynamics:
            for dim in arguments.dims:
                for system in arguments.systems:
                    row = run(system, dynamics, dim, seed, arguments.out)
                    points = row.pop("fixed points", [])
                    if not rows:
                        print("".join(shown(name) for name in row))
                    rows.append(row)
                    print(
                        "".join(shown(value) for value in row.values()),
                        *points,
                        sep="\n",
                        flush=True,
                    )
    results.save(arguments.results, rows, arguments.threads)
    if arguments.figure:
        figure(rows, arguments.figure)


if __name__ == "__main__":
    main()
