"""`FlowStart`: against posteriors known by quadrature, and wherever a guide is used."""

import sys
from functools import partial
from math import log

import numpy as np
import pyro
import pytest
import torch
from exact_posteriors import Bow, TwoSides, data, quadrature, standing
from pyro import poutine

import pyrodyn
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    RWS,
    FlowStart,
    Schedule,
    check_guide,
    importance_sample,
)
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, RnnSAE

QUIET = {"progress": False, "accelerator": "cpu"}
LFADS_SIZES = {
    "factor_dim": 3,
    "generator_dim": 7,
    "initial_condition_dim": 4,
    "encoder_dim": 5,
    "controller_encoder_dim": 5,
    "controller_dim": 6,
}
KINDS = {
    "LFADS": (LFADS, LFADS_SIZES),
    "LFADS with inputs": (LFADS, {**LFADS_SIZES, "inferred_input_dim": 1}),
    "NodeSAE": (NodeSAE, {"latent_dim": 3, "encoder_dim": 5}),
    "RnnSAE": (RnnSAE, {"latent_dim": 1, "encoder_dim": 5}),
}


def model_of(kind, recorded):
    torch.manual_seed(0)
    model_class, sizes = KINDS[kind]
    return model_class.for_recording(recorded, **sizes)


def fitted_to(model, recorded, guide, objective, max_epochs):
    torch.manual_seed(1)
    rates = Schedule(learning_rate=1e-2, final_learning_rate=1e-3)
    fitted = pyrodyn.fit(
        model,
        recorded,
        objective=objective,
        guide=guide(model),
        max_epochs=max_epochs,
        schedule=rates,
        **QUIET,
    )
    torch.manual_seed(2)
    return importance_sample(model, fitted.guide, model.trials_of(recorded).batch(), 8000)


def gap_and_error(found, exact):
    """How far the ELBO lies below the evidence, that is KL(q || p), and its standard error."""
    gap = exact.log_evidence - found.log_weights.mean(0)
    return gap, found.log_weights.std(0) / len(found.log_weights) ** 0.5


def check_evidence(found, exact):
    """The evidence by importance weights is that of the quadrature."""
    difference = (found.log_evidence - exact.log_evidence).abs()
    assert (difference < 4 * found.log_evidence_error).all()
    assert (found.smoothed.pareto_k < 0.7).all()


@pytest.mark.slow
def test_both_of_two_modes_are_covered():
    """A Gaussian covers one at best, at a KL of log 2."""
    recorded = data()
    model = standing(recorded, TwoSides())
    exact = quadrature(model, model.trials_of(recorded).batch(), 401)
    small = partial(FlowStart, num_transforms=3, hidden_dim=32)
    found = fitted_to(model, recorded, small, RWS(32), 200)
    gap, error = gap_and_error(found, exact)
    assert (gap + 4 * error < 0.6 * log(2)).all()
    assert (gap > -4 * error).all()
    check_evidence(found, exact)
    z, weights = found.sites["z0"], found.smoothed.log_weights.exp()
    effective = found.effective_sample_size[:, None]
    for power, wanted in ((1, exact.mean), (2, exact.square)):
        moment = torch.einsum("kt,ktd->td", weights, z**power)
        spread = torch.einsum("kt,ktd->td", weights, (z**power - moment) ** 2).sqrt()
        assert ((moment - wanted).abs() < 4 * spread / effective.sqrt()).all()


