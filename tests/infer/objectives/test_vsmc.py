"""VSMC between the ELBO and the evidence, and its gradients."""

import itertools

import pytest
import torch
from linear_gaussian import (
    NUM_TRIALS,
    batch_of,
    by_recursion,
    copies_of,
    data,
    exact_of,
    linear_network,
)

from pyrodyn.data.batch import Batch
from pyrodyn.infer import ELBO, IWELBO, RWS, VSMC, Schedule, SmoothedScore, fit
from pyrodyn.models import LowRankRNN
from pyrodyn.models.proposals import EncoderFactor


def encoder_network(**options: object) -> tuple[LowRankRNN, Batch]:
    recorded = data()
    model = linear_network(recorded, proposal="encoder", **options)
    assert isinstance(model.proposal, EncoderFactor)
    return model, batch_of(recorded)


@pytest.mark.parametrize("proposal", ["encoder", "optimal", "bootstrap"])
def test_one_particle_is_the_elbo(proposal):
    recorded = data()
    model, batch = linear_network(recorded, proposal=proposal), batch_of(recorded)
    torch.manual_seed(0)
    vsmc = VSMC(1)(model, model.guide)
    path = vsmc(batch)
    torch.manual_seed(0)
    elbo = ELBO()(model, model.guide)(batch)
    torch.testing.assert_close(path, elbo)
    parameters = [p for p in model.parameters() if p.requires_grad]
    one = torch.autograd.grad(path, parameters, materialize_grads=True)
    other = torch.autograd.grad(elbo, parameters, materialize_grads=True)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", ["encoder", "optimal", "bootstrap"])
def test_without_resampling_it_is_the_importance_weighted_bound(proposal):
    recorded = data()
    model, batch = linear_network(recorded, proposal=proposal), batch_of(recorded)
    copies = copies_of(batch, 4000)
    torch.manual_seed(0)
    with torch.no_grad():
        unresampled = VSMC(5, ess_threshold=0.0)(model, model.guide)(copies) / len(copies.x)
        weighted = IWELBO(5)(model, model.guide)(copies) / len(copies.x)
        # By draws: two estimates of the same bound, each a mean over copies.
        error = (
            torch.stack(
                [IWELBO(5)(model, model.guide)(copies_of(batch, 500)) / 1500 for _ in range(20)]
            ).std()
            / (4000 / 500) ** 0.5
        )
    assert abs(unresampled - weighted) < 4 * 2**0.5 * error


@pytest.mark.slow
def test_bounds_are_in_order():
    model, batch = encoder_network()
    exact = exact_of(model, batch)
    truth = sum(by_recursion(exact, trial).log_evidence for trial in range(NUM_TRIALS))

    def bound(objective: ELBO | IWELBO | VSMC) -> tuple[float, float]:
        torch.manual_seed(0)
        with torch.no_grad():
            loss = objective(model, model.guide)
            values = -torch.stack([loss(copies_of(batch, 50)) / 50 for _ in range(40)])
        return float(values.mean()), float(values.std() / len(values) ** 0.5)

    rising = [
        bound(each) for each in (ELBO(), IWELBO(4), IWELBO(32), VSMC(32, resampling="systematic"))
    ]
    for (lower, its_error), (higher, error) in itertools.pairwise(rising):
        assert lower < higher - 4 * (error**2 + its_error**2) ** 0.5
    assert rising[-1][0] < truth + 4 * rising[-1][1]


