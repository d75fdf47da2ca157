"""NODE-SAE on `lorenz_lfads_truth` with three latents, whose true rates and latents are known.

One fit per seed, with 15 of 60 neurons held out of the encoder, in three parts. Counts are sparse:
all neurons together fire about once per bin.

1. The ELBO. Process noise starts wide, settles, and is then reduced to a fraction of that level.
2. The importance-weighted bound, which tolerates that the posterior over a nearly deterministic
   trajectory is not Gaussian, and reduces the noise further.
3. Fisher scoring of vector field and readout on the evidence, with an initial-state prior near the
   states that training trials visit at any bin. The prior is then replaced by one near the states
   in which training trials begin.

The posterior is estimated by a pool of trajectories of the model itself (`path_pool`), which all
trials share.

Printed for the 160 validation trials, which the fit does not see: ``guide``, the R2 of the true
rates (pooled) by the model's own guide after the first part; then, by the pool, with process noise
(``noisy``) and without it (``first``: the initial state alone determines the trajectory): rate R2,
co-smoothing bits per spike of the held-out neurons as a fraction of what the true rates reach, and
R2 between inferred and true latents in both directions, by maps fitted on training trials. Then the
remaining noise in units of the latents' standard deviation, and the largest Lyapunov exponent of
the vector field without noise, per unit of the system's time (0.906 for the true system).

``known`` is an upper limit on the rate R2: the posterior mean under the true system and readout
(`known_lorenz`).

    uv run python benchmarks/node_lorenz.py --seeds 0 1 2
"""

import argparse
import time
from pathlib import Path

import results
import torch
import xarray as xr
from jaxtyping import Float
from known_lorenz import known_rates
from torch import Tensor

from pyrodyn import analysis, data, fit, models, predict, save
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    NoiseAnnealing,
    Objective,
    Schedule,
    fisher_scoring,
    path_pool,
)

BATCH_SIZE = 64
INITIAL_NOISE = 2.0
GUIDED = Schedule(
    learning_rate=6e-3,
    final_learning_rate=1e-4,
    average_weights=True,
    gradient_clip=1.0,
    noise=NoiseAnnealing(2000, 3000, factor=0.2),
)
"""For the first part, by the ELBO."""

WEIGHTED = Schedule(
    learning_rate=1e-3,
    final_learning_rate=5e-5,
    average_weights=True,
    gradient_clip=1.0,
    noise=NoiseAnnealing(0, 600, factor=0.25),
)
"""For the second part, by the importance-weighted bound."""

NUM_WEIGHTED = 16
"""Draws in that bound."""

NUM_SCORED = 16
"""Draws per trial in a step of Fisher scoring."""

NUM_INITIAL_STATES = 50_000
"""Number of states near which the initial-state prior is placed."""

NUM_VISITED, NUM_BEGUN = 5, 80
"""Draws per training trial from which these states are taken: at all bins, at the first bin."""

NUM_MAPPED = 160
"""Training trials on which maps between latents are fitted."""

FEW_PATHS, MANY_PATHS = 100_000, 600_000
"""Trajectories in the pool for training trials (Fisher scoring too) and for validation trials."""

TIME_PER_BIN = 0.02
"""Time of Lorenz' system per bin, estimated from the speed of the true latents."""


def run(seed: int, steps: list[int], out: Path | None) -> dict[str, float]:
    recording = data.held_out(data.load("lorenz_lfads_truth"), neurons=0.25, seed=seed)
    train, valid = parts(recording)
    torch.manual_seed(seed)
    model = models.NodeSAE.for_recording(
        train, latent_dim=3, process_noise=True, initial_noise=INITIAL_NOISE
    )
    started = time.process_time()
    trained(model, train, seed, ELBO(), GUIDED, steps[0])
    guided_seconds = time.process_time() - started
    guided = analysis.rate_r2(predict(model, valid)["rates"], valid["rates"]).pooled
    started = time.process_time()
    trained(model, train, seed, IWELBO(NUM_WEIGHTED), WEIGHTED, steps[1])
    weighted_seconds = time.process_time() - started
    started = time.process_time()
    model = model.with_initial_states(some_states(model, train, slice(None), NUM_VISITED, seed))
    climb(model, train, steps[2], seed)
    model = model.with_initial_states(some_states(model, train, slice(1), NUM_BEGUN, seed))
    climbed_seconds = time.process_time() - started
    if out is not None:
        save(model, out / f"seed{seed}")
    return {
        "seed": seed,
        "cpu s": guided_seconds,
        "+ cpu s": weighted_seconds,
        "++ cpu s": climbed_seconds,
        "guide": guided,
        **scores(model, recording, seed),
    }


