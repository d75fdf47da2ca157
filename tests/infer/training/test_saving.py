"""A `Fit` on disk: guide and history are restored, and other guides are refused."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, AutoNormal, AutoNormalMessenger
from torch import nn

import pyrodyn
from pyrodyn import fit, load, predict, save
from pyrodyn.data.batch import Batch, Trials
from pyrodyn.infer import Fit, GuideError

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}


class Amortised(nn.Module):
    def __init__(self, model: pyrodyn.models.LFADS, width: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.LazyLinear(width), nn.Tanh(), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 2 * model.config["initial_condition_dim"])

    def forward(self, batch: Batch) -> None:
        mean, log_scale = self.head(self.encoder(batch.seen.mean(1))).chunk(2, -1)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("g0", dist.Normal(mean, log_scale.exp()).to_event(1))


@pytest.fixture
def train(make_recording) -> xr.Dataset:
    return make_recording(7)


GUIDES = {
    "AutoNormal": (AutoNormal, AutoNormal, 3),
    "AutoDelta": (AutoDelta, AutoDelta, 3),
    "AutoNormalMessenger": (AutoNormalMessenger, AutoNormalMessenger, 7),
    "Amortised": (lambda m: Amortised(m, 4), lambda m: Amortised(m, 4), 4),
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_fit_is_restored(train, make_lfads, tmp_path, name):
    make, make_again, batch_size = GUIDES[name]
    model = make_lfads(train)
    guide = make(model)
    fitted = fit(
        model,
        train,
        guide=guide,
        batch_size=batch_size,
        max_epochs=2,
        out=tmp_path / "run",
        **QUIET,
    )
    save(fitted, tmp_path / "again")
    state = {name: value.clone() for name, value in guide.state_dict().items()}
    expected = predict(model, train, guide=guide, num_draws=3)
    for folder in (tmp_path / "run" / "model", tmp_path / "again"):
        loaded = load(folder, guide=make_again)
        assert isinstance(loaded, Fit)
        assert loaded.guide.state_dict().keys() == state.keys()
        for key, value in loaded.guide.state_dict().items():
            assert torch.equal(value, state[key]), key
        assert not loaded.guide.training and not loaded.model.training
        xr.testing.assert_identical(loaded.history, fitted.history)
        ends = [(f.best_epoch, f.num_steps, f.diagnostics) for f in (loaded, fitted)]
        assert ends[0] == ends[1]
        xr.testing.assert_identical(
            predict(loaded.model, train, guide=loaded.guide, num_draws=3), expected
        )
        assert load(folder).record["training"]["guide"] == name


def test_a_loaded_guide_per_trial_refuses_other_trials(train, make_recording, make_lfads, tmp_path):
    model = make_lfads(train)
    save(fit(model, train, guide=AutoNormal(model), max_epochs=1, **QUIET), tmp_path)
    loaded = load(tmp_path, guide=AutoNormal)
    with pytest.raises(GuideError, match="trial 0 is none of the 7 trials"):
        predict(loaded.model, make_recording(7, seed=3), guide=loaded.guide, num_draws=2)


def test_loading_does_not_use_pyros_parameter_store(train, make_recording, make_lfads, tmp_path):
    model = make_lfads(train)
    fitted = fit(model, train, guide=AutoNormal(model), max_epochs=1, **QUIET)
    save(fitted, tmp_path)
    others = make_recording(12)
    AutoNormal(make_lfads(others))(Trials(others).batch())
    try:
        loaded = load(tmp_path, guide=AutoNormal)
    finally:
        pyro.clear_param_store()
    for name, value in loaded.guide.state_dict().items():
        assert torch.equal(value, fitted.guide.state_dict()[name]), name


@pytest.mark.parametrize(
    ("guide", "sentence"),
    [
        (AutoDelta, "used a guide of the class Amortised, not AutoDelta"),
        (lambda model: Amortised(model, 5), "cannot be loaded: size mismatch for encoder.0.weight"),
    ],
)
def test_another_guide_is_refused(train, make_lfads, tmp_path, guide, sentence):
    model = make_lfads(train)
    save(fit(model, train, guide=Amortised(model), max_epochs=1, **QUIET), tmp_path)
    with pytest.raises(GuideError, match=sentence):
        load(tmp_path, guide=guide)


def test_a_fit_with_the_models_own_guide_is_saved_as_the_model(train, make_lfads, tmp_path):
    fitted = fit(make_lfads(train), train, max_epochs=1, **QUIET)
    save(fitted, tmp_path)
    assert not (tmp_path / "guide.safetensors").exists()
    xr.testing.assert_identical(
        predict(load(tmp_path), train, num_draws=2), predict(fitted.model, train, num_draws=2)
    )
    with pytest.raises(GuideError, match="used the model's own guide, which is part of the model"):
        load(tmp_path, guide=Amortised)


def test_saving_a_model_removes_an_earlier_guide(train, make_lfads, tmp_path):
    model = make_lfads(train)
    fitted = fit(model, train, guide=Amortised(model), max_epochs=1, **QUIET)
    save(fitted, tmp_path)
    assert (tmp_path / "guide.safetensors").exists()
    save(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "weights.safetensors"]
    with pytest.raises(GuideError, match="holds a model without the guide that it was fitted with"):
        load(tmp_path, guide=Amortised)
