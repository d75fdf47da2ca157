"""The study of Sedler, Versteeg & Pandarinath (2023): do dynamics of the true dimension suffice?

Arneodo's, Rossler's and Lorenz' systems, 10 neurons of rate exp(z), z standard normal, 70 bins, and
1280/320/400 independent trials for training, validation and test. Sequential autoencoders by kind:

    node     neural ODE from the encoded first state, the horizon growing over the first steps
    noise    neural ODE with process noise: every bin has a posterior of its own
    falling  the same by Runge and Kutta's fourth-order steps, its noise pressed down to a tenth
             of what it first is
    gru      the same autoencoder as ``node`` with a GRU
    ...      or any other cell of `pyrodyn.nn.cells`

Printed for TEST trials: rate R2 (mean over neurons) and hidden R2 (least squares from true to
inferred latents, mean over inferred dims; fitted on training trials), its other direction, and the
largest Lyapunov exponent of the dynamics without noise, per unit of the system's time, beside the
truth's; with process noise its standard deviation, mean over latents, in units of their own. With
as many dims as the system, also the fixed points, mapped to the truth by least squares, with their
eigenvalues per unit of the system's time.

A finished run is kept as JSON beside its model and not run again. A fit ends after a number of
training steps, so that the same seed gives the same row.

    uv run python benchmarks/study.py --kinds node noise gru --dims 3 --seeds 0 1 2 --steps 1500
    uv run python benchmarks/study.py --kinds falling --systems arneodo lorenz --steps 6000
    uv run python benchmarks/study.py --systems arneodo --kinds residual_mlp next_state vanilla
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyrodyn import analysis, data, fit, models, predict, save
from pyrodyn.infer import FallingNoise, GrowingHorizon, Schedule

SYSTEMS = ("arneodo", "rossler", "lorenz")
NUM_TRAIN, NUM_VALID, NUM_TEST = 1280, 320, 400
BATCH_SIZE = 128
GROWING_STEPS = 600
WITH_NOISE = ("noise", "falling")
FALLING = FallingNoise(first_step=1500, num_steps=2000)


def recording_of(system: str, seed: int) -> list[xr.Dataset]:
    """Training, validation and test trials; a rate exp(z) of mean exp(1/2) counts per bin."""
    bounds = np.cumsum([0, NUM_TRAIN, NUM_VALID, NUM_TEST])
    recording = data.simulate(
        system, int(bounds[-1]), 70, 10, bin_width=0.01, mean_rate=100 * np.exp(0.5), seed=seed
    )
    return [recording.isel(trial=slice(a, b)) for a, b in itertools.pairwise(bounds)]


def model_of(kind: str, train: xr.Dataset, dim: int) -> Any:
    if kind == "node" or kind in WITH_NOISE:
        noise = kind in WITH_NOISE
        solver = "rk4" if kind == "falling" else "midpoint"
        return models.NodeSAE.for_recording(
            train, latent_dim=dim, process_noise=noise, solver=solver
        )
    return models.RnnSAE.for_recording(train, latent_dim=dim, cell=kind)


def run(system: str, kind: str, dim: int, seed: int, steps: int, out: Path) -> dict[str, Any]:
    name = f"{system}_{kind}_{dim}_{seed}_{steps}"
    kept = out / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    train, valid, test = recording_of(system, seed)
    torch.manual_seed(seed)
    model = model_of(kind, train, dim)
    with_noise = kind in WITH_NOISE
    started = time.monotonic()
    fitted = fit(
        model,
        train,
        valid,
        max_epochs=steps * BATCH_SIZE // NUM_TRAIN,
        batch_size=BATCH_SIZE,
        schedule=Schedule(
            learning_rate=1e-2 if with_noise else 5e-3,
            patience=15,
            stop_patience=1000,
            horizon=None if with_noise else GrowingHorizon(5, GROWING_STEPS),
            noise=FALLING if kind == "falling" else None,
        ),
        seed=seed,
        progress=False,
    )
    elapsed = time.monotonic() - started
    save(model, out / name)
    row = {
        "system": system,
        "kind": kind,
        "dim": dim,
        "seed": seed,
        "seconds": elapsed,
        "steps": fitted.num_steps,
        **scores(model, system, train, test),
    }
    kept.write_text(json.dumps(row))
    return row


def scores(model: Any, system: str, train: xr.Dataset, test: xr.Dataset) -> dict[str, Any]:
    """What is printed of a fitted model."""
    on_train, on_test = predict(model, train, num_draws=10), predict(model, test)
    hidden = analysis.latent_r2(on_train["z"], train["latents"], on_test["z"], test["latents"])
    spectrum = analysis.lyapunov_spectrum(
        model, on_test["z"].values[:16, -1], 3000, num_exponents=1, burn_in=300
    )
    time_per_bin = train.attrs["time_per_bin"]
    found = {
        "rate R2": analysis.rate_r2(on_test["rates"], test["rates"]).mean,
        "hidden R2": hidden.true_to_inferred,
        "back": hidden.inferred_to_true,
        "exponent": float(spectrum["exponents_per_bin"][0]) / time_per_bin,
        "truth": data.SYSTEMS[system].lyapunov[0],
    }
    if model.process_noise:
        spread = on_train["z"].std(("trial", "time")).values
        found["noise"] = float((model.noise_scales()[1].detach().numpy() / spread).mean())
    if model.config["latent_dim"] == test.sizes["latent"]:
        found["fixed points"] = fixed_points(model, on_train["z"].values, train)
    return found


def fixed_points(model: Any, z: np.ndarray, train: xr.Dataset) -> list[str]:
    """Those of the fitted dynamics, one line each in the truth's coordinates."""
    to_truth = analysis.align(z, train["latents"])
    found = analysis.fixed_points(to_truth.carried(model), starts=to_truth(z))
    eigenvalues = found["eigenvalues"].values
    if found.attrs["kind"] == "flow":
        eigenvalues = eigenvalues * train.attrs["bin_width"] / train.attrs["time_per_bin"]
    else:  # a map: the growth over one bin
        eigenvalues = np.log(eigenvalues.astype(complex)) / train.attrs["time_per_bin"]
    return [
        f"    fixed point {point}, eigenvalues {growth}"
        for point, growth in zip(found["point"].values, eigenvalues, strict=True)
    ]


def shown(value: Any) -> str:
    return f"{value:>12.4g}" if isinstance(value, float) else f"{value:>12}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--kinds", nargs="+", default=["node", "noise", "gru"])
    parser.add_argument("--dims", type=int, nargs="+", default=[3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("study"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    np.set_printoptions(precision=3, suppress=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    is_first = True
    for seed in arguments.seeds:
        for kind in arguments.kinds:
            for dim in arguments.dims:
                for system in arguments.systems:
                    row = run(system, kind, dim, seed, arguments.steps, arguments.out)
                    points = row.pop("fixed points", [])
                    if is_first:
                        print("".join(f"{name:>12}" for name in row))
                    is_first = False
                    print(
                        "".join(shown(value) for value in row.values()),
                        *points,
                        sep="\n",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
