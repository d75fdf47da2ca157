"""The ELBO against the exact evidence of a linear-Gaussian model.

    w   ~ N(0, 1)                     one for all trials (where the model has it)
    z_n ~ N(0, I)                     per trial
    x_n ~ N(A z_n + w, s^2 I)         A with one row per entry (bin, neuron)

x_n given w is Gaussian with covariance A A' + s^2 I, and x of all trials jointly Gaussian.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import Tensor, nn

from pyrodyn.data.batch import Batch
from pyrodyn.infer.objectives.elbo import ELBO, ELBOLoss
from pyrodyn.infer.objectives.objective import Ramp

NUM_TRIALS, NUM_BINS, NUM_NEURONS, LATENT_DIM = 12, 3, 2, 2
NOISE = 0.7


class LinearGaussian(nn.Module):
    """The model, its exact posterior as a guide, and its exact evidence."""

    def __init__(self, has_global: bool = False, precision: float = 0.0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        shape = (NUM_BINS * NUM_NEURONS, LATENT_DIM)
        self.A = nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64))
        self.has_global, self.precision = has_global, precision
        x = torch.randn(NUM_TRIALS, NUM_BINS, NUM_NEURONS, generator=rng, dtype=torch.float64)
        everything = torch.ones_like(x, dtype=torch.bool)
        self.batch = Batch(
            x=x,
            seen=x,
            visible=everything,
            scored=everything,
            inputs=x.new_zeros(NUM_TRIALS, NUM_BINS, 0),
            trial=torch.arange(NUM_TRIALS),
            horizon=NUM_BINS,
        )

    def minibatch(self, positions: Tensor) -> Batch:
        batch = self.batch
        parts = {
            name: getattr(batch, name)[positions]
            for name in ("x", "seen", "visible", "scored", "inputs", "trial")
        }
        return dataclasses.replace(batch, **parts, weight=NUM_TRIALS / len(positions))

    def forward(self, batch: Batch) -> None:
        if self.precision:
            pyro.factor("weights", -0.5 * self.precision * self.A.square().sum())
        w = pyro.sample("w", standard_normal(1)) if self.has_global else 0.0
        with pyro.plate("trials", batch.num_trials, dim=-1), poutine.scale(scale=batch.weight):
            z = pyro.sample("z", standard_normal(LATENT_DIM))
            mean = (z @ self.A.t() + w).unflatten(-1, (NUM_BINS, NUM_NEURONS))
            pyro.deterministic("mean", mean, event_dim=2)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(2), obs=batch.x)

    def posterior(
        self,
        batch: Batch,
        scale: float | None = None,
        shift: Tensor | float = 0.0,
        stretch: Tensor | float = 1.0,
    ) -> None:
        """q(w | all x) q(z | w, x), the exact posterior without shift and stretch.

        Neither has a KL to the prior in closed form in torch, so that bounds score the draw.
        """
        A = self.A.detach()
        w = pyro.sample("w", self.global_posterior()) if self.has_global else 0.0
        scale = batch.weight if scale is None else scale
        with pyro.plate("trials", batch.num_trials, dim=-1), poutine.scale(scale=scale):
            covariance = torch.linalg.inv(torch.eye(LATENT_DIM).double() + A.t() @ A / NOISE**2)
            mean = (batch.seen.flatten(1) - w) @ A @ covariance / NOISE**2
            scale_tril = stretch * torch.linalg.cholesky(covariance)
            pyro.sample("z", dist.MultivariateNormal(mean + shift, scale_tril=scale_tril))

    def global_posterior(self) -> dist.MultivariateNormal:
        ones = torch.ones(NUM_BINS * NUM_NEURONS).double()
        weights = torch.linalg.solve(self.marginal_covariance(), ones).detach()
        precision = 1 + NUM_TRIALS * weights.sum()
        mean = (self.batch.x.flatten(1) @ weights).sum() / precision
        return dist.MultivariateNormal(mean[None], precision_matrix=precision[None, None])

    def marginal_covariance(self) -> Tensor:
        """Covariance of a trial's entries given w."""
        return self.A @ self.A.t() + NOISE**2 * torch.eye(NUM_BINS * NUM_NEURONS).double()

    def log_evidence(self) -> Tensor:
        """log p(x), by the joint Gaussian of all entries of all trials, and the factor."""
        covariance = torch.block_diag(*[self.marginal_covariance()] * NUM_TRIALS)
        covariance = covariance + float(self.has_global)
        x = self.batch.x.flatten()
        joint = torch.distributions.MultivariateNormal(torch.zeros_like(x), covariance)
        return joint.log_prob(x) - 0.5 * self.precision * self.A.square().sum()


def standard_normal(dim: int) -> dist.Independent:
    return dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1)


