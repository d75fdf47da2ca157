"""Parameter recovery: low-rank RNNs fitted to data from a low-rank RNN.

`pyrodyn.data.teacher` simulates a noisy limit cycle (decay 0.9, process noise 0.2). Students of the
same family are fitted to 400 trials; 100 further trials select the weights and are what is scored.

Gaussian (20 channels, 75 bins, observation noise 0.1), by VSMC; goal 2 %, for the period 5 %:

    sigma_z     Latents are identified up to an affine map. z_teacher = z A + c is fitted by least
                squares of the teacher's true latents on the student's filtered means over all bins
                but the first five of the validation trials (truth regresses on a posterior mean
                with slope 1, so that uncertainty does not shrink this map); sigma_z is the root
                mean eigenvalue of A' S A, with S the student's process covariance.
    sigma_x     root mean of the channels' variances
    a           the decay; it needs no map, and starts from ``--decay``, not from the truth
    slope       mean real part of the eigenvalues of the student's Jacobian along the teacher's
                cycle; unlike a, for which relu units can compensate, a property of the map alone
    period      first peak of the autocorrelation of free runs, 40 of 2000 bins, of the mapped
                latents; the teacher's is measured in the same way

Poisson (40 neurons, 200 bins, softplus link), by the smoothed score or VSMC. Statistics of free
runs of the student, as many trials as in the data, stand beside those of one half of the data
against the other half:

    inferred    correlation of inferred and true rates on validation trials, over all entries, given
                all bins of a trial (by the smoother); ``by teacher`` is the upper limit, inferred
                by the network that generated the data
    mean rate   correlation over neurons of mean counts, student's and data's
    pairwise    correlation over pairs of neurons of their correlations
    autocorr    RMS difference of the mean autocorrelation of counts, lags 1 to 60 bins

    uv run python benchmarks/teacher_student.py --task gaussian --seeds 0 1 2 --minutes 3
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import results
import torch
import xarray as xr
from known_teacher import teacher_as_model
from numpy.typing import NDArray

from pyrodyn import analysis, data, fit, models, predict
from pyrodyn.data.teachers import teacher_network
from pyrodyn.infer import VSMC, Objective, Schedule, SmoothedScore, particle_filter
from pyrodyn.models.observations import Gaussian

Array = NDArray[np.float64]

NUM_TRAIN, NUM_VALID = 400, 100


class Stage(NamedTuple):
    """One fit of a student, from the weights of the previous stage.

    Attributes:
        objective: what is minimised.
        batch_size: trials per step.
        schedule: of the learning rate.
        fraction: of the minutes; 0 for a stage that is limited by its epochs alone.
        epochs: largest number of passes over the training trials.
    """

    objective: Objective
    batch_size: int
    schedule: Schedule
    fraction: float = 0.0
    epochs: int = 100_000


class Student(NamedTuple):
    """How a student is fitted."""

    proposal: str
    stages: list[Stage]


def by_vsmc(proposal: str, num_particles: int, first_rate: float = 1e-2) -> Student:
    """A first stage with few particles finds the dynamics; the second has the final bound.

    The number of small operations limits the speed: many trials cost little more than ten.
    """
    # Eight epochs of 8 steps, and of 16.
    first = Schedule(first_rate, patience=64, stop_patience=400)
    second = Schedule(2e-3, patience=128, stop_patience=800)
    return Student(
        proposal,
        [
            Stage(VSMC(min(4, num_particles)), 50, first, fraction=0.6),
            Stage(VSMC(num_particles), 25, second, fraction=0.4),
        ],
    )


def by_score(num_particles: int) -> Student:
    """With counts, the bootstrap proposal is close enough to the posterior of the next state."""
    schedule = Schedule(1e-2, final_learning_rate=3e-4, average_weights=True)
    return Student("bootstrap", [Stage(SmoothedScore(num_particles), 50, schedule, epochs=75)])


STUDENTS = {
    "gaussian": {
        "optimal 64": by_vsmc("optimal", 64),
        "bootstrap 64": by_vsmc("bootstrap", 64),
        "optimal 1": by_vsmc("optimal", 1),
    },
    "poisson": {
        "smoothed 128": by_score(128),
        # With a larger learning rate gradients through 200 bins explode.
        "encoder 64": by_vsmc("causal_encoder", 64, first_rate=4e-3),
    },
}


def fitted(
    recording: xr.Dataset, student: Student, seed: int, minutes: float, decay: float
) -> tuple[models.LowRankRNN, int]:
    """A student after all its stages, and the number of training steps."""
    torch.manual_seed(seed)
    is_signal = "signal" in recording
    model = models.LowRankRNN.for_recording(
        recording,
        latent_dim=2,
        num_units=recording.sizes["channel" if is_signal else "neuron"],
        link="canonical" if is_signal else "softplus",
        proposal=student.proposal,
    )
    train, valid = (
        recording.isel(trial=slice(NUM_TRAIN)),
        recording.isel(trial=slice(NUM_TRAIN, None)),
    )
    with torch.no_grad():
        model.log_rate.fill_(float(np.log(-np.log(decay))))
    steps = 0
    for stage in student.stages:
        steps += fit(
            model,
            train,
            valid,
            objective=stage.objective,
            transforms=[],
            max_epochs=stage.epochs,
            max_minutes=stage.fraction * minutes or None,
            batch_size=stage.batch_size,
            schedule=stage.schedule,
            seed=seed,
            progress=False,
        ).num_steps
    return model, steps


# --- measurements --------------------------------------------------------------------------------


@torch.no_grad()
def filtered_means(model: models.LowRankRNN, recording: xr.Dataset) -> Array:
    """E[z_t | x_{1:t}] ``(trial, time, latent)``, by 1000 particles."""
    torch.manual_seed(0)
    batch = model.trials_of(recording).batch()
    return particle_filter(model, batch, 1000).mean().transpose(0, 1).double().numpy()


def free_latents(model: models.LowRankRNN, num_trials: int, num_bins: int) -> Array:
    """Latents of free runs, ``(trial, time, latent)``."""
    path = analysis.free_run(model, num_trials, num_bins)["latents"].values.astype(float)
    # Relu networks may diverge; infinite values become NaN before the change of coordinates.
    return np.where(np.isfinite(path), path, np.nan)


def period(path: Array) -> float:
    """Lag of the first peak of the autocorrelation after its first trough, between bins; NaN for
    runs that diverge or do not oscillate.
    """
    if not np.isfinite(path).all():
        return float("nan")
    centred = path[:, 200:] - path[:, 200:].mean((0, 1))
    num_bins = centred.shape[1]
    power = np.abs(np.fft.rfft(centred, 2 * num_bins, axis=1)) ** 2
    lags = np.fft.irfft(power.sum((0, 2)))[:num_bins] / np.arange(num_bins, 0, -1)
    trough = int(np.argmax(np.diff(lags) > 0))
    peak = trough + int(np.argmax(lags[trough : trough + num_bins // 4]))
    if peak == 0:
        return float("nan")
    left, top, right = lags[peak - 1 : peak + 2]
    return peak + 0.5 * (left - right) / (left - 2 * top + right)


def slope(step: Callable[[Array], Array], around: Array) -> float:
    """Half the trace of the Jacobian of a map of the plane, averaged over points."""
    epsilon = 1e-3
    total = 0.0
    for axis, shift in enumerate(epsilon * np.eye(2)):
        total += ((step(around + shift) - step(around - shift))[:, axis] / (2 * epsilon)).mean()
    return total / 2


def gaussian_row(model: models.LowRankRNN, valid: xr.Dataset) -> dict[str, float]:
    """Noise, decay, slope and period of a student, each with its relative error in %."""
    means, truth = filtered_means(model, valid)[:, 5:], valid["latents"].values[:, 5:]
    to_teacher = analysis.align(means, truth)
    A, around = to_teacher.matrix, truth.reshape(-1, 2).astype(float)
    with torch.no_grad():
        covariance = model.process_noise()[1].matrix.double().numpy()
        assert isinstance(model.observation, Gaussian)
        sigma_x = float(model.observation.scale().square().mean().sqrt())
        decay = float(model.decay().mean())

    student = to_teacher.transform_dynamics(model)

    def step(z: Array) -> Array:
        """The student's map in the teacher's coordinates."""
        return student.step(torch.from_numpy(z), torch.zeros(len(z), 0)).numpy()

    network = teacher_network("limit_cycle", 20)
    long = data.teacher("limit_cycle", 40, 2200, 20, seed=99)["latents"].values.astype(float)
    found = {
        "sigma_z": float(np.sqrt(np.linalg.eigvalsh(A.T @ covariance @ A).mean())),
        "sigma_x": sigma_x,
        "a": decay,
        "slope": slope(step, around),
        "period": period(to_teacher(free_latents(model, 40, 2200))),
    }
    wanted = {
        "sigma_z": valid.attrs["process_noise"],
        "sigma_x": valid.attrs["observation_noise"],
        "a": valid.attrs["decay"],
        "slope": slope(network.mean_step, around),
        "period": period(long),
    }
    row: dict[str, float] = {}
    for name, value in found.items():
        row[name] = value
        row[f"{name} %"] = 100 * (value / wanted[name] - 1)
    return row


def _correlation(first: Array, second: Array) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _statistics(counts: Array) -> tuple[Array, Array, Array]:
    """Mean counts, correlations of pairs, mean autocorrelation at lags 1 to 60."""
    pairs = np.asarray(np.corrcoef(counts.reshape(-1, counts.shape[-1]).T))
    centred = (counts - counts.mean((0, 1))) / counts.std((0, 1))
    num_bins = counts.shape[1]
    lags = [(centred[:, lag:] * centred[:, : num_bins - lag]).mean() for lag in range(1, 61)]
    return counts.mean((0, 1)), pairs[np.triu_indices(len(pairs), 1)], np.array(lags)


def _compared(counts: Array, others: Array, suffix: str = "") -> dict[str, float]:
    (mean, pairs, lags), (mean_, pairs_, lags_) = _statistics(counts), _statistics(others)
    return {
        f"mean rate{suffix}": _correlation(mean, mean_),
        f"pairwise{suffix}": _correlation(pairs, pairs_),
        f"autocorr{suffix}": float(np.sqrt(np.square(lags - lags_).mean())),
    }


def poisson_row(model: models.LowRankRNN, recording: xr.Dataset) -> dict[str, float]:
    """Inferred rates, and statistics of free runs beside those of half the data."""
    valid = recording.isel(trial=slice(NUM_TRAIN, None))
    counts = recording["counts"].values.astype(float)
    drawn = analysis.free_run(model, *counts.shape[:2])["x"].values.astype(float)

    def inferred(network: models.LowRankRNN) -> float:
        rates = predict(network, valid, method="smoother", num_draws=100, num_particles=256)[
            "rates"
        ]
        return _correlation(rates.values, valid["rates"].values)

    return {
        "inferred": inferred(model),
        "by teacher": inferred(teacher_as_model(recording)),
        **_compared(drawn, counts),
        **_compared(counts[::2], counts[1::2], " half"),
    }


def run(task: str, name: str, seed: int, minutes: float, decay: float) -> dict[str, Any]:
    num_trials = NUM_TRAIN + NUM_VALID
    if task == "gaussian":
        recording = data.teacher("limit_cycle", num_trials, 75, 20, seed=seed)
    else:
        recording = data.teacher(
            "limit_cycle", num_trials, 200, 40, observation="poisson", seed=seed
        )
    started = time.monotonic()
    model, steps = fitted(recording, STUDENTS[task][name], seed, minutes, decay)
    about = {"student": name, "seed": seed, "seconds": time.monotonic() - started, "steps": steps}
    if task == "gaussian":
        return {**about, **gaussian_row(model, recording.isel(trial=slice(NUM_TRAIN, None)))}
    return {**about, **poisson_row(model, recording)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="gaussian", choices=list(STUDENTS))
    parser.add_argument("--students", nargs="+", help="such as 'optimal 64'; default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3.0, help="of fits by VSMC")
    parser.add_argument("--decay", type=float, default=0.8, help="where a starts")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.students or list(STUDENTS[arguments.task])
    rows = []
    for name, seed in ((n, s) for n in names for s in arguments.seeds):
        row = run(arguments.task, name, seed, arguments.minutes, arguments.decay)
        if not rows:
            print("  ".join(f"{column:>12}" for column in row))
        rows.append(row)
        cells = (value if isinstance(value, str) else f"{value:.4g}" for value in row.values())
        print("  ".join(f"{cell:>12}" for cell in cells), flush=True)
    results.save(f"teacher_student_{arguments.task}", rows, arguments.threads)


if __name__ == "__main__":
    main()
