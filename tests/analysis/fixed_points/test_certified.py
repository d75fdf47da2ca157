"""Certified enumeration against enumeration of all linear regions, closed forms and iteration."""

import time
from itertools import combinations, product

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from pyrodyn.analysis.fixed_points.certified import PiecewiseLinear, fixed_points_of, listing
from pyrodyn.analysis.fixed_points.certified.adjoining import adjoining, cones
from pyrodyn.analysis.fixed_points.certified.equation import equation_of
from pyrodyn.analysis.fixed_points.certified.refine import pieces_within
from pyrodyn.analysis.fixed_points.certified.search import Budget, Found, search

KINDS = ("relu", "clipped_relu", "leaky_relu", "hard_tanh")
FAR = 1e4
"""Half-width of the box in which the reference finds all linear regions."""


def random_network(
    rng: np.random.Generator, kind: str, num_neurons: int, latent_dim: int, gain: float = 1.0
) -> PiecewiseLinear:
    make = getattr(PiecewiseLinear, kind)
    more = {"leak": rng.uniform(-0.2, 0.4, num_neurons)} if kind == "leaky_relu" else {}
    return make(
        rng.uniform(0, 0.9, latent_dim),
        gain * rng.normal(size=(latent_dim, num_neurons)),
        rng.normal(size=(num_neurons, latent_dim)),
        rng.normal(size=num_neurons),
        rng.normal(size=num_neurons),
        **more,
    )


def step(network: PiecewiseLinear, z: NDArray) -> NDArray:
    """F at points ``(..., latent)``, phi interpolated between its kinks, without piece indices."""
    y = z @ network.m.T
    (first, second), slopes = network.breakpoints.T, network.slopes.T
    anchor = np.where(np.isfinite(first), first, 0)
    phi = slopes[0] * anchor + network.intercepts[:, 0] + slopes[0] * np.minimum(y - anchor, 0)
    phi = phi + slopes[1] * (np.clip(y, anchor, second) - anchor)
    phi = phi + slopes[2] * np.maximum(y - second, 0)
    return network.a * z + phi @ network.n.T + network.offset


def reference(network: PiecewiseLinear) -> NDArray:
    """Fixed points found by solving every linear region that the kinks cut out of a large box.

    Every region has a vertex, where latent_dim hyperplanes meet; a small step off each of them to
    either side enters all regions around it.
    """
    num_neurons, latent_dim = network.m.shape
    neuron, kink = np.nonzero(np.isfinite(network.breakpoints))
    walls = np.eye(latent_dim)
    normals = np.concatenate([network.m[neuron], walls, walls])
    levels = network.breakpoints[neuron, kink], np.full(latent_dim, FAR), np.full(latent_dim, -FAR)
    levels = np.concatenate(levels)
    chosen = np.array(list(combinations(range(len(levels)), latent_dim)))
    planes = normals[chosen]
    crossing = np.abs(np.linalg.det(planes)) > 1e-9
    planes, level = planes[crossing], levels[chosen[crossing]]
    sides = 1e-6 * np.array(list(product((-1, 1), repeat=latent_dim)))
    inside = np.linalg.solve(planes[:, None], (level[:, None] + sides)[..., None])[..., 0]
    inside = inside.reshape(-1, latent_dim)
    inside = inside[(np.abs(inside) < FAR + 1).all(1)]
    regions = np.unique(pieces(network, inside), axis=0)
    unit = np.arange(num_neurons)
    slope, intercept = network.slopes[unit, regions], network.intercepts[unit, regions]
    matrix = np.eye(latent_dim) - np.diag(network.a) - (network.n * slope[:, None]) @ network.m
    solution = np.linalg.solve(matrix, (intercept @ network.n.T + network.offset)[..., None])
    solution = solution[..., 0]
    return solution[(pieces(network, solution) == regions).all(1)]


def pieces(network: PiecewiseLinear, z: NDArray) -> NDArray:
    return ((z @ network.m.T)[..., None] > network.breakpoints).sum(-1)


def assert_same_points(found: NDArray, expected: NDArray, tolerance: float = 1e-8) -> None:
    assert len(found) == len(expected)
    for point in expected:
        distance = np.abs(found - point).max(1).min(initial=np.inf)
        assert distance < tolerance * (1 + np.abs(point).max())


