import numpy as np
import pytest
import xarray as xr

from pyrodyn.data.recording import held_out, recording, select_modality
from pyrodyn.data.schema import blocks, measured, observed_name, unit_dim, validate


def spikes(*shape: int, seed: int = 0) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(1.0, shape)
    counts[0, 0] += 1  # every neuron fires
    return counts


def test_arrays_become_named_variables_in_canonical_form() -> None:
    rng = np.random.default_rng(1)
    counts, behavior = spikes(3, 5, 2), rng.normal(size=(3, 5, 4))
    inputs, latents = rng.normal(size=(3, 5, 1)), rng.normal(size=(3, 5, 3))
    rates = np.full((3, 5, 2), 0.5)
    data = recording(
        counts,
        bin_width=0.02,
        start=-0.04,
        inputs=inputs,
        behavior=behavior,
        condition=["a", "b", "a"],
        rates=rates,
        latents=latents,
        names={"neuron": ["n1", "n2"], "quantity": ["x", "y", "vx", "vy"]},
    )
    assert data["counts"].dims == ("trial", "time", "neuron")
    assert data["counts"].dtype == np.int32
    np.testing.assert_array_equal(data["counts"], counts)
    for name, given in {"behavior": behavior, "inputs": inputs, "latents": latents}.items():
        assert data[name].dtype == np.float32
        np.testing.assert_array_equal(data[name], given.astype(np.float32))
    np.testing.assert_array_equal(data["rates"], rates)
    np.testing.assert_allclose(data["time"], [-0.04, -0.02, 0.0, 0.02, 0.04], atol=1e-15)
    assert data.attrs == {"bin_width": 0.02}
    assert data["neuron"].values.tolist() == ["n1", "n2"]
    assert data["condition"].values.tolist() == ["a", "b", "a"]
    assert (observed_name(data), unit_dim(data)) == ("counts", "neuron")
    xr.testing.assert_identical(validate(data), data)


def test_signal_has_channels_and_may_be_negative() -> None:
    signal = np.random.default_rng(2).normal(size=(2, 4, 3))
    data = recording(signal=signal, bin_width=0.1, rates=signal / 2)
    assert data["signal"].dims == ("trial", "time", "channel")
    np.testing.assert_array_equal(data["signal"], signal.astype(np.float32))
    assert (data["rates"] < 0).any()
    assert (observed_name(data), unit_dim(data)) == ("signal", "channel")


def test_trials_of_unequal_length_are_padded_and_marked() -> None:
    trials = [spikes(1, length, 2, seed=length)[0] for length in (4, 2, 3)]
    behavior = [np.arange(length, dtype=int)[:, None] for length in (4, 2, 3)]
    data = recording(trials, bin_width=0.01, behavior=behavior)
    inside = [[True] * 4, [True, True, False, False], [True, True, True, False]]
    np.testing.assert_array_equal(data["valid"], inside)
    for trial, (given, moved) in enumerate(zip(trials, behavior, strict=True)):
        np.testing.assert_array_equal(data["counts"][trial, : len(given)], given)
        assert (data["counts"][trial, len(given) :] == 0).all()
        np.testing.assert_array_equal(data["behavior"][trial, : len(given)], moved)
        assert np.isnan(data["behavior"][trial, len(given) :]).all()


def test_padding_stays_unmeasured_whatever_valid_says() -> None:
    trials = [spikes(1, 4, 2)[0], spikes(1, 3, 2)[0]]
    given = np.ones((2, 4), bool)
    given[0, 1] = False
    data = recording(trials, bin_width=0.01, valid=given)
    expected = given.copy()
    expected[1, 3] = False
    np.testing.assert_array_equal(data["valid"], expected)
    by_neuron = np.repeat(given[..., None], 2, axis=-1)
    by_neuron[0, 2, 1] = False
    data = recording(trials, bin_width=0.01, valid=by_neuron)
    np.testing.assert_array_equal(data["valid"], by_neuron & expected[..., None])


