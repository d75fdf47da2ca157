"""Sequential Monte Carlo on a state-space model::

    resample    a_k ~ weights W_{t-1} (times the lookahead, where the proposal has one)
    propose     z_t^k ~ q(z_t | state_{t-1}^{a_k}, data)
    weight      w_t^k = p(z_t^k | state) p(x_t | state_t^k) / q(z_t^k | state, data)

All trials run in parallel with independent resampling; tensors are ``(particle, trial, ...)``. The
product over bins of the mean weight is an unbiased estimate of the evidence p(x_{1:t}), for every
resampling scheme and proposal.

`SequentialMonteCarlo` is the algorithm, a pure `init` and `step`: `VSMC` makes an objective of it,
`particle_filter` filters a whole batch, and `filter_bin` takes one new bin at a time.

Sources: Gordon et al. 1993 (bootstrap), Pitt & Shephard 1999 (lookahead), Doucet & Johansen 2011;
the variance of a single run: Lee & Whiteley, Biometrika 105:609 (2018).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.distributions.gaussian import SharedNormal, picked, rows_of, sample_with_log_ratio
from pyrodyn.infer.smc.resampling import effective_sample_size, scheme_named
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import (
    Distribution,
    Filtered,
    Observed,
    State,
    StateSpaceModel,
    check_proposed,
    check_reparameterised,
)


class Particles(NamedTuple):
    """The state of all particles after a bin.

    Attributes:
        start: values of the initial condition, until the first bin.
        state: their states; None before the first bin.
        memory: the proposal's recurrent state, if it has one.
        log_weights: log weights, normalised to a mean weight of 1 after every bin, so that single
            precision suffices for any number of bins.
        log_evidence: estimate of log p(x_{1:t}), ``(trial,)``, the sum of the normalisers of all
            bins so far; in double precision.
        origin: index of the particle of the first bin from which each descends.
        num_resampled: number of times each trial was resampled.
    """

    start: Tensor | None
    state: State | None
    memory: Any
    log_weights: Float[Tensor, "particle trial"]
    log_evidence: Float[Tensor, " trial"]
    origin: Int[Tensor, "particle trial"]
    num_resampled: Int[Tensor, " trial"]

    def log_evidence_variance(self) -> Float[Tensor, " trial"]:
        """Variance of `log_evidence`, estimated from this single run::

            1 - (K / (K - 1))^n (1 - sum_i S_i^2)

        with n one more than the number of times a trial was resampled, and S_i the total weight of
        the descendants of particle i of the first bin. Unbiased (relative to the squared evidence)
        for multinomial resampling and conservative for schemes of lower variance. Close to 1 when
        only few particles of the first bin have descendants: the estimate is then unreliable.
        """
        num_particles = len(self.log_weights)
        if num_particles == 1:
            return torch.full_like(self.log_weights[0], torch.nan)
        weights = torch.softmax(self.log_weights, 0)
        by_origin = torch.zeros_like(weights).scatter_add_(0, self.origin, weights)
        factor = (num_particles / (num_particles - 1)) ** (self.num_resampled + 1)
        return (1 - factor * (1 - by_origin.square().sum(0))).clamp_min(0.0)


class StepRecord(NamedTuple):
    """Record of one bin.

    Attributes:
        ancestors: index of every particle's ancestor.
        resampled: which trials were resampled.
        effective_sample_size: of the weights before resampling.
        log_evidence: estimate of log p(x_t | x_{<t}).
        drawn: z_t.
        ancestor_log_prob: log probability of the sampled ancestors, 0 where a trial was not
            resampled; available for multinomial resampling.
    """

    ancestors: Int[Tensor, "particle trial"]
    resampled: Bool[Tensor, " trial"]
    effective_sample_size: Float[Tensor, " trial"]
    log_evidence: Float[Tensor, " trial"]
    drawn: Float[Tensor, "particle trial dim"]
    ancestor_log_prob: Float[Tensor, " trial"]


def check_threshold(ess_threshold: float) -> None:
    """Refuse a threshold that is not a fraction of the particles."""
    if not 0 <= ess_threshold <= 1:
        raise ValueError(
            f"ess_threshold={ess_threshold} is a fraction of the particles; it must lie in [0, 1]"
        )


@dataclasses.dataclass(frozen=True)
class SequentialMonteCarlo:
    """The algorithm as two pure functions, `init` and `step`.

    Args:
        model: a state-space model with its proposal.
        num_particles: K.
        resampling: a name in `pyrodyn.infer.smc.resampling.RESAMPLING`.
        ess_threshold: a trial is resampled when its effective sample size is below this fraction of
            K; 1 resamples at every bin, 0 never.
    """

    model: StateSpaceModel
    num_particles: int
    resampling: str = "systematic"
    ess_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_integer(1, num_particles=self.num_particles)
        check_threshold(self.ess_threshold)
        if not isinstance(self.model, StateSpaceModel):
            raise ValueError(
                f"sequential Monte Carlo needs a StateSpaceModel; {type(self.model).__name__} is"
                " none"
            )
        scheme_named(self.resampling)

    def init(self, observed: Observed) -> Particles:
        """Particles before the first bin."""
        shape = (self.num_particles, observed.x.shape[0])
        like = observed.x
        start, log_weights = None, like.new_zeros(shape)
        if self.model.initial_condition_site:
            proposed = self.model.proposal.initial_condition(self.model, observed.encoding)
            proposed = proposed.expand(torch.Size(shape))
            check_reparameterised(self.model.proposal, proposed)
            start = proposed()  # by rsample if it has one
            log_weights = self.model.initial_condition().log_prob(start) - proposed.log_prob(start)
        origin = torch.arange(self.num_particles, device=like.device)[:, None].expand(shape)
        evidence = torch.zeros(shape[1], dtype=torch.float64, device=like.device)
        return Particles(
            start, None, None, log_weights, evidence, origin, torch.zeros_like(origin[0])
        )

    def step(
        self, particles: Particles, observed: Observed, t: int
    ) -> tuple[Particles, StepRecord]:
        """Advance all particles over bin t."""
        model, proposal, encoding = self.model, self.model.proposal, observed.encoding
        inputs, is_first = observed.inputs[:, t], particles.state is None
        prior, ahead = None, None
        if proposal.looks_ahead:
            prior = self._prior(particles, inputs)
            ahead = proposal.lookahead(prior, encoding, t, is_first)
        # With an exact proposal the weight does not depend on the draw: it is the lookahead.
        is_exact = proposal.is_exact(encoding)
        log_weights = particles.log_weights
        if is_exact:
            assert ahead is not None
            log_weights = log_weights + ahead

        due, ancestors, survivors, ancestor_log_prob, ess = self._resample(particles, ahead)
        if ancestors is None:
            ancestors = torch.arange(self.num_particles, device=observed.x.device)
            ancestors = ancestors[:, None].expand(log_weights.shape)
        else:
            rows = rows_of(ancestors)
            particles = _selected(particles, rows)
            if ahead is not None and not is_exact:
                survivors = survivors - ahead.expand(survivors.shape).gather(0, ancestors)
            log_weights = self._where(due, survivors, log_weights)
            # A survivor's prior is its ancestor's: index its mean instead of computing it again.
            prior = prior.picked(rows) if isinstance(prior, SharedNormal) else None

        if prior is None:
            prior = self._prior(particles, inputs)
        memory = proposal.remember(
            model,
            particles.start if particles.state is None else particles.state,
            particles.memory,
            encoding,
            t,
        )
        shape = log_weights.shape
        proposed = proposal.propose(prior, memory, encoding, t, is_first)
        if is_first:
            check_proposed(proposal, proposed, prior, shape)
        check_reparameterised(proposal, proposed)
        expanded = proposed if proposed.batch_shape == shape else proposed.expand(shape)
        if is_exact or proposed is prior:
            z = expanded()
        else:
            z, log_ratio = sample_with_log_ratio(expanded, prior)
            log_weights = log_weights + log_ratio
        if particles.state is None:
            state = model.initial_state(particles.start, z, inputs)
        else:
            state = model.advance(particles.state, z, inputs)
        if not is_exact:
            log_weights = log_weights + model.log_likelihood(
                state, observed.x[:, t], observed.scored[:, t], observed.scored_weight
            )
        # The weight of the initial condition, if any, belongs to the first bin.
        increment = _log_mean(log_weights)
        particles = Particles(
            None,
            state,
            memory,
            log_weights - increment,
            particles.log_evidence + increment,
            particles.origin,
            particles.num_resampled + due,
        )
        return particles, StepRecord(ancestors, due, ess, increment, z, ancestor_log_prob)

    def _where(self, due: Tensor, resampled: Tensor, unchanged: Tensor) -> Tensor:
        """The first where a trial is resampled, the second elsewhere."""
        return resampled if self.ess_threshold == 1 else torch.where(due, resampled, unchanged)

    def _prior(self, particles: Particles, inputs: Tensor) -> Distribution:
        if particles.state is None:
            return self.model.initial(particles.start, inputs)
        return self.model.transition(particles.state, inputs)

    def _resample(
        self, particles: Particles, ahead: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Which trials are resampled; ancestors (None if no trial is), the survivors' log weights
        including the mean weight, the ancestors' log probability, the effective sample size.
        """
        log_weights = particles.log_weights
        if ahead is not None:
            log_weights = log_weights + ahead
        num_trials = log_weights.shape[1]
        ess = effective_sample_size(log_weights.detach())
        zero = log_weights.new_zeros(num_trials)
        are_equal = particles.state is None and particles.start is None
        never = self.num_particles == 1 or self.ess_threshold == 0 or are_equal
        if never:
            due = torch.zeros(num_trials, dtype=torch.bool, device=ess.device)
            return due, None, log_weights, zero, ess
        if self.ess_threshold == 1:
            due = torch.ones(num_trials, dtype=torch.bool, device=ess.device)
        else:
            due = ess < self.ess_threshold * self.num_particles
        ancestors, survivors = scheme_named(self.resampling)(log_weights)
        # Weights have mean 1 except before the first bin, and with a lookahead.
        has_mean_1 = ahead is None and particles.state is not None
        evidence = zero if has_mean_1 else _log_mean(log_weights)
        chosen = zero
        if self.resampling == "multinomial":
            chosen = torch.log_softmax(log_weights, 0).gather(0, ancestors).sum(0)
        identity = torch.arange(self.num_particles, device=ess.device)[:, None]
        return (
            due,
            self._where(due, ancestors, identity),
            evidence + survivors.to(log_weights.dtype),
            self._where(due, chosen, zero),
            ess,
        )


