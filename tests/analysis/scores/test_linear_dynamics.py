"""The Kalman smoother and EM of the linear baseline, against the joint Gaussian of all bins."""

import numpy as np
import pytest
from linear_gaussian import Exact, by_joint_gaussian

from pyrodyn.analysis.scores.linear_dynamics import (
    LinearSystem,
    fit_linear_dynamics,
    smoothed_states,
)


def system(seed: int = 0) -> LinearSystem:
    rng = np.random.default_rng(seed)
    angle = 0.5
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return LinearSystem(
        A=0.95 * rotation,
        Q=np.array([[0.2, 0.05], [0.05, 0.1]]),
        mu=np.array([1.0, -0.5]),
        S=np.array([[0.5, -0.1], [-0.1, 0.4]]),
        C=rng.normal(size=(5, 2)),
        d=rng.normal(size=5),
        R=np.array([0.3, 0.5, 0.2, 0.8, 0.4]),
    )


def simulated(system: LinearSystem, num_trials: int, num_bins: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(system.mu, system.S, num_trials)
    x = []
    for _ in range(num_bins):
        x.append(z @ system.C.T + system.d + rng.normal(size=(num_trials, 5)) * system.R**0.5)
        z = z @ system.A.T + rng.multivariate_normal(np.zeros(2), system.Q, num_trials)
    return np.stack(x, 1)


@pytest.mark.parametrize("is_ragged", [False, True])
def test_posterior_and_evidence_match_the_joint_gaussian(is_ragged: bool) -> None:
    true = system()
    x = simulated(true, 4, 6)
    measured = np.ones((4, 6), bool)
    if is_ragged:
        measured[1, 4:], measured[2, 2], measured[3, 0] = False, False, False
        x[~measured] = np.nan  # must not be read
    found = smoothed_states(true, x, measured)
    pushed = np.zeros((4, 6, 2))
    pushed[:, 0] = true.mu
    exact = Exact(
        true.A,
        pushed,
        true.S,
        true.Q,
        true.C,
        np.diag(true.R),
        np.broadcast_to(true.d, x.shape),
        np.nan_to_num(x),
        np.broadcast_to(measured[..., None], x.shape),
    )
    evidence = 0.0
    for trial in range(4):
        joint = by_joint_gaussian(exact, trial)
        evidence += joint.log_evidence
        own = found.pattern[trial]
        np.testing.assert_allclose(found.mean[trial], joint.mean, atol=1e-9)
        np.testing.assert_allclose(found.covariance[own], joint.covariance, atol=1e-9)
        np.testing.assert_allclose(found.lag_one[own], joint.lag_one, atol=1e-9)
    assert found.log_evidence == pytest.approx(evidence, rel=1e-9)


def test_every_iteration_raises_the_likelihood_to_that_of_the_truth() -> None:
    true = system()
    x = simulated(true, 60, 25)
    measured = np.ones((60, 25), bool)
    measured[::3, 18:] = False
    evidence = [
        smoothed_states(fit_linear_dynamics(x, measured, 2, steps), x, measured).log_evidence
        for steps in (0, 1, 2, 4, 8, 40)
    ]
    assert (np.diff(evidence) > 0).all()
    # With the maximum's 24 free parameters more likelihood than the truth has is to be expected.
    assert evidence[-1] > smoothed_states(true, x, measured).log_evidence
    fitted = fit_linear_dynamics(x, measured, 2, 40)
    wanted, found = (np.sort_complex(np.linalg.eigvals(s.A)) for s in (true, fitted))
    np.testing.assert_allclose(found, wanted, atol=0.03)
    np.testing.assert_allclose(fitted.R, true.R, rtol=0.15)
