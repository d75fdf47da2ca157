"""Checkpoints of a run: what they are of, and whether a run may go on from one.

A run that goes on must be the run that was begun: other weights do not fit, other data or another
seed would mix trials that were kept for validation with those it trains on. All of it is checked
before anything is trained or written.
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
"""Where a checkpoint keeps what it is of."""


def identity(
    train: xr.Dataset,
    valid: xr.Dataset | None,
    *,
    objective: Objective,
    transforms: Sequence[Transform],
    valid_transforms: Sequence[Transform],
    batch_size: int,
    average_weights: bool,
    seed: int,
) -> dict[str, str]:
    """What must not change between the parts of a run, by the names of the arguments of `fit` and
    its schedule.
    """
    return {
        "train": fingerprint(train),
        "valid": "None" if valid is None else fingerprint(valid),
        "objective": json.dumps(objective.describe(), default=repr),
        "transforms": _described(transforms),
        "valid_transforms": _described(valid_transforms),
        "batch_size": str(batch_size),
        "average_weights": str(average_weights),
        "seed": str(seed),
    }


def _described(transforms: Sequence[Transform]) -> str:
    """Those of `pyrodyn.data`, which say what they do; a user's own function does not."""
    return repr([transform for transform in transforms if dataclasses.is_dataclass(transform)])


def fingerprint(recording: xr.Dataset) -> str:
    """Sizes and a checksum of all that a model sees of a recording."""
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
    """Refuse a checkpoint that this run cannot go on from.

    Args:
        path: of the checkpoint.
        weights: of model and guide, by their names in it.
        wanted: the `identity` of the run.
        max_epochs: where it is to end.

    Raises:
        ValueError: for a broken checkpoint, and one of another run, naming what differs.
    """
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tuple(weight.shape) for name, weight in kept["state_dict"].items()}
        num_epochs = int(kept["epoch"])
    except Exception:  # whatever the bytes made torch stumble over
        raise ValueError(
            f"{path} is broken and cannot be resumed from: start a new run in another folder"
        ) from None
    if num_epochs > max_epochs:
        raise ValueError(
            f"{path} is of {num_epochs} epochs already; max_epochs={max_epochs} must not be less"
        )
    remedy = "resume with the arguments that the run was started with, or choose another folder"
    for name, value in kept.get(IDENTITY, {}).items():
        if value != wanted[name]:
            raise ValueError(
                f"{path} is of another run: {name} was {value} and is {wanted[name]} now; {remedy}"
            )
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted({*found, *shapes}):
        if found.get(name) != shapes.get(name):
            raise ValueError(
                f"{path} is of another model: {name} has the shape {found.get(name)} there and"
                f" {shapes.get(name)} here; {remedy}"
            )