class Wrong(nn.Module):
    """A guide that is not the posterior, with or without a KL in closed form."""

    def __init__(self, of: LinearGaussian, closed_form: bool) -> None:
        super().__init__()
        self.has_global, self.closed_form = of.has_global, closed_form
        self.loc = nn.Parameter(torch.tensor([0.2, -0.4], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor([-0.5, 0.1], dtype=torch.float64))

    def forward(self, batch: Batch) -> None:
        if self.has_global:
            pyro.sample("w", self.normal(self.loc[:1], torch.full((1,), 0.5).double()))
        with pyro.plate("trials", batch.num_trials, dim=-1), poutine.scale(scale=batch.weight):
            pyro.sample("z", self.normal(self.loc, self.log_scale.exp()))

    def normal(self, mean: Tensor, scale: Tensor) -> dist.TorchDistribution:
        if self.closed_form:
            return dist.Normal(mean, scale).to_event(1)
        return dist.MultivariateNormal(mean, scale_tril=scale.diag())


def estimates(loss: Callable[[], Tensor], num: int) -> Tensor:
    torch.manual_seed(0)
    return torch.stack([loss().detach() for _ in range(num)])


def sampled_gradients(loss: ELBOLoss, batch: Batch, leaves: list[Tensor]) -> Tensor:
    """Gradients of 200 estimates, one per row."""
    torch.manual_seed(0)
    gradients = [torch.autograd.grad(loss(batch), leaves) for _ in range(200)]
    return torch.stack([torch.cat([part.flatten() for part in each]) for each in gradients])


def agrees(values: Tensor, expected: Tensor | float) -> bool:
    """Whether the mean over rows lies within 4 standard errors of what it should be."""
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() < 4 * error).all())


