"""Distances between attractors: of long time series, which need not be in phase.

Between distributions over state space::

    D_stsp = KL(p_true || p_generated)

below 6 dimensions between histograms, p_b = (n_b + e) / (N + e B) over the B = 30^dim bins of the
true data's range with e = 1e-5; from 6 dimensions up between mixtures
p(x) = 1/T sum_t N(x; mu_t, I) centred on the points of a series, by 1000 draws from the true one::

    KL ~ 1/1000 sum_i [log p_true(x_i) - log p_generated(x_i)],  x_i ~ p_true

Between power spectra, per channel::

    D_H = sqrt(1 - sum_f sqrt(P_f Q_f))       Hellinger distance, 0 to 1, mean over channels

of smoothed power spectra P and Q that sum to 1.

Neither is sufficient alone. A phase-randomised surrogate, which has no dynamics at all, has
D_H = 0; on EEG, independent Gaussian draws have a smaller D_stsp than published models.
`attractor_baselines` generates such trivial series from the data: report their distances beside
those of a model.

Sources: Brenner et al. (ICML 2022) and Hess et al. (ICML 2023) for both distances; Theiler et al.
(Physica D 1992) and Prichard & Theiler (PRL 1994) for surrogates. Departure: generated points
outside the range of the true data are not dropped but counted in one more bin, empty of true data.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.special import logsumexp

from pyrodyn.analysis.scores.rates import Array
from pyrodyn.data.arguments import check_integer

SMALLEST_MIXTURE_DIM = 6
"""Series of fewer dimensions are compared by histograms."""
BINS_PER_DIM, LAPLACE = 30, 1e-5
NUM_MIXTURE_DRAWS, MAX_CENTRES = 1000, 10_000
DRAWS_PER_BLOCK = 50
"""Draws whose distances to all centres are computed at once, in 4 MB."""

HANN_BINS = 15
"""Width of the smoothing of the EEG benchmark, in bins."""


def d_stsp(true: ArrayLike, generated: ArrayLike, *, seed: int = 0) -> float:
    """KL divergence of the distributions of two series over state space, in nats.

    Mixture components have unit variance: from 6 dimensions up the scale of the data matters, and
    published numbers are those of z-scored channels.

    Args:
        true: ``(time, dim)``.
        generated: ``(time, dim)``, of any length.
        seed: seeds the draws from the true mixture (6 dimensions up).

    Returns:
        0 for identical series; below 0 only by the Monte Carlo error of the mixture's estimate.

    Raises:
        ValueError: for series that are not finite, not ``(time, dim)``, or of different dims, and
            below 6 dimensions for a true one that is constant in some dim.
    """
    true, generated = _pair(true, generated)
    if true.shape[1] < SMALLEST_MIXTURE_DIM:
        return _binned_divergence(true, generated)
    return _mixture_divergence(true[:MAX_CENTRES], generated[:MAX_CENTRES], seed)


def d_h(true: ArrayLike, generated: ArrayLike, *, smoothing: float = 20.0) -> float:
    """Hellinger distance between power spectra, averaged over channels.

    Args:
        true: ``(time, dim)``.
        generated: ``(time, dim)`` of the same shape: frequencies are compared one by one.
        smoothing: standard deviation of the Gaussian kernel on spectra, in frequency bins (of
            1 / (num_bins bin_width) Hz each, so the same kernel is wider for shorter series);
            reflected at both ends. 0 for none.

    Returns:
        Between 0 (identical spectra) and 1 (no common frequency).

    Raises:
        ValueError: for series that are not finite, not ``(time, dim)``, of different shapes or
            constant in a channel, and for a negative ``smoothing``.
    """
    true, generated = _pair(true, generated)
    if len(true) != len(generated):
        raise ValueError(
            f"true has {len(true)} bins and generated {len(generated)}; spectra are compared"
            " frequency by frequency, so cut the longer one"
        )
    if not smoothing >= 0:
        raise ValueError(f"smoothing={smoothing} must be at least 0 frequency bins")
    overlap = np.sqrt(
        _spectra("true", true, smoothing) * _spectra("generated", generated, smoothing)
    ).sum(0)
    # Identical spectra overlap by 1 up to rounding.
    return float(np.sqrt(np.maximum(1 - overlap, 0)).mean())


def attractor_baselines(train: ArrayLike, num_bins: int, *, seed: int = 0) -> dict[str, Array]:
    """Series from generators that are not models of the dynamics.

    A model should have smaller distances than these. All have the mean of the data:

    - ``"white Gaussian"``: independent draws with the data's covariance;
    - ``"smoothed Gaussian"``: white noise smoothed by a Hann window of 15 bins and scaled such that
      it has the data's covariance;
    - ``"VAR(1)"``: a linear autoregression of all dims on the bin before;
    - ``"VAR(2), 3 PCs"``, ``"VAR(2), 16 PCs"``: a linear autoregression of the first principal
      components (at most dim) on the two bins before, zero outside their span;
    - ``"surrogate"``: the data with phases randomised, by the same phases in all dims, which
      preserves auto- and cross-spectra. It has the length of the data; a longer series repeats it,
      a shorter one truncates it.

    Autoregressions solve the Yule-Walker equations. They are therefore stable, have the data's
    covariances at lags up to their order, and start from their stationary distribution.

    Args:
        train: ``(time, dim)``; the training data.
        num_bins: length of the series.
        seed: seeds all series.

    Returns:
        Series ``(num_bins, dim)`` by name.

    Raises:
        ValueError: for data that are not finite, not ``(time, dim)`` or constant in a dim, have no
            more bins than twice their dims, and for ``num_bins`` below 1.
    """
    data = _series("train", train)
    check_integer(1, num_bins=num_bins)
    if len(data) <= 2 * data.shape[1]:
        raise ValueError(
            f"train has {len(data)} bins of {data.shape[1]} dims; autoregressions need more than"
            " twice as many bins as dims"
        )
    _check_varies("train", data)
    mean = data.mean(0)
    centred = data - mean
    factor = _root(centred.T @ centred / len(data))
    window = np.hanning(HANN_BINS)
    window /= np.sqrt(np.square(window).sum())
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    # Separate generators, so that no series depends on the length of another.
    rngs = np.random.default_rng(seed).spawn(6)

    def white(num_rows: int, rng: np.random.Generator) -> Array:
        return rng.standard_normal((num_rows, data.shape[1])) @ factor.T

    def of_components(count: int, rng: np.random.Generator) -> Array:
        chosen = directions[:count]
        return _autoregression(centred @ chosen.T, 2, num_bins, rng) @ chosen

    long = white(num_bins + HANN_BINS - 1, rngs[1])
    return {
        "white Gaussian": mean + white(num_bins, rngs[0]),
        "smoothed Gaussian": mean + np.apply_along_axis(np.convolve, 0, long, window, mode="valid"),
        "VAR(1)": mean + _autoregression(centred, 1, num_bins, rngs[2]),
        "VAR(2), 3 PCs": mean + of_components(3, rngs[3]),
        "VAR(2), 16 PCs": mean + of_components(16, rngs[4]),
        "surrogate": mean + np.resize(_surrogate(centred, rngs[5]), (num_bins, data.shape[1])),
    }


# --- state space --------------------------------------------------------------------------------


def _binned_divergence(true: Array, generated: Array) -> float:
    """KL of histograms: over the visited bins, and over all others together."""
    _check_varies("true", true)
    dim = true.shape[1]
    low, high = true.min(0), true.max(0)

    def bins_of(series: Array) -> NDArray[np.int64]:
        """Flat index of the bin of every point inside the range."""
        inside = series[((series >= low) & (series <= high)).all(1)]
        position = np.floor((inside - low) / (high - low) * BINS_PER_DIM).astype(np.int64)
        # The largest point belongs to the last bin.
        position = np.minimum(position, BINS_PER_DIM - 1)
        return np.ravel_multi_index(tuple(position.T), (BINS_PER_DIM,) * dim)

    true_bins, generated_bins = bins_of(true), bins_of(generated)
    visited, which = np.unique(np.concatenate([true_bins, generated_bins]), return_inverse=True)
    num_bins, num_visited = BINS_PER_DIM**dim, len(visited)

    def probabilities(members: NDArray[np.int64], num_points: int) -> tuple[Array, float]:
        """Probability of each visited bin, and of any other bin."""
        total = num_points + LAPLACE * num_bins
        return (np.bincount(members, minlength=num_visited) + LAPLACE) / total, LAPLACE / total

    p, p_elsewhere = probabilities(which[: len(true_bins)], len(true))
    q, q_elsewhere = probabilities(which[len(true_bins) :], len(generated))
    elsewhere = (num_bins - num_visited) * p_elsewhere * np.log(p_elsewhere / q_elsewhere)
    return float((p * np.log(p / q)).sum() + elsewhere)


def _mixture_divergence(true: Array, generated: Array, seed: int) -> float:
    """KL of mixtures of unit Gaussians, by draws from that of the true series."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(true), size=NUM_MIXTURE_DRAWS)
    draws = true[chosen] + rng.standard_normal((NUM_MIXTURE_DRAWS, true.shape[1]))
    return float((_mixture_log_prob(draws, true) - _mixture_log_prob(draws, generated)).mean())


