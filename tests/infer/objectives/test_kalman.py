"""The exact objective: value, minibatches, order of the bounds, and what it refuses."""

import pytest
import torch
from linear_gaussian import (
    batch_of,
    data,
    exact_score,
    linear_network,
    log_evidence,
    own_parameters,
)

import pyrodyn
from pyrodyn.data import Trials
from pyrodyn.infer import ELBO, IWELBO, Kalman
from pyrodyn.models import LFADS, LowRankRNN
from pyrodyn.posterior.source import source


@pytest.mark.parametrize("missing", [False, True])
def test_the_loss_is_the_negative_log_evidence_and_its_gradient_the_score(missing):
    recorded = data(missing)
    model, batch = linear_network(recorded), batch_of(recorded)
    loss = Kalman()(model, model.guide)(batch)
    assert float(loss.detach()) == pytest.approx(-log_evidence(model, batch), rel=1e-9)
    loss.backward()
    found = -torch.cat([p.grad.flatten() for p in own_parameters(model).values()])
    torch.testing.assert_close(found, exact_score(model, batch), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_minibatches_average_to_the_whole():
    recorded = data()
    model = linear_network(recorded).float()
    loss, trials = Kalman()(model, model.guide), Trials(recorded)
    parts = [loss(trials.batch(torch.tensor([trial]))) for trial in range(3)]
    torch.testing.assert_close(sum(parts) / 3, loss(trials.batch()))


@torch.no_grad()
def test_bounds_lie_below_it():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    torch.manual_seed(0)
    elbo, iwelbo, exact = (
        -float(objective(model, model.guide)(batch))
        for objective in (ELBO(2000), IWELBO(2000), Kalman())
    )
    assert elbo < iwelbo < exact + 0.1
    assert iwelbo == pytest.approx(exact, abs=1.0)


def test_a_fit_by_it_is_drawn_from_exactly():
    recorded = data()
    model = linear_network(recorded).float()
    before = Kalman()(model, model.guide)(Trials(recorded).batch())
    fitted = pyrodyn.fit(
        model, recorded, objective=Kalman(), max_epochs=5, progress=False, accelerator="cpu"
    )
    assert Kalman()(model, model.guide)(Trials(recorded).batch()) < before
    assert repr(Kalman()) == "Kalman()"
    assert source(fitted, None, None).method == "exact"
    assert source(fitted, None, "guide").method == "guide"


def test_what_it_cannot_score_is_refused():
    recorded = data()
    model = linear_network(recorded).float()
    with pytest.raises(ValueError, match="another guide than the model's own would have no effect"):
        Kalman()(model, lambda batch: None)
    with pytest.raises(ValueError, match="Kalman needs a StateSpaceModel; function is not one"):
        Kalman()(lambda batch: None, model.guide)
    lfads = LFADS(4, input_dim=1, observation="gaussian")
    options = {"objective": Kalman(), "max_epochs": 1, "progress": False}
    with pytest.raises(ValueError, match="LFADS is not linear and Gaussian"):
        pyrodyn.fit(lfads, recorded, **options)
    kinked = LowRankRNN(4, input_dim=1, observation="gaussian")
    with pytest.raises(ValueError, match=r"no exact inference, because of its activation='relu'"):
        pyrodyn.fit(kinked, recorded, **options)
