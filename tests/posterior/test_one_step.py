"""One-step-ahead predictions against the Kalman filter's."""

import numpy as np
import pytest
from linear_gaussian import batch_of, by_recursion, data, exact_of, linear_network
from scipy import stats

from pyrodyn.data import held_out
from pyrodyn.posterior import one_step_predictions

NUM_PARTICLES = 4000


@pytest.mark.parametrize("missing", [False, True])
def test_predictions_are_those_of_the_kalman_filter(missing):
    recorded = data(missing=missing)
    model = linear_network(recorded)
    batch = batch_of(recorded)
    exact = exact_of(model, batch)
    found = one_step_predictions(model, recorded, num_particles=NUM_PARTICLES, batch_size=2)
    moments = [by_recursion(exact, trial) for trial in range(3)]
    increments = np.stack([each.increments for each in moments])
    np.testing.assert_allclose(found["log_score"], increments, atol=0.15)
    for trial in range(3):
        P = exact.S0
        mean = exact.pushed[trial, 0]
        for t in range(found.sizes["time"]):
            spread = np.sqrt(np.diag(exact.C @ P @ exact.C.T + exact.R))
            predicted = exact.C @ mean + exact.d[trial, t]
            keep = exact.scored[trial, t]
            error = 5 * spread / np.sqrt(NUM_PARTICLES)
            off = abs(found["expected"].values[trial, t] - predicted)
            assert (off < error)[keep].all()
            pit = stats.norm.cdf((exact.x[trial, t] - predicted) / spread)
            difference = abs(found["pit"].values[trial, t] - pit)
            assert (difference[keep] < 5 * 0.5 / np.sqrt(NUM_PARTICLES)).all()
            assert np.isnan(found["pit"].values[trial, t, ~keep]).all()
            # The filter's own covariance, from the update of this bin.
            C, R = exact.C[keep], exact.R[np.ix_(keep, keep)]
            gain = P @ C.T @ np.linalg.inv(C @ P @ C.T + R)
            filtered = (np.eye(len(P)) - gain @ C) @ P
            if t + 1 < found.sizes["time"]:
                mean = exact.A @ moments[trial].filtered[t] + exact.pushed[trial, t + 1]
                P = exact.A @ filtered @ exact.A.T + exact.S


def test_the_pit_of_held_out_channels_and_lfads(make_recording, make_lfads):
    counts = held_out(make_recording(), neurons=[1])
    lfads = make_lfads(counts, inferred_input_dim=2)
    lfads.train()
    found = one_step_predictions(lfads, counts, num_particles=10)
    assert lfads.training
    assert found["pit"].notnull().all() and found["pit"].dims == ("trial", "time", "neuron")
    assert float(found["pit"].min()) > 0 and float(found["pit"].max()) < 1
    again = one_step_predictions(lfads, counts, num_particles=10)
    assert found.identical(again)
    with pytest.raises(ValueError, match="num_particles=1 must be an integer of at least 2"):
        one_step_predictions(lfads, counts, num_particles=1)
