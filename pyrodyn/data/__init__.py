"""A recording in (xarray), batches out: container, masks, readers, named recordings, simulators."""

from pyrodyn.data.batch import Batch, Trials
from pyrodyn.data.catalog import catalog, load
from pyrodyn.data.nwb import read_nwb
from pyrodyn.data.readers import read, write
from pyrodyn.data.recording import held_out, recording, select_modality
from pyrodyn.data.schema import validate
from pyrodyn.data.simulate import simulate, trajectory
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
    "catalog",
    "folds",
    "held_out",
    "load",
    "read",
    "read_nwb",
    "recording",
    "select_modality",
    "simulate",
    "split",
    "teacher",
    "trajectory",
    "validate",
    "write",
]
