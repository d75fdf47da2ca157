"""Where readouts start: components that neurons share, of data whose latents are known."""

import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.data import recording, select_modality
from pyrodyn.models import LowRankRNN
from pyrodyn.models.initial_loadings import NUM_LAGS, initial_loadings

NUM_NEURONS, DECAY = 12, 0.95
LAG_SHARE = np.sqrt(np.mean(DECAY ** (2 * np.arange(1, NUM_LAGS + 1))))
"""What lags leave of a latent's variance."""


def latents(rng: np.random.Generator, num_trials: int = 300, num_bins: int = 60) -> np.ndarray:
    """Two independent paths of unit variance, correlated by `DECAY` from bin to bin."""
    z = [rng.normal(size=(num_trials, 2))]
    for _ in range(num_bins - 1):
        z.append(DECAY * z[-1] + np.sqrt(1 - DECAY**2) * rng.normal(size=(num_trials, 2)))
    return np.stack(z, 1)


@pytest.fixture(scope="module")
def loading() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(NUM_NEURONS, 2)) * [0.5, 0.3]


@pytest.fixture(scope="module")
def both(loading) -> xr.Dataset:
    """Counts of log mean C z - 1.5, and a signal C z with noise of .7."""
    rng = np.random.default_rng(0)
    read = latents(rng) @ loading.T
    return recording(
        counts=rng.poisson(np.exp(read - 1.5)),
        signal=read + 0.7 * rng.normal(size=read.shape),
        bin_width=0.01,
    )


def subspace_error(found: np.ndarray, true: np.ndarray) -> float:
    """Sine of the largest angle between two planes."""
    one, other = np.linalg.qr(found)[0], np.linalg.qr(true)[0]
    return float(np.linalg.norm(other - one @ (one.T @ other), 2))


def in_units_of_the_data(model: LowRankRNN) -> np.ndarray:
    """The loading, whose rows for channels are in units of these."""
    return (model.loading * model.observation.units()[:, None]).detach().numpy()


def test_a_signal_gives_its_loading_and_what_is_left_its_noise(both, loading):
    model = LowRankRNN.for_recording(select_modality(both, "signal"), latent_dim=2)
    found = in_units_of_the_data(model)
    np.testing.assert_allclose(found @ found.T, LAG_SHARE * loading @ loading.T, atol=0.05)
    left = 0.7**2 + (1 - LAG_SHARE) * np.square(loading).sum(1)
    np.testing.assert_allclose(model.observation.scale().square().detach(), left, rtol=0.05)


@pytest.mark.parametrize("link", ["canonical", "softplus"])
def test_counts_give_the_plane_of_their_log_means_without_the_noise_of_counts(both, loading, link):
    model = LowRankRNN.for_recording(select_modality(both, "counts"), latent_dim=2, link=link)
    found = model.loading.detach().numpy()
    assert subspace_error(found, loading) < 0.2
    if link == "canonical":
        # Every neuron's log mean varies as much as it does, most of which lags leave.
        sd, true = (np.linalg.norm(each, axis=1) for each in (found, loading))
        np.testing.assert_allclose(sd, true * np.sqrt(LAG_SHARE), rtol=0.1, atol=0.06)


def test_counts_and_a_signal_load_on_the_same_latents(both, loading):
    model = LowRankRNN.for_recording(both, latent_dim=2)
    found = in_units_of_the_data(model)
    assert subspace_error(found, np.concatenate([loading, loading])) < 0.1


@pytest.mark.parametrize("period", [4, 6, 8, 10, 12, 20])
def test_oscillations_of_any_period_are_found(period):
    """Whose covariances are as often negative as not."""
    rng = np.random.default_rng(0)
    angle = 2 * np.pi / period
    turn = 0.97 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    z = [rng.normal(size=(60, 2))]
    for _ in range(59):
        z.append(z[-1] @ turn.T + np.sqrt(1 - 0.97**2) * rng.normal(size=(60, 2)))
    true = rng.normal(size=(20, 2))
    signal = np.stack(z, 1) @ true.T + 0.3 * rng.normal(size=(60, 60, 20))
    recorded = recording(signal=signal, bin_width=0.01)
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=20)
    found = in_units_of_the_data(model)
    assert subspace_error(found, true) < 0.05
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=1), 0.95 * np.linalg.norm(true, axis=1), rtol=0.2, atol=0.05
    )


def test_what_was_not_measured_is_not_counted(both):
    x = torch.from_numpy(both["signal"].values)
    scored = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    holes = torch.where(scored, x, 1e3)
    found, whole = initial_loadings(holes, scored, 2), initial_loadings(x, scored | True, 2)
    torch.testing.assert_close(found, whole, atol=0.04, rtol=0)


def test_logits_of_silence_start_as_they_did(both):
    counts = select_modality(both, "counts")
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(counts, latent_dim=2, observation="zero_inflated_poisson")
    torch.manual_seed(0)
    drawn = LowRankRNN(NUM_NEURONS, latent_dim=2, observation="zero_inflated_poisson")
    torch.testing.assert_close(model.loading[NUM_NEURONS:], drawn.loading[NUM_NEURONS:])
    assert not torch.allclose(model.loading[:NUM_NEURONS], drawn.loading[:NUM_NEURONS])


@pytest.mark.filterwarnings("ignore:.*never fire")
def test_where_nothing_is_shared_directions_stay_as_drawn(both):
    silent = xr.zeros_like(select_modality(both, "counts")).assign_attrs(both.attrs)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(silent, latent_dim=15, num_units=20)
    torch.manual_seed(0)
    drawn = LowRankRNN(NUM_NEURONS, latent_dim=15, num_units=20)
    torch.testing.assert_close(model.loading, drawn.loading, rtol=0, atol=0)
    one_bin = torch.ones(5, 1, 3, dtype=torch.bool)
    assert (initial_loadings(torch.randn(5, 1, 3), one_bin, 2) == 0).all()