def _mixture_log_prob(draws: Array, centres: Array) -> Array:
    """Log of 1/T sum_t exp(-|x - mu_t|^2 / 2), without the Gaussian's normaliser."""
    log_probs = np.empty(len(draws))
    squares = np.square(centres).sum(1) / 2
    for first in range(0, len(draws), DRAWS_PER_BLOCK):
        x = draws[first : first + DRAWS_PER_BLOCK]
        exponents = x @ centres.T - squares - np.square(x).sum(1, keepdims=True) / 2
        log_probs[first : first + DRAWS_PER_BLOCK] = logsumexp(exponents, axis=1)
    return log_probs - np.log(len(centres))


# --- power spectra ------------------------------------------------------------------------------


def _spectra(name: str, series: Array, smoothing: float) -> Array:
    """Smoothed power spectra of z-scored channels, ``(frequency, dim)``, that sum to 1."""
    _check_varies(name, series)
    z = (series - series.mean(0)) / series.std(0)
    power = np.abs(np.fft.rfft(z, axis=0)) ** 2
    if smoothing > 0:
        power = gaussian_filter1d(power, smoothing, axis=0)
    spectra: Array = power / power.sum(0)
    return spectra


# --- baselines ----------------------------------------------------------------------------------


def _autoregression(centred: Array, order: int, num_bins: int, rng: np.random.Generator) -> Array:
    """A series of x_t = sum_k A_k x_{t-k} + e_t, e_t ~ N(0, S), with the data's covariances
    C_k = E x_t x_{t-k}' for lags k up to the order (Yule-Walker equations)::

        [A_1 ... A_p] G = [C_1 ... C_p],  G_ij = C_{j-i};   S = C_0 - sum_k A_k C_k'

    Sums at every lag are divided by the length of the data, so that G is positive semidefinite and
    the autoregression stable.
    """
    num_rows, dim = centred.shape
    lags = [centred[k:].T @ centred[: num_rows - k] / num_rows for k in range(order + 1)]
    offsets = np.arange(order) - np.arange(order)[:, None]
    recent = np.block([[lags[k] if k >= 0 else lags[-k].T for k in row] for row in offsets])
    ahead = np.hstack(lags[1:])
    weights = np.linalg.lstsq(recent, ahead.T, rcond=None)[0].T
    noise = rng.standard_normal((num_bins, dim)) @ _root(lags[0] - weights @ ahead.T).T
    state = _root(recent) @ rng.standard_normal(order * dim)
    series = np.empty((num_bins, dim))
    for t in range(num_bins):
        series[t] = weights @ state + noise[t]
        state = np.concatenate([series[t], state[:-dim]])
    return series


