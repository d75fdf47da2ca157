"""Several sessions as one recording: every entry in its place, and one session selected again."""

import sys

import numpy as np
import pytest
import torch
import xarray as xr

import pyrodyn
from pyrodyn.data import (
    folds,
    held_out,
    read,
    recording,
    select_session,
    sessions,
    split,
    write,
)
from pyrodyn.data.schema import measured

NAMES = ("monday", "tuesday")


def one(num_trials: int, num_neurons: int, seed: int, **options) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    shape = num_trials, 8
    given = {
        "condition": rng.integers(2, size=num_trials),
        "inputs": rng.standard_normal((*shape, 1)),
        "behavior": rng.standard_normal((*shape, 2)),
        "rates": rng.random((*shape, num_neurons)),
        "bin_width": 0.02,
        **options,
    }
    return recording(counts=rng.poisson(1.0, (*shape, num_neurons)), **given)


@pytest.fixture
def parts() -> dict[str, xr.Dataset]:
    incomplete = one(10, 3, 1)
    incomplete["valid"] = xr.ones_like(incomplete["counts"], bool)
    incomplete["valid"][4, 6:] = False
    return {"monday": one(6, 4, 0), "tuesday": pyrodyn.data.validate(incomplete)}


def test_every_entry_is_in_its_place(parts):
    whole = sessions(parts)
    assert dict(whole.sizes) == {"trial": 16, "time": 8, "neuron": 7, "input": 1, "quantity": 2}
    assert list(whole["session"].values) == ["monday"] * 6 + ["tuesday"] * 10
    assert list(whole["neuron_session"].values) == ["monday"] * 4 + ["tuesday"] * 3
    assert whole["neuron"].values[4] == "tuesday/0" and whole["trial"].values[5] == "monday/5"
    own = whole["session"] == whole["neuron_session"]
    assert not whole["valid"].where(~own, False).any() and not whole["counts"].where(~own, 0).any()
    for name, part in parts.items():
        found = select_session(whole, name)
        for variable in ("counts", "rates", "inputs", "behavior", "condition"):
            np.testing.assert_array_equal(found[variable], part[variable])
        (block,) = pyrodyn.data.schema.blocks(part)
        np.testing.assert_array_equal(found["valid"], measured(part, block))
    again = sessions([*parts.values()])
    assert list(dict.fromkeys(again["session"].values)) == ["0", "1"]


def test_counts_and_a_signal(parts):
    rng = np.random.default_rng(3)
    both = {
        name: part.drop_vars(["rates"]).assign(
            signal=(("trial", "time", "channel"), rng.standard_normal((part.sizes["trial"], 8, 2)))
        )
        for name, part in parts.items()
    }
    whole = sessions(both)
    assert list(whole["channel_session"].values) == ["monday"] * 2 + ["tuesday"] * 2
    found = select_session(whole, "tuesday")
    np.testing.assert_allclose(found["signal"], both["tuesday"]["signal"], rtol=1e-6)
    assert found["signal_valid"].all() and not found["valid"].all()


def test_what_a_session_lacks_is_missing(parts):
    parts["monday"] = parts["monday"].drop_vars(["rates"]).isel(quantity=[0])
    whole = sessions(parts)
    assert "rates" not in whole
    assert np.isnan(select_session(whole, "monday")["behavior"].values[..., 1]).all()
    assert not np.isnan(select_session(whole, "tuesday")["behavior"].values).any()


@pytest.mark.parametrize("suffix", [".npz", ".nc", ".zarr"])
def test_files_give_back_the_sessions(parts, tmp_path, suffix):
    whole = sessions(parts)
    write(whole, tmp_path / f"both{suffix}")
    xr.testing.assert_identical(read(tmp_path / f"both{suffix}"), whole)


def test_each_session_is_split_and_held_out(parts):
    whole = sessions(parts).drop_vars("condition")
    for part in (*split(whole, (0.5, 0.5), seed=1), *(test for _, test in folds(whole, 2))):
        assert np.sum(part["session"].values == "monday") == 3
    marked = held_out(whole, neurons=0.34, seed=2)
    assert [int(select_session(marked, name)["held_out"].sum()) for name in NAMES] == [1, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bin_width": 0.01}, r"bin_width in s of session 'monday': 0.02, but of 'tuesday': 0.01"),
        ({"inputs": None}, r"inputs of session 'monday': \[0\], but of 'tuesday': None"),
        ({"condition": None}, r"conditions of trials of session 'monday': given, but .* not given"),
    ],
)
def test_sessions_that_differ_are_refused(parts, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        sessions({**parts, "tuesday": one(4, 3, 1, **change)})


def test_wrong_sessions_are_refused(parts, monkeypatch):
    monday = parts["monday"]
    with pytest.raises(ValueError, match=r"bins per trial of session 'a': 8, but of 'b': 6"):
        sessions({"a": monday, "b": monday.isel(time=slice(6))})
    signal = recording(signal=np.random.default_rng(0).random((4, 8, 2)), bin_width=0.02)
    with pytest.raises(ValueError, match=r"observed variables of session '0': \['counts'\], but "):
        sessions([monday, signal])
    with pytest.raises(ValueError, match=r"1 session\(s\) given; at least two"):
        sessions([monday])
    with pytest.raises(ValueError, match=r"session name 'a/b' must be text, not empty, without"):
        sessions({"a/b": monday, "c": monday})
    with pytest.raises(ValueError, match=r"'both' is a recording of several sessions itself"):
        sessions({"both": sessions(parts), "c": sessions(parts)})
    with pytest.raises(ValueError, match=r"neuron label .* occurs more than once"):
        sessions([monday, monday.assign_coords(neuron=["n", "n", "a", "b"])])
    with pytest.raises(ValueError, match=r"session 'friday' is unknown; the data have monday, tue"):
        select_session(sessions(parts), "friday")
    with pytest.raises(ValueError, match=r"no coordinate of sessions"):
        select_session(monday, "monday")
    monkeypatch.setattr(sys.modules[sessions.__module__], "MOST_ENTRIES", 500)
    with pytest.raises(ValueError, match=r"16 trials x 8 bins x all neurons of 2 sessions are 9e"):
        sessions(parts)


def test_predictions_and_trees_of_one_session(parts, make_lfads):
    whole = held_out(sessions(parts), neurons=0.34, seed=2)
    torch.manual_seed(0)
    model = make_lfads(whole)
    predicted = select_session(pyrodyn.predict(model, whole, num_draws=2), "tuesday")
    assert predicted["rates"].shape == (10, 8, 3)
    tree = select_session(pyrodyn.to_datatree(model, whole, num_draws=2), "tuesday")
    assert tree["posterior/rates"].shape == (1, 2, 10, 8, 3)
    np.testing.assert_array_equal(tree["observed_data/x"], parts["tuesday"]["counts"])
    assert tree["sample_stats/lp"].sizes["trial"] == 10
    assert [str(label)[:7] for label in tree["predictions"]["neuron"].values] == ["tuesday"]
