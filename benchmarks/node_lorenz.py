"""NODE-SAE on `lorenz_lfads_truth` with three latents, whose true rates and latents are known.

One fit per seed with 15 of 60 neurons held out of the encoder, with process noise or from the first
state alone. Printed on the 160 validation trials: rate R2 against the truth (pooled), co-smoothing
bits/spike of the held-out neurons as a share of what the true rates reach, and R2 between inferred
and true latents in both directions, maps fitted on the training trials; with process noise also its
standard deviation in units of the latents' own.

    uv run python benchmarks/node_lorenz.py --seeds 0 1 2 --minutes 14
    uv run python benchmarks/node_lorenz.py --no-noise --seeds 0 1 2 --minutes 14
"""

import argparse
import time
from pathlib import Path

import torch

from pyrodyn import analysis, data, fit, models, predict, save
from pyrodyn.infer import GrowingHorizon, Schedule


def run(seed: int, minutes: float, noise: bool, out: Path | None) -> dict[str, float]:
    recording = data.held_out(data.load("lorenz_lfads_truth"), neurons=0.25, seed=seed)
    train, valid = (
        recording.isel(trial=(recording["split"] == part).values) for part in ("train", "valid")
    )
    torch.manual_seed(seed)
    model = models.NodeSAE.for_recording(train, latent_dim=3, process_noise=noise)
    started = time.monotonic()
    fitted = fit(
        model,
        train,
        valid,
        max_epochs=10_000,
        max_minutes=minutes,
        schedule=Schedule(
            learning_rate=1e-2 if noise else 5e-3,
            patience=25,
            stop_patience=1000,
            horizon=None if noise else GrowingHorizon(5, 1500),
        ),
        seed=seed,
        progress=False,
    )
    elapsed = time.monotonic() - started
    if out is not None:
        save(model, out / f"seed{seed}")
    on_train, on_valid = predict(model, train, num_draws=20), predict(model, valid)
    latents = analysis.latent_r2(on_train["z"], train["latents"], on_valid["z"], valid["latents"])
    co_smoothing = analysis.recording_bits_per_spike(on_valid["rates"], valid, "held_out")
    oracle = analysis.recording_bits_per_spike(valid["rates"], valid, "held_out")
    row = {
        "seed": seed,
        "seconds": elapsed,
        "steps": fitted.num_steps,
        "rate R2": analysis.rate_r2(on_valid["rates"], valid["rates"]).pooled,
        "share": co_smoothing / oracle,
        "true->inferred": latents.true_to_inferred,
        "inferred->true": latents.inferred_to_true,
    }
    if noise:
        spread = on_train["z"].std(("trial", "time")).values
        row["noise"] = float((model.noise_scales()[1].detach().numpy() / spread).mean())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--noise", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to keep the fitted models in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for position, seed in enumerate(arguments.seeds):
        row = run(seed, arguments.minutes, arguments.noise, arguments.out)
        if position == 0:
            print("  ".join(f"{name:>14}" for name in row))
        print("  ".join(f"{value:>14.4g}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