def _surrogate(centred: Array, rng: np.random.Generator) -> Array:
    """The series with one random phase per frequency, added in all dims."""
    spectrum = np.fft.rfft(centred, axis=0)
    phases = np.exp(2j * np.pi * rng.random(len(spectrum)))
    # The phase of a real series at zero and at half the sampling rate is fixed.
    phases[0] = 1
    if len(centred) % 2 == 0:
        phases[-1] = 1
    surrogate: Array = np.fft.irfft(spectrum * phases[:, None], len(centred), axis=0)
    return surrogate


def _root(covariance: Array) -> Array:
    """R with R R' = covariance, which may be singular."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    root: Array = vectors * np.sqrt(np.maximum(values, 0))
    return root


# --- checks -------------------------------------------------------------------------------------


def _series(name: str, given: ArrayLike) -> Array:
    series = np.asarray(given, float)
    if series.ndim != 2 or 0 in series.shape:
        raise ValueError(f"{name} has shape {series.shape}; it must be (time, dim), none of them 0")
    if not np.isfinite(series).all():
        t, i = (int(index) for index in np.argwhere(~np.isfinite(series))[0])
        raise ValueError(f"{name} is {series[t, i]} at bin {t}, dim {i}; replace it or cut it out")
    return series


def _pair(true: ArrayLike, generated: ArrayLike) -> tuple[Array, Array]:
    pair = _series("true", true), _series("generated", generated)
    if pair[0].shape[1] != pair[1].shape[1]:
        raise ValueError(
            f"true has {pair[0].shape[1]} dims and generated {pair[1].shape[1]}; they must agree"
        )
    return pair


def _check_varies(name: str, series: Array) -> None:
    constant = np.ptp(series, axis=0) == 0
    if constant.any():
        raise ValueError(f"{name} never varies in dim {int(constant.argmax())}; leave that dim out")