@pytest.mark.slow
def test_a_curved_posterior_is_followed():
    """The KL of a Gaussian fitted by the same objective is over three times that of the flow."""
    recorded = data(6, 6)
    gaps = {}
    for guide in (lambda model: None, partial(FlowStart, hidden_dim=32)):
        model = standing(recorded, Bow())
        exact = quadrature(model, model.trials_of(recorded).batch(), 161)
        found = fitted_to(model, recorded, guide, RWS(16), 300)
        gap, error = gap_and_error(found, exact)
        gaps[guide] = gap
    check_evidence(found, exact)
    gaussian, flow = gaps.values()
    assert (flow + 4 * error < gaussian / 3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_own_guide_before_training(kind):
    recorded = data()
    model = model_of(kind, recorded).eval()
    batch = model.trials_of(recorded).batch()
    torch.manual_seed(0)
    ours = importance_sample(model, FlowStart(model), batch, 40)
    log_q = ours.log_weights
    again = _weights_of(model, model.guide, ours.sites, batch)
    torch.testing.assert_close(log_q, again, rtol=1e-4, atol=1e-3)


def _weights_of(model, guide, sites, batch):
    """Log weights of given draws under a guide."""
    totals = []
    for program in (model.model, guide):
        particles = pyro.plate("particles", 40, dim=-2)
        given = batch if program is not guide else batch.unobserved()
        with torch.no_grad():
            trace = poutine.trace(poutine.condition(particles(program), sites)).get_trace(given)
        trace.compute_log_prob()
        names = [*sites, "x"] if program is not guide else [*sites]
        totals.append(sum(trace.nodes[name]["log_prob"] for name in names))
    return totals[0] - totals[1]


DREG = IWELBO(4, "dreg")
OBJECTIVES = [ELBO(), ELBO(3), IWELBO(4), IWELBO(4, "stl"), DREG, RWS(4)]


@pytest.mark.parametrize(
    ("kind", "objective"),
    [*(("NodeSAE", each) for each in OBJECTIVES), *((kind, DREG) for kind in [*KINDS][:2])],
    ids=str,
)
def test_every_objective_trains_flow_and_encoder(kind, objective):
    recorded = data()
    model = model_of(kind, recorded)
    guide = FlowStart(model, num_transforms=2, hidden_dim=4)
    report = check_guide(model, guide, model.trials_of(recorded).batch(), objective=objective)
    assert (report.problems, report.warnings) == ((), ())
    before = [p.detach().clone() for p in (*guide.parameters(), *model.parameters())]
    fitted = pyrodyn.fit(
        model, recorded, objective=objective, guide=guide, max_epochs=3, batch_size=2, **QUIET
    )
    after = [*guide.parameters(), *model.parameters()]
    trained = [p.requires_grad and p.numel() > 0 for p in after]
    moved = [not torch.equal(p, b) for p, b in zip(after, before, strict=True)]
    assert moved == trained
    assert np.isfinite(fitted.history["train_loss"]).all()


@pytest.mark.filterwarnings("ignore:draws by method='importance'")
@pytest.mark.parametrize("kind", ["LFADS with inputs", "RnnSAE"])
def test_new_trials_trees_and_files(kind, tmp_path):
    recorded, others = data(), data(3, seed=1)
    model = model_of(kind, recorded)
    fitted = pyrodyn.fit(
        model, recorded, data(2, seed=2), guide=FlowStart(model), max_epochs=2, **QUIET
    )
    found = pyrodyn.predict(fitted, others, num_draws=3)
    tree = pyrodyn.to_datatree(fitted, others, num_draws=4)
    assert tree.attrs["guide"] == "FlowStart"
    assert np.isfinite(tree["sample_stats/log_q"]).all()
    weighted = pyrodyn.to_datatree(
        fitted, others, num_draws=4, method="importance", num_particles=200
    )
    assert np.isfinite(weighted["sample_stats/log_evidence"]).all()
    pyrodyn.save(fitted, tmp_path)
    loaded = pyrodyn.load(tmp_path, guide=FlowStart)
    np.testing.assert_array_equal(
        pyrodyn.predict(loaded, others, num_draws=3)["rates"], found["rates"]
    )


def test_what_has_no_initial_state_is_refused():
    recorded = data()
    for model in (
        NodeSAE.for_recording(recorded, process_noise=True),
        LowRankRNN.for_recording(recorded, latent_dim=1, num_units=2),
    ):
        with pytest.raises(ValueError, match=rf"FlowStart is for .* this {type(model).__name__}"):
            FlowStart(model)
    model = model_of("NodeSAE", recorded)
    for name, least in (("num_transforms", 0), ("hidden_dim", 0), ("num_bins", 1)):
        with pytest.raises(ValueError, match=f"{name}={least}"):
            FlowStart(model, **{name: least})


def test_validation_of_distributions_stays_on(monkeypatch):
    """Importing zuko switches it off for the whole process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    base = torch.distributions.Distribution
    before = {name: vars(base)[name] for name in ("_validate_args", "arg_constraints")}
    assert before["_validate_args"]
    FlowStart(NodeSAE(3))
    assert "zuko" in sys.modules
    assert before == {name: vars(base)[name] for name in before}
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)
