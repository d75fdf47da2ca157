"""Filtering bin by bin gives what filtering the whole recording gives."""

import numpy as np
import pytest
import torch
from linear_gaussian import NUM_CHANNELS, NUM_INPUTS, NUM_TRIALS, batch_of, linear_network

from pyrodyn.data import recording
from pyrodyn.data.batch import Batch
from pyrodyn.infer import SequentialMonteCarlo, Stream, filter_bin, particle_filter
from pyrodyn.models import LowRankRNN, NodeSAE
from pyrodyn.models.proposals import EncoderFactor
from pyrodyn.models.state_space import Bootstrap

NUM_BINS = 40
"""More than a causal encoder's kernels reach back (31), so that a stream must forget."""

NUM_PARTICLES = 16


def data(missing: bool = False):
    """Signals with inputs; where ``missing`` samples were lost, and the whole of some bins."""
    rng = np.random.default_rng(0)
    shape = (NUM_TRIALS, NUM_BINS, NUM_CHANNELS)
    valid = np.ones(shape, bool)
    if missing:
        valid = rng.random(shape) > 0.3
        valid[1, 0] = valid[0, 5:9] = valid[:, 20] = False
    return recording(
        signal=rng.normal(size=shape),
        bin_width=0.01,
        inputs=rng.normal(size=(NUM_TRIALS, NUM_BINS, NUM_INPUTS)),
        **({"valid": valid} if missing else {}),
    )


def streamed(algorithm: SequentialMonteCarlo, batch: Batch):
    """The streams and records of all bins of a batch."""
    stream, streams, records = None, [], []
    for t in range(batch.num_bins):
        stream, record = filter_bin(
            algorithm,
            batch.x[:, t],
            batch.inputs[:, t],
            valid=batch.scored[:, t],
            stream=stream,
        )
        streams.append(stream)
        records.append(record)
    return streams, records


