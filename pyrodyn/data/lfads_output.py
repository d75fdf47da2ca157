"""Posterior means as the HDF5 file that tools of the LFADS family write, for scripts that read it.

One array per part (``train``, ``valid``) and quantity:

=========================  =======================================================================
``{part}_output_params``   inferred rates, expected counts per bin ``(trial, time, neuron)``
``{part}_factors``         factors, or the latent state of a model without ``(trial, time, factor)``
``{part}_ic_mean``         posterior mean of the initial condition ``(trial, initial_condition)``
``{part}_ic_std``          and its standard deviation
``{part}_gen_inputs``      inferred inputs ``(trial, time, input)``, if the model has any
``{part}_co_means``        posterior mean of the same inputs
``{part}_co_stds``         and its standard deviation
``{part}_inds``            number of every trial in the experiment
``dt``                     width of a bin in seconds
=========================  =======================================================================

Sources: the public descriptions of LFADS (Pandarinath et al., Nat Methods 2018) and lfads-torch
(Sedler & Pandarinath, arXiv 2309.01230).
"""

import tempfile
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

KEYS = {
    "output_params": ("rates", "signal_mean"),
    "factors": ("factors", "z"),
    "ic_mean": ("g0", "z0"),
    "ic_std": ("g0_sd", "z0_sd"),
    "gen_inputs": ("u",),
    "co_means": ("u",),
    "co_stds": ("u_sd",),
}
"""Keys of the file, and the variables of `pyrodyn.predict` that they hold: the first there is. Only
``output_params`` holds both of its, side by side."""


def write_lfads(
    path: str | PathLike[str], *, train: xr.Dataset, valid: xr.Dataset | None = None
) -> None:
    """Write posterior means to an HDF5 file with the keys of the LFADS family.

    Labels of trials that are integers become ``{part}_inds``; otherwise the trials of both parts
    are numbered in order. Standard deviations of rates and factors have no key and are not written.

    Args:
        path: the file, ``.h5`` or ``.hdf5``; an existing one is replaced.
        train: from `pyrodyn.predict`, of the training trials.
        valid: of the validation trials.

    Raises:
        ValueError: for another suffix, datasets that are not from `pyrodyn.predict`, or a trial in
            both parts.
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise ValueError(f"{path} must have the suffix .h5 or .hdf5")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
    parts = {"train": train} | ({} if valid is None else {"valid": valid})
    arrays: dict[str, NDArray] = {}
    for part, predicted in parts.items():
        if not isinstance(predicted, xr.Dataset) or "rates" not in predicted:
            raise ValueError(f"{part} is not from pyrodyn.predict: it holds no rates")
        for key, names in KEYS.items():
            found = [predicted[name] for name in names if name in predicted]
            found = found if key == "output_params" else found[:1]
            if found:
                ordered = [array.transpose("trial", ..., array.dims[-1]).values for array in found]
                arrays[f"{part}_{key}"] = np.concatenate(ordered, axis=-1)
    labels = np.concatenate([predicted["trial"].values for predicted in parts.values()])
    repeated = np.unique(labels, return_counts=True)
    if (repeated[1] > 1).any():
        label = repeated[0][repeated[1] > 1][0]
        raise ValueError(f"trial {label} occurs more than once in train and valid")
    numbers = labels if labels.dtype.kind in "iu" else np.arange(len(labels))
    first = train.sizes["trial"]
    arrays["train_inds"] = numbers[:first]
    if valid is not None:
        arrays["valid_inds"] = numbers[first:]
    arrays["dt"] = np.array(np.diff(train["time"].values).mean())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        complete = Path(folder) / path.name
        with h5py.File(complete, "w") as file:
            for key, array in arrays.items():
                file.create_dataset(key, data=array)
            file.attrs["units"] = "rates in expected counts per bin, dt in seconds"
        complete.replace(path)
