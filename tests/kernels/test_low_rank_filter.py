"""The fused particle filter against the filter that goes bin by bin."""

import numpy as np
import pytest
import torch

from pyrodyn.data import recording
from pyrodyn.infer import particle_filter
from pyrodyn.models import LowRankRNN
from pyrodyn.models.state_space import Observed, StateSpaceModel

SHAPE, NUM_PARTICLES = (3, 9, 6), 20

COUNTS = {"observation": "poisson", "link": "softplus"}
SIGNAL = {"observation": "gaussian", "noise": "full"}
TAKEN = {
    "counts": {**COUNTS, "proposal": "bootstrap"},
    "counts_of_units": {**COUNTS, "proposal": "bootstrap", "readout": "currents"},
    "encoded_counts": {**COUNTS, "proposal": "encoder", "link": "canonical"},
    "signal": {**SIGNAL, "proposal": "bootstrap", "activation": "clipped_relu"},
    "signal_of_units": {**SIGNAL, "proposal": "bootstrap", "readout": "currents"},
    "optimal": {**SIGNAL, "proposal": "optimal", "filters_inputs": True},
}
LEFT = {
    "full_rank": {**COUNTS, "proposal": "bootstrap", "is_full_rank": True},
    "heavy_tails": {**COUNTS, "proposal": "bootstrap", "noise_df": 4.0},
    "rates": {**SIGNAL, "proposal": "bootstrap", "readout": "rates"},
    "encoded_signal": {**SIGNAL, "proposal": "encoder"},
    "negative_binomial": {"observation": "negative_binomial", "proposal": "bootstrap"},
}


def systematic(log_weights):
    raise AssertionError("a filter that is refused draws nothing")


def some(options: dict, has_inputs: bool = False):
    rng = np.random.default_rng(0)
    is_signal = options["observation"] == "gaussian"
    x = {"signal": rng.normal(size=SHAPE)} if is_signal else {"counts": rng.poisson(1.0, SHAPE)}
    inputs = {"inputs": rng.normal(size=(*SHAPE[:2], 2))} if has_inputs else {}
    recorded = recording(**x, bin_width=0.01, **inputs)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=6, **options).double()
    batch = model.trials_of(recorded).batch()
    doubled = {name: getattr(batch, name).double() for name in ("x", "seen", "inputs")}
    return model, batch.replace(**doubled)


def both(model, batch, monkeypatch, num_particles=NUM_PARTICLES, **options):
    """The result of the kernel, and that of the general algorithm with the same draws."""
    torch.manual_seed(1)
    fused = particle_filter(model, batch, num_particles, **options)
    monkeypatch.setattr(LowRankRNN, "fused_filter", StateSpaceModel.fused_filter)
    torch.manual_seed(1)
    return fused, particle_filter(model, batch, num_particles, **options)


def assert_equal(fused, general):
    for name in general._fields:
        wanted, found = getattr(general, name), getattr(fused, name)
        pairs = zip(wanted, found, strict=True) if name == "states" else [(wanted, found)]
        for one, other in pairs:
            if one is not None:
                torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("has_inputs", [False, True])
@pytest.mark.parametrize("name", list(TAKEN))
def test_the_kernel_filters_as_the_general_algorithm(name, has_inputs, threshold, monkeypatch):
    model, batch = some(TAKEN[name], has_inputs)
    observed = Observed.of(model, batch)
    with torch.no_grad():
        assert model.fused_filter(observed, 2, lambda w: w.argsort(0), threshold) is not None
    fused, general = both(model, batch, monkeypatch, ess_threshold=threshold)
    assert general.resampled.any() == (threshold > 0)
    assert_equal(fused, general)


@pytest.mark.parametrize("resampling", ["stratified", "residual", "multinomial", "soft"])
def test_with_every_scheme_of_resampling(resampling, monkeypatch):
    model, batch = some(TAKEN["counts"])
    assert_equal(*both(model, batch, monkeypatch, resampling=resampling))


@pytest.mark.parametrize("name", ["counts", "optimal"])
def test_one_particle_and_one_bin(name, monkeypatch):
    model, batch = some(TAKEN[name])
    fields = ("x", "seen", "visible", "scored", "inputs")
    first = batch.replace(**{field: getattr(batch, field)[:, :1] for field in fields}, horizon=1)
    for given, num_particles in ((batch, 1), (first, NUM_PARTICLES)):
        with monkeypatch.context() as patch:
            assert_equal(*both(model, given, patch, num_particles))


def test_counts_that_are_not_scored_do_not_count(monkeypatch):
    model, batch = some(TAKEN["counts"])
    masked = batch.replace(scored=torch.rand(SHAPE) < 0.6, scored_weight=1.7)
    assert_equal(*both(model, masked, monkeypatch))


def test_a_trial_without_a_likely_particle_is_named():
    model, batch = some(TAKEN["counts"])
    with torch.no_grad():
        model.bias[0] = torch.nan
    with pytest.raises(ArithmeticError, match="no particle explains bin 0 of trial 0"):
        particle_filter(model, batch, NUM_PARTICLES)


@pytest.mark.parametrize("name", list(LEFT))
def test_other_models_are_left_to_the_general_algorithm(name):
    model, batch = some(LEFT[name])
    assert model.fused_filter(Observed.of(model, batch), 5, systematic, 0.5) is None


def test_a_signal_scored_in_part_is_left_to_the_general_algorithm():
    model, batch = some(TAKEN["signal"])
    scored = batch.scored.clone()
    scored[0, 0, 0] = False
    observed = Observed.of(model, batch.replace(scored=scored))
    assert model.fused_filter(observed, 5, systematic, 0.5) is None


def test_a_density_that_a_subclass_overrides_is_left_to_the_general_algorithm():
    class Other(LowRankRNN):
        def emission(self, state):
            return super().emission(state)

    model, batch = some(TAKEN["signal"])
    model.__class__ = Other
    assert model.fused_filter(Observed.of(model, batch), 5, systematic, 0.5) is None
