"""LFADS against exact values, and a test for each known fault of public LFADS implementations."""

import copy
import math

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal

from pyrodyn.data import CoordinatedDropout, Forecast, HoldOutNeurons, Trials, held_out, recording
from pyrodyn.infer import ELBO
from pyrodyn.infer.traces import paired_traces
from pyrodyn.models import LFADS
from pyrodyn.models.lfads import SCALE_FLOOR, ControllerPath
from pyrodyn.models.state_space import Proposal
from pyrodyn.posterior import predict

NUM_TRIALS, NUM_BINS, NUM_NEURONS = 6, 12, 5
SMALL = {
    "factor_dim": 3,
    "generator_dim": 8,
    "initial_condition_dim": 4,
    "encoder_dim": 6,
    "controller_encoder_dim": 6,
    "controller_dim": 7,
}


def data(num_inputs: int = 0, seed: int = 0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.0, (NUM_TRIALS, NUM_BINS, NUM_NEURONS))
    inputs = rng.normal(size=(NUM_TRIALS, NUM_BINS, num_inputs)) if num_inputs else None
    return recording(counts=counts, bin_width=0.01, inputs=inputs)


def build(counts=None, **sizes) -> LFADS:
    torch.manual_seed(1)
    sizes = {**SMALL, "inferred_input_dim": 2, **sizes}
    return LFADS.for_recording(data() if counts is None else counts, **sizes).eval()


def with_guide_at_prior(model: LFADS) -> LFADS:
    with torch.no_grad():
        for head, scale in (
            (model.g0_posterior, model.g0_scale),
            (model.u_posterior, model.input_prior.stationary_scale()),
        ):
            head.weight.zero_()
            mean, log_scale = head.bias.chunk(2)
            mean.zero_()
            log_scale.copy_((scale - SCALE_FLOOR).log())
    return model


def controller_path(model: LFADS, batch, num_particles: int = 1):
    seen = batch.seen[:, : batch.horizon]
    g0 = model.posterior_g0(seen).rsample((num_particles,))
    return model.posterior_u(seen, g0, batch), g0


# --------------------------------------------------------------- KL of controller and prior


def test_kl_is_zero_where_guide_equals_prior():
    model = with_guide_at_prior(build(input_prior="white"))
    with torch.no_grad():
        terms = ELBO()(model, model.guide).terms(Trials(data()).batch())
    for kl in terms.kl.values():
        assert abs(float(kl)) < 1e-4


@pytest.mark.slow
def test_monte_carlo_kl_agrees_with_the_closed_form():
    """q white, p AR(1): KL = sum over dims of 1/2 [tr(P^-1 Q) - T + log det P - log det Q]."""
    model = with_guide_at_prior(build())
    batch = Trials(data()).batch()
    alpha = float(model.input_prior.alpha()[0].detach())
    variance = float(model.input_prior.log_nvar.exp()[0].detach())
    lags = np.abs(np.subtract.outer(np.arange(NUM_BINS), np.arange(NUM_BINS)))
    prior = variance / (1 - alpha**2) * alpha**lags
    guide = np.eye(NUM_BINS) * variance / (1 - alpha**2)
    exact = 0.5 * (
        np.trace(np.linalg.solve(prior, guide))
        - NUM_BINS
        + np.linalg.slogdet(prior)[1]
        - np.linalg.slogdet(guide)[1]
    )
    loss = ELBO()(model, model.guide)
    with torch.no_grad():
        draws = np.array([float(loss.terms(batch).kl["u"]) for _ in range(400)])
    error = draws.std(ddof=1) / math.sqrt(len(draws))
    assert abs(draws.mean() - 2 * NUM_TRIALS * exact) < 4 * error


# --------------------------------------------------------------- density of the inferred inputs


@pytest.mark.parametrize("forecast", [0, 3])
@pytest.mark.parametrize("prior", ["ar1", "white", "student_t"])
def test_density_of_a_draw_equals_the_teacher_forced_density(prior, forecast):
    model = build(data(num_inputs=2), input_prior=prior, dropout=0.5).train()
    batch = Trials(data(num_inputs=2)).batch()
    if forecast:
        batch = Forecast(forecast)(batch)
    path, _ = controller_path(model, batch, num_particles=3)
    u = path.rsample()
    kept = path.log_prob_steps(u)
    forced = path.log_prob_steps(u.clone())
    torch.testing.assert_close(kept, forced, rtol=1e-4, atol=1e-4)
    assert kept.shape == (3, NUM_TRIALS, NUM_BINS)


