"""State-space models: four densities, from which all inference is derived::

    s ~ initial_condition                 if the model has an initial condition
    z_1 ~ initial(s, i_1)
    z_t ~ transition(state_{t-1}, i_t)    the stochastic part of the state
    state_t = advance(state_{t-1}, z_t, i_t)     its deterministic part is updated
    x_t ~ emission(state_t)

The Pyro program `StateSpaceModel.model` follows from these, and with a `Proposal`, q(z_t |
state_{t-1}, data), so does the guide. The same pair trains by the ELBO (one particle), by the
importance-weighted bound (K particles, never resampled) and by VSMC (K particles, resampled), and
runs in the particle filter and smoother.

A state is a NamedTuple of tensors ``(*left, dim)``. All methods broadcast over left dims, among
which may be particles and, where all bins are scored at once, time.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.masked import Masked
from pyrodyn.distributions.paths import LastDraw, StatePath
from pyrodyn.kernels.low_rank_filter import FilteredBins
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.linear_gaussian import LinearEmission, LinearGaussian
from pyrodyn.models.observations import Observation, ObservationSpec, observe

State = Any
"""A NamedTuple of tensors."""

Distribution: TypeAlias = TorchDistributionMixin  # noqa: UP040 (a lazy alias hides that it is untyped)
"""A distribution of vectors, or of the entries of an observation."""

Resample: TypeAlias = Callable[[Float[Tensor, "particle trial"]], Int[Tensor, "particle trial"]]  # noqa: UP040 (shape checks at run time refuse a lazy alias)
"""Draws the ancestors of particles from their log weights."""


class StateSpaceModel(LatentDynamics):
    """Abstract state-space model.

    Attributes:
        path_site: name of the site of z_1 ... z_T; None if nothing is drawn after the initial
            condition, and z has no entries.
        initial_condition_site: name of the random variable before the first bin, if any.
        observation: the observation model.
        proposal: the distribution q from which the guide draws.
    """

    path_site: str | None = "z"
    initial_condition_site: str | None = None
    guide_parameters: ClassVar[tuple[str, ...]] = ("proposal.*",)
    observation: Observation
    proposal: "Proposal"

    def __init__(self) -> None:
        super().__init__()
        self._hoisted: dict[tuple[str, bool], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, which may have other weights, takes nothing over of what was computed from
        these.
        """
        return {**super().__getstate__(), "_hoisted": None}

    @property
    def path_is_markov(self) -> bool:
        """Whether (z_t, inputs) is the whole state, so that z_{t+1} depends on the past through z_t
        alone: what backward simulation needs.
        """
        return False

    @contextlib.contextmanager
    def hoisting(self) -> Iterator[None]:
        """Inside, what depends on the weights alone is computed once and not at every bin.

        The weights must not change inside.
        """
        outer = self._hoisted
        self._hoisted = {} if outer is None else outer
        try:
            yield
        finally:
            self._hoisted = outer

    def hoisted[T](self, name: str, work: Callable[[], T]) -> T:
        """The result of ``work``, cached under a name inside `hoisting`.

        Results computed under ``no_grad`` are cached separately from those with a gradient.
        """
        if self._hoisted is None:
            return work()
        key = name, torch.is_grad_enabled()
        if key not in self._hoisted:
            self._hoisted[key] = work()
        kept: T = self._hoisted[key]
        return kept

    def has_own(self, *methods: str, of: type[Any]) -> bool:
        """Whether these methods are those of the class ``of``, overridden neither by a subclass nor
        on this instance.

        Whatever computes a density faster than the methods that define it asks this first, and
        falls back on the general programs of this class if the answer is no: an overridden density
        is the density everywhere. (`dynamics`, which analysis uses, is not derived from the
        densities: a subclass that changes the mean of a step overrides it too.)
        """
        return all(
            getattr(getattr(self, name), "__func__", None) is getattr(of, name) for name in methods
        )

    @staticmethod
    def of(
        *,
        initial: Callable[[Tensor], Any],
        transition: Callable[[Tensor, Tensor], Any],
        emission: Callable[[Tensor], Any],
        latent_dim: int,
        input_dim: int = 0,
        parameters: nn.Module | None = None,
        observation: ObservationSpec | None = None,
        proposal: "str | Proposal" = "bootstrap",
    ) -> "StateSpaceModel":
        """A model from three functions, on which everything works that works on the zoo.

        A random walk seen by Poisson neurons::

            own = nn.ParameterDict({"log_sd": torch.tensor(-1.0), "loading": torch.randn(9, 2)})
            model = StateSpaceModel.of(
                initial=lambda inputs: Normal(torch.zeros(2), 1.0),
                transition=lambda z, inputs: Normal(z, own["log_sd"].exp()),
                emission=lambda z: z @ own["loading"].mT,
                latent_dim=2,
                parameters=own,
            )

        The functions must treat all dims but the last alike, as those above do: among the left dims
        of z are particles, trials and bins. They are tried with a few left dims here.

        Args:
            initial: from the inputs ``(*left, input)`` of the first bin to the distribution of z_1.
                It is one of vectors ``(latent,)``, or of scalars whose last dim has that size,
                which are independent then; a batch shape that is left out is expanded.
            transition: from z ``(*left, latent)`` of the previous bin and the inputs of this one to
                the distribution of z_t.
            emission: from z to the linear predictors ``(*left, predictor)`` of the observation
                model, or to the distribution of every entry of x_t, batch shape ``(*left,
                neuron)``.
            latent_dim: dimensions of z.
            input_dim: known external inputs.
            parameters: the module whose parameters the functions use. It is trained and saved.
            observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
                `ObservationSpec`), ``"poisson"`` by default; the linear predictors are in the unit
                of the data. Not for an emission that is a distribution.
            proposal: ``"bootstrap"``, which suffices for few latents; ``"encoder"`` or
                ``"causal_encoder"``, for Gaussian latents; or a `Proposal`.

        Raises:
            ValueError: in one sentence, for a function that fails, returns another shape, does not
                broadcast or uses parameters that are not in ``parameters``.
        """
        from pyrodyn.models.density_model import Densities, DensityModel

        densities = Densities(initial, transition, emission)
        return DensityModel(densities, latent_dim, input_dim, parameters, observation, proposal)

    def initial_condition(self) -> Distribution:
        """The distribution of the initial condition."""
        raise NotImplementedError(f"{type(self).__name__} has no initial condition")

    @abstractmethod
    def initial(self, start: Tensor | None, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """The distribution of z_1, event shape ``(dim,)``."""

    @abstractmethod
    def transition(self, state: State, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """The distribution of z_t given the previous state and the inputs of bin t."""

    @abstractmethod
    def initial_state(
        self,
        start: Tensor | None,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> State:
        """The state of the first bin."""

    @abstractmethod
    def advance(
        self, state: State, z: Float[Tensor, "*left dim"], inputs: Float[Tensor, "*shared input"]
    ) -> State:
        """The state of a later bin."""

    def states(
        self,
        start: Tensor | None,
        path: Float[Tensor, "*left time dim"],
        inputs: Float[Tensor, "trial time input"],
    ) -> State:
        """The states of all bins along a path, each field ``(*left, time, dim)``: `initial_state`,
        then `advance` bin by bin.
        """
        with self.hoisting():
            states = [self.initial_state(start, path[..., 0, :], inputs[:, 0])]
            for t in range(1, inputs.shape[1]):
                states.append(self.advance(states[-1], path[..., t, :], inputs[:, t]))
        return type(states[0])(*(torch.stack(fields, -2) for fields in zip(*states, strict=True)))

    def transitions(
        self,
        path: Float[Tensor, "*left time dim"],
        states: State,
        inputs: Float[Tensor, "trial time input"],
    ) -> Distribution:
        """The distributions of z_2 ... z_T along a path: `transition` from the previous states."""
        before = type(states)(*(field[..., :-1, :] for field in states))
        return self.transition(before, inputs[:, 1:])

    @abstractmethod
    def emission(self, state: State) -> Distribution:
        """The distribution of every entry of x_t, batch shape ``(*left, neuron)``."""

    def weight_priors(self) -> dict[str, Float[Tensor, ""]]:
        """Log densities of the model's weights, by the names of their factors; by default none.

        They penalise a point estimate of the weights. A prior that makes a parameter random is
        given by `set_priors`.
        """
        return {}

    def dynamics_state(self, state: State) -> Float[Tensor, "*left dim"]:
        """The part of a state that `dynamics` updates."""
        z: Tensor = state.z
        return z

    def dynamics_inputs(
        self, states: State, inputs: Float[Tensor, "trial time input"]
    ) -> Float[Tensor, "trial step input"]:
        """The inputs that `dynamics` takes in the steps from all bins but the last: by default
        those of the bin that a step leads to.
        """
        return inputs[:, 1:]

    def known_inputs(self, batch: Batch) -> Float[Tensor, "trial time input"]:
        """Known inputs of the bins that the model generates."""
        return batch.inputs[:, self.first_bin :]

    def log_likelihood(
        self,
        state: State,
        x: Float[Tensor, "trial neuron"],
        scored: Tensor,
        scored_weight: float = 1.0,
    ) -> Float[Tensor, "*left"]:
        """Log p of the scored entries of one bin, times the weight of scored entries."""
        distribution = Masked(self.emission(state), scored, self.observation.filler)
        return distribution.log_prob(x).sum(-1) * scored_weight

    def fused_vsmc(
        self, observed: "Observed", num_particles: int, resample: Resample
    ) -> "Bound | None":
        """The VSMC bound by a kernel that fuses all bins of a trial; None for a model, proposal or
        data without one, which is the default: `pyrodyn.infer.VSMC` then runs the particle filter.

        Args:
            observed: whole trials.
            num_particles: K, above 1.
            resample: applied at every bin.
        """
        return None

    def fused_filter(
        self, observed: "Observed", num_particles: int, resample: Resample, ess_threshold: float
    ) -> "Filtered | None":
        """The particle filter by a kernel that fuses all bins; None for a model, proposal or data
        without one, which is the default: `pyrodyn.infer.particle_filter` then goes bin by bin.

        Args:
            observed: whole trials.
            num_particles: K.
            resample: draws ancestors, which then have equal weights.
            ess_threshold: fraction of K below which a trial is resampled.
        """
        return None

    def linear_gaussian(self, inputs: Float[Tensor, "trial time input"]) -> LinearGaussian:
        """The matrices of a linear-Gaussian model on given inputs, for exact inference.

        Raises:
            ValueError: for any other model, which is the default.
        """
        raise ValueError(
            f"{type(self).__name__} is not linear and Gaussian, so that its evidence and posterior"
            " have no closed form: take particles instead, by VSMC, particle_filter or"
            " method='smoother'"
        )

    def linear_emission(self, batch: Batch, before: State | None = None) -> LinearEmission:
        """The Gaussian part of the observation as a linear function of z: what `OptimalFactor` and
        the objective `GTF` take.

        Args:
            batch: whose bins are read out.
            before: the state of the bin before them; None if they begin the trials.

        Raises:
            ValueError: for a model without one, which is the default.
        """
        raise ValueError(
            f"{type(self).__name__} states no linear-Gaussian readout of z (linear_emission), which"
            " the optimal proposal and GTF need: take another proposal or objective"
        )

    # ------------------------------------------------------------------ derived programs

    def model(self, batch: Batch) -> None:
        """The generative program: the initial condition, the path, ``rates`` and ``x``."""
        inputs = self.known_inputs(batch)
        for name, log_prob in self.weight_priors().items():
            pyro.factor(name, log_prob)
        with self.hoisting(), self.trials(batch):
            start = (
                pyro.sample(self.initial_condition_site, self.initial_condition())
                if self.initial_condition_site
                else None
            )
            path = self._drawn_path(start, inputs)
            states = self.states(start, path, inputs)
            self.record_deterministic(states)
            with poutine.scale(scale=batch.scored_weight):
                observe(
                    self.emission(states),
                    None if batch.x is None else batch.x[:, self.first_bin :],
                    batch.scored[:, self.first_bin :],
                    self.observation.filler,
                )

    def guide(self, batch: Batch) -> None:
        """The inference program, drawn from the proposal bin by bin."""
        with self.hoisting(), self.trials(batch):
            encoding = self.proposal.encode(self, batch)
            start = (
                pyro.sample(
                    self.initial_condition_site, self.proposal.initial_condition(self, encoding)
                )
                if self.initial_condition_site
                else None
            )
            if self.path_site:
                pyro.sample(
                    self.path_site, ProposalPath(self, encoding, start, self.known_inputs(batch))
                )

    def _drawn_path(
        self, start: Tensor | None, inputs: Float[Tensor, "trial time input"]
    ) -> Float[Tensor, "*left time dim"]:
        if self.path_site:
            path: Tensor = pyro.sample(self.path_site, PriorPath(self, start, inputs))
            return path
        assert start is not None
        path = start.new_zeros(*start.shape[:-1], inputs.shape[1], 0)
        first, later = inputs[:, 0], inputs[:, 1]
        z_1 = self.initial(start, first)
        z_2 = self.transition(self.initial_state(start, path[..., 0, :], first), later)
        for name, density in (("initial", z_1), ("transition", z_2)):
            if density.event_shape.numel():
                raise ValueError(
                    f"{type(self).__name__}.{name} is a distribution of shape"
                    f" {tuple(density.event_shape)}, but this model, as it was built, draws nothing"
                    f" after {self.initial_condition_site!r}: build it with process noise or"
                    " inferred inputs"
                )
        return path

    def record_deterministic(self, states: State) -> None:
        """Deterministic sites of `model` beside ``rates``; by default none."""


class Observed(NamedTuple):
    """What a particle filter sees of a batch: the bins that the model generates, encoded once.

    Attributes:
        x: observations ``(trial, time, neuron)``.
        scored: which entries are scored.
        inputs: known inputs ``(trial, time, input)``.
        scored_weight: see `Batch`.
        encoding: of the batch, by the model's proposal.
    """

    x: Float[Tensor, "trial time neuron"]
    scored: Bool[Tensor, "trial time neuron"]
    inputs: Float[Tensor, "trial time input"]
    scored_weight: float
    encoding: Any

    @classmethod
    def of(cls, model: StateSpaceModel, batch: Batch) -> "Observed":
        """A batch, encoded by the model's proposal."""
        if batch.x is None:
            raise ValueError("the batch holds no observations to filter")
        return cls(
            x=batch.x[:, model.first_bin :],
            scored=batch.scored[:, model.first_bin :],
            inputs=model.known_inputs(batch),
            scored_weight=batch.scored_weight,
            encoding=model.proposal.encode(model, batch),
        )


class Bound(NamedTuple):
    """A VSMC bound and its diagnostic.

    Attributes:
        log_evidence: the bound, per trial.
        effective_sample_size: of the weights before resampling, averaged over bins.
    """

    log_evidence: Float[Tensor, " trial"]
    effective_sample_size: Float[Tensor, " trial"]


class Filtered(NamedTuple):
    """The result of a fused particle filter.

    Attributes:
        bins: the particles and their weights.
        states: their states; fields ``(time, particle, trial, dim)``, or without particles where
            they share one.
    """

    bins: FilteredBins
    states: State


class Proposal(nn.Module):
    """Abstract q(z_t | state_{t-1}, data) of a state-space model.

    What depends on the data alone is computed once per batch (`encode`), whatever the number of
    particles. A proposal may carry a recurrent state of its own along the path (`remember`) and
    predict how well a particle will explain the next bin before z_t is drawn (`lookahead`).

    The model is passed to every method instead of being kept: it owns the proposal.

    Attributes:
        looks_ahead: whether `lookahead` is implemented.
        has_encoder: whether trained weights, its own or the model's, read the data: false for what
            follows from the model's densities alone.
    """

    looks_ahead: ClassVar[bool] = False
    has_encoder: ClassVar[bool] = True

    @abstractmethod
    def encode(self, model: Any, batch: Batch) -> Any:
        """Encode the data, once per batch."""

    def encode_next(
        self, model: Any, batch: Batch, state: State | None, past: Any
    ) -> tuple[Any, Any]:
        """Encode one new bin of a stream, as `encode` would the last of all bins so far.

        Args:
            model: that owns this proposal.
            batch: the new bin alone.
            state: of the particles at the previous bin; None at the first bin.
            past: what this method returned second at the previous bin; None at the first bin.

        Returns:
            The encoding of the bin, and what the next bin needs of the past, whose size does not
            grow with time.

        Raises:
            ValueError: for a proposal that reads later bins too.
        """
        raise ValueError(
            f"{type(self).__name__} reads the whole trial before it proposes anything, so it cannot"
            " follow bins as they arrive; set model.proposal = Bootstrap() to filter online"
        )

    def initial_condition(self, model: Any, encoding: Any) -> Distribution:
        """The distribution of the initial condition given the data; by default the prior."""
        prior: Distribution = model.initial_condition()
        return prior

    def remember(self, model: Any, before: State, memory: Any, encoding: Any, t: int) -> Any:
        """The recurrent state at bin t; None for a proposal without one. ``before`` is the state of
        the previous bin, at the first bin the value of the initial condition.
        """
        return None

    @abstractmethod
    def propose(
        self, prior: Distribution, memory: Any, encoding: Any, t: int, is_first: bool
    ) -> Distribution:
        """q(z_t | ...), from the prior of z_t given the previous state; t counts the bins of the
        encoded batch, whose first bin need not be the first of the trial (``is_first``).
        """

    def lookahead(
        self, prior: Distribution, encoding: Any, t: int, is_first: bool
    ) -> Float[Tensor, "*left"]:
        """An estimate of log p(x_t | state_{t-1}), before z_t is drawn."""
        raise NotImplementedError(f"{type(self).__name__} does not look ahead")

    def is_exact(self, encoding: Any) -> bool:
        """Whether `propose` is p(z_t | state_{t-1}, x_t) and `lookahead` log p(x_t |
        state_{t-1}), so that a particle's weight does not depend on its draw.
        """
        return False


class Bootstrap(Proposal):
    """q is the prior: it ignores the data.

    The simplest choice; it needs many particles if observations are informative.
    """

    has_encoder: ClassVar[bool] = False

    def encode(self, model: Any, batch: Batch) -> None:
        """Nothing."""

    def encode_next(
        self, model: Any, batch: Batch, state: State | None, past: None
    ) -> tuple[None, None]:
        """Nothing."""
        return None, None

    def propose(
        self, prior: Distribution, memory: Any, encoding: Any, t: int, is_first: bool
    ) -> Distribution:
        """The prior itself."""
        return prior


def check_proposed(
    proposal: Proposal, proposed: Distribution, prior: Distribution, shape: Sequence[int]
) -> None:
    """Refuse a proposed distribution whose shape does not fit the prior.

    Args:
        proposal: that proposed it.
        proposed: q(z_t | ...).
        prior: of z_t.
        shape: of particles and trials, to which the batch shape must broadcast.

    Raises:
        ValueError: naming both shapes.
    """
    wanted, found = (*shape, *prior.event_shape), (*proposed.batch_shape, *proposed.event_shape)
    sizes = zip(reversed(found), reversed(wanted), strict=False)
    event_fits = proposed.event_shape == prior.event_shape
    if not event_fits or len(found) > len(wanted) or any(n not in (1, m) for n, m in sizes):
        raise ValueError(
            f"{type(proposal).__name__} proposes a distribution of batch shape"
            f" {tuple(proposed.batch_shape)} and event shape {tuple(proposed.event_shape)}; this"
            f" model's z_t needs the event shape {tuple(prior.event_shape)} and a batch shape that"
            f" broadcasts to particles and trials, {tuple(shape)}"
        )


def check_reparameterised(proposal: Proposal, proposed: Distribution) -> None:
    """Refuse a proposed distribution through whose draws no gradient flows, where one is wanted.

    Raises:
        ValueError: naming the proposal.
    """
    if torch.is_grad_enabled() and not proposed.has_rsample:
        raise ValueError(
            f"{type(proposal).__name__} proposes a {type(proposed).__name__} whose draws are not"
            " reparameterised (has_rsample is False), so that this objective has no gradient"
            " through them: take RWS or SmoothedScore, which need none, or a distribution with"
            " rsample"
        )


def empty_distribution(like: Float[Tensor, "*left dim"]) -> Distribution:
    """The distribution of a vector without entries."""
    empty = like.new_zeros(*like.shape[:-1], 0)
    return dist.Normal(empty, torch.ones_like(empty), validate_args=False).to_event(1)


class _ModelPath(StatePath):
    """Abstract distribution of the paths of a state-space model."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        model: StateSpaceModel,
        start: Tensor | None,
        inputs: Float[Tensor, "trial time input"],
        batch_shape: Sequence[int] | None = None,
    ) -> None:
        self.model, self.path_start, self.inputs = model, start, inputs
        left = inputs.shape[:1] if start is None else start.shape[:-1]
        first = model.initial(start, inputs[:, 0])
        super().__init__(
            torch.Size(left if batch_shape is None else batch_shape),
            torch.Size((inputs.shape[1], *first.event_shape)),
            validate_args=False,
        )

    def _prior(self, state: State | None, t: int) -> Distribution:
        if state is None:
            return self.model.initial(self.path_start, self.inputs[:, t])
        return self.model.transition(state, self.inputs[:, t])

    def _move(self, state: State | None, z: Tensor, t: int) -> State:
        if state is None:
            return self.model.initial_state(self.path_start, z, self.inputs[:, t])
        return self.model.advance(state, z, self.inputs[:, t])


class PriorPath(_ModelPath):
    """p(z_{1:T} | start, inputs) of a state-space model."""

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "PriorPath":
        """The same distribution for more particles."""
        return PriorPath(self.model, self.path_start, self.inputs, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*all time dim"]:
        """Roll the chain."""
        shape = torch.Size(sample_shape) + self.batch_shape
        state, path = None, []
        with self.model.hoisting():
            for t in range(self.event_shape[0]):
                z = self._prior(state, t).expand(shape).rsample()
                state = self._move(state, z, t)
                path.append(z)
        return torch.stack(path, -2)

    def log_prob_steps(self, path: Float[Tensor, "*path time dim"]) -> Float[Tensor, "*all time"]:
        """Log p(z_t | z_<t) of all bins at once."""
        model, inputs = self.model, self.inputs
        states = model.states(self.path_start, path, inputs)
        first = model.initial(self.path_start, inputs[:, 0]).log_prob(path[..., 0, :])
        later = model.transitions(path, states, inputs).log_prob(path[..., 1:, :])
        return torch.cat([first[..., None].expand(*later.shape[:-1], 1), later], -1)


class ProposalPath(_ModelPath):
    """q(z_{1:T} | start, data): the chain of a proposal."""

    def __init__(
        self,
        model: StateSpaceModel,
        encoding: Any,
        start: Tensor | None,
        inputs: Float[Tensor, "trial time input"],
        batch_shape: Sequence[int] | None = None,
    ) -> None:
        self.encoding = encoding
        super().__init__(model, start, inputs, batch_shape)
        self._last_draw = LastDraw()

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "ProposalPath":
        """The same distribution for more particles."""
        return ProposalPath(self.model, self.encoding, self.path_start, self.inputs, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*all time dim"]:
        """Roll the chain; its densities are cached for `log_prob_steps` of this draw."""
        shape = torch.Size(sample_shape) + self.batch_shape
        path, log_q = [], []
        for step, set_value in self._steps():
            check_reparameterised(self.model.proposal, step)
            step = step.expand(shape)
            z = step()  # by rsample if it has one
            set_value(z)
            path.append(z)
            log_q.append(step.log_prob(z))
        drawn = torch.stack(path, -2)
        self._last_draw.keep(drawn, torch.stack(log_q, -1))
        return drawn

    def log_prob_steps(self, path: Float[Tensor, "*path time dim"]) -> Float[Tensor, "*all time"]:
        """Log q(z_t | z_<t) of any path."""
        kept: Tensor | None = self._last_draw.recall(path)
        if kept is not None:
            return kept
        log_q = []
        for t, (step, set_value) in enumerate(self._steps()):
            z = path[..., t, :]
            set_value(z)
            log_q.append(step.log_prob(z).expand(path.shape[:-2]))
        return torch.stack(log_q, -1)

    def _steps(self) -> Any:
        """Per bin its distribution, and what to call with the value of z_t."""
        proposal, state, memory = self.model.proposal, None, None
        with self.model.hoisting():
            for t in range(self.event_shape[0]):
                before = self.path_start if state is None else state
                memory = proposal.remember(self.model, before, memory, self.encoding, t)
                prior = self._prior(state, t)
                step = proposal.propose(prior, memory, self.encoding, t, state is None)
                if state is None:
                    check_proposed(proposal, step, prior, self.batch_shape)
                value: list[Tensor] = []
                yield step, value.append
                state = self._move(state, value[0], t)
