"""Several sessions fitted together, beside one fit of each, and a new session with fixed dynamics.

Five disjoint populations of 10 neurons see disjoint trials of one simulated Lorenz system. One
LFADS without inferred inputs is fitted to all, and one to each; scored are the true rates and
latents on test trials of every session, by the session's neurons alone (means over sessions). A
sixth population is then added with `for_session` by a tenth of the trials of one session, beside
LFADS fitted to these.

    uv run python benchmarks/sessions.py --seeds 0 1 2
"""

import argparse
import time

import numpy as np
import results
import torch
import xarray as xr

from pyrodyn import analysis, data, fit, models, predict

NAME = "sessions"
NUM_SESSIONS, NUM_NEURONS, NUM_TRIALS, NUM_BINS = 5, 10, 100, 50
TOO_FEW = NUM_TRIALS // 10


def populations(seed: int) -> list[xr.Dataset]:
    """Sessions of 100 trials and 10 neurons each, the last for the new one."""
    number = NUM_SESSIONS + 1
    whole = data.simulate(
        "lorenz", number * NUM_TRIALS, NUM_BINS, number * NUM_NEURONS, mean_rate=50, seed=seed
    )
    return [
        whole.isel(
            trial=slice(i, None, number),
            neuron=slice(i * NUM_NEURONS, (i + 1) * NUM_NEURONS),
        )
        for i in range(number)
    ]


def scores(model: models.LatentDynamics, test: xr.Dataset, decoder: xr.Dataset) -> dict[str, float]:
    """Rate R2, and R2 of the latents by a regression on the factors of other trials."""
    predicted, known = (predict(model, part, seed=0) for part in (test, decoder))
    latents = analysis.decode(
        known["factors"], decoder["latents"], predicted["factors"], test["latents"]
    )
    return {
        "rate R2": analysis.rate_r2(predicted["rates"], test["rates"], test.get("valid")).pooled,
        "latent R2": latents.r2,
    }


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Their mean by name."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def measured(seed: int, max_steps: int) -> list[dict[str, object]]:
    """Rows of one seed."""
    parts = [data.split(part, (0.7, 0.1, 0.2), seed=seed) for part in populations(seed)]
    options = {"max_steps": max_steps, "progress": False, "seed": seed}

    def fitted(train: xr.Dataset, valid: xr.Dataset) -> models.LatentDynamics:
        model = models.LFADS.for_recording(train, seed=seed, inferred_input_dim=0)
        return fit(model, train, valid, **options).model

    old, new = parts[:-1], parts[-1]
    rows: list[dict[str, object]] = []

    def add(kind: str, found: list[dict[str, float]], started: float) -> None:
        seconds = time.process_time() - started
        rows.append({"fit": kind, "seed": seed, **mean(found), "seconds": seconds})
        print(rows[-1], flush=True)

    started = time.process_time()
    alone = [scores(fitted(*part[:2]), part[2], part[0]) for part in old]
    add("one each", alone, started)
    started = time.process_time()
    train, valid, test = (data.sessions([part[i] for part in old]) for i in range(3))
    joint = fitted(train, valid)
    found = []
    for name in map(str, range(NUM_SESSIONS)):
        own = [(whole["session"] == name).values for whole in (test, train)]
        whole_test, whole_train = test.isel(trial=own[0]), train.isel(trial=own[1])
        found.append(scores(joint, whole_test, whole_train))
    add("together", found, started)
    few = [part.isel(trial=slice(size)) for part, size in zip(new, (TOO_FEW, 5), strict=False)]
    for kind, model in (
        ("new session, dynamics fixed", models.for_session(joint, few[0], seed=seed)),
        ("new session, alone", models.LFADS.for_recording(few[0], seed=seed, inferred_input_dim=0)),
    ):
        started = time.process_time()
        trained = fit(model, *few, **options).model
        add(kind, [scores(trained, new[2], few[0])], started)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-steps", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = [row for seed in arguments.seeds for row in measured(seed, arguments.max_steps)]
    results.save(NAME, table)


if __name__ == "__main__":
    main()
