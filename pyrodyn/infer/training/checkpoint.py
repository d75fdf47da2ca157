"""The identity of a run in its checkpoint, and the check that a run may be resumed from one.

A run is resumed only with the arguments that it was started with: weights of another model do not
fit, and with other data or another seed validation trials might become training trials. This is
checked before anything is trained or written.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyrodyn.data.batch import Transform, Trials
from pyrodyn.infer.objectives.objective import Objective

CHECKPOINT = "last.ckpt"

IDENTITY = "pyrodyn_run"
"""Key of a checkpoint under which the identity of its run is stored."""


def identity(
    train: xr.Dataset,
    valid: xr.Dataset | None,
    *,
    guide: str | None,
    objective: Objective | None,
    transforms: Sequence[Transform],
    valid_transforms: Sequence[Transform],
    batch_size: int,
    average_weights: bool,
    seed: int,
) -> dict[str, str]:
    """The arguments of `fit` and its schedule that must not change when a run is resumed, as text
    by their names; ``guide`` is `guide_name`'s, and ``objective`` None for the recommended one,
    whose ramps follow the length of the fit.
    """
    return {
        "train": fingerprint(train),
        "valid": "None" if valid is None else fingerprint(valid),
        "guide": "the model's own" if guide is None else guide,
        "objective": "as recommended"
        if objective is None
        else json.dumps(objective.describe(), default=repr),
        "transforms": _described(transforms),
        "valid_transforms": _described(valid_transforms),
        "batch_size": str(batch_size),
        "average_weights": str(average_weights),
        "seed": str(seed),
    }


def _described(transforms: Sequence[Transform]) -> str:
    """Transforms that are dataclasses, as in `pyrodyn.data`; functions have no stable repr."""
    return repr([transform for transform in transforms if dataclasses.is_dataclass(transform)])


def fingerprint(recording: xr.Dataset) -> str:
    """Sizes and a checksum of everything in a recording that enters a model."""
    everything = Trials(recording).batch()
    assert everything.x is not None  # a recording always has observations
    checksum = 0
    for tensor in (everything.x, everything.visible, everything.scored, everything.inputs):
        checksum = zlib.crc32(tensor.contiguous().numpy(), checksum)
    sizes = " x ".join(str(size) for size in everything.x.shape)
    return f"trials x bins x neurons {sizes}, checksum {checksum:08x}"


def check_resumable(
    path: Path, weights: Mapping[str, Tensor], wanted: dict[str, str], max_epochs: int
) -> None:
    """Raise for a checkpoint from which this run cannot be resumed.

    Args:
        path: path of the checkpoint.
        weights: state of model and guide, by names as in the checkpoint.
        wanted: the `identity` of the run.
        max_epochs: epochs of the whole run.

    Raises:
        ValueError: for a broken checkpoint, and for one of another run, naming what differs.
    """
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tuple(weight.shape) for name, weight in kept["state_dict"].items()}
        num_epochs = int(kept["epoch"])
    except Exception:  # torch.load raises errors of many kinds for broken files
        raise ValueError(
            f"{path} is broken and cannot be resumed from: start a new run in another folder"
        ) from None
    if num_epochs > max_epochs:
        raise ValueError(
            f"{path} has {num_epochs} epochs already; max_epochs={max_epochs} must not be less"
        )
    remedy = "resume with the arguments that the run was started with, or choose another folder"
    for name, value in kept.get(IDENTITY, {}).items():
        if value != wanted[name]:
            raise ValueError(
                f"{path} belongs to another run: {name} was {value} and is {wanted[name]} now;"
                f" {remedy}"
            )
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted({*found, *shapes}):
        if found.get(name) != shapes.get(name):
            raise ValueError(
                f"{path} belongs to another model: {name} has the shape {found.get(name)} there and"
                f" {shapes.get(name)} here; {remedy}"
            )