def gradient_of_mean(
    objective: VSMC, model: LowRankRNN, batch: Batch, parameter: torch.Tensor, repeats: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean gradient of the bound per run of all trials, and its standard error."""
    loss, copies = objective(model, model.guide), copies_of(batch, 500)
    gradients = torch.stack(
        [-torch.autograd.grad(loss(copies) / 500, parameter)[0] for _ in range(repeats)]
    )
    return gradients.mean(0), gradients.std(0) / repeats**0.5


@pytest.mark.slow
def test_the_unbiased_gradient_is_that_of_the_bound():
    recorded = data()
    model, batch = linear_network(recorded, proposal="bootstrap"), batch_of(recorded)
    torch.manual_seed(0)
    objective = VSMC(3, resampling="multinomial", gradient="unbiased")
    gradient, error = gradient_of_mean(objective, model, batch, model.bias, 200)
    biased, error_of_biased = gradient_of_mean(
        VSMC(3, resampling="multinomial"), model, batch, model.bias, 40
    )

    def bound(shift: float) -> torch.Tensor:
        """Values of the bound with the first channel's bias moved."""
        with torch.no_grad():
            model.bias[0] += shift
            loss = objective(model, model.guide)
            values = torch.stack([-loss(copies_of(batch, 2000)) / 2000 for _ in range(40)])
            model.bias[0] -= shift
        return values

    step = 0.2
    up, down = bound(step), bound(-step)
    difference = float((up.mean() - down.mean()) / (2 * step))
    its_error = float((up.var() + down.var()).sqrt() / 40**0.5 / (2 * step))
    tolerance = 4 * (its_error**2 + float(error[0]) ** 2) ** 0.5
    assert abs(float(gradient[0]) - difference) < tolerance
    # The biased gradient differs by more than the tolerance, so a wrong one would be seen.
    apart = abs(float(biased[0]) - difference)
    assert apart > tolerance + 4 * float(error_of_biased[0])


def test_soft_resampling_lets_the_gradient_through():
    model, batch = encoder_network()
    torch.manual_seed(0)
    loss = VSMC(8, resampling="soft")(model, model.guide)(batch)
    gradients = torch.autograd.grad(loss, list(model.proposal.parameters()))
    assert all(torch.isfinite(gradient).all() and (gradient != 0).any() for gradient in gradients)


@pytest.mark.slow
def test_minibatches_stand_for_the_recording():
    model, batch = encoder_network()
    torch.manual_seed(0)
    loss = VSMC(4)(model, model.guide)
    with torch.no_grad():
        whole = torch.stack([loss(copies_of(batch, 300)) / 300 for _ in range(30)])
        parts = []
        for trial in range(NUM_TRIALS):
            part = batch.replace(
                **{
                    name: getattr(batch, name)[trial : trial + 1]
                    for name in ("x", "seen", "visible", "scored", "inputs", "trial")
                },
                weight=float(NUM_TRIALS),
            )
            many = copies_of(part, 300)
            parts.append(torch.stack([loss(many) / 300 for _ in range(30)]))
    minibatches = torch.stack(parts).mean(0)
    error = ((whole.var() + minibatches.var()) / 30).sqrt()
    assert abs(whole.mean() - minibatches.mean()) < 4 * error


@pytest.mark.parametrize(
    ("objective", "num_runs"),
    [
        (ELBO(16), 1),
        (IWELBO(16), 1),
        (IWELBO(16, "dreg"), 2),  # once to draw, once to score with frozen parameters
        (IWELBO(16, "stl"), 2),
        (RWS(16), 1),
        (VSMC(16), 1),
        (SmoothedScore(16), 2),  # once to draw, once to be scored
    ],
    ids=lambda value: getattr(value, "gradient", type(value).__name__),
)
def test_the_encoder_runs_per_batch_and_never_per_particle(monkeypatch, objective, num_runs):
    model, batch = encoder_network()
    rows = []
    encode = EncoderFactor.encode
    monkeypatch.setattr(
        EncoderFactor,
        "encode",
        lambda proposal, model, batch: (
            rows.append(batch.num_trials) or encode(proposal, model, batch)
        ),
    )
    objective(model, model.guide)(batch)
    assert rows == [NUM_TRIALS] * num_runs


@pytest.mark.parametrize(
    ("objective", "proposal"),
    [(VSMC(8), "optimal"), (SmoothedScore(32), "encoder")],
    ids=["VSMC", "SmoothedScore"],
)
def test_it_trains(objective, proposal):
    recorded = data()
    model = linear_network(recorded, proposal=proposal).float()
    before = {name: value.clone() for name, value in model.named_parameters()}
    fitted = fit(
        model,
        recorded,
        objective=objective,
        transforms=[],
        schedule=Schedule(),
        max_epochs=30,
        progress=False,
        accelerator="cpu",
    )
    losses = fitted.history["train_loss"].values
    assert losses[-10:].mean() < losses[:10].mean()
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert model.record["training"]["objective"] == objective.describe()
    assert model.record["training"]["is_bound"]
    assert 0 < fitted.history["ess"].values.min() <= fitted.history["ess"].values.max() <= 1 + 1e-6


def test_settings_that_make_no_bound_are_refused():
    recorded = data()
    model = linear_network(recorded)
    for settings, message in (
        ({"num_particles": 0}, "num_particles=0"),
        ({"num_particles": 4, "resampling": "best"}, "resampling='best' is unknown"),
        ({"num_particles": 4, "gradient": "exact"}, "gradient='exact' is unknown"),
        ({"num_particles": 4, "ess_threshold": 2.0}, r"ess_threshold=2\.0 is a fraction"),
        (
            {
                "num_particles": 4,
                "gradient": "unbiased",
                "resampling": "multinomial",
                "ess_threshold": 0.5,
            },
            "bound is discontinuous",
        ),
        ({"num_particles": 4, "gradient": "unbiased"}, "only for resampling='multinomial'"),
    ):
        with pytest.raises(ValueError, match=message):
            VSMC(**settings)
    for settings, message in (
        ({"num_particles": 0}, "num_particles=0"),
        ({"num_particles": 4, "num_draws": 0}, "num_draws=0"),
        ({"num_particles": 4, "resampling": "best"}, "resampling='best' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            SmoothedScore(**settings)
    for objective in (VSMC(4), SmoothedScore(4)):
        with pytest.raises(ValueError, match=r"set another Proposal as model\.proposal"):
            objective(model, lambda batch: None)
        with pytest.raises(ValueError, match=f"{type(objective).__name__} needs a StateSpaceModel"):
            objective(torch.nn.Linear(1, 1), lambda batch: None)


@pytest.mark.parametrize("objective", [VSMC(3), SmoothedScore(3)], ids=lambda o: type(o).__name__)
def test_the_prior_of_weights_counts_once(make_recording, make_lfads, objective):
    recorded = make_recording()
    found, gradients = [], []
    for precision in (0.0, 50.0):
        model = make_lfads(recorded, inferred_input_dim=1, recurrent_precision=precision)
        batch = model.trials_of(recorded).batch(torch.arange(4))
        torch.manual_seed(0)
        found.append(objective(model, model.guide).evaluate(batch))
        recurrent = (model.generator.weight_hh_l0, model.controller.weight_hh_l0)
        gradients.append(torch.autograd.grad(found[-1].loss, recurrent))
    penalty = 25 * sum(float(weight.detach().square().sum()) for weight in recurrent)
    assert (found[1].loss - found[0].loss).item() == pytest.approx(penalty, rel=1e-4)
    assert [evaluation.factors for evaluation in found] == [(), ("recurrent_weights",)]
    for without, with_prior, weight in zip(*gradients, recurrent, strict=True):
        torch.testing.assert_close(with_prior - without, 50 * weight, rtol=1e-3, atol=1e-2)
