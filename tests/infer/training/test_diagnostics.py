"""Ends of a fit that deserve a warning, each provoked, and ends that do not."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.infer import ELBO, FitWarning, Ramp, Schedule, fit
from pyrodyn.infer.training import diagnostics
from pyrodyn.infer.training.diagnostics import fit_diagnostics

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu", "transforms": ()}


def history(valid: np.ndarray | None = None, kl: float = 2.0) -> xr.Dataset:
    num_epochs = 30 if valid is None else len(valid)
    values = {"kl_z": np.full(num_epochs, kl)}
    if valid is not None:
        values["valid_loss"] = valid
    return xr.Dataset({name: ("epoch", value) for name, value in values.items()})


EPOCHS = np.arange(30)
FALLING, RISING = 100.0 - EPOCHS, 100.0 + EPOCHS
SETTLED = 70 + 30 * np.exp(-EPOCHS / 3.0)


@pytest.mark.parametrize(
    ("valid", "best", "first", "kl", "sentences"),
    [
        (FALLING, 29, 0, 2.0, ["this fit has not converged: its best epoch, 29 of 30, is one of"]),
        (FALLING, 26, 0, 2.0, ["this fit has not converged: its best epoch, 26 of 30, is one of"]),
        (FALLING, 20, 0, 2.0, []),  # 9 epochs without a lower loss
        (RISING, 0, 0, 2.0, ["this fit keeps the weights of epoch 0, the first whose"]),
        (RISING, 12, 12, 2.0, ["this fit keeps the weights of epoch 12, the first whose"]),
        (SETTLED, 29, 0, 2.0, []),
        (SETTLED + 3.0 * (EPOCHS > 25), 25, 0, 2.0, []),
        (RISING, 25, 25, 2.0, []),  # of which hardly an epoch counted
        (FALLING[:9], 8, 0, 1e-6, []),  # so short that its user knows
        (None, 29, -1, 2.0, []),
        (None, 29, -1, 0.005, ["does not use the latent site 'z': its KL is 0.005 nats"]),
    ],
)
def test_the_history_of_a_fit(valid, best, first, kl, sentences):
    found = fit_diagnostics(history(valid, kl), best, first, ["z", "x"])
    assert len(found) == len(sentences), found
    for sentence, wanted in zip(found, sentences, strict=True):
        assert wanted in sentence and sentence.startswith("this fit ")


def test_a_fit_that_was_ended_too_early(make_recording, make_lfads):
    train, valid = make_recording(12, mean=5.0), make_recording(6, mean=5.0, seed=1)
    model = make_lfads(train)
    with torch.no_grad():
        model.readout.bias -= 3.0  # from where it must climb for long
    schedule = Schedule(learning_rate=5e-3)
    with pytest.warns(FitWarning, match="this fit has not converged"):
        fitted = fit(
            model, train, valid, objective=ELBO(), max_epochs=20, schedule=schedule, **QUIET
        )
    assert any("not converged" in sentence for sentence in fitted.diagnostics)


def test_a_fit_whose_first_counted_epoch_was_its_best(make_recording, make_lfads):
    train, valid = make_recording(12, mean=8.0), make_recording(12, mean=0.5)
    model = make_lfads(valid)  # which starts at the rates of what it is validated on
    objective, schedule = ELBO(beta={"g0": Ramp(3)}), Schedule(patience=100)
    with pytest.warns(FitWarning, match="keeps the weights of epoch 2, the first"):
        fitted = fit(
            model,
            train,
            valid,
            objective=objective,
            max_epochs=14,
            batch_size=12,
            schedule=schedule,
            **QUIET,
        )
    assert fitted.best_epoch == 2
    assert any("the first whose" in sentence for sentence in fitted.diagnostics)


def test_a_latent_site_that_is_not_used(make_recording, make_lfads):
    train = make_recording(12)
    model = make_lfads(train)
    objective, schedule = ELBO(beta={"g0": 1e3}), Schedule(learning_rate=3e-2)
    with pytest.warns(FitWarning, match="does not use the latent site 'g0'"):
        fit(
            model, train, objective=objective, max_epochs=200, batch_size=12, schedule=schedule,
            **QUIET,
        )  # fmt: skip


def test_inputs_may_be_silent(make_recording, make_lfads, monkeypatch):
    monkeypatch.setattr(diagnostics, "COLLAPSED_KL", 1e9)
    train = make_recording(12)
    model = make_lfads(train, inferred_input_dim=1)
    with pytest.warns(FitWarning, match="does not use the latent site 'g0'"):
        fitted = fit(model, train, objective=ELBO(), max_epochs=12, batch_size=12, **QUIET)
    assert "kl_u" in fitted.history
    assert not any("'u'" in sentence for sentence in fitted.diagnostics)


def test_a_fit_that_ended_within_its_ramps(make_recording, make_lfads):
    train, valid = make_recording(12), make_recording(6, seed=1)
    objective = ELBO(beta={"g0": Ramp(50)})
    with pytest.warns(FitWarning, match="this fit ended 38 steps before its ramps"):
        fitted = fit(
            make_lfads(train), train, valid, objective=objective, max_epochs=12, batch_size=12,
            **QUIET,
        )  # fmt: skip
    assert fitted.best_epoch == 11
