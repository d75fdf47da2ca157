"""Transforms of batches: masking, held-out data and augmentation.

A transform is a function from `Batch` to `Batch`. It sets which entries the encoder may use
(``seen``, ``visible``) or which enter the likelihood (``scored``), or moves the observations in
time (augmentation). Because the masks are part of the batch, each transform works with every model,
and transforms can be combined:

* an entry hidden by any transform stays hidden, and an entry that was not measured is never scored;
* a transform that scores a random fraction of the entries weights them to represent all;
* an augmentation moves ``x`` and the encoder's view of it by the same draw.

Apply `SampleValidation` first, so that its validation entries never mix with the training entries;
then augmentations; then the transforms that hide a fresh draw of entries from the encoder.

Random transforms draw from torch's global generator, which `fit` seeds at every step.
"""

import dataclasses
import functools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch, Transform

NOTHING_SCORED = "rate=0 hides nothing, so nothing would be scored; leave the transform out instead"


MASKED_AT_ONCE = ("timestep", "neuron", "full")
"""Modes of `MaskedModelling`."""


def _check_fraction(value: float, name: str) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value} is a fraction of entries; it must lie in [0, 1)")


def _hide(batch: Batch, hidden: Bool[Tensor, "trial time neuron"]) -> Batch:
    """Hide entries from the encoder."""
    shown = ~hidden
    return batch.replace(seen=batch.seen * shown, visible=batch.visible & shown)


def _with_other_bins(batch: Batch, replaced: Bool[Tensor, "trial time neuron"]) -> Batch:
    """Show entries to the encoder as they are in a random bin of a random trial, if they are
    visible there.
    """
    num_trials, num_bins, _ = batch.seen.shape
    device = batch.seen.device
    trial = torch.randint(num_trials, (num_trials, num_bins), device=device)
    t = torch.randint(num_bins, (num_trials, num_bins), device=device)
    visible = batch.visible & torch.where(replaced, batch.visible[trial, t], batch.visible)
    seen = torch.where(replaced, batch.seen[trial, t], batch.seen) * visible
    return batch.replace(seen=seen, visible=visible)


def _rescale(batch: Batch, hidden_fraction: float) -> Batch:
    """Rescale the visible entries so that the expected sum over all entries is unchanged."""
    gain = 1 / (1 - hidden_fraction)
    return batch.replace(seen=batch.seen * gain, gain=batch.gain * gain)


@dataclasses.dataclass(frozen=True)
class CoordinatedDropout:
    """Hide random entries from the encoder, rescale the others, and score only the hidden ones.

    The autoencoder then cannot reproduce an entry's own noise (Keshtkaran & Pandarinath, NeurIPS
    2019). The scored entries are weighted to represent all, which keeps the likelihood in
    proportion to the KLs; the training loss is not a bound on the evidence while this transform is
    used. Entries hidden before (held-out neurons, forecast bins) are scored at the same rate.

    Args:
        rate: fraction of entries hidden.
        pass_rate: fraction of the visible entries that are scored as well.
    """

    rate: float = 0.3
    pass_rate: float = 0.0

    def __post_init__(self) -> None:
        _check_fraction(self.rate, "rate")
        _check_fraction(self.pass_rate, "pass_rate")
        if self.rate == 0:
            raise ValueError(NOTHING_SCORED)

    def __call__(self, batch: Batch) -> Batch:
        """Draw one mask; hide its entries from the encoder and score only these."""
        hidden = torch.rand_like(batch.seen) < self.rate
        counted = hidden
        if self.pass_rate > 0:
            counted = hidden | (torch.rand_like(batch.seen) < self.pass_rate)
        fraction = self.rate + (1 - self.rate) * self.pass_rate
        return _rescale(_hide(batch, hidden), self.rate).replace(
            scored=batch.scored & counted, scored_weight=batch.scored_weight / fraction
        )