# --- against the enumeration of all regions -----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_random_networks_have_the_fixed_points_of_all_their_regions(
    kind: str, latent_dim: int
) -> None:
    rng = np.random.default_rng(latent_dim)
    counts = []
    for trial in range(30):
        network = random_network(rng, kind, int(rng.integers(3, 11)), latent_dim, 1 + trial % 3)
        expected = reference(network)
        found = fixed_points_of(network)
        assert found.attrs["complete"] == 1, found.attrs
        assert_same_points(found["point"].values, expected)
        np.testing.assert_array_equal(found["region"], pieces(network, found["point"].values))
        counts.append(len(expected))
    assert max(counts) > 2
    assert len(set(counts)) > 1


def in_a_row(network: PiecewiseLinear, period: int) -> PiecewiseLinear:
    """The network on (z_1, ..., z_period) whose fixed points are the cycles of one with a = 0."""
    follow = np.roll(np.eye(period), 1, axis=0)
    return PiecewiseLinear(
        np.tile(network.a, period),
        np.kron(follow, network.n),
        np.kron(np.eye(period), network.m),
        np.tile(network.offset, period),
        *(np.tile(table, (period, 1)) for table in network[4:]),
    )


@pytest.mark.parametrize("kind", ["relu", "clipped_relu", "hard_tanh"])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_factors_of_either_sign_and_any_size(kind: str, latent_dim: int) -> None:
    rng = np.random.default_rng(latent_dim)
    counts, indices = [], []
    for trial in range(10):
        network = random_network(rng, kind, 6, latent_dim, 1 + trial % 3)
        network = network._replace(
            a=rng.uniform(-2.5, 2.5, latent_dim), offset=rng.normal(size=latent_dim)
        )
        expected = reference(network)
        found = fixed_points_of(network)
        assert found.attrs["complete"] == 1, found.attrs
        assert_same_points(found["point"].values, expected)
        counts.append(len(expected))
        indices.append(found.attrs["index_sum"])
    assert max(counts) > 1
    if kind != "relu":
        assert set(indices) == {-1, 1}


@pytest.mark.parametrize("period", [2, 3])
def test_cycles_with_factors_of_either_sign_and_any_size(period: int) -> None:
    """Of one latent, as the zeros of F^p(z) - z on a fine grid."""
    rng = np.random.default_rng(period)
    grid = np.linspace(-200, 200, 40_001) + 1e-5
    num_found = 0
    for a in np.repeat([-2.5, -0.8, -0.3, 0.6, 1.7], 3):
        network = random_network(rng, "clipped_relu", 5, 1, 6.0)
        network = network._replace(a=np.array([a]), offset=rng.normal(size=1))

        def returned(z: NDArray, of: PiecewiseLinear = network) -> NDArray:
            start = z = z[:, None]
            for _ in range(period):
                z = step(of, z)
            return (z - start)[:, 0]

        found = fixed_points_of(network, period=period)
        assert found.attrs["complete"] == 1, found.attrs
        assert np.abs(found.attrs["lower"]).max() < 200
        assert np.abs(found.attrs["upper"]).max() < 200
        off = returned(grid)
        at = np.nonzero(off[:-1] * off[1:] < 0)[0]
        expected = grid[at] - off[at] * (grid[1] - grid[0]) / (off[at + 1] - off[at])
        fixed = fixed_points_of(network)["point"].values[:, 0]
        expected = expected[(np.abs(expected[:, None] - fixed) > 2e-2).all(1)]
        np.testing.assert_allclose(np.sort(found["point"].values.ravel()), expected, atol=2e-2)
        num_found += len(expected)
    assert num_found >= period


@pytest.mark.parametrize(("latent_dim", "period", "num_neurons"), [(1, 2, 7), (1, 3, 6), (2, 2, 4)])
@pytest.mark.parametrize("kind", ["clipped_relu", "leaky_relu"])
def test_random_networks_have_the_cycles_of_all_their_regions(
    latent_dim: int, period: int, num_neurons: int, kind: str
) -> None:
    rng = np.random.default_rng(5)
    counts = []
    for trial in range(15):
        network = random_network(rng, kind, num_neurons, latent_dim, 1 + trial % 5)
        network = network._replace(a=np.zeros(latent_dim))
        points = reference(in_a_row(network, period)).reshape(-1, period, latent_dim)
        expected = points[np.abs(points[:, 1:] - points[:, :1]).max((1, 2)) > 1e-6]
        found = fixed_points_of(network, period=period)
        assert found.attrs["complete"] == 1, found.attrs
        cycles = found["point"].values
        turned = np.concatenate([np.roll(cycles, turn, axis=1) for turn in range(period)])
        assert_same_points(
            turned.reshape(-1, period * latent_dim), expected.reshape(-1, period * latent_dim)
        )
        counts.append(len(cycles))
    assert max(counts) > 0


