"""The bound by hand against the same run recorded by autograd."""

import numpy as np
import pytest
import torch

from pyrodyn.data import recording
from pyrodyn.infer import VSMC
from pyrodyn.infer.smc.resampling import RESAMPLING
from pyrodyn.models import LowRankRNN
from pyrodyn.models.state_space import Observed, StateSpaceModel

SHAPE, NUM_PARTICLES = (3, 9, 6), 5

COUNTS = {"observation": "poisson", "proposal": "causal_encoder", "link": "softplus"}
SIGNAL = {"observation": "gaussian", "proposal": "optimal"}
TAKEN = {
    "counts": COUNTS,
    "counts_log_rate": {**COUNTS, "link": "canonical", "noise": "scalar"},
    "counts_of_units": {**COUNTS, "readout": "currents", "proposal": "encoder"},
    "counts_and_inputs": {**COUNTS, "readout": "latents_and_inputs", "filters_inputs": True},
    "clipped": {**COUNTS, "activation": "clipped_relu", "noise": "full"},
    "leaky": {**COUNTS, "activation": "leaky_relu"},
    "hard_tanh": {**COUNTS, "activation": "hard_tanh"},
    "tanh": {**COUNTS, "activation": "tanh", "decay_per_latent": True},
    "signal": {**SIGNAL, "noise": "full"},
    "signal_clipped": {**SIGNAL, "activation": "clipped_relu", "filters_inputs": True},
    "signal_of_units": {**SIGNAL, "readout": "currents"},
}
LEFT = {
    "full_rank": {**COUNTS, "is_full_rank": True},
    "heavy_tails": {**COUNTS, "noise_df": 4.0},
    "rates": {**COUNTS, "readout": "rates"},
    "bootstrap": {**COUNTS, "proposal": "bootstrap"},
    "encoded_signal": {**SIGNAL, "proposal": "encoder"},
}


def systematic(log_weights):
    return RESAMPLING["systematic"](log_weights).ancestors


def some(options: dict, has_inputs: bool = False, is_masked: bool = False):
    rng = np.random.default_rng(0)
    is_signal = options["observation"] == "gaussian"
    x = {"signal": rng.normal(size=SHAPE)} if is_signal else {"counts": rng.poisson(1.0, SHAPE)}
    inputs = {"inputs": rng.normal(size=(*SHAPE[:2], 2))} if has_inputs else {}
    recorded = recording(**x, bin_width=0.01, **inputs)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=6, **options).double()
    batch = model.trials_of(recorded).batch()
    doubled = {name: getattr(batch, name).double() for name in ("x", "seen", "inputs")}
    batch = batch.replace(**doubled)
    if is_masked:
        batch = batch.replace(scored=torch.rand(SHAPE) < 0.6, scored_weight=1.7)
    return model, batch


@pytest.mark.parametrize("has_inputs", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", list(TAKEN))
def test_bound_and_gradients_are_those_of_the_recorded_run(
    name, is_masked, has_inputs, monkeypatch
):
    model, batch = some(TAKEN[name], has_inputs, is_masked and name.startswith(("c", "t")))
    observed = Observed.of(model, batch)
    assert model.fused_vsmc(observed, NUM_PARTICLES, systematic) is not None
    loss = VSMC(NUM_PARTICLES)(model, model.guide)
    found = []
    for is_recorded in (False, True):
        if is_recorded:
            monkeypatch.setattr(LowRankRNN, "fused_vsmc", StateSpaceModel.fused_vsmc)
        torch.manual_seed(1)
        evaluation = loss.evaluate(batch)
        gradients = torch.autograd.grad(
            evaluation.loss, list(model.parameters()), materialize_grads=True
        )
        found.append((evaluation.loss, evaluation.logged["ess"], *gradients))
    for by_hand, recorded in zip(*found, strict=True):
        scale = float(recorded.detach().abs().max()) if recorded.numel() else 1.0
        torch.testing.assert_close(by_hand, recorded, rtol=0, atol=1e-9 * scale + 1e-12)


@pytest.mark.parametrize("name", list(LEFT))
def test_other_models_are_left_to_the_recorded_run(name):
    model, batch = some(LEFT[name])
    observed = Observed.of(model, batch)
    assert model.fused_vsmc(observed, NUM_PARTICLES, systematic) is None


@pytest.mark.parametrize("options", [COUNTS, SIGNAL])
def test_the_way_back_can_be_taken_again(options):
    model, batch = some(options)
    loss = VSMC(NUM_PARTICLES)(model, model.guide)(batch)
    parameters = [model.m, model.n, model.threshold, model.log_rate, model.loading, model.bias]
    one, other = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    for first, again in zip(one, other, strict=True):
        torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_a_second_derivative_is_refused():
    model, batch = some(COUNTS)
    loss = VSMC(NUM_PARTICLES)(model, model.guide)(batch)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(loss, model.m, create_graph=True)