@dataclasses.dataclass(frozen=True)
class MaskedModelling:
    """Mask bins, neurons or single entries and score only these, as the Neural Data Transformer
    does (Ye & Pandarinath 2021).

    Of what is masked, a part is shown as 0, a part as another bin of the batch, and the rest
    unchanged: an encoder that cannot tell which of the entries that it sees are scored must predict
    all of them from their context. The scored entries are weighted to represent all, as in
    `CoordinatedDropout`. Entries hidden before (held-out neurons, forecast bins) are scored at the
    same rate, drawn entry by entry, so that they are predicted from visible bins too.

    Args:
        rate: expected fraction of bins, neurons or entries masked.
        span: length in bins of each masked span, or the least and the largest length, between which
            it is drawn for each trial; spans may overlap.
        zeroed: fraction of the masked shown as 0, which the encoder does not see at all.
        randomised: fraction of the masked shown as they are in a random bin of a random trial.
        mode: what is masked at once: ``"timestep"``, all neurons of a bin; ``"neuron"``, all bins
            of a neuron in a trial; or ``"full"``, single entries.
        ramp_steps: training steps over which spans longer than one bin are introduced: the
            fraction of trials that have them grows linearly from 0 to 1.
    """

    rate: float = 0.25
    span: int | tuple[int, int] = 1
    zeroed: float = 1.0
    randomised: float = 0.0
    mode: str = "timestep"
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        _check_fraction(self.rate, "rate")
        if self.rate == 0:
            raise ValueError(NOTHING_SCORED)
        least, largest = self._spans
        if isinstance(self.span, int):
            check_integer(1, span=self.span)
        else:
            check_integer(1, **{"span[0]": least, "span[1]": largest})
        if least > largest:
            raise ValueError(f"span={self.span} must give the least length first")
        for name, value in (("zeroed", self.zeroed), ("randomised", self.randomised)):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{name}={value} is a fraction of the masked bins; it must lie in [0, 1]"
                )
        if self.zeroed + self.randomised > 1:
            raise ValueError(
                f"zeroed={self.zeroed} and randomised={self.randomised} are fractions of the masked"
                " bins, which add up to more than 1"
            )
        if self.mode not in MASKED_AT_ONCE:
            raise ValueError(
                f"mode={self.mode!r} is unknown; it is one of {', '.join(MASKED_AT_ONCE)}"
            )
        check_integer(0, ramp_steps=self.ramp_steps)
        if largest == 1 and self.ramp_steps:
            raise ValueError(f"ramp_steps={self.ramp_steps} needs a span of more than one bin")
        if largest > 1 and self.mode == "neuron":
            raise ValueError(f"span={self.span} has no meaning where mode='neuron' masks all bins")

    @property
    def _spans(self) -> tuple[int, int]:
        return self.span if isinstance(self.span, tuple) else (self.span, self.span)

    def at_step(self, step: int) -> Transform:
        """The transform at a training step; called itself, it is as after the ramp."""
        if step >= self.ramp_steps:
            return self
        return functools.partial(self.__call__, with_spans=step / self.ramp_steps)

    def __call__(self, batch: Batch, with_spans: float = 1.0) -> Batch:
        """Draw masks per trial, hide or replace what they mask, and score it.

        ``with_spans`` is the fraction of trials that have spans longer than one bin.
        """
        masked = self._draw(batch, with_spans)
        part = torch.rand(masked.shape, device=masked.device)
        hidden = masked & (part < self.zeroed)
        replaced = masked & ~hidden & (part < self.zeroed + self.randomised)
        unseen = ~batch.visible & (torch.rand_like(batch.seen) < self.rate)
        scored = batch.scored & ((batch.visible & masked) | unseen)
        if self.randomised > 0:
            batch = _with_other_bins(batch, replaced.expand_as(batch.visible))
        return _hide(batch, hidden.expand_as(batch.visible)).replace(
            scored=scored, scored_weight=batch.scored_weight / self.rate
        )

    def _draw(self, batch: Batch, with_spans: float) -> Bool[Tensor, "trial bin unit"]:
        """What is masked, of size 1 along a dim that is masked as a whole."""
        num_trials, num_bins, num_neurons = batch.seen.shape
        device, (least, largest) = batch.seen.device, self._spans
        num_bins = 1 if self.mode == "neuron" else num_bins
        num_neurons = 1 if self.mode == "timestep" else num_neurons
        if largest == 1:
            return torch.rand(num_trials, num_bins, num_neurons, device=device) < self.rate
        spans = torch.randint(least, largest + 1, (num_trials, 1, 1), device=device)
        spans = torch.where(torch.rand(spans.shape, device=device) < with_spans, spans, 1)
        # A bin is masked if a span starts at it or shortly before, at the rate that masks `rate`.
        start_rate = 1 - (1 - self.rate) ** (1 / spans)
        draw = torch.rand(num_trials, num_bins + largest - 1, num_neurons, device=device)
        num_starts = functional.pad((draw < start_rate).long().cumsum(1), (0, 0, 1, 0))
        last = torch.arange(largest, largest + num_bins, device=device)[:, None]
        first = (last - spans).expand(-1, -1, num_neurons)
        return num_starts[:, largest:] > num_starts.gather(1, first)


