"""The base class of every model: two Pyro programs with the same latent sites::

    model(batch)   the generative program   p(latents) p(x | latents)
    guide(batch)   the inference program    q(latents | seen)

Both run inside the plate ``trials`` at dim -1, scaled by the number of trials of the recording per
trial of the minibatch. Every parameter is an ordinary `torch.nn.Parameter`, and a guide can be
replaced by any Pyro callable with the same latent sites.

Parameters may have priors (``priors=`` of `LatentDynamics.for_recording`). Each is then a latent
site of its own, drawn before the plate, and both programs run at the values drawn::

    model(batch)   theta ~ prior,   p(latents | theta) p(x | latents, theta)
    guide(batch)   theta ~ N(parameter, s^2),   q(latents | seen, theta)
"""

import contextlib
import itertools
import math
import warnings
from abc import abstractmethod
from collections.abc import Container, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import pyro
import torch
import xarray as xr
from jaxtyping import Float
from pyro import poutine
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch, Trials, num_units
from pyrodyn.data.schema import SESSIONS, blocks, validate
from pyrodyn.models.class_arguments import check_arguments, with_class_arguments
from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.observations import Joint, Observation, observation_for
from pyrodyn.models.parameters import refuse_pyro_samples, registered, substituted
from pyrodyn.models.priors import Priors, priors_of, sites_from_guide, sites_from_priors
from pyrodyn.models.summary import as_html, as_text, model_summary

# Run-time shape checks refuse a bound in brackets, since the class does not exist yet.
Model = TypeVar("Model", bound="LatentDynamics")

LONG_TRIAL = 5000
"""Bins above which a recording of one trial is probably a continuous recording."""


