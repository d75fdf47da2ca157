"""Recordings: containers, readers, transforms, named data sets and simulators.

A recording is an `xarray.Dataset` with the schema of `pyrodyn.data.schema`. Its trials become
batches of tensors (`Batch`), which models and guides receive.

==================  ===============================================================================
``schema``          variables, dims and units of a recording; `validate`
``recording``       `recording` from arrays; `held_out` neurons, channels and bins
``spike_times``     `bin_spikes`: recordings from spike times; ``binning`` is the arithmetic
``spike_objects``   `from_pynapple`, `from_neo`, `from_spikeinterface`
``readers``         `read` and `write` files; ``nwb`` and ``lfads_hdf5`` are special formats
``lfads_output``    `write_lfads`: posterior means for scripts that read LFADS files
``catalog``         `load` public recordings by name; ``sources`` converts them
``segments``        `segment` continuous recordings, and `merge` what was inferred of the segments
``sessions``        recordings of several sessions, with other neurons each, as one
``split``           training, validation and test trials; cross-validation folds
``batch``           `Trials` and `Batch`: the tensors of a recording
``transforms``      masking, held-out data and augmentation of batches
``simulate``        recordings of dynamical systems (``systems``) with known truth
``teachers``        recordings of low-rank networks that perform a task, with known parameters
==================  ===============================================================================

>>> import numpy as np
>>> from pyrodyn.data import Trials, recording, split
>>> counts = np.random.default_rng(0).poisson(0.3, size=(12, 50, 20))  # trials, bins, neurons
>>> data = recording(counts, bin_width=0.01, condition=["left", "right"] * 6)
>>> train, valid = split(data, (0.75, 0.25), seed=0)
>>> Trials(train).batch().x.shape
torch.Size([9, 50, 20])
"""

from pyrodyn.data.batch import Batch, Trials
from pyrodyn.data.catalog import catalog, load
from pyrodyn.data.lfads_output import write_lfads
from pyrodyn.data.nwb import read_nwb
from pyrodyn.data.readers import read, write
from pyrodyn.data.recording import held_out, recording, select_modality
from pyrodyn.data.schema import validate
from pyrodyn.data.segments import merge, segment
from pyrodyn.data.sessions import select_session, sessions
from pyrodyn.data.simulate import simulate, trajectory
from pyrodyn.data.spike_objects import from_neo, from_pynapple, from_spikeinterface
from pyrodyn.data.spike_times import bin_spikes
from pyrodyn.data.split import folds, split
from pyrodyn.data.systems import SYSTEMS
from pyrodyn.data.teachers import teacher
from pyrodyn.data.transforms import (
    CoordinatedDropout,
    Forecast,
    HoldOutNeurons,
    MaskedModelling,
    SampleValidation,
    SpikeJitter,
    TemporalShift,
)

__all__ = [
    "SYSTEMS",
    "Batch",
    "CoordinatedDropout",
    "Forecast",
    "HoldOutNeurons",
    "MaskedModelling",
    "SampleValidation",
    "SpikeJitter",
    "TemporalShift",
    "Trials",
    "bin_spikes",
    "catalog",
    "folds",
    "from_neo",
    "from_pynapple",
    "from_spikeinterface",
    "held_out",
    "load",
    "merge",
    "read",
    "read_nwb",
    "recording",
    "segment",
    "select_modality",
    "select_session",
    "sessions",
    "simulate",
    "split",
    "teacher",
    "trajectory",
    "validate",
    "write",
    "write_lfads",
]
