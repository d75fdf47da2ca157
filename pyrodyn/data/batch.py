"""Batches: the tensors of some trials, as models and guides receive them.

Each training or evaluation technique of this field is a choice of two masks: which entries the
encoder may use (``visible``) and which entries enter the likelihood (``scored``). The transforms in
`pyrodyn.data.transforms` set them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrodyn.data.schema import blocks, measured


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some trials of a recording.

    Attributes:
        x: observations ``(trial, time, neuron)``, first the neurons and then the channels if both
            were recorded; 0 where nothing was measured. None asks the model to sample them
            (predictive use).
        seen: the encoder's view of ``x``: 0 where hidden, the rest rescaled if a transform does so.
        visible: which entries of ``seen`` are measurements that the encoder may use.
        scored: which entries enter the likelihood.
        inputs: known external inputs ``(trial, time, input)``; the last dim is empty if there are
            none.
        trial: positions of these trials in their recording.
        horizon: number of leading bins that the encoder may see; later bins are forecast.
        gain: factor by which the visible entries of ``seen`` were multiplied to compensate for the
            hidden ones.
        weight: how many trials of the recording each trial of this batch represents (N/B): the
            scale that makes a minibatch's log density an unbiased estimate of the recording's.
        scored_weight: how many measured entries each scored one represents if a transform scores a
            random fraction of them: the scale that keeps the likelihood in proportion to the KLs.
        is_complete: whether every entry is visible and scored; None where this is not known without
            looking at the masks, for which the host would have to wait for a GPU.
    """

    x: Float[Tensor, "trial time neuron"] | None
    seen: Float[Tensor, "trial time neuron"]
    visible: Bool[Tensor, "trial time neuron"]
    scored: Bool[Tensor, "trial time neuron"]
    inputs: Float[Tensor, "trial time input"]
    trial: Int[Tensor, " trial"]
    horizon: int
    gain: float = 1.0
    weight: float = 1.0
    scored_weight: float = 1.0
    is_complete: bool | None = None

    def __repr__(self) -> str:
        sizes = " x ".join(
            f"{size} {name}"
            for size, name in zip(self.seen.shape, ("trials", "bins", "neurons"), strict=True)
        )
        fractions = ", ".join(
            f"{float(mask.float().mean()):.0%} {name}"
            for name, mask in {"visible": self.visible, "scored": self.scored}.items()
        )
        inputs = f", {self.inputs.shape[-1]} inputs" if self.inputs.shape[-1] else ""
        forecast = self.num_bins - self.horizon
        return (
            f"Batch({sizes}{inputs}; {fractions}"
            + (f"; {forecast} forecast bins" if forecast else "")
            + ("; without observations" if self.x is None else "")
            + f"; {self.seen.dtype} on {self.seen.device})"
        )

    @property
    def num_trials(self) -> int:
        """Number of trials in this batch."""
        return self.seen.shape[0]

    @property
    def num_bins(self) -> int:
        """Number of bins per trial, forecast bins included."""
        return self.seen.shape[1]

    def replace(self, **changes: object) -> "Batch":
        """A copy with some fields changed; new masks are not known to be complete."""
        if "visible" in changes or "scored" in changes:
            changes = {"is_complete": None, **changes}
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def take(self, positions: Int[Tensor, " trial"] | slice) -> "Batch":
        """The trials at ``positions`` of this batch, in that order."""
        return self.replace(
            x=None if self.x is None else self.x[positions],
            seen=self.seen[positions],
            visible=self.visible[positions],
            scored=self.scored[positions],
            inputs=self.inputs[positions],
            trial=self.trial[positions],
            is_complete=self.is_complete or None,  # a part of incomplete trials may be complete
        )

    def as_seen(self) -> "Batch":
        """The same trials with only the visible entries scored: the data that a posterior is
        conditioned on. Held-out neurons and forecast bins, which are scored as well, would
        otherwise inform their own prediction.
        """
        return self.replace(scored=self.visible, scored_weight=1.0)

    def unobserved(self) -> "Batch":
        """The same trials without ``x``, which the model then samples; ``seen`` is kept."""
        return self.replace(x=None)


Transform = Callable[[Batch], Batch]
"""A training or evaluation transform, see `pyrodyn.data.transforms`."""


@runtime_checkable
class ScheduledTransform(Protocol):
    """A transform that changes during training."""

    def at_step(self, step: int) -> Transform:
        """The transform at a training step."""


def at_step(transform: Transform, step: int) -> Transform:
    """A transform at a training step."""
    return transform.at_step(step) if isinstance(transform, ScheduledTransform) else transform


class Trials:
    """A recording as tensors on one device, from which batches are taken by indexing.

    Args:
        recording: a validated recording; its ``held_out`` neurons and ``forecast`` bins are hidden
            from the encoder in every batch.
        device: device of the tensors.
        dtype: of the observations and inputs.
    """

    def __init__(
        self,
        recording: xr.Dataset,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        observed = blocks(recording)
        x = torch.cat([_tensor(recording[b.observed], dtype, device) for b in observed], -1)
        valid = torch.cat(
            [_tensor(measured(recording, b), torch.bool, device) for b in observed], -1
        )
        if "inputs" in recording:
            inputs = _tensor(recording["inputs"], dtype, device)
        else:
            inputs = x.new_zeros(*x.shape[:2], 0)
        visible = valid.clone()
        horizon = x.shape[1]
        for block in observed:
            if block.held_out in recording.coords:
                hidden = _tensor(recording[block.held_out], torch.bool, device)
                visible[:, :, block.columns] &= ~hidden
        if "forecast" in recording.coords:
            horizon = int((~recording["forecast"].values).sum())
            visible[:, horizon:] = False
        self._everything = Batch(
            x=x,
            seen=x * visible,
            visible=visible,
            scored=valid,
            inputs=inputs,
            trial=torch.arange(len(x), device=device),
            horizon=horizon,
            is_complete=bool(visible.all() and valid.all()),
        )

    def __len__(self) -> int:
        return self._everything.num_trials

    def __repr__(self) -> str:
        return repr(self._everything).replace("Batch", "Trials", 1)

    def batch(self, positions: Int[Tensor, " trial"] | slice | None = None) -> Batch:
        """The trials at ``positions`` (by default all), weighted to represent the recording."""
        everything = self._everything
        if positions is None:
            return everything
        part = everything.take(positions)
        return part.replace(weight=len(self) / part.num_trials)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All trials in order, ``batch_size`` at a time, each batch with weight 1."""
        for start in range(0, len(self), batch_size):
            yield self.batch(slice(start, start + batch_size)).replace(weight=1.0)


def _tensor(array: xr.DataArray, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array.values)).to(device=device, dtype=dtype)


def num_units(recording: xr.Dataset) -> int:
    """Number of neurons and channels of a recording."""
    return sum(block.size for block in blocks(recording))