@dataclasses.dataclass(frozen=True)
class HoldOutNeurons:
    """Hide neurons from the encoder in all bins; they stay scored (co-smoothing).

    Args:
        neurons: positions of the hidden neurons.
    """

    neurons: Sequence[int]

    def __call__(self, batch: Batch) -> Batch:
        """Hide the neurons."""
        num_neurons = batch.seen.shape[-1]
        outside = [neuron for neuron in self.neurons if not 0 <= neuron < num_neurons]
        if outside:
            raise ValueError(
                f"HoldOutNeurons names neuron {outside[0]}; there are {num_neurons}, counted from 0"
            )
        hidden = torch.zeros_like(batch.visible)
        hidden[:, :, list(self.neurons)] = True
        return _hide(batch, hidden)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Hide the last bins of every trial from the encoder; they stay scored.

    Args:
        num_bins: number of last bins to forecast.
    """

    num_bins: int

    def __call__(self, batch: Batch) -> Batch:
        """Hide the bins and end the horizon before them."""
        horizon = batch.num_bins - self.num_bins
        if not 1 <= horizon <= batch.num_bins:
            raise ValueError(
                f"Forecast(num_bins={self.num_bins}) must leave at least one of"
                f" {batch.num_bins} bins to see"
            )
        hidden = torch.zeros_like(batch.visible)
        hidden[:, horizon:] = True
        return _hide(batch, hidden).replace(horizon=min(horizon, batch.horizon))


@dataclasses.dataclass(frozen=True)
class SampleValidation:
    """Reserve a fixed random fraction of entries for validation: training neither sees nor scores
    them.

    The draw depends on ``seed`` and the trials' positions alone, so that an entry is reserved
    throughout a fit. Apply it before augmentations, which then move spikes only among the training
    entries. The visible entries are rescaled to keep their expected sum. `complement` scores the
    reserved entries and no others.

    Args:
        rate: fraction of entries reserved.
        seed: seeds the draw.
        scores_reserved: score the reserved entries instead of the others.
    """

    rate: float = 0.2
    seed: int = 0
    scores_reserved: bool = False

    def __post_init__(self) -> None:
        _check_fraction(self.rate, "rate")

    def complement(self) -> "SampleValidation":
        """The transform that scores the entries which this one reserves."""
        return dataclasses.replace(self, scores_reserved=not self.scores_reserved)

    def __call__(self, batch: Batch) -> Batch:
        """Hide the reserved entries; score the others, or in the complement only these."""
        reserved = self._reserved(batch)
        counted = reserved if self.scores_reserved else ~reserved
        return _rescale(_hide(batch, reserved), self.rate).replace(scored=batch.scored & counted)

    def _reserved(self, batch: Batch) -> Bool[Tensor, "trial time neuron"]:
        # A hash of (trial, bin, neuron) needs no stored mask and gives an entry the same result in
        # every batch. The constants are those of the splitmix64 finaliser.
        _, num_bins, num_neurons = batch.seen.shape
        device = batch.seen.device
        size = num_bins * num_neurons
        entry = torch.arange(size, device=device).view(num_bins, num_neurons)
        bits = batch.trial[:, None, None] * size + entry + self.seed * 0x9E3779B9
        bits = bits * -0x61C8864680B583EB
        bits = (bits ^ _unsigned_shift(bits, 30)) * -0x40A7B892E31B1A47
        bits = (bits ^ _unsigned_shift(bits, 27)) * -0x6B2FB644ECCEEE15
        bits = bits ^ _unsigned_shift(bits, 31)
        return _unsigned_shift(bits, 11).double() * 2.0**-53 < self.rate


def _unsigned_shift(bits: Tensor, places: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


@dataclasses.dataclass(frozen=True)
class TemporalShift:
    """Move every trial by a random number of bins: augmentation.

    Observations, masks and inputs move together; bins that enter from outside the trial are neither
    visible nor scored.

    Args:
        max_bins: largest shift in either direction.
    """

    max_bins: int

    def __post_init__(self) -> None:
        check_integer(1, max_bins=self.max_bins)

    def __call__(self, batch: Batch) -> Batch:
        """Draw one shift per trial and apply it to every field alike."""
        num_trials, num_bins = batch.num_trials, batch.num_bins
        device = batch.seen.device
        shift = torch.randint(-self.max_bins, self.max_bins + 1, (num_trials, 1, 1), device=device)
        source = torch.arange(num_bins, device=device)[:, None] - shift
        inside = (source >= 0) & (source < num_bins)
        source = source.clamp(0, num_bins - 1)

        def shifted(field: Tensor) -> Tensor:
            return torch.gather(field, 1, source.expand(-1, -1, field.shape[-1])) * inside

        visible = shifted(batch.visible)
        visible[:, batch.horizon :] = False
        return batch.replace(
            x=None if batch.x is None else shifted(batch.x),
            seen=shifted(batch.seen) * visible,
            visible=visible,
            scored=shifted(batch.scored),
            inputs=shifted(batch.inputs),
        )


@dataclasses.dataclass(frozen=True)
class SpikeJitter:
    """Move every spike by a random number of bins: augmentation.

    The encoder sees the same jittered spikes that the likelihood scores. Spikes that are not
    scored, or that would move to an entry that is not scored, keep their bin.

    Args:
        max_bins: largest displacement in either direction.
    """

    max_bins: int

    def __post_init__(self) -> None:
        check_integer(1, max_bins=self.max_bins)

    def __call__(self, batch: Batch) -> Batch:
        """Draw one displacement per spike."""
        if batch.x is None:
            return batch
        jittered = self._jitter(batch.x, batch.scored)
        seen = jittered.masked_fill(~batch.visible, 0.0) * batch.gain
        return batch.replace(x=jittered, seen=seen)

    def _jitter(
        self,
        x: Float[Tensor, "trial time neuron"],
        scored: Bool[Tensor, "trial time neuron"],
    ) -> Float[Tensor, "trial time neuron"]:
        spikes = x.masked_fill(~scored, 0.0)
        if ((spikes < 0) | (spikes % 1 != 0)).any():
            raise ValueError("SpikeJitter moves spikes: it needs counts, not a signal")
        trial, time, neuron = spikes.nonzero(as_tuple=True)
        counts = spikes[trial, time, neuron].long()
        trial, time, neuron = (i.repeat_interleave(counts) for i in (trial, time, neuron))
        offset = torch.randint(-self.max_bins, self.max_bins + 1, time.shape, device=x.device)
        target = (time + offset).clamp(0, x.shape[1] - 1)
        target = torch.where(scored[trial, target, neuron], target, time)
        ones = torch.ones(time.shape, dtype=x.dtype, device=x.device)
        return (x - spikes).index_put_((trial, target, neuron), ones, accumulate=True)
