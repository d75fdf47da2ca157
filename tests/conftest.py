"""What all tests share: shapes checked at run time, one thread, small recordings and models."""

import os
from collections.abc import Callable
from pathlib import Path

import jaxtyping

# Before any module of pyrodyn is imported, so that its annotations are checked at every call.
jaxtyping.install_import_hook("pyrodyn", "beartype.beartype")

import numpy as np  # noqa: E402 (after the hook)
import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import xarray as xr  # noqa: E402

from pyrodyn.data.recording import recording  # noqa: E402
from pyrodyn.models.lfads import LFADS  # noqa: E402

torch.set_num_threads(1)
os.environ.setdefault("MPLBACKEND", "Agg")

SMALL = {
    "factor_dim": 3,
    "generator_dim": 7,
    "initial_condition_dim": 4,
    "encoder_dim": 5,
    "controller_encoder_dim": 5,
    "controller_dim": 6,
}
"""Sizes of an LFADS that fits in a blink; no two that meet in one product are equal."""


@pytest.fixture
def make_recording() -> Callable[..., xr.Dataset]:
    """Poisson counts in which every neuron fires; more arguments go to `recording`."""

    def make(
        num_trials: int = 12,
        num_bins: int = 8,
        num_neurons: int = 5,
        *,
        mean: float = 1.0,
        seed: int = 0,
        **more: object,
    ) -> xr.Dataset:
        rng = np.random.default_rng(seed)
        counts = rng.poisson(mean, (num_trials, num_bins, num_neurons))
        counts[0, 0] += 1
        return recording(counts, bin_width=0.02, **more)

    return make


@pytest.fixture
def make_lfads() -> Callable[..., LFADS]:
    """A small LFADS for a recording, its weights drawn from ``seed``."""

    def make(data: xr.Dataset, *, seed: int = 0, **sizes: object) -> LFADS:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LFADS.for_recording(data, **{**SMALL, **sizes})

    return make


@pytest.fixture(autouse=True)
def _empty_parameter_store() -> None:
    """Guides that a test runs by hand share parameters by name with those of other tests."""
    pyro.clear_param_store()


@pytest.fixture
def data_file() -> Callable[[str], Path]:
    """Path of a named recording in PYRODYN_DATA; the test is skipped where it is not there."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("PYRODYN_DATA", "")) / name / f"{name}.npz"
        if "PYRODYN_DATA" not in os.environ or not path.exists():
            pytest.skip(f"{name} is not in the folder that PYRODYN_DATA names")
        return path

    return find
