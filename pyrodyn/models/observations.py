"""Observation models: the distribution of the observations of a bin given the latent state::

    p(x_t | eta_t) = prod_n p(x_tn | eta_tn),     eta_t: the linear predictors,
                                                      computed by the readout

=========================  ======  ===================================  ==========================
name                       data    linear predictors                    learned per neuron
=========================  ======  ===================================  ==========================
``poisson``                counts  log mean
``negative_binomial``      counts  log mean                             log dispersion
``zero_inflated_poisson``  counts  log mean of the Poisson;
                                   logit of an extra zero
``bernoulli``              0 or 1  logit of a spike
``gaussian``               real    standardised mean                    log standard deviation
``gamma``                  > 0     log mean                             log concentration
``zero_inflated_gamma``    >= 0    log mean of the nonzero part;        log concentration
                                   logit of 0
=========================  ======  ===================================  ==========================

Where there are two linear predictors per neuron, the first ones of all neurons come before the
second ones of all neurons. Every model of the zoo takes the name of its observation model as an
argument.

For a recording that holds both spike counts and a signal, such as a field potential, `Joint`
combines two observation models, which are independent given the latent state::

    p(x_t | eta_t) = p_counts(x_t1 .. x_tN | eta_t) p_signal(x_t,N+1 .. | eta_t)

Its linear predictors are those of the counts, followed by those of the signal.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, final

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from pyrodyn.data.schema import OBSERVED, Block, blocks_of
from pyrodyn.distributions.concatenated import Concatenated
from pyrodyn.distributions.counts import (
    LogPoisson,
    NegativeBinomialMean,
    ZeroInflatedLogPoisson,
)
from pyrodyn.distributions.gamma import MeanGamma
from pyrodyn.distributions.gamma import ZeroInflatedGamma as ZeroInflatedGammaDistribution
from pyrodyn.distributions.masked import Masked

DISPERSION_RANGE = (1e-2, 1e1)
"""Bounds on the initial dispersion of a negative binomial; the gradient does not vanish there."""

CONCENTRATION_RANGE = (1e-1, 1e3)
"""Bounds on the initial concentration of a gamma: an exponential has 1, a large one is nearly
constant.
"""

GATE_RANGE = (0.05, 0.95)
"""Bounds on the initial probability of an extra zero."""

CONSTANT_TOLERANCE = 1e-6
"""Standard deviation relative to the mean below which a channel is constant up to rounding."""


class Predictors(NamedTuple):
    """The meaning of the linear predictors of an observation model.

    Attributes:
        neuron: index of the neuron that each predictor belongs to.
        is_log_mean: whether each predictor is a log mean.
    """

    neuron: Int[Tensor, " predictor"]
    is_log_mean: Bool[Tensor, " predictor"]


class GaussianPart(NamedTuple):
    """The channels whose distribution is Normal(offset + unit * linear predictor, scale).

    Attributes:
        columns: their positions among the neurons and channels.
        predictors: positions of their linear predictors.
        scale: their standard deviations.
        offset: see `Signal`.
        unit: see `Signal`.
    """

    columns: slice
    predictors: slice
    scale: Float[Tensor, " channel"]
    offset: Float[Tensor, " channel"]
    unit: Float[Tensor, " channel"]


class Observation(nn.Module):
    """Abstract observation model of ``num_neurons`` neurons or channels.

    Attributes:
        filler: a value inside the support, which replaces entries that are not scored.
    """

    filler: ClassVar[float] = 0.0

    def __init__(self, num_neurons: int) -> None:
        super().__init__()
        self.num_neurons = num_neurons

    @abstractmethod
    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """The distribution of the entries ``(*batch, time, neuron)``, which are independent given
        the linear predictors.
        """

    @abstractmethod
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Initialise the parameters from the moments of the data.

        Sets the parameters per neuron and returns the linear predictors under which every neuron
        has its mean over the data; as the bias of a readout they initialise a model there. Moments
        over all bins count changes of the rate as noise, so the initial variances are too large
        rather than too small.

        Args:
            x: observations inside the support wherever ``valid``.
            valid: which entries were measured.
        """

    @abstractmethod
    def check(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> None:
        """Refuse data outside the support.

        Raises:
            ValueError: with the first such value, its position and the observation models that fit
                the data.
        """

    @abstractmethod
    def singles(self) -> "tuple[Single, ...]":
        """The observation models that this one consists of, in order, one per kind of neuron or
        channel.
        """

    @property
    def predictor_dim(self) -> int:
        """Total number of linear predictors."""
        return sum(single.num_neurons * single.num_predictors for single in self.singles())

    def predictors(self) -> Predictors:
        """The neuron and the meaning of every linear predictor, in order."""
        neurons, log_means, start = [], [], 0
        for single in self.singles():
            positions = torch.arange(single.num_neurons).repeat(single.num_predictors)
            is_first = torch.arange(len(positions)) < single.num_neurons
            neurons.append(start + positions)
            log_means.append(is_first & single.has_log_mean)
            start += single.num_neurons
        return Predictors(torch.cat(neurons), torch.cat(log_means))

    def gaussian_part(self) -> GaussianPart | None:
        """The channels that are Gaussian around their linear predictor; None if there are none."""
        column, predictor = 0, 0
        parts = []
        for single in self.singles():
            end, last = column + single.num_neurons, predictor + single.predictor_dim
            if isinstance(single, Gaussian):
                columns, rows = slice(column, end), slice(predictor, last)
                parts.append(
                    GaussianPart(columns, rows, single.scale(), single.offset, single.unit)
                )
            column, predictor = end, last
        if not parts:
            return None
        # Two Gaussian parts are adjacent, so one slice spans both.
        return GaussianPart(
            slice(parts[0].columns.start, parts[-1].columns.stop),
            slice(parts[0].predictors.start, parts[-1].predictors.stop),
            torch.cat([part.scale for part in parts]),
            torch.cat([part.offset for part in parts]),
            torch.cat([part.unit for part in parts]),
        )

    def is_gaussian(self) -> bool:
        """Whether all neurons and channels are Gaussian around their linear predictor."""
        return all(isinstance(single, Gaussian) for single in self.singles())

    @torch.no_grad()
    def use_raw_units(self) -> None:
        """Set offset 0 and unit 1, so that the linear predictors of a signal are in the unit of the
        data. This is meant for readout weights that are set by hand rather than fitted.
        """
        for single in self.singles():
            if isinstance(single, Signal):
                single.offset.zero_()
                single.unit.fill_(1.0)
                single.varies.fill_(1.0)

    def units(self) -> Float[Tensor, " neuron"]:
        """The unit of every channel of a signal, and 1 for neurons."""
        return torch.cat(
            [
                single.unit if isinstance(single, Signal) else torch.ones(single.num_neurons)
                for single in self.singles()
            ]
        )

    def standardised(
        self,
        x: Float[Tensor, "trial time neuron"],
        shown: Bool[Tensor, "trial time neuron"],
        gain: float = 1.0,
    ) -> Float[Tensor, "trial time neuron"]:
        """Observations as encoders receive them: counts are unchanged; channels of a signal have
        mean 0 and standard deviation 1 over the recording that the model was made for.

        Args:
            x: observations multiplied by ``gain``, 0 where not ``shown``.
            shown: which entries are observations.
            gain: see `Batch`.
        """
        singles = self.singles()
        if not any(isinstance(single, Signal) for single in singles):
            return x
        parts = zip(
            singles,
            x.split([single.num_neurons for single in singles], -1),
            shown.split([single.num_neurons for single in singles], -1),
            strict=True,
        )
        return torch.cat(
            [
                (part - where * (gain * single.offset)) / single.unit
                if isinstance(single, Signal)
                else part
                for single, part, where in parts
            ],
            -1,
        )


class Single(Observation):
    """Abstract observation model whose neurons or channels are all of one kind.

    Attributes:
        observed: the variable of a recording that it models, ``"counts"`` or ``"signal"``.
        num_predictors: number of linear predictors per neuron.
        has_log_mean: whether the first of them is a log mean.
        support: the values that have a density.
        domain: the support in words.
    """

    observed: ClassVar[str]
    num_predictors: ClassVar[int] = 1
    has_log_mean: ClassVar[bool] = False
    support: ClassVar[constraints.Constraint]
    domain: ClassVar[str]

    def check(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> None:
        """Refuse data outside the support."""
        wrong = valid & ~self.support.check(x)
        if not wrong.any():
            return
        trial, time, neuron = wrong.nonzero()[0].tolist()
        measured = x[valid]
        fitting = [
            name for name, kind in OBSERVATIONS.items() if kind.support.check(measured).all()
        ]
        raise ValueError(
            f"{type(self).__name__} observations are {self.domain}, but neuron {neuron} is"
            f" {x[trial, time, neuron]:g} at trial {trial}, bin {time};"
            f" observation models for these data: {', '.join(fitting) or 'none (not finite)'}"
        )

    def singles(self) -> "tuple[Single, ...]":
        """A tuple of this model alone."""
        return (self,)


@final
class Poisson(Single):
    """Counts whose variance equals their mean."""

    observed = "counts"
    has_log_mean = True
    support = constraints.nonnegative_integer
    domain = "integers >= 0"

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """Poisson(exp(predictors))."""
        return LogPoisson(predictors, validate_args=False)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Log mean counts."""
        return _moments(x, valid).floored_mean().log()


@final
class NegativeBinomial(Single):
    """Overdispersed counts: variance m + phi m^2, with a dispersion phi per neuron."""

    observed = "counts"
    has_log_mean = True
    support = constraints.nonnegative_integer
    domain = "integers >= 0"

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.log_dispersion = nn.Parameter(torch.full((num_neurons,), -2.0))

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """Negative binomial with mean exp(predictors)."""
        return NegativeBinomialMean(predictors, self.log_dispersion, validate_args=False)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Log mean counts, and phi such that the variance is that of rates r and of counts::

            Var[x] = E[r] + phi E[r^2] + Var[r]
            phi    = (Var[x] - m - a) / (m^2 + a)

        with the mean m, and Var[r] = a the covariance of consecutive bins, in which independent
        noise of single bins has no part.
        """
        moments = _moments(x, valid)
        mean = moments.floored_mean()
        excess = (moments.variance - mean).clamp_min(0)
        a = torch.minimum(_covariance_of_bins(x, valid, moments.mean).clamp_min(0), excess)
        dispersion = (excess - a) / (mean**2 + a)
        self.log_dispersion.copy_(dispersion.clamp(*DISPERSION_RANGE).log())
        return mean.log()


@final
class ZeroInflatedPoisson(Single):
    """Poisson counts with extra zeros, whose probability varies in time."""

    observed = "counts"
    num_predictors = 2
    has_log_mean = True
    support = constraints.nonnegative_integer
    domain = "integers >= 0"

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """Poisson with log mean ``predictors[..., :num_neurons]``; the remaining predictors are the
        logits of an extra zero.
        """
        log_rate, gate_logits = predictors.chunk(2, -1)
        return ZeroInflatedLogPoisson(log_rate, gate_logits, validate_args=False)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """E[x] = (1 - pi) m and E[x (x - 1)] = (1 - pi) m^2, solved for m and pi."""
        moments = _moments(x, valid)
        mean = moments.floored_mean()
        factorial = moments.variance + mean**2 - mean
        gate = (1 - mean**2 / factorial.clamp(min=mean**2)).clamp(*GATE_RANGE)
        return torch.cat([(mean / (1 - gate)).log(), gate.logit()])


@final
class Bernoulli(Single):
    """At most one spike per bin."""

    observed = "counts"
    support = constraints.boolean
    domain = "0 or 1"

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """Bernoulli with logits ``predictors``."""
        return dist.Bernoulli(logits=predictors, validate_args=False)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Logits of the fraction of bins with a spike."""
        moments = _moments(x, valid)
        floor = moments.floor()
        return moments.mean.clamp(floor, 1 - floor).logit()


class Signal(Single):
    """Abstract observation model of real-valued channels in any unit.

    Attributes:
        offset: mean of every channel in the recording that the model was made for; 0 until
            `initialise` is called.
        unit: standard deviation of every channel in that recording; 1 until `initialise` is
            called. A constant channel has the average of the others.
        varies: 1 for channels that vary, 0 for constant ones.
    """

    observed = "signal"

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.offset: Tensor
        self.unit: Tensor
        self.varies: Tensor
        self.register_buffer("offset", torch.zeros(num_neurons))
        self.register_buffer("unit", torch.ones(num_neurons))
        self.register_buffer("varies", torch.ones(num_neurons))

    @torch.no_grad()
    def set_units(
        self, x: Float[Tensor, "trial time channel"], valid: Bool[Tensor, "trial time channel"]
    ) -> None:
        """Set offset and unit from the moments of a recording."""
        moments = _moments(x.double(), valid)
        scale = moments.variance.sqrt()
        varies = scale > CONSTANT_TOLERANCE * moments.mean.abs()
        average = torch.where(varies, scale, 0.0).sum() / varies.sum().clamp(min=1)
        average = torch.where(average > 0, average, 1.0)
        self.offset.copy_(moments.mean)
        self.unit.copy_(torch.where(varies, scale, average))
        self.varies.copy_(varies)


@final
class Gaussian(Signal):
    """Real values with one standard deviation per channel.

    The linear predictors are in standardised units, so that a fit does not depend on the unit of
    the data: ``x ~ Normal(offset + unit * predictor, (unit * exp(log_scale))^2)``. The noise of a
    constant channel stays at ``unit``; its density would otherwise grow without bound.
    """

    support = constraints.real
    domain = "real numbers"

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.log_scale = nn.Parameter(torch.zeros(num_neurons))

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """Normal with mean ``offset + unit * predictors``."""
        mean = torch.addcmul(self.offset, self.unit, predictors)
        return dist.Normal(mean, self.scale(), validate_args=False)

    def scale(self) -> Float[Tensor, " channel"]:
        """Standard deviation of every channel."""
        return self.unit * (self.log_scale * self.varies).exp()

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Means and standard deviations of the data, which have linear predictors 0."""
        self.set_units(x, valid)
        self.log_scale.zero_()
        return torch.zeros_like(self.offset)


@final
class Gamma(Signal):
    """Positive amplitudes whose standard deviation is a fixed fraction of their mean."""

    filler = 1.0
    has_log_mean = True
    support = constraints.positive
    domain = "real numbers > 0"

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.log_concentration = nn.Parameter(torch.zeros(num_neurons))

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """Gamma with mean exp(predictors)."""
        return MeanGamma(predictors, self.log_concentration.exp(), validate_args=False)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Log means; concentration = mean^2 / variance."""
        self.set_units(x, valid)
        moments = _moments(x, valid)
        self.log_concentration.copy_(moments.concentration().log())
        return _log(moments.mean)


@final
class ZeroInflatedGamma(Signal):
    """Amplitudes that are exactly 0 with a probability that varies in time, such as deconvolved
    calcium.
    """

    num_predictors = 2
    has_log_mean = True
    support = constraints.nonnegative
    domain = "real numbers >= 0"

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.log_concentration = nn.Parameter(torch.zeros(num_neurons))

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """Gamma with log mean ``predictors[..., :num_neurons]``; the remaining predictors are the
        logits of a zero.
        """
        log_mean, gate_logits = predictors.chunk(2, -1)
        concentration = self.log_concentration.exp()
        return ZeroInflatedGammaDistribution(
            log_mean, concentration, gate_logits, validate_args=False
        )

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Log means and concentrations of nonzero values, logits of the fraction of zeros."""
        self.set_units(x, valid)
        zeros = _moments((x == 0).to(x.dtype), valid)
        nonzero = _moments(x, valid & (x > 0))
        self.log_concentration.copy_(nonzero.concentration().log())
        floor = zeros.floor()
        gate = zeros.mean.clamp(floor, 1 - floor)
        return torch.cat([_log(nonzero.mean), gate.logit()])


@final
class Joint(Observation):
    """Observation models of counts and of a signal, independent given their linear predictors.

    Args:
        parts: the observation model of each observed variable, ``"counts"`` and ``"signal"``.
    """

    filler = 1.0  # inside every support

    def __init__(self, parts: Mapping[str, Single]) -> None:
        sizes = {name: part.num_neurons for name, part in parts.items()}
        super().__init__(sum(sizes.values()))
        self.parts = nn.ModuleDict(parts)
        self.blocks: tuple[Block, ...] = blocks_of(sizes)
        self._sizes = list(sizes.values())
        self._predictor_dims = [part.predictor_dim for part in parts.values()]

    def forward(self, predictors: Float[Tensor, "*batch time predictor"]) -> TorchDistributionMixin:
        """The distributions of the counts and of the signal, concatenated."""
        split = predictors.split(self._predictor_dims, -1)
        return Concatenated(
            [single(its) for single, its in zip(self.singles(), split, strict=True)]
        )

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> Float[Tensor, " predictor"]:
        """Initialise both parts and concatenate their linear predictors."""
        split = zip(
            self.singles(), x.split(self._sizes, -1), valid.split(self._sizes, -1), strict=True
        )
        return torch.cat([single.initialise(its, where) for single, its, where in split])

    def check(
        self, x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
    ) -> None:
        """Refuse data outside the support of their part; the error names the variable."""
        for block, single in zip(self.blocks, self.singles(), strict=True):
            try:
                single.check(x[..., block.columns], valid[..., block.columns])
            except ValueError as error:
                raise ValueError(f"{block.observed}: {error}") from None

    def singles(self) -> tuple[Single, ...]:
        """The observation model of the counts, then that of the signal."""
        return tuple(self.parts.values())  # type: ignore[arg-type]


OBSERVATIONS: dict[str, type[Single]] = {
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "zero_inflated_poisson": ZeroInflatedPoisson,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "gamma": Gamma,
    "zero_inflated_gamma": ZeroInflatedGamma,
}
"""Observation models by name."""

ObservationSpec = str | Mapping[str, Sequence[str | int]]
"""Specification of an observation model: a name in `OBSERVATIONS`; or, for counts and a signal
together, the name and the size of each, ``{"counts": ["poisson", 30], "signal": ["gaussian",
16]}``.
"""

DEFAULTS = {"counts": "poisson", "signal": "gaussian"}
"""The default observation model of each observed variable."""


def observation(spec: ObservationSpec, num_neurons: int) -> Observation:
    """Build an observation model from its specification.

    Raises:
        ValueError: if a name is unknown, or the sizes do not add up to ``num_neurons``.
    """
    if isinstance(spec, str):
        return _single(spec, num_neurons)
    _check_blocks(spec)
    parts = {}
    for name in OBSERVED:
        match tuple(spec[name]):
            case str(kind), int(size) if size >= 1:
                parts[name] = _single(kind, size)
            case _:
                raise ValueError(
                    f"observation of {name} is {spec[name]!r}; it must be a name and a number of"
                    f" {OBSERVED[name]}s, such as {[DEFAULTS[name], 10]}"
                )
    sizes = {name: part.num_neurons for name, part in parts.items()}
    if sum(sizes.values()) != num_neurons:
        specified = " and ".join(f"{size} {OBSERVED[name]}s" for name, size in sizes.items())
        raise ValueError(
            f"observation specifies {specified}, {sum(sizes.values())} in total, but"
            f" num_neurons={num_neurons}"
        )
    return Joint(parts)


def observation_for(
    blocks: Sequence[Block], given: str | Mapping[str, str] | None
) -> ObservationSpec:
    """The specification of an observation model for a recording, from the names that a user gave,
    if any.

    Raises:
        ValueError: if one name is given for two variables, or two names for one.
    """
    names = [block.observed for block in blocks]
    if len(blocks) == 1:
        if given is None or isinstance(given, str):
            return DEFAULTS[names[0]] if given is None else given
        raise ValueError(
            f"observation={dict(given)} names models of two variables, but the recording holds"
            f" {names[0]} alone; give one name"
        )
    given = DEFAULTS if given is None else given
    if isinstance(given, str):
        raise ValueError(
            f"observation={given!r} names one model, but the recording holds {' and '.join(names)};"
            f" name both, such as observation={DEFAULTS}"
        )
    _check_blocks(given)
    sizes = {block.observed: block.size for block in blocks}
    return {name: [given[name], sizes[name]] for name in names}


def _check_blocks(named: Mapping[str, object]) -> None:
    """Refuse anything but one entry for counts and one for a signal."""
    for name in named:
        if name not in OBSERVED:
            raise ValueError(
                f"observation names {name!r}, which no recording holds; it may hold"
                f" {' and '.join(OBSERVED)}"
            )
    for name in OBSERVED:
        if name not in named:
            raise ValueError(
                f"observation={dict(named)} names no model of {name}; name one for each of"
                f" {' and '.join(OBSERVED)}"
            )


def _single(name: str, num_neurons: int) -> Single:
    if name not in OBSERVATIONS:
        raise ValueError(f"observation={name!r} is unknown; it is one of {', '.join(OBSERVATIONS)}")
    return OBSERVATIONS[name](num_neurons)


def observe(
    distribution: TorchDistributionMixin,
    x: Float[Tensor, "trial time neuron"] | None,
    scored: Bool[Tensor, "trial time neuron"],
    filler: float,
) -> None:
    """The sites ``rates`` (expected observation per bin) and ``x``, inside the plate over trials.

    Entries that are not scored are removed before bins and neurons are summed into one log density
    per trial.

    Args:
        distribution: that of every entry, batch shape ``(*particles, trial, time, neuron)``.
        x: the observations, or None to sample them.
        scored: which entries contribute to the log density.
        filler: see `Masked`.
    """
    pyro.deterministic("rates", distribution.mean, event_dim=2)
    pyro.sample("x", Masked(distribution, scored, filler).to_event(2), obs=x)


class _Moments(NamedTuple):
    """Moments per neuron over all measured bins, and the number of those bins."""

    mean: Float[Tensor, " neuron"]
    variance: Float[Tensor, " neuron"]
    num_measured: Float[Tensor, " neuron"]

    def floor(self) -> Float[Tensor, " neuron"]:
        """Smallest mean: half an event in all measured bins, so that the log of a silent neuron's
        mean is finite.
        """
        return 0.5 / self.num_measured

    def floored_mean(self) -> Float[Tensor, " neuron"]:
        """Mean count, at least `floor`."""
        return self.mean.maximum(self.floor())

    def concentration(self) -> Float[Tensor, " neuron"]:
        """Gamma shape mean^2 / variance within `CONCENTRATION_RANGE`."""
        tiny = torch.finfo(self.variance.dtype).tiny
        return (self.mean**2 / self.variance.clamp(min=tiny)).clamp(*CONCENTRATION_RANGE)


def _moments(
    x: Float[Tensor, "trial time neuron"], valid: Bool[Tensor, "trial time neuron"]
) -> _Moments:
    """Moments per neuron; a neuron that was never measured has the average of the others."""
    num = valid.sum((0, 1))
    count = num.clamp(min=1).to(x.dtype)
    mean = torch.where(valid, x, 0.0).sum((0, 1)) / count
    variance = torch.where(valid, (x - mean) ** 2, 0.0).sum((0, 1)) / count
    measured = num > 0
    others = measured.sum().clamp(min=1)
    return _Moments(
        torch.where(measured, mean, mean.sum() / others),
        torch.where(measured, variance, variance.sum() / others),
        count,
    )


def _covariance_of_bins(
    x: Float[Tensor, "trial time neuron"],
    valid: Bool[Tensor, "trial time neuron"],
    mean: Float[Tensor, " neuron"],
) -> Float[Tensor, " neuron"]:
    """Covariance of consecutive bins per neuron; 0 without any."""
    residual, pairs = torch.where(valid, x - mean, 0.0), valid[:, :-1] & valid[:, 1:]
    total = (residual[:, :-1] * residual[:, 1:]).sum((0, 1))
    return total / pairs.sum((0, 1)).clamp_min(1)


def _log(mean: Float[Tensor, " neuron"]) -> Float[Tensor, " neuron"]:
    """Log of a mean amplitude, which is finite even if all measured values are 0."""
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
