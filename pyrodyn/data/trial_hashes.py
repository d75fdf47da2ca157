"""A hash per trial, by which a score knows whether a fit has seen the trial."""

import hashlib

import numpy as np
import xarray as xr

from pyrodyn.data.schema import blocks, measured

LENGTH = 12
"""Hexadecimal digits kept: two of a million trials share them with probability 0.002."""


def trial_hashes(recording: xr.Dataset) -> list[str]:
    """A hash of all that a model may see of each trial: observations, where they were measured, and
    known inputs. Labels, marks and other variables do not enter.

    Args:
        recording: a validated recording.
    """
    arrays = []
    for block in blocks(recording):
        where = measured(recording, block)
        arrays += [recording[block.observed].where(where, 0).astype(np.float64), where]
    if "inputs" in recording:
        arrays.append(recording["inputs"].astype(np.float64))
    values = [np.ascontiguousarray(array.transpose("trial", ...).values) for array in arrays]
    return [
        hashlib.sha256(b"".join(array[trial].tobytes() for array in values)).hexdigest()[:LENGTH]
        for trial in range(recording.sizes["trial"])
    ]
