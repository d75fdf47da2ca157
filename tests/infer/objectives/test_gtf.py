"""Generalised teacher forcing, against free runs, regression, and products of Jacobians."""

import numpy as np
import pytest
import torch
import xarray as xr

import pyrodyn
from pyrodyn.data import HoldOutNeurons, recording
from pyrodyn.infer import ELBO, GTF, AdaptiveForcing
from pyrodyn.infer.objectives.gtf import VALIDATION_ALPHA, forced_run, growth
from pyrodyn.models import LFADS, LinearDynamics, LowRankRNN, ShallowPLRNN

QUIET = {"progress": False, "accelerator": "cpu"}
STEP = ("A", "W1", "W2", "h1", "h2", "C", "loading", "bias", "observation.log_scale")
NOISE = ("start_mean", "raw_start_noise", "raw_noise")


def signals(seed: int = 0, num_bins: int = 7, num_channels: int = 4) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, num_bins, num_channels)).cumsum(1)
    inputs = rng.normal(size=(5, num_bins, 1))
    return recording(signal=x, inputs=inputs, bin_width=0.02)


def random_model(data: xr.Dataset, kind: type = ShallowPLRNN, **options: object):
    sizes = {"latent_dim": 2} if kind is LinearDynamics else {"latent_dim": 2, "num_units": 6}
    model = kind.for_recording(data, seed=0, **{**sizes, **options}).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def stepped(model: ShallowPLRNN, z: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    currents = z @ model.W2.mT
    rates = (currents + model.h2).relu() - currents.relu()
    return model.A * z + rates @ model.W1.mT + model.h1 + i @ model.C.mT


def projected(model: ShallowPLRNN, x: torch.Tensor) -> torch.Tensor:
    """Least squares, by the normal equations."""
    part = model.observation.gaussian_part()
    C, d = part.unit[:, None] * model.loading, part.offset + part.unit * model.bias
    return torch.linalg.solve(C.mT @ C, ((x - d) @ C)[..., None])[..., 0]


def log_density(model: ShallowPLRNN, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    part = model.observation.gaussian_part()
    mean = part.offset + part.unit * (z @ model.loading.mT + model.bias)
    return torch.distributions.Normal(mean, part.scale).log_prob(x)


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if name in STEP}
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def assert_same_loss(model, batch, objective: GTF, wanted: torch.Tensor) -> None:
    """Equal values, and equal gradients of everything but the noise."""
    found = objective(model, model.guide)(batch)
    torch.testing.assert_close(found, wanted)
    expected = gradients(model, wanted)
    assert len(expected) == len(STEP)
    for name, gradient in gradients(model, found).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_loss_is_that_of_the_equations(alpha):
    """With alpha = 0 it is the loss of a free run from the first bin."""
    data = signals()
    model = random_model(data)
    batch = model.trials_of(data).batch(torch.tensor([0, 3]))
    z, terms = projected(model, batch.x[:, 0]), []
    for t in range(1, 7):
        z = stepped(model, z, batch.inputs[:, t])
        terms.append(log_density(model, z, batch.x[:, t]).sum())
        z = (1 - alpha) * z + alpha * projected(model, batch.x[:, t])
    assert_same_loss(model, batch, GTF(alpha), -2.5 * torch.stack(terms).sum())


def test_with_full_forcing_it_is_regression_on_the_previous_bin():
    data = signals()
    model = random_model(data)
    batch = model.trials_of(data).batch()
    before = projected(model, batch.x[:, :-1])
    predicted = stepped(model, before, batch.inputs[:, 1:])
    assert_same_loss(model, batch, GTF(1.0), -log_density(model, predicted, batch.x[:, 1:]).sum())


def test_noise_is_that_of_the_residuals_and_reaches_no_other_parameter():
    data = signals()
    model = random_model(data)
    batch = model.trials_of(data).batch()
    inferred = projected(model, batch.x)
    residual = inferred[:, 1:] - stepped(model, inferred[:, :-1], batch.inputs[:, 1:])
    sd = model.raw_noise.exp() + 1e-4
    start_sd = model.raw_start_noise.exp() + 1e-4
    later = torch.distributions.Normal(0.0, sd).log_prob(residual.detach()).sum()
    first = torch.distributions.Normal(model.start_mean, start_sd)
    wanted = -(later + first.log_prob(inferred[:, 0].detach()).sum())
    noise = [getattr(model, name) for name in NOISE]
    expected = torch.autograd.grad(wanted, noise)
    found = torch.autograd.grad(GTF(1.0)(model, model.guide)(batch), noise)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ShallowPLRNN, {}),
        (LowRankRNN, {"filters_inputs": True, "activation": "tanh"}),
        (LinearDynamics, {}),
    ],
)
def test_adaptive_forcing_follows_the_product_of_jacobians(kind, options):
    data = signals()
    model = random_model(data, kind, **options)
    with torch.no_grad():
        for name in ("A", "n"):
            if hasattr(model, name):
                getattr(model, name).mul_(2.0)
    batch = model.trials_of(data).batch()
    loss = GTF(AdaptiveForcing(every=2, gamma=0.9))(model, model.guide)
    assert float(loss.alpha) == 1.0
    first = loss.evaluate(batch, 0)
    # Forced in full, the states are those of the data.
    emission = model.linear_emission(batch)
    with torch.no_grad():
        inferred = (batch.x - emission.offset) @ torch.linalg.pinv(emission.matrix).mT
        states = model.states(None, inferred, batch.inputs)
    norms = []
    for trial in range(5):
        product = torch.eye(2, dtype=torch.double)
        for t in range(6):
            state = type(states)(*(field[trial, t] for field in states))

            def moved(z, state=state, i=batch.inputs[trial, t + 1]):
                return model.transition(state._replace(z=z), i).mean

            product = torch.autograd.functional.jacobian(moved, inferred[trial, t]) @ product
        norms.append(float(torch.linalg.svdvals(product)[0]) ** (1 / 6))
    alpha = 0.9 + 0.1 * max(0.0, 1 - 1 / max(norms))
    assert max(norms) > 1
    assert float(loss.alpha) == pytest.approx(alpha, rel=1e-9)
    assert float(first.logged["alpha"]) / 5 == 1.0
    loss.evaluate(batch, 1)
    assert float(loss.alpha) == pytest.approx(alpha, rel=1e-9)  # every second step
    with torch.no_grad():
        loss.alpha.fill_(0.01)
    run = forced_run(model, batch, emission, loss.alpha)
    wanted = 1 - 1 / growth(model, run.states, batch.inputs).max()
    assert wanted > 0.02
    loss.evaluate(batch, 2)
    torch.testing.assert_close(loss.alpha, wanted)  # at once, as it grows
    constant = GTF(VALIDATION_ALPHA)(model, model.guide)
    assert torch.equal(loss(batch), constant(batch))