def test_what_was_not_measured_is_stored_as_zero() -> None:
    counts = spikes(2, 4, 2).astype(float)
    counts[1, 2] = np.nan
    rates, inputs = np.full((2, 4, 2), np.inf), np.ones((2, 4, 1))
    valid = np.ones((2, 4, 2), bool)
    valid[1, 2] = False
    valid[0, 0, 1] = False
    rates[valid] = 0.5
    inputs[1, 2] = np.nan
    data = recording(counts, bin_width=0.01, valid=valid, rates=rates, inputs=inputs)
    assert data["counts"][1, 2].values.tolist() == [0, 0]
    assert data["counts"][0, 0, 1] == 0
    np.testing.assert_array_equal(data["rates"], np.where(valid, 0.5, 0.0))
    # Inputs that are no numbers are 0 where no neuron was measured.
    np.testing.assert_array_equal(data["inputs"][..., 0], [[1, 1, 1, 1], [1, 1, 0, 1]])


def test_validate_brings_dims_dtypes_and_labels_to_canonical_form() -> None:
    counts = spikes(2, 3, 4)
    data = validate(
        xr.Dataset(
            {
                "counts": (("neuron", "time", "trial"), counts.transpose(2, 1, 0).astype(np.uint8)),
                "condition": ("trial", np.array(["left", b"up"], object)),
                "valid": (("time", "trial"), np.ones((3, 2), bool)),
            },
            coords={"time": [0, 1, 2], "neuron": np.array(["a", "b", "c", 4], object)},
        )
    )
    np.testing.assert_array_equal(data["counts"], counts)
    assert data["valid"].dims == ("trial", "time")
    assert data["neuron"].values.tolist() == ["a", "b", "c", "4"]
    assert data["condition"].values.tolist() == ["left", "up"]
    assert data["neuron"].dtype.kind == data["condition"].dtype.kind == "U"
    assert data["time"].dtype == np.float64
    assert data["trial"].values.tolist() == [0, 1]
    assert data.attrs["bin_width"] == 1.0


def test_validate_leaves_its_argument_alone() -> None:
    data = xr.Dataset(
        {"counts": (("trial", "neuron", "time"), np.ones((2, 3, 4)))},
        coords={"time": np.arange(4) * 0.5},
    )
    before = data.copy(deep=True)
    validate(data)
    xr.testing.assert_identical(data, before)


def test_bool_counts_are_counts() -> None:
    data = recording(np.ones((2, 3, 1), bool), bin_width=0.001)
    assert data["counts"].dtype == np.int32
    assert data["counts"].values.sum() == 6


def test_a_silent_neuron_warns_with_its_label() -> None:
    counts = spikes(2, 3, 3)
    counts[..., 1] = 0
    with pytest.warns(UserWarning, match=r"1 neuron\(s\) never fire: quiet"):
        recording(counts, bin_width=0.01, names={"neuron": ["a", "quiet", "b"]})


def test_held_out_marks_positions_and_last_bins() -> None:
    data = recording(spikes(2, 5, 4), bin_width=0.01)
    marked = held_out(data, neurons=[1, 3], forecast_bins=2)
    assert marked["held_out"].values.tolist() == [False, True, False, True]
    assert marked["forecast"].values.tolist() == [False, False, False, True, True]
    xr.testing.assert_identical(marked.drop_vars(["held_out", "forecast"]), data)
    xr.testing.assert_identical(validate(marked), marked)


def test_held_out_keeps_the_marks_that_it_is_not_asked_about() -> None:
    data = recording(counts=np.ones((2, 5, 4), int), bin_width=0.02)
    once = held_out(data, neurons=[1, 3], forecast_bins=2)
    step_by_step = held_out(held_out(data, neurons=[1, 3]), forecast_bins=2)
    xr.testing.assert_identical(step_by_step, once)
    xr.testing.assert_identical(held_out(once, neurons=[1, 3]), once)
    assert not held_out(once, forecast_bins=0)["forecast"].any()
    with pytest.raises(ValueError, match="forecast_bins=5 must leave at least one"):
        held_out(once, forecast_bins=5)


@pytest.mark.parametrize(("share", "count"), [(0.25, 5), (0.01, 1), (0.5, 10)])
def test_held_out_draws_a_share_with_its_seed(share: float, count: int) -> None:
    data = recording(spikes(2, 5, 20), bin_width=0.01)
    marks = held_out(data, neurons=share, seed=1)["held_out"].values
    again = held_out(data, neurons=share, seed=1)["held_out"].values
    others = [held_out(data, neurons=share, seed=s)["held_out"].values for s in range(2, 6)]
    assert marks.sum() == count
    np.testing.assert_array_equal(marks, again)
    assert any((marks != other).any() for other in others)


