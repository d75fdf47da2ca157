"""Attributes of recordings in files, and the digest by which a damaged file is recognised.

netCDF and Zarr hold attributes of text and numbers, a few names of which change the data when they
are read (``scale_factor``) or belong to the format (``CLASS``). All other attributes are stored as
JSON text in the one attribute `JSON`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

JSON, DIGEST = "json_attributes", "pyrodyn_sha256"
"""Attributes that hold the others as JSON, and the digest."""

PLAIN = {
    "bin_width",
    "units",
    "long_name",
    "standard_name",
    "description",
    "comment",
    "name",
    "title",
    "source",
}
"""Names whose texts and numbers are stored as they are, for other programs to read."""


def attributes_json(attrs: Mapping[Any, Any], name: str) -> str:
    """Attributes as JSON text that gives exactly the same back; arrays come back as lists.

    Raises:
        ValueError: for values that JSON does not represent exactly.
    """
    for key, value in attrs.items():
        shown = f"{name} {key}"
        _check(value, shown if shown.isprintable() else repr(shown))
        if not isinstance(key, str):
            raise ValueError(f"{name} has the name {key!r}; names of attributes are texts")
    return json.dumps(dict(attrs), default=lambda array: array.tolist())


def _check(value: Any, name: str) -> None:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} is a dict with keys that are no texts")
        for key, item in value.items():
            _check(item, f"{name}[{key!r}]")
    elif isinstance(value, list):
        for item in value:
            _check(item, name)
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biufU":
            raise ValueError(f"{name} has dtype {value.dtype}, which JSON cannot represent")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(
            f"{name} is {value!r}, which JSON cannot represent; attributes may be texts, numbers,"
            " lists and dicts"
        )


def to_stored(attrs: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Attributes of a dataset or variable as netCDF and Zarr hold them."""
    plain = {
        key: value
        for key, value in attrs.items()
        if key in PLAIN and (type(value) is float or (type(value) is str and value.isprintable()))
    }
    others = {key: value for key, value in attrs.items() if key not in plain}
    return plain | ({JSON: attributes_json(others, name)} if others else {})


def from_stored(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """The inverse of `to_stored`; attributes of other programs are kept.

    Raises:
        ValueError: if the attribute `JSON` is not a JSON object.
    """
    plain = {
        str(name): value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in attrs.items()
        if name not in (JSON, "_FillValue")
    }
    others = json.loads(attrs.get(JSON, "{}"))
    if not isinstance(others, dict):
        raise ValueError(f"the attribute {JSON} must be the JSON text of an object")
    return plain | others


def digest(data: xr.Dataset) -> str:
    """SHA-256 of all that a validated recording holds."""
    found = hashlib.sha256()
    for name in sorted(map(str, data.variables)):
        variable = data[name].variable
        attrs = _sorted_json(variable.attrs).decode()
        about = (name, name in data.coords, list(map(str, variable.dims)), variable.shape, attrs)
        if variable.dtype.kind == "U":
            found.update(json.dumps([*about, "text", variable.values.tolist()]).encode())
        else:
            found.update(json.dumps([*about, variable.dtype.str]).encode())
            found.update(np.ascontiguousarray(variable.values).ravel().view(np.uint8).data)
    found.update(_sorted_json({k: value for k, value in data.attrs.items() if k != DIGEST}))
    return found.hexdigest()


def _sorted_json(attrs: Mapping[Any, Any]) -> bytes:
    return json.dumps(attrs, sort_keys=True, default=lambda array: array.tolist()).encode()
