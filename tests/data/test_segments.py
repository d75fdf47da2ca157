"""Continuous recordings: cut, split and merged."""

import itertools

import numpy as np
import pytest
import xarray as xr

import pyrodyn
from pyrodyn.data import folds, merge, read, recording, segment, split, write
from pyrodyn.models import LFADS

WIDTH = 0.1


def continuous(num_bins: int = 53, num_sources: int = 2, gap: bool = True) -> xr.Dataset:
    """Counts and a signal of all kinds of variables, with an unmeasured stretch in the second."""
    rng = np.random.default_rng(0)
    shape = (num_sources, num_bins)
    valid = np.ones((*shape, 3), bool)
    if gap:
        valid[1, 20:41] = False
        valid[0, 7, 1] = False
    return recording(
        1 + rng.poisson(1.0, (*shape, 3)),
        signal=rng.normal(size=(*shape, 2)),
        bin_width=WIDTH,
        start=2.0,
        inputs=rng.normal(size=(*shape, 1)),
        behavior=np.where(rng.random((*shape, 2)) < 0.1, np.nan, rng.normal(size=(*shape, 2))),
        condition=["run", "rest"][:num_sources],
        valid=valid if gap else None,
        signal_valid=valid[..., :2] if gap else None,
        names={"trial": ["run1", "run2"][:num_sources], "neuron": ["a", "b", "c"]},
    ).assign_coords(clock=("time", np.arange(num_bins)))


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7])
def test_every_segment_is_a_window_of_its_source(overlap: float) -> None:
    data = continuous()
    cut = segment(data, seconds=1.0, overlap=overlap)
    assert cut.sizes["time"] == 10 and cut["time"].values[0] == 0
    for trial in range(cut.sizes["trial"]):
        one = cut.isel(trial=trial)
        own = data.sel(trial=one["source"].item())
        first = round((float(one["segment_start"]) - 2.0) / WIDTH)
        length = int(one["segment_bins"])
        assert length == min(10, 53 - first)
        for name in data.data_vars:
            if name == "condition":
                assert one[name].item() == own[name].item()
                continue
            expected = own[name].values[first : first + length]
            np.testing.assert_array_equal(one[name].values[:length], expected, err_msg=str(name))
        assert not one["valid"].values[length:].any()
        assert not one["signal_valid"].values[length:].any()
        np.testing.assert_array_equal(
            one["clock"].values[:length], np.arange(first, first + length)
        )
    starts = cut["segment_start"].values[cut["source"].values == "run1"]
    np.testing.assert_allclose(np.diff(starts), 1.0 - overlap)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7])
def test_merging_undoes_cutting(overlap: float) -> None:
    data = continuous(gap=False)
    cut = segment(data, seconds=1.0, overlap=overlap)
    back = merge(cut, cut)
    assert back["trial"].values.tolist() == ["run1", "run2"]
    np.testing.assert_allclose(back["time"], data["time"])
    for name in ("counts", "signal", "inputs", "behavior"):
        assert back[name].dims == data[name].dims and back[name].dtype == data[name].dtype
        np.testing.assert_allclose(back[name], data[name], rtol=1e-6, err_msg=name)
    assert back["valid"].all()


def test_bins_of_segments_that_are_left_out_are_missing() -> None:
    data = continuous()
    cut = segment(data, seconds=1.0)
    # Bins 20 to 39 of the second source are two segments in which nothing was measured.
    assert cut.sizes["trial"] == 2 * 6 - 2
    back = merge(cut[["signal", "counts"]], cut)
    missing = np.zeros((2, 53), bool)
    missing[1, 20:40] = True
    np.testing.assert_array_equal(np.isnan(back["signal"]).all("channel"), missing)
    np.testing.assert_array_equal(np.isnan(back["counts"]).any("neuron"), missing)