def _log_mean(log_weights: Float[Tensor, "particle trial"]) -> Float[Tensor, " trial"]:
    """Log of the mean weight over particles."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _selected(particles: Particles, rows: Int[Tensor, " row"]) -> Particles:
    """Every particle's fields replaced by its ancestor's."""
    return particles._replace(
        start=_select(particles.start, rows),
        state=_select(particles.state, rows),
        memory=_select(particles.memory, rows),
        origin=picked(particles.origin, rows),
    )


def _select(value: Any, rows: Int[Tensor, " row"]) -> Any:
    """Rows of tensors ``(particle, trial, dim)``; tensors that all particles share stay as is."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return type(value)(*(_select(field, rows) for field in value))
    if value.ndim < 3:
        return value
    return picked(value, rows)


class FilterResult(NamedTuple):
    """The result of a particle filter over a batch, with normalised weights.

    Attributes:
        starts: values of the initial condition, None for a model without one.
        paths: z, ``(time, particle, trial, dim)``, each bin as it was drawn: a particle's
            trajectory follows its ``ancestors``.
        states: the states, with the same leading dims.
        ancestors: index of every particle's ancestor at the bin before.
        log_weights: log W_t given x_{1:t}.
        effective_sample_size: ``(time, trial)``, of the weights before resampling.
        resampled: ``(time, trial)``.
        log_evidence: estimates of log p(x_t | x_{<t}), ``(time, trial)``; their sum over time is
            the estimate of log p(x).
        log_evidence_variance: of that sum, ``(trial,)``; see `Particles.log_evidence_variance`.
    """

    starts: Float[Tensor, "particle trial start"] | None
    paths: Float[Tensor, "time particle trial dim"]
    states: State
    ancestors: Int[Tensor, "time particle trial"]
    log_weights: Float[Tensor, "time particle trial"]
    effective_sample_size: Float[Tensor, "time trial"]
    resampled: Bool[Tensor, "time trial"]
    log_evidence: Float[Tensor, "time trial"]
    log_evidence_variance: Float[Tensor, " trial"]

    def mean(self) -> Float[Tensor, "time trial dim"]:
        """Filtered means E[z_t | x_{1:t}]."""
        return (self.log_weights.exp()[..., None] * self.paths).sum(1)


