"""The settings of a fit where none are given: used, recorded, and replaced by those that are."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal

import pyrodyn
from pyrodyn.data import CoordinatedDropout, SpikeJitter, recording
from pyrodyn.infer import ELBO, VSMC, Ramp, Schedule
from pyrodyn.infer.training import recommended as module
from pyrodyn.infer.training.callbacks import KeepBest
from pyrodyn.infer.training.trainer import trainer_with
from pyrodyn.models import (
    LFADS,
    NDT,
    LatentDynamics,
    LinearDynamics,
    LowRankRNN,
    NodeSAE,
    RnnSAE,
    ShallowPLRNN,
)

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}

SIZES: dict[type[LatentDynamics], dict[str, Any]] = {
    LFADS: {"factor_dim": 2, "generator_dim": 6, "encoder_dim": 5, "initial_condition_dim": 3},
    LinearDynamics: {"latent_dim": 2},
    LowRankRNN: {"latent_dim": 2, "num_units": 6},
    NDT: {"model_dim": 8, "num_layers": 2, "ffn_dim": 6},
    NodeSAE: {"latent_dim": 2, "field_width": 6, "encoder_dim": 5},
    RnnSAE: {"latent_dim": 2, "cell_width": 6, "encoder_dim": 5},
    ShallowPLRNN: {"latent_dim": 2, "num_units": 6},
}


def built(kind: type[LatentDynamics], data: xr.Dataset, **more: Any) -> LatentDynamics:
    torch.manual_seed(0)
    return kind.for_recording(data, **SIZES[kind], **more)


def same_weights(one: LatentDynamics, other: LatentDynamics) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", SIZES)
def test_a_bare_fit_is_one_by_the_recommended_settings(make_recording, kind) -> None:
    train, valid = make_recording(12), make_recording(6, seed=1)
    bare = pyrodyn.fit(built(kind, train), train, valid, max_steps=8, **QUIET)
    recipe = pyrodyn.recommended(built(kind, train), train, max_steps=8)
    spelled = pyrodyn.fit(built(kind, train), train, valid, **vars(recipe), **QUIET)
    assert same_weights(bare.model, spelled.model)
    assert bare.record == spelled.record == bare.model.record
    used = bare.record["training"]
    assert used["objective"] == recipe.objective.describe()
    assert used["transforms"] == [repr(transform) for transform in recipe.transforms]
    assert used["batch_size"] == recipe.batch_size == 8
    assert used["schedule"]["learning_rate"] == recipe.schedule.learning_rate
    assert used["num_steps"] == recipe.max_steps == 8
    plain = pyrodyn.fit(
        built(kind, train), train, valid, objective=ELBO(), transforms=[], schedule=Schedule(),
        max_steps=8, **QUIET,
    )  # fmt: skip
    assert not same_weights(plain.model, spelled.model)


def test_what_is_given_is_used(make_recording) -> None:
    train = make_recording(12)
    given: dict[str, Any] = {
        "objective": VSMC(3),
        "transforms": [SpikeJitter(1)],
        "schedule": Schedule(learning_rate=1e-3, patience=7),
        "batch_size": 5,
    }
    for name, value in given.items():
        model = built(LowRankRNN, train)
        fitted = pyrodyn.fit(model, train, max_epochs=2, **{name: value}, **QUIET)
        used = fitted.record["training"]
        default = pyrodyn.recommended(model, train, max_steps=fitted.num_steps)
        expected = {**vars(default), name: value}
        assert used["objective"] == expected["objective"].describe()
        assert used["transforms"] == [repr(each) for each in expected["transforms"]]
        assert used["schedule"]["patience"] == expected["schedule"].patience
        assert used["batch_size"] == expected["batch_size"]
        assert used["num_steps"] == 2 * math.ceil(12 / expected["batch_size"])


@pytest.mark.parametrize(
    ("limits", "num_steps"),
    [
        ({"max_steps": 7}, 9),  # the epoch of three steps is completed
        ({"max_steps": 6}, 6),
        ({"max_epochs": 1}, 3),
        ({"max_steps": 100, "max_epochs": 2}, 6),
        ({"max_steps": 4, "max_epochs": 5}, 6),
    ],
)
def test_the_length_of_a_fit(make_recording, limits, num_steps) -> None:
    train = make_recording(12)
    fitted = pyrodyn.fit(built(LFADS, train), train, batch_size=5, **limits, **QUIET)
    assert fitted.num_steps == num_steps


def test_the_recommended_length_is_reached(make_recording, monkeypatch) -> None:
    monkeypatch.setattr(module, "FEWEST_STEPS", 10)
    monkeypatch.setattr(module, "OF_LFADS", module.OF_LFADS._replace(most_steps=10))
    train = make_recording(12)
    fitted = pyrodyn.fit(built(LFADS, train), train, **QUIET)
    assert fitted.num_steps == 10 == fitted.record["training"]["max_epochs"] * 2


def test_patience_counts_steps(make_recording) -> None:
    train, valid = make_recording(12), make_recording(6, seed=1)
    schedule = Schedule(learning_rate=1e-30, stop_patience=12)
    for batch_size, num_steps in ((12, 1 + 12), (4, 3 + 12), (1, 12 + 12)):
        fitted = pyrodyn.fit(
            built(LFADS, train), train, valid, objective=ELBO(), schedule=schedule, max_epochs=50,
            batch_size=batch_size, transforms=[], **QUIET,
        )  # fmt: skip
        assert fitted.num_steps == num_steps


def test_the_learning_rate_is_passed_to_the_recommended_schedule(make_recording) -> None:
    train = make_recording(12)
    fitted = pyrodyn.fit(built(LFADS, train), train, max_steps=4, learning_rate=2e-4, **QUIET)
    default = pyrodyn.recommended(fitted.model, train).schedule
    used = fitted.record["training"]["schedule"]
    assert used["learning_rate"] == 2e-4
    assert default.final_learning_rate is not None
    ratio = default.final_learning_rate / default.learning_rate
    assert used["final_learning_rate"] == pytest.approx(2e-4 * ratio)
    assert used["gradient_clip"] == default.gradient_clip
    with pytest.raises(ValueError, match=r"pass schedule=Schedule\(learning_rate=0.0002, ...\)"):
        pyrodyn.fit(
            built(LFADS, train), train, learning_rate=2e-4, schedule=Schedule(patience=3), **QUIET
        )


def sized(num_trials: int, num_bins: int) -> xr.Dataset:
    return recording(np.ones((num_trials, num_bins, 2), int), bin_width=0.01)


def test_settings_follow_the_size_of_the_recording() -> None:
    sizes = {n: pyrodyn.recommended(built(LFADS, sized(n, 4)), sized(n, 4)) for n in (5, 40, 90)}
    assert {n: recipe.batch_size for n, recipe in sizes.items()} == {5: 8, 40: 16, 90: 32}
    large = sized(2000, 4)
    assert pyrodyn.recommended(built(LFADS, large), large).batch_size == 64
    steps = []
    for num_bins in (20, 200, 2000, 20_000):
        data = sized(64, num_bins)
        recipe = pyrodyn.recommended(built(LFADS, data), data)
        assert module.FEWEST_STEPS <= recipe.max_steps <= module.OF_LFADS.most_steps
        steps.append(recipe.max_steps)
    assert steps == sorted(steps, reverse=True) and steps[0] > steps[-1]


def test_ramps_end_within_short_fits(make_recording) -> None:
    train = make_recording(12)
    for kind, more, site in (
        (LFADS, {}, "g0"),
        (NodeSAE, {}, "z0"),
        (RnnSAE, {"process_noise": True}, "z"),
    ):
        model = built(kind, train, **more)
        for max_steps in (None, 40):
            recipe = pyrodyn.recommended(model, train, max_steps=max_steps)
            assert isinstance(recipe.objective, ELBO)
            ramp = min(module.RAMP_STEPS, recipe.max_steps // 4)
            assert recipe.objective.ramps[site] == Ramp(ramp)
            assert recipe.objective.final_step == ramp > 0


def test_a_low_rank_network_is_fitted_by_particles(make_recording) -> None:
    train = make_recording(12)
    recipe = pyrodyn.recommended(built(LowRankRNN, train), train)
    assert isinstance(recipe.objective, VSMC)
    assert any(isinstance(each, CoordinatedDropout) for each in recipe.transforms)
    # Without an encoder nothing could copy the data.
    signal = recording(signal=train["counts"].values.astype(float), bin_width=0.02)
    optimal = built(LowRankRNN, signal)
    assert optimal.config["proposal"] == "optimal"
    assert pyrodyn.recommended(optimal, signal).transforms == ()


def test_another_guide_is_trained_by_the_plain_bound(make_recording) -> None:
    train = make_recording(12)
    for kind in (LFADS, LowRankRNN):
        model = built(kind, train)
        fitted = pyrodyn.fit(model, train, guide=AutoNormal(model), max_steps=2, **QUIET)
        used = fitted.record["training"]
        assert used["objective"] == ELBO().describe() and used["transforms"] == []


def test_automatic_hardware_is_cuda_or_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer = trainer_with(
        KeepBest(),
        validates=False,
        stop_patience=None,
        max_epochs=1,
        max_minutes=None,
        checkpoint=None,
        checkpoint_seconds=1.0,
        loggers=(),
        accelerator="auto",
        progress=False,
    )
    assert type(trainer.accelerator).__name__ == "CPUAccelerator"