def test_means_cross_fade_and_variances_are_those_of_the_mixture() -> None:
    data = continuous(num_bins=16, num_sources=1, gap=False)
    cut = segment(data, seconds=1.0, overlap=0.4)
    assert cut.sizes["trial"] == 2
    values = xr.DataArray(np.ones((2, 10, 1)), dims=("trial", "time", "factor"))
    values[1] = 5.0
    predicted = xr.Dataset(
        {"z": values, "z_sd": 0 * values + [[[3.0]], [[1.0]]], "g0": ("trial", [1.0, 2.0])},
        coords={"trial": cut["trial"].values, "time": cut["time"].values},
        attrs={"method": "guide"},
    )
    merged = merge(predicted, cut)
    second = np.r_[np.zeros(6), np.arange(1, 5) / 5, np.ones(6)]
    mean = 1 + 4 * second
    np.testing.assert_allclose(merged["z"][0, :, 0], mean)
    variance = (1 - second) * (9 + 1) + second * (1 + 25) - mean**2
    np.testing.assert_allclose(merged["z_sd"][0, :, 0], np.sqrt(variance))
    assert set(merged.data_vars) == {"z", "z_sd"} and merged.attrs == predicted.attrs


def test_draws_switch_once_between_segments() -> None:
    data = continuous(num_bins=22, num_sources=1, gap=False)
    cut = segment(data, seconds=1.0, overlap=0.4)
    draws = np.broadcast_to(np.arange(3)[:, None], (2, 50, 3, 10))
    coords = {"trial": cut["trial"].values, "time": cut["time"].values}
    tree = xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"a": 1}),
            "posterior": xr.Dataset({"z": (("chain", "draw", "trial", "time"), draws)}, coords),
            "log_prior": xr.Dataset({"shared": ("draw", np.arange(3.0))}),
        }
    )
    merged = merge(tree, cut)
    found = merged["posterior"]["z"]
    assert found.dims == ("chain", "draw", "trial", "time") and found.dtype.kind == "i"
    assert merged.attrs == {"a": 1} and merged["log_prior"]["shared"].shape == (3,)
    segments = found.values.reshape(100, 22)
    assert (np.diff(segments, axis=1) >= 0).all() and (segments[:, [0, -1]] == [0, 2]).all()
    np.testing.assert_array_equal((segments[:, 6:10] == 1).sum(0), [20, 40, 60, 80])
    np.testing.assert_array_equal((segments[:, 12:16] == 2).sum(0), [20, 40, 60, 80])


def test_a_posterior_of_a_fitted_model_is_merged(tmp_path) -> None:
    data = continuous(num_bins=40, num_sources=1, gap=False)[["counts"]]
    cut = segment(data, seconds=1.0, overlap=0.5)
    write(cut, tmp_path / "a.npz")
    xr.testing.assert_identical(read(tmp_path / "a.npz"), cut)
    model = LFADS.for_recording(cut, factor_dim=2, generator_dim=4)
    predicted = pyrodyn.predict(model, cut, num_draws=2)
    merged = merge(predicted, cut)
    assert merged["rates"].shape == (1, 40, 3)
    own = predicted["rates"].values
    np.testing.assert_allclose(merged["rates"][0, :5], own[0, :5], rtol=1e-6)
    np.testing.assert_allclose(merged["rates"][0, 5], (5 * own[0, 5] + own[1, 0]) / 6, rtol=1e-5)
    tree = merge(pyrodyn.to_datatree(model, cut, num_draws=2), cut)
    assert tree["posterior"]["rates"].shape == (1, 2, 1, 40, 3)
    np.testing.assert_array_equal(tree["observed_data"]["x"][0], data["counts"][0])


def spans(part: xr.Dataset) -> list[tuple[str, float, float]]:
    length = part.sizes["time"] * WIDTH
    starts = part["segment_start"].values
    return [(s, a, a + length) for s, a in zip(part["source"].values.tolist(), starts, strict=True)]


def overlapping(one: xr.Dataset, other: xr.Dataset) -> int:
    return sum(
        s == r and a < d - 1e-9 and c < b - 1e-9
        for (s, a, b), (r, c, d) in itertools.product(spans(one), spans(other))
    )