@pytest.mark.slow
def test_every_attractor_that_iteration_reaches_is_listed_as_stable() -> None:
    rng = np.random.default_rng(5)
    reached = 0
    for _ in range(8):
        network = random_network(rng, "clipped_relu", 60, 3, 0.2)
        found = fixed_points_of(network)
        assert found.attrs["complete"] == 1
        stable = found["point"].values[found["stability"].values == "stable"]
        lower, upper = found.attrs["lower"], found.attrs["upper"]
        z = rng.uniform(lower, upper, (200, 3))
        for _ in range(3000):
            z = step(network, z)
        z = z[np.abs(step(network, z) - z).max(1) < 1e-12]
        if len(z):
            distance = np.abs(z[:, None] - stable).max(-1).min(1, initial=np.inf)
            assert distance.max() < 1e-8
            reached += len(np.unique(z.round(6), axis=0))
    assert reached >= 8


# --- closed forms -------------------------------------------------------------------------------


def test_one_latent_by_hand() -> None:
    """z' = z / 2 + clip(4 z, -1, 1) has the fixed points 0 (slope 4.5) and +-2 (slope 0.5)."""
    network = PiecewiseLinear.hard_tanh(0.5, [[1.0]], [[4.0]], 0.0)
    found = fixed_points_of(network)
    np.testing.assert_allclose(found["point"].values[:, 0], [-2, 0, 2], atol=1e-12)
    np.testing.assert_allclose(found["eigenvalues"].values[:, 0], [0.5, 4.5, 0.5])
    np.testing.assert_allclose(found["jacobian"].values[:, 0, 0], [0.5, 4.5, 0.5])
    assert list(found["stability"].values) == ["stable", "unstable", "stable"]
    np.testing.assert_array_equal(found["region"].values[:, 0], [0, 1, 2])
    np.testing.assert_allclose(found["residual"], 0, atol=1e-12)
    assert found.attrs["complete"] == 1
    assert found.attrs["num_boxes_left"] == found.attrs["num_singular"] == 0
    np.testing.assert_allclose([found.attrs["lower"], found.attrs["upper"]], [[-2], [2]], rtol=1e-6)


@pytest.mark.parametrize("threshold", [2.0, -2.0])
def test_clipped_units_follow_their_definition(threshold: float) -> None:
    network = PiecewiseLinear.clipped_relu(0.0, [[1.0]], [[1.0]], threshold, drive=0.3)
    y = np.linspace(-5, 5, 41) + 0.3
    phi = np.maximum(y + threshold, 0) - np.maximum(y, 0)
    np.testing.assert_allclose(step(network, y[:, None] - 0.3)[:, 0], phi, atol=1e-12)


