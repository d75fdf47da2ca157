"""Every objective where parameters of the model have priors: the expectation of its bound given the
parameters, less KL(q || p) of these.
"""

import functools
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import batch_of, copies_of, data, linear_network, log_evidence
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import nn
from torch.distributions import kl_divergence

import pyrodyn
from pyrodyn.data import Trials
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    RWS,
    VSMC,
    Kalman,
    SmoothedScore,
    check_guide,
    fisher_scoring,
    importance_sample,
    particle_filter,
    path_pool,
)
from pyrodyn.infer.objectives.objective import Ramp
from pyrodyn.infer.traces import traced
from pyrodyn.models import (
    LFADS,
    LinearDynamics,
    LowRankRNN,
    NodeSAE,
    RnnSAE,
    ShallowPLRNN,
    StateSpaceModel,
)

OBJECTIVES = {
    "elbo": ELBO(),
    "iwae": IWELBO(3),
    "stl": IWELBO(3, "stl"),
    "dreg": IWELBO(3, "dreg"),
    "rws": RWS(3),
    "vsmc": VSMC(3),
    "smoothed_score": SmoothedScore(8),
}
LFADS_SIZES = {
    "factor_dim": 2,
    "generator_dim": 4,
    "initial_condition_dim": 2,
    "encoder_dim": 3,
    "controller_encoder_dim": 3,
    "controller_dim": 3,
    "inferred_input_dim": 1,
}
MODELS = {
    "low_rank": (LowRankRNN, {"latent_dim": 2, "num_units": 4, "encoder_bins": 3}, "loading"),
    "lfads": (LFADS, LFADS_SIZES, "generator.weight_hh_l0"),
    "node_sae": (NodeSAE, {"latent_dim": 2, "field_width": 3, "encoder_dim": 3}, "phi.*"),
    "linear": (LinearDynamics, {"latent_dim": 2, "encoder_bins": 3}, "A"),
    "plrnn": (ShallowPLRNN, {"latent_dim": 2, "num_units": 4, "encoder_bins": 3}, "W?"),
    "rnn_sae": (RnnSAE, {"latent_dim": 2, "encoder_dim": 3, "process_noise": True}, "log_noise"),
}
FIT = {"max_steps": 3, "progress": False, "accelerator": "cpu"}


@pytest.fixture(params=list(OBJECTIVES))
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture(params=list(MODELS))
def kind(request):
    return request.param


def build(kind, recording, scale=1.0):
    kind, sizes, name = MODELS[kind]
    return kind.for_recording(recording, seed=0, **sizes, priors={name: dist.Normal(0.0, scale)})


@pytest.mark.filterwarnings("ignore:SmoothedScore")
def test_every_model_under_every_objective(make_recording, kind, objective):
    """The loss is that of the model at the values drawn, plus the KL, also of a minibatch, whose
    trials are weighted and whose parameters are not.
    """
    recording = make_recording(4, 4)
    model = build(kind, recording).eval()
    batch = Trials(recording).batch(slice(0, 2))
    torch.manual_seed(3)
    evaluation = objective(model, model.guide).evaluate(batch)
    evaluation.loss.backward()
    for name in model.priors.cards:
        assert float(model.get_parameter(name).grad.abs().max()) > 0
    assert all(p.grad.abs().max() > 0 for p in model.priors.log_scale.values())

    torch.manual_seed(3)
    pairs = model.priors.pairs(model)
    with torch.no_grad():
        at = model.at({name: q.sample() for name, (q, _) in pairs.items()})
        given = objective(at, at.guide).evaluate(batch).loss
    kl = sum(kl_divergence(q, p) for q, p in pairs.values())
    torch.testing.assert_close(evaluation.loss, given + kl)
    logged = sum(evaluation.logged[f"kl_{name}"] for name in pairs)
    torch.testing.assert_close(logged, kl)