def neighbours(one: xr.Dataset, other: xr.Dataset) -> int:
    """Pairs of segments of the same source of which one begins before the other has ended."""
    return sum(
        s == r and a < d + 1e-9 and c < b + 1e-9
        for (s, a, b), (r, c, d) in itertools.product(spans(one), spans(other))
    )


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_segments_are_split_in_runs_that_do_not_overlap(overlap: float, seed: int) -> None:
    cut = segment(continuous(num_bins=400, gap=False), seconds=1.0, overlap=overlap)
    parts = split(cut, (0.7, 0.2, 0.1), seed=seed)
    num = cut.sizes["trial"]
    for one, other in itertools.combinations(parts, 2):
        assert overlapping(one, other) == 0
        assert neighbours(one, other) <= 2 * 4  # the runs' ends, in two sources
    sizes = np.array([part.sizes["trial"] for part in parts])
    assert sizes.sum() == num if not overlap else sizes.sum() > 0.75 * num
    # The last part is the smallest and loses nothing.
    assert abs(sizes[2] - 0.1 * num) <= 2 and 0.15 * num < sizes[1] <= 0.2 * num + 2
    for train, test in folds(cut, 4, seed=seed):
        assert overlapping(train, test) == 0
        assert test.sizes["trial"] in range(num // 4 - 1, num // 4 + 3)
    tests = np.concatenate([test["trial"].values for _, test in folds(cut, 4)])
    assert sorted(tests.tolist()) == list(range(num))


def test_many_sources_are_split_whole() -> None:
    counts = 1 + np.random.default_rng(0).poisson(1.0, (12, 25, 2))
    cut = segment(recording(counts, bin_width=WIDTH), seconds=1.0, overlap=0.5)
    train, valid = split(cut, (0.75, 0.25), seed=0)
    assert not set(train["source"].values) & set(valid["source"].values)
    assert len(set(train["source"].values)) == 9
    assert train.sizes["trial"] + valid.sizes["trial"] == cut.sizes["trial"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seconds": 0.95}, r"seconds=0.95 must be an integer number of bins of 0.1 s, at least 2"),
        ({"seconds": 0.1}, "at least 2"),
        ({"seconds": 1.0, "overlap": 1.0}, "overlap=1 must be shorter than seconds=1"),
        ({"seconds": 1.0, "overlap": -0.1}, "overlap=-0.1 must be an integer number"),
        ({"seconds": 9.0}, r"seconds=9 is longer than the recording's trials \(5.3 s\)"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        segment(continuous(), **options)


def test_what_is_not_a_continuous_recording_is_refused() -> None:
    cut = segment(continuous(), seconds=1.0)
    with pytest.raises(ValueError, match="has a coordinate 'source' already"):
        segment(cut, seconds=0.5)
    with pytest.raises(ValueError, match="forecast bins are marked"):
        segment(pyrodyn.data.held_out(continuous(), forecast_bins=3), seconds=1.0)
    with pytest.raises(ValueError, match="lacks the coordinate 'segment_start'"):
        merge(cut, continuous())
    with pytest.raises(ValueError, match="trial 5 of the result is not among the 3 segments"):
        merge(cut.isel(trial=[1, 5]), cut.isel(trial=slice(3)))


def test_one_long_trial_is_sent_to_segment() -> None:
    signal = np.random.default_rng(0).normal(size=(6000, 2))
    with pytest.raises(ValueError, match=r"signal\[None\], which pyrodyn.data.segment cuts"):
        recording(signal=signal, bin_width=0.01)
    data = recording(signal=signal[None], bin_width=0.01)
    with pytest.raises(ValueError, match=r"one trial .* cut it by pyrodyn.data.segment"):
        split(data, (0.8, 0.2))
    with pytest.warns(UserWarning, match="one trial of 6000 bins; .* pyrodyn.data.segment"):
        LFADS.for_recording(data, factor_dim=2, generator_dim=4)
