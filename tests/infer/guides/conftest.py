"""The recording and the LFADS with inferred inputs whose guides are `lfads_guides`."""

import pytest
import xarray as xr
from lfads_guides import INPUT_DIM, NUM_TRIALS

from pyrodyn.data.batch import Batch, Trials
from pyrodyn.models import LFADS


@pytest.fixture
def data(make_recording) -> xr.Dataset:
    return make_recording(NUM_TRIALS)


@pytest.fixture
def model(data, make_lfads) -> LFADS:
    """Its latent sites are g0, of event shape (4,), and u, of event shape (8, 2)."""
    return make_lfads(data, inferred_input_dim=INPUT_DIM)


@pytest.fixture
def batch(data) -> Batch:
    return Trials(data).batch()
