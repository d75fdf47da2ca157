"""Ranks of a value among draws."""

import numpy as np
import xarray as xr

SAMPLE_DIMS = ("chain", "draw")
"""Dims along which draws lie."""


def fractional_rank(
    value: xr.DataArray, draws: xr.DataArray, rng: np.random.Generator
) -> xr.DataArray:
    """Rank of a value among draws, with ties broken at random, as a fraction::

        (#{draw < value} + u (#{draw = value} + 1)) / (num_draws + 1),    u ~ U(0, 1)

    Uniform on (0, 1) whenever the value is one more draw of the same distribution, discrete or
    continuous. The rank itself is the integer part of the fraction times ``num_draws + 1``.

    Args:
        value: the values.
        draws: the same dims, and ``chain``, ``draw`` or both.
        rng: draws u.

    Returns:
        Fractions with the dims of ``value``.
    """
    dims = [dim for dim in SAMPLE_DIMS if dim in draws.dims]
    num_draws = int(np.prod([draws.sizes[dim] for dim in dims]))
    below, equal = (draws < value).sum(dims), (draws == value).sum(dims)
    return (below + rng.random(value.shape) * (equal + 1)) / (num_draws + 1)
