"""What every model of the zoo is: two Pyro programs with the same latent sites::

    model(batch)   the generative program   p(latents) p(x | latents)
    guide(batch)   the inference program    q(latents | seen)

Both run inside the plate ``trials`` at dim -1, scaled so that a minibatch stands for its
recording. Every parameter is an ordinary `torch.nn.Parameter`: the global parameter store stays
empty, and a guide can be replaced by any Pyro callable with the same latent sites.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import nn

from pyrodyn.data.batch import Batch, Trials
from pyrodyn.data.recording import unit_dim
from pyrodyn.models.dynamics import Dynamics


class LatentDynamics(nn.Module):
    """Abstract latent dynamical system.

    A subclass takes only JSON-serialisable keyword arguments and keeps them as ``config``, from
    which `save` writes the card beside the weights. Its sites are ``x`` (observed), ``rates`` (the
    expected observation per bin, deterministic), and latent ones; ``site_dims`` names the event
    dims of each for the DataTree.

    Attributes:
        config: the arguments this model was built with.
        record: what is known of the model's making: ``data`` (schema of the recording it was
            fitted to) and ``training``.
        first_bin: the first bin of a batch that the model generates (later than 0 where leading
            bins only set the initial state).
    """

    site_dims: ClassVar[dict[str, tuple[str, ...]]]
    config: dict[str, Any]
    first_bin: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.record: dict[str, Any] = {}

    @classmethod
    @abstractmethod
    def for_recording(cls, recording: xr.Dataset, **sizes: Any) -> "LatentDynamics":
        """A model sized for a recording, its readout starting at the recording's mean."""

    @abstractmethod
    def model(self, batch: Batch) -> None:
        """The generative program."""

    @abstractmethod
    def guide(self, batch: Batch) -> None:
        """The inference program."""

    def forward(self, batch: Batch) -> None:
        """Run `model`, so that this module can be handed to Pyro wherever a model is asked for."""
        self.model(batch)

    @contextlib.contextmanager
    def trials(self, batch: Batch) -> Iterator[None]:
        """The plate over trials, with the scale by which a minibatch stands for its recording."""
        with pyro.plate("trials", batch.num_trials, dim=-1), poutine.scale(scale=batch.weight):
            yield

    def dynamics(self) -> Dynamics:
        """The noiseless dynamics, for the analysis of what was learned.

        Raises:
            ValueError: for a model that has none.
        """
        raise ValueError(f"{type(self).__name__} has no dynamics of its own to analyse")

    @property
    def bin_width(self) -> float:
        """Seconds per bin of the recording that the model was fitted to; 1, so that times are
        counted in bins, before any fit.
        """
        return float(self.record.get("data", {}).get("bin_width", 1.0))

    def check(self, recording: xr.Dataset) -> None:
        """Refuse a recording that this model cannot read.

        Raises:
            ValueError: naming what differs from the recording that the model was made for.
        """
        unit, made_for = unit_dim(recording), "this model was made for"
        num_neurons, num_inputs = self.config["num_neurons"], self.config["input_dim"]
        found, found_inputs = recording.sizes[unit], recording.sizes.get("input", 0)
        if found != num_neurons:
            raise ValueError(f"the recording has {found} {unit}s; {made_for} {num_neurons}")
        if found_inputs != num_inputs:
            raise ValueError(f"the recording has {found_inputs} inputs; {made_for} {num_inputs}")
        forecast = int(recording["forecast"].sum()) if "forecast" in recording.coords else 0
        shown = recording.sizes["time"] - forecast
        if shown <= self.first_bin:
            raise ValueError(
                f"the recording shows {shown} bins; this model needs more than its first"
                f" {self.first_bin}, which only set the initial condition"
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    def trials_of(self, recording: xr.Dataset) -> Trials:
        """A recording's tensors, on this model's device."""
        return Trials(recording, self.device)
