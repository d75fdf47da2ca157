"""A `Fit` serves wherever a model does: what takes a model takes the fit of one."""

import warnings

import pytest
import torch

import pyrodyn
from pyrodyn import analysis
from pyrodyn.data import simulate
from pyrodyn.infer import (
    FitWarning,
    FlowStart,
    LaplaceStart,
    MixtureStart,
    fisher_scoring,
    particle_filter,
    particle_smoother,
    path_pool,
)
from pyrodyn.models import NodeSAE


@pytest.fixture(scope="module")
def recording():
    return simulate("lorenz", 5, 8, 4)


@pytest.fixture(scope="module")
def fitted(recording):
    model = NodeSAE.for_recording(recording, latent_dim=2, encoder_dim=4, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return pyrodyn.fit(model, recording, max_epochs=1, progress=False, accelerator="cpu")


def flow_draws(given, _):
    flow = FlowStart(given, num_transforms=1)
    return flow.around(flow.model.initial_condition().expand((5,))).sample()


@pytest.mark.parametrize(
    "result",
    [
        lambda fit, batch: path_pool(fit, batch, 2, num_particles=200).log_evidence,
        lambda fit, batch: particle_filter(fit, batch, 20).log_evidence,
        lambda fit, batch: particle_smoother(fit, batch, 2, method="ancestral").starts,
        lambda fit, batch: LaplaceStart(fit, num_searches=1).distribution(batch).mean,
        lambda fit, batch: MixtureStart(fit, num_draws=64).distribution(batch).sample(),
        flow_draws,
        lambda fit, batch: torch.from_numpy(analysis.free_run(fit, 2, 3)["states"].values),
        lambda fit, batch: analysis.dynamics_of(fit).step(
            torch.ones(1, 2).double(), torch.zeros(1, 0).double()
        ),
    ],
    ids=["pool", "filter", "smoother", "laplace", "mixture", "flow", "free_run", "dynamics"],
)
def test_a_fit_gives_what_its_model_gives(fitted, recording, result):
    batch = fitted.model.trials_of(recording).batch()
    found = []
    for given in (fitted.model, fitted):
        torch.manual_seed(0)
        found.append(result(given, batch))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_fisher_scoring_takes_a_fit(fitted, recording):
    before = {name: value.clone() for name, value in fitted.model.named_parameters()}
    batch = fitted.model.trials_of(recording).batch()
    fisher_scoring(fitted, batch, 1, num_draws=4, num_particles=200)
    assert any(not torch.equal(v, before[n]) for n, v in fitted.model.named_parameters())


def test_the_recommended_settings_of_a_fit_are_those_of_its_model(fitted, recording):
    ours, theirs = (pyrodyn.recommended(each, recording) for each in (fitted, fitted.model))
    assert repr(ours) == repr(theirs)
    assert ours.transforms