# ------------------------------------------------------------------ counts and a signal


def test_counts_and_a_signal_of_the_same_bins() -> None:
    counts, signal = spikes(3, 5, 2), np.random.default_rng(1).normal(size=(3, 5, 4))
    data = recording(
        counts,
        signal=signal,
        bin_width=0.02,
        rates=np.full((3, 5, 2), 0.5),
        signal_mean=signal / 2,
        names={"channel": ["c1", "c2", "c3", "c4"]},
    )
    assert data["counts"].dtype == np.int32
    assert data["signal"].dtype == data["signal_mean"].dtype == np.float32
    np.testing.assert_array_equal(data["counts"], counts)
    np.testing.assert_array_equal(data["signal"], signal.astype(np.float32))
    np.testing.assert_array_equal(data["signal_mean"], (signal / 2).astype(np.float32))
    assert data["rates"].dims == ("trial", "time", "neuron")
    assert data["channel"].values.tolist() == ["c1", "c2", "c3", "c4"]
    of_counts, of_signal = blocks(data)
    assert (of_counts.observed, of_counts.unit, of_counts.size) == ("counts", "neuron", 2)
    assert (of_signal.observed, of_signal.unit, of_signal.size) == ("signal", "channel", 4)
    assert (of_counts.columns, of_signal.columns) == (slice(0, 2), slice(2, 6))
    xr.testing.assert_identical(validate(data), data)
    shuffled = data.transpose("channel", "neuron", "time", "trial", ...)
    xr.testing.assert_identical(validate(shuffled), data)


def test_each_variable_has_gaps_of_its_own() -> None:
    """Lost bins concern both, a lost neuron no channel, and a lost channel no neuron."""
    counts, signal = spikes(2, 4, 3).astype(float), 1 + np.arange(16.0).reshape(2, 4, 2)
    given = signal.copy()
    by_bin = np.ones((2, 4), bool)
    by_bin[0, 1] = False
    channel_valid = np.ones((2, 4, 2), bool)
    channel_valid[1, 2, 0] = False
    signal[1, 2, 0] = np.nan
    latents = np.ones((2, 4, 1))
    data = recording(
        counts,
        signal=signal,
        bin_width=0.01,
        valid=by_bin,
        signal_valid=channel_valid,
        latents=latents,
    )
    of_counts, of_signal = (measured(data, block).values for block in blocks(data))
    np.testing.assert_array_equal(of_counts, np.repeat(by_bin[..., None], 3, -1))
    np.testing.assert_array_equal(of_signal, by_bin[..., None] & channel_valid)
    np.testing.assert_array_equal(data["signal"], given * of_signal)
    np.testing.assert_array_equal(data["counts"], counts * of_counts)
    np.testing.assert_array_equal(data["latents"][..., 0], by_bin)

    by_neuron = np.ones((2, 4, 3), bool)
    by_neuron[1] = False  # no neuron in that trial, but channels
    full = np.arange(16.0).reshape(2, 4, 2)
    data = recording(counts, signal=full, bin_width=0.01, valid=by_neuron, latents=latents)
    of_counts, of_signal = (measured(data, block).values for block in blocks(data))
    np.testing.assert_array_equal(of_counts, by_neuron)
    assert of_signal.all()
    assert (data["latents"] == 1).all()


@pytest.mark.parametrize("by_neuron", [False, True])
def test_padding_is_unmeasured_in_both(by_neuron: bool) -> None:
    counts = [spikes(1, 4, 2)[0], spikes(1, 2, 2)[0]]
    signal = [np.arange(12.0).reshape(4, 3), np.ones((2, 3))]
    valid = np.ones((2, 4, 2), bool) if by_neuron else None
    data = recording(counts, signal=signal, bin_width=0.01, valid=valid)
    inside = np.array([[True] * 4, [True, True, False, False]])
    for block in blocks(data):
        expected = np.repeat(inside[..., None], block.size, -1)
        np.testing.assert_array_equal(measured(data, block), expected)


