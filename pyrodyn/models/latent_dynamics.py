"""What every model of the zoo is: two Pyro programs with the same latent sites::

    model(batch)   the generative program   p(latents) p(x | latents)
    guide(batch)   the inference program    q(latents | seen)

Both run inside the plate ``trials`` at dim -1, scaled so that a minibatch stands for its
recording. Every parameter is an ordinary `torch.nn.Parameter`: the global parameter store stays
empty, and a guide can be replaced by any Pyro callable with the same latent sites.
"""

import contextlib
import math
from abc import abstractmethod
from collections.abc import Container, Iterator
from typing import Any, ClassVar, TypeVar

import pyro
import torch
import xarray as xr
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch, Trials, num_units
from pyrodyn.data.schema import blocks, validate
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.observations import Joint, Observation, observation_for
from pyrodyn.models.parameters import registered

# A bound in brackets would name the class before it exists, which shape checks at run time refuse.
Model = TypeVar("Model", bound="LatentDynamics")


class LatentDynamics(nn.Module):
    """Abstract latent dynamical system.

    A subclass takes only JSON-serialisable arguments (``num_neurons``, ``input_dim`` and
    ``observation`` among them) and keeps them as ``config``, from
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
    observation: Observation

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("model", "guide"):
            if name in vars(cls):
                setattr(cls, name, registered(vars(cls)[name]))

    def __init__(self) -> None:
        super().__init__()
        self.record: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or pickle holds: without the weak references that Pyro's store, which cannot
        be pickled, leaves on parameters.
        """
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return vars(self)

    @classmethod
    def for_recording(cls: type[Model], recording: xr.Dataset, **sizes: Any) -> Model:
        """A model sized for a recording, whose readout starts at each neuron's mean.

        Args:
            recording: its trials.
            sizes: any argument of the class; the observation model defaults to ``"poisson"`` for
                counts and ``"gaussian"`` for a signal. For a recording of both it is named as
                ``observation={"counts": "negative_binomial", "signal": "gaussian"}``.

        Raises:
            ValueError: for sizes that make no model, data that make no recording, and observations
                that the observation model gives no density to.
        """
        recording = validate(recording)
        named = observation_for(blocks(recording), sizes.get("observation"))
        everything = Trials(recording).batch()
        assert everything.x is not None  # a recording always has observations
        sizes = cls.sizes_for(recording, {**sizes, "observation": named})
        seen = {"num_neurons": num_units(recording), "input_dim": everything.inputs.shape[-1]}
        model = cls(**seen, **sizes)
        model.observation.check(everything.x, everything.scored)
        with torch.no_grad():
            model.start_from(everything)
        return model

    @classmethod
    def sizes_for(cls, recording: xr.Dataset, sizes: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the class, completed by what a recording suggests."""
        return sizes

    def start_from(self, batch: Batch) -> None:
        """Set an untrained model by the moments of a recording: by default its observation model's
        parameters and the bias of the readout.
        """
        assert batch.x is not None
        self.start_readout(self.observation.initialise(batch.x, batch.scored))

    @abstractmethod
    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """Let the readout start at these linear predictors, whatever the latents."""

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

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def dynamics(self) -> Dynamics:
        """The noiseless dynamics, for the analysis of what was learned.

        Raises:
            ValueError: for a model that has none.
        """
        raise ValueError(f"{type(self).__name__} has no dynamics of its own to analyse")

    def diagnose(self, batch: Batch) -> list[str]:
        """What a user should be warned of after a fit, in a sentence each; by default nothing."""
        return []

    @property
    def bin_width(self) -> float:
        """Seconds per bin of the recording that the model was fitted to; 1, so that times are
        counted in bins, before any fit.
        """
        return float(self.record.get("data", {}).get("bin_width", 1.0))

    def check(self, recording: xr.Dataset) -> None:
        """Refuse a recording that this model cannot read.

        Raises:
            ValueError: naming what differs from the recording that the model was made for or
                fitted to, and observations that have no density.
        """
        made_for = "this model was made for"
        num_inputs = self.config["input_dim"]
        found_inputs = recording["inputs"].sizes["input"] if "inputs" in recording else 0
        held = blocks(recording)
        if isinstance(self.observation, Joint) != (len(held) > 1):
            names, wanted = " and ".join(b.observed for b in held), "counts and a signal"
            if len(held) > 1:
                wanted = "one of them, which pyrodyn.data.select_modality takes out"
            raise ValueError(f"the recording holds {names}; {made_for} {wanted}")
        sizes = [single.num_neurons for single in self.observation.singles()]
        for block, size in zip(held, sizes, strict=True):
            if block.size != size:
                raise ValueError(f"the recording has {block.size} {block.unit}s; {made_for} {size}")
        if found_inputs != num_inputs:
            raise ValueError(f"the recording has {found_inputs} inputs; {made_for} {num_inputs}")
        forecast = int(recording["forecast"].sum()) if "forecast" in recording.coords else 0
        shown = recording.sizes["time"] - forecast
        if shown <= self.first_bin:
            raise ValueError(
                f"the recording shows {shown} bins; this model needs more than its first"
                f" {self.first_bin}, which only set the initial condition"
            )
        self._check_against_record(recording)
        everything = Trials(recording).batch()
        assert everything.x is not None  # a recording always has observations
        self.observation.check(everything.x, everything.scored)

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that cannot be of a recording which `check` accepts.

        Raises:
            ValueError: naming what differs, or is not finite.
        """
        if not isinstance(batch, Batch):
            raise ValueError(
                f"a batch is wanted, not a {type(batch).__name__}; of a recording take"
                " model.trials_of(recording).batch()"
            )
        made_for = (self.observation.num_neurons, self.config["input_dim"])
        found = (batch.seen.shape[-1], batch.inputs.shape[-1])
        if found != made_for:
            raise ValueError(
                f"the batch has {found[0]} neurons or channels and {found[1]} inputs; this model"
                f" was made for {made_for[0]} and {made_for[1]}"
            )
        scored = None if batch.x is None else torch.where(batch.scored, batch.x, 0.0)
        for name, values in (("x", scored), ("seen", batch.seen), ("inputs", batch.inputs)):
            if values is not None and not values.isfinite().all():
                trial, t = (~values.isfinite()).nonzero()[0, :2].tolist()
                raise ValueError(
                    f"{name} of the batch is not finite at trial {int(batch.trial[trial])}, bin"
                    f" {t}; mark what was not measured in the recording's valid"
                )

    def _check_against_record(self, recording: xr.Dataset) -> None:
        """Refuse what differs from the recording that the model was fitted to."""
        fitted = self.record.get("data")
        if fitted is None:
            return
        held = blocks(recording)
        observed = " and ".join(block.observed for block in held)
        if observed != fitted["observed"]:
            raise ValueError(
                f"the recording holds {observed}; this model was fitted to {fitted['observed']}"
            )
        width = float(recording.attrs["bin_width"])
        if not math.isclose(width, fitted["bin_width"], rel_tol=1e-4):
            raise ValueError(
                f"the recording has bins of {width:g} s; this model was fitted to bins of"
                f" {fitted['bin_width']:g} s, so bin it anew"
            )
        for block in held:
            labels = [str(label) for label in recording[block.unit].values]
            if labels != fitted[block.unit] and sorted(labels) == sorted(fitted[block.unit]):
                first = next(i for i, label in enumerate(labels) if label != fitted[block.unit][i])
                raise ValueError(
                    f"{block.unit} {first} is {labels[first]!r}; this model was fitted to the same"
                    f" {block.unit}s in another order, with {fitted[block.unit][first]!r} there:"
                    f" bring them to that order by recording.sel({block.unit}=...)"
                )

    def encoder_view(self, batch: Batch) -> Float[Tensor, "trial time neuron"]:
        """What encoders read: counts, and channels of a signal in standardised units."""
        shown = batch.visible | (batch.seen != 0)
        return self.observation.standardised(batch.seen, shown, batch.gain)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    def trials_of(self, recording: xr.Dataset) -> Trials:
        """A recording's tensors, of the device and precision of this model."""
        return Trials(recording, self.device, next(self.parameters()).dtype)


SIZES = ("_dim", "_neurons", "_depth", "_width", "_units", "_bins", "substeps", "lag")
"""How the names of sizes end."""

SWITCHES = ("is_", "decay_per_latent", "filters_inputs", "process_noise")
"""How the names of options that are on or off begin."""


def check_config(config: dict[str, Any], may_be_zero: Container[str]) -> None:
    """Refuse sizes that are no whole numbers of at least 1, or of 0 where a part may be left out,
    and switches that are neither on nor off.

    Raises:
        ValueError: naming the first.
    """
    for name, value in config.items():
        if name.endswith(SIZES):
            check_integer(0 if name in may_be_zero else 1, **{name: value})
        elif name.startswith(SWITCHES) and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be True or False")