@pytest.fixture(params=[False, True], ids=["local", "global"])
def has_global(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def double_by_default() -> Iterator[None]:
    """Pyro's own guides make parameters of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ------------------------------------------------------------------ the exact posterior


@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_exact_posterior_gives_the_evidence_without_variance(has_global, num_particles):
    model = LinearGaussian(has_global, precision=0.3)
    loss = ELBO(num_particles)(model, model.posterior)
    values = estimates(lambda: loss(model.batch), 10)
    torch.testing.assert_close(-values, model.log_evidence().expand(10), rtol=1e-12, atol=0)


def test_at_the_exact_posterior_the_guide_has_no_expected_gradient(has_global):
    model = LinearGaussian(has_global)
    shift = torch.zeros(LATENT_DIM, dtype=torch.float64, requires_grad=True)
    stretch = torch.ones(LATENT_DIM, 1, dtype=torch.float64, requires_grad=True)
    guide = partial(model.posterior, shift=shift, stretch=stretch)
    gradients = sampled_gradients(ELBO()(model, guide), model.batch, [shift, stretch])
    assert (gradients.std(0) > 0).all()
    assert agrees(gradients, 0.0)


def test_at_the_exact_posterior_the_model_has_the_gradient_of_the_evidence(has_global):
    model = LinearGaussian(has_global, precision=0.3)
    gradients = sampled_gradients(ELBO()(model, model.posterior), model.batch, [model.A])
    expected = torch.autograd.grad(model.log_evidence(), model.A)[0]
    assert agrees(-gradients, expected.flatten())


# ------------------------------------------------------------------ guide and prior


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("closed_form", [True, False])
def test_a_guide_that_is_the_prior_has_no_kl(closed_form, num_particles):
    model = LinearGaussian()

    def prior(batch: Batch) -> None:
        with pyro.plate("trials", batch.num_trials, dim=-1):
            independent = standard_normal(LATENT_DIM)
            covariance = torch.eye(LATENT_DIM).double()
            same = dist.MultivariateNormal(torch.zeros(LATENT_DIM).double(), covariance)
            pyro.sample("z", independent if closed_form else same)

    terms = ELBO(num_particles)(model, prior).terms(model.batch)
    assert set(terms.kl) == {"z"}
    assert abs(terms.kl["z"]) < 1e-10


def test_kl_in_closed_form_is_that_of_the_equations(has_global):
    model = LinearGaussian(has_global)
    guide = Wrong(model, closed_form=True)
    kl = ELBO()(model, guide).terms(model.batch).kl
    variance = (2 * guide.log_scale).exp()
    per_trial = 0.5 * (variance + guide.loc**2 - 1 - variance.log()).sum()
    torch.testing.assert_close(kl["z"], NUM_TRIALS * per_trial)
    if has_global:
        expected = 0.5 * (0.25 + guide.loc[0] ** 2 - 1 - math.log(0.25))
        torch.testing.assert_close(kl["w"], expected)
    assert set(kl) == ({"w", "z"} if has_global else {"z"})


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("closed_form", [True, False])
def test_every_estimate_has_the_exact_expectation(has_global, closed_form, num_particles):
    model = LinearGaussian(has_global)
    guide = Wrong(model, closed_form)
    loss = ELBO(num_particles)(model, guide)
    values = estimates(lambda: loss(model.batch), 200)
    # E_q[log p(x | z, w)]: residuals at the mean, plus the variance that q sends into x.
    mean = guide.loc @ model.A.t()
    variance = (2 * guide.log_scale).exp() @ model.A.t().square()
    if has_global:
        mean, variance = mean + guide.loc[0], variance + 0.25
    square = (model.batch.x.flatten(1) - mean).square() + variance
    log_likelihood = -0.5 * (square / NOISE**2 + math.log(2 * math.pi * NOISE**2)).sum()
    kl = sum(ELBO()(model, Wrong(model, closed_form=True)).terms(model.batch).kl.values())
    assert agrees(values, (kl - log_likelihood).detach())


def test_a_delta_guide_brings_its_log_density():
    model = LinearGaussian()
    value = torch.tensor([0.3, -0.2], dtype=torch.float64)

    def guide(batch: Batch) -> None:
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z", dist.Delta(value, torch.tensor(1.5).double(), event_dim=1))

    kl = ELBO()(model, guide).terms(model.batch).kl["z"]
    torch.testing.assert_close(kl, NUM_TRIALS * (1.5 - standard_normal(LATENT_DIM).log_prob(value)))


# ------------------------------------------------------------------ minibatches


@pytest.mark.parametrize("precision", [0.0, 0.3])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_minibatches_average_to_the_full_value(has_global, precision, num_particles):
    model = LinearGaussian(has_global, precision)
    loss = ELBO(num_particles)(model, model.posterior)
    order = torch.randperm(NUM_TRIALS, generator=torch.Generator().manual_seed(1))
    parts = []
    for positions in order.split(4):
        torch.manual_seed(0)  # the same draw of the global site, the first that the guide makes
        parts.append(loss(model.minibatch(positions)))
    torch.testing.assert_close(-torch.stack(parts).mean(), model.log_evidence())
    assert torch.stack(parts).std() > 1


def test_a_guide_need_not_know_how_many_trials_a_batch_stands_for():
    model = LinearGaussian()
    batch = model.minibatch(torch.arange(4))
    scaled = ELBO()(model, model.posterior)
    unscaled = ELBO()(model, partial(model.posterior, scale=1.0))
    torch.testing.assert_close(scaled(batch), unscaled(batch))


# ------------------------------------------------------------------ Pyro's own


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("positions", [range(NUM_TRIALS), range(4)], ids=["full", "minibatch"])
@pytest.mark.parametrize("closed_form", [True, False])
def test_it_is_pyros_estimate_of_the_same_draws(has_global, closed_form, positions, num_particles):
    model = LinearGaussian(has_global, precision=0.3)
    guide = Wrong(model, closed_form)
    batch = model.minibatch(torch.tensor(positions))
    theirs = (TraceMeanField_ELBO if closed_form else Trace_ELBO)(
        num_particles, max_plate_nesting=1, vectorize_particles=True
    )
    torch.manual_seed(0)
    one = ELBO(num_particles)(model, guide)(batch)
    torch.manual_seed(0)
    other = theirs.differentiable_loss(model, guide, batch)
    torch.testing.assert_close(one, other)
    leaves = [model.A, guide.loc, guide.log_scale]
    for a, b in zip(
        torch.autograd.grad(one, leaves), torch.autograd.grad(other, leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_closed_form_and_same_path_estimates_agree_with_pyro_in_expectation(has_global):
    model = LinearGaussian(has_global)
    guide = Wrong(model, closed_form=True)
    loss, theirs = ELBO()(model, guide), Trace_ELBO(max_plate_nesting=1)
    one = estimates(lambda: loss(model.batch), 200)
    other = estimates(lambda: torch.tensor(theirs.loss(model, guide, model.batch)), 200)
    assert agrees(one - other.flip(0), 0.0)


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("auto", [AutoNormal, AutoLowRankMultivariateNormal])
@pytest.mark.usefixtures("double_by_default")
def test_guides_with_auxiliary_draws_give_pyros_estimate(has_global, auto, num_particles):
    model = LinearGaussian(has_global, precision=0.3)
    guide = auto(model)
    guide(model.batch)
    torch.manual_seed(0)
    terms = ELBO(num_particles)(model, guide).terms(model.batch)
    torch.manual_seed(0)
    theirs = Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)
    expected = theirs.loss(model, guide, model.batch)
    assert set(terms.kl) == {"latents"}
    value = (terms.kl["latents"] - terms.log_likelihood).item()
    assert value == pytest.approx(expected)


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("ramp", "step", "weight"),
    [
        (Ramp(), 0, 1.0),
        (Ramp(final=0.3), 0, 0.3),
        (Ramp(10), 0, 0.0),
        (Ramp(10), 3, 0.3),
        (Ramp(10), 10, 1.0),
        (Ramp(10), 500, 1.0),
        (Ramp(10, start=5, final=0.5), 4, 0.0),
        (Ramp(10, start=5, final=0.5), 5, 0.0),
        (Ramp(10, start=5, final=0.5), 9, 0.2),
        (Ramp(10, start=5, final=0.5), 15, 0.5),
        (Ramp(0, start=5), 4, 0.0),
        (Ramp(0, start=5), 5, 1.0),
        (Ramp(10, start=5, final=0.5, initial=2.5), 0, 2.5),
        (Ramp(10, start=5, final=0.5, initial=2.5), 10, 1.5),
        (Ramp(10, start=5, final=0.5, initial=2.5), 15, 0.5),
    ],
)
def test_a_ramp_moves_linearly_to_its_final_weight(ramp, step, weight):
    assert ramp.at(step) == pytest.approx(weight)


def weighted_terms(loss: ELBOLoss, batch: Batch, step: int | None) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    value = loss(batch, step)
    torch.manual_seed(0)
    terms = ELBO()(loss.model, loss.guide).terms(batch)
    return value, terms.log_likelihood, terms.kl["w"], terms.kl["z"]


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 0.0), (4, 0.2), (10, 0.5), (99, 0.5), (None, 0.5)]
)
def test_beta_weights_the_kl_of_its_site_alone(step, weight):
    model = LinearGaussian(has_global=True)
    objective = ELBO(beta={"z": Ramp(10, final=0.5)})
    loss = objective(model, Wrong(model, closed_form=True))
    value, log_likelihood, kl_w, kl_z = weighted_terms(loss, model.batch, step)
    torch.testing.assert_close(value, -log_likelihood + kl_w + weight * kl_z)
    assert objective.final_step == 10
    assert not objective.is_bound


def test_beta_weights_a_factor_by_its_name():
    model = LinearGaussian(has_global=True, precision=0.3)
    loss = ELBO(beta={"weights": 0.25})(model, Wrong(model, closed_form=True))
    value, log_likelihood, kl_w, kl_z = weighted_terms(loss, model.batch, None)
    factor = -0.5 * 0.3 * model.A.square().sum()
    torch.testing.assert_close(value, -(log_likelihood - 0.75 * factor) + kl_w + kl_z)


def test_plain_and_fully_ramped_weights_are_a_bound():
    plain, ramped = ELBO(), ELBO(3, beta={"z": Ramp(10, start=3), "w": Ramp(20)})
    assert (plain.final_step, ramped.final_step) == (0, 20)
    assert plain.is_bound and ramped.is_bound
    assert ELBO(beta={"z": 1.0}).is_bound and not ELBO(beta={"z": 0.9}).is_bound
    assert ramped.describe() == {
        "name": "ELBO",
        "num_particles": 3,
        "beta": {
            "z": {"num_steps": 10, "start": 3, "final": 1.0, "initial": 0.0},
            "w": {"num_steps": 20, "start": 0, "final": 1.0, "initial": 0.0},
        },
    }


@pytest.mark.parametrize("site", ["y", "x", "mean", "trials", "_INPUT"])
def test_a_weight_for_what_has_none_is_refused(site):
    model = LinearGaussian(has_global=True, precision=0.3)
    loss = ELBO(beta={site: 0.5})(model, model.posterior)
    message = f"beta names the site '{site}', .* sites with a weight are w, z, weights"
    with pytest.raises(ValueError, match=message):
        loss(model.batch)


@pytest.mark.usefixtures("double_by_default")
def test_a_weight_per_site_is_refused_where_the_guide_has_no_kl_per_site():
    model = LinearGaussian()
    loss = ELBO(beta={"z": 0.5})(model, AutoNormal(model))
    with pytest.raises(ValueError, match=r"beta names the site 'z', .* with a weight are latents"):
        loss(model.batch)


def test_a_guide_of_another_model_is_refused():
    def guide(batch: Batch) -> None:
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("y", dist.Normal(0.0, 1.0))

    model = LinearGaussian()
    with pytest.raises(ValueError, match="the guide draws 'y', which is no site of this model"):
        ELBO()(model, guide)(model.batch)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ELBO(0), "num_particles=0 must be an integer of at least 1"),
        (lambda: ELBO(beta={"z": -1.0}), r"beta\['z'\] is .*; weights and steps must be >= 0"),
        (lambda: ELBO(beta={"z": Ramp(-5)}), r"beta\['z'\] is .*; weights and steps"),
        (lambda: ELBO(beta={"z": Ramp(5, start=-1)}), r"beta\['z'\] is .*; weights and steps"),
    ],
)
def test_bad_arguments_are_named_in_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
