"""NODE-SAE on `lorenz_lfads_truth` with three latents, whose true rates and latents are known.

One fit per seed with 15 of 60 neurons held out of the encoder, with process noise that is pressed
down to a tenth; then the noise is left out and the path follows from the first state alone, which
`LaplaceStart` solves for. Printed on the 160 validation trials for either: rate R2 against the
truth (pooled), co-smoothing bits/spike of the held-out neurons as a share of what the true rates
reach, and R2 between inferred and true latents in both directions, maps fitted on the training
trials; also the standard deviation of the noise left, in units of the latents' own, and the field's
largest Lyapunov exponent per bin.

    uv run python benchmarks/node_lorenz.py --seeds 0 1 2
"""

import argparse
import time
from pathlib import Path

import torch
import xarray as xr

from pyrodyn import analysis, data, fit, models, predict, save
from pyrodyn.infer import FallingNoise, LaplaceStart, Schedule

BATCH_SIZE = 64


def run(seed: int, steps: int, out: Path | None) -> list[dict[str, float | str]]:
    recording = data.held_out(data.load("lorenz_lfads_truth"), neurons=0.25, seed=seed)
    train, valid = (
        recording.isel(trial=(recording["split"] == part).values) for part in ("train", "valid")
    )
    torch.manual_seed(seed)
    model = models.NodeSAE.for_recording(train, latent_dim=3, process_noise=True)
    started = time.monotonic()
    fitted = fit(
        model,
        train,
        valid,
        max_epochs=steps * BATCH_SIZE // train.sizes["trial"],
        batch_size=BATCH_SIZE,
        schedule=Schedule(
            learning_rate=5e-3,
            patience=8,
            stop_patience=1000,
            noise=FallingNoise(steps // 5, 2 * steps // 5),
        ),
        seed=seed,
        progress=False,
    )
    elapsed = time.monotonic() - started
    if out is not None:
        save(model, out / f"seed{seed}")
    on_train, on_valid = predict(model, train, num_draws=20), predict(model, valid)
    spread = on_train["z"].std(("trial", "time")).values
    exponents = analysis.lyapunov_spectrum(
        model, on_valid["z"].values[:16, -1], 3000, num_exponents=1, burn_in=300
    )["exponents_per_bin"]
    shared = {
        "seed": seed,
        "seconds": elapsed,
        "steps": fitted.num_steps,
        "noise": float((model.noise_scales()[1].detach().numpy() / spread).mean()),
        "exponent": float(exponents[0]),
    }
    alone = model.without_noise()
    solved = [
        predict(alone, part, num_draws=10, guide=LaplaceStart(alone, num_searches=searches))
        for part, searches in ((train, 1), (valid, 4))
    ]
    return [
        {**shared, "path": "noisy", **scores(on_train, on_valid, train, valid)},
        {**shared, "path": "alone", **scores(*solved, train, valid)},
    ]


def scores(
    on_train: xr.Dataset, on_valid: xr.Dataset, train: xr.Dataset, valid: xr.Dataset
) -> dict[str, float]:
    latents = analysis.latent_r2(on_train["z"], train["latents"], on_valid["z"], valid["latents"])
    co_smoothing = analysis.recording_bits_per_spike(on_valid["rates"], valid, "held_out")
    oracle = analysis.recording_bits_per_spike(valid["rates"], valid, "held_out")
    return {
        "rate R2": analysis.rate_r2(on_valid["rates"], valid["rates"]).pooled,
        "share": co_smoothing / oracle,
        "true->inferred": latents.true_to_inferred,
        "inferred->true": latents.inferred_to_true,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to keep the fitted models in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for position, seed in enumerate(arguments.seeds):
        rows = run(seed, arguments.steps, arguments.out)
        if position == 0:
            print("  ".join(f"{name:>14}" for name in rows[0]))
        for row in rows:
            print("  ".join(shown(value) for value in row.values()), flush=True)


def shown(value: float | str) -> str:
    return f"{value:>14}" if isinstance(value, str) else f"{value:>14.4g}"


if __name__ == "__main__":
    main()
