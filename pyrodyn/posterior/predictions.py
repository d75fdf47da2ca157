"""Observations that the posterior is not conditioned on: those of held-out neurons and channels and
of forecast bins.

ArviZ keeps draws of such observations in the group ``predictions`` and what belongs to them in
``predictions_constant_data``. Both groups hold the smallest array of bins and units that contains
all hidden entries; ``valid`` in the latter marks those that are hidden and were measured, and ``x``
is 0 elsewhere.
"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.schema import blocks, measured

GROUP, CONSTANT = "predictions", "predictions_constant_data"


class Predicted:
    """The predicted entries of a recording.

    Args:
        recording: the bins that the model generates.

    Attributes:
        blocks: the observed variables with hidden entries, none where nothing is hidden.
        where: by variable which entries are predicted and were measured, over the positions below.
        positions: by dim the positions of bins and units with hidden entries.
    """

    def __init__(self, recording: xr.Dataset) -> None:
        hidden: dict[str, NDArray[np.bool_]] = {}
        for block in blocks(recording):
            marks = np.zeros([recording.sizes[dim] for dim in block.dims[1:]], bool)
            if "forecast" in recording.coords:
                marks |= recording.coords["forecast"].values[:, None]
            if block.held_out in recording.coords:
                marks |= recording.coords[block.held_out].values
            if marks.any():
                hidden[block.x] = marks
        self.blocks = tuple(block for block in blocks(recording) if block.x in hidden)
        self.positions: dict[str, NDArray[np.int_]] = {}
        if hidden:
            bins = np.any([marks.any(1) for marks in hidden.values()], axis=0)
            self.positions["time"] = np.flatnonzero(bins)
        self.where: dict[str, xr.DataArray] = {}
        for block in self.blocks:
            marks = hidden[block.x]
            self.positions[block.unit] = np.flatnonzero(marks.any(0))
            where = measured(recording, block).transpose(*block.dims).values & marks
            part = where[:, self.positions["time"]][..., self.positions[block.unit]]
            self.where[block.x] = xr.DataArray(part, dims=block.dims)

    def restricted(self, data: xr.Dataset) -> xr.Dataset:
        """Data along the positions with hidden entries."""
        return data.isel({dim: at for dim, at in self.positions.items() if dim in data.dims})

    def drawn(self, predictive: xr.Dataset, trials: NDArray[np.int_]) -> xr.Dataset:
        """The group ``predictions`` of some trials, of their predictive draws."""
        return self._masked(self.restricted(predictive[list(self.where)]), trials)

    def constant(self, constant: xr.Dataset, observed: xr.Dataset) -> xr.Dataset:
        """The group ``predictions_constant_data``: observed values, marks and constant data."""
        every = np.arange(observed.sizes["trial"])
        found = self._masked(self.restricted(observed[list(self.where)]), every)
        marks = {block.valid: self.where[block.x] for block in self.blocks}
        rest = self.restricted(constant.drop_vars(list(marks), errors="ignore"))
        return rest.assign(found.data_vars).assign(marks)

    def _masked(self, values: xr.Dataset, trials: NDArray[np.int_]) -> xr.Dataset:
        kept = {
            name: values[name].where(where.isel(trial=trials), 0)
            for name, where in self.where.items()
        }
        return values.assign(kept)