def check_equal(model, batch: Batch, **settings) -> None:
    """Both ways draw the same particles, weights and evidence from the same noise."""
    torch.manual_seed(0)
    whole = particle_filter(model, batch, NUM_PARTICLES, **settings)
    torch.manual_seed(0)
    streams, records = streamed(SequentialMonteCarlo(model, NUM_PARTICLES, **settings), batch)
    of_bins = {
        "paths": torch.stack([record.drawn for record in records]),
        "ancestors": torch.stack([record.ancestors for record in records]),
        "resampled": torch.stack([record.resampled for record in records]),
        "effective_sample_size": torch.stack([r.effective_sample_size for r in records]),
        "log_evidence": torch.stack([record.log_evidence for record in records]),
        "log_weights": torch.stack(
            [torch.log_softmax(stream.particles.log_weights, 0) for stream in streams]
        ),
        "log_evidence_variance": streams[-1].particles.log_evidence_variance(),
    }
    for name, value in of_bins.items():
        torch.testing.assert_close(value, getattr(whole, name), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(streams[-1].log_evidence, whole.log_evidence.sum(0).double())
    z = streams[-1].particles.state
    for name, field in zip(z._fields, z, strict=True):
        torch.testing.assert_close(field, getattr(whole.states, name)[-1], rtol=1e-9, atol=1e-9)
    assert streams[-1].num_bins == batch.num_bins


OPTIONS = {
    "causal_encoder": {"proposal": "causal_encoder"},
    "causal_encoder_tails": {"proposal": "causal_encoder", "noise_df": 4.0, "activation": "tanh"},
    "causal_encoder_filtered": {
        "proposal": "causal_encoder",
        "readout": "latents_and_inputs",
        "filters_inputs": True,
    },
    "optimal": {"proposal": "optimal"},
    "optimal_filtered": {
        "proposal": "optimal",
        "readout": "latents_and_inputs",
        "filters_inputs": True,
    },
    "optimal_currents": {
        "proposal": "optimal",
        "readout": "currents",
        "num_units": NUM_CHANNELS,
        "filters_inputs": True,
    },
    "bootstrap": {"proposal": "bootstrap", "filters_inputs": True},
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("options", list(OPTIONS))
def test_a_stream_is_the_filter_of_the_whole(options, missing):
    recorded = data(missing)
    model, batch = linear_network(recorded, **OPTIONS[options]), batch_of(recorded)
    if "input_loading" in dict(model.named_parameters()):
        with torch.no_grad():
            model.input_loading += 1.0  # zero at the start: the filtered inputs would not matter
    check_equal(model, batch)


def test_a_changed_basis_streams_too():
    recorded = data()
    model = linear_network(recorded, proposal="causal_encoder").orthonormal()
    check_equal(model, batch_of(recorded))


@pytest.mark.parametrize("resampling", ["multinomial", "soft"])
def test_every_scheme_draws_the_same_noise(resampling):
    recorded = data()
    model = linear_network(recorded, proposal="causal_encoder")
    check_equal(model, batch_of(recorded), resampling=resampling, ess_threshold=1.0)


def test_counts_stream_too():
    rng = np.random.default_rng(0)
    counts = recording(counts=rng.poisson(1.0, (2, NUM_BINS, 5)), bin_width=0.01)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(
        counts, latent_dim=2, num_units=8, proposal="causal_encoder"
    ).double()
    check_equal(model, batch_of(counts))


def test_models_with_a_start_stream_by_their_prior(make_lfads):
    rng = np.random.default_rng(0)
    counts = recording(counts=1 + rng.poisson(1.0, (2, 9, 5)), bin_width=0.01)
    torch.manual_seed(0)
    for model in (
        make_lfads(counts, inferred_input_dim=2),
        NodeSAE.for_recording(counts, latent_dim=3, process_noise=True),
    ):
        model.proposal = Bootstrap()
        check_equal(model.double().eval(), batch_of(counts))


def test_a_bin_costs_the_same_however_many_came_before():
    recorded = data()
    model, batch = linear_network(recorded, proposal="causal_encoder"), batch_of(recorded)
    streams, _ = streamed(SequentialMonteCarlo(model, NUM_PARTICLES), batch)

    def kept(stream: Stream) -> list[torch.Size]:
        particles = stream.particles
        return [
            field.shape
            for field in (*stream.past, *particles.state, particles.log_weights, particles.origin)
        ]

    assert kept(streams[0]) == kept(streams[-1])
    reach = [kernel - 1 for kernel in model.proposal.kernels]
    assert [field.shape[-1] for field in streams[-1].past] == reach


def test_single_precision_does_not_wear_out():
    """The log evidence of many bins outgrows a float's digits; weights kept apart from it do not
    change: after a million nats the next bin adds what it adds at the beginning.
    """
    rng = np.random.default_rng(0)
    recorded = recording(signal=rng.normal(size=(1, 4, 3)), bin_width=0.01)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=4, proposal="bootstrap")
    algorithm = SequentialMonteCarlo(model, NUM_PARTICLES)
    stream, _ = filter_bin(algorithm, torch.zeros(1, 3))
    worn = stream.particles._replace(log_evidence=stream.log_evidence - 1e8)
    ends = []
    for begun in (stream, stream._replace(particles=worn)):
        torch.manual_seed(1)
        moved, record = filter_bin(algorithm, torch.ones(1, 3), stream=begun)
        ends.append((moved.log_evidence - begun.log_evidence, record.log_evidence, moved))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-6)
    assert torch.equal(ends[0][1], ends[1][1])
    weights = ends[0][2].particles.log_weights
    torch.testing.assert_close(weights.exp().mean(0), torch.ones(1))


@pytest.mark.slow
def test_increments_of_a_long_trial_are_those_of_a_short_one():
    """A filter in single precision, 4000 bins of some -20 nats each, beside double precision with
    the same draws: one particle, whose log weights are the densities themselves.
    """
    rng = np.random.default_rng(0)
    recorded = recording(signal=2 * rng.normal(size=(1, 4000, 12)), bin_width=0.01)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(
        recorded, latent_dim=2, num_units=4, activation="tanh", proposal="bootstrap"
    )
    torch.manual_seed(1)
    batch = model.trials_of(recorded).batch()
    found = particle_filter(model, batch, 1)
    assert found.log_evidence.sum() < -60_000
    exact = [
        model.log_likelihood(
            type(found.states)(*(field[t] for field in found.states)),
            batch.x[:, t],
            batch.scored[:, t],
            batch.scored_weight,
        )[0]
        for t in range(batch.num_bins)
    ]
    # Kept as a sum in single precision, increments would be off by up to 4e-3.
    torch.testing.assert_close(found.log_evidence, torch.stack(exact), rtol=1e-5, atol=1e-5)


