"""Rows of the tables of NWB files: units, trials and other intervals."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

RAGGED = {"spike_times", "obs_intervals", "electrodes", "waveforms"}
"""Columns of the units table with many values per unit, which are not given to ``unit_filter``."""


def as_frame(table: Any, name: str) -> pd.DataFrame:
    """A table's columns of one value per row."""
    if len(table) == 0:
        raise ValueError(f"the {name} table is empty")
    return table.to_dataframe(exclude=RAGGED & set(table.colnames))


def selected(
    rows: pd.DataFrame, keep: Callable[[pd.DataFrame], Any] | None, argument: str, name: str
) -> NDArray[np.bool_]:
    """Mask of the rows that a filter keeps."""
    if keep is None:
        return np.ones(len(rows), bool)
    try:
        mask = np.asarray(keep(rows))
    except KeyError as error:
        raise ValueError(
            f"{argument} asks for the column {error}, which the {name} table lacks; its columns"
            f" are {', '.join(map(str, rows.columns))}"
        ) from None
    if mask.dtype != bool or mask.shape != (len(rows),):
        raise ValueError(f"{argument} must give one bool for each of the {len(rows)} {name}")
    if not mask.any():
        raise ValueError(f"{argument} keeps none of the {len(rows)} {name}")
    return mask


def unique(labels: list[Any], what: str) -> list[Any]:
    """Labels, or if some repeat, labels with the row number appended."""
    if len(set(labels)) == len(labels):
        return labels
    warnings.warn(
        f"{what} repeat in the file; they are labelled ID.ROW instead", UserWarning, stacklevel=4
    )
    return [f"{label}.{row}" for row, label in enumerate(labels)]
