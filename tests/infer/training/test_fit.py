"""`fit`: its training steps against plain loops, reproducibility, resuming, stopping, errors."""

import csv
import dataclasses
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from lightning.pytorch.loggers import CSVLogger
from pyro.infer.autoguide import AutoGuideList, AutoLowRankMultivariateNormal, AutoNormal
from torch import Tensor, nn

from pyrodyn.data.batch import Batch, Trials
from pyrodyn.data.readers import write
from pyrodyn.data.recording import recording
from pyrodyn.data.transforms import CoordinatedDropout, SampleValidation, SpikeJitter
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    VSMC,
    Fit,
    GrowingHorizon,
    NoiseAnnealing,
    NonFiniteLossError,
    Ramp,
    Schedule,
)
from pyrodyn.infer import fit as fit_as_recommended
from pyrodyn.infer.training.batches import ShuffledBatches, mixed_seed
from pyrodyn.infer.training.checkpoint import CHECKPOINT
from pyrodyn.infer.training.fitted import model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.lfads import LFADS
from pyrodyn.models.low_rank_rnn import LowRankRNN
from pyrodyn.models.sae import NodeSAE
from pyrodyn.models.saving import load, read_card, save
from pyrodyn.posterior import predict

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}

PLAIN: dict[str, Any] = {
    "objective": ELBO(),
    "transforms": (),
    "schedule": Schedule(),
    "batch_size": 64,
}
"""Settings that do not depend on the model's recipe, which `test_recommended` covers."""


def fit(model: LatentDynamics, *recordings: xr.Dataset | None, **options: Any) -> Fit:
    return fit_as_recommended(model, *recordings, **{**PLAIN, **options})


@pytest.fixture
def train(make_recording) -> xr.Dataset:
    return make_recording(12)


