"""Predictive checks of neural data with ArviZ's plots.

ArviZ's plots of counts want integer observations along one dim, one variable per panel. `for_ppc`
gives them that view of a tree. The statistics are callables for `arviz_plots.plot_ppc_tstat`.
"""

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def for_ppc(
    tree: xr.DataTree, by: Literal["neuron", "channel", "trial"] | None = None
) -> xr.DataTree:
    """A tree whose observations lie along one dim ``observation``, measured entries only.

    Args:
        tree: from `to_datatree`.
        by: a dim that becomes one variable per label (``x_neuron_3``), hence one panel each; None
            stacks everything into ``x``.

    Returns:
        A tree with the groups ``observed_data`` and ``posterior_predictive``, loaded; integers
        where the data are counts.

    Raises:
        ValueError: when ``by`` is no dim of the observations.
    """
    observed = tree["observed_data"].to_dataset()["x"].load()
    predicted = tree["posterior_predictive"].to_dataset()["x"].load()
    if by is not None and by not in observed.dims:
        raise ValueError(f"by={by!r} is no dim of the observations; these are {observed.dims}")
    valid = tree["constant_data"].to_dataset().get("valid")
    measured = (
        xr.ones_like(observed, dtype=bool) if valid is None else valid.broadcast_like(observed)
    )

    def stacked(values: xr.DataArray, part: dict[str, Any]) -> NDArray[Any]:
        dims = [dim for dim in observed.dims if dim not in part]
        keep = measured.isel(part).transpose(*dims).values
        own = [dim for dim in values.dims if dim in ("chain", "draw")]
        return values.isel(part).transpose(*own, *dims).values[..., keep]

    parts: dict[str, dict[str, Any]] = {"x": {}}
    if by is not None:
        labels = observed[by].values
        parts = {f"x_{by}_{label}": {by: i} for i, label in enumerate(labels)}
    observations, predictions = {}, {}
    for name, part in parts.items():
        dim = "observation" if by is None else f"observation_{name}"
        observations[name] = (dim, stacked(observed, part))
        predictions[name] = (("chain", "draw", dim), stacked(predicted, part))
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
