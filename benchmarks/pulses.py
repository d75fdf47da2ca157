"""LFADS on a chaotic rate network with one input pulse per trial, and on the same network without
input.

Printed on new trials: how often the largest inferred input lies within 3 bins of the pulse, and
the KL of the inferred inputs per trial without pulses, which should vanish.

    uv run python benchmarks/pulses.py --seeds 0 1 2
"""

import argparse

import numpy as np
import results
import torch

from pyrodyn import analysis, data, fit, models, predict
from pyrodyn.data import Trials
from pyrodyn.infer import ELBO, Ramp, Schedule


def run(seed: int, epochs: int, pulsed: bool, pulse_size: float, prior: str) -> dict[str, float]:
    recording = data.simulate(
        "pulsed_rnn",
        2000,
        100,
        50,
        mean_rate=20.0,
        seed=seed,
        pulse_probability=float(pulsed),
        pulse_size=pulse_size,
    )
    train, valid = data.split(recording, (0.9, 0.1), seed=seed)
    torch.manual_seed(seed)
    model = models.LFADS.for_recording(
        train,
        factor_dim=12,
        inferred_input_dim=1,
        controller_encoder_dim=32,
        controller_dim=32,
        input_prior=prior,
    )
    # The weight of the inputs' KL is small at first, so that pulses are found early, and above 1
    # at the end, so that inputs do not replace dynamics: the objective is not the plain bound.
    objective = ELBO(beta={"g0": Ramp(300), "u": Ramp(2300, final=6.0)})
    fitted = fit(
        model,
        train,
        valid,
        objective=objective,
        transforms=[data.CoordinatedDropout(0.3)],
        max_epochs=epochs,
        batch_size=64,
        schedule=Schedule(learning_rate=1e-2, patience=87, stop_patience=1740),
        seed=seed,
        progress=False,
    )
    predicted = predict(model, valid)
    size = np.abs(predicted["u"].values).sum(-1)
    error = np.abs(size.argmax(1) - valid["pulse_bin"].values)
    with torch.no_grad():
        kl = ELBO(20)(model, model.guide).terms(Trials(valid).batch()).kl["u"]
    return {
        "seed": seed,
        "pulsed": float(pulsed),
        "steps": fitted.num_steps,
        "rate R2": analysis.rate_r2(predicted["rates"], valid["rates"]).pooled,
        "within 3 bins": float((error <= 3).mean()) if pulsed else float("nan"),
        "KL(u) nats": float(kl) / valid.sizes["trial"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=130)
    parser.add_argument("--pulse-size", type=float, default=1.0)
    parser.add_argument("--prior", choices=["ar1", "white", "student_t"], default="ar1")
    parser.add_argument("--pulsed", type=int, nargs="+", default=[1, 0])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, float]] = []
    for seed in arguments.seeds:
        for pulsed in map(bool, arguments.pulsed):
            row = run(seed, arguments.epochs, pulsed, arguments.pulse_size, arguments.prior)
            if not rows:
                print("  ".join(f"{name:>14}" for name in row))
            rows.append(row)
            print("  ".join(f"{value:>14.4g}" for value in row.values()), flush=True)
    results.save("pulses", rows, arguments.threads)


if __name__ == "__main__":
    main()
