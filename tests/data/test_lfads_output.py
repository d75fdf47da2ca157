"""Posterior means for scripts that read the files of the LFADS family."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import pyrodyn
from pyrodyn.data import split, write_lfads
from pyrodyn.models import LFADS, LowRankRNN


@pytest.fixture
def parts(make_recording) -> list[xr.Dataset]:
    return list(split(make_recording(), (0.75, 0.25), seed=0))


def predictions(model: pyrodyn.models.LatentDynamics, parts: list[xr.Dataset]) -> list[xr.Dataset]:
    return [pyrodyn.predict(model, part, num_draws=3) for part in parts]


def test_posterior_means_under_the_keys_of_lfads(parts: list[xr.Dataset], tmp_path: Path) -> None:
    model = LFADS.for_recording(parts[0], factor_dim=2, generator_dim=4, inferred_input_dim=1)
    train, valid = predictions(model, parts)
    write_lfads(tmp_path / "a.h5", train=train, valid=valid)
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
    wanted = {
        "output_params": "rates",
        "factors": "factors",
        "ic_mean": "g0",
        "ic_std": "g0_sd",
        "gen_inputs": "u",
        "co_means": "u",
        "co_stds": "u_sd",
    }
    with h5py.File(tmp_path / "a.h5") as file:
        for part, predicted in (("train", train), ("valid", valid)):
            for key, name in wanted.items():
                np.testing.assert_array_equal(file[f"{part}_{key}"], predicted[name])
            np.testing.assert_array_equal(file[f"{part}_inds"], predicted["trial"])
        assert set(file) == {f"{p}_{k}" for p in ("train", "valid") for k in [*wanted, "inds"]} | {
            "dt"
        }
        assert file["dt"][()] == pytest.approx(parts[0].attrs["bin_width"])
        # Scripts put the trials back in order by their numbers.
        rates = np.empty((12, *file["train_output_params"].shape[1:]))
        for part in ("train", "valid"):
            rates[file[f"{part}_inds"]] = file[f"{part}_output_params"]
    whole = xr.concat([train["rates"], valid["rates"]], "trial").sortby("trial")
    np.testing.assert_array_equal(rates, whole)


def test_a_model_without_factors_writes_its_latent_state(
    parts: list[xr.Dataset], tmp_path: Path
) -> None:
    model = LowRankRNN.for_recording(parts[0], latent_dim=2, num_units=5)
    (train,) = predictions(model, parts[:1])
    train = train.assign_coords(trial=[f"t{i}" for i in range(train.sizes["trial"])])
    write_lfads(tmp_path / "a.hdf5", train=train)
    with h5py.File(tmp_path / "a.hdf5") as file:
        np.testing.assert_array_equal(file["train_factors"], train["z"])
        assert file["train_inds"][:].tolist() == list(range(9))
        assert set(file) == {"train_output_params", "train_factors", "train_inds", "dt"}


def test_what_is_no_prediction_is_refused(parts: list[xr.Dataset], tmp_path: Path) -> None:
    model = LowRankRNN.for_recording(parts[0], latent_dim=2, num_units=5)
    train, _ = predictions(model, parts)
    with pytest.raises(ValueError, match=r"train is not from pyrodyn\.predict: it holds"):
        write_lfads(tmp_path / "a.h5", train=parts[0])
    with pytest.raises(ValueError, match=r"trial \d+ occurs more than once in train and valid"):
        write_lfads(tmp_path / "a.h5", train=train, valid=train)
    with pytest.raises(ValueError, match=r"must have the suffix \.h5 or \.hdf5"):
        write_lfads(tmp_path / "a.npz", train=train)
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        write_lfads(tmp_path / "none" / "a.h5", train=train)
    assert not list(tmp_path.iterdir())