def test_held_out_channels_are_marked_beside_neurons() -> None:
    signal = np.arange(30.0).reshape(2, 5, 3)
    data = recording(spikes(2, 5, 4), signal=signal, bin_width=0.01)
    marked = held_out(data, neurons=[1], channels=[0, 1, 2])
    assert marked["held_out"].values.tolist() == [False, True, False, False]
    assert marked["signal_held_out"].values.tolist() == [True] * 3
    xr.testing.assert_identical(validate(marked), marked)
    # The share of neurons drawn does not depend on whether there are channels.
    spikes_alone = held_out(recording(spikes(2, 5, 4), bin_width=0.01), neurons=0.5, seed=3)
    xr.testing.assert_equal(
        held_out(data, neurons=0.5, channels=0.5, seed=3)["held_out"].variable,
        spikes_alone["held_out"].variable,
    )


def test_one_of_two_alone_is_the_recording_without_the_other() -> None:
    rng = np.random.default_rng(2)
    counts, signal = spikes(3, 5, 2), rng.normal(size=(3, 5, 4))
    valid = np.ones((3, 5), bool)
    valid[2, 3:] = False
    signal_valid = rng.random((3, 5, 4)) > 0.2
    shared = {"bin_width": 0.02, "inputs": rng.normal(size=(3, 5, 1)), "condition": [0, 1, 0]}
    rates, mean = np.full((3, 5, 2), 0.5), signal / 2
    data = held_out(
        recording(
            counts,
            signal=signal,
            valid=valid,
            signal_valid=signal_valid,
            rates=rates,
            signal_mean=mean,
            **shared,
        ),
        neurons=[1],
        channels=[2],
        forecast_bins=1,
    )
    by_neuron = np.repeat(valid[..., None], 2, -1)
    expected = recording(counts, valid=by_neuron, rates=rates, **shared)
    xr.testing.assert_identical(
        select_modality(data, "counts"), held_out(expected, neurons=[1], forecast_bins=1)
    )
    by_channel = valid[..., None] & signal_valid
    expected = recording(signal=signal, valid=by_channel, rates=mean, **shared)
    xr.testing.assert_identical(
        select_modality(data, "signal"), held_out(expected, neurons=[2], forecast_bins=1)
    )
    complete = recording(counts, signal=signal, **shared)
    xr.testing.assert_identical(select_modality(complete, "counts"), recording(counts, **shared))
    xr.testing.assert_identical(
        select_modality(select_modality(complete, "signal"), "signal"),
        recording(signal=signal, **shared),
    )


def test_inputs_are_known_where_nothing_was_measured() -> None:
    """A drive does not cease because spikes were lost; what is not known there is 0."""
    counts, inputs = np.ones((2, 5, 3), int), np.arange(20.0).reshape(2, 5, 2)
    valid = np.ones((2, 5), bool)
    valid[0, 3] = valid[1, 4] = False
    inputs[1, 4, 0] = np.nan
    data = recording(counts, bin_width=0.01, inputs=inputs, valid=valid)
    np.testing.assert_array_equal(data["inputs"], np.nan_to_num(inputs))
    inputs[0, 0, 1] = np.nan
    with pytest.raises(ValueError, match="inputs is not finite"):
        recording(counts, bin_width=0.01, inputs=inputs, valid=valid)


# ------------------------------------------------------------------ arrays with named dims


def named_counts(seed: int = 0) -> xr.DataArray:
    """Counts with all kinds of coordinates, as (neuron, trial, time)."""
    return xr.DataArray(
        spikes(3, 4, 5, seed=seed).transpose(2, 0, 1),
        dims=("neuron", "trial", "time"),
        coords={
            "neuron": list("abcde"),
            "trial": [7, 8, 9],
            "time": -0.02 + 0.01 * np.arange(4),
            "depth": ("neuron", np.arange(5.0)),
            "session": "s1",
        },
        attrs={"units": "spikes"},
    )


