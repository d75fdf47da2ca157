"""The recipe of docs/dynamics.md: dynamical similarity by its authors' package, where installed."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from pyrodyn import data


def standardised(name: str, bin_width: float, seed: int) -> NDArray[np.float64]:
    states = data.trajectory(name, 3000, bin_width, seed=seed)
    return (states - states.mean(0)) / states.std(0)


def test_one_system_is_nearer_to_itself_than_to_another() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies say when they are first compiled
        similarity = pytest.importorskip("DSA")
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    lorenz, again = (standardised("lorenz", 0.03, seed) for seed in (0, 1))
    arneodo = standardised("arneodo", 0.1, 0)
    series = [lorenz, lorenz @ rotation, again, arneodo]
    distances = similarity.DSA(series, n_delays=20, rank=15).fit_score()
    assert distances.shape == (4, 4)
    np.testing.assert_allclose(distances, distances.T, atol=1e-8)
    assert distances[0, 1] < 1e-4 * distances[0, 3]
    assert distances[0, 2] < 0.1 * distances[0, 3]
