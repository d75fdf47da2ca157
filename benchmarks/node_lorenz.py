"""NODE-SAE on `lorenz_lfads_truth` with three latents, whose true rates and latents are known.

One fit per seed with 15 of 60 neurons held out of the encoder. Counts are sparse, about one spike
per bin from all neurons together: process noise is wide before training, finds its level, and is
then pressed to a share of that; at last it is left out. Printed on the 160 validation trials, which
also chose the kept weights, with the noise (``steered``) and from the *first state alone*, of which
`MixtureStart` and importance weights tell the posterior: rate R2 against the truth (pooled),
co-smoothing bits/spike of the held-out neurons as a share of what the true rates reach, and R2
between inferred and true latents in both directions, maps fitted on training trials. Then the noise
left in units of the latents' own spread; of the field, without noise, its largest Lyapunov exponent
per unit of the system's time (.906 in truth).

``known`` is how much can be told of the rates at all, by one who knows the true system and readout
(`known_lorenz`).

    uv run python benchmarks/node_lorenz.py --seeds 0 1 2
"""

import argparse
import time
from pathlib import Path

import torch
import xarray as xr
from known_lorenz import known_rates

from pyrodyn import analysis, data, fit, models, predict, save
from pyrodyn.infer import FallingNoise, MixtureStart, Schedule

BATCH_SIZE = 64
UNTRAINED_NOISE = 2.0
SCHEDULE = Schedule(
    learning_rate=6e-3,
    last_rate=1e-4,
    is_averaged=True,
    gradient_clip=1.0,
    noise=FallingNoise(2000, 3000, factor=0.2),
)

NUM_MAPPED = 160
"""Training trials whose first states are solved for, to map latents."""

TIME_PER_BIN = 0.02
"""Of Lorenz' system; its latents say so, of which the first moves by 10 times this per bin."""


def run(seed: int, steps: int, out: Path | None) -> dict[str, float]:
    recording = data.held_out(data.load("lorenz_lfads_truth"), neurons=0.25, seed=seed)
    train, valid = parts(recording)
    torch.manual_seed(seed)
    model = models.NodeSAE.for_recording(
        train, latent_dim=3, process_noise=True, untrained_noise=UNTRAINED_NOISE
    )
    started = time.process_time()
    fitted = fit(
        model,
        train,
        valid,
        max_epochs=steps * BATCH_SIZE // train.sizes["trial"],
        batch_size=BATCH_SIZE,
        schedule=SCHEDULE,
        seed=seed,
        progress=False,
    )
    elapsed = time.process_time() - started
    if out is not None:
        save(model, out / f"seed{seed}")
    return {
        "seed": seed,
        "cpu s": elapsed,
        "steps": fitted.num_steps,
        **scores(model, recording, seed),
    }


def parts(recording: xr.Dataset) -> list[xr.Dataset]:
    """Training and validation trials."""
    return [
        recording.isel(trial=(recording["split"] == part).values) for part in ("train", "valid")
    ]


def scores(model: models.NodeSAE, recording: xr.Dataset, seed: int) -> dict[str, float]:
    """What is printed of a fitted model."""
    train, valid = parts(recording)
    steered = [predict(model, train, num_draws=20), predict(model, valid)]
    alone = model.without_noise()
    guide, some = MixtureStart(alone), train.isel(trial=slice(NUM_MAPPED))
    solved = [
        predict(
            alone,
            part,
            num_draws=200,
            guide=guide,
            method="importance",
            batch_size=16,
            seed=seed,
        )
        for part in (some, valid)
    ]
    told = known_rates(recording, (recording["split"] == "valid").values, seed)
    spread = steered[0]["z"].std(("trial", "time")).values
    spectrum = analysis.lyapunov_spectrum(
        model, steered[1]["z"].values[:16, -1], 3000, num_exponents=1, burn_in=300
    )
    return {
        "known": analysis.rate_r2(told, valid["rates"]).pooled,
        **_scores_of("steered", steered, [train, valid]),
        **_scores_of("alone", solved, [some, valid]),
        "noise": float((model.noise_scales()[1].detach().numpy() / spread).mean()),
        "exponent": float(spectrum["exponents_per_bin"][0]) / TIME_PER_BIN,
    }


def _scores_of(name: str, found: list[xr.Dataset], truth: list[xr.Dataset]) -> dict[str, float]:
    """Of what was inferred on training and validation trials."""
    on_train, on_valid = found
    train, valid = truth
    latents = analysis.latent_r2(on_train["z"], train["latents"], on_valid["z"], valid["latents"])
    co_smoothing = analysis.recording_bits_per_spike(on_valid["rates"], valid, "held_out")
    oracle = analysis.recording_bits_per_spike(valid["rates"], valid, "held_out")
    return {
        name: analysis.rate_r2(on_valid["rates"], valid["rates"]).pooled,
        f"{name} share": co_smoothing / oracle,
        f"{name} t->i": latents.true_to_inferred,
        f"{name} i->t": latents.inferred_to_true,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to keep the fitted models in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for position, seed in enumerate(arguments.seeds):
        row = run(seed, arguments.steps, arguments.out)
        if position == 0:
            print("  ".join(f"{name:>14}" for name in row))
        print("  ".join(f"{value:>14.4g}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