def test_the_mean_is_that_of_the_filter():
    recorded = data()
    model, batch = linear_network(recorded, proposal="causal_encoder"), batch_of(recorded)
    torch.manual_seed(0)
    mean = particle_filter(model, batch, NUM_PARTICLES).mean()
    torch.manual_seed(0)
    streams, _ = streamed(SequentialMonteCarlo(model, NUM_PARTICLES), batch)
    found = torch.stack([stream.mean(stream.particles.state.z) for stream in streams], 1)
    torch.testing.assert_close(found, mean.movedim(0, 1))


def test_the_step_leaves_the_stream_it_was_given():
    recorded = data()
    model, batch = linear_network(recorded, proposal="causal_encoder"), batch_of(recorded)
    algorithm = SequentialMonteCarlo(model, NUM_PARTICLES)
    stream, _ = filter_bin(algorithm, batch.x[:, 0], batch.inputs[:, 0])
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        ends.append(filter_bin(algorithm, batch.x[:, 1], batch.inputs[:, 1], stream=stream)[0])
    assert torch.equal(ends[0].particles.log_weights, ends[1].particles.log_weights)
    assert torch.equal(ends[0].past[0], ends[1].past[0])


def test_guides_that_read_the_whole_trial_are_refused(make_lfads):
    counts = recording(counts=np.ones((2, 9, 5), int), bin_width=0.01)
    x = torch.ones(2, 5)
    for model in (
        make_lfads(counts, inferred_input_dim=2),
        NodeSAE.for_recording(counts, latent_dim=3),
        NodeSAE.for_recording(counts, latent_dim=3, process_noise=True),
    ):
        with pytest.raises(ValueError, match="reads the whole trial before it proposes anything"):
            filter_bin(SequentialMonteCarlo(model, 4), x)
    windowed = make_lfads(counts, initial_condition_bins=2)
    windowed.proposal = Bootstrap()
    with pytest.raises(ValueError, match="first 2 bins of a trial only set the initial condition"):
        filter_bin(SequentialMonteCarlo(windowed, 4), x)
    acausal = LowRankRNN.for_recording(counts, latent_dim=2, num_units=8, proposal="encoder")
    with pytest.raises(ValueError, match="reads 23 later bins, so it cannot filter online"):
        filter_bin(SequentialMonteCarlo(acausal, 4), x)
    acausal.proposal = EncoderFactor(5, 2, kernels=(1, 1))  # which sees the bin at hand alone
    filter_bin(SequentialMonteCarlo(acausal, 4), x)


def test_bad_bins_are_refused():
    recorded = data()
    model, batch = linear_network(recorded, proposal="causal_encoder"), batch_of(recorded)
    algorithm = SequentialMonteCarlo(model, NUM_PARTICLES)
    x, inputs = batch.x[:, 0], batch.inputs[:, 0]
    stream, _ = filter_bin(algorithm, x, inputs)
    hole = x.clone()
    hole[1, 2] = torch.nan
    driven = inputs.clone()
    driven[2, 0] = torch.inf
    valid = torch.ones_like(x, dtype=torch.bool)
    for given, settings, message in (
        ((x[:, :2], inputs), {}, r"x must be one bin of shape \(trial, 4\), not \(3, 2\)"),
        ((batch.x[:, :2], inputs), {}, r"x must be one bin of shape \(trial, 4\), not \(3, 2, 4\)"),
        ((x,), {}, "made for 1 inputs, but those of bin 1 are missing"),
        ((x, inputs[:2]), {}, r"those of bin 1 are of shape \(2, 1\)"),
        ((x, driven), {}, "input 0 of trial 2 is not finite at bin 1"),
        ((x[:1], inputs[:1]), {}, "x has 1 trials, but this stream has 3"),
        ((hole, inputs), {}, "bin 1 of this stream, checked by itself: Gaussian .*neuron 2 is nan"),
        ((x, inputs), {"valid": valid[:, 0]}, "valid must be bool and of the shape of x"),
        ((x, inputs), {"valid": valid.double()}, "valid must be bool and of the shape of x"),
    ):
        with pytest.raises(ValueError, match=message):
            filter_bin(algorithm, *given, stream=stream, **settings)
    valid[1, 2] = False
    filter_bin(algorithm, hole, inputs, valid=valid, stream=stream)
    far = x.clone()
    far[1] = 1e200
    with pytest.raises(ArithmeticError, match="bin 1 of trial 1: all weights are 0"):
        filter_bin(algorithm, far, inputs, stream=stream)
