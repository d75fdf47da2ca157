"""Guides of a user's own under each objective: right, or refused in a sentence.

w_j ~ N(0, 1)                    per entry, one for all trials (where the model has it)
z_n ~ N(0, I)                    per trial
x_n ~ N(A z_n + w, 1)
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import conditional_planar
from pyro.infer import autoguide
from torch import Tensor, nn

from pyrodyn.data.batch import Batch
from pyrodyn.infer import ELBO, IWELBO, RWS, VSMC, Objective, importance_sample
from pyrodyn.infer.traces import joint_sites, not_reparameterised, paired_traces
from pyrodyn.models import LowRankRNN
from pyrodyn.models.state_space import Bootstrap

NUM_TRIALS, NUM_ENTRIES, DIM = 4, 4, 2

WEIGHTED: list[Objective] = [
    IWELBO(3),
    IWELBO(3, "stl"),
    IWELBO(3, "dreg"),
    RWS(3),
]
EVERY: list[Objective] = [ELBO(), ELBO(3), *WEIGHTED]


MANY: list[Any] = [ELBO(), *WEIGHTED, importance_sample]


def label(objective: object) -> str:
    gradient = getattr(objective, "gradient", "")
    return f"{type(objective).__name__}{getattr(objective, 'num_particles', '')}{gradient}"


def batch_of(positions: Tensor | None = None, num_trials: int = NUM_TRIALS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_trials, 1, NUM_ENTRIES, generator=generator, dtype=torch.float64)
    positions = torch.arange(num_trials) if positions is None else positions
    x = x[positions]
    everything = torch.ones_like(x, dtype=torch.bool)
    return Batch(
        x=x,
        seen=x,
        visible=everything,
        scored=everything,
        inputs=x.new_zeros(len(x), 1, 0),
        trial=positions,
        horizon=1,
        weight=num_trials / len(x),
    )


class Linear(nn.Module):
    """The model; ``shared`` is the form of w: not at all, as a vector or in a plate."""

    def __init__(self, shared: str = "none") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (NUM_ENTRIES, DIM)
        self.A = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        self.shared = shared

    def sample_w(self, mean: Tensor, scale: float) -> Tensor | float:
        if self.shared == "none":
            return 0.0
        normal = dist.Normal(mean, scale).expand([NUM_ENTRIES])
        if self.shared == "plate":
            with pyro.plate("entries", NUM_ENTRIES, dim=-1):
                w: Tensor = pyro.sample("w", normal)
            return w.unsqueeze(-2)
        value: Tensor = pyro.sample("w", normal.to_event(1))
        return value

    def forward(self, batch: Batch) -> None:
        w = self.sample_w(self.A.new_zeros(()), 1.0)
        with pyro.plate("trials", batch.num_trials, dim=-1), poutine.scale(scale=batch.weight):
            z = pyro.sample("z", standard_normal(DIM))
            pyro.sample("x", dist.Normal(z @ self.A.mT + w, 1.0).to_event(1), obs=batch.x[:, 0])


def standard_normal(dim: int) -> dist.Independent:
    return dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1)


class Amortised(nn.Module):
    """q(z_n | x_n), and q(w) where the model has it; ``draw`` is how z is drawn."""

    def __init__(self, model: Linear, draw: Callable[..., None] | None = None) -> None:
        super().__init__()
        self.model = [model]  # not a child: its parameters are the model's
        generator = torch.Generator().manual_seed(2)
        shape = (DIM, NUM_ENTRIES)
        self.slope = nn.Parameter(0.3 * torch.randn(shape, generator=generator).double())
        self.log_scale = nn.Parameter(torch.tensor([-0.5, 0.1]).double())
        self.w_mean = nn.Parameter(torch.tensor(0.2).double())
        self.draw = draw

    def forward(self, batch: Batch) -> None:
        self.model[0].sample_w(self.w_mean, 0.4)
        mean, scale = batch.seen[:, 0] @ self.slope.mT, self.log_scale.exp()
        if self.draw is not None:
            self.draw(batch, mean, scale)
            return
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))


def value_and_gradients(objective: Objective, model: Linear, guide: Any, batch: Batch) -> Any:
    torch.manual_seed(3)
    loss = objective(model, guide)(batch)
    leaves = [*model.parameters(), *guide.parameters()]
    return loss, torch.autograd.grad(loss, leaves, materialize_grads=True)


# ------------------------------------------------------------------ plates


@pytest.mark.parametrize("num_trials", [NUM_ENTRIES, 3, 1])
@pytest.mark.parametrize("objective", EVERY, ids=label)
def test_a_plate_of_the_users_own_is_not_taken_for_the_trials(objective, num_trials):
    found = []
    for shared in ("vector", "plate"):
        model = Linear(shared)
        batch = batch_of(num_trials=num_trials)
        found.append(value_and_gradients(objective, model, Amortised(model), batch))
    torch.testing.assert_close(*found)


def test_importance_sample_refuses_what_all_trials_share_however_it_is_written():
    for shared in ("vector", "plate"):
        model = Linear(shared)
        with pytest.raises(ValueError, match="site 'w' is shared by all trials"):
            importance_sample(model, Amortised(model), batch_of(), 50)


def in_plate(name: str, dim: int = -1) -> Callable[..., None]:
    def draw(batch: Batch, mean: Tensor, scale: Tensor) -> None:
        mean = mean if dim == -1 else mean[:, None]
        with pyro.plate(name, batch.num_trials, dim=dim):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    return draw


def without_plate(batch: Batch, mean: Tensor, scale: Tensor) -> None:
    pyro.sample("z", dist.Normal(mean, scale).to_event(1))


def of_other_event_shape(batch: Batch, mean: Tensor, scale: Tensor) -> None:
    with pyro.plate("trials", batch.num_trials, dim=-1):
        pyro.sample("z", dist.Normal(mean[..., None, :], scale).to_event(2))


def jointly(batch: Batch, mean: Tensor, scale: Tensor) -> None:
    pyro.sample("z", dist.Normal(mean, scale).to_event(2))


def of_no_site(batch: Batch, mean: Tensor, scale: Tensor) -> None:
    with pyro.plate("trials", batch.num_trials, dim=-1):
        pyro.sample("z_0", dist.Normal(mean, scale).to_event(1))


def observing(batch: Batch, mean: Tensor, scale: Tensor) -> None:
    with pyro.plate("trials", batch.num_trials, dim=-1):
        pyro.sample("z", dist.Normal(mean, scale).to_event(1))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=batch.seen[:, 0, 0])


@pytest.mark.parametrize(
    ("draw", "sentence", "objectives"),
    [
        (in_plate("stimuli"), "site 'z' lies in the plate 'stimuli', so that trials have no", MANY),
        (of_no_site, "'z_0', which is no site of this model", MANY),
        (observing, "the guide has the site 'x', the model's observations", [ELBO(), RWS(3)]),
        # With particles Pyro's own error comes first.
        (in_plate("trials", dim=-2), "plate 'trials' is at dim -2", [ELBO()]),
        (of_other_event_shape, r"shape \(1, 2\) in the guide and \(2,\) in the model", [ELBO()]),
        (jointly, r"'z' is one joint distribution over all 4 trials", [ELBO(), IWELBO(1)]),
    ],
)
def test_sites_that_do_not_fit_are_named(draw, sentence, objectives):
    model = Linear()
    for objective in objectives:
        with pytest.raises(ValueError, match=sentence):
            run(objective, model, Amortised(model, draw), batch_of())


def run(objective: Any, model: Any, guide: Any, batch: Batch) -> None:
    if objective is importance_sample:
        importance_sample(model, guide, batch, 50)
    else:
        objective(model, guide)(batch)


def test_a_shared_site_drawn_for_every_trial_is_named():
    class Local(Amortised):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("trials", batch.num_trials, dim=-1):
                pyro.sample("w", standard_normal(NUM_ENTRIES))
                pyro.sample("z", standard_normal(DIM))

    model = Linear("vector")
    with pytest.raises(ValueError, match="'w' is drawn for every trial, but in the model all"):
        ELBO()(model, Local(model))(batch_of())


def test_a_model_whose_plate_has_another_name_is_refused():
    def model(batch: Batch) -> None:
        with pyro.plate("stimuli", batch.num_trials, dim=-1):
            z = pyro.sample("z", standard_normal(DIM))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=batch.x[:, 0, 0])

    def guide(batch: Batch) -> None:
        with pyro.plate("stimuli", batch.num_trials, dim=-1):
            pyro.sample("z", standard_normal(DIM))

    with pytest.raises(ValueError, match="observes 'x' outside a plate named 'trials'"):
        IWELBO(2)(model, guide)(batch_of())


def test_a_model_whose_plate_is_at_another_dim_is_refused():
    def program(batch: Batch, is_guide: bool = False) -> None:
        with pyro.plate("trials", batch.num_trials, dim=-2):
            z = pyro.sample("z", dist.Normal(batch.seen.new_zeros(batch.num_trials, 1), 1.0))
            if not is_guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x[:, 0, :1])

    with pytest.raises(ValueError, match="the model's plate 'trials' is at dim -2 of site 'z'"):
        ELBO()(program, lambda batch: program(batch, True))(batch_of())


# ------------------------------------------------------------------ minibatches


class Preset(dist.Normal):
    """A normal whose noise is given."""

    def __init__(self, mean: Tensor, scale: Tensor, noise: Tensor) -> None:
        self.noise = noise
        super().__init__(mean, scale)

    def expand(self, batch_shape: Any, _instance: object = None) -> "Preset":
        return Preset(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise.reshape(*self.batch_shape)


def markov(num_particles: int, has_plate: bool) -> Callable[..., None]:
    """z entry by entry, each given the one before, at fixed noise per trial and particle."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(DIM, num_particles, NUM_TRIALS, generator=generator).double()

    def draw(batch: Batch, mean: Tensor, scale: Tensor) -> None:
        z: list[Tensor] = []
        plate = pyro.plate("trials", batch.num_trials, dim=-1)
        with plate if has_plate else contextlib.nullcontext():
            for i in range(DIM):
                at = mean[..., i] + (0.5 * z[-1] if z else 0.0)
                entry = Preset(at, scale[i].expand(at.shape), noise[i][:, batch.trial])
                z.append(pyro.sample(f"z_{i}", entry, infer={"is_auxiliary": True}))
            pyro.sample("z", dist.Delta(torch.stack(z, -1), event_dim=1))

    return draw


