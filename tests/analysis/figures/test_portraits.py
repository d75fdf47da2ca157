"""Figures of dynamics: nullclines, markers, units."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Circle

from pyrodyn.analysis import fixed_points
from pyrodyn.analysis.dynamics import known_dynamics
from pyrodyn.analysis.figures.portraits import (
    Plane,
    phase_portrait,
    plot_attractors,
    plot_eigenvalues,
    plot_lyapunov,
    plot_spectra,
)
from pyrodyn.analysis.lyapunov import lyapunov_spectrum
from pyrodyn.analysis.spectra import power_spectrum
from pyrodyn.data.simulate import trajectory
from pyrodyn.models import Dynamics, LowRankRNN

REGION = ([-2.0, -2.0], [2.0, 2.0])


def two_wells(z: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    x, y = z[..., 0], z[..., 1]
    return torch.stack([x - x**3, -y], -1)


WELLS = Dynamics(lambda z, i: z + 0.1 * two_wells(z, i), 2, bin_width=0.1, vector_field=two_wells)
MAP = Dynamics(lambda z, i: z + 0.1 * two_wells(z, i), 2)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def labelled(axis) -> dict:
    return dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))


@pytest.mark.parametrize("dynamics", [WELLS, MAP])
def test_a_portrait_in_two_dimensions(dynamics):
    found = fixed_points(dynamics, region=REGION)
    trajectories = np.random.default_rng(0).uniform(-2, 2, (60, 5, 2))
    axis = phase_portrait(dynamics, trajectories, found).axes[0]
    marks = labelled(axis)
    np.testing.assert_allclose(np.sort(marks["stable"].get_offsets()[:, 0]), [-1.0, 1.0], atol=1e-8)
    np.testing.assert_allclose(marks["saddle"].get_offsets(), [[0.0, 0.0]], atol=1e-8)
    assert "nullcline of state 1" in marks
    # x' vanishes on three vertical lines, y' on a horizontal one.
    contours = [c for c in axis.collections if type(c).__name__ == "QuadContourSet"]
    vertical, level = (
        np.concatenate([path.vertices for path in contour.get_paths()]) for contour in contours
    )
    np.testing.assert_allclose(np.unique(np.round(vertical[:, 0])), [-1.0, 0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(np.abs(vertical[:, 0] - np.round(vertical[:, 0])), 0, atol=0.01)
    np.testing.assert_allclose(level[:, 1], 0.0, atol=1e-6)
    drawn = [line for line in axis.lines if len(line.get_xdata()) == 5]
    assert len(drawn) == 50
    np.testing.assert_allclose(drawn[0].get_xydata(), trajectories[0])
    assert axis.get_xlim()[0] < trajectories[..., 0].min()


def test_the_shade_is_the_speed_per_second():
    trajectories = np.array([[-1.0, -1.0], [1.0, 1.0]])
    image = phase_portrait(WELLS, trajectories).axes[0].collections[0]
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, 61), np.linspace(-1.2, 1.2, 61))
    speed = np.hypot(x - x**3, y)
    np.testing.assert_allclose(
        image.get_array().reshape(61, 61), np.log10(np.maximum(speed, 1e-3 * speed.max()))
    )


def test_the_plane_of_more_dimensions_is_that_of_the_principal_components():
    path = trajectory("lorenz", 500, 0.01)
    dynamics = known_dynamics("lorenz")
    found = fixed_points(dynamics, starts=path, num_starts=64)
    axis = phase_portrait(dynamics, path, found).axes[0]
    assert axis.get_xlabel() == "principal component 1"
    assert "nullcline of state 1" not in labelled(axis)
    drawn = next(line for line in axis.lines if len(line.get_xdata()) == 500).get_xydata()
    variance = np.sort(np.linalg.eigvalsh(np.cov(path.T)))[::-1]
    np.testing.assert_allclose(np.cov(drawn.T), np.diag(variance[:2]), atol=1e-9)
    side = Plane(np.zeros(3), np.eye(3)[[0, 2]], ("x", "z"))
    axis = phase_portrait(dynamics, fixed_points=found, plane=side).axes[0]
    np.testing.assert_allclose(
        labelled(axis)["saddle"].get_offsets(), found["point"].values[:, [0, 2]]
    )
    assert axis.get_ylabel() == "z"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a phase portrait needs trajectories or fixed_points"),
        ({"trajectories": np.zeros((5, 2))}, r"trajectories must be states of shape \(..., 3\)"),
        ({"trajectories": np.zeros(3)}, r"trajectories must be \(time, 3\)"),
        (
            {"trajectories": np.eye(3), "plane": Plane(np.zeros(2), np.eye(2), ("a", "b"))},
            "plane has axes of shape",
        ),
    ],
)
def test_incomplete_arguments_of_a_portrait_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        phase_portrait(known_dynamics("lorenz"), **settings)
    found = fixed_points(known_dynamics("lorenz"), starts=np.ones(3), num_starts=16)
    with pytest.raises(ValueError, match="these dynamics have 3 dimensions; give trajectories"):
        phase_portrait(known_dynamics("lorenz"), fixed_points=found)
    with pytest.raises(ValueError, match="these dynamics have 2 dimensions"):
        phase_portrait(WELLS, fixed_points=found)


def test_eigenvalues_with_the_boundary_of_stability():
    flow = plot_eigenvalues(fixed_points(WELLS, region=REGION)).axes[0]
    assert not flow.patches
    np.testing.assert_allclose(flow.lines[0].get_xdata(), 0.0)
    values = labelled(flow)
    np.testing.assert_allclose(np.sort(values["saddle"].get_xdata()), [-1.0, 1.0], atol=1e-9)
    np.testing.assert_allclose(np.sort(values["stable"].get_xdata()), [-2, -2, -1, -1], atol=1e-8)
    assert "per second" in flow.get_xlabel()
    step = plot_eigenvalues(fixed_points(MAP, region=REGION)).axes[0]
    (circle,) = step.patches
    assert isinstance(circle, Circle)
    assert circle.radius == 1.0
    np.testing.assert_allclose(np.sort(labelled(step)["saddle"].get_xdata()), [0.9, 1.1], atol=1e-9)
    assert "per bin" in step.get_xlabel()
    assert step.get_legend() is None  # the legend is outside the axes
    assert len(step.figure.legends) == 1


def test_points_on_kinks_are_marked_and_have_no_eigenvalues_to_show():
    """z' = (3 x / 2 for x > 0, x / 2 for x < 0; y / 2 + hard tanh(y)): x = 0 is on a kink."""
    network = LowRankRNN(2, latent_dim=2, num_units=3, activation="relu").double()
    with torch.no_grad():
        network.log_rate.fill_(float(np.log(np.log(2.0))))
        network.m.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
        network.n.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]]))
        network.threshold.copy_(torch.tensor([0.0, 0.0, 1.0]))
    found = fixed_points(network, region=([-3.0, -3.0], [3.0, 3.0]))
    # With y' = y / 2 + relu(y) - relu(y - 1): y = 0 is on a kink too, y = 2 is not.
    np.testing.assert_allclose(found["point"], [[0.0, 0.0], [0.0, 2.0]], atol=1e-6)
    assert list(found["stability"].values) == ["kink", "kink"]
    marks = labelled(phase_portrait(network, fixed_points=found).axes[0])
    np.testing.assert_allclose(marks["kink"].get_offsets(), found["point"])
    eigenvalues = plot_eigenvalues(found)
    assert "kink" not in labelled(eigenvalues.axes[0])
    assert not eigenvalues.legends