def test_eigenvalues_are_those_of_a_saddle_and_sorted() -> None:
    """Two uncoupled latents: slopes 3 and 0.5 at the origin."""
    network = PiecewiseLinear.hard_tanh(0.0, np.eye(2), np.diag([0.5, 3.0]), 0.0)
    found = fixed_points_of(network)
    np.testing.assert_allclose(found["point"], [[0, -1], [0, 0], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(found["eigenvalues"], [[0.5, 0], [3, 0.5], [0.5, 0]], atol=1e-12)
    assert list(found["stability"].values) == ["stable", "saddle", "stable"]


def test_a_rotation_by_a_quarter_turn_is_marginal() -> None:
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    found = fixed_points_of(PiecewiseLinear.hard_tanh(0.0, turn, np.eye(2), 0.0))
    assert list(found["stability"].values) == ["marginal"]
    np.testing.assert_allclose(np.abs(found["eigenvalues"]), 1)


def test_a_flip_has_the_cycle_that_its_slope_gives() -> None:
    """z' = -clip(3 z, -1, 1) alternates between +-1; its fixed point 0 is no cycle."""
    network = PiecewiseLinear.hard_tanh(0.0, [[-1.0]], [[3.0]], 0.0)
    found = fixed_points_of(network, period=2)
    assert found["point"].dims == ("cycle", "phase", "latent")
    np.testing.assert_allclose(found["point"].values, [[[1], [-1]]])
    np.testing.assert_allclose(found["eigenvalues"], [[0]])
    assert list(found["stability"].values) == ["stable"]
    np.testing.assert_array_equal(found["region"].values, [[[2], [0]]])
    assert fixed_points_of(network, period=3).sizes["cycle"] == 0
    assert found.attrs["complete"] == 1


def test_a_tent_map_has_its_two_cycles_of_three() -> None:
    """z' = 2 min(z, 1 - z) on [0, 1]: {2/7, 4/7, 6/7} and {2/9, 4/9, 8/9}, both of slope 8."""
    network = PiecewiseLinear.relu(0.0, [[2.0, -4.0]], [[1.0], [1.0]], [0.0, 0.5])
    found = fixed_points_of(network, period=3)
    expected = [[[6 / 7], [2 / 7], [4 / 7]], [[8 / 9], [2 / 9], [4 / 9]]]
    np.testing.assert_allclose(found["point"], expected)
    np.testing.assert_allclose(np.abs(found["eigenvalues"]), 8)
    assert list(found["stability"].values) == ["unstable", "unstable"]
    assert found.attrs["complete"] == 1


# --- networks that hold many fixed points -------------------------------------------------------


def test_patterns_of_a_hopfield_network_are_stable() -> None:
    """Orthogonal patterns xi_k of +-1, n = xi / N and m = 2.7 xi: each xi_k and its negative."""
    patterns = np.array([[1], [1]])
    for _ in range(4):
        patterns = np.block([[patterns, patterns], [patterns, -patterns]])
    patterns = patterns[:, [1, 2, 4]].astype(float)
    num_neurons = len(patterns)
    network = PiecewiseLinear.hard_tanh(0.0, patterns.T / num_neurons, 2.7 * patterns, 0.0)
    found = fixed_points_of(network)
    assert found.attrs["complete"] == 1
    stable = found["point"].values[found["stability"].values == "stable"]
    for pattern in np.concatenate([np.eye(3), -np.eye(3)]):
        assert np.abs(stable - pattern).max(1).min() < 1e-12
    assert_same_points(found["point"].values, reference(network), 1e-6)


def test_a_ring_of_clipped_units_holds_as_many_states_as_the_reference_finds() -> None:
    num_neurons = 18
    angle = 2 * np.pi * np.arange(num_neurons) / num_neurons
    m = np.stack([np.cos(angle), np.sin(angle)], 1)
    network = PiecewiseLinear.clipped_relu(0.0, 2.4 * m.T / num_neurons, 9 * m, 1.0, -0.5)
    expected = reference(network)
    found = fixed_points_of(network)
    assert len(expected) >= 17
    assert found.attrs["complete"] == 1
    assert_same_points(found["point"].values, expected)
    radius = np.linalg.norm(found["point"].values, axis=1)
    assert (radius > 0.5).sum() >= 16


# --- what is and is not certified ---------------------------------------------------------------


def test_a_fixed_point_far_out_is_found_without_a_region() -> None:
    """z' = 0.9 z + 0.0999 relu(z) + 0.1 has the fixed point z = 1000."""
    network = PiecewiseLinear.relu(0.9, [[0.0999]], [[1.0]], 0.0)._replace(offset=np.array([0.1]))
    found = fixed_points_of(network)
    np.testing.assert_allclose(found["point"], [[1000.0]])
    assert found.attrs["complete"] == 1
    near = fixed_points_of(network, region=([-10.0], [10.0]))
    assert near.sizes["fixed_point"] == 0
    assert near.attrs["complete"] == 0
    assert near.attrs["num_boxes_left"] == 0
    assert "not all of latent space" in near.attrs["warning"]
    assert fixed_points_of(network, region=([-2e3], [2e3])).attrs["complete"] == 1


def test_a_network_whose_fixed_points_run_to_infinity_is_not_called_complete() -> None:
    """z' = relu(z): all z >= 0 are fixed."""
    found = fixed_points_of(PiecewiseLinear.relu(0.0, [[1.0]], [[1.0]], 0.0), max_seconds=20.0)
    assert found.attrs["complete"] == 0
    assert found.attrs["num_singular"] > 0


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_a_continuum_is_reported_and_does_not_hang(latent_dim: int) -> None:
    """The first latent is the identity on [-1, 1]; the others contract to 0."""
    gain = np.eye(latent_dim)
    gain[1:] /= 2
    network = PiecewiseLinear.hard_tanh(0.0, gain, np.eye(latent_dim), 0.0)
    found = fixed_points_of(network, max_boxes=20_000)
    assert found.attrs["num_singular"] > 0
    assert found.attrs["num_boxes_left"] == 0
    assert found.attrs["complete"] == 0
    assert "continuum" in found.attrs["warning"]


def test_units_without_output_leave_one_point() -> None:
    network = PiecewiseLinear.relu(0.5, np.zeros((2, 3)), np.ones((3, 2)), 0.0)
    found = fixed_points_of(network._replace(offset=np.array([1.0, -2.0])))
    np.testing.assert_allclose(found["point"], [[2, -4]])
    assert found.attrs["complete"] == 1


def test_a_residual_that_vanishes_by_chance_is_no_continuum() -> None:
    """Pieces whose system is singular without a solution; z = 0 is the only fixed point."""
    network = PiecewiseLinear.hard_tanh(0.5, [[-0.25, 0.25, -0.25]], [[-1.0], [-2.0], [-1.0]], 0.0)
    found = fixed_points_of(network)
    assert found.attrs["complete"] == 1
    assert found.attrs["warning"] == ""
    np.testing.assert_allclose(found["point"], [[0.0]], atol=1e-12)


def test_a_latent_that_nothing_reaches_does_not_hinder_the_search() -> None:
    n = [[-2.0, 2.0, -1.0, -2.0], [-2.0, 1.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    m = [[1.0, 1.0, 2.0], [-1.0, 2.0, 2.0], [-2.0, -2.0, -1.0], [-1.0, 0.0, 2.0]]
    network = PiecewiseLinear.hard_tanh(0.0, n, m, [0.0, 0.5, -0.5, -0.5])
    network = network._replace(offset=np.array([1.0, -0.5, 0.0]))
    found = fixed_points_of(network, max_seconds=20.0)
    assert found.attrs["complete"] == 1
    np.testing.assert_allclose(found["point"], [[-2.0, -1.5, 0.0]], atol=1e-12)


def test_shifted_identity_has_no_fixed_point_and_no_continuum() -> None:
    """z' = z + 0.1 on [-1, 1]: singular, and without solution but where it is clipped, at 1."""
    network = PiecewiseLinear.hard_tanh(0.0, [[1.0]], [[1.0]], 0.0, drive=0.1)
    found = fixed_points_of(network)
    np.testing.assert_allclose(found["point"], [[1.0]])
    assert found.attrs["num_singular"] == 0
    assert found.attrs["complete"] == 1


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_a_point_on_the_kinks_of_all_units_is_listed_once(latent_dim: int) -> None:
    """Without thresholds and drive the origin is fixed, and on every kink."""
    rng = np.random.default_rng(latent_dim)
    num_neurons = 12
    n = rng.normal(size=(latent_dim, num_neurons)) * 0.05
    m = rng.normal(size=(num_neurons, latent_dim))
    alone = fixed_points_of(PiecewiseLinear.relu(0.5, n, m, 0.0))
    np.testing.assert_allclose(alone["point"], np.zeros((1, latent_dim)), atol=1e-9)
    assert alone.attrs["complete"] == 1
    kinked = PiecewiseLinear.clipped_relu(0.5, n, m, rng.uniform(0.5, 1, num_neurons))
    kinked = kinked._replace(offset=-step(kinked, np.zeros(latent_dim)))
    found = fixed_points_of(kinked)
    assert found.attrs["complete"] == 1
    at_origin = np.abs(found["point"].values).max(1) < 1e-8
    assert at_origin.sum() == 1


def test_a_search_that_stops_early_reports_it_and_lists_only_fixed_points() -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, "hard_tanh", 40, 3, 2.0)
    whole = fixed_points_of(network)
    assert whole.attrs["complete"] == 1
    assert whole.attrs["volume_left"] == 0
    part = fixed_points_of(network, max_boxes=whole.attrs["num_boxes"] // 2)
    assert part.attrs["complete"] == 0
    assert 0 < part.attrs["volume_left"] < 1
    assert part.attrs["num_boxes_left"] > 0
    assert part.attrs["num_boxes"] <= whole.attrs["num_boxes"] // 2
    assert "stopped early" in part.attrs["warning"]
    assert part.sizes["fixed_point"] <= whole.sizes["fixed_point"]
    for point in part["point"].values:
        assert np.abs(whole["point"].values - point).max(1).min() < 1e-8
    hurried = fixed_points_of(network, max_seconds=1e-9)
    assert hurried.attrs["num_boxes_left"] > 0
    assert hurried.attrs["volume_left"] == 1
    assert hurried.sizes["fixed_point"] == 0


def test_a_region_contains_its_own_points_only() -> None:
    network = PiecewiseLinear.hard_tanh(0.5, [[1.0]], [[4.0]], 0.0)
    found = fixed_points_of(network, region=([-1.0], [5.0]))
    np.testing.assert_allclose(found["point"].values[:, 0], [0, 2], atol=1e-12)
    assert found.attrs["complete"] == 0


def test_the_result_does_not_depend_on_coordinates() -> None:
    """z -> T z maps n to T n and m to m T^-1; the list of fixed points follows."""
    rng = np.random.default_rng(8)
    network = random_network(rng, "clipped_relu", 20, 2, 2.0)._replace(a=np.full(2, 0.5))
    T = np.array([[2.0, 1.0], [-0.5, 1.5]])
    turned = network._replace(n=T @ network.n, m=network.m @ np.linalg.inv(T))
    one, two = fixed_points_of(network), fixed_points_of(turned)
    assert one.sizes["fixed_point"] > 0
    assert_same_points(two["point"].values, one["point"].values @ T.T)


# --- what holds at kinks ------------------------------------------------------------------------


def through_kinks(before: float, after: float) -> PiecewiseLinear:
    """z' = before z for z < 0 and after z for z > 0, by two units whose kinks are at 0."""
    return PiecewiseLinear.relu(0.5, [[after - 0.5, 0.5 - before]], [[1.0], [-1.0]], 0.0)


@pytest.mark.parametrize(
    ("slope", "verdict"), [(0.9, "stable"), (1.2, "unstable"), (-0.3, "stable")]
)
def test_a_linear_map_made_of_kinks_has_the_eigenvalue_of_the_map(slope, verdict) -> None:
    found = fixed_points_of(through_kinks(slope, slope))
    np.testing.assert_allclose(found["point"], [[0.0]], atol=1e-12)
    np.testing.assert_allclose(found["eigenvalues"], [[slope]])
    np.testing.assert_allclose(found["jacobian"], [[[slope]]])
    assert list(found["stability"].values) == [verdict]
    assert found["on_kink"].values.all()
    assert found["index"].values[0] == np.sign(1 - slope)
    assert not found["continuum"].values.any()
    assert found.attrs["complete"] == 1


@pytest.mark.parametrize(
    ("before", "after", "verdict", "index"),
    [
        (0.5, 0.8, "stable", 1),
        (1.5, 2.0, "unstable", -1),
        (0.5, 1.5, "kink", 0),
        (1.5, 0.5, "kink", 0),
        (-2.0, -0.4, "kink", 1),
    ],
)
def test_a_point_on_a_kink_has_a_verdict_if_its_pieces_prove_it(
    before, after, verdict, index
) -> None:
    found = fixed_points_of(through_kinks(before, after), region=([-1.0], [1.0]))
    np.testing.assert_allclose(found["point"], [[0.0]], atol=1e-12)
    assert list(found["stability"].values) == [verdict]
    assert np.isnan(found["eigenvalues"].values).all()
    assert np.isnan(found["jacobian"].values).all()
    np.testing.assert_array_equal(found["index"], [index])


def two_sided(left: NDArray, right: NDArray) -> PiecewiseLinear:
    """z' = left z where the first latent is negative, right z elsewhere, by bias-free units.

    The matrices must agree in all but their first column.
    """
    dim = len(left)
    n, m = [right[:, 0], -left[:, 0]], [np.eye(dim)[0], -np.eye(dim)[0]]
    for other in range(1, dim):
        n += [right[:, other], -right[:, other]]
        m += [np.eye(dim)[other], -np.eye(dim)[other]]
    return PiecewiseLinear.relu(0.0, np.stack(n, 1), np.stack(m), 0.0)


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ([[-0.4, 1.0], [-0.9, 0.0]], [[-1.8, 1.0], [-0.9, 0.0]], "kink"),
        ([[0.5, 0.2], [0.1, -0.3]], [[-0.4, 0.2], [0.3, -0.3]], "stable"),
        ([[2.0, 0.3], [0.0, -3.0]], [[2.5, 0.3], [0.5, -3.0]], "unstable"),
        ([[0.0, 0.3], [0.0, -3.0]], [[2.5, 0.3], [0.5, -3.0]], "kink"),
        ([[0.5, 0.0], [0.0, 2.0]], [[0.8, 0.0], [0.0, 2.0]], "kink"),
    ],
)
def test_switching_between_stable_regions_may_be_unstable(left, right, verdict) -> None:
    """In the first case both matrices have eigenvalues of modulus 0.95, but z moves away."""
    network = two_sided(np.array(left), np.array(right))
    found = fixed_points_of(network, region=([-1.0, -1.0], [1.0, 1.0]))
    np.testing.assert_allclose(found["point"], [[0.0, 0.0]], atol=1e-12)
    assert list(found["stability"].values) == [verdict]
    assert np.isnan(found["eigenvalues"].values).all()
    angle = np.linspace(0, 2 * np.pi, 40)
    z = 1e-6 * np.stack([np.cos(angle), np.sin(angle)], 1)
    for _ in range(100):
        z = step(network, z)
    final = np.linalg.norm(z, axis=1)
    assert {
        "kink": final.max() > 1e-2,
        "stable": final.max() < 1e-10,
        "unstable": final.min() > 1e-2,
    }[verdict]


def test_points_of_a_line_attractor_are_marked() -> None:
    """z' = z by two kinks at 0, and z' = z on [-1, 1] by a clipped unit, whose ends are listed."""
    line = fixed_points_of(through_kinks(1.0, 1.0), max_boxes=20_000)
    np.testing.assert_allclose(line["point"], [[0.0]], atol=1e-12)
    np.testing.assert_allclose(line["eigenvalues"], [[1.0]])
    assert list(line["stability"].values) == ["marginal"]
    assert line["continuum"].values.all()
    assert np.isnan(line["index"].values).all()
    assert line.attrs["complete"] == 0
    clipped = fixed_points_of(PiecewiseLinear.hard_tanh(0.0, [[1.0]], [[1.0]], 0.0))
    assert clipped.sizes["fixed_point"] > 0
    np.testing.assert_allclose(np.abs(clipped["point"]), 1.0)
    assert clipped["continuum"].values.all()
    assert (clipped["stability"] == "kink").all()
    assert np.isnan(clipped.attrs["index_sum"])


def test_a_continuum_needs_a_null_vector_on_the_singular_piece_itself() -> None:
    """On x, y > 0 both maps below are singular; only for the first does the null vector lie there.

    The first is z' = (x / 2 for x > 0, x for x < 0; y / 2), which keeps (x, 0) for all x < 0. The
    second is z' = -(relu(y), relu(x)), with null vector (1, -1) for x, y > 0 and none elsewhere.
    """
    n = [[0.5, -1.0, 0.0, 0.0], [0.0, 0.0, 0.5, -0.5]]
    m = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    first = PiecewiseLinear.relu(0.0, n, m, 0.0)
    second = PiecewiseLinear.relu(0.0, [[0.0, -1.0], [-1.0, 0.0]], np.eye(2), 0.0)
    region = [-1.0, -1.0], [1.0, 1.0]
    found = fixed_points_of(first, region=region)
    assert found["continuum"].values[np.abs(found["point"].values).max(1) < 1e-9].tolist() == [True]
    found = fixed_points_of(second, region=region)
    np.testing.assert_allclose(found["point"], [[0.0, 0.0]], atol=1e-12)
    assert not found["continuum"].values.any()
    np.testing.assert_array_equal(found["index"], [1])
    assert list(found["stability"].values) == ["kink"]


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_cones_are_those_that_directions_meet(dim: int) -> None:
    rng = np.random.default_rng(dim)
    normals = rng.integers(-2, 3, (6, dim)).astype(float)
    normals = normals[normals.any(1)]
    directions = rng.standard_normal((50_000, dim))
    expected = np.unique(np.sign(directions @ normals.T).astype(int), axis=0)
    np.testing.assert_array_equal(cones(normals), expected)


def test_the_regions_around_a_point_on_kinks_are_those_of_the_map_near_it() -> None:
    """Jacobians by finite differences, and the degree as the winding number of z - F(z)."""
    rng = np.random.default_rng(1)
    degrees = []
    for _ in range(12):
        n, m = rng.normal(size=(2, 5)), rng.normal(size=(5, 2))
        network = PiecewiseLinear.relu(0.3, n, m, 0.0)
        equation = equation_of(network, 1)
        first, last = pieces_within(equation, np.zeros((1, 2)), np.full((1, 2), 1e-9))
        around = adjoining(equation, np.zeros(2), first[0], last[0], 1.0)
        angle = np.linspace(0, 2 * np.pi, 4_001)
        z = np.stack([np.cos(angle), np.sin(angle)], 1)
        turns = np.unwrap(np.arctan2(*(z - step(network, z)).T[::-1]))
        assert around.degree == round((turns[-1] - turns[0]) / (2 * np.pi))
        degrees.append(around.degree)
        shift = 1e-9 * np.eye(2)
        jacobian = (
            step(network, z[:-1, None] + shift) - step(network, z[:-1, None] - shift)
        ) / 2e-9
        expected = np.unique(jacobian.mT.round(4).reshape(-1, 4), axis=0)
        for entry in expected[:: max(1, len(expected) // 20)]:
            distance = np.abs(around.linear.reshape(-1, 4) - entry).max(1)
            assert distance.min() < 1e-3
        assert len(around.linear) == 10  # two per line
    assert len(set(degrees)) > 2


# --- published networks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_points"), [pytest.param("eeg0", 43, marks=pytest.mark.slow), ("eeg1", 33)]
)
def test_published_networks_of_rank_three(name: str, num_points: int, data_file) -> None:
    """Every point once; the indices of all fixed points of bounded units sum to +1."""
    with np.load(data_file("pals_eeg_networks")) as file:
        a, n, m, h = (file[f"{name}_{field}"] for field in "anmh")
    network = PiecewiseLinear.clipped_relu(a, n, m, h)
    found = fixed_points_of(network)
    assert found.attrs["complete"] == 1
    assert found.sizes["fixed_point"] == num_points
    assert len(np.unique(found["region"], axis=0)) == num_points
    assert found["residual"].max() < 1e-13
    signs = np.sign(np.linalg.det(np.eye(3) - found["jacobian"].values))
    np.testing.assert_array_equal(found["index"], signs)
    assert found.attrs["index_sum"] == signs.sum() == 1


# --- the budget, and the check of what was found ------------------------------------------------


def test_the_budget_counts_processor_time() -> None:
    budget = Budget(10, time.thread_time() + 0.05)
    time.sleep(0.1)
    assert not budget.spent()
    until = time.thread_time() + 0.06
    while time.thread_time() < until:
        pass
    assert budget.spent()


def test_a_missing_point_shows_in_the_sum_of_indices(monkeypatch) -> None:
    def losing(*arguments) -> Found:
        found = search(*arguments)
        rest = np.abs(found.points[:, 0] - 2) > 1e-6
        return found._replace(points=found.points[rest], errors=found.errors[rest])

    network = PiecewiseLinear.hard_tanh(0.5, [[1.0]], [[4.0]], 0.0)
    assert fixed_points_of(network).attrs["index_sum"] == 1
    monkeypatch.setattr(listing, "search", losing)
    found = fixed_points_of(network)
    np.testing.assert_allclose(found["point"].values[:, 0], [-2, 0], atol=1e-12)
    assert found.attrs["index_sum"] == 0
    assert found.attrs["complete"] == 0
    assert "sum to 0 where bounded units imply 1" in found.attrs["warning"]


@pytest.mark.parametrize("period", [1, 2, 3])
def test_indices_of_bounded_units_sum_to_one(period: int) -> None:
    rng = np.random.default_rng(3)
    num_found = 0
    for trial in range(12):
        kind = ("clipped_relu", "hard_tanh")[trial % 2]
        found = fixed_points_of(random_network(rng, kind, 5, 1, 4.0), period=period)
        assert found.attrs["complete"] == 1, found.attrs
        assert found.attrs["index_sum"] == 1
        num_found += len(found["point"])
    assert num_found > {1: 12, 2: 4, 3: 0}[period]


# --- errors -------------------------------------------------------------------------------------


def test_invalid_input_raises() -> None:
    network = PiecewiseLinear.relu([0.5, 0.5], np.ones((2, 3)), np.ones((3, 2)), 0.0)
    wrong = [
        (network._replace(a=np.array([0.5, 1.0])), {}, "a to the power of 1 is 1"),
        (network._replace(a=np.array([0.5, -1.0])), {"period": 2}, "a to the power of 2 is 1"),
        (network._replace(m=np.ones((2, 3))), {}, "m has shape"),
        (network._replace(n=np.full((2, 3), np.nan)), {}, "n contains NaN"),
        (network._replace(breakpoints=np.tile([1.0, 0.0], (3, 1))), {}, "must ascend"),
        (network._replace(intercepts=np.ones((3, 3)) * [0, 1, 1]), {}, "must meet"),
        (network, {"period": 4}, "period is 4"),
        (network, {"region": ([0.0, 0.0], [1.0, 0.0])}, "lower < upper"),
        (network, {"region": ([0.0], [1.0])}, "shape"),
        (network, {"max_boxes": 0}, "above 0"),
    ]
    for candidate, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            fixed_points_of(candidate, **options)
    with pytest.raises(ValueError, match="give n as"):
        PiecewiseLinear.relu(0.5, np.ones((2, 3)), np.ones((2, 3)), 0.0)
    with pytest.raises(ValueError, match="one per neuron"):
        PiecewiseLinear.relu(0.5, np.ones((2, 3)), np.ones((3, 2)), np.zeros(4))


def test_the_result_is_a_dataset_with_named_dims() -> None:
    rng = np.random.default_rng(0)
    found = fixed_points_of(random_network(rng, "relu", 6, 2))
    assert isinstance(found, xr.Dataset)
    assert found["point"].dims == ("fixed_point", "latent")
    assert found["eigenvalues"].dims == ("fixed_point", "mode")
    assert found["region"].dims == ("fixed_point", "neuron")
    assert found["region"].dtype == np.int8
