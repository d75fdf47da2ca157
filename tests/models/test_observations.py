"""Observation models: units, initialisation from the moments of the data, and masks."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO

from pyrodyn.models.observations import (
    OBSERVATIONS,
    Gaussian,
    Observation,
    Single,
    observation,
    observe,
)

NUM_TRIALS, NUM_BINS, NUM_NEURONS = 5, 7, 3
NUM_PARTICLES = 4


@pytest.fixture(params=OBSERVATIONS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return observation(name, NUM_NEURONS)


def predictors_for(model, *left, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = model.num_predictors * NUM_NEURONS
    return torch.randn(*left, NUM_TRIALS, NUM_BINS, size, generator=generator)


def draws(model, num_trials, bias):
    """Data of constant linear predictors, ``(num_trials, 50, NUM_NEURONS)``."""
    return model(bias.expand(num_trials, 50, -1)).sample()


def test_every_name_makes_a_final_observation(name, model):
    assert type(model) is OBSERVATIONS[name]
    assert isinstance(model, Observation)
    assert isinstance(model, Single)
    assert model.singles() == (model,)
    assert model.predictor_dim == model.num_predictors * NUM_NEURONS
    assert model.observed in ("counts", "signal")
    assert model.support.check(torch.tensor(model.filler))
    for parameter in model.parameters():
        assert parameter.shape == (NUM_NEURONS,)


def test_unknown_name_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"observation='poison' is unknown; .*poisson, .*gaussian"):
        observation("poison", 3)


@pytest.mark.parametrize("left", [(), (NUM_PARTICLES,), (2, NUM_PARTICLES)])
def test_distributions_are_elementwise_for_any_batch_dims(model, left):
    distribution = model(predictors_for(model, *left))
    shape = (*left, NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    assert distribution.batch_shape == shape
    assert distribution.event_shape == ()
    assert distribution.mean.shape == shape
    drawn = distribution.sample()
    assert drawn.shape == shape
    assert model.support.check(drawn).all()
    assert distribution.log_prob(drawn[(0,) * len(left)]).shape == shape


def test_rates_are_expected_observations(model):
    torch.manual_seed(0)
    num_draws = 20_000
    distribution = model(0.5 * predictors_for(model))
    drawn = distribution.sample((num_draws,))
    z = (drawn.mean(0) - distribution.mean) / (distribution.variance / num_draws).sqrt()
    # The largest of 105 independent z-scores exceeds 4.5 with probability 1/1400.
    assert z.abs().max() < 4.5


def test_second_predictors_follow_those_of_all_neurons():
    first, second = torch.tensor([0.1, 0.5, -0.2]), torch.tensor([-1.0, 0.0, 2.0])
    predictors = torch.cat([first, second]).expand(1, 2, 6)
    for name in ("zero_inflated_poisson", "zero_inflated_gamma"):
        model = observation(name, 3)
        assert model.num_predictors == 2
        expected = (1 - torch.sigmoid(second)) * first.exp()
        torch.testing.assert_close(model(predictors).mean, expected.expand(1, 2, 3))


# ------------------------------------------------------------------ initialisation


TRUTH = {
    "poisson": (torch.tensor([-1.0, 0.0, 1.0]), None),
    "negative_binomial": (torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, -0.5, -1.0])),
    "zero_inflated_poisson": (torch.tensor([0.5, 1.0, 1.5, -1.0, 0.0, 1.0]), None),
    "bernoulli": (torch.tensor([-2.0, 0.0, 1.0]), None),
    "gaussian": (torch.tensor([-3.0, 0.0, 5.0]), torch.tensor([-1.0, 0.0, 1.5])),
    "gamma": (torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([-0.5, 0.0, 2.0])),
    "zero_inflated_gamma": (
        torch.tensor([-1.0, 0.0, 2.0, 1.0, 0.0, -1.0]),
        torch.tensor([-0.5, 0.0, 2.0]),
    ),
}
"""Linear predictors and the parameter per neuron, if there is one."""


def test_initial_values_follow_from_the_moments(name, model):
    torch.manual_seed(0)
    bias, own = TRUTH[name]
    if own is not None:
        (parameter,) = model.parameters()
        with torch.no_grad():
            parameter.copy_(own)
    starts, own_starts = [], []
    for _ in range(30):
        x = draws(model, 40, bias)
        fresh = observation(name, NUM_NEURONS)
        start = fresh.initialise(x, torch.ones_like(x, dtype=torch.bool))
        assert not start.requires_grad
        expected = fresh(start.expand(1, 1, -1)).mean[0, 0]
        torch.testing.assert_close(expected.detach(), x.mean((0, 1)), rtol=1e-4, atol=1e-5)
        if isinstance(fresh, Gaussian):  # convert from standardised units to those of the data
            start = fresh.offset + fresh.unit * start
            own_starts.append(fresh.scale().log().detach())
        else:
            own_starts.extend(p.detach().clone() for p in fresh.parameters())
        starts.append(start)
    # The bias of a ratio of moments is of the order of its variance, far below one standard error.
    found, error = torch.stack(starts).mean(0), torch.stack(starts).std(0)
    assert ((found - bias).abs() < error).all()
    if own is not None:
        found, error = torch.stack(own_starts).mean(0), torch.stack(own_starts).std(0)
        assert ((found - own).abs() < error).all()


def test_initialisation_uses_measured_entries_alone(name, model):
    torch.manual_seed(0)
    bias, _ = TRUTH[name]
    x = draws(model, 20, bias)
    valid = torch.zeros_like(x, dtype=torch.bool)
    valid[:12] = True
    corrupted = torch.where(valid, x, math.nan)
    start = model.initialise(corrupted, valid)
    parameters = [p.detach().clone() for p in model.parameters()]
    expected = model.initialise(x[:12], valid[:12])
    torch.testing.assert_close(start, expected)
    for kept, again in zip(parameters, model.parameters(), strict=True):
        torch.testing.assert_close(kept, again.detach())


def test_initial_values_are_finite_for_silent_constant_and_unmeasured_neurons(name, model):
    x = torch.full((4, 10, NUM_NEURONS), model.filler)
    x[..., 1] = 1.0
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[..., 2] = False
    start = model.initialise(x, valid).requires_grad_()
    assert torch.isfinite(start).all()
    distribution = model(start.expand(4, 10, -1))
    log_prob = distribution.log_prob(torch.where(valid, x, model.filler))
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    for parameter in (start, *model.parameters()):
        assert torch.isfinite(parameter.grad).all()


def test_initial_mean_of_a_silent_neuron_is_half_a_spike():
    x = torch.zeros(4, 10, 2)
    x[0, 0, 1] = 1.0
    valid = torch.ones_like(x, dtype=torch.bool)
    for name in ("poisson", "negative_binomial", "zero_inflated_poisson", "bernoulli"):
        model = observation(name, 2)
        rates = model(model.initialise(x, valid).expand(1, 1, -1)).mean[0, 0]
        torch.testing.assert_close(rates.detach(), torch.tensor([0.5 / 40, 1 / 40]))


# ------------------------------------------------------------------ data outside the support


@pytest.mark.parametrize(
    ("name", "wrong", "fitting"),
    [
        ("poisson", -1.0, "gaussian$"),
        ("poisson", 0.5, "gaussian, gamma, zero_inflated_gamma$"),
        ("negative_binomial", 1.5, "gaussian, gamma, zero_inflated_gamma$"),
        ("zero_inflated_poisson", 2.25, "gaussian, gamma, zero_inflated_gamma$"),
        ("bernoulli", 2.0, "poisson, negative_binomial, zero_inflated_poisson, gaussian, gamma"),
        ("gaussian", math.nan, "none"),
        ("gamma", 0.0, "zero_inflated_gamma$"),
        ("zero_inflated_gamma", -0.25, "gaussian$"),
    ],
)
def test_data_outside_the_support_are_refused(name, wrong, fitting):
    model = observation(name, NUM_NEURONS)
    x = torch.ones(NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    valid = torch.ones_like(x, dtype=torch.bool)
    model.check(x, valid)
    x[2, 4, 1] = wrong
    with pytest.raises(ValueError, match=rf"neuron 1 is .* at trial 2, bin 4; .*{fitting}"):
        model.check(x, valid)
    valid[2, 4, 1] = False
    model.check(x, valid)


# ------------------------------------------------------------------ the site x


def some_data(model):
    """Observations with NaN in the entries that are not scored."""
    torch.manual_seed(1)
    x = model(predictors_for(model, seed=3)).sample()
    scored = torch.rand(x.shape) < 0.6
    scored[0] = False
    return torch.where(scored, x, math.nan), scored


def program(model, x, scored):
    size = model.num_predictors * NUM_NEURONS
    with pyro.plate("trials", NUM_TRIALS, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(NUM_BINS, size), 1.0).to_event(2))
        observe(model(z), x, scored, model.filler)


def test_masked_log_density_is_the_sum_over_scored_entries(model):
    x, scored = some_data(model)
    particles = pyro.plate("particles", NUM_PARTICLES, dim=-2)
    trace = poutine.trace(particles(program)).get_trace(model, x, scored)
    trace.compute_log_prob()
    found = trace.nodes["x"]["log_prob"]
    assert found.shape == (NUM_PARTICLES, NUM_TRIALS)
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(trace.nodes["rates"]["value"], model(z).mean)
    assert (found[:, 0] == 0).all()
    for particle, trial in np.ndindex(NUM_PARTICLES, NUM_TRIALS):
        by_hand = 0.0
        entries = model(z[particle, trial, None]).expand((1, NUM_BINS, NUM_NEURONS))
        for bin_, neuron in scored[trial].nonzero().tolist():
            value = x[trial, bin_, neuron].expand(1, NUM_BINS, NUM_NEURONS)
            by_hand += entries.log_prob(value)[0, bin_, neuron]
        torch.testing.assert_close(found[particle, trial], torch.as_tensor(by_hand))


def test_poisson_site_equals_a_value_computed_by_hand():
    model = observation("poisson", 1)
    x, scored = torch.tensor([[[2.0], [9.0], [0.0]]]), torch.tensor([[[True], [False], [True]]])
    with pyro.plate("trials", 1, dim=-1), poutine.trace() as tape:
        observe(model(torch.tensor([[[0.0], [5.0], [math.log(3.0)]]])), x, scored, 0.0)
    tape.trace.compute_log_prob()
    # 2 log 1 - 1 - log 2!  and  0 log 3 - 3 - log 0!
    expected = torch.tensor([-1 - math.log(2) - 3])
    torch.testing.assert_close(tape.trace.nodes["x"]["log_prob"], expected)
    torch.testing.assert_close(
        tape.trace.nodes["rates"]["value"], torch.tensor([[[1.0], [math.exp(5)], [3.0]]])
    )


@pytest.mark.parametrize("vectorize", [True, False])
def test_elbo_has_finite_gradients(model, vectorize):
    x, scored = some_data(model)
    size = model.num_predictors * NUM_NEURONS
    mean = torch.zeros(NUM_TRIALS, NUM_BINS, size, requires_grad=True)

    def guide(model, x, scored):
        with pyro.plate("trials", NUM_TRIALS, dim=-1):
            pyro.sample("z", dist.Normal(mean, 0.5).to_event(2))

    elbo = Trace_ELBO(
        num_particles=NUM_PARTICLES, vectorize_particles=vectorize, max_plate_nesting=1
    )
    loss = elbo.differentiable_loss(program, guide, model, x, scored)
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in (mean, *model.parameters()):
        assert torch.isfinite(parameter.grad).all()


def test_entries_that_are_not_scored_have_no_gradient(model):
    x, scored = some_data(model)
    predictors = predictors_for(model).requires_grad_()
    with pyro.plate("trials", NUM_TRIALS, dim=-1), poutine.trace() as tape:
        observe(model(predictors), x, scored, model.filler)
    tape.trace.log_prob_sum().backward()
    gradient = predictors.grad.reshape(NUM_TRIALS, NUM_BINS, model.num_predictors, NUM_NEURONS)
    counted = scored[:, :, None].expand_as(gradient)
    assert (gradient[~counted] == 0).all()
    assert torch.isfinite(gradient).all()
    assert (gradient[counted] != 0).any()


def test_predictive_samples_missing_observations(model):
    torch.manual_seed(0)
    _, scored = some_data(model)
    predictive = Predictive(program, num_samples=6, return_sites=["z", "rates", "x"], parallel=True)
    drawn = predictive(model, None, scored)
    shape = (6, NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    assert drawn["x"].shape == drawn["rates"].shape == shape
    assert model.support.check(drawn["x"]).all()
    torch.testing.assert_close(drawn["rates"], model(drawn["z"]).mean.detach())


def test_predictive_without_latents_draws_independent_samples():
    torch.manual_seed(0)

    def fixed(scored):
        with pyro.plate("trials", NUM_TRIALS, dim=-1):
            model = observation("poisson", NUM_NEURONS)
            observe(model(torch.ones(NUM_TRIALS, NUM_BINS, NUM_NEURONS)), None, scored, 0.0)

    scored = torch.ones(NUM_TRIALS, NUM_BINS, NUM_NEURONS, dtype=torch.bool)
    x = Predictive(fixed, num_samples=3, return_sites=["x"], parallel=True)(scored)["x"]
    assert x.shape == (3, NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    assert not torch.equal(x[0], x[1])


# ------------------------------------------------------------------ counts and a signal

NUM_CHANNELS = 2
PAIRS = list(itertools.product(OBSERVATIONS, OBSERVATIONS))


def pair(counts, signal):
    """A joint model, and separate models of its parts with the same parameters."""
    model = observation({"counts": [counts, NUM_NEURONS], "signal": [signal, NUM_CHANNELS]}, 5)
    alone = observation(counts, NUM_NEURONS), observation(signal, NUM_CHANNELS)
    torch.manual_seed(4)
    for one, part in zip(alone, model.singles(), strict=True):
        for parameter, own in zip(one.parameters(), part.parameters(), strict=True):
            with torch.no_grad():
                parameter.copy_(own.normal_(0.0, 0.3))
    return model, alone


def joint_data(alone):
    torch.manual_seed(1)
    distributions = [m(0.5 * torch.randn(NUM_TRIALS, NUM_BINS, m.predictor_dim)) for m in alone]
    x = torch.cat([each.sample() for each in distributions], -1)
    return x, torch.rand(x.shape) < 0.6


@pytest.mark.parametrize(("counts", "signal"), PAIRS)
def test_a_joint_model_equals_the_models_of_its_parts(counts, signal):
    model, alone = pair(counts, signal)
    x, scored = joint_data(alone)
    predictors = torch.randn(NUM_PARTICLES, NUM_TRIALS, NUM_BINS, model.predictor_dim)
    of_counts, of_signal = predictors.tensor_split([alone[0].predictor_dim], -1)
    distributions = alone[0](of_counts), alone[1](of_signal)
    split = x.split([NUM_NEURONS, NUM_CHANNELS], -1)
    terms = torch.cat(
        [each.log_prob(its) for each, its in zip(distributions, split, strict=True)], -1
    )
    assert torch.equal(model(predictors).log_prob(x), terms)
    assert torch.equal(model(predictors).mean, torch.cat([each.mean for each in distributions], -1))
    with (
        pyro.plate("particles", NUM_PARTICLES, dim=-2),
        pyro.plate("trials", NUM_TRIALS, dim=-1),
        poutine.trace() as tape,
    ):
        observe(model(predictors), torch.where(scored, x, math.nan), scored, model.filler)
    tape.trace.compute_log_prob()
    expected = torch.where(scored, terms, 0.0).sum((-2, -1))
    torch.testing.assert_close(tape.trace.nodes["x"]["log_prob"], expected)


@pytest.mark.parametrize(("counts", "signal"), PAIRS)
def test_a_joint_model_is_initialised_as_its_parts(counts, signal):
    model, alone = pair(counts, signal)
    x, valid = joint_data(alone)
    model.check(x, valid)
    started = model.initialise(torch.where(valid, x, math.nan), valid)
    columns = slice(0, NUM_NEURONS), slice(NUM_NEURONS, None)
    expected = torch.cat(
        [
            one.initialise(x[..., its], valid[..., its])
            for one, its in zip(alone, columns, strict=True)
        ]
    )
    torch.testing.assert_close(started, expected)
    own = [p for one in alone for p in one.parameters()]
    for parameter, its in zip(model.parameters(), own, strict=True):
        torch.testing.assert_close(parameter, its)


def test_predictors_of_a_joint_model_have_their_neuron_and_kind():
    model, _ = pair("zero_inflated_poisson", "gaussian")
    neuron, is_log_mean = model.predictors()
    assert neuron.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert is_log_mean.tolist() == [True] * 3 + [False] * 5
    part = model.gaussian_part()
    assert (part.columns, part.predictors) == (slice(3, 5), slice(6, 8))
    torch.testing.assert_close(part.scale, model.singles()[1].scale())
    both = pair("gaussian", "gaussian")[0].gaussian_part()
    assert both.columns == both.predictors == slice(0, 5)
    assert both.scale.shape == (5,)
    first = pair("gaussian", "gamma")[0].gaussian_part()
    assert first.columns == first.predictors == slice(0, 3)
    assert pair("poisson", "gamma")[0].gaussian_part() is None


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_the_filler_of_a_joint_model_is_in_every_support(name):
    model, (_, alone) = pair("poisson", name)
    assert alone.support.check(torch.tensor(model.filler))


def test_the_error_for_data_outside_the_support_names_the_variable():
    model, alone = pair("poisson", "gamma")
    x, valid = joint_data(alone)
    valid[:] = True
    model.check(x, valid)
    x[1, 2, 4] = -1.0
    with pytest.raises(ValueError, match=r"^signal: Gamma .* neuron 1 is -1 at trial 1, bin 2; .*"):
        model.check(x, valid)
    x[0, 3, 2] = 0.5
    with pytest.raises(ValueError, match=r"^counts: Poisson .* neuron 2 is 0.5 at trial 0, bin 3"):
        model.check(x, valid)


@pytest.mark.parametrize("modulation", [0.0, 0.8])
@pytest.mark.parametrize("phi", [0.1, 0.5])
def test_the_initial_dispersion_leaves_the_variance_of_smooth_rates_out(phi, modulation):
    """Also where bins are missing. Counts are gamma-Poisson around rates of a known course."""
    rng = np.random.default_rng(0)
    time = np.arange(100)
    phase = rng.uniform(0, 2 * np.pi, (200, 1, 3))
    rates = 3 * np.exp(modulation * np.sin(2 * np.pi * time[:, None] / 50 + phase))
    counts = rng.poisson(rates * rng.gamma(1 / phi, phi, rates.shape))
    valid = torch.from_numpy(rng.random(rates.shape) > 0.1)
    x = torch.where(valid, torch.from_numpy(counts).float(), 0.0)
    model = observation("negative_binomial", 3)
    model.initialise(x, valid)
    found = model.log_dispersion.exp().detach().numpy()
    # Consecutive rates differ by a fiftieth of a period: 0.8 % of their variance. The standard
    # error over 18,000 bins is about 2 %.
    np.testing.assert_allclose(found, phi, rtol=0.1)