@pytest.mark.parametrize(
    ("objective", "has_plate"),
    [*((each, True) for each in EVERY), (ELBO(), False), (ELBO(3), False)],
    ids=label,
)
def test_auxiliary_sites_count_on_minibatches_as_sites_of_the_model_do(objective, has_plate):
    model = Linear()
    guide = Amortised(model, markov(objective.num_particles, has_plate))
    full = value_and_gradients(objective, model, guide, batch_of())
    pairs = torch.combinations(torch.arange(NUM_TRIALS), 2)
    for size in (pairs, torch.arange(NUM_TRIALS)[:, None]):
        parts = [value_and_gradients(objective, model, guide, batch_of(each)) for each in size]
        torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(), full[0])
        for number, gradient in enumerate(full[1]):
            mean = torch.stack([part[1][number] for part in parts]).mean(0)
            torch.testing.assert_close(mean, gradient)


def test_auxiliary_sites_give_the_bound_of_the_same_guide_without_them():
    model = Linear()
    batch = batch_of(torch.tensor([0, 2]))

    def auxiliary(batch: Batch, mean: Tensor, scale: Tensor) -> None:
        with pyro.plate("trials", batch.num_trials, dim=-1):
            normal = dist.Normal(mean, scale).to_event(1)
            a = pyro.sample("a", normal, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(a, event_dim=1))

    for objective in WEIGHTED:
        found = [
            value_and_gradients(objective, model, Amortised(model, draw), batch)
            for draw in (None, auxiliary)
        ]
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("objective", [IWELBO(1), *EVERY], ids=label)
def test_a_mask_of_the_model_takes_the_density_of_the_guide_out_too(objective):
    """Trials that are masked add a constant: neither their KL nor its gradient."""

    class Masked(Linear):
        def forward(self, batch: Batch) -> None:
            with poutine.mask(mask=batch.trial < 2):
                super().forward(batch)

    model = Masked()
    guide = Amortised(model)
    batch = batch_of()
    masked = value_and_gradients(objective, model, guide, batch)
    torch.manual_seed(3)
    moved = batch.replace(seen=batch.seen + 5.0 * (batch.trial >= 2)[:, None, None])
    torch.testing.assert_close(masked, value_and_gradients(objective, model, guide, moved))