def test_dims_of_a_data_array_are_known_by_name_and_its_coordinates_kept() -> None:
    given = named_counts()
    data = recording(given, bin_width=0.01)
    np.testing.assert_array_equal(data["counts"], given.transpose("trial", "time", "neuron"))
    for name in given.coords:
        np.testing.assert_array_equal(data[name], given[name])
        assert data[name].dims == given[name].dims
    assert data["counts"].attrs == {"units": "spikes"}
    unnamed = xr.DataArray(spikes(3, 4, 5))
    xr.testing.assert_identical(
        recording(unnamed, bin_width=0.01), recording(unnamed.values, bin_width=0.01)
    )


def test_a_second_array_is_brought_to_the_labels_of_the_first() -> None:
    given = named_counts()
    rates = (given + 0.5).isel(neuron=[3, 1, 0, 4, 2], trial=[2, 0, 1])
    valid = xr.ones_like(given, dtype=bool).isel(neuron=0, drop=True).transpose("time", "trial")
    valid[1, 2] = False
    condition = xr.DataArray([1, 2, 3], dims="trial", coords={"trial": [9, 8, 7]})
    data = recording(given, bin_width=0.01, rates=rates, valid=valid, condition=condition)
    kept = valid.transpose("trial", "time").values
    expected = (given + 0.5).transpose("trial", "time", "neuron") * kept[..., None]
    np.testing.assert_array_equal(data["rates"], expected)
    np.testing.assert_array_equal(data["valid"], kept)
    assert data["condition"].values.tolist() == [3, 2, 1]


def test_a_list_of_data_arrays_is_read_by_name() -> None:
    whole = named_counts().drop_vars(["session"])
    trials = [whole.isel(trial=i, time=slice(0, n), drop=True) for i, n in enumerate((4, 2, 3))]
    data = recording(trials, bin_width=0.01)
    assert data["valid"].sum("time").values.tolist() == [4, 2, 3]
    assert data["neuron"].values.tolist() == list("abcde")
    np.testing.assert_allclose(data["time"], whole["time"])
    np.testing.assert_array_equal(data["counts"][1, :2], trials[1].transpose("time", "neuron"))
    late = trials[1].assign_coords(time=trials[1]["time"] + 1)
    with pytest.raises(ValueError, match=r"trial 1 begins at 0\.98 s where trial 0 begins"):
        recording([trials[0], late], bin_width=0.01)


def test_nan_without_valid_is_unmeasured_with_a_warning() -> None:
    counts, signal = spikes(2, 4, 2).astype(float), np.arange(16.0).reshape(2, 4, 2)
    counts[1, 2, 0] = np.nan
    signal[0, 1, 1] = np.nan
    with pytest.warns(UserWarning, match=r"counts is NaN in \d+ of its \d+ entries, .* unmeasured"):
        data = recording(counts, bin_width=0.01)
    np.testing.assert_array_equal(data["valid"], ~np.isnan(counts))
    with pytest.warns(UserWarning, match="signal is NaN"):
        data = recording(spikes(2, 4, 2), signal=signal, bin_width=0.01)
    np.testing.assert_array_equal(data["signal_valid"], ~np.isnan(signal))
    assert "valid" not in data
    masked = np.ma.masked_array(np.nan_to_num(counts), mask=np.isnan(counts))
    with pytest.warns(UserWarning, match="counts is NaN"):
        data = recording(masked, bin_width=0.01)
    np.testing.assert_array_equal(data["valid"], ~np.isnan(counts))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: recording(spikes(2, 4, 2), bin_width=10.0),
            r"bins are 10 s wide; .* \(0.01 if 10",
        ),
        (
            lambda: recording(spikes(2, 4, 2) + 50, bin_width=0.01),
            r"mean count is 5\d\.\d* per bin",
        ),
        (
            lambda: recording(spikes(2, 4, 2) + 300, bin_width=1.0),
            r"the mean count is 30\d.* per bin of 1 s",
        ),
        (
            lambda: recording(signal=np.arange(8.0).reshape(2, 2, 2) * [0, 1] + 3, bin_width=0.1),
            r"1 channel\(s\) are constant: 0",
        ),
        (
            lambda: recording(spikes(2, 4, 2), bin_width=0.01, names={"trial": [1, 1]}),
            r"trial label 1 occurs more than once",
        ),
    ],
)
def test_what_is_probably_a_mistake_warns(make, sentence: str) -> None:
    with pytest.warns(UserWarning, match=sentence):
        make()