def test_the_growth_of_long_products_does_not_overflow():
    data = signals(num_bins=600)
    model = random_model(data).float()
    with torch.no_grad():
        model.W1.zero_()
        model.A.copy_(torch.tensor([1.8, 0.2]))
    loss = GTF(AdaptiveForcing(gamma=0.0))(model, model.guide)
    loss.evaluate(model.trials_of(data).batch(), 0)
    assert float(loss.alpha) == pytest.approx(1 - 1 / 1.8, rel=1e-4)


def test_bins_with_hidden_entries_are_not_forced_and_measured_entries_are_scored():
    data = signals()
    model = random_model(data)
    full = model.trials_of(data).batch()
    visible, scored = full.visible.clone(), full.scored.clone()
    visible[:, 3, 1] = scored[:, 3, 1] = False
    visible[1, 0, 2] = False
    visible[:, 5:] = False  # a forecast
    batch = full.replace(visible=visible, scored=scored, seen=full.x * visible, horizon=5)
    alpha, z = 0.4, projected(model, batch.x[:, 0])
    z = torch.where(torch.arange(5)[:, None] == 1, model.start_mean, z)
    terms = []
    for t in range(1, 7):
        z = stepped(model, z, batch.inputs[:, t])
        terms.append((log_density(model, z, batch.x[:, t]) * scored[:, t]).sum())
        if t not in (3, 5, 6):
            z = (1 - alpha) * z + alpha * projected(model, batch.x[:, t])
    found = GTF(alpha)(model, model.guide)(batch)
    torch.testing.assert_close(found, -torch.stack(terms).sum())