# ------------------------------------------------------------------ joint guides

JOINT = (
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoDiagonalNormal",
    "AutoIAFNormal",
    "AutoStructured",
    "AutoLaplaceApproximation",
)


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def automatic(name: str, model: Linear) -> Any:
    guide = getattr(autoguide, name)(model)
    guide(batch_of())
    return guide.laplace_approximation(batch_of()) if "Laplace" in name else guide


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("shared", ["none", "vector"])
@pytest.mark.parametrize("name", JOINT)
def test_joint_guides_are_refused_where_trials_are_weighed(name, shared):
    model = Linear(shared)
    guide = automatic(name, model)
    for objective in (*WEIGHTED, importance_sample):
        with pytest.raises(
            ValueError, match=r"draws all trials jointly, in '.*' outside the plate"
        ):
            run(objective, model, guide, batch_of())
    traces = paired_traces(model, guide, batch_of(), 1)
    assert joint_sites(*traces)


@pytest.mark.usefixtures("double_by_default")
def test_a_guide_without_the_plate_is_refused_where_trials_are_weighed():
    model = Linear()
    for objective in (*WEIGHTED, importance_sample):
        with pytest.raises(ValueError, match="draws all trials jointly, in 'z' outside the plate"):
            run(objective, model, Amortised(model, without_plate), batch_of())


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_elbo_of_a_guide_without_the_plate_is_that_of_one_with_it(num_particles):
    model = Linear()
    batch = batch_of(torch.tensor([1, 3]))
    found = [
        value_and_gradients(ELBO(num_particles), model, Amortised(model, draw), batch)
        for draw in (None, without_plate)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("shared", ["none", "vector", "plate"])
@pytest.mark.parametrize("objective", EVERY, ids=label)
def test_an_automatic_guide_per_trial_is_accepted(objective, shared):
    model = Linear(shared)
    guide = automatic("AutoNormal", model)
    assert not joint_sites(*paired_traces(model, guide, batch_of(), 1))
    loss, gradients = value_and_gradients(objective, model, guide, batch_of())
    assert loss.isfinite() and all(gradient.any() for gradient in gradients)


@pytest.mark.usefixtures("double_by_default")
def test_a_joint_guide_of_trials_and_what_they_share_has_no_minibatches():
    model = Linear("vector")
    guide = automatic("AutoMultivariateNormal", model)
    assert ELBO()(model, guide)(batch_of()).isfinite()
    with pytest.raises(ValueError, match="train with all trials in one batch"):
        ELBO()(model, guide)(batch_of().replace(weight=2.0))


# ------------------------------------------------------------------ draws and their gradient


class Unreparameterised(dist.Normal):
    has_rsample = False

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError


def unreparameterised(batch: Batch, mean: Tensor, scale: Tensor) -> None:
    with pyro.plate("trials", batch.num_trials, dim=-1):
        pyro.sample("z", Unreparameterised(mean, scale).to_event(1))


@pytest.mark.parametrize("objective", EVERY, ids=label)
def test_draws_without_a_gradient_are_refused_but_by_rws(objective):
    model = Linear()
    guide = Amortised(model, unreparameterised)
    if isinstance(objective, RWS):
        expected = value_and_gradients(objective, model, Amortised(model), batch_of())
        found = value_and_gradients(objective, model, guide, batch_of())
        torch.testing.assert_close(found, expected)
        return
    with pytest.raises(ValueError, match=r"'z' is drawn from Unreparameterised, .* fit by RWS"):
        objective(model, guide)(batch_of())
    with torch.no_grad():  # no gradient is wanted, and the value is right
        torch.manual_seed(0)
        value = objective(model, guide)(batch_of())
        torch.manual_seed(0)
        torch.testing.assert_close(value, objective(model, Amortised(model))(batch_of()))
    assert not_reparameterised(poutine.trace(guide).get_trace(batch_of())) == ["z"]
    guide.requires_grad_(False)
    assert objective(model, guide)(batch_of()).isfinite()  # nothing would need the score


class Jumping(Bootstrap):
    """Proposes the prior, without a gradient."""

    def propose(self, prior: Any, *_: Any) -> Any:
        scale = prior.covariance.factor.diagonal(dim1=-2, dim2=-1)
        return Unreparameterised(prior.mean, scale).to_event(1)


def test_proposals_without_a_gradient_are_refused_but_by_rws(make_recording):
    recorded = make_recording()
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=4)
    model.proposal = Jumping()
    batch = model.trials_of(recorded).batch()
    for objective in (ELBO(), IWELBO(3), VSMC(1), VSMC(3)):
        with pytest.raises(ValueError, match=r"Jumping proposes .* not reparameterised.* RWS"):
            objective(model, model.guide)(batch)
        with torch.no_grad():
            assert objective(model, model.guide)(batch).isfinite()
    assert RWS(3)(model, model.guide)(batch).isfinite()