@torch.no_grad()
@local_parameters()
def particle_filter(
    model: StateSpaceModel | Fit[StateSpaceModel],
    batch: Batch,
    num_particles: int = 256,
    *,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
) -> FilterResult:
    """Filter all trials of a batch in parallel.

    The proposal is ``model.proposal``; `Bootstrap` serves every model.

    Args:
        model: a state-space model, or its `Fit`.
        batch: its trials.
        num_particles: per trial.
        resampling: see `pyrodyn.infer.smc.resampling`.
        ess_threshold: see `SequentialMonteCarlo`.

    Raises:
        ValueError: for settings out of range, and a batch that does not fit the model.
        ArithmeticError: when every particle of a trial has weight 0, naming trial and bin.
    """
    if isinstance(model, Fit):
        model = model.model
    algorithm = SequentialMonteCarlo(model, num_particles, resampling, ess_threshold)
    model.check_batch(batch)
    filtered = filtered_by(algorithm, batch)
    check_alive(filtered.log_evidence, batch.trial, model.first_bin)
    return filtered


def filtered_by(algorithm: SequentialMonteCarlo, batch: Batch) -> FilterResult:
    """Filter all trials of a batch, without checks: neither of the batch, nor of the evidence."""
    model, num_particles = algorithm.model, algorithm.num_particles
    weights, records = [], []
    states: list[Any] = []
    with model.hoisting():
        observed = Observed.of(model, batch)
        if algorithm.resampling != "soft":  # whose survivors have unequal weights
            scheme = scheme_named(algorithm.resampling)
            fused = model.fused_filter(
                observed,
                num_particles,
                lambda log_w: scheme(log_w).ancestors,
                algorithm.ess_threshold,
            )
            if fused is not None:
                return _result_of(fused)
        particles = algorithm.init(observed)
        starts = particles.start
        for t in range(observed.x.shape[1]):
            particles, record = algorithm.step(particles, observed, t)
            states.append(particles.state)
            weights.append(particles.log_weights - math.log(num_particles))  # whose mean is 1
            records.append(record)
    increments = torch.stack([record.log_evidence for record in records])
    drawn = [record.drawn for record in records]
    paths = torch.stack(drawn)
    return FilterResult(
        starts=starts,
        paths=paths,
        states=type(states[0])(
            # A state often is the draw itself, which need not be stored twice.
            *(
                paths if fields[0] is drawn[0] else torch.stack(fields)
                for fields in zip(*states, strict=True)
            )
        ),
        ancestors=torch.stack([record.ancestors for record in records]),
        log_weights=torch.stack(weights),
        effective_sample_size=torch.stack([record.effective_sample_size for record in records]),
        resampled=torch.stack([record.resampled for record in records]),
        log_evidence=increments,
        log_evidence_variance=particles.log_evidence_variance(),
    )


