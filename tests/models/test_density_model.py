"""Models of one's own from three functions: the same as the zoo's where these are the zoo's, on the
whole way from fit to tree, and one sentence for every mistake.
"""

import copy

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import (
    Bernoulli,
    Gamma,
    LogNormal,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
)

import pyrodyn
from pyrodyn.data import recording
from pyrodyn.infer import (
    ELBO,
    VSMC,
    SmoothedScore,
    check_guide,
    kalman_filter,
    particle_filter,
    particle_smoother,
)
from pyrodyn.infer.traces import traced
from pyrodyn.models import LinearDynamics, StateSpaceModel
from pyrodyn.models.state_space import Bootstrap

QUIET = {"progress": False, "accelerator": "cpu"}
LATENT_DIM = 2


def signals(num_trials=4, num_bins=6, seed=0):
    rng = np.random.default_rng(seed)
    return recording(
        signal=rng.normal(size=(num_trials, num_bins, 3)),
        inputs=rng.normal(size=(num_trials, num_bins, 1)),
        bin_width=0.01,
    )


def as_functions(linear: LinearDynamics, **options: object) -> StateSpaceModel:
    """The densities of a linear dynamical system, with its own parameters."""

    def of(covariance):
        return covariance.matrix

    def emission(z):
        part = linear.observation.gaussian_part()
        return Normal(part.offset + part.unit * (z @ linear.loading.mT + linear.bias), part.scale)

    return StateSpaceModel.of(
        initial=lambda inputs: MultivariateNormal(linear.start_mean, of(linear.process_noise()[0])),
        transition=lambda z, inputs: MultivariateNormal(
            z @ linear.A.mT + inputs @ linear.B.mT, of(linear.process_noise()[1])
        ),
        emission=emission,
        latent_dim=LATENT_DIM,
        input_dim=1,
        parameters=linear,
        **options,
    )


@pytest.fixture
def linear():
    model = LinearDynamics.for_recording(signals(), latent_dim=LATENT_DIM, seed=0).double()
    torch.manual_seed(0)
    with torch.no_grad():
        model.B += torch.randn_like(model.B)
    return model


@pytest.mark.parametrize("proposal", ["bootstrap", "encoder"])
@torch.no_grad()
def test_filter_and_smoother_are_those_of_the_same_densities(linear, proposal):
    data = signals()
    model = as_functions(linear, proposal=proposal)
    batch = model.trials_of(data).batch()
    assert batch.x.dtype == torch.double
    wanted = kalman_filter(linear, batch)
    torch.manual_seed(0)
    found = particle_filter(model, batch, 4000)
    error = found.log_evidence_variance.sqrt()
    assert (error < 0.5).all()
    difference = found.log_evidence.sum(0) - wanted.log_evidence.sum(0)
    assert (difference.abs() < 4.5 * error + 0.01).all()
    paths = particle_smoother(model, batch, 50, filtered=found).paths
    trace, same = (
        traced(poutine.condition(each.model, {"z": paths[0]}), batch) for each in (model, linear)
    )
    torch.testing.assert_close(trace.log_prob_sum(), same.log_prob_sum())
    state = torch.randn(5, LATENT_DIM).double()
    torch.testing.assert_close(
        model.dynamics().step(state, batch.inputs[:1, 0].expand(5, 1)),
        linear.dynamics().step(state, batch.inputs[:1, 0]),
    )


def scalars(**options: object) -> StateSpaceModel:
    """Independent scalars in place of vectors, and linear predictors of counts."""
    torch.manual_seed(0)
    own = nn.ParameterDict(
        {
            "log_sd": torch.tensor(-1.0),
            "decay": torch.tensor([1.0, 2.0]),
            "loading": 0.5 * torch.randn(4, LATENT_DIM),
        }
    )
    return StateSpaceModel.of(
        initial=lambda inputs: Normal(torch.zeros(LATENT_DIM), 1.0),
        transition=lambda z, inputs: Normal(own["decay"].sigmoid() * z, own["log_sd"].exp()),
        emission=lambda z: z @ own["loading"].mT,
        latent_dim=LATENT_DIM,
        parameters=own,
        **options,
    )


def counts():
    return recording(np.random.default_rng(0).poisson(1.0, (8, 6, 4)), bin_width=0.01)


@pytest.mark.parametrize("proposal", ["bootstrap", "encoder", "causal_encoder"])
def test_from_fit_to_tree_and_back_from_disk(tmp_path, proposal):
    data, model = counts(), scalars(proposal=proposal)
    has_encoder = proposal != "bootstrap"
    assert isinstance(pyrodyn.recommended(model, data).objective, VSMC)
    assert bool(pyrodyn.recommended(model, data).transforms) == has_encoder
    before = {name: p.clone() for name, p in model.named_parameters()}
    fitted = pyrodyn.fit(model, data, max_steps=2, out=tmp_path / "run", **QUIET)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    check_guide(model, model.guide, model.trials_of(data).batch()).require()
    with pytest.warns(UserWarning, match="draws by method='smoother' are unreliable"):
        tree = pyrodyn.to_datatree(fitted, data, num_draws=5, num_particles=5)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "trial", "time", "latent")
    again = pyrodyn.load(tmp_path / "run" / "model", model=scalars(proposal=proposal))
    assert again.record == model.record
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    with pytest.raises(ValueError, match=r"built by StateSpaceModel\.of from functions, which are"):
        pyrodyn.load(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="has model DensityModel, not LinearDynamics"):
        pyrodyn.load(tmp_path / "run" / "model", model=LinearDynamics(4, latent_dim=2))


