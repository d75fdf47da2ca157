"""The smoothed score against derivatives of the Kalman filter's evidence."""

import numpy as np
import pytest
import torch
import xarray as xr
from linear_gaussian import (
    NUM_TRIALS,
    RANK,
    batch_of,
    copies_of,
    data,
    exact_of,
    exact_score,
    linear_network,
    own_parameters,
    posterior_paths,
)
from torch import Tensor

from pyrodyn.infer import SmoothedScore, particle_filter
from pyrodyn.models import LowRankRNN
from pyrodyn.models.proposals import EncoderFactor
from pyrodyn.models.state_space import ProposalPath


def network(recorded: xr.Dataset, proposal: str) -> LowRankRNN:
    """A network whose data are typical of it, so that a few hundred particles suffice."""
    model = linear_network(recorded, seed=2, proposal=proposal)
    if isinstance(model.proposal, EncoderFactor):  # a weak factor, so that the proposal is broad
        with torch.no_grad():
            model.proposal.layers[-1].bias[RANK:] = -3.0
    return model


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("proposal", ["optimal", "bootstrap", "encoder"])
@pytest.mark.parametrize("missing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_the_gradient_of_the_evidence(proposal, missing):
    recorded = data(missing)
    model, batch = network(recorded, proposal), batch_of(recorded)
    expected = exact_score(model, batch)
    assert expected.abs().max() > 3  # far from the maximum
    torch.manual_seed(0)
    copies, repeats = 40, 8
    many = copies_of(batch, copies)
    loss = SmoothedScore(400, num_draws=8)(model, model.guide)
    own = list(own_parameters(model).values())
    found = torch.stack(
        [
            -flat(list(torch.autograd.grad(loss(many), own, materialize_grads=True))) / copies
            for _ in range(repeats)
        ]
    )
    error = found.std(0) / repeats**0.5
    assert ((found.mean(0) - expected).abs() <= 4.5 * error + 0.01 * expected.abs().max()).all()


def test_its_value_is_the_filters_evidence():
    recorded = data()
    model, batch = linear_network(recorded), batch_of(recorded)
    loss = SmoothedScore(50)(model, model.guide)
    torch.manual_seed(0)
    evidence = particle_filter(model, batch, 50).log_evidence.sum()
    for values in (batch, batch.replace(weight=3.0)):
        torch.manual_seed(0)
        torch.testing.assert_close(loss(values).detach(), -values.weight * evidence)
        torch.manual_seed(0)
        with torch.no_grad():
            torch.testing.assert_close(loss(values), -values.weight * evidence)


def test_a_minibatch_scales_its_trials():
    recorded = data()
    model, batch = linear_network(recorded, proposal="encoder"), batch_of(recorded)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss, found = SmoothedScore(20)(model, model.guide), []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        gradients = torch.autograd.grad(
            loss(batch.replace(weight=weight)), parameters, materialize_grads=True
        )
        found.append(flat(list(gradients)))
    torch.testing.assert_close(found[1], 3 * found[0])


def test_the_proposal_maximises_its_density_of_exact_posterior_draws():
    recorded = data()
    model, batch = network(recorded, "encoder"), batch_of(recorded)
    own = list(model.proposal.parameters())
    exact, num_draws = exact_of(model, batch), 20_000
    paths = np.stack([posterior_paths(exact, trial, num_draws) for trial in range(NUM_TRIALS)], 1)
    encoding = model.proposal.encode(model, batch)
    q = ProposalPath(model, encoding, None, model.known_inputs(batch), (num_draws, NUM_TRIALS))
    log_q = q.log_prob(torch.from_numpy(paths)).sum() / num_draws
    expected = flat(list(torch.autograd.grad(log_q, own)))
    torch.manual_seed(0)
    loss, copies, repeats = SmoothedScore(400, num_draws=8)(model, model.guide), 40, 8
    found = torch.stack(
        [
            -flat(list(torch.autograd.grad(loss(copies_of(batch, copies)), own))) / copies
            for _ in range(repeats)
        ]
    )
    error = found.std(0) / repeats**0.5
    assert expected.abs().max() > 10 * error.max()
    assert ((found.mean(0) - expected).abs() <= 5 * error + 0.01 * expected.abs().max()).all()


def test_a_poor_proposal_is_logged_and_warned_of_once():
    recorded = data()
    model, batch = linear_network(recorded, proposal="bootstrap"), batch_of(recorded)
    with torch.no_grad():
        for part in model.observation.singles():
            part.log_scale.fill_(-5.0)  # observations so sharp that the prior rarely explains them
    loss = SmoothedScore(200)(model, model.guide)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="effective particles of 200, so its gradient is unrel"):
        logged = loss.evaluate(batch).logged
    assert logged["poor_trials"] == NUM_TRIALS
    loss.evaluate(batch)  # a second warning would be an error here
    good = linear_network(recorded)
    assert SmoothedScore(200)(good, good.guide).evaluate(batch).logged["poor_trials"] == 0
    with torch.no_grad():  # no gradient is expected
        SmoothedScore(200)(model, model.guide).evaluate(batch)