def _result_of(fused: Filtered) -> FilterResult:
    """The result of a fused filter, whose tensors have trials before particles."""
    z, ancestors, log_weights, ess, resampled, increments, origin = fused.bins
    last = Particles(
        None,
        None,
        None,
        log_weights[-1].t(),
        increments.sum(0, dtype=torch.float64),
        origin.t(),
        resampled.sum(0),
    )
    return FilterResult(
        starts=None,
        paths=z.permute(0, 3, 2, 1),
        states=fused.states,
        ancestors=ancestors.transpose(1, 2),
        log_weights=log_weights.transpose(1, 2),
        effective_sample_size=ess,
        resampled=resampled,
        log_evidence=increments,
        log_evidence_variance=last.log_evidence_variance(),
    )


def check_alive(
    increments: Float[Tensor, "time trial"], trials: Int[Tensor, " trial"], first_bin: int
) -> None:
    """Refuse evidence that is 0 or not finite.

    Args:
        increments: log evidence of every bin.
        trials: positions of the trials in their recording.
        first_bin: number of the first of these bins.

    Raises:
        ArithmeticError: naming the first such bin and trial.
    """
    dead = ~torch.isfinite(increments)
    if dead.any():
        t, trial = dead.nonzero()[0].tolist()
        raise ArithmeticError(
            f"no particle explains bin {t + first_bin} of trial {int(trials[trial])}: all"
            " weights are 0 or not finite; use more particles, a proposal that looks at the data,"
            " or a model with more noise"
        )
