"""Trees that netCDF and Zarr can hold, and trees streamed to Zarr part by part."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr


def storable(data: xr.Dataset) -> xr.Dataset:
    """A dataset as files and trees can hold it.

    Attributes that are neither text nor numbers become JSON text, and a slash in a name, which
    separates groups, an underscore.
    """
    names = {str(name): str(name) for name in data.variables}
    for name in names:
        plain = name.replace("/", "_")
        while plain != name and plain in names.values():
            plain += "_"
        names[name] = plain
    data = data.rename({old: new for old, new in names.items() if old != new})
    data.attrs = _plain(data.attrs)
    for variable in data.variables:
        data[variable].attrs = _plain(data[variable].attrs)
    return data


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): value
        if isinstance(value, str | int | float) and not isinstance(value, bool)
        else json.dumps(value, default=str)
        for name, value in attrs.items()
    }


def new_zarr(path: str | Path) -> Path:
    """A path to which a tree can be streamed.

    Raises:
        ValueError: when it does not end in .zarr, or exists.
    """
    path = Path(path)
    if path.suffix != ".zarr":
        raise ValueError(f"{path} must end in .zarr, the format a posterior is streamed to")
    if path.exists():
        raise ValueError(f"{path} exists already; remove it or choose another name")
    return path


def joined(parts: list[dict[str, xr.Dataset]]) -> dict[str, xr.Dataset]:
    """Groups of consecutive trials as groups of all; what has no trials is that of the first."""
    groups = {}
    for name, first in parts[0].items():
        rest = [_per_trial(part[name]) for part in parts[1:]]
        local = xr.concat([_per_trial(first), *rest], dim="trial")
        groups[name] = first.drop_vars(local.variables.keys(), errors="ignore").merge(local)
        groups[name].attrs = first.attrs
    return groups


def stream(
    parts: Iterator[dict[str, xr.Dataset]],
    data: Mapping[str, xr.Dataset],
    attrs: dict[str, Any],
    target: Path,
) -> xr.DataTree:
    """Append part after part along trial beside the target, then rename: the target is complete or
    absent.
    """
    beside = target.with_suffix(".zarr.part")
    shutil.rmtree(beside, ignore_errors=True)
    xr.Dataset(attrs=attrs).to_zarr(beside, consolidated=False)
    for position, part in enumerate(parts):
        for name, dataset in part.items():
            if position:
                _per_trial(dataset).to_zarr(
                    beside, group=name, consolidated=False, append_dim="trial"
                )
            else:
                dataset.to_zarr(beside, group=name, consolidated=False, mode="a")
    for name, dataset in data.items():
        dataset.to_zarr(beside, group=name, mode="a", consolidated=False)
    beside.replace(target)
    return xr.open_datatree(target, engine="zarr", consolidated=False)


class PartFiles:
    """Results of parts of a long run, kept beside its target until the run is complete.

    Args:
        target: where the whole is to go, from `new_zarr`.
        settings: what determines the results, JSON-serialisable.

    Raises:
        ValueError: when parts of a run with other settings are there.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any]) -> None:
        self.target, self.folder = target, target.with_suffix(".zarr.parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        card = self.folder / "settings.json"
        if card.exists():
            kept = json.loads(card.read_text())
            for name, value in settings.items():
                if kept.get(name) != value:
                    raise ValueError(
                        f"{self.folder} holds parts of a run with another {name}; remove it or"
                        " choose another path"
                    )
        _write(card, lambda beside: beside.write_text(json.dumps(dict(settings))))

    def load(self, number: int) -> xr.DataTree | None:
        """A part that was saved, None if it was not."""
        path = self._path(number)
        if not path.exists():
            return None
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()

    def save(self, number: int, part: xr.DataTree) -> None:
        """Keep a part: it is there as a whole or not at all."""
        _write(self._path(number), lambda beside: part.to_netcdf(beside, engine="h5netcdf"))

    def finish(self, whole: xr.DataTree) -> xr.DataTree:
        """Write the whole to the target, remove the parts and open the target lazily."""
        _write(self.target, lambda beside: whole.to_zarr(beside, consolidated=False))
        shutil.rmtree(self.folder)
        return xr.open_datatree(self.target, engine="zarr", consolidated=False)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.nc"


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside a path, then rename."""
    beside = path.with_name(f"{path.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    write(beside)
    beside.replace(path)


def _per_trial(dataset: xr.Dataset) -> xr.Dataset:
    return dataset[[name for name, values in dataset.items() if "trial" in values.dims]]
