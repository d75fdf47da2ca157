"""What a check needs of a tree: that it is one, its groups, and enough draws."""

import xarray as xr

from pyrodyn.posterior.ranks import SAMPLE_DIMS


def require_groups(tree: xr.DataTree, *groups: str) -> None:
    """Refuse what is no tree, and a tree without some groups.

    Raises:
        ValueError: naming what is missing.
    """
    if not isinstance(tree, xr.DataTree):
        raise ValueError(
            "expected the DataTree that to_datatree returns, not a value of type"
            f" {type(tree).__name__}"
        )
    missing = [name for name in groups if name not in tree.children]
    if missing:
        raise ValueError(
            f"the tree has no group {' and '.join(missing)}; its groups are"
            f" {', '.join(tree.children) or 'none'}"
        )


def require_draws(draws: xr.Dataset | xr.DataArray) -> None:
    """Refuse a single draw, which has no distribution to compare with.

    Raises:
        ValueError: for fewer than two draws of all chains together.
    """
    number = 1
    for dim in SAMPLE_DIMS:
        number *= draws.sizes.get(dim, 1)
    if number < 2:
        raise ValueError(f"the tree has {number} draw; it takes at least 2, see num_draws=")