@pytest.fixture
def valid(make_recording) -> xr.Dataset:
    return make_recording(5, seed=1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether nested dicts and lists are equal, tensors bit by bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class At:
    """A transform that changes the batch of one training step alone.

    Args:
        step: the training step.
        change: maps the batch to a changed batch.
    """

    def __init__(self, step: int, change: Callable[[Batch], Batch]) -> None:
        self.steps_until_change, self.change = step, change

    def __call__(self, batch: Batch) -> Batch:
        self.steps_until_change -= 1
        return self.change(batch) if self.steps_until_change == -1 else batch


# ------------------------------------------------------------------ training steps


def test_weights_and_losses_match_a_plain_loop(train, valid, make_lfads):
    options = {"inferred_input_dim": 1, "dropout": 0.2}
    objective = ELBO(2, beta={"g0": Ramp(4)})
    fitted = fit(
        make_lfads(train, **options),
        train,
        valid,
        objective=objective,
        transforms=[CoordinatedDropout(0.3)],
        max_epochs=3,
        batch_size=5,
        schedule=Schedule(learning_rate=1e-2, gradient_clip=1.0),
        seed=7,
        **QUIET,
    )
    model = make_lfads(train, **options)
    loss = objective(model, model.guide)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    step, validations, by_epoch = 0, [], []
    for epoch in range(3):
        losses, kls = [], {"g0": [], "u": []}
        for batch in ShuffledBatches(Trials(train), 5, 7, lambda epoch=epoch: epoch):
            torch.manual_seed(mixed_seed(7, step))
            evaluation = loss.evaluate(CoordinatedDropout(0.3)(batch), step)
            value = evaluation.loss / 12
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            losses += [value.item()] * batch.num_trials
            for site in kls:
                kl = evaluation.logged[f"kl_{site}"]
                kls[site] += [kl.item() / 12] * batch.num_trials
        model.eval()
        torch.manual_seed(mixed_seed(7, -1))
        with torch.no_grad():
            validations.append(loss(Trials(valid).batch()).item() / 5)
        model.train()
        by_epoch.append(weights(model))
        assert fitted.history["train_loss"][epoch] == pytest.approx(np.mean(losses), rel=1e-5)
        for site, values in kls.items():
            assert fitted.history[f"kl_{site}"][epoch] == pytest.approx(np.mean(values), rel=1e-5)
    np.testing.assert_allclose(fitted.history["valid_loss"], validations, rtol=1e-6)
    assert fitted.num_steps == step == 9
    # The ramp ends at step 4: epoch 1 is the first with a settled loss.
    assert fitted.best_epoch == 1 + int(np.argmin(validations[1:]))
    assert same(weights(fitted.model), by_epoch[fitted.best_epoch])


def test_every_epoch_visits_all_trials_in_a_new_order(train):
    def visited(seed: int, epoch: int) -> list[int]:
        batches = ShuffledBatches(Trials(train), 5, seed, lambda: epoch)
        assert [batch.num_trials for batch in batches] == [5, 5, 2]
        assert [batch.weight for batch in batches] == pytest.approx([12 / 5, 12 / 5, 6])
        return torch.cat([batch.trial for batch in batches]).tolist()

    orders = {(seed, epoch): visited(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(sorted(order) == list(range(12)) for order in orders.values())
    assert len(set(map(tuple, orders.values()))) == len(orders)
    assert visited(1, 2) == orders[1, 2]


def test_a_single_batch_has_the_recorded_order(train):
    for epoch in range(3):
        (batch,) = ShuffledBatches(Trials(train), 12, 0, lambda epoch=epoch: epoch)
        assert batch.trial.tolist() == list(range(12)) and batch.weight == 1


def test_the_history_contains_every_epoch(train, valid, make_lfads):
    fitted = fit(make_lfads(train), train, valid, max_epochs=4, batch_size=5, **QUIET)
    assert set(fitted.history) == {"train_loss", "valid_loss", "kl_g0", "learning_rate"}
    assert fitted.history.sizes == {"epoch": 4}
    for name, values in fitted.history.items():
        assert np.isfinite(values).all(), name
    assert (fitted.history["learning_rate"] == np.float32(Schedule().learning_rate)).all()


@pytest.mark.parametrize("input_prior", ["ar1", "white", "student_t"])
def test_every_parameter_is_trained(train, make_recording, make_lfads, input_prior):
    rng = np.random.default_rng(0)
    train = make_recording(12, inputs=rng.normal(size=(12, 8, 2)))
    model = make_lfads(
        train,
        inferred_input_dim=2,
        input_prior=input_prior,
        observation="negative_binomial",
        recurrent_precision=0.1,
    )
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fit(model, train, max_epochs=2, batch_size=6, **QUIET)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_with_validation_the_best_weights_are_kept(train, valid, make_lfads):
    fitted = fit(
        make_lfads(train),
        train,
        valid,
        max_epochs=25,
        batch_size=3,
        schedule=Schedule(learning_rate=5e-2, patience=100),
        seed=1,
        **QUIET,
    )
    losses = fitted.history["valid_loss"].values
    assert fitted.best_epoch == np.argmin(losses) < 24
    model = fitted.model
    torch.manual_seed(mixed_seed(1, -1))
    with torch.no_grad():
        batches = [ELBO()(model, model.guide)(batch) for batch in Trials(valid).batches(3)]
    assert float(sum(batches)) / 5 == pytest.approx(losses[fitted.best_epoch], rel=1e-6)
    assert losses[-1] > losses[fitted.best_epoch]


def test_without_validation_the_last_weights_are_kept(train, make_lfads, tmp_path):
    fitted = fit(make_lfads(train), train, max_epochs=3, batch_size=5, out=tmp_path, **QUIET)
    assert set(fitted.history) == {"train_loss", "kl_g0", "learning_rate"}
    assert fitted.best_epoch == 2
    last = torch.load(tmp_path / CHECKPOINT, weights_only=True)["state_dict"]
    assert same(weights(fitted.model), {k.removeprefix("loss.model."): v for k, v in last.items()})


# ------------------------------------------------------------------ reproducibility and resuming


def test_results_are_determined_by_the_seed(train, valid, make_lfads):
    def run(seed: int) -> tuple[dict[str, Tensor], xr.Dataset]:
        torch.rand(seed + 3)  # earlier draws must not matter
        fitted = fit(
            make_lfads(train, inferred_input_dim=1, dropout=0.2),
            train,
            valid,
            transforms=[SampleValidation(0.1), SpikeJitter(1), CoordinatedDropout(0.3)],
            max_epochs=3,
            batch_size=5,
            seed=seed,
            **QUIET,
        )
        return weights(fitted.model), fitted.history

    (one, history), (again, history_again), (other, _) = run(0), run(0), run(1)
    assert same(one, again)
    xr.testing.assert_identical(history, history_again)
    assert not same(one, other)


def test_a_fit_does_not_change_the_global_generator(train, make_lfads):
    model = make_lfads(train)
    before = torch.get_rng_state()
    fit(model, train, max_epochs=1, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)


RESUMABLE: dict[str, Any] = {
    "objective": ELBO(beta={"g0": Ramp(10), "u": Ramp(5)}),
    "transforms": [CoordinatedDropout(0.3)],
    "max_epochs": 12,
    "batch_size": 5,
    "schedule": Schedule(learning_rate=3e-2, patience=0, stop_patience=100),
    "checkpoint_seconds": 0.0,
    **QUIET,
}
"""A run in which everything in a checkpoint changes: ramps, learning rate, best epoch."""

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from pyrodyn import fit, load
from pyrodyn.data import CoordinatedDropout, read
from pyrodyn.infer import ELBO, Ramp, Schedule

folder, step = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)


def run(number):
    calls = 0

    def end(batch):
        nonlocal calls
        calls += 1
        if calls == step + 1:
            os.kill(os.getpid(), number)
        return batch

    fit(
        load(folder / "start"),
        read(folder / "train.npz"),
        read(folder / "valid.npz"),
        objective=ELBO(beta={"g0": Ramp(10), "u": Ramp(5)}),
        transforms=[CoordinatedDropout(0.3), end],
        max_epochs=12,
        batch_size=5,
        schedule=Schedule(learning_rate=3e-2, patience=0, stop_patience=100),
        checkpoint_seconds=0.0,
        progress=False,
        accelerator="cpu",
        out=folder / signal.Signals(number).name,
    )


# A background job of a script would inherit that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
handler = signal.getsignal(signal.SIGINT)
try:
    run(signal.SIGINT)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is handler
    (folder / "interrupted").touch()
run(signal.SIGKILL)
"""
"""Runs two fits; ends the first by Ctrl-C and the second by SIGKILL, both in mid-epoch."""


def test_runs_ended_in_mid_epoch_resume_exactly(train, valid, make_lfads, tmp_path):
    model = make_lfads(train, inferred_input_dim=1, dropout=0.1)
    write(train, tmp_path / "train.npz")
    write(valid, tmp_path / "valid.npz")
    save(model, tmp_path / "start")
    uninterrupted = fit(model, train, valid, out=tmp_path / "whole", **RESUMABLE)
    rates = uninterrupted.history["learning_rate"].values
    # The runs end right after the learning rate fell, which must be part of the checkpoint.
    epoch = int(np.flatnonzero(np.diff(rates))[0]) + 1
    assert epoch < 11 and rates[-1] < rates[epoch]

    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path), str(3 * epoch + 1)]
    ended = subprocess.run([sys.executable, tmp_path / "script.py", *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "interrupted").exists()
    # After Ctrl-C the model is saved; after SIGKILL nothing can be.
    assert (tmp_path / "SIGINT" / "model").exists()
    assert not (tmp_path / "SIGKILL" / "model").exists()

    for run in ("SIGINT", "SIGKILL"):
        checkpoint = torch.load(tmp_path / run / CHECKPOINT, weights_only=True)
        assert checkpoint["global_step"] == 3 * epoch
        other_start = make_lfads(train, inferred_input_dim=1, dropout=0.1, seed=5)
        resumed = fit(other_start, train, valid, out=tmp_path / run, resume=True, **RESUMABLE)
        assert same(weights(resumed.model), weights(uninterrupted.model))
        xr.testing.assert_identical(resumed.history, uninterrupted.history)
        assert resumed.best_epoch == uninterrupted.best_epoch
        assert resumed.num_steps == uninterrupted.num_steps
        assert_same_end(tmp_path / run, tmp_path / "whole")


def assert_same_end(one: Path, other: Path) -> None:
    """The last checkpoints agree in everything that later steps depend on."""
    ends = [torch.load(folder / CHECKPOINT, weights_only=True) for folder in (one, other)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(*(end[part] for end in ends)), part
    best = [{k: v for k, v in end["callbacks"].items() if "KeepBest" in k} for end in ends]
    assert best[0] and same(*best)


@pytest.mark.parametrize("average_weights", [False, True])
def test_a_finished_run_resumes_as_if_it_had_not_ended(
    train, valid, make_lfads, tmp_path, average_weights
):
    schedule = dataclasses.replace(RESUMABLE["schedule"], average_weights=average_weights)
    ends = []

    def run(out: str, epochs: int, resume: bool = False) -> None:
        options = {**RESUMABLE, "max_epochs": epochs, "resume": resume, "schedule": schedule}
        model = make_lfads(train, inferred_input_dim=1)
        fit(model, train, valid, out=tmp_path / out, **options)
        ends.append(weights(model))

    run("whole", 8)
    run("parts", 3)
    run("parts", 6, resume=True)
    run("parts", 8, resume=True)
    assert_same_end(tmp_path / "parts", tmp_path / "whole")
    assert same(ends[-1], ends[0])


# ------------------------------------------------------------------ schedules


@pytest.mark.parametrize("is_validated", [False, True])
def test_falling_rates_and_averaged_weights_match_a_plain_loop(
    train, valid, make_lfads, is_validated
):
    schedule = Schedule(
        learning_rate=2e-2, final_learning_rate=1e-3, average_weights=True, stop_patience=0
    )
    fitted = fit(
        make_lfads(train),
        train,
        valid if is_validated else None,
        max_epochs=4,
        batch_size=5,
        schedule=schedule,
        seed=7,
        **QUIET,
    )
    assert fitted.num_steps == 12  # no early stopping with a final learning rate
    model = make_lfads(train)
    loss = ELBO()(model, model.guide)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    trajectory, rates, averages, losses = [], [], [], []
    for epoch in range(4):
        for batch in ShuffledBatches(Trials(train), 5, 7, lambda epoch=epoch: epoch):
            torch.manual_seed(mixed_seed(7, len(trajectory)))
            optimizer.param_groups[0]["lr"] = 2e-2 * 0.05 ** (len(trajectory) / 12)
            optimizer.zero_grad()
            (loss(batch, len(trajectory)) / 12).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            trajectory.append(weights(model))
        rates.append(optimizer.param_groups[0]["lr"])
        averages.append(averaged(trajectory))
        validated = make_lfads(train)
        validated.load_state_dict(averages[-1])
        torch.manual_seed(mixed_seed(7, -1))
        with torch.no_grad():
            losses.append(
                ELBO()(validated.eval(), validated.guide)(Trials(valid).batch()).item() / 5
            )
    np.testing.assert_allclose(fitted.history["learning_rate"], rates, rtol=1e-6)
    if is_validated:
        np.testing.assert_allclose(fitted.history["valid_loss"], losses, rtol=1e-5)
        assert fitted.best_epoch == np.argmin(losses)
    wanted = averages[fitted.best_epoch]
    for name, value in weights(fitted.model).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    last = flat(trajectory[-1])
    assert (flat(wanted) - last).norm() > 0.01 * (last - flat(trajectory[0])).norm()


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def averaged(trajectory: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The coefficient of the i-th weights is 9 / (i + 8) times the product over j > i of
    (1 - 9 / (j + 8)).
    """
    new = np.array([9 / (i + 8) for i in range(1, len(trajectory) + 1)])
    coefficients = new * np.append(np.cumprod(1 - new[:0:-1])[::-1], 1.0)
    assert coefficients.sum() == pytest.approx(1)
    return {
        name: sum(c * each[name] for c, each in zip(coefficients, trajectory, strict=True))
        for name in trajectory[0]
    }


def test_invalid_final_learning_rates_are_refused():
    for final_learning_rate in (0.0, -1e-3, 5e-3, float("nan")):
        with pytest.raises(
            ValueError, match=rf"final_learning_rate={final_learning_rate} must be positive and at"
        ):
            Schedule(learning_rate=4e-3, final_learning_rate=final_learning_rate)


def test_the_learning_rate_is_warmed_up_and_falls_along_a_cosine(train, make_lfads):
    schedule = Schedule(
        learning_rate=4e-3, final_learning_rate=1e-3, decay="cosine", warmup_steps=3
    )
    rates = [schedule.rate(step, 13) for step in (0, 1, 2, 3, 8, 13)]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 2.5e-3, 1e-3])
    fitted = fit(make_lfads(train), train, schedule=schedule, max_epochs=4, batch_size=9, **QUIET)
    steps = np.cumsum([fitted.num_steps // 4] * 4) - 1  # the last of each epoch
    expected = [schedule.rate(int(step), fitted.num_steps) for step in steps]
    np.testing.assert_allclose(fitted.history["learning_rate"], expected, rtol=1e-6)
    geometric = Schedule(learning_rate=4e-3, final_learning_rate=1e-3)
    assert geometric.rate(5, 10) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"decay": "linear"}, r"decay='linear' is unknown; it is one of geometric, cosine"),
        ({"warmup_steps": -1}, r"warmup_steps=-1 must be an integer of at least 0"),
        ({"warmup_steps": 5}, r"warmup_steps=5 need a final_learning_rate"),
        ({"decay": "cosine"}, r"decay='cosine' and warmup_steps=0 need a final_learning_rate"),
    ],
)
def test_invalid_decays_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Schedule(**settings)