def test_a_model_of_functions_runs_at_the_values_drawn(make_recording):
    recording = make_recording(4, 4)
    own = nn.ParameterDict({"loading": torch.randn(5, 2), "log_sd": torch.zeros(2)})
    model = StateSpaceModel.of(
        initial=lambda inputs: dist.Normal(torch.zeros(2), 1.0),
        transition=lambda z, inputs: dist.Normal(0.9 * z, own["log_sd"].exp()),
        emission=lambda z: z @ own["loading"].mT,
        latent_dim=2,
        parameters=own,
    )
    model.set_priors({"*.loading": dist.Normal(0.0, 1.0), "*.log_sd": dist.Normal(-1.0, 1.0)})
    fitted = pyrodyn.fit(model, recording, objective=VSMC(3), **FIT)
    tree = pyrodyn.to_datatree(fitted, recording, num_draws=3, method="guide")
    drawn = tree["posterior"]
    (name,) = [name for name in drawn.data_vars if name.endswith("loading")]
    rates = np.exp(np.einsum("cdtbl,cdnl->cdtbn", drawn["z"], drawn[name]))
    np.testing.assert_allclose(drawn["rates"], rates, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:SmoothedScore")
def test_a_narrow_prior_pins_its_parameter(objective):
    """Value and gradient are those of the model with that value, to rounding; the proposal depends
    on the process noise, not on the loading.
    """
    recorded, names = data(), ("loading", "raw_noise")
    batch = batch_of(recorded)
    free, model = (linear_network(recorded, proposal="encoder") for _ in range(2))
    values = {name: free.get_parameter(name).detach().clone() for name in names}
    model.set_priors({name: dist.Normal(value, 1e-9) for name, value in values.items()})
    with torch.no_grad():
        for scale in model.priors.log_scale.values():
            scale.fill_(np.log(1e-9))
    torch.manual_seed(0)
    loss = objective(model, model.guide)(batch)
    loss.backward()
    torch.manual_seed(0)
    for value in values.values():
        torch.randn(value.shape, dtype=value.dtype)  # the parameters' noise
    wanted = objective(free, free.guide)(batch)
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    for name, parameter in free.named_parameters():
        its = model.get_parameter(name).grad
        torch.testing.assert_close(its, parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_draws_of_the_elbo_are_draws_of_parameters_too():
    """Several particles are the mean of as many evaluations."""
    recorded = data()
    batch = batch_of(recorded)
    model = linear_network(recorded)
    model.set_priors({"loading": dist.Normal(0.0, 1.0)})
    for guide in (model.guide, Own(model)):
        torch.manual_seed(0)
        loss = ELBO(3)(model, guide)(batch)
        torch.manual_seed(0)
        one_by_one = [ELBO(1)(model, guide)(batch) for _ in range(3)]
        torch.testing.assert_close(loss, torch.stack(one_by_one).mean())


def test_the_kl_of_a_parameter_has_a_weight():
    recorded = data()
    batch = batch_of(recorded)
    model = linear_network(recorded)
    model.set_priors({"loading": dist.Normal(0.0, 1.0)})
    losses = []
    for ramp in (Ramp(10, final=1.0), Ramp()):
        torch.manual_seed(0)
        objective = ELBO(beta={"loading": ramp, "z": ramp})
        losses.append(objective(model, model.guide).evaluate(batch, 5))
    difference = losses[1].loss - losses[0].loss
    kl = losses[1].logged["kl_loading"] + losses[1].logged["kl_z"]
    torch.testing.assert_close(difference, 0.5 * kl)
    with pytest.raises(ValueError, match="beta names the site 'loadin'"):
        ELBO(beta={"loadin": 0.5})(model, model.guide)(batch)


# ------------------------------------------------------------------ guides of one's own


class Own(nn.Module):
    """The model's own guide, written out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        self.model.sample_parameters().guide(batch)


@pytest.mark.parametrize("objective", [ELBO(), RWS(2), IWELBO(2), IWELBO(2, "dreg")])
def test_a_guide_of_ones_own_may_draw_the_parameters(make_recording, objective):
    recording = make_recording(4, 4)
    model = build("low_rank", recording).eval()
    guide, batch = Own(model), Trials(recording).batch(slice(0, 2))
    assert check_guide(model, guide, batch, objective=objective).problems == ()
    values = []
    for its in (model.guide, guide):
        torch.manual_seed(0)
        values.append(objective(model, its)(batch))
    values[1].backward()
    assert float(model.priors.log_scale["loading"].grad.abs().max()) > 0
    if isinstance(objective, ELBO):
        torch.testing.assert_close(*values)


def test_sticking_the_landing_leaves_parameters_to_the_elbo():
    """With one draw per trial: the gradient of log q(z | theta) is dropped, that of log q(theta) is
    not.
    """
    recorded = data()
    batch = batch_of(recorded)
    model = linear_network(recorded, proposal="encoder")
    model.set_priors({"raw_noise": dist.Normal(0.0, 1.0)})
    objective, found = IWELBO(1, "stl"), []
    for is_own in (True, False):
        torch.manual_seed(0)
        if is_own:
            loss = objective(model, Own(model))(batch)
        else:
            q, p = model.priors.pairs(model)["raw_noise"]
            value = q.rsample()
            at = model.at({"raw_noise": value})
            loss = objective(at, at.guide)(batch) + q.log_prob(value) - p.log_prob(value)
        model.zero_grad()
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_a_guide_without_the_parameters_is_named(make_recording):
    recording = make_recording(4, 4)
    model = build("low_rank", recording)
    guide = model.at().guide
    (problem,) = check_guide(model, guide, Trials(recording).batch()).problems
    assert "does not draw 'loading'" in problem and "model.sample_parameters()" in problem


@pytest.mark.parametrize("objective", [ELBO(2), IWELBO(3), RWS(2)])
def test_automatic_guides_draw_the_parameters(make_recording, objective):
    """The KL of a parameter is not weighted by the trials of a minibatch."""
    recording = make_recording(4, 4)
    model = build("low_rank", recording)
    guide = AutoNormal(model)
    fitted = pyrodyn.fit(model, recording, guide=guide, objective=objective, batch_size=2, **FIT)
    scale = dict(guide.named_parameters())["scales.loading_unconstrained"]
    assert float(scale.grad.abs().max()) > 0
    tree = pyrodyn.to_datatree(fitted, recording, num_draws=3)
    assert tree["posterior"]["loading"].dims == ("chain", "draw", "predictor", "latent")


# ------------------------------------------------------------------ at the location of the guide


def test_filters_pools_and_weights_take_the_location(make_recording):
    recording = make_recording(4, 4)
    batch = Trials(recording).batch()
    model = build("low_rank", recording).eval()
    plain = model.at()
    for run in (
        lambda model: particle_filter(model, batch, 16).log_evidence,
        lambda model: path_pool(model, batch, 2, num_particles=200).log_evidence,
        lambda model: importance_sample(model, model.guide, batch, 100).log_evidence,
    ):
        found = []
        for each in (model, plain):
            torch.manual_seed(0)
            found.append(run(each))
        assert torch.equal(*found)
    with pytest.raises(ValueError, match=r"Fisher scoring maximises.*loading.*model\.at\(\)"):
        fisher_scoring(model, batch)


# ------------------------------------------------------------------ exact evidence


class Quadrature:
    """A linear-Gaussian network whose decay has a prior, which is integrated on a grid."""

    def __init__(self):
        recorded = data()
        self.batch = batch_of(recorded)
        self.model = linear_network(recorded)
        self.prior = dist.Normal(-2.0, 0.5)
        self.model.set_priors({"log_rate": self.prior})
        grid = torch.linspace(-5.0, 1.0, 81, dtype=torch.double)
        self.grid, step = grid.numpy(), float(grid[1] - grid[0])
        self.log_joints = np.array([self.log_joint(value) for value in grid])
        self.log_evidence = float(np.logaddexp.reduce(self.log_joints) + np.log(step))
        weights = np.exp(self.log_joints - self.log_evidence) * step
        self.mean = float((weights * self.grid).sum())
        self.sd = float(np.sqrt((weights * (self.grid - self.mean) ** 2).sum()))

    def log_joint(self, value):
        at = self.model.at({"log_rate": value[None]})
        return float(self.prior.log_prob(value)) + log_evidence(at, self.batch)


@functools.cache
def quadrature():
    return Quadrature()


def test_bounds_are_ordered_below_the_evidence():
    """ELBO < IWELBO < VSMC <= E_q[log p(x | theta)] - KL(q || p) < log p(x), each at the same draws
    of the parameter, whose guide is a normal with the posterior's moments.
    """
    exact, copies = quadrature(), 10
    model = exact.model
    with torch.no_grad():
        model.log_rate.fill_(exact.mean)
        model.priors.log_scale["log_rate"].fill_(np.log(exact.sd))
    q = stats.norm(exact.mean, exact.sd)
    step = exact.grid[1] - exact.grid[0]
    best = (q.pdf(exact.grid) * (exact.log_joints - q.logpdf(exact.grid))).sum() * step
    assert exact.log_evidence - 0.1 < best < exact.log_evidence

    batch = copies_of(exact.batch, copies)
    bounds, given = {"elbo": [], "iwelbo": [], "vsmc": []}, []
    objectives = (ELBO(), IWELBO(4), VSMC(64))
    for seed in range(8):
        for name, objective in zip(bounds, objectives, strict=True):
            torch.manual_seed(seed)
            with torch.no_grad():
                evaluation = objective(model, model.guide).evaluate(batch)
            kl = float(evaluation.logged["kl_log_rate"])
            bounds[name].append((kl - float(evaluation.loss)) / copies)
        torch.manual_seed(seed)
        with torch.no_grad():
            drawn = model.priors.pairs(model)["log_rate"][0].sample()
        torch.manual_seed(seed)
        given.append(log_evidence(model.at({"log_rate": drawn}), exact.batch))
    order = [np.array(values) for values in (*bounds.values(), given)]
    gaps = [tighter - looser for looser, tighter in itertools.pairwise(order)]
    errors = [gap.std() / np.sqrt(len(gap)) for gap in gaps]
    for gap, error in zip(gaps[:2], errors, strict=False):
        assert gap.mean() > 4 * error
    assert -4 * errors[2] < gaps[2].mean() < 0.2  # 64 particles are all but exact here
    exactly = Kalman()(model, model.guide).evaluate(exact.batch)
    assert float(exactly.loss.detach()) == pytest.approx(kl - given[-1], abs=1e-6)
    error = np.std(given) / np.sqrt(len(given))
    assert abs(np.mean(given) - kl - best) < 4 * error


@pytest.mark.slow
def test_nuts_has_the_moments_of_the_posterior():
    exact = quadrature()
    pyro.set_rng_seed(0)
    batch, model = exact.batch, exact.model.eval()
    kernel = NUTS(model.model, max_tree_depth=5)
    mcmc = MCMC(kernel, num_samples=300, warmup_steps=150, disable_progbar=True)
    mcmc.run(batch)
    drawn = mcmc.get_samples()["log_rate"][:, 0].numpy()
    effective = mcmc.diagnostics()["log_rate"]["n_eff"].clamp(max=300).item()
    assert effective > 40
    assert abs(drawn.mean() - exact.mean) < 4 * exact.sd / np.sqrt(effective)
    assert abs(drawn.std() / exact.sd - 1) < 4 / np.sqrt(2 * effective)


@pytest.mark.slow
def test_ranks_of_simulated_parameters_are_uniform():
    """The generative program draws parameters and data jointly: simulation-based calibration, with
    the exact posterior on a grid.
    """
    exact = quadrature()
    model, grid = exact.model, torch.linspace(-4.5, 0.5, 41, dtype=torch.double)
    blank = exact.batch.replace(x=None)
    torch.manual_seed(0)
    ranks = []
    for _ in range(100):
        with torch.no_grad():
            nodes = traced(model.model, blank).nodes
        exact.batch = exact.batch.replace(x=nodes["x"]["value"])
        joint = np.array([exact.log_joint(value) for value in grid])
        cumulative = np.exp(joint - joint.max()).cumsum()
        truth = float(nodes["log_rate"]["value"])
        ranks.append(np.interp(truth, grid.numpy(), cumulative / cumulative[-1]))
    quadrature.cache_clear()
    assert stats.kstest(ranks, "uniform").pvalue > 0.01
