import numpy as np
import pytest
import torch

from pyrodyn.data.batch import Batch, Trials, num_units
from pyrodyn.data.recording import held_out, recording

pytestmark = pytest.mark.filterwarnings("ignore:the mean count is")


def counts(*shape: int) -> np.ndarray:
    """Counts that are all different, so that no entry can be taken for another."""
    return 1 + np.arange(np.prod(shape)).reshape(shape)


def test_tensors_are_those_of_the_recording():
    x, inputs = counts(4, 6, 3), np.random.default_rng(0).normal(size=(4, 6, 2))
    batch = Trials(recording(x, bin_width=0.01, inputs=inputs)).batch()
    assert batch.x.dtype == batch.seen.dtype == batch.inputs.dtype == torch.float32
    np.testing.assert_array_equal(batch.x, x)
    np.testing.assert_array_equal(batch.seen, x)
    np.testing.assert_array_equal(batch.inputs, inputs.astype(np.float32))
    assert batch.visible.all() and batch.scored.all()
    assert (batch.num_trials, batch.num_bins, batch.horizon) == (4, 6, 6)
    assert (batch.gain, batch.weight, batch.scored_weight) == (1, 1, 1)


def test_a_signal_is_read_from_its_channels():
    signal = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    data = recording(signal=signal, bin_width=0.01)
    np.testing.assert_array_equal(Trials(data).batch().x, signal)
    assert num_units(data) == 3


def test_neurons_come_first_and_then_the_channels():
    x, signal = counts(2, 5, 3), np.random.default_rng(1).normal(size=(2, 5, 2)).astype(np.float32)
    valid, signal_valid = np.ones((2, 5, 3), bool), np.ones((2, 5, 2), bool)
    valid[0, 1, 2] = signal_valid[1, 4, 0] = False
    data = recording(x, signal=signal, bin_width=0.01, valid=valid, signal_valid=signal_valid)
    data = held_out(data, neurons=[0], channels=[1], forecast_bins=1)
    assert num_units(data) == 5
    batch = Trials(data).batch()
    measured = np.concatenate([valid, signal_valid], -1)
    np.testing.assert_array_equal(batch.x, np.concatenate([x, signal], -1) * measured)
    np.testing.assert_array_equal(batch.scored, measured)
    visible = measured.copy()
    visible[:, :, [0, 4]] = False
    visible[:, 4] = False
    np.testing.assert_array_equal(batch.visible, visible)
    np.testing.assert_array_equal(batch.seen, batch.x.numpy() * visible)


def test_without_known_inputs_there_are_no_input_columns():
    batch = Trials(recording(counts(2, 5, 3), bin_width=0.01)).batch()
    assert batch.inputs.shape == (2, 5, 0)


def test_held_out_neurons_and_forecast_bins_are_scored_but_not_seen():
    x = counts(4, 6, 3)
    data = held_out(recording(x, bin_width=0.01), neurons=[1], forecast_bins=2)
    batch = Trials(data).batch()
    visible = np.ones(x.shape, bool)
    visible[:, :, 1] = False
    visible[:, 4:] = False
    np.testing.assert_array_equal(batch.visible, visible)
    np.testing.assert_array_equal(batch.seen, x * visible)
    np.testing.assert_array_equal(batch.x, x)
    assert batch.scored.all()
    assert batch.horizon == 4


@pytest.mark.parametrize("ndim", [2, 3])
def test_unmeasured_entries_are_neither_seen_nor_scored(ndim):
    x = counts(4, 6, 3)
    valid = np.random.default_rng(2).random(x.shape[:ndim]) < 0.6
    valid[:, 0] = True
    measured = np.broadcast_to(valid if ndim == 3 else valid[..., None], x.shape)
    absurd = np.where(measured, x, 10**6)
    batch = Trials(recording(absurd, bin_width=0.01, valid=valid)).batch()
    for mask in (batch.visible, batch.scored):
        np.testing.assert_array_equal(mask, measured)
    for view in (batch.x, batch.seen):
        np.testing.assert_array_equal(view, x * measured)


def test_trials_of_unequal_length_end_where_their_measurements_do():
    trials = [counts(length, 3) for length in (6, 3, 5)]
    batch = Trials(recording(trials, bin_width=0.01)).batch()
    for row, trial in enumerate(trials):
        np.testing.assert_array_equal(batch.x[row, : len(trial)], trial)
        assert batch.scored[row, : len(trial)].all() and batch.visible[row, : len(trial)].all()
        assert not batch.scored[row, len(trial) :].any()
        assert not batch.visible[row, len(trial) :].any()
        assert not batch.seen[row, len(trial) :].any()


FIELDS = ("x", "seen", "visible", "scored", "inputs", "trial")


@pytest.mark.parametrize("positions", [torch.tensor([5, 0, 3]), slice(2, 5)])
def test_a_batch_takes_the_same_trials_of_every_field(positions):
    valid = np.random.default_rng(3).random((7, 6, 3)) < 0.8
    valid[:, 0] = True
    data = recording(
        counts(7, 6, 3), bin_width=0.01, inputs=counts(7, 6, 2).astype(float), valid=valid
    )
    trials = Trials(held_out(data, neurons=[2], forecast_bins=1))
    everything, batch = trials.batch(), trials.batch(positions)
    for field in FIELDS:
        assert torch.equal(getattr(batch, field), getattr(everything, field)[positions]), field
    assert batch.horizon == everything.horizon == 5
    assert len(trials) == 7
    assert batch.weight == pytest.approx(7 / 3)


def test_ordered_batches_cover_every_trial_once_and_stand_for_themselves():
    trials = Trials(recording(counts(7, 6, 3), bin_width=0.01))
    batches = list(trials.batches(3))
    assert [batch.num_trials for batch in batches] == [3, 3, 1]
    assert [batch.weight for batch in batches] == [1, 1, 1]
    for field in FIELDS:
        joined = torch.cat([getattr(batch, field) for batch in batches])
        assert torch.equal(joined, getattr(trials.batch(), field)), field


def test_an_unobserved_batch_keeps_the_view_of_the_encoder():
    batch = Trials(recording(counts(2, 6, 3), bin_width=0.01)).batch()
    unobserved = batch.unobserved()
    assert unobserved.x is None
    assert unobserved.seen is batch.seen and unobserved.scored is batch.scored
    assert (unobserved.num_trials, unobserved.num_bins) == (2, 6)


def test_the_import_hook_checks_shapes_of_batches():
    batch = Trials(recording(counts(2, 6, 3), bin_width=0.01)).batch()
    with pytest.raises(TypeError, match="visible"):
        Batch(**{**vars(batch), "visible": batch.visible[:, :, :2]})
