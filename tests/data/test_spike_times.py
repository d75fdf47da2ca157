"""Spike times in every form give the counts of a histogram."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyrodyn.data import bin_spikes

WINDOW, WIDTH = (-0.2, 0.3), 0.1


def spike_lists() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [[rng.uniform(-0.5, 0.5, 20) for _ in range(3)] for _ in range(4)]


def expected() -> np.ndarray:
    edges = np.linspace(*WINDOW, 6)
    return np.stack(
        [np.stack([np.histogram(t, edges)[0] for t in trial], -1) for trial in spike_lists()]
    )


def as_table() -> pd.DataFrame:
    rows = [
        {"trial": trial, "neuron": f"n{neuron}", "time": time}
        for trial, of_trial in enumerate(spike_lists())
        for neuron, times in enumerate(of_trial)
        for time in times
    ]
    return pd.DataFrame(rows).sample(frac=1.0, random_state=0)


FORMS = {
    "lists of trials": lambda: bin_spikes(spike_lists(), bin_width=WIDTH, window=WINDOW),
    "dict of trials": lambda: bin_spikes(
        {f"n{i}": [trial[i] for trial in spike_lists()] for i in range(3)},
        bin_width=WIDTH,
        window=WINDOW,
    ),
    "table": lambda: bin_spikes(as_table(), bin_width=WIDTH, window=WINDOW),
    "continuous lists": lambda: bin_spikes(
        [np.concatenate([t[i] + 10 * k for k, t in enumerate(spike_lists())]) for i in range(3)],
        bin_width=WIDTH,
        window=WINDOW,
        events=10 * np.arange(4),
    ),
    "continuous table": lambda: bin_spikes(
        as_table().assign(time=lambda t: t["time"] + 10 * t["trial"]).drop(columns="trial"),
        bin_width=WIDTH,
        window=WINDOW,
        events=10 * np.arange(4),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_counts(form: str) -> None:
    data = FORMS[form]()
    np.testing.assert_array_equal(data["counts"], expected())
    np.testing.assert_allclose(data["time"], [-0.2, -0.1, 0.0, 0.1, 0.2], atol=1e-12)
    if form not in ("lists of trials", "continuous lists"):
        assert data["neuron"].values.tolist() == ["n0", "n1", "n2"]


def test_arguments_of_recording_are_passed_on() -> None:
    data = bin_spikes(spike_lists(), bin_width=WIDTH, window=WINDOW, condition=list("abab"))
    assert data["condition"].values.tolist() == list("abab")


def test_trials_and_neurons_without_spikes_are_kept_where_they_are_named() -> None:
    table = as_table().query("trial != 2")
    with pytest.warns(UserWarning, match="no spike of trial 2; give trials= to keep them"):
        assert bin_spikes(table, bin_width=WIDTH, window=WINDOW).sizes["trial"] == 3
    with pytest.warns(UserWarning, match="never fire: n9"):
        data = bin_spikes(
            table,
            bin_width=WIDTH,
            window=WINDOW,
            trials=range(4),
            neurons=["n0", "n1", "n2", "n9"],
        )
    counts = np.concatenate([expected(), np.zeros((4, 5, 1))], -1)
    counts[2] = 0
    np.testing.assert_array_equal(data["counts"], counts)


def test_without_events_continuous_spikes_are_one_trial() -> None:
    times = np.arange(40) * 0.05 + 0.01
    data = bin_spikes({"a": times}, bin_width=0.1, window=(0.0, 2.0))
    xr.testing.assert_equal(data["counts"], xr.full_like(data["counts"], 2))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: bin_spikes([np.arange(9.0) * 1e3 + 500], bin_width=0.1, window=(0.0, 1.0)),
            r"none of the 9 spike times \(500 to 8500 s\) lies in a window",
        ),
        (
            lambda: bin_spikes(spike_lists(), bin_width=0.1, window=WINDOW, events=[1.0]),
            "events= is for continuous spike times",
        ),
        (
            lambda: bin_spikes([np.ones(3)], bin_width=0.1, window=WINDOW, events=[1.0, np.nan]),
            "events has 1 times that are not finite",
        ),
        (
            lambda: bin_spikes(spike_lists(), bin_width=0.1, window=(0.0, 0.25)),
            "in an integer number of bins",
        ),
        (
            lambda: bin_spikes([[[0.1], [0.2]], [[0.1]]], bin_width=0.1, window=WINDOW),
            "trial 1 has 1 neurons where trial 0 has 2",
        ),
        (
            lambda: bin_spikes(as_table().drop(columns="time"), bin_width=0.1, window=WINDOW),
            "the table of spikes lacks the column 'time'",
        ),
        (
            lambda: bin_spikes(as_table(), bin_width=0.1, window=WINDOW, neurons=["n0", "n1"]),
            "neurons= lacks n2, which the table of spikes has",
        ),
        (lambda: bin_spikes(3.0, bin_width=0.1, window=WINDOW), "spikes is float; give a list"),
    ],
)
def test_what_cannot_be_binned_is_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
