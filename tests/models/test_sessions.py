"""Models of several sessions: their densities and start, and a new session with fixed dynamics."""

import numpy as np
import pytest
import torch
import xarray as xr

import pyrodyn
from pyrodyn.data import recording, select_session, sessions
from pyrodyn.infer import ELBO, VSMC
from pyrodyn.infer.traces import paired_traces
from pyrodyn.models import (
    LFADS,
    NDT,
    LinearDynamics,
    LowRankRNN,
    NodeSAE,
    RnnSAE,
    ShallowPLRNN,
    for_session,
)
from pyrodyn.models.sessions import of_units

ZOO = {
    "LFADS": (LFADS, {"factor_dim": 3, "generator_dim": 6, "encoder_dim": 5}),
    "LFADS with inputs": (LFADS, {"factor_dim": 3, "generator_dim": 6, "inferred_input_dim": 1}),
    "NodeSAE": (NodeSAE, {"latent_dim": 2, "field_width": 5, "encoder_dim": 5}),
    "RnnSAE": (RnnSAE, {"latent_dim": 2, "process_noise": True, "encoder_dim": 5}),
    "LowRankRNN": (LowRankRNN, {"latent_dim": 2, "num_units": 6}),
    "ShallowPLRNN": (ShallowPLRNN, {"latent_dim": 2, "num_units": 6}),
    "LinearDynamics": (LinearDynamics, {"latent_dim": 2}),
    "NDT": (NDT, {"model_dim": 8, "num_layers": 1, "ffn_dim": 8}),
}
SIZES = {"0": (7, 4), "1": (6, 3)}


def counts(num_trials: int, num_neurons: int, seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    values = rng.poisson(1.0, (num_trials, 9, num_neurons))
    return recording(counts=values, bin_width=0.02, condition=rng.permutation(num_trials) % 2)


@pytest.fixture
def whole() -> xr.Dataset:
    return sessions([counts(*size, seed) for seed, size in enumerate(SIZES.values())])


@pytest.fixture(params=ZOO)
def model(request: pytest.FixtureRequest, whole: xr.Dataset) -> pyrodyn.models.LatentDynamics:
    kind, sizes = ZOO[request.param]
    return kind.for_recording(whole, seed=1, **sizes).eval()


def test_a_session_sees_only_its_own_neurons(model, whole):
    """The loss of a trial neither reads nor trains what belongs to the neurons of others."""
    monday = model.trials_of(whole).batch(slice(0, 7)).replace(weight=1.0)
    torch.manual_seed(0)
    loss = ELBO()(model, model.guide).evaluate(monday).loss
    loss.backward()
    weights = of_units(model)
    for weight in weights.read_in.values():
        assert weight.grad[:, :4].any() and not weight.grad[:, 4:7].any()
    for name, weight in weights.readout.items():
        if len(weight) == 7:
            assert weight.grad[:4].any(), name
            assert not weight.grad[4:].any(), name
    _, trace = paired_traces(model, model.guide, monday, 1)
    trace.compute_log_prob()
    x = trace.nodes["x"]
    changed = monday.replace(x=monday.x + (~monday.scored) * 3)
    fn, value = x["fn"], changed.x
    assert torch.equal(fn.log_prob(value), fn.log_prob(monday.x))


def test_the_same_population_is_read_alike_by_all_sessions():
    """Sessions of rotated copies of the same population start with the same functions."""
    rng = np.random.default_rng(3)
    time = np.arange(12)
    common = np.stack([np.sin(0.5 * time + phase) for phase in (0.0, 1.0, 2.5)])
    latents = np.stack([common[:2], common[1:]])[np.arange(20) % 2].swapaxes(1, 2)
    recordings, loadings = [], []
    for num_neurons in (5, 8):
        C = np.linalg.qr(rng.standard_normal((num_neurons, 2)))[0]
        loadings.append(C)
        recordings.append(
            recording(signal=latents @ C.T, bin_width=0.02, condition=np.arange(20) % 2)
        )
    both = sessions(recordings)
    model = LowRankRNN.for_recording(both, latent_dim=2, num_units=6, seed=1)
    # Linear predictors are in units of each channel's standard deviation.
    C = (model.loading * model.observation.units()[:, None]).detach().numpy()
    # From the model's latents to the common ones, by the neurons of each session.
    maps = [np.linalg.lstsq(loadings[0], C[:5])[0], np.linalg.lstsq(loadings[1], C[5:])[0]]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-4)

    lfads = LFADS.for_recording(both, factor_dim=3, generator_dim=6, seed=1)
    batch = lfads.trials_of(both).batch()
    x = lfads.observation.standardised(batch.seen, batch.visible)
    read = (x @ lfads.encoder.weight_ih_l0.mT).detach()
    assert np.corrcoef(read[0].ravel(), read[20].ravel())[0, 1] > 0.98
    at_random = torch.empty_like(lfads.encoder.weight_ih_l0).uniform_(-0.1, 0.1)
    read = x @ at_random.mT
    assert np.corrcoef(read[0].ravel(), read[20].ravel())[0, 1] < 0.9


def test_a_new_session_trains_only_what_belongs_to_its_neurons(model, whole, tmp_path):
    objective = VSMC(4) if isinstance(model, LowRankRNN | ShallowPLRNN) else ELBO()
    options = {"objective": objective, "max_epochs": 1, "progress": False, "accelerator": "cpu"}
    if isinstance(model, NDT):
        del options["objective"]
    pyrodyn.fit(model, whole, **options)
    new = counts(5, 6, 7)
    other = for_session(model, new, seed=2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    own = {name for names in of_units(other) for name in names}
    fitted = model.state_dict()
    assert all(torch.equal(before[name], fitted[name]) for name in before if name not in own)
    pyrodyn.fit(other, new, **options)
    moved = {n for n, value in other.state_dict().items() if not torch.equal(value, before[n])}
    parameters = {name for name, _ in other.named_parameters()}
    assert moved == own & parameters
    pyrodyn.save(other, tmp_path)
    again = pyrodyn.load(tmp_path)
    xr.testing.assert_allclose(
        *(pyrodyn.predict(each, new, num_draws=2, method="guide") for each in (other, again))
    )


def test_what_cannot_be_a_new_session_is_refused(whole):
    model = LFADS.for_recording(whole, factor_dim=2, generator_dim=5, seed=1)
    driven = counts(4, 3, 1).assign(inputs=(("trial", "time", "input"), np.ones((4, 9, 2))))
    with pytest.raises(ValueError, match="the model has 0 inputs, but the recording 2"):
        for_session(model, driven)
    signal = recording(signal=np.random.default_rng(0).random((4, 9, 3)), bin_width=0.02)
    with pytest.raises(ValueError, match="Poisson observations are integers"):
        for_session(model, signal)
    assert select_session(whole, "0").sizes["neuron"] == 4