def test_every_objective_trains_all_parameters():
    data = counts()
    batch = scalars().trials_of(data).batch()
    for objective in (ELBO(3), VSMC(5), SmoothedScore(20)):
        model = scalars(proposal="encoder")
        torch.manual_seed(0)
        objective(model, model.guide)(batch).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_copies_use_their_own_parameters():
    """The functions refer to the module that was passed; a copy of the model must not."""
    model, batch = scalars(), scalars().trials_of(counts()).batch()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.own["loading"].add_(1.0)
    z = torch.zeros(8, 6, LATENT_DIM) + 1.0
    one, two = (
        traced(poutine.condition(each.model, {"z": z}), batch).nodes["rates"]
        for each in (model, other)
    )
    torch.testing.assert_close(two["value"], one["value"] * np.exp(2.0))
    # As under Pyro's engines, which lift parameters to random variables.
    prior = {"own.loading": pyro.distributions.Normal(5.0, 1e-6)}
    lifted = poutine.condition(poutine.lift(model.model, prior=prior), {"z": z})
    trace = poutine.trace(lifted).get_trace(batch)
    rates = trace.nodes["rates"]["value"]
    torch.testing.assert_close(rates, torch.full_like(rates, np.exp(10.0)), rtol=1e-3, atol=0)


def test_the_support_of_an_emission_decides_what_data_it_takes():
    common = {
        "initial": lambda inputs: Normal(torch.zeros(1), 1.0),
        "transition": lambda z, inputs: StudentT(4.0, 0.9 * z, 0.1),
        "latent_dim": 1,
    }
    for emission, name in (
        (lambda z: Poisson(z.exp()), "poisson"),
        (lambda z: Bernoulli(logits=z), "bernoulli"),
        (lambda z: Normal(z, 1.0), "gaussian"),
        (lambda z: Gamma(2.0, z.exp()), "zero_inflated_gamma"),
        (lambda z: LogNormal(z, 1.0), "gamma"),
    ):
        model = StateSpaceModel.of(emission=emission, **common)
        assert model.config["observation"] == name
        assert isinstance(model.proposal, Bootstrap)
        assert not [p for p in model.parameters() if p.requires_grad]
    wrong = recording(np.full((2, 6, 1), 3), bin_width=0.01)
    with pytest.raises(ValueError, match="Bernoulli observations are 0 or 1"):
        StateSpaceModel.of(emission=lambda z: Bernoulli(logits=z), **common).check(wrong)


LOOSE = nn.Parameter(torch.ones(LATENT_DIM))
A = torch.eye(LATENT_DIM)
MISTAKES = {
    "no distribution": (
        {"transition": lambda z, inputs: z},
        r"transition\(z, inputs\) returns a Tensor; it must return a distribution",
    ),
    "wrong event": (
        {"initial": lambda inputs: Normal(torch.zeros(3), 1.0)},
        r"initial\(inputs\) returns a Normal of batch shape \(3,\) and event shape \(\); for"
        r" latent_dim=2",
    ),
    "without a last dim": (
        {"initial": lambda inputs: Normal(0.0, 1.0)},
        r"batch shape \(\) and event shape \(\); for latent_dim=2 it must be .* last dim is 2",
    ),
    "does not broadcast": (
        {"transition": lambda z, inputs: Normal(A @ z, 1.0)},
        r"transition\(z, inputs\) fails for tensors of shape \(2, 3, 2\) and \(2, 3, 0\)",
    ),
    "loses left dims": (
        {"transition": lambda z, inputs: Normal(z.flatten(0, 1), 1.0)},
        r"batch shape \(6,\) where \(2, 3\) is needed: it must keep the left dims",
    ),
    "mixes trials": (
        {"transition": lambda z, inputs: Normal(z.mean((0, 1), keepdim=True) + 0 * z, 1.0)},
        "gives an element of the left dims another density when it is alone",
    ),
    "discrete": (
        {"transition": lambda z, inputs: Poisson(z.exp())},
        "whose draws are not reparameterised .* latents must be continuous",
    ),
    "unknown parameters": (
        {"emission": lambda z: z * LOOSE},
        r"emission\(z\) uses parameters of shape \(2,\) that this model does not have: pass",
    ),
    "no tensor": ({"emission": lambda z: 1.0}, r"emission\(z\) returns float for z of shape"),
    "joint entries": (
        {"emission": lambda z: MultivariateNormal(z, A)},
        "entries must be independent given z",
    ),
    "useless observation": (
        {"emission": lambda z: Poisson(z.exp()), "observation": "poisson"},
        "observation='poisson' would have no effect",
    ),
    "odd predictors": (
        {"emission": lambda z: z[..., :1], "observation": "zero_inflated_poisson"},
        "returns 1 linear predictors; .* takes 2 per neuron",
    ),
    "unknown observation": ({"observation": "normal"}, "observation='normal' is unknown"),
    "unknown proposal": ({"proposal": "optimal"}, "proposal='optimal' is unknown"),
    "encoder of heavy tails": (
        {"proposal": "encoder", "initial": lambda inputs: StudentT(4.0, torch.zeros(2), 1.0)},
        "needs initial and transition to be Normal",
    ),
    "latent_dim": ({"latent_dim": 0}, "latent_dim=0 must be an integer of at least 1"),
}


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_when_the_model_is_built(changes, sentence):
    good = {
        "initial": lambda inputs: Normal(torch.zeros(LATENT_DIM), 1.0),
        "transition": lambda z, inputs: Normal(0.9 * z, 0.1),
        "emission": lambda z: z,
        "latent_dim": LATENT_DIM,
    }
    StateSpaceModel.of(**good)
    with pytest.raises(ValueError, match=sentence):
        StateSpaceModel.of(**{**good, **changes})


def test_it_is_not_built_for_a_recording():
    with pytest.raises(TypeError, match=r"build it by StateSpaceModel\.of"):
        type(scalars()).for_recording(counts())