@pytest.mark.usefixtures("double_by_default")
def test_a_point_mass_has_no_score_to_leave_out():
    model = Linear()
    guide = automatic("AutoDelta", model)
    for gradient in ("stl", "dreg"):
        with pytest.raises(ValueError, match=f"on one point .* gradient='{gradient}'"):
            IWELBO(3, gradient)(model, guide)(batch_of())
    assert IWELBO(3)(model, guide)(batch_of()).isfinite()


class Planar(Amortised):
    """A flow without an inverse."""

    def __init__(self, model: Linear) -> None:
        super().__init__(model)
        self.flow = conditional_planar(DIM, NUM_ENTRIES, hidden_dims=[3]).double()

    def forward(self, batch: Batch) -> None:
        with pyro.plate("trials", batch.num_trials, dim=-1):
            base = standard_normal(DIM).expand([batch.num_trials])
            flow = self.flow.condition(batch.seen[:, 0])
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))


@pytest.mark.parametrize("objective", [ELBO(), *WEIGHTED], ids=label)
def test_a_flow_without_an_inverse_is_refused_where_one_is_needed(objective):
    model = Linear()
    guide = Planar(model)
    if isinstance(objective, ELBO) or getattr(objective, "gradient", "") == "iwae":
        assert objective(model, guide)(batch_of()).isfinite()
    else:
        with pytest.raises(ValueError, match="'z' is a flow that has no inverse"):
            objective(model, guide)(batch_of())