def test_stopping_waits_for_the_ramps(train, valid, make_lfads):
    def epochs(ramp: Ramp) -> int:
        frozen = Schedule(learning_rate=1e-30, stop_patience=5)  # two epochs of three steps
        fitted = fit(
            make_lfads(train),
            train,
            valid,
            objective=ELBO(beta={"g0": ramp}),
            max_epochs=50,
            batch_size=5,
            schedule=frozen,
            **QUIET,
        )
        assert len(set(fitted.history["valid_loss"].values)) == 1
        return fitted.history.sizes["epoch"]

    assert epochs(Ramp()) == 1 + 2
    # Three steps per epoch: the ramp ends with epoch 3, the first with a settled loss.
    assert epochs(Ramp(12)) == 4 + 2
    assert epochs(Ramp(9, start=3)) == 4 + 2


def test_the_horizon_grows_until_all_bins_are_scored(train, valid, make_lfads):
    batch = make_lfads(train).trials_of(train).batch()
    horizon, num_bins = GrowingHorizon(first_bins=2, num_steps=10), batch.num_bins
    scored = [int(horizon.cut(batch, step).scored[0, :, 0].sum()) for step in range(12)]
    assert scored[0] == 2
    assert scored == sorted(scored)
    assert scored[9] < scored[10] == num_bins
    late = horizon.cut(batch, 0, first_bin=3)
    assert late.scored[0, :, 0].tolist() == [True] * 5 + [False] * (num_bins - 5)
    assert torch.equal(late.seen, batch.seen)
    with pytest.raises(ValueError, match="num_steps=0"):
        GrowingHorizon(2, 0)


