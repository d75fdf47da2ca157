"""Every automatic guide of Pyro: right against exact answers, or refused in one sentence.

The table in the documentation is made here; after a change write it anew by
``PYTHONPATH=tests python tests/infer/guides/test_autoguides.py``.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.infer.autoguide as autoguide
import pytest
import torch
import xarray as xr
from linear_gaussian import batch_of, linear_network, log_evidence
from pyro import poutine
from pyro.infer.autoguide import (
    AutoCallable,
    AutoDelta,
    AutoGuideList,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.infer.autoguide.initialization import init_to_mean, init_to_value
from torch import Tensor

from pyrodyn import fit, predict, to_datatree
from pyrodyn.data import recording
from pyrodyn.data.batch import Batch
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    RWS,
    GuideError,
    Objective,
    Schedule,
    check_guide,
    importance_sample,
)
from pyrodyn.infer.guides.per_trial import cut_from_recording, prepare_guide
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, RnnSAE
from pyrodyn.models.latent_dynamics import LatentDynamics

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}
TABLE = Path(__file__).parents[3] / "docs" / "generated" / "automatic_guides.md"
NUM_TRIALS = 5

Guide = Callable[[Batch], Any]


def of_two(model: LatentDynamics) -> AutoGuideList:
    """A list with one part; a second would need a second latent site."""
    guide = AutoGuideList(model)
    guide.append(AutoNormal(model))
    return guide


ABSTRACT = {"AutoContinuous", "AutoGuide", "AutoMessenger", "AutoNormalizingFlow"}
"""Base classes, and one that asks for a transform of the user's own."""

KINDS: dict[str, Callable[[LatentDynamics], Guide]] = {
    name: kind
    for name, kind in vars(autoguide).items()
    if inspect.isclass(kind) and name.startswith("Auto") and name not in ABSTRACT
} | {"AutoCallable": lambda m: AutoCallable(m, m.guide), "AutoGuideList": of_two}

REFUSED = {
    "AutoDiscreteParallel": "NotImplementedError",
    "AutoGaussian": "RuntimeError",
    "AutoHierarchicalNormalMessenger": "NotImplementedError",
}
"""Guides that no model in double precision can have: for discrete latents, or needing what latent
paths lack; `AutoGaussian` mixes precisions.
"""


