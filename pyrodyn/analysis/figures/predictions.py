"""What figures draw: means and standard deviations of a posterior, whichever form it comes in."""

import xarray as xr

SAMPLE_DIMS = ("chain", "draw")


def moments(predicted: xr.Dataset | xr.DataTree) -> xr.Dataset:
    """Posterior means, with standard deviations as ``{site}_sd``.

    Args:
        predicted: from `pyrodyn.predict`, which is returned as it is, or a tree from
            `pyrodyn.to_datatree`, whose draws are averaged.

    Raises:
        ValueError: for a tree without a group ``posterior``.
    """
    if isinstance(predicted, xr.Dataset):
        return predicted
    if "posterior" not in predicted.children:
        groups = ", ".join(predicted.children) or "none"
        raise ValueError(f"the tree has no group posterior to draw; its groups are {groups}")
    draws = predicted["posterior"].to_dataset()
    means, sds = draws.mean(SAMPLE_DIMS), draws.std(SAMPLE_DIMS)
    return means.assign({f"{name}_sd": values for name, values in sds.items()})


def latents_of(predicted: xr.Dataset) -> xr.DataArray:
    """The low-dimensional latents of a prediction, ``(trial, time, latent)``: factors of LFADS, or
    the latent state z of other models.

    Raises:
        ValueError: if it has neither.
    """
    for name in ("factors", "z"):
        if name in predicted and "time" in predicted[name].dims:
            latents = predicted[name]
            (own,) = (dim for dim in latents.dims if dim not in ("trial", "time"))
            return latents.transpose("trial", "time", own).rename({own: "latent"})
    raise ValueError(f"no factors and no z over time among {', '.join(map(str, predicted))}")
