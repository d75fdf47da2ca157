"""Trees on disk: attributes of any kind, names in any script, dates."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.data import recording
from pyrodyn.models import LFADS
from pyrodyn.posterior import to_datatree


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    data = recording(
        1 + rng.poisson(1.0, (4, 6, 3)),
        bin_width=0.01,
        names={"neuron": ["a/1", "b/ü", "ニューロン"], "trial": ["t/0", "t/1", "t/2", "t/3"]},
        condition=np.array(["left/up", "right", "left/up", "右"]),
    )
    data = data.assign_coords(
        {
            "day/time": ("trial", np.array(["2020-01-01", "2021-05-05"] * 2, "datetime64[ns]")),
            "day_time": ("trial", np.arange(4)),
        }
    )
    data.attrs.update(subject=None, probe={"shanks": [1, 2]}, good=True, areas=["M1", "PMd"])
    data["counts"].attrs["sorter"] = {"name": "x", "date": None}
    return data


@pytest.mark.parametrize("kind", ["netcdf", "zarr", "streamed"])
def test_any_attributes_and_names_survive_files(counts, kind, tmp_path):
    torch.manual_seed(0)
    model = LFADS.for_recording(counts, factor_dim=2, generator_dim=4, encoder_dim=4)
    path = tmp_path / f"tree.{'nc' if kind == 'netcdf' else 'zarr'}"
    whole = to_datatree(model, counts, num_draws=3, batch_size=2)
    if kind == "netcdf":
        whole.to_netcdf(path, engine="h5netcdf")
        back = xr.open_datatree(path, engine="h5netcdf")
    elif kind == "zarr":
        whole.to_zarr(path, consolidated=False)
        back = xr.open_datatree(path, engine="zarr", consolidated=False)
    else:
        back = to_datatree(model, counts, num_draws=3, batch_size=2, path=path)
    for group in whole.children:
        xr.testing.assert_equal(whole[group].to_dataset(), back[group].to_dataset().load())
    attrs = back["constant_data"].attrs
    assert json.loads(attrs["probe"]) == {"shanks": [1, 2]}
    assert json.loads(attrs["subject"]) is None
    assert json.loads(attrs["areas"]) == ["M1", "PMd"]
    assert json.loads(back["observed_data/x"].attrs["sorter"]) == {"name": "x", "date": None}
    assert {"day_time", "day_time_"} <= set(back["constant_data"].coords)
    assert back.attrs["model"] == "LFADS" and back.attrs["guide"] == "LFADS.guide"
    assert back.attrs["method"] == "guide" and back.attrs["seed"] == 0
    back.close()
    assert counts.attrs["subject"] is None  # the recording itself is left as it was


@pytest.mark.parametrize(("options", "is_shown"), [({}, True), ({"progress": False}, False)])
def test_streaming_shows_the_trials_that_are_done(
    options, is_shown, make_recording, make_lfads, tmp_path, capsys
):
    counts = make_recording(5, 3, 2)
    to_datatree(
        make_lfads(counts), counts, num_draws=2, batch_size=2, path=tmp_path / "a.zarr", **options
    )
    shown = capsys.readouterr().err
    assert ("trials: 100%" in shown and "5/5" in shown) is is_shown
    to_datatree(make_lfads(counts), counts, num_draws=2)
    assert not capsys.readouterr().err