def linear_recording(seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return recording(
        signal=rng.normal(size=(NUM_TRIALS, 6, 4)),
        bin_width=0.01,
        inputs=rng.normal(size=(NUM_TRIALS, 6, 1)),
    )


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return linear_recording()


@pytest.fixture(scope="module")
def model(data) -> LowRankRNN:
    """A linear-Gaussian one, its weights frozen, so that a fit trains the guide alone."""
    model = linear_network(data)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def whole(data) -> Batch:
    return batch_of(data)


def exact_posterior(model: LowRankRNN, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean ``(trial, time, dim)`` and precision ``(trial, time dim, time dim)`` of the latent path.

    From the gradient of the log joint density, which is linear in the path.
    """

    def score(path: Tensor) -> Tensor:
        path = path.clone().requires_grad_()
        program = poutine.condition(model, data={"z": path})
        log_joint = poutine.trace(program).get_trace(batch).log_prob_sum()
        return torch.autograd.grad(log_joint, path)[0].flatten(1)

    zero = batch.seen.new_zeros(batch.num_trials, batch.num_bins, model.config["latent_dim"])
    at_zero, units = score(zero), torch.eye(zero[0].numel(), dtype=zero.dtype)
    columns = [at_zero - score((zero.flatten(1) + unit).view_as(zero)) for unit in units]
    precision = torch.stack(columns, -1)
    mean = torch.linalg.solve(precision, at_zero)
    return mean.view_as(zero), precision


def prepared(kind: str, model: LatentDynamics, batch: Batch, batch_size: int = NUM_TRIALS) -> Guide:
    """A guide with its parameters, as `fit` makes them."""
    torch.manual_seed(0)
    guide = KINDS[kind](model)
    prepare_guide(guide, batch, batch_size, sees_others=False)
    return guide


# ------------------------------------------------------------------ exact answers


def set_mean_field(guide: Any, mean: Tensor, precision: Tensor) -> None:
    """Give a guide the best distribution of independent entries."""
    scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt().view_as(mean)
    part = guide[0] if isinstance(guide, AutoGuideList) else guide
    with torch.no_grad():
        if hasattr(part, "locs"):
            part.locs.z, part.scales.z = mean, scale
        else:
            part.loc.data, part.scale = mean.flatten(), scale.flatten()
            if hasattr(part, "cov_factor"):
                part.cov_factor.zero_()


MEAN_FIELD = (
    "AutoNormal", "AutoGuideList", "AutoNormalMessenger", "AutoDiagonalNormal",
    "AutoLowRankMultivariateNormal",
)  # fmt: skip


@pytest.mark.parametrize("kind", MEAN_FIELD)
@pytest.mark.slow
def test_mean_field_guides_reach_the_exact_bound(model, whole, kind):
    mean, precision = exact_posterior(model, whole)
    gap = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum() - precision.logdet().sum())
    bound = log_evidence(model, whole) - float(gap)
    guide = prepared(kind, model, whole)
    set_mean_field(guide, mean, precision)
    torch.manual_seed(1)
    with torch.no_grad():
        draws = np.array([-float(ELBO()(model, guide)(whole)) for _ in range(300)])
    assert gap > 1.0
    assert abs(draws.mean() - bound) < 4 * draws.std() / math.sqrt(len(draws))


def test_a_joint_guide_reaches_the_evidence_by_every_draw(model, whole):
    mean, precision = exact_posterior(model, whole)
    root = torch.linalg.cholesky(torch.block_diag(*torch.linalg.inv(precision)))
    guide = prepared("AutoMultivariateNormal", model, whole)
    with torch.no_grad():
        guide.loc.data, guide.scale = mean.flatten(), root.diagonal()
        guide.scale_tril = root / root.diagonal()[:, None]
        for _ in range(3):
            assert -float(ELBO()(model, guide)(whole)) == pytest.approx(
                log_evidence(model, whole), rel=1e-6
            )


@pytest.mark.parametrize("kind", ["AutoDelta", "AutoLaplaceApproximation"])
def test_point_guides_score_the_joint_density_at_the_mode(model, whole, kind):
    mean, precision = exact_posterior(model, whole)
    log_density = 0.5 * (precision / (2 * math.pi)).logdet().sum()
    guide = prepared(kind, model, whole)
    with torch.no_grad():
        if kind == "AutoDelta":
            guide.z = mean
        else:
            guide.loc.data = mean.flatten()
        found = -float(ELBO()(model, guide)(whole))
    assert found == pytest.approx(log_evidence(model, whole) + float(log_density), rel=1e-6)
    fitted = predict(model, linear_recording(), guide=guide, num_draws=2, batch_size=NUM_TRIALS)
    np.testing.assert_allclose(fitted["z"], mean.numpy(), rtol=1e-4, atol=1e-5)


def test_the_bound_of_minibatches_is_that_of_the_recording(model, whole):
    mean, precision = exact_posterior(model, whole)
    guide = prepared("AutoNormal", model, whole, batch_size=2)
    set_mean_field(guide, mean, precision)
    loss = ELBO(500)(model, guide)
    torch.manual_seed(1)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad(), cut_from_recording(guide):
        parts = [
            whole.take(order[at]).replace(weight=NUM_TRIALS / len(order[at]))
            for at in (slice(0, 2), slice(2, 4), slice(4, 5))
        ]
        sums = [float(loss(part)) * part.num_trials / NUM_TRIALS for part in parts]
        expected = float(loss(whole))
    # Of 500 draws, whose log weights have a standard deviation of some 4 nats in all.
    assert sum(sums) == pytest.approx(expected, abs=4 * 4 * math.sqrt(2 / 500))


@pytest.mark.slow
def test_a_fit_on_minibatches_finds_each_trials_posterior(model, data, whole):
    mean, precision = exact_posterior(model, whole)
    scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt().view_as(mean)
    guide = AutoNormal(model)
    schedule = Schedule(learning_rate=0.3, final_learning_rate=1e-2)
    options = {"objective": ELBO(4), "max_epochs": 130, "schedule": schedule, **QUIET}
    fit(model, data, guide=guide, batch_size=2, **options)
    assert guide.locs.z.shape == mean.shape
    off = ((guide.locs.z - mean) / scale).detach()
    assert off.square().mean().sqrt() < 0.2  # the prior's means are off by 5
    assert (guide.scales.z / scale).log().abs().mean() < 0.2


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("trials", [[3, 0, 4], [3, 0, 4, 1, 2], [1, 1, 3, 0, 4, 2]])
def test_rows_are_found_by_what_was_observed(model, data, whole, trials, batch_size):
    guide = prepared("AutoNormal", model, whole, batch_size=2)
    mean = torch.randn(whole.num_trials, 6, 2, dtype=torch.double)
    with torch.no_grad():
        guide.locs.z, guide.scales.z = mean, torch.full_like(mean, 1e-6)
    shown = data.isel(trial=trials).assign_coords(trial=range(len(trials)))
    found = predict(model, shown, guide=guide, num_draws=2, batch_size=batch_size)
    np.testing.assert_allclose(found["z"], mean[trials].float(), atol=1e-4)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("kind", [AutoNormal, AutoNormalMessenger])
def test_trials_that_a_guide_was_not_fitted_to_are_refused(model, data, kind):
    guide = kind(model)
    fit(model, data, guide=guide, max_epochs=1, **QUIET)
    other = linear_recording(1)
    batch = batch_of(other)
    for ask in (
        lambda: predict(model, other, guide=guide, num_draws=2),
        lambda: to_datatree(model, other, guide=guide, num_draws=2),
        lambda: importance_sample(model, guide, batch, 100),
    ):
        with pytest.raises(GuideError, match="trial 0 is none of the 5 trials that this guide"):
            ask()
    with pytest.raises(GuideError, match="was fitted to 5 other trials"):
        fit(model, other, guide=guide, max_epochs=1, **QUIET)
    with pytest.raises(
        GuideError, match=rf"{kind.__name__} has parameters for the 5 trials .* valid="
    ):
        fit(model, data, other, guide=kind(model), max_epochs=1, **QUIET)


@pytest.mark.parametrize(
    ("kind", "is_bound"),
    [("AutoDelta", False), ("AutoLaplaceApproximation", False), ("AutoNormal", True)],
)
def test_the_objective_of_a_point_estimate_is_recorded_as_no_bound(model, data, kind, is_bound):
    fit(model, data, guide=KINDS[kind](model), max_epochs=1, **QUIET)
    assert model.record["training"]["is_bound"] is is_bound


def test_a_guide_set_up_outside_a_fit_is_read_out_for_its_own_trials(model, data):
    batch = model.trials_of(data).batch()
    by_hand, laplace = AutoNormal(model), prepared("AutoLaplaceApproximation", model, batch)
    by_hand(batch)
    for guide, backwards in (
        (by_hand, "rows"),
        (laplace.laplace_approximation(batch), "needs its 5 trials all at once"),
    ):
        found = predict(model, data, guide=guide, num_draws=50)
        reverse = data.isel(trial=slice(None, None, -1))
        if backwards == "rows":
            again = predict(model, reverse, guide=guide, num_draws=50)["z"][::-1]
            # By 6 standard errors of a difference of two means.
            spread = np.sqrt(12 / 50) * 3 * found["z_sd"]
            assert (abs(again - found["z"]) < spread + 1e-6).all()
        else:
            with pytest.raises(GuideError, match=backwards):
                predict(model, reverse, guide=guide, num_draws=2)
        with pytest.raises(GuideError, match="trial 0 is none of the 5 trials"):
            predict(model, linear_recording(1), guide=guide, num_draws=2)


def test_a_point_estimate_is_not_trained_by_its_density(model, data):
    with pytest.raises(GuideError, match=r"that of AutoDelta does not depend on its parameters"):
        fit(model, data, guide=AutoDelta(model), objective=RWS(4), max_epochs=1, **QUIET)


def test_a_guide_that_was_set_up_for_other_trials_is_refused(model, data, whole):
    guide = AutoNormal(model)
    guide(whole.take(slice(0, 3)))
    with pytest.raises(GuideError, match="AutoNormal cannot be set up for the 5 trials"):
        fit(model, data, guide=guide, batch_size=2, max_epochs=1, **QUIET)


def test_initial_values_that_are_views_are_copied(make_recording, make_lfads):
    train = make_recording(12)
    model = make_lfads(train)
    guide = AutoNormal(model, init_loc_fn=init_to_mean)
    fit(model, train, guide=guide, max_epochs=3, batch_size=5, **QUIET)
    loc = guide.locs.g0.detach()
    assert loc.is_contiguous() and len(loc.unique(dim=0)) == 12


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.zeros(6, 2), r"initial value of site 'z' has the shape \(6, 2\); give it the shape"),
        (torch.zeros(3, 6, 2), "AutoNormal cannot be set up for the 5 trials"),
    ],
)
def test_initial_values_that_are_not_one_per_trial_are_refused(model, data, value, sentence):
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"z": value.double()}))
    with pytest.raises(GuideError, match=sentence):
        fit(model, data, guide=guide, max_epochs=1, **QUIET)


def test_an_automatic_guide_inside_a_function_is_refused(model, data):
    guide = AutoNormal(model)
    for wrapped in (lambda batch: guide(batch), poutine.block(guide, hide=[])):
        with pytest.raises(GuideError, match=r"wraps the automatic guide .* pass the AutoNormal"):
            fit(model, data, guide=wrapped, max_epochs=1, **QUIET)


def test_a_point_estimate_has_no_importance_weights(model, whole):
    guide = prepared("AutoDelta", model, whole)
    with pytest.raises(ValueError, match="all mass of 'z' on one point"):
        importance_sample(model, guide, whole, 40)


# ------------------------------------------------------------------ the table


OBJECTIVES: dict[str, list[Objective]] = {
    "ELBO": [ELBO(), ELBO(3)],
    "IWELBO": [IWELBO(4)],
    "stl, dreg": [IWELBO(4, "stl"), IWELBO(4, "dreg")],
    "RWS": [RWS(4)],
}


def outcome(ask: Callable[[], Any]) -> str:
    """Whether it works, or is refused in a sentence."""
    try:
        ask()
    except (GuideError, ValueError) as error:
        assert len(str(error)) > 30, error
        return "refused"
    return "yes"


def trains(
    model: LatentDynamics, kind: str, whole: Batch, objective: Objective, batch_size: int
) -> None:
    """One step, after the checks that `fit` makes."""
    guide = prepared(kind, model, whole, batch_size)
    batch = whole
    if batch_size < NUM_TRIALS:
        batch = whole.take(torch.tensor([3, 1])).replace(weight=NUM_TRIALS / 2)
    check_guide(model, guide, batch, objective=objective, num_trials=NUM_TRIALS).require()
    with warnings.catch_warnings(), cut_from_recording(guide):
        warnings.simplefilter("ignore")
        loss = objective(model, guide)(batch)
    assert loss.isfinite()
    own = [p for p in getattr(guide, "parameters", list)() if p.requires_grad]
    if own:
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own)


def row(kind: str, model: LatentDynamics, data: xr.Dataset, other: xr.Dataset) -> list[str]:
    """Outcomes of one guide; every objective on minibatches too."""
    whole = model.trials_of(data).batch()
    cells, of_minibatches = [], []
    for objectives in OBJECTIVES.values():
        for batch_size, found in ((NUM_TRIALS, cells), (2, of_minibatches)):
            outcomes = {
                outcome(lambda o=o, size=batch_size: trains(model, kind, whole, o, size))
                for o in objectives
            }
            assert len(outcomes) == 1, (kind, objectives, outcomes)
            found += outcomes
    guide = KINDS[kind](model)
    options = {"max_epochs": 1, **QUIET}
    if outcome(lambda: fit(model, data, guide=guide, **options)) == "refused":
        return [*cells, *["refused"] * 4]
    minibatches = outcome(
        lambda: fit(model, data, guide=KINDS[kind](model), batch_size=2, **options)
    )
    for on_whole, on_part in zip(cells, of_minibatches, strict=True):
        assert on_part == ("yes" if on_whole == minibatches == "yes" else "refused")
    small = {"guide": guide, "num_draws": 2}
    return [
        *cells,
        minibatches,
        outcome(lambda: (predict(model, data, **small), to_datatree(model, data, **small))),
        outcome(lambda: to_datatree(model, data, method="importance", num_particles=40, **small)),
        outcome(lambda: (predict(model, other, **small), to_datatree(model, other, **small))),
    ]


def table(data: xr.Dataset) -> str:
    """Of a linear-Gaussian network."""
    columns = [
        "guide", *OBJECTIVES, "minibatches", "`predict`, `to_datatree`", "`method=\"importance\"`",
        "trials not fitted to",
    ]  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for kind in sorted(KINDS):
        cells = row(kind, linear_network(data).float(), data, linear_recording(1))
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:draws by method='importance' are unreliable")
def test_the_table_in_the_documentation_is_current(data):
    assert TABLE.read_text() == table(data)


SIZES: dict[str, Any] = {"latent_dim": 2, "encoder_dim": 4}
LFADS_SIZES: dict[str, Any] = {
    "factor_dim": 2, "generator_dim": 4, "encoder_dim": 4, "initial_condition_dim": 3,
}  # fmt: skip
INPUTS: dict[str, Any] = {
    "inferred_input_dim": 2, "controller_dim": 4, "controller_encoder_dim": 4,
}  # fmt: skip
MODELS: dict[str, Callable[[xr.Dataset], LatentDynamics]] = {
    "LFADS": lambda data: LFADS.for_recording(data, **LFADS_SIZES),
    "LFADS with inputs": lambda data: LFADS.for_recording(data, **LFADS_SIZES, **INPUTS),
    "NodeSAE": lambda data: NodeSAE.for_recording(data, **SIZES),
    "NodeSAE with noise": lambda data: NodeSAE.for_recording(data, **SIZES, process_noise=True),
    "RnnSAE": lambda data: RnnSAE.for_recording(data, **SIZES),
    "LowRankRNN": lambda data: LowRankRNN.for_recording(data, latent_dim=2, num_units=8),
}


INITIAL_STATES = ("LFADS", "NodeSAE", "RnnSAE")
"""Models whose only latent site is an initial state."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_does_with_every_guide_what_the_table_has(make_recording, name):
    data = make_recording(NUM_TRIALS, 6)
    torch.manual_seed(0)
    model = MODELS[name](data)
    documented = {
        kind.strip("` "): [cell.strip() for cell in cells]
        for _, kind, *cells, _ in (line.split("|") for line in TABLE.read_text().splitlines()[2:])
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are unreliable
        found = {
            kind: row(kind, model, data, make_recording(NUM_TRIALS, 6, seed=1)) for kind in KINDS
        }
    if name in INITIAL_STATES:
        # Needs a prior with a mean, which initial states have and latent paths have not.
        documented["AutoHierarchicalNormalMessenger"] = documented["AutoNormalMessenger"]
    assert found == documented


@pytest.mark.parametrize("kind", REFUSED)
def test_guides_that_no_model_can_have(model, data, kind):
    with pytest.raises(GuideError, match=f"{kind}.*{REFUSED[kind]}"):
        fit(model, data, guide=KINDS[kind](model), max_epochs=1, **QUIET)


if __name__ == "__main__":
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(linear_recording()))