def parts(recording: xr.Dataset) -> list[xr.Dataset]:
    """Training and validation trials."""
    return [
        recording.isel(trial=(recording["split"] == part).values) for part in ("train", "valid")
    ]


def trained(
    model: models.NodeSAE,
    train: xr.Dataset,
    seed: int,
    objective: Objective,
    schedule: Schedule,
    steps: int,
) -> None:
    fit(
        model,
        train,
        objective=objective,
        transforms=[],
        max_epochs=steps * BATCH_SIZE // train.sizes["trial"],
        batch_size=BATCH_SIZE,
        schedule=schedule,
        seed=seed,
        progress=False,
    )


def some_states(
    model: models.NodeSAE, train: xr.Dataset, bins: slice, num_draws: int, seed: int
) -> Float[Tensor, "point latent"]:
    """Posterior draws of the states of training trials at these bins, by a pool."""
    torch.manual_seed(seed)
    batch = model.trials_of(train).batch()
    pooled = path_pool(model, batch, num_draws, num_particles=FEW_PATHS)
    states = pooled.sites["z"][:, :, bins].flatten(0, 2)
    return states[torch.randperm(len(states))[:NUM_INITIAL_STATES]]


def climb(model: models.NodeSAE, train: xr.Dataset, steps: int, seed: int) -> None:
    """Fit vector field and readout by Fisher scoring, without process noise."""
    torch.manual_seed(seed)
    quiet = model.without_noise()
    batch = quiet.trials_of(train).batch()
    fisher_scoring(quiet, batch, steps, num_draws=NUM_SCORED, num_particles=FEW_PATHS)
    model.phi.load_state_dict(quiet.phi.state_dict())
    model.readout.load_state_dict(quiet.readout.state_dict())


def scores(model: models.NodeSAE, recording: xr.Dataset, seed: int) -> dict[str, float]:
    """What is printed of a fitted model."""
    train, valid = parts(recording)
    some = train.isel(trial=slice(NUM_MAPPED))
    known = known_rates(recording, (recording["split"] == "valid").values, seed)
    row = {"known": analysis.rate_r2(known, valid["rates"]).pooled}
    for name, scored in (("noisy", model), ("first", model.without_noise())):
        on_train, on_valid = (
            predict(
                scored,
                part,
                num_draws=200,
                method="pool",
                num_particles=num_paths,
                batch_size=part.sizes["trial"],
                seed=seed,
            )
            for part, num_paths in ((some, FEW_PATHS), (valid, MANY_PATHS))
        )
        latents = analysis.latent_r2(
            on_train["z"], some["latents"], on_valid["z"], valid["latents"]
        )
        co_smoothing = analysis.recording_bits_per_spike(on_valid["rates"], valid, "held_out")
        oracle = analysis.recording_bits_per_spike(valid["rates"], valid, "held_out")
        row |= {
            name: analysis.rate_r2(on_valid["rates"], valid["rates"]).pooled,
            f"{name} share": co_smoothing / oracle,
            f"{name} t->i": latents.true_to_inferred,
            f"{name} i->t": latents.inferred_to_true,
        }
    scale = on_train["z"].std(("trial", "time")).values
    spectrum = analysis.lyapunov_spectrum(
        model, on_valid["z"].values[:16, -1], 3000, num_exponents=1, burn_in=300
    )
    return row | {
        "noise": float((model.noise_scales()[1].detach().numpy() / scale).mean()),
        "exponent": float(spectrum["exponents_per_bin"][0]) / TIME_PER_BIN,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs=3, default=[7200, 1000, 4], help="of each part")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to keep the fitted models in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for seed in arguments.seeds:
        row = run(seed, arguments.steps, arguments.out)
        if not rows:
            print("  ".join(f"{name:>12}" for name in row))
        rows.append(row)
        print("  ".join(f"{value:>12.4g}" for value in row.values()), flush=True)
    results.save("node_lorenz", rows, arguments.threads)


if __name__ == "__main__":
    main()