def test_stopping_waits_for_the_horizon(train, valid, make_lfads):
    frozen = Schedule(learning_rate=1e-30, stop_patience=5, horizon=GrowingHorizon(2, 12))
    fitted = fit(
        make_lfads(train), train, valid, max_epochs=50, batch_size=5, schedule=frozen, **QUIET
    )
    assert fitted.history.sizes["epoch"] == 4 + 2
    early, full = fitted.history["train_loss"].values[[0, -1]]
    assert early < 0.8 * full


def noisy_node(recording: xr.Dataset) -> NodeSAE:
    torch.manual_seed(0)
    sizes = {"field_width": 4, "encoder_dim": 3}
    return NodeSAE.for_recording(recording, latent_dim=2, process_noise=True, **sizes)


def test_noise_is_free_at_first_and_limited_later(train):
    model = noisy_node(train)
    annealing = NoiseAnnealing(first_step=2, num_steps=4, factor=0.25)
    annealing.apply(model, 0)
    assert torch.isinf(model.log_noise_limit).all()
    with torch.no_grad():
        model.log_noise.copy_(torch.tensor([1.0, -3.0]))
    start = model.log_noise.detach().clone()
    for step in range(2, 10):
        annealing.apply(model, step)
        fraction = 0.25 ** min((step - 2) / 4, 1)
        torch.testing.assert_close(model.log_noise_limit, start + np.log(fraction))
        torch.testing.assert_close(model.log_noise.detach(), model.log_noise_limit)
        with torch.no_grad():
            model.log_noise += 0.1
    with torch.no_grad():
        model.log_noise -= 5.0
    kept = model.log_noise.detach().clone()
    annealing.apply(model, 10)
    assert torch.equal(model.log_noise, kept)


def test_a_resumed_fit_continues_with_the_limit_on_noise(train, valid, tmp_path):
    schedule = Schedule(stop_patience=100, noise=NoiseAnnealing(first_step=3, num_steps=12))
    options = {"batch_size": 5, "schedule": schedule, "checkpoint_seconds": 0.0, **QUIET}
    whole = fit(noisy_node(train), train, valid, max_epochs=6, **options)
    assert (whole.model.noise_scales()[1] < 0.1).all()
    assert whole.best_epoch >= 4  # three steps per epoch: the limit is final at step 15
    model = noisy_node(train)
    fit(model, train, valid, max_epochs=3, out=tmp_path, **options)
    again = fit(noisy_node(train), train, valid, max_epochs=6, out=tmp_path, resume=True, **options)
    assert same(weights(again.model), weights(whole.model))


def test_noise_annealing_refuses_models_without_process_noise(train, make_lfads):
    schedule = Schedule(noise=NoiseAnnealing(0, 10))
    for model in (make_lfads(train), NodeSAE.for_recording(train, latent_dim=2)):
        with pytest.raises(ValueError, match="built with process_noise=True; for this"):
            fit(model, train, max_epochs=1, schedule=schedule, **QUIET)
    with pytest.raises(ValueError, match="num_steps=0"):
        NoiseAnnealing(0, 0)
    with pytest.raises(ValueError, match="factor=1"):
        NoiseAnnealing(0, 10, factor=1.0)