def test_exponents_and_their_convergence():
    spectrum = lyapunov_spectrum(WELLS, [[0.5, 1.0], [-0.5, 0.3]], 20)
    left, right = plot_lyapunov(spectrum).axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), spectrum["running"][:, 0])
    np.testing.assert_allclose(left.lines[0].get_xdata(), np.arange(1, 21) * 0.1)
    np.testing.assert_allclose(right.lines[0].get_ydata(), spectrum["exponents_per_second"])
    assert right.get_title() == "Kaplan-Yorke dimension 0.000"


def test_spectra_share_their_axes():
    time = 0.01 * np.arange(512)
    waves = np.stack([np.sin(2 * np.pi * 6.25 * time), np.sin(2 * np.pi * 25 * time)], -1)
    spectra = {"waves": power_spectrum(waves, 0.01), "half": power_spectrum(waves / 2, 0.01)}
    axis = plot_spectra(spectra).axes[0]
    lines = labelled(axis)
    assert set(lines) == {"waves", "half"}
    frequency, power = lines["waves"].get_data()
    assert frequency[0] > 0
    np.testing.assert_allclose(sorted(frequency[np.argsort(power)[-2:]]), [6.25, 25.0])
    np.testing.assert_allclose(power, 4 * lines["half"].get_ydata())
    assert len(axis.lines) == 2 * 3
    assert axis.get_xscale() == axis.get_yscale() == "log"
    with pytest.raises(ValueError, match="there is no spectrum to plot"):
        plot_spectra({})
    with pytest.raises(ValueError, match=r"'waves' has dims \('frequency',\)"):
        plot_spectra({"waves": spectra["waves"].mean("dim")})


def test_attractors_side_by_side():
    path = trajectory("lorenz", 100, 0.01)
    true, inferred = plot_attractors(path, np.stack([path, path + 1])).axes
    np.testing.assert_allclose(true.lines[0].get_data_3d(), path.T)
    assert len(inferred.lines) == 2
    assert [true.get_title(), inferred.get_title()] == ["true", "inferred"]
    assert true.get_xlim() == inferred.get_xlim()
    assert true.get_zlim()[1] >= path[:, 2].max() + 1
    with pytest.raises(ValueError, match="inferred must be trajectories of shape"):
        plot_attractors(path, path[:, :2])
