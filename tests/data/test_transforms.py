"""The transforms, each alone and combined."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from pyrodyn.data.batch import Batch, Trials, at_step
from pyrodyn.data.recording import held_out, recording
from pyrodyn.data.transforms import (
    CoordinatedDropout,
    Forecast,
    HoldOutNeurons,
    MaskedModelling,
    SampleValidation,
    SpikeJitter,
    TemporalShift,
)
from pyrodyn.infer.objectives.elbo import ELBO

Transforms = Sequence[Callable[[Batch], Batch]]

RESERVED = SampleValidation(0.2, seed=3)
AUGMENTED = [TemporalShift(2), SpikeJitter(2)]
HIDDEN = [HoldOutNeurons([1]), Forecast(3)]

PIPELINES: dict[str, Transforms] = {
    "coordinated dropout": [CoordinatedDropout(0.3)],
    "coordinated dropout with passes": [CoordinatedDropout(0.3, pass_rate=0.2)],
    "masked modelling": [MaskedModelling(0.3, span=2)],
    "masked, a part shown": [MaskedModelling(0.3, (1, 3), zeroed=0.5, mode="full")],
    "held-out neurons": [HoldOutNeurons([1])],
    "forecast": [Forecast(3)],
    "sample validation": [RESERVED],
    "its complement": [RESERVED.complement()],
    "shift": [TemporalShift(2)],
    "jitter": [SpikeJitter(2)],
    "all": [RESERVED, *AUGMENTED, *HIDDEN, CoordinatedDropout(0.3)],
    "all, masked in spans": [RESERVED, *AUGMENTED, *HIDDEN, MaskedModelling(0.3, span=2)],
    "all, masked twice": [RESERVED, *AUGMENTED, *HIDDEN, MaskedModelling(), CoordinatedDropout()],
    "all, in a foolish order": [CoordinatedDropout(0.3), *HIDDEN, *AUGMENTED[::-1], RESERVED],
}
"""Transforms as a user may combine them."""

SCORES_ONLY_HIDDEN = [
    "coordinated dropout",
    "masked modelling",
    "all",
    "all, masked in spans",
    "all, masked twice",
    "all, in a foolish order",
]


def ragged_recording(num_trials: int = 20, num_bins: int = 12, num_neurons: int = 6) -> xr.Dataset:
    """Trials of unequal length with lost samples, held-out neurons, forecast bins and inputs."""
    rng = np.random.default_rng(0)
    shape = (num_trials, num_bins, num_neurons)
    valid = rng.random(shape) < 0.9
    lengths = rng.integers(7, num_bins + 1, num_trials)
    valid &= (np.arange(num_bins) < lengths[:, None])[..., None]
    data = recording(
        rng.poisson(2.0, shape) + 1,
        bin_width=0.02,
        valid=valid,
        inputs=rng.normal(size=(num_trials, num_bins, 2)),
    )
    return held_out(data, neurons=[0, 4], forecast_bins=2)


def applied(transforms: Transforms, batch: Batch, seed: int) -> Batch:
    """A batch after all transforms, the random ones seeded."""
    torch.manual_seed(seed)
    for transform in transforms:
        batch = transform(batch)
    return batch


def agrees(values: Tensor, expected: float) -> bool:
    """Whether independent values have the expected mean within 4 standard errors."""
    error = values.std() / len(values) ** 0.5
    return abs(values.mean() - expected) < 4 * error


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Transforms:
    return PIPELINES[request.param]


# ------------------------------------------------------------------ alignment


def test_the_encoder_sees_what_is_scored_or_nothing(pipeline):
    original = Trials(ragged_recording()).batch()
    for seed in range(10):
        batch = applied(pipeline, original, seed)
        shown = torch.where(batch.visible, batch.x * batch.gain, 0.0)
        torch.testing.assert_close(batch.seen, shown, rtol=1e-6, atol=0)
        assert not batch.visible[:, batch.horizon :].any()
        assert not batch.visible[:, :, [0, 4]].any()  # held out by the recording
        assert batch.scored.any()


@pytest.mark.parametrize("name", SCORES_ONLY_HIDDEN)
def test_what_the_encoder_saw_is_not_scored(name):
    original = Trials(ragged_recording()).batch()
    for seed in range(10):
        batch = applied(PIPELINES[name], original, seed)
        assert not (batch.visible & batch.scored).any()
        assert (batch.seen != 0).any()


def test_unmeasured_entries_are_never_scored_or_seen(pipeline):
    original = Trials(ragged_recording()).batch()
    filler = 1e6
    poisoned = original.replace(x=torch.where(original.scored, original.x, filler))
    for seed in range(10):
        batch = applied(pipeline, poisoned, seed)
        assert (batch.x[batch.scored] < 1e3).all()
        assert (batch.seen < 1e3).all()
        assert (batch.x[batch.scored] > 0).any()


def test_a_recording_with_absurd_values_where_nothing_was_measured_gives_the_same_batches(
    pipeline,
):
    data = ragged_recording()
    absurd = data.copy()
    absurd["counts"] = data["counts"].where(data["valid"], 10**6)
    one, other = (applied(pipeline, Trials(part).batch(), seed=0) for part in (data, absurd))
    assert torch.equal(one.seen, other.seen)
    assert torch.equal(one.x[one.scored], other.x[other.scored])
    for field in ("visible", "scored", "inputs"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


@pytest.mark.parametrize("filler", [1e6, float("nan")])
def test_filler_values_change_neither_loss_nor_gradients(pipeline, filler, make_lfads):
    data = ragged_recording()
    lfads = make_lfads(
        data, inferred_input_dim=2, initial_condition_bins=3, recurrent_precision=0.1
    )
    original = Trials(data).batch()
    poisoned = original.replace(x=torch.where(original.scored, original.x, filler))
    loss = ELBO()(lfads, lfads.guide)
    losses, gradients = [], []
    for batch in (original, poisoned):
        value = loss(applied(pipeline, batch, seed=1))
        losses.append(value)
        gradients.append(torch.autograd.grad(value, list(lfads.parameters())))
    assert torch.isfinite(losses[0])
    assert torch.equal(*losses)
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_inferred_inputs", [0, 2])
@pytest.mark.parametrize("name", SCORES_ONLY_HIDDEN)
def test_no_entry_reaches_both_encoder_and_likelihood_of_a_model_with_an_initial_window(
    name, num_inferred_inputs, make_lfads
):
    window = 3
    data = ragged_recording()
    lfads = make_lfads(data, inferred_input_dim=num_inferred_inputs, initial_condition_bins=window)
    batch = applied(PIPELINES[name], Trials(data).batch(), seed=2)
    x, seen = batch.x.clone().requires_grad_(), batch.seen.clone().requires_grad_()
    loss = ELBO()(lfads, lfads.guide)(batch.replace(x=x, seen=seen))
    counted, read = (grad != 0 for grad in torch.autograd.grad(loss, [x, seen]))
    generated = torch.arange(batch.num_bins)[:, None] >= window
    assert torch.equal(counted, batch.scored & generated)
    assert not (counted & read & batch.visible).any()
    within = torch.arange(batch.num_bins) < (batch.horizon if num_inferred_inputs else window)
    assert not read[:, ~within].any()
    assert read[:, within].any()


# ------------------------------------------------------------------ expected rates and weights


@pytest.mark.parametrize(
    "transforms",
    [
        [CoordinatedDropout(0.3)],
        [CoordinatedDropout(0.5, pass_rate=0.2)],
        [MaskedModelling(0.25, span=3)],
        [MaskedModelling(0.4, span=2, zeroed=0.5), CoordinatedDropout(0.6)],
    ],
    ids=repr,
)
@pytest.mark.slow
def test_the_expected_likelihood_is_the_full_one(transforms):
    original = Trials(ragged_recording(num_trials=4)).batch()
    log_likelihood = torch.randn(original.seen.shape, generator=torch.Generator().manual_seed(0))
    log_likelihood = log_likelihood.double() - 2
    estimates = []
    for seed in range(2000):
        batch = applied(transforms, original, seed)
        estimates.append(batch.scored_weight * log_likelihood[batch.scored].sum())
    full = float(log_likelihood[original.scored].sum())
    assert agrees(torch.stack(estimates), full)


@pytest.mark.parametrize("pass_rate", [0.0, 0.25])
def test_coordinated_dropout_hides_and_scores_its_shares(pass_rate):
    data = recording(np.ones((200, 20, 10), int), bin_width=0.01)
    batch = applied([CoordinatedDropout(0.3, pass_rate)], Trials(data).batch(), seed=0)
    assert agrees((~batch.visible).double().flatten(), 0.3)
    passed = batch.scored[batch.visible].double()
    assert agrees(passed, pass_rate) if pass_rate else not passed.any()
    assert batch.scored[~batch.visible].all()
    torch.testing.assert_close(batch.seen, batch.visible / 0.7)
    assert agrees(batch.seen.double().flatten(), 1.0)


@pytest.mark.parametrize("span", [1, 3, 5])
def test_masked_modelling_masks_its_share_in_spans_across_neurons(span):
    num_bins = 40
    data = recording(np.ones((500, num_bins, 3), int), bin_width=0.01)
    batch = applied([MaskedModelling(0.25, span)], Trials(data).batch(), seed=0)
    assert torch.equal(batch.scored, ~batch.visible)
    assert torch.equal(batch.seen, batch.visible.float())
    masked = batch.scored[..., 0]
    assert torch.equal(batch.scored, masked[..., None].expand_as(batch.scored))
    assert agrees(masked.double().mean(1), 0.25)
    for bins in (masked[:, 0], masked[:, -1]):  # the ends are masked as often as the middle
        assert agrees(bins.double(), 0.25)
    for row in masked[:100].numpy():
        starts, stops = np.flatnonzero(np.diff(row, prepend=0, append=0) != 0).reshape(-1, 2).T
        inside = (starts > 0) & (stops < num_bins)
        assert ((stops - starts)[inside] >= span).all()


def test_masked_modelling_shows_a_share_of_what_it_scores():
    data = recording(np.ones((500, 40, 2), int), bin_width=0.01)
    batch = applied([MaskedModelling(0.5, zeroed=0.8)], Trials(data).batch(), seed=0)
    shown = (batch.seen != 0)[..., 0]
    masked = batch.scored[..., 0]
    assert shown[~masked].all()
    assert agrees(shown[masked].double(), 0.2)


def test_masked_modelling_shows_a_share_as_other_bins():
    num_trials, num_bins = 400, 30
    bins = np.arange(num_trials * num_bins).reshape(num_trials, num_bins, 1) + 1.0
    data = recording(signal=np.concatenate([bins, bins], -1), bin_width=0.01)
    transform = MaskedModelling(0.5, zeroed=0.5, randomised=0.3)
    batch = applied([transform], Trials(data).batch(), seed=0)
    masked = batch.scored[..., 0]
    assert torch.equal(batch.seen[..., 0], batch.seen[..., 1])  # bins are replaced as a whole
    shown = batch.seen[masked][:, 0]
    true = batch.x[masked][:, 0]
    assert torch.equal(batch.seen[~masked], batch.x[~masked])
    assert torch.equal(batch.visible, batch.seen > 0)
    assert agrees((shown == 0).double(), 0.5)
    assert agrees(((shown > 0) & (shown != true)).double(), 0.3)
    others = shown[(shown > 0) & (shown != true)]
    assert agrees(others.double() / (num_trials * num_bins), 0.5)  # uniform over all bins


def test_another_bin_shows_only_what_is_visible_there():
    original = Trials(ragged_recording()).batch()
    transform = MaskedModelling(0.9, zeroed=0.0, randomised=1.0)
    for seed in range(5):
        batch = applied([transform], original, seed)
        assert not batch.visible[:, batch.horizon :].any()
        assert not batch.visible[:, :, [0, 4]].any()
        assert torch.equal(batch.visible, batch.seen > 0)  # counts are at least 1
        assert not (batch.visible & ~original.visible).any()


@pytest.mark.parametrize("mode", ["timestep", "neuron", "full"])
def test_modes_of_masked_modelling(mode):
    data = recording(np.ones((300, 20, 8), int), bin_width=0.01)
    batch = applied([MaskedModelling(0.3, mode=mode)], Trials(data).batch(), seed=0)
    masked = batch.scored
    units = {"timestep": masked[:, :, :1], "neuron": masked[:, :1], "full": masked}[mode]
    assert torch.equal(masked, units.expand_as(masked))
    assert torch.equal(batch.visible, ~masked)
    assert agrees(units.double().flatten(), 0.3)
    assert batch.scored_weight == pytest.approx(1 / 0.3)


def test_spans_are_introduced_over_the_ramp():
    data = recording(np.ones((2000, 40, 1), int), bin_width=0.01)
    original = Trials(data).batch()
    transform = MaskedModelling(0.25, (2, 6), ramp_steps=100)
    pairs = []
    for step in (0, 50, 100):
        torch.manual_seed(0)
        masked = at_step(transform, step)(original).scored[..., 0].double()
        assert agrees(masked.mean(1), 0.25)
        both = (masked[:, 1:] * masked[:, :-1]).mean(1)  # neighbours that are masked together
        pairs.append(both)
    # Of single bins 1/16; of spans of length w: 1 - 2 q + q (1 - s), q = 0.75, (1 - s)^w = q.
    long = np.mean([1 - 2 * 0.75 + 0.75 * 0.75 ** (1 / w) for w in (2, 3, 4, 5, 6)])
    for found, expected in zip(pairs, (1 / 16, (1 / 16 + long) / 2, long), strict=True):
        assert agrees(found, expected)
    dropout = CoordinatedDropout(0.3)
    assert at_step(dropout, 7) is dropout


def test_entries_hidden_before_are_scored_in_visible_bins_too():
    original = Trials(ragged_recording(400)).batch()
    hidden_before = ~original.visible & original.scored
    batch = applied([MaskedModelling(0.25, 3)], original, seed=0)
    assert agrees(batch.scored[hidden_before].double(), 0.25)
    in_visible_bins = hidden_before & batch.visible.any(-1, keepdim=True)
    assert agrees(batch.scored[in_visible_bins].double(), 0.25)


# ------------------------------------------------------------------ held-out neurons and bins


def test_held_out_neurons_and_forecast_bins_stay_scored():
    original = Trials(ragged_recording()).batch()
    batch = applied(HIDDEN, original, seed=0)
    assert torch.equal(batch.scored, original.scored)
    assert torch.equal(batch.x, original.x)
    expected = original.visible.clone()
    expected[:, :, 1] = False
    expected[:, 9:] = False
    assert torch.equal(batch.visible, expected)
    assert batch.horizon == 9
    assert Forecast(1)(original).horizon == 10  # the recording's own forecast is longer


# ------------------------------------------------------------------ sample validation


def test_sample_validation_reserves_the_same_entries_in_every_batch():
    trials = Trials(ragged_recording())
    whole = RESERVED(trials.batch())
    order = torch.randperm(len(trials), generator=torch.Generator().manual_seed(0))
    for positions in order.split(7):
        part = RESERVED(trials.batch(positions))
        for field in ("seen", "visible", "scored"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[positions]), field


def test_the_complement_scores_exactly_what_training_does_not():
    original = Trials(ragged_recording()).batch()
    training, evaluation = RESERVED(original), RESERVED.complement()(original)
    assert torch.equal(training.scored ^ evaluation.scored, original.scored)
    assert not (training.scored & evaluation.scored).any()
    assert torch.equal(training.seen, evaluation.seen)
    assert torch.equal(training.visible, evaluation.visible)
    assert not (evaluation.scored & evaluation.visible).any()
    assert RESERVED.complement().complement() == RESERVED


def test_sample_validation_reserves_its_fraction_independently_over_entries_and_seeds():
    data = recording(np.ones((200, 30, 10), int), bin_width=0.01)
    batch = Trials(data).batch()
    reserved, other = (~SampleValidation(0.2, seed)(batch).scored for seed in (0, 1))
    centred, centred_other = reserved.double() - 0.2, other.double() - 0.2
    assert agrees(reserved.double().flatten(), 0.2)
    for product in (
        centred * centred_other,
        centred[:, 1:] * centred[:, :-1],
        centred[..., 1:] * centred[..., :-1],
        centred[1:] * centred[:-1],
    ):
        assert agrees(product.flatten(), 0.0)


def test_sample_validation_rescales_what_the_encoder_sees():
    """The visible entries keep the expected sum of all: each is divided by the fraction kept."""
    original = Trials(recording(np.ones((200, 30, 10), int), bin_width=0.01)).batch()
    for transform in (RESERVED, RESERVED.complement()):
        batch = transform(original)
        assert batch.gain == pytest.approx(1.25)
        assert torch.equal(batch.seen, torch.where(batch.visible, 1.25, 0.0))
        assert agrees(batch.seen.double().flatten(), 1.0)


@pytest.mark.parametrize("augmentation", AUGMENTED, ids=repr)
def test_augmentations_mix_no_reserved_entry_into_training(augmentation):
    batch = Trials(recording(np.ones((40, 20, 5), int), bin_width=0.01)).batch()
    reserved = ~RESERVED(batch).scored
    only_reserved = batch.replace(x=batch.x * reserved, seen=batch.seen * reserved)
    for seed in range(5):
        after = applied([RESERVED, augmentation, CoordinatedDropout()], only_reserved, seed)
        assert (after.x != 0).any()
        assert not after.x[after.scored].any()
        assert not after.seen.any()


# ------------------------------------------------------------------ augmentations


def test_a_shift_moves_every_field_of_a_trial_alike_and_all_shifts_are_as_frequent():
    num_trials, num_bins, most = 4000, 9, 3
    x = np.arange(1, num_bins + 1) + 100 * np.arange(num_trials)[:, None]
    data = recording(
        signal=np.repeat(x[..., None], 2, axis=2).astype(float),
        bin_width=0.01,
        inputs=x[..., None].astype(float),
    )
    data = held_out(data, forecast_bins=2)
    original = Trials(data).batch()
    batch = applied([TemporalShift(most)], original, seed=0)
    bins = torch.arange(num_bins)
    came_from = (batch.x[..., 0].long() - 1) % 100
    shift = bins[4] - came_from[:, 4]  # bin 4 comes from inside the trial whatever the shift
    source = bins - shift[:, None]
    inside = (source >= 0) & (source < num_bins)
    expected = torch.where(inside, 1 + source + 100 * torch.arange(num_trials)[:, None], 0).float()
    for moved in (batch.x[..., 0], batch.x[..., 1], batch.inputs[..., 0]):
        assert torch.equal(moved, expected)
    assert torch.equal(batch.scored, inside[..., None].expand_as(batch.scored))
    visible = inside & (bins < batch.horizon) & (source < batch.horizon)
    assert torch.equal(batch.visible, visible[..., None].expand_as(batch.visible))
    assert torch.equal(batch.seen, batch.x * batch.visible)
    for s in range(-most, most + 1):
        assert agrees((shift == s).double(), 1 / (2 * most + 1))


def test_a_shift_works_without_known_inputs_and_without_observations(make_recording):
    batch = Trials(make_recording()).batch()
    assert TemporalShift(2)(batch).inputs.shape == (12, 8, 0)
    assert TemporalShift(2)(batch.unobserved()).x is None
    assert SpikeJitter(2)(batch.unobserved()).x is None


def test_jitter_keeps_every_spike_and_moves_it_no_further_than_asked():
    counts = np.zeros((6000, 9, 2), int)
    counts[:, 4, 0] = 1
    counts[:, 0, 1] = 1
    batch = applied([SpikeJitter(2)], Trials(recording(counts, bin_width=0.01)).batch(), seed=0)
    assert (batch.x.sum(1) == 1).all()
    assert torch.equal(batch.seen, batch.x)
    landed = batch.x.argmax(1)
    for bin_, share in enumerate([0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0, 0]):
        here = (landed[:, 0] == bin_).double()
        assert agrees(here, share) if share else not here.any()
    # A spike that would leave the trial at its edge stays in the first bin.
    assert agrees((landed[:, 1] == 0).double(), 0.6)


def test_jitter_never_crosses_into_or_out_of_unmeasured_entries():
    original = Trials(ragged_recording()).batch()
    for seed in range(10):
        batch = applied([SpikeJitter(3)], original, seed)
        assert torch.equal(batch.x.sum(1), original.x.sum(1))
        assert not batch.x[~original.scored].any()
        assert not torch.equal(batch.x, original.x)


def test_jitter_refuses_a_signal():
    data = recording(signal=np.random.default_rng(0).normal(size=(3, 5, 2)), bin_width=0.01)
    with pytest.raises(ValueError, match="it needs counts, not a signal"):
        SpikeJitter(1)(Trials(data).batch())


# ------------------------------------------------------------------ bad arguments


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CoordinatedDropout(1.0), r"rate=1.0 is a fraction of entries; .* in \[0, 1\)"),
        (lambda: CoordinatedDropout(-0.1), r"rate=-0.1 is a fraction"),
        (lambda: CoordinatedDropout(0.0), r"rate=0 hides nothing"),
        (lambda: CoordinatedDropout(0.3, pass_rate=1.5), r"pass_rate=1.5 is a fraction"),
        (lambda: MaskedModelling(1.2), r"rate=1.2 is a fraction"),
        (lambda: MaskedModelling(0.0), r"rate=0 hides nothing"),
        (lambda: MaskedModelling(span=0), r"span=0 must be an integer of at least 1"),
        (lambda: MaskedModelling(zeroed=1.5), r"zeroed=1.5 is a fraction of the masked bins"),
        (lambda: MaskedModelling(randomised=0.1), r"which add up to more than 1"),
        (lambda: MaskedModelling(span=(0, 3)), r"span\[0\]=0 must be an integer of at least 1"),
        (lambda: MaskedModelling(span=(3, 2)), r"span=\(3, 2\) must give the least length first"),
        (lambda: MaskedModelling(mode="trial"), r"mode='trial' is unknown; it is one of timestep"),
        (lambda: MaskedModelling(span=2, mode="neuron"), r"span=2 has no meaning where mode='neur"),
        (lambda: MaskedModelling(ramp_steps=9), r"ramp_steps=9 needs a span of more than one bin"),
        (lambda: SampleValidation(1.0), r"rate=1.0 is a fraction"),
        (lambda: TemporalShift(0), r"max_bins=0 must be an integer of at least 1"),
        (lambda: SpikeJitter(-1), r"max_bins=-1 must be an integer of at least 1"),
    ],
)
def test_bad_arguments_are_named_in_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        (Forecast(12), r"Forecast\(num_bins=12\) must leave at least one of 12 bins to see"),
        (Forecast(-1), r"Forecast\(num_bins=-1\) must leave"),
        (HoldOutNeurons([0, 6]), r"HoldOutNeurons names neuron 6; there are 6, counted from 0"),
        (HoldOutNeurons([-1]), r"HoldOutNeurons names neuron -1"),
    ],
)
def test_transforms_that_do_not_fit_the_recording_are_named_in_one_sentence(transform, sentence):
    with pytest.raises(ValueError, match=sentence):
        transform(Trials(ragged_recording()).batch())