def test_a_fit_recovers_the_map_of_noiseless_data(tmp_path):
    """A rotation without decay, observed with little noise."""
    rng = np.random.default_rng(0)
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    z = [rng.normal(size=(12, 2))]
    for _ in range(9):
        z.append(z[-1] @ turn.T)
    x = np.stack(z, 1) @ rng.normal(size=(2, 4)) + 0.05 * rng.normal(size=(12, 10, 4))
    data = recording(signal=x, bin_width=0.02)
    model = LinearDynamics.for_recording(data, latent_dim=2, seed=0)
    fitted = pyrodyn.fit(
        model, data, data, objective=GTF(), learning_rate=0.05, max_steps=60,
        out=tmp_path / "run", **QUIET,
    )  # fmt: skip
    values = np.linalg.eigvals(fitted.model.A.detach().numpy())
    np.testing.assert_allclose(np.sort_complex(values), np.exp([-0.4j, 0.4j]), atol=0.03)
    alpha = fitted.history["alpha"].values
    assert alpha[0] > 0.999
    assert (np.diff(alpha) <= 0).all() and alpha[-1] < 1
    assert not fitted.record["training"]["is_bound"]
    settings = {"name": "GTF", "alpha": {"every": 5, "gamma": 0.999}}
    assert fitted.record["training"]["objective"] == settings
    loaded = pyrodyn.load(tmp_path / "run" / "model")
    assert torch.equal(loaded.A, fitted.model.A)
    tree = pyrodyn.to_datatree(loaded, data.isel(trial=slice(2)), num_draws=4)
    assert tree.attrs["method"] == "smoother"


def test_a_resumed_fit_goes_on_with_its_alpha(tmp_path):
    data = signals()

    def fit(folder: str, max_epochs: int, **more: object) -> pyrodyn.infer.Fit:
        torch.manual_seed(0)
        model = ShallowPLRNN.for_recording(data, latent_dim=2, num_units=6)
        return pyrodyn.fit(
            model, data, objective=GTF(AdaptiveForcing(1, 0.5)), max_epochs=max_epochs,
            out=tmp_path / folder, **QUIET, **more,
        )  # fmt: skip

    whole = fit("whole", 6)
    fit("parts", 3)
    resumed = fit("parts", 6, resume=True)
    assert whole.history["alpha"][-1] < 0.9
    np.testing.assert_array_equal(resumed.history["alpha"], whole.history["alpha"])


def refused(model, message: str, objective: GTF | None = None, guide: object = None) -> None:
    with pytest.raises(ValueError, match=message):
        (objective or GTF(0.1))(model, guide or model.guide)


def test_what_it_cannot_take_is_refused():
    data = signals()
    model = random_model(data)
    counts = recording(np.ones((3, 5, 4), int), bin_width=0.02)
    refused(ShallowPLRNN.for_recording(counts), "which this ShallowPLRNN does not have: fit counts")
    refused(random_model(data, proposal="encoder"), "encoder of this ShallowPLRNN would not be")
    refused(model, "GTF computes its loss without a guide", guide=lambda batch: None)
    refused(torch.nn.Linear(1, 1), "GTF needs a StateSpaceModel", guide=lambda batch: None)
    with_priors = random_model(data)
    with_priors.set_priors({"W1": torch.distributions.Normal(0.0, 1.0)})
    refused(with_priors, "adaptive forcing follows one set of weights", GTF())
    batch = model.trials_of(data).batch()
    assert torch.isfinite(GTF(0.1)(with_priors, with_priors.guide)(batch))
    hidden = HoldOutNeurons([2])(batch)
    with pytest.raises(ValueError, match="this batch has none: leave CoordinatedDropout"):
        GTF(0.1)(model, model.guide)(hidden)
    lfads = LFADS.for_recording(data, factor_dim=2, generator_dim=4)
    refused(lfads, "encoder of this LFADS would not be trained")
    with pytest.raises(ValueError, match=r"alpha=1\.5 must lie between 0"):
        GTF(1.5)
    with pytest.raises(ValueError, match=r"gamma=1\.0 weights the previous alpha"):
        GTF(AdaptiveForcing(gamma=1.0))
    with pytest.raises(ValueError, match="every"):
        GTF(AdaptiveForcing(every=0))
    assert isinstance(pyrodyn.recommended(model, data).objective, pyrodyn.infer.VSMC)
    assert ELBO().is_bound and not GTF().is_bound