def test_the_learning_rate_falls_on_plateaus_after_the_ramps(train, valid, make_lfads):
    start, factor, num_ramp_epochs = 5e-2, 0.7, 12
    fitted = fit(
        make_lfads(train),
        train,
        valid,
        objective=ELBO(beta={"g0": Ramp(3 * num_ramp_epochs)}),
        max_epochs=25,
        batch_size=5,
        schedule=Schedule(learning_rate=start, factor=factor, patience=0, stop_patience=100),
        **QUIET,
    )
    losses = fitted.history["valid_loss"].values

    def rates(first_epoch: int) -> list[float]:
        """Learning rates of torch's scheduler given these losses from an epoch on."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=start)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=0)
        used = []
        for epoch, loss in enumerate(losses):
            used.append(optimizer.param_groups[0]["lr"])
            if epoch >= first_epoch:
                plateau.step(loss)
        return used

    expected = rates(num_ramp_epochs - 1)
    np.testing.assert_allclose(fitted.history["learning_rate"], expected, rtol=1e-6)
    assert 1e-5 < expected[-1] < start
    assert rates(0)[num_ramp_epochs - 1] < start  # without the ramp it would have fallen


def test_a_fit_ends_after_max_minutes(train, valid, make_lfads):
    started = time.monotonic()
    fitted = fit(make_lfads(train), train, valid, max_epochs=10**6, max_minutes=0.01, **QUIET)
    assert time.monotonic() - started < 20
    assert 0 < fitted.num_steps < 10**6
    assert fitted.history.sizes["epoch"] > 0


# ------------------------------------------------------------------ NaN


def poison(field: str, value: float) -> Callable[[Batch], Batch]:
    def change(batch: Batch) -> Batch:
        poisoned = getattr(batch, field).clone()
        poisoned[1, 2, 3] = value
        return batch.replace(**{field: poisoned})

    return change


@pytest.mark.parametrize(
    ("change", "site"),
    [
        (poison("seen", float("nan")), "the guide's draw of site 'g0'"),
        (poison("seen", float("inf")), "the gradient"),  # gates saturate: all densities are finite
        (poison("x", float("nan")), "the log density of site 'x'"),
        (poison("x", float("inf")), "the log density of site 'x'"),
    ],
)
def test_nan_stops_the_fit_and_leaves_the_last_good_weights(train, make_lfads, change, site):
    options = {"batch_size": 12, "seed": 3, **QUIET}
    good = fit(make_lfads(train), train, max_epochs=4, **options).model
    model = make_lfads(train)
    with pytest.raises(NonFiniteLossError, match=r"stopped at step 4: .* is not finite") as caught:
        fit(model, train, max_epochs=9, transforms=[At(4, change)], **options)
    assert (caught.value.step, caught.value.site) == (4, site)
    assert same(weights(model), weights(good))
    assert not model.training


def test_divergence_in_an_adaptive_solver_ends_training(train):
    model = NodeSAE.for_recording(train, latent_dim=3, solver="dopri5", linear_term=True)

    def diverge(batch):
        with torch.no_grad():
            model.phi.field.linear.copy_(1e6 * torch.eye(3))
        return batch

    with pytest.raises(NonFiniteLossError, match="step 2: the trajectory of trial ") as caught:
        fit(model, train, max_epochs=9, batch_size=12, transforms=[At(2, diverge)], **QUIET)
    assert caught.value.step == 2
    assert all(torch.isfinite(value).all() for value in weights(model).values())


@pytest.mark.parametrize(
    ("process_noise", "what"), [(False, "the trajectory"), (True, "the guide's draw")]
)
def test_a_divergent_trajectory_is_named_by_trial_and_bin(train, process_noise, what):
    model = NodeSAE.for_recording(
        train, latent_dim=3, process_noise=process_noise, linear_term=True
    )
    with torch.no_grad():  # a factor of 5e11 per bin overflows single precision at bin 4
        model.phi.field.linear.copy_(1e6 * torch.eye(3))
    with (
        pytest.warns(UserWarning, match="Encountered NaN"),
        pytest.raises(NonFiniteLossError) as caught,
    ):
        fit(model, train, max_epochs=1, **QUIET)
    place = re.fullmatch(what + r" of site 'z' in trial (\d+) from bin (\d+) on", caught.value.site)
    assert place is not None
    assert int(place[1]) < 12
    assert int(place[2]) in (3, 4)


@pytest.mark.parametrize("objective", [ELBO(), VSMC(4)], ids=["elbo", "vsmc"])
def test_nan_in_the_encoded_data_is_named(train, objective):
    """The error is not one of linear algebra, which fails on NaN."""
    model = LowRankRNN.for_recording(
        train, latent_dim=2, num_units=6, observation="poisson", proposal="encoder"
    )
    broken = At(2, poison("seen", float("nan")))
    with pytest.raises(NonFiniteLossError, match="stopped at step 2: ") as caught:
        fit(model, train, objective=objective, max_epochs=9, transforms=[broken], **QUIET)
    assert caught.value.step == 2
    assert all(torch.isfinite(value).all() for value in weights(model).values())


def test_nan_after_a_validation_leaves_the_best_weights(train, valid, make_lfads, tmp_path):
    options = {"batch_size": 5, "seed": 3, **QUIET}
    good = fit(make_lfads(train), train, valid, max_epochs=3, **options)
    model, broken = make_lfads(train), At(3 * 3 + 1, poison("seen", float("nan")))
    with pytest.raises(NonFiniteLossError, match="stopped at step 10: "):
        fit(model, train, valid, max_epochs=9, transforms=[broken], out=tmp_path, **options)
    assert same(weights(model), weights(good.model))
    assert same(weights(load(tmp_path / "model")), weights(good.model))


def test_nan_in_a_parameter_is_named(train, make_lfads):
    model = make_lfads(train)
    with torch.no_grad():
        model.readout.bias[2] = float("inf")
    with (
        pytest.warns(UserWarning, match="Encountered NaN: log_prob_sum at site 'x'"),
        pytest.raises(NonFiniteLossError, match=r"step 0: parameter model\.readout\.bias is not"),
    ):
        fit(model, train, max_epochs=2, **QUIET)


def test_a_failed_step_is_repeated_with_its_random_numbers(train, make_lfads):
    model = make_lfads(train)

    def unlucky_guide(batch: Batch) -> None:
        unlucky = torch.rand(()) > 0.9
        model.guide(batch.replace(seen=torch.where(unlucky, float("nan"), batch.seen)))

    with pytest.raises(NonFiniteLossError) as caught:
        fit(
            model,
            train,
            guide=unlucky_guide,
            transforms=[CoordinatedDropout(0.3)],
            max_epochs=100,
            seed=2,
            **QUIET,
        )
    assert caught.value.step > 0
    assert caught.value.site == "the guide's draw of site 'g0'"


def test_nan_in_validation_stops_the_fit(train, valid, make_lfads):
    model = make_lfads(train)
    broken = At(2, poison("x", float("nan")))
    with pytest.raises(NonFiniteLossError, match="step 6: the validation loss is not finite"):
        fit(model, train, valid, valid_transforms=[broken], max_epochs=9, batch_size=6, **QUIET)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


# ------------------------------------------------------------------ folders


def test_a_run_writes_logs_a_model_and_its_record(train, valid, make_lfads, tmp_path):
    fitted = fit(
        make_lfads(train),
        train,
        valid,
        objective=ELBO(beta={"g0": Ramp(2)}),
        transforms=[CoordinatedDropout(0.3)],
        max_epochs=3,
        batch_size=5,
        out=tmp_path,
        seed=4,
        **QUIET,
    )
    (metrics,) = tmp_path.glob("logs/csv/*/metrics.csv")
    with metrics.open() as file:
        rows = [row for row in csv.DictReader(file) if row["train_loss"]]
    np.testing.assert_allclose(
        [float(row["train_loss"]) for row in rows], fitted.history["train_loss"]
    )
    (events,) = tmp_path.glob("logs/tensorboard/*/events.out.tfevents.*")
    assert events.stat().st_size > 0
    assert same(weights(load(tmp_path / "model")), weights(fitted.model))
    card = read_card(tmp_path / "model")
    assert card["record"] == fitted.model.record
    training = card["record"]["training"]
    assert (training["seed"], training["num_steps"]) == (4, 9)
    assert training["best_epoch"] == fitted.best_epoch
    assert training["objective"]["beta"]["g0"] == Ramp(2)._asdict()
    assert training["transforms"] == ["CoordinatedDropout(rate=0.3, pass_rate=0.0)"]
    assert training["is_bound"] is False
    schema = card["record"]["data"]
    assert (schema["observed"], schema["bin_width"], schema["num_bins"]) == ("counts", 0.02, 8)
    assert schema["neuron"] == ["0", "1", "2", "3", "4"]


def test_a_plain_fit_is_recorded_as_a_bound(train, make_lfads):
    assert fit(make_lfads(train), train, max_epochs=1, **QUIET).model.record["training"]["is_bound"]


def test_a_run_is_not_overwritten(train, make_lfads, tmp_path):
    fit(make_lfads(train), train, max_epochs=1, out=tmp_path, **QUIET)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match="holds a run already; resume it or choose another folder"):
        fit(make_lfads(train), train, max_epochs=1, out=tmp_path, **QUIET)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_loggers_of_ones_own_get_every_metric(train, valid, make_lfads, tmp_path):
    logger = CSVLogger(tmp_path, "mine")
    fitted = fit(make_lfads(train), train, valid, max_epochs=2, loggers=[logger], **QUIET)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["valid_loss"]]
    np.testing.assert_allclose(
        [float(row["valid_loss"]) for row in rows], fitted.history["valid_loss"]
    )
    with pytest.raises(ValueError, match="give a list of Lightning's loggers"):
        fit(make_lfads(train), train, loggers=["csv"], **QUIET)


def test_a_resumed_run_keeps_the_earlier_logs(train, make_lfads, tmp_path):
    for epochs, resume in ((2, False), (3, True)):
        fit(make_lfads(train), train, max_epochs=epochs, out=tmp_path, resume=resume, **QUIET)
    logs = sorted(tmp_path.glob("logs/csv/*/metrics.csv"))
    assert [len(path.read_text().splitlines()) for path in logs] == [1 + 2, 1 + 1]


# ------------------------------------------------------------------ a user's guide


@pytest.mark.parametrize("average_weights", [False, True])
@pytest.mark.parametrize("auto", [AutoNormal, AutoLowRankMultivariateNormal])
def test_a_users_guide_is_trained(train, make_lfads, auto, average_weights):
    model = make_lfads(train, inferred_input_dim=1)
    guide = auto(model)
    fitted = fit(
        model,
        train,
        guide=guide,
        max_epochs=40,
        batch_size=12,
        schedule=Schedule(learning_rate=1e-2, average_weights=average_weights),
        **QUIET,
    )
    losses = fitted.history["train_loss"].values
    assert losses[-5:].mean() < losses[:5].mean() - 4 * losses[:5].std()
    moved = weights(guide)
    torch.manual_seed(0)
    fresh = auto(make_lfads(train, inferred_input_dim=1))
    fresh(Trials(train).batch())
    assert moved.keys() == fresh.state_dict().keys()
    assert not any(torch.equal(moved[name], value) for name, value in weights(fresh).items())
    assert set(fitted.history) == {"train_loss", "kl_latents", "learning_rate"}


def guide_list(model: nn.Module) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["g0"])))
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["u"])))
    return guide


@pytest.mark.parametrize("auto", [AutoNormal, guide_list])
def test_weights_of_automatic_guides_are_averaged(train, make_lfads, auto):
    def run(average_weights: bool) -> tuple[nn.ModuleList, list[dict[str, Tensor]]]:
        model = make_lfads(train, inferred_input_dim=1)
        guide = auto(model)
        parts = nn.ModuleList([model, guide])
        trajectory: list[dict[str, Tensor]] = []

        def record(batch: Batch) -> Batch:
            trajectory.append(weights(parts))
            return batch

        schedule = Schedule(learning_rate=1e-2, average_weights=average_weights)
        options = {"max_epochs": 4, "batch_size": 6, "schedule": schedule, **QUIET}
        fitted = fit(model, train, guide=guide, transforms=[record], **options)
        predict(model, train, guide=guide, num_draws=2)
        assert fitted.num_steps == len(trajectory) == 8
        assert guide.model is not None
        if isinstance(guide, AutoGuideList):
            assert all(part.master() is guide for part in guide)
        return parts, trajectory[1:]

    last, trajectory = run(False)
    wanted = averaged([*trajectory, weights(last)])
    parts, _ = run(True)
    assert weights(parts).keys() == wanted.keys()
    for name, value in weights(parts).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
    assert (flat(wanted) - flat(weights(last))).norm() > 1e-2


class Wrapper(nn.Module):
    """A guide that is a module of its own and contains the model."""

    def __init__(self, model: LFADS) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> None:
        self.model.guide(batch)


@pytest.mark.parametrize("average_weights", [False, True])
@pytest.mark.parametrize(
    "make_guide",
    [lambda model: lambda batch: model.guide(batch), Wrapper],
    ids=["function", "module"],
)
def test_a_guide_may_share_the_models_parameters(
    train, valid, make_lfads, average_weights, make_guide
):
    options = {"max_epochs": 3, "schedule": Schedule(average_weights=average_weights), **QUIET}
    own = fit(make_lfads(train), train, valid, **options)
    other = make_lfads(train)
    shared = fit(other, train, valid, guide=make_guide(other), **options)
    assert same(weights(own.model), weights(shared.model))
    xr.testing.assert_identical(own.history, shared.history)


class Amortised(nn.Module):
    """A guide of LFADS' initial condition with dropout, as a module or as its method ``guide``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head, self.dropout = nn.Linear(5, 8), nn.Dropout(0.5)

    def guide(self, batch: Batch) -> None:
        mean, log_scale = self.head(self.dropout(batch.seen.mean(1))).chunk(2, -1)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("g0", dist.Normal(mean, log_scale.exp()).to_event(1))

    forward = guide