def test_density_is_that_of_the_transformed_noise():
    """log q(u) = log N(eps) - log|det du/deps|, the determinant taken from the dense Jacobian."""
    model = build().double()
    batch = Trials(data()).batch(torch.tensor([0]))
    batch = batch.replace(
        seen=batch.seen.double(), x=batch.x.double(), inputs=batch.inputs.double()
    )
    seen = batch.seen
    g0 = model.posterior_g0(seen).mean
    size = NUM_BINS * 2

    def roll(noise):
        path = model.posterior_u(seen, g0, batch)
        original, torch.randn = torch.randn, lambda *_, **__: noise.view(NUM_BINS, 1, 2)
        try:
            return path.rsample().flatten()
        finally:
            torch.randn = original

    noise = torch.randn(size, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(roll, noise)
    u = roll(noise).view(1, NUM_BINS, 2)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - jacobian.slogdet()[1]
    actual = model.posterior_u(seen, g0, batch).log_prob(u)
    torch.testing.assert_close(actual, expected[None], rtol=1e-9, atol=1e-9)


def test_inputs_depend_on_the_path_before_them():
    """q(u) is autoregressive: another first input changes the controller's later outputs."""
    model = build()
    path, _ = controller_path(model, Trials(data()).batch())
    u = path.rsample()
    other = u.clone()
    other[..., 0, :] += 5.0
    change = path.log_prob_steps(other) - path.log_prob_steps(u.clone())
    assert (change[..., 1:].abs() > 1e-6).any()


def test_inputs_cannot_copy_their_own_bin():
    """With a lag of 1, the mean of u_t depends on x_t only through the path of u."""
    model = build(lag=1)
    batch = Trials(data()).batch()
    bin_ = 6
    changed = batch.seen.clone()
    changed[:, bin_] += 3.0
    one = model.posterior_u(batch.seen, model.g0_mean.expand(NUM_TRIALS, -1), batch)
    two = model.posterior_u(changed, model.g0_mean.expand(NUM_TRIALS, -1), batch)
    dim = SMALL["controller_encoder_dim"]
    # At bin t the controller reads forward states of t-1, backward states of t+1.
    torch.testing.assert_close(one.encoded[:, bin_], two.encoded[:, bin_])
    assert (one.encoded[:, bin_ + 1, :dim] != two.encoded[:, bin_ + 1, :dim]).any()
    assert (one.encoded[:, bin_ - 1, dim:] != two.encoded[:, bin_ - 1, dim:]).any()


# --------------------------------------------------------------- cached rollouts


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("forecast", [0, 3])
def test_cached_factors_equal_a_new_rollout(num_particles, forecast):
    model = build(data(num_inputs=1))
    batch = Trials(data(num_inputs=1)).batch()
    if forecast:
        batch = Forecast(forecast)(batch)
    guide, kept = paired_traces(model, model.guide, batch, num_particles)
    draws = {name: guide.nodes[name]["value"].clone() for name in ("g0", "u")}
    fresh = poutine.trace(poutine.condition(model, draws)).get_trace(batch)
    torch.testing.assert_close(
        fresh.nodes["factors"]["value"], kept.nodes["factors"]["value"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "changed", ["generator.weight_hh_l0", "generator_start.bias", "factor_weight"]
)
def test_cached_factors_are_used_once_and_not_after_a_change_of_weights(monkeypatch, changed):
    model = build()
    batch = Trials(data()).batch()
    rolls = []
    import pyrodyn.models.lfads as module

    original = module.roll
    monkeypatch.setattr(module, "roll", lambda *args: rolls.append(1) or original(*args))
    path, g0 = controller_path(model, batch)
    u = path.rsample()
    rolls.clear()
    model.generate_factors(g0, u, batch.inputs)
    assert not rolls
    model.generate_factors(g0, u, batch.inputs)
    assert len(rolls) == 1
    u = path.rsample()
    with torch.no_grad():
        model.get_parameter(changed).mul_(0.5)
    rolls.clear()
    model.generate_factors(path.g0, u, batch.inputs)
    assert len(rolls) == 1


def test_cached_factors_are_not_used_for_other_inputs():
    driven = data(num_inputs=2)
    model, batch = build(driven), Trials(driven).batch()
    path, g0 = controller_path(model, batch)
    u = path.rsample()
    quiet = model.generate_factors(g0, u, torch.zeros_like(batch.inputs))
    torch.testing.assert_close(quiet, model.factors(model.generate(g0, u, 0 * batch.inputs)))
    assert (quiet - model.factors(model.generate(g0, u, batch.inputs))).abs().max() > 1e-3


# --------------------------------------------------------------- the proposal


class Pinned(Proposal):
    """A proposal of inferred inputs near a learned point, independent of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.point = torch.nn.Parameter(torch.tensor([2.0, -1.0]))

    def encode(self, model, batch):
        return None

    def propose(self, prior, memory, encoding, t, is_first):
        return Normal(self.point, 0.01 * torch.ones(2)).to_event(1)


def test_guide_and_predictions_draw_from_the_proposal_of_the_model():
    model = build()
    model.proposal = Pinned()
    ELBO()(model, model.guide)(Trials(data()).batch()).backward()
    assert (model.proposal.point.grad.abs() > 0).all()
    found = predict(model, data(), num_draws=4)
    np.testing.assert_allclose(found["u"] - [2.0, -1.0], 0.0, atol=0.05)


def test_the_guide_draws_all_bins_of_the_default_proposal_in_one_call():
    model, batch = build(), Trials(data()).batch()
    torch.manual_seed(0)
    nodes = poutine.trace(model.guide).get_trace(batch).nodes
    assert isinstance(nodes["u"]["fn"], ControllerPath)
    torch.manual_seed(0)
    g0 = model.posterior_g0(batch.seen).rsample()
    assert torch.equal(nodes["g0"]["value"], g0)
    assert torch.equal(nodes["u"]["value"], model.posterior_u(batch.seen, g0, batch).rsample())


# --------------------------------------------------------------- masks


def test_hidden_entries_do_not_reach_the_guide():
    counts = held_out(data(), neurons=[1, 3], forecast_bins=3)
    model = build(counts, initial_condition_bins=2)
    batch = Trials(counts).batch()
    altered = data(seed=7)["counts"].values
    both = counts.copy()
    values = counts["counts"].values.copy()
    values[:, :, [1, 3]] = altered[:, :, [1, 3]]
    values[:, -3:] = altered[:, -3:]
    both["counts"] = (("trial", "time", "neuron"), values)
    other = Trials(both).batch()
    seen, seen_other = (b.seen[:, : b.horizon] for b in (batch, other))
    g0, g0_other = (model.posterior_g0(s).mean for s in (seen, seen_other))
    torch.testing.assert_close(g0, g0_other, rtol=0, atol=0)
    paths = [model.posterior_u(s, g0, b) for s, b in ((seen, batch), (seen_other, other))]
    torch.testing.assert_close(paths[0].encoded, paths[1].encoded, rtol=0, atol=0)


def test_all_masks_together_score_the_right_entries():
    """Held-out neurons, forecast bins, unequal trials and an initial-condition window, together."""
    lengths = np.array([12, 9, 12, 7, 12, 12])
    valid = np.arange(NUM_BINS) < lengths[:, None]
    counts = recording(
        counts=np.where(valid[..., None], data()["counts"].values, 0), bin_width=0.01, valid=valid
    )
    counts = held_out(counts, neurons=[0], forecast_bins=2)
    model = build(counts, initial_condition_bins=3)
    assert model.first_bin == 3
    batch = Trials(counts).batch()
    dropped = CoordinatedDropout(0.4)(batch)
    trace = poutine.trace(poutine.condition(model, _latents(model, batch))).get_trace(dropped)
    rates = trace.nodes["rates"]["value"]
    assert rates.shape == (NUM_TRIALS, NUM_BINS - 3, NUM_NEURONS)
    trace.compute_log_prob()
    poisson = torch.distributions.Poisson(rates)
    expected = (poisson.log_prob(batch.x[:, 3:]) * dropped.scored[:, 3:]).sum((1, 2)) / 0.4
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected, rtol=1e-4, atol=1e-4)
    assert not (dropped.scored & dropped.visible).any()
    assert not dropped.scored[~torch.as_tensor(valid)].any()
    assert not dropped.seen[:, :, 0].any()
    assert not dropped.seen[:, batch.horizon :].any()


def _latents(model, batch):
    num_bins = batch.num_bins - model.first_bin
    return {"g0": torch.randn(NUM_TRIALS, 4), "u": torch.randn(NUM_TRIALS, num_bins, 2)}


def test_forecast_inputs_follow_the_prior():
    """In every bin after the horizon, log q(u_t | u_<t) equals log p(u_t | u_<t)."""
    model = build()
    batch = Forecast(4)(Trials(data()).batch())
    path, _ = controller_path(model, batch)
    u = path.rsample()
    difference = path.log_prob_steps(u) - model.input_prior(NUM_BINS).log_prob_steps(u)
    torch.testing.assert_close(difference[..., -4:], torch.zeros_like(difference[..., -4:]))
    assert (difference[..., :-4].abs() > 1e-3).any()


def test_neurons_held_out_by_a_transform_or_by_the_recording_are_the_same():
    model = build()
    marked = Trials(held_out(data(), neurons=[2])).batch()
    transformed = HoldOutNeurons([2])(Trials(data()).batch())
    torch.testing.assert_close(marked.seen, transformed.seen)
    torch.testing.assert_close(
        model.posterior_g0(marked.seen).mean, model.posterior_g0(transformed.seen).mean
    )


# --------------------------------------------------------------- parameters, bounds and refusals


def test_recurrent_precision_is_a_gaussian_prior_counted_once():
    model = build(recurrent_precision=2.0)
    plain = build()
    plain.load_state_dict(model.state_dict())
    weights = [model.generator.weight_hh_l0, model.controller.weight_hh_l0]
    expected = sum(-(weight.square().sum()) for weight in weights)  # -(2/2) |W|^2
    for positions in (None, torch.tensor([0, 1])):
        batch = Trials(data()).batch(positions)
        values = []
        for each in (model, plain):
            torch.manual_seed(3)
            values.append(ELBO()(each, each.guide).terms(batch).log_likelihood)
        torch.testing.assert_close(values[0] - values[1], expected, rtol=1e-4, atol=1e-3)


def test_generator_states_stay_within_the_clip():
    model = build(state_clip=1.5)
    g0 = 100 * torch.randn(NUM_TRIALS, 4)
    u = 10 * torch.randn(NUM_TRIALS, NUM_BINS, 2)
    states = model.generate(g0, u, torch.zeros(NUM_TRIALS, NUM_BINS, 0))
    assert float(model.first_generator_state(g0).detach().abs().max()) == 1.5
    assert float(states.detach().abs().max()) <= 1.5


def test_readout_starts_at_the_mean_count():
    counts = data()
    model = build(counts)
    with torch.no_grad():
        model.readout.weight.zero_()
        trace = poutine.trace(model).get_trace(Trials(counts).batch())
    means = torch.as_tensor(counts["counts"].mean(("trial", "time")).values, dtype=torch.float32)
    torch.testing.assert_close(
        trace.nodes["rates"]["value"].mean((0, 1)), means, rtol=1e-5, atol=1e-5
    )


def test_factor_rows_have_unit_length():
    torch.testing.assert_close(build().factor_matrix().norm(dim=-1), torch.ones(3))


def test_elbo_lies_below_the_evidence():
    """The evidence is estimated by importance sampling with 20 000 draws of the guide."""
    model = build(initial_condition_bins=0)
    batch = Trials(data()).batch(slice(0, 3)).replace(weight=1.0)
    with torch.no_grad():
        guide, replayed = paired_traces(model, model.guide, batch, 20_000)
        guide.compute_log_prob()
        replayed.compute_log_prob()
        log_weights = sum(replayed.nodes[name]["log_prob"] for name in ("g0", "u", "x")) - sum(
            guide.nodes[name]["log_prob"] for name in ("g0", "u")
        )
        evidence = (log_weights.logsumexp(0) - math.log(20_000)).sum()
        losses = torch.stack([ELBO(64)(model, model.guide)(batch) for _ in range(20)])
    error = losses.std() / math.sqrt(len(losses))
    assert -losses.mean() < evidence + 4 * error
    torch.testing.assert_close(-losses.mean(), log_weights.mean(0).sum(), rtol=1e-2, atol=1.0)


def test_a_model_can_be_copied_after_a_draw():
    model = build()
    model.guide(Trials(data()).batch())
    copied = copy.deepcopy(model)
    assert torch.equal(copied.readout.weight, model.readout.weight)


def test_a_forecast_that_leaves_only_the_initial_condition_window_is_refused():
    model = build(initial_condition_bins=4)
    with pytest.raises(ValueError, match="the encoder may read 4 bins, of which the first 4 only"):
        model.guide(Forecast(NUM_BINS - 4)(Trials(data()).batch()))


def test_inputs_are_inferred_where_there_are_data_enough():
    class OwnGuide(LFADS):
        def guide(self, batch):
            super().guide(batch)

    few, many = (recording(np.ones((trials, 100, 5), int), bin_width=0.01) for trials in (99, 100))
    for kind, data, given, expected in (
        (LFADS, few, {}, 0),
        (LFADS, many, {}, 2),
        (LFADS, many, {"inferred_input_dim": 0}, 0),
        (LFADS, few, {"inferred_input_dim": 1}, 1),
        (OwnGuide, many, {}, 0),
    ):
        model = kind.for_recording(data, factor_dim=2, generator_dim=4, **given)
        assert model.config["inferred_input_dim"] == expected


@pytest.mark.parametrize("size", ["factor_dim", "generator_dim", "controller_dim"])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(ValueError, match=f"{size}=0 must be an integer of at least 1"):
        build(**{size: 0})


def test_unknown_input_prior_is_refused():
    with pytest.raises(ValueError, match=r"input_prior='levy' is unknown; it is 'ar1'"):
        build(input_prior="levy")


@pytest.mark.cuda
def test_cpu_and_cuda_agree_on_the_same_noise():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = build(data(num_inputs=1))
    draws = {"g0": torch.randn(NUM_TRIALS, 4), "u": torch.randn(NUM_TRIALS, NUM_BINS, 2)}

    def log_densities(device):
        moved = {name: value.to(device) for name, value in draws.items()}
        batch = Trials(data(num_inputs=1), device).batch()
        model.to(device)
        densities = []
        for program in (model.model, model.guide):
            trace = poutine.trace(poutine.condition(program, moved)).get_trace(batch)
            trace.compute_log_prob()
            sites = (trace.nodes[name] for name in ("g0", "u", "x") if name in trace.nodes)
            densities += [site["log_prob"].detach().cpu() for site in sites]
        return densities

    for cpu, cuda in zip(log_densities("cpu"), log_densities("cuda"), strict=True):
        torch.testing.assert_close(cpu, cuda, rtol=1e-4, atol=1e-4)


def test_a_lag_longer_than_the_seen_bins_gives_an_encoding_of_zero():
    counts = held_out(data(), forecast_bins=NUM_BINS - 2)
    model = build(counts, lag=5)
    batch = Trials(counts).batch()
    assert not model.encode_inputs(batch.seen[:, : batch.horizon]).any()
    assert ELBO()(model, model.guide)(batch).isfinite()


def test_the_initial_condition_reads_the_first_bin_after_all_others_backward():
    model = build(inferred_input_dim=0)
    dim = model.config["encoder_dim"]
    with torch.no_grad():
        model.g0_posterior.weight[:, :dim] = 0.0  # nothing of the forward direction
    seen = Trials(data()).batch().seen.requires_grad_()
    (gradient,) = torch.autograd.grad(model.posterior_g0(seen).mean.sum(), seen)
    assert (gradient.abs().amax((0, 2)) > 0).all()
