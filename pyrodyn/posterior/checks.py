"""Predictive checks of neural data with ArviZ's plots.

ArviZ's plots of counts want integer observations along one dim, one variable per panel. `for_ppc`
gives them that view of a tree. The statistics are callables for `arviz_plots.plot_ppc_tstat`.
"""

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.data.schema import OBSERVED, blocks, measured


def for_ppc(
    tree: xr.DataTree, by: Literal["neuron", "channel", "trial"] | None = None
) -> xr.DataTree:
    """A tree whose observations lie along one dim ``observation``, measured entries only.

    Args:
        tree: from `to_datatree`.
        by: a dim that becomes one variable per label (``x_neuron_3``), hence one panel each; None
            stacks everything into ``x``. Counts and a signal stay apart (``counts``, ``signal``,
            ``counts_neuron_3``); a dim that one alone has leaves the other out.

    Returns:
        A tree with the groups ``observed_data`` and ``posterior_predictive``, loaded; integers
        where the data are counts.

    Raises:
        ValueError: when ``by`` is no dim of the observations.
    """
    observed = tree["observed_data"].to_dataset().load()
    predicted = tree["posterior_predictive"].to_dataset().load()
    if by is not None and by not in observed.dims:
        raise ValueError(
            f"by={by!r} is no dim of the observations; these are {tuple(observed.dims)}"
        )
    constant = tree["constant_data"].to_dataset()
    # As in a recording, where one observed variable goes by its own name.
    names = {unit: name for name, unit in OBSERVED.items()}
    recorded = constant.assign({names[str(x.dims[-1])]: x for x in observed.data_vars.values()})
    observations: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    for block in blocks(recorded):
        if by is not None and by not in block.dims:
            continue
        where = measured(recorded, block)
        parts: dict[str, dict[str, Any]] = {block.x: {}}
        if by is not None:
            labels = enumerate(observed[by].values)
            parts = {f"{block.x}_{by}_{label}": {by: i} for i, label in labels}
        for name, part in parts.items():
            along = "observation" if name == "x" else f"observation_{name}"
            dims = [dim for dim in block.dims if dim not in part]
            keep = where.isel(part).transpose(*dims).values
            x, drawn = observed[block.x].isel(part), predicted[block.x].isel(part)
            observations[name] = (along, x.transpose(*dims).values[keep])
            values = drawn.transpose("chain", "draw", *dims).values[..., keep]
            predictions[name] = (("chain", "draw", along), values)
    draws = {dim: predicted[dim].values for dim in ("chain", "draw")}
    return xr.DataTree.from_dict(
        {
            "observed_data": xr.Dataset(observations),
            "posterior_predictive": xr.Dataset(predictions, coords=draws),
        }
    )


def fano_factor(counts: NDArray[Any], axis: int | tuple[int, ...] = -1) -> NDArray[Any]:
    """Variance over mean of counts along ``axis``: 1 for a Poisson process of constant rate."""
    mean = np.mean(counts, axis=axis)
    variance = np.var(counts, axis=axis)
    return np.divide(variance, mean, out=np.full(np.shape(mean), np.nan), where=mean > 0)