def test_a_guide_is_part_of_the_fit(train, make_lfads):
    ends = []
    for as_method in (False, True):
        owner = Amortised()
        before, guide = weights(owner), owner.guide if as_method else owner
        fitted = fit(make_lfads(train), train, guide=guide, max_epochs=2, batch_size=6, **QUIET)
        assert fitted.guide is guide or fitted.guide == owner.guide
        assert model_and_guide(fitted) == (fitted.model, fitted.guide)
        name = "Amortised.guide" if as_method else "Amortised"
        assert fitted.model.record["training"]["guide"] == name
        assert not owner.training
        assert not any(torch.equal(before[name], value) for name, value in weights(owner).items())
        ends.append(weights(owner))
    assert same(*ends)


def test_the_models_own_guide_is_recorded_as_none(train, make_lfads):
    fitted = fit(make_lfads(train), train, max_epochs=1, **QUIET)
    assert fitted.guide == fitted.model.guide
    assert fitted.model.record["training"]["guide"] is None
    assert model_and_guide(fitted.model) == (fitted.model, None)


# ------------------------------------------------------------------ bad arguments


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {"num_neurons": 4}}, "has 4 neurons; this model was made for 5"),
        ({"valid": {"num_neurons": 6}}, "has 6 neurons; this model was made for 5"),
        ({"train": {"inputs": True}}, "has 2 inputs; this model was made for 0"),
        ({"valid": {"inputs": True}}, "has 2 inputs; this model was made for 0"),
        ({"max_epochs": 0}, "max_epochs=0 must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"max_minutes": 0.0}, "max_minutes=0.0 must be positive"),
        ({"resume": True}, "holds no last.ckpt to resume from; run without resume first"),
        ({"resume": True, "out": None}, "resume=True needs out=, the folder of the run"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    changes, sentence, make_recording, make_lfads, tmp_path
):
    def recording_of(part: str) -> xr.Dataset:
        changed = dict(changes.get(part, {}))
        if changed.pop("inputs", False):
            changed["inputs"] = np.ones((12, 8, 2))
        return make_recording(12, **changed)

    model = make_lfads(make_recording(12))
    before = weights(model)
    options = {k: v for k, v in changes.items() if k not in ("train", "valid")}
    with pytest.raises(ValueError, match=sentence):
        fit(
            model,
            recording_of("train"),
            recording_of("valid"),
            **{"out": tmp_path / "out", **options, **QUIET},
        )
    assert not (tmp_path / "out").exists()
    assert same(weights(model), before)


def test_max_minutes_include_the_time_before_a_resume(train, valid, make_lfads, tmp_path):
    model = make_lfads(train)
    options: dict[str, Any] = {"max_epochs": 10_000, "out": tmp_path / "run", **QUIET}
    stopped = fit(model, train, valid, max_minutes=0.02, **options)
    again = fit(model, train, valid, max_minutes=0.02, resume=True, **options)
    longer = fit(model, train, valid, max_minutes=0.04, resume=True, **options)
    assert stopped.num_steps > 0
    # The time had passed already: at most one step until that is noticed.
    assert again.num_steps <= stopped.num_steps + 1
    assert longer.num_steps > again.num_steps + 1


def test_nothing_is_printed_without_progress(train, valid, make_lfads, tmp_path, capfd):
    fit(make_lfads(train), train, valid, max_epochs=1, out=tmp_path / "run", **QUIET)
    assert capfd.readouterr() == ("", "")


def test_with_a_prior_on_weights_the_loss_is_no_bound(train, make_lfads):
    for precision, is_bound in ((0.0, True), (1.0, False)):
        model = make_lfads(train, recurrent_precision=precision)
        fit(model, train, max_epochs=1, **QUIET)
        assert model.record["training"]["is_bound"] is is_bound


# ------------------------------------------------------------------ resuming from a checkpoint


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("sizes", r"belongs to another model: loss\..* has the shape .* there and .* here"),
        ("bytes", "is broken and cannot be resumed from"),
        ("max_epochs", "has 2 epochs already; max_epochs=1 must not be less"),
        ("seed", "belongs to another run: seed was 0 and is 1 now"),
        ("batch_size", "belongs to another run: batch_size was 4 and is 6 now"),
        ("transforms", "belongs to another run: transforms was .* and is .*CoordinatedDropout"),
        ("schedule", "belongs to another run: average_weights was False and is True now"),
        ("objective", "belongs to another run: objective was .*ELBO.* and is .*IWELBO"),
        ("guide", r"belongs to another run: guide was the model's own and is .*<lambda> now"),
        ("train", "belongs to another run: train was trials x bins x neurons 12 x 8 x 5, checksum"),
        ("valid", "belongs to another run: valid was .* and is None now"),
    ],
)
def test_resuming_with_other_arguments_is_refused(
    train, valid, make_recording, make_lfads, tmp_path, change, sentence
):
    options: dict[str, Any] = {"out": tmp_path, "max_epochs": 2, "batch_size": 4, **QUIET}
    fit(make_lfads(train), train, valid, **options)
    if change == "bytes":
        (tmp_path / CHECKPOINT).write_bytes(b"garbage")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model = make_lfads(train, **({"factor_dim": 2} if change == "sizes" else {}))
    before = weights(model)
    changed: dict[str, Any] = {
        "max_epochs": {"max_epochs": 1},
        "seed": {"seed": 1},
        "batch_size": {"batch_size": 6},
        "transforms": {"transforms": [CoordinatedDropout(0.3)]},
        "objective": {"objective": IWELBO(3)},
        "guide": {"guide": lambda batch: model.guide(batch)},
        "schedule": {"schedule": Schedule(average_weights=True)},
    }
    with pytest.raises(ValueError, match=sentence):
        fit(
            model,
            make_recording(12, seed=9) if change == "train" else train,
            None if change == "valid" else valid,
            resume=True,
            **{**options, "max_epochs": 3, **changed.get(change, {})},
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert same(weights(model), before)


def test_a_run_ended_by_max_minutes_resumes_exactly(train, valid, make_lfads, tmp_path):
    options: dict[str, Any] = {"batch_size": 1, "checkpoint_seconds": 0.0, **QUIET}
    for minutes in np.arange(
        0.01, 0.2, 0.01
    ):  # until a run ends after the first epoch and within another
        out = tmp_path / f"{minutes:.2f}"
        stopped = fit(
            make_lfads(train), train, valid, max_epochs=10**6, max_minutes=minutes, out=out,
            **options,
        )  # fmt: skip
        if stopped.num_steps > 12 and stopped.num_steps % 12:
            break
    assert stopped.num_steps % 12
    kept = torch.load(out / CHECKPOINT, weights_only=True)
    assert kept["global_step"] % 12 == 0
    num_epochs = int(kept["global_step"]) // 12 + 2
    whole = fit(make_lfads(train), train, valid, max_epochs=num_epochs, **options)
    again = fit(
        make_lfads(train), train, valid, max_epochs=num_epochs, out=out, resume=True, **options
    )
    assert same(weights(again.model), weights(whole.model))
    assert again.num_steps == whole.num_steps


# ------------------------------------------------------------------ recordings


def test_recordings_are_validated(train, make_lfads):
    model, edited = make_lfads(train), train.copy(deep=True)
    edited["counts"] = edited["counts"] - 3.5
    with pytest.raises(ValueError, match="counts"):
        fit(model, edited, max_epochs=1, **QUIET)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("kind", "holds signal; this model was fitted to counts"),
        ("bins", "has bins of 0.04 s; this model was fitted to bins of 0.02 s"),
        ("order", "neuron 0 is '4'; this model was fitted to the same neurons in another order"),
    ],
)
def test_a_fitted_model_refuses_other_recordings(train, make_lfads, change, sentence):
    model = fit(make_lfads(train), train, max_epochs=1, **QUIET).model
    counts = train["counts"].values
    other = {
        "kind": lambda: recording(signal=counts.astype(float), bin_width=0.02),
        "bins": lambda: recording(counts, bin_width=0.04),
        "order": lambda: train.isel(neuron=slice(None, None, -1)),
    }[change]()
    for call in (predict, lambda m, r: fit(m, r, max_epochs=1, **QUIET)):
        with pytest.raises(ValueError, match=sentence):
            call(model, other)


def test_observations_outside_the_support_are_refused(make_recording, make_lfads):
    binary = make_recording(12)
    binary["counts"] = binary["counts"].clip(max=1)
    model = make_lfads(binary, observation="bernoulli")
    many = make_recording(5, mean=3.0)
    for call in (predict, lambda m, r: fit(m, binary, r, max_epochs=1, **QUIET)):
        with pytest.raises(ValueError, match="Bernoulli observations are 0 or 1, but neuron"):
            call(model, many)


def test_models_are_fitted_in_double_precision(train, valid, make_lfads):
    model = fit(make_lfads(train).double(), train, valid, max_epochs=2, **QUIET).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert predict(model, valid, num_draws=2)["rates"].notnull().all()
