"""Figures by condition and of losses: what is drawn is the average that it claims to be."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from pyrodyn import analysis
from pyrodyn.data import recording

NUM_TRIALS, NUM_BINS, NUM_NEURONS, WIDTH = 9, 20, 5, 0.02


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def spikes():
    rng = np.random.default_rng(0)
    valid = np.ones((NUM_TRIALS, NUM_BINS), bool)
    valid[4, 12:] = False
    return recording(
        counts=rng.poisson(2.0, (NUM_TRIALS, NUM_BINS, NUM_NEURONS)),
        bin_width=WIDTH,
        condition=[0, 1, 2] * 3,
        valid=valid,
    )


def prediction(spikes, latent="factors", dims=4):
    rng = np.random.default_rng(1)
    shape = (NUM_TRIALS, NUM_BINS, NUM_NEURONS)
    return xr.Dataset(
        {
            "rates": (("trial", "time", "neuron"), rng.gamma(2.0, 1.0, shape)),
            "rates_sd": (("trial", "time", "neuron"), np.full(shape, 0.1)),
            latent: (("trial", "time", "own"), rng.normal(size=(*shape[:2], dims))),
        },
        coords={name: spikes[name] for name in ("trial", "time", "neuron")},
    )


def as_tree(predicted):
    """Two chains of two draws around the prediction."""
    offsets = xr.DataArray([[-0.1, 0.1], [0.1, -0.1]], dims=("chain", "draw"))
    draws = predicted.drop_vars("rates_sd") + offsets
    return xr.DataTree.from_dict({"posterior": draws})


def lines(axis):
    """Drawn lines by label; the unlabelled ones together."""
    found = {}
    for line in axis.get_lines():
        key = "data" if line.get_label().startswith("_") else line.get_label()
        found.setdefault(key, []).append(line.get_ydata())
    return found


@pytest.mark.parametrize("form", [lambda p: p, as_tree], ids=["prediction", "tree"])
def test_psths_are_the_averages_of_each_condition(spikes, form):
    predicted = prediction(spikes)
    axis = analysis.plot_psths(spikes, form(predicted), num_neurons=1, smoothing=0.03).axes[0]
    rates = predicted["rates"].where(spikes["valid"])
    by_condition = rates.groupby(spikes["condition"]).mean("trial")
    chosen = int(np.argmax(by_condition.std(("condition", "time")).values))
    assert axis.get_title() == f"neuron {spikes['neuron'].values[chosen]}"
    drawn = lines(axis)
    for label in (0, 1, 2):
        expected = by_condition.sel(condition=label)[:, chosen] / WIDTH
        np.testing.assert_allclose(drawn[str(label)][0], expected, rtol=1e-5)
    valid = np.broadcast_to(spikes["valid"].values[..., None], spikes["counts"].shape)
    smoothed = analysis.smooth(spikes["counts"], WIDTH, 0.03, valid)
    expected = np.where(valid, smoothed, np.nan)[1::3, :, chosen]
    np.testing.assert_allclose(drawn["data"][1], np.nanmean(expected, 0) / WIDTH)


def test_psths_of_a_signal_are_in_its_unit():
    rng = np.random.default_rng(2)
    signal = recording(signal=rng.normal(size=(6, 10, 2)), bin_width=0.1, condition=list("ababab"))
    predicted = xr.Dataset(
        {"rates": (("trial", "time", "channel"), np.ones((6, 10, 2)))},
        coords={"time": signal["time"]},
    )
    axis = analysis.plot_psths(signal, predicted, num_neurons=1).axes[0]
    np.testing.assert_allclose(lines(axis)["a"][0], 1.0)
    assert axis.get_ylabel() == "signal"


def test_latents_are_drawn_by_principal_components(spikes):
    predicted = prediction(spikes)
    axis = analysis.plot_latents(predicted, spikes, num_dims=2).axes[0]
    z = predicted["factors"].where(spikes["valid"]).values
    points = z.reshape(-1, 4)[~np.isnan(z.reshape(-1, 4)).any(-1)]
    variances = np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1]
    drawn = np.concatenate([np.array(line.get_xydata()) for line in axis.get_lines()[:3]])
    assert len(axis.get_lines()) == NUM_TRIALS + 2 * 3
    shares = [f"component {i + 1} ({variances[i] / variances.sum():.0%})" for i in range(2)]
    assert [axis.get_xlabel(), axis.get_ylabel()] == shares
    # Trials of the first condition come first: 0, 3, 6. Distances survive a rotation of all four.
    centred = z[[0, 3, 6]].reshape(-1, 4) - points.mean(0)
    assert np.linalg.norm(drawn) <= np.linalg.norm(centred)
    _, _, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(drawn), np.abs(centred @ directions[:2].T), atol=1e-9)


@pytest.mark.parametrize("latent", ["factors", "z"])
def test_latents_need_no_conditions_and_no_recording(spikes, latent):
    axis = analysis.plot_latents(prediction(spikes, latent)).axes[0]
    assert axis.name == "3d"
    assert len(axis.get_lines()) == NUM_TRIALS + 2
    panels = analysis.plot_factors(prediction(spikes, latent), trials=3).axes
    assert [len(panel.get_lines()) for panel in panels] == [3] * 4


def test_the_figures_of_a_tree_are_those_of_its_means(spikes):
    predicted = prediction(spikes)
    for plot in (
        lambda p: analysis.plot_rates(spikes, p, num_neurons=1),
        lambda p: analysis.plot_factors(p),
        lambda p: analysis.plot_latents(p, spikes, num_dims=2),
    ):
        one, other = (
            [np.asarray(line.get_ydata(), float) for axis in plot(form).axes for line in axis.lines]
            for form in (predicted, as_tree(predicted))
        )
        assert one
        for first, second in zip(one, other, strict=True):
            np.testing.assert_allclose(first, second, atol=1e-6)


def test_losses_are_drawn_with_the_kept_epoch():
    losses = np.r_[1e6, np.linspace(50, 40, 29)]
    history = xr.Dataset(
        {"train_loss": ("epoch", losses), "valid_loss": ("epoch", losses + 1)},
        coords={"epoch": range(30)},
    )
    axis = analysis.plot_losses(history, best_epoch=20).axes[0]
    assert set(lines(axis)) == {"training", "validation", "weights kept"}
    np.testing.assert_array_equal(lines(axis)["validation"][0], losses + 1)
    low, high = axis.get_ylim()
    assert 38 < low < 40 and 50 < high < 53


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda s, p: analysis.plot_psths(s.drop_vars("condition"), p), "has no condition"),
        (lambda s, p: analysis.plot_latents(p, s, num_dims=5), "num_dims=5 must be 2 or 3"),
        (lambda s, p: analysis.plot_latents(p.drop_vars("factors"), s), "no factors and no z"),
        (lambda s, p: analysis.plot_factors(p.drop_vars("factors")), "no factors and no z"),
        (lambda s, p: analysis.plot_losses(p), "no train_loss and no valid_loss among rates"),
        (
            lambda s, p: analysis.plot_rates(s, xr.DataTree.from_dict({"prior": p})),
            "the tree has no group posterior to draw; its groups are prior",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(spikes, plot, message):
    with pytest.raises(ValueError, match=message):
        plot(spikes, prediction(spikes))