class LatentDynamics(nn.Module):
    """Abstract latent dynamical system.

    A subclass takes only JSON-serialisable arguments (``num_neurons``, ``input_dim`` and
    ``observation`` among them) and stores them as ``config``, which
    `save` writes to the card next to the weights. Its sites are ``x`` (observed), ``rates`` (the
    expected observation per bin, deterministic), and latent ones; ``site_dims`` names the event
    dims of each site for the DataTree.

    Attributes:
        config: the arguments this model was built with.
        record: how the model was fitted: ``data`` (schema of the recording it was fitted to) and
            ``training``.
        first_bin: the first bin of a batch that the model generates (later than 0 if leading
            bins only set the initial state).
        priors: of parameters, see `set_priors`; None for none.
        guide_parameters: patterns of the names of parameters on which only the guide depends.
        has_latents: whether there are latent sites in the plate over trials. Without any, the model
            is a density of the observations given those that its encoder sees.
    """

    site_dims: ClassVar[dict[str, tuple[str, ...]]]
    guide_parameters: ClassVar[tuple[str, ...]] = ()
    has_latents: ClassVar[bool] = True
    config: dict[str, Any]
    first_bin: int = 0
    observation: Observation

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, drawn in (("model", sites_from_priors), ("guide", sites_from_guide)):
            if name in vars(cls):
                setattr(cls, name, registered(vars(cls)[name], drawn))
        if "for_recording" not in vars(cls):
            inherited = cls.for_recording.__func__  # type: ignore[attr-defined]
            listed = classmethod(with_class_arguments(inherited, cls))
            cls.for_recording = listed  # type: ignore[method-assign, assignment]

    def __init__(self) -> None:
        super().__init__()
        self.record: dict[str, Any] = {}
        self.priors: Priors | None = None

    def __repr__(self) -> str:
        return as_text(self._summary())

    def _repr_html_(self) -> str:
        return as_html(self._summary())

    def _summary(self) -> list[tuple[str, str]]:
        # While a subclass builds itself it has no arguments yet, and an error may print it.
        config = vars(self).get("config", {})
        return model_summary(self, config, self.record, self.site_dims)

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy or pickle, without the weak references that Pyro's parameter store adds
        to parameters: weak references cannot be pickled.
        """
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return vars(self)

    @classmethod
    def for_recording(
        cls: type[Model],
        recording: xr.Dataset,
        *,
        seed: int | None = None,
        observation: str | Mapping[str, str] | None = None,
        priors: Mapping[str, Any] | None = None,
        **sizes: Any,
    ) -> Model:
        """A model with the sizes of a recording, its readout initialised at each neuron's mean.

        Args:
            recording: the trials.
            seed: of the initial weights, which are otherwise drawn by the current state of torch's
                random number generator.
            observation: observation model; by default ``"poisson"`` for counts and ``"gaussian"``
                for a signal. For a recording of both: ``{"counts": "negative_binomial", "signal":
                "gaussian"}``.
            priors: of parameters, see `set_priors`.
            sizes: other arguments of the class.

        Raises:
            TypeError: for an argument that the class does not have.
            ValueError: for invalid sizes, an invalid recording, priors that do not fit, and
                observations outside the support of the observation model.

        Warns:
            UserWarning: for one long trial, which `pyrodyn.data.segment` cuts.
        """
        check_arguments(cls, sizes)
        recording = validate(recording)
        if recording.sizes["trial"] == 1 and recording.sizes["time"] > LONG_TRIAL:
            warnings.warn(
                f"the recording is one trial of {recording.sizes['time']} bins; if it is"
                " continuous, cut it into trials by pyrodyn.data.segment",
                UserWarning,
                stacklevel=2,
            )
        spec = observation_for(blocks(recording), observation)
        everything = Trials(recording).batch()
        assert everything.x is not None  # a recording always has observations
        sizes = cls.sizes_for(recording, {**sizes, "observation": spec})
        seen = {"num_neurons": num_units(recording), "input_dim": everything.inputs.shape[-1]}
        with _seeded(seed):
            model = cls(**seen, **sizes)
        model.observation.check(everything.x, everything.scored)
        with torch.no_grad():
            model.start_from(everything)
            if _num_sessions(recording) > 1:
                # Its module needs this class.
                from pyrodyn.models.sessions import start_alike

                start_alike(model, recording, everything)
        if priors is not None:
            model.set_priors(priors)
        return model

    def set_priors(self, priors: Mapping[str, Any]) -> None:
        """Give parameters priors, in place of those that they have.

        A parameter with a prior is a latent site named as the parameter, drawn once for all trials.
        The guide draws it from a normal distribution around the parameter, independently for every
        entry, with scales that are trained (a tenth of the prior's standard deviation at first).

        Inference that is given no value for such a parameter, such as a particle filter or the
        analysis of the dynamics, takes the location of this guide, the parameter itself; `at` gives
        the model at other values.

        Args:
            priors: distributions of torch or Pyro by the names of their parameters, as
                ``named_parameters()`` has them, or by patterns such as ``"phi.*"``; an empty
                mapping takes all priors away. A prior has the shape of its parameter or expands to
                it, and the real line as its support. A positive quantity whose log is the parameter
                takes the prior of that log: ``TransformedDistribution(HalfNormal(1.0),
                [ExpTransform().inv])`` for a half-normal one.

        Raises:
            ValueError: for a name that is no parameter of the generative program, a shape or
                support that does not fit, and a distribution that a model's card cannot name.
        """
        self.priors = None
        parameters = dict(self.named_parameters())
        kind = type(self).__name__
        self.priors = priors_of(priors, parameters, self.guide_parameters, kind)

    def at(self: Model, values: Mapping[str, Tensor] | None = None) -> Model:
        """A copy of the model at values of its parameters, without priors. It shares all other
        tensors with the model.

        Args:
            values: by the names of parameters; a parameter without a value keeps its own, which for
                one with a prior is the location of its guide.

        Raises:
            ValueError: for a name that is no parameter's and a value of another shape.
        """
        values = {} if values is None else values
        parameters = dict(self.named_parameters())
        for name, value in values.items():
            if name not in parameters or parameters[name].shape != value.shape:
                wanted = tuple(parameters[name].shape) if name in parameters else "none"
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r} of the shape"
                    f" {tuple(value.shape)} (its own is {wanted})"
                )
        return substituted(self, values)

    def sample_parameters(self: Model) -> Model:
        """Draw the parameters with priors from the model's guide of them, for a guide of one's own:
        a Pyro site each, outside the plate over trials.

        Returns:
            The model at the values drawn.
        """
        return substituted(self, sites_from_guide(self))

    @classmethod
    def sizes_for(cls, recording: xr.Dataset, sizes: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the class, completed by defaults that depend on the recording."""
        return sizes

    def start_from(self, batch: Batch) -> None:
        """Initialise the model from the moments of a recording: by default the parameters of the
        observation model and the bias of the readout.
        """
        assert batch.x is not None
        self.start_readout(self.observation.initialise(batch.x, batch.scored))

    @abstractmethod
    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """Initialise the constant part of the readout with these linear predictors."""

    @abstractmethod
    def model(self, batch: Batch) -> None:
        """The generative program."""

    @abstractmethod
    def guide(self, batch: Batch) -> None:
        """The inference program."""

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the dims of parameters, for the DataTree: by default those of the observation
        model, which are per neuron.
        """
        if isinstance(self.observation, Joint):
            return {}
        names = (name for name, _ in self.observation.named_parameters())
        return {f"observation.{name}": ("neuron",) for name in names}

    def forward(self, batch: Batch) -> None:
        """Run `model`, so that this module can be passed to Pyro as a model."""
        self.model(batch)

    @contextlib.contextmanager
    def trials(self, batch: Batch) -> Iterator[None]:
        """The plate over trials, scaled from the minibatch to the whole recording."""
        with pyro.plate("trials", batch.num_trials, dim=-1), poutine.scale(scale=batch.weight):
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which the model is in evaluation mode."""
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
        """Warnings about a fit, in one sentence each; by default none."""
        return []

    @property
    def has_dropout(self) -> bool:
        """Whether any layer drops units out in training."""
        layers = (module for module in self.modules() if isinstance(module, nn.Dropout))
        return any(layer.p > 0 for layer in layers)

    def require_latents(self, what: str) -> None:
        """Refuse a model without latent sites.

        Args:
            what: needs them, as the subject of the error's sentence.

        Raises:
            ValueError: for a model that has none.
        """
        if not self.has_latents:
            raise ValueError(
                f"{what} needs latent sites, and {type(self).__name__} has none: it predicts"
                " observations from those that its encoder sees; draw its rates by"
                " method='dropout', or method='guide'"
            )

    @property
    def bin_width(self) -> float:
        """Seconds per bin of the recording that the model was fitted to. Before any fit it is 1, so
        that times are in bins.
        """
        return float(self.record.get("data", {}).get("bin_width", 1.0))

    def check(self, recording: xr.Dataset) -> None:
        """Refuse a recording that does not match this model.

        Raises:
            ValueError: if it differs from the recording that the model was made for or fitted to
                (the error states how), or has observations outside the support.
        """
        made_for = "this model was made for"
        num_inputs = self.config["input_dim"]
        found_inputs = recording["inputs"].sizes["input"] if "inputs" in recording else 0
        found = blocks(recording)
        if isinstance(self.observation, Joint) != (len(found) > 1):
            names, wanted = " and ".join(b.observed for b in found), "counts and a signal"
            if len(found) > 1:
                wanted = "one of them, which pyrodyn.data.select_modality selects"
            raise ValueError(f"the recording holds {names}; {made_for} {wanted}")
        sizes = [single.num_neurons for single in self.observation.singles()]
        for block, size in zip(found, sizes, strict=True):
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
        """Refuse a batch that cannot come from a recording that `check` accepts.

        Raises:
            ValueError: if its sizes differ from the model's or its values are not finite, and for
                a model with a `pyro.nn.PyroSample`.
        """
        if isinstance(self, PyroModule):
            refuse_pyro_samples(self)
        if not isinstance(batch, Batch):
            raise ValueError(
                f"expected a Batch, not a {type(batch).__name__}; make one from a recording by"
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
                    f" {t}; mark entries that were not measured as False in the recording's valid"
                )

    def _check_against_record(self, recording: xr.Dataset) -> None:
        """Refuse a recording that differs from the one that the model was fitted to."""
        fitted = self.record.get("data")
        if fitted is None:
            return
        found = blocks(recording)
        observed = " and ".join(block.observed for block in found)
        if observed != fitted["observed"]:
            raise ValueError(
                f"the recording holds {observed}; this model was fitted to {fitted['observed']}"
            )
        width = float(recording.attrs["bin_width"])
        if not math.isclose(width, fitted["bin_width"], rel_tol=1e-4):
            raise ValueError(
                f"the recording has bins of {width:g} s; this model was fitted to bins of"
                f" {fitted['bin_width']:g} s, so bin the recording at that width"
            )
        for block in found:
            labels = [str(label) for label in recording[block.unit].values]
            if labels != fitted[block.unit] and sorted(labels) == sorted(fitted[block.unit]):
                first = next(i for i, label in enumerate(labels) if label != fitted[block.unit][i])
                raise ValueError(
                    f"{block.unit} {first} is {labels[first]!r}; this model was fitted to the same"
                    f" {block.unit}s in another order, with {fitted[block.unit][first]!r} there:"
                    f" reorder them by recording.sel({block.unit}=...)"
                )

    def encoder_view(self, batch: Batch) -> Float[Tensor, "trial time neuron"]:
        """The input of the encoders: counts, and channels of a signal in standardised units."""
        shown = batch.visible | (batch.seen != 0)
        return self.observation.standardised(batch.seen, shown, batch.gain)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._like.device

    @property
    def _like(self) -> Tensor:
        """A tensor of the device and precision of the model, which may have no parameters."""
        return next(itertools.chain(self.parameters(), self.buffers()))

    def trials_of(self, recording: xr.Dataset) -> Trials:
        """A recording's tensors, on the device and in the precision of this model."""
        return Trials(recording, self.device, self._like.dtype)


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw by a seed inside, and restore torch's random number generator afterwards."""
    if seed is None:
        yield
        return
    check_integer(0, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _num_sessions(recording: xr.Dataset) -> int:
    """Number of sessions with trials in the recording."""
    name = SESSIONS["trial"]
    return len(set(recording[name].values.tolist())) if name in recording.coords else 1


SIZES = ("_dim", "_neurons", "_depth", "_width", "_units", "_bins", "substeps", "lag")
"""Suffixes of the names of sizes."""

SWITCHES = ("is_", "decay_per_latent", "filters_inputs", "process_noise")
"""Prefixes of the names of Boolean options."""


def check_config(config: dict[str, Any], may_be_zero: Container[str]) -> None:
    """Check that sizes are integers of at least 1, or of at least 0 if in ``may_be_zero``, and that
    Boolean options are True or False.

    Raises:
        ValueError: for the first argument that is invalid.
    """
    for name, value in config.items():
        if name.endswith(SIZES):
            check_integer(0 if name in may_be_zero else 1, **{name: value})
        elif name.startswith(SWITCHES) and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be True or False")
