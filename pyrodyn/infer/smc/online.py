"""Online filtering: one bin at a time, as data arrive.

`filter_bin` advances particles over one new bin and returns a `Stream`, which holds all that later
bins need of the past. With the same noise a stream has the weights, draws and evidence that
`particle_filter` has on the whole recording, while time and memory per bin are constant: the
particles are kept, and as many past bins as a causal encoder's kernels cover.

It works with every causal proposal: `Bootstrap`, `OptimalFactor` and a causal `EncoderFactor`. The
guides of LFADS and of the sequential autoencoders read a trial in both directions and are refused;
with ``model.proposal = Bootstrap()`` those models are filtered online by their prior.

Weights are normalised to a mean of 1 after every bin and the evidence is summed separately in
double precision (see `Particles`), so a stream may run for any number of bins.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.smc.particle_filter import (
    Particles,
    SequentialMonteCarlo,
    StepRecord,
    check_alive,
)
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import Observed, StateSpaceModel


class Stream(NamedTuple):
    """What is passed from bin to bin.

    Attributes:
        particles: after the last bin.
        past: what the proposal keeps of past bins.
        num_bins: number of bins so far.
    """

    particles: Particles
    past: Any
    num_bins: int

    @property
    def log_evidence(self) -> Float[Tensor, " trial"]:
        """Estimate of log p(x) of all bins so far, in double precision."""
        return self.particles.log_evidence

    def mean(self, values: Float[Tensor, "particle trial entry"]) -> Float[Tensor, "trial entry"]:
        """Filtered mean of a quantity of every particle: of ``particles.state.z``, say, or of the
        rates ``model.emission(particles.state).mean``.
        """
        return (torch.softmax(self.particles.log_weights, 0)[..., None] * values).sum(0)


@torch.no_grad()
@local_parameters()
def filter_bin(
    algorithm: SequentialMonteCarlo,
    x: ArrayLike | Tensor,
    inputs: ArrayLike | Tensor | None = None,
    *,
    valid: ArrayLike | Tensor | None = None,
    stream: Stream | None = None,
) -> tuple[Stream, StepRecord]:
    """Advance over one new bin of one or several parallel trials.

    Args:
        algorithm: model, number of particles and resampling.
        x: the new bin's observations, ``(trial, neuron)``.
        inputs: its known inputs, ``(trial, input)``; required by a model with inputs.
        valid: which entries were measured, ``(trial, neuron)``; all by default.
        stream: what this function returned at the bin before; None at the first bin.

    Returns:
        The stream, and the record of this bin.

    Raises:
        ValueError: for a proposal that is not causal, a model whose first bins only set the initial
            condition, and data of a wrong shape or value.
        ArithmeticError: when every particle of a trial has weight 0, naming trial and bin.
    """
    if not isinstance(algorithm, SequentialMonteCarlo):
        raise ValueError(
            f"algorithm is a {type(algorithm).__name__}; give SequentialMonteCarlo(model,"
            " num_particles)"
        )
    model = algorithm.model
    num_bins = 0 if stream is None else stream.num_bins
    batch = _new_bin(model, x, inputs, valid, num_bins)
    state = past = None
    with model.hoisting():
        if stream is not None:
            state, past = stream.particles.state, stream.past
            num_trials = len(stream.log_evidence)
            if batch.num_trials != num_trials:
                raise ValueError(
                    f"x has {batch.num_trials} trials, but this stream has {num_trials}"
                )
        encoding, past = model.proposal.encode_next(model, batch, state, past)
        assert batch.x is not None
        observed = Observed(batch.x, batch.scored, batch.inputs, batch.scored_weight, encoding)
        particles = algorithm.init(observed) if stream is None else stream.particles
        particles, record = algorithm.step(particles, observed, 0)
    check_alive(record.log_evidence[None], batch.trial, num_bins)
    return Stream(particles, past, num_bins + 1), record


def _new_bin(
    model: StateSpaceModel,
    x: ArrayLike | Tensor,
    inputs: ArrayLike | Tensor | None,
    valid: ArrayLike | Tensor | None,
    number: int,
) -> Batch:
    """One validated bin as a batch."""
    if model.first_bin:
        raise ValueError(
            f"the first {model.first_bin} bins of a trial only set the initial condition of this"
            f" {type(model).__name__}, so it cannot be filtered online"
        )
    like = next(model.parameters())
    num_neurons, input_dim = model.observation.num_neurons, model.config["input_dim"]
    measured = torch.as_tensor(x).to(like)
    if measured.ndim != 2 or measured.shape[1] != num_neurons or not len(measured):
        raise ValueError(
            f"x must be one bin of shape (trial, {num_neurons}), not {tuple(measured.shape)}"
        )
    known = like.new_zeros(len(measured), 0) if inputs is None else torch.as_tensor(inputs).to(like)
    if known.shape != (len(measured), input_dim):
        found = "missing" if inputs is None else f"of shape {tuple(known.shape)}"
        raise ValueError(
            f"this model was made for {input_dim} inputs, but those of bin {number} are {found};"
            f" give inputs of shape ({len(measured)}, {input_dim})"
        )
    if not torch.isfinite(known).all():
        trial, position = (~torch.isfinite(known)).nonzero()[0].tolist()
        raise ValueError(f"input {position} of trial {trial} is not finite at bin {number}")
    is_measured = torch.ones_like(measured, dtype=torch.bool)
    if valid is not None:
        is_measured = torch.as_tensor(valid, device=like.device)
        if is_measured.dtype != torch.bool or is_measured.shape != measured.shape:
            raise ValueError(
                f"valid must be bool and of the shape of x, {tuple(measured.shape)}, not"
                f" {is_measured.dtype} of shape {tuple(is_measured.shape)}"
            )
    measured = measured.where(is_measured, 0.0)
    try:
        model.observation.check(measured[:, None], is_measured[:, None])
    except ValueError as error:
        raise ValueError(f"bin {number} of this stream, checked by itself: {error}") from None
    return Batch(
        x=measured[:, None],
        seen=measured[:, None],
        visible=is_measured[:, None],
        scored=is_measured[:, None],
        inputs=known[:, None],
        trial=torch.arange(len(measured), device=like.device),
        horizon=1,
        is_complete=True if valid is None else None,
    )
