"""LFADS on `lorenz_lfads_truth`, whose true rates and latents are known.

One fit per seed with 15 of 60 neurons held out of the encoder. Printed on the 160 validation
trials: R2 of the true rates (pooled over all neurons), co-smoothing bits per spike of the held-out
neurons as a fraction of what the true rates reach, and R2 between inferred factors and true latents
in both directions, by maps fitted on the training trials.

    uv run python benchmarks/lorenz.py --seeds 0 1 2 --minutes 9
"""

import argparse
import time

import results
import torch

from pyrodyn import analysis, data, fit, models, predict
from pyrodyn.infer import ELBO, Ramp, Schedule


def run(seed: int, minutes: float) -> dict[str, float]:
    recording = data.held_out(data.load("lorenz_lfads_truth"), neurons=0.25, seed=seed)
    train, valid = (
        recording.isel(trial=(recording["split"] == part).values) for part in ("train", "valid")
    )
    torch.manual_seed(seed)
    model = models.LFADS.for_recording(train, factor_dim=3, inferred_input_dim=1)
    started = time.monotonic()
    fitted = fit(
        model,
        train,
        valid,
        objective=ELBO(beta={"g0": Ramp(500), "u": Ramp(500)}),
        transforms=[data.CoordinatedDropout(0.3)],
        max_epochs=10_000,
        max_minutes=minutes,
        batch_size=64,
        schedule=Schedule(learning_rate=1e-2, patience=100, stop_patience=600),
        seed=seed,
        progress=False,
    )
    elapsed = time.monotonic() - started
    on_train, on_valid = predict(model, train, num_draws=20), predict(model, valid)
    latents = analysis.latent_r2(
        on_train["factors"], train["latents"], on_valid["factors"], valid["latents"]
    )
    co_smoothing = analysis.recording_bits_per_spike(on_valid["rates"], valid, "held_out")
    oracle = analysis.recording_bits_per_spike(valid["rates"], valid, "held_out")
    return {
        "seed": seed,
        "seconds": elapsed,
        "steps": fitted.num_steps,
        "rate R2": analysis.rate_r2(on_valid["rates"], valid["rates"]).pooled,
        "co-bps": co_smoothing,
        "oracle": oracle,
        "share": co_smoothing / oracle,
        "true->inferred": latents.true_to_inferred,
        "inferred->true": latents.inferred_to_true,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for seed in arguments.seeds:
        row = run(seed, arguments.minutes)
        if not rows:
            print("  ".join(f"{name:>14}" for name in row))
        rows.append(row)
        print("  ".join(f"{value:>14.4g}" for value in row.values()), flush=True)
    results.save("lorenz", rows, arguments.threads)


if __name__ == "__main__":
    main()
