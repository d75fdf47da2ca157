"""Alignment by known maps: R2, Procrustes, transformed dynamics and angles."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from pyrodyn import analysis, data
from pyrodyn.analysis.scores.alignment import Alignment, align, latent_r2, subspace_angles
from pyrodyn.models import Dynamics, NodeSAE, RnnSAE


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- latent R2 ----------------------------------------------------------------------------------


def test_invertible_affine_maps_are_recovered(rng: np.random.Generator) -> None:
    true = rng.normal(size=(30, 40, 3))
    inferred = true @ rng.normal(size=(3, 3)) + rng.normal(size=3)
    result = latent_r2(inferred[:20], true[:20], inferred[20:], true[20:])
    assert result.true_to_inferred == pytest.approx(1, abs=1e-12)
    assert result.inferred_to_true == pytest.approx(1, abs=1e-12)


def test_the_two_directions_separate_extra_from_missing_dimensions(
    rng: np.random.Generator,
) -> None:
    true, noise = rng.normal(size=(60, 50, 3)), rng.normal(size=(60, 50, 1))
    extra = np.concatenate([true, noise], -1)
    result = latent_r2(extra[:40], true[:40], extra[40:], true[40:])
    assert result.inferred_to_true == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(result.per_inferred_dim, [1, 1, 1, 0], atol=0.02)
    assert result.true_to_inferred == pytest.approx(result.per_inferred_dim.mean())
    missing = true[..., :2]
    result = latent_r2(missing[:40], true[:40], missing[40:], true[40:])
    assert result.true_to_inferred == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(result.per_true_dim, [1, 1, 0], atol=0.02)


def test_latent_r2_with_known_noise(rng: np.random.Generator) -> None:
    true = rng.normal(size=(100, 100, 2))
    inferred = true + 0.5 * rng.normal(size=true.shape)
    result = latent_r2(inferred[:50], true[:50], inferred[50:], true[50:])
    # Either way the correlation is 1 / sqrt(1.25): both R2 are 0.8.
    assert result.true_to_inferred == pytest.approx(0.8, abs=0.02)
    assert result.inferred_to_true == pytest.approx(0.8, abs=0.02)


def test_maps_are_fitted_on_training_trials_alone(rng: np.random.Generator) -> None:
    true, unrelated = rng.normal(size=(2, 4, 10, 8))[0][:, :, None], rng.normal(size=(4, 10, 30))
    result = latent_r2(unrelated[:3], true[:3, :, 0], unrelated[3:], true[3:, :, 0])
    # Thirty regressors on thirty rows fit anything; on test trials they predict nothing.
    assert result.inferred_to_true < 0


def test_latents_of_invalid_bins_are_not_read(rng: np.random.Generator) -> None:
    true = rng.normal(size=(20, 15, 3))
    inferred = true @ rng.normal(size=(3, 4)) + 0.3 * rng.normal(size=(20, 15, 4))
    valid = np.arange(15) < rng.integers(8, 16, 20)[:, None]
    expected = latent_r2(
        inferred[:12][valid[:12]],
        true[:12][valid[:12]],
        inferred[12:][valid[12:]],
        true[12:][valid[12:]],
    )
    for filler in (np.nan, 1e9):
        inferred_, true_ = (np.where(valid[..., None], z, filler) for z in (inferred, true))
        result = latent_r2(
            inferred_[:12],
            true_[:12],
            inferred_[12:],
            true_[12:],
            valid_train=valid[:12],
            valid_test=valid[12:],
        )
        np.testing.assert_array_equal(result.per_inferred_dim, expected.per_inferred_dim)
        np.testing.assert_array_equal(result.per_true_dim, expected.per_true_dim)
    with pytest.raises(ValueError, match="latents is nan"):
        latent_r2(inferred_[:12] * np.nan, true_[:12], inferred_[12:], true_[12:])
    with pytest.raises(ValueError, match="they must agree"):
        latent_r2(inferred[:12], true[:11], inferred[12:], true[12:])


# --- maps and angles ----------------------------------------------------------------------------


def rotation(rng: np.random.Generator) -> NDArray:
    return np.linalg.qr(rng.standard_normal((3, 3)))[0]


def test_a_similarity_is_recovered_and_allows_no_shear(rng: np.random.Generator) -> None:
    source, turn = rng.standard_normal((10, 20, 3)), rotation(rng)
    found = align(source, 2.5 * source @ turn + 1.0, kind="similarity")
    np.testing.assert_allclose(found.matrix, 2.5 * turn, atol=1e-12)
    np.testing.assert_allclose(found(source), 2.5 * source @ turn + 1.0, atol=1e-12)
    sheared = source @ (turn + np.triu(np.ones((3, 3)), 1))
    of_shear = align(source, sheared, kind="similarity")
    gram = of_shear.matrix.T @ of_shear.matrix
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(3), atol=1e-12)
    assert np.abs(of_shear(source) - sheared).max() > 0.1
    np.testing.assert_allclose(align(source, sheared)(source), sheared, atol=1e-12)


def test_a_similarity_has_the_least_error_of_its_kind(rng: np.random.Generator) -> None:
    source = rng.standard_normal((10, 20, 3))
    target = source @ rng.standard_normal((3, 3)) + rng.standard_normal(source.shape)
    best = align(source, target, kind="similarity")
    least = np.square(best(source) - target).sum()
    for _ in range(50):
        near = scipy.linalg.expm(0.05 * np.array(skew(rng.standard_normal(3))))
        scale = np.exp(0.05 * rng.standard_normal())
        other = Alignment(best.matrix @ near * scale, best.offset + 0.05 * rng.standard_normal(3))
        assert np.square(other(source) - target).sum() > least


def skew(w: NDArray) -> list[list[float]]:
    return [[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]]


def test_bins_that_are_not_valid_do_not_enter_a_map(rng: np.random.Generator) -> None:
    source, valid = rng.standard_normal((10, 20, 3)), rng.random((10, 20)) < 0.7
    target = np.where(valid[..., None], source @ rotation(rng), np.nan)
    found = align(source, target, valid=valid)
    np.testing.assert_allclose(found(source)[valid], target[valid], atol=1e-12)


def test_transformed_dynamics_keep_their_invariants(rng: np.random.Generator) -> None:
    truth = analysis.known_dynamics("lorenz")
    seen = Alignment(rng.standard_normal((3, 3)), rng.standard_normal(3))
    transformed = seen.transform_dynamics(truth)
    visited = data.trajectory("lorenz", 300, 0.02, seed=0)
    state, no_inputs = torch.from_numpy(visited), torch.zeros(len(visited), 0)
    np.testing.assert_allclose(
        transformed.step(torch.from_numpy(seen(visited)), no_inputs),
        seen(truth.step(state, no_inputs)),
        atol=1e-9,
    )
    own = analysis.fixed_points(truth, starts=visited)
    found = analysis.fixed_points(transformed, starts=seen(visited))
    order = np.lexsort(seen(own["point"]).T[::-1])
    np.testing.assert_allclose(found["point"], seen(own["point"])[order], atol=1e-7)
    np.testing.assert_allclose(found["eigenvalues"], own["eigenvalues"].values[order], atol=1e-7)


def test_maps_are_transformed(rng: np.random.Generator) -> None:
    halving = Dynamics(lambda z, i: z / 2, 3)
    shift = Alignment(np.eye(3), np.array([1.0, 2.0, 3.0])).transform_dynamics(halving)
    assert shift.vector_field is None
    rests = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(shift.step(rests, torch.zeros(0)), rests)


def test_a_model_is_transformed_in_double_precision(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    model = NodeSAE(4, latent_dim=3, field_width=8)
    seen = Alignment(rng.standard_normal((3, 3)), rng.standard_normal(3))
    own, states = analysis.dynamics_of(model), rng.standard_normal((5, 3))
    no_inputs = own.no_inputs(torch.from_numpy(states))
    expected = seen(own.step(torch.from_numpy(states), no_inputs))
    stepped = seen.transform_dynamics(model).step(torch.from_numpy(seen(states)), no_inputs)
    np.testing.assert_allclose(stepped, expected, atol=1e-12)


@pytest.mark.parametrize("model", [NodeSAE(4, latent_dim=3), RnnSAE(4, latent_dim=3)])
def test_closed_form_jacobians_are_transformed(
    rng: np.random.Generator, model: NodeSAE | RnnSAE
) -> None:
    transformed = Alignment(rng.standard_normal((3, 3)), rng.standard_normal(3)).transform_dynamics(
        model
    )
    plain = dataclasses.replace(transformed, step_derivative=None, field_derivative=None)
    state = torch.from_numpy(rng.standard_normal((5, 3)))
    given = state, transformed.no_inputs(state)
    if transformed.vector_field is None:
        assert transformed.step_derivative is not None
        derived, expected = transformed.jacobian(*given), plain.jacobian(*given)
    else:
        assert transformed.field_derivative is not None
        derived, expected = transformed.field_jacobian(*given), plain.field_jacobian(*given)
    torch.testing.assert_close(derived, expected, atol=1e-10, rtol=0)


def test_angles_of_known_subspaces(rng: np.random.Generator) -> None:
    basis = np.linalg.qr(rng.standard_normal((200, 5)))[0]
    basis -= basis.mean(0)
    a, b, c, d, e = np.linalg.qr(basis)[0].T.reshape(5, 10, 20)
    first = np.stack([a, b], -1) @ rng.standard_normal((2, 2)) + 3.0
    tilted = np.cos(0.3) * b + np.sin(0.3) * c
    second = np.stack([a, tilted, d], -1) @ rng.standard_normal((3, 3))
    np.testing.assert_allclose(subspace_angles(first, second), [0, 0.3], atol=1e-6)
    np.testing.assert_allclose(
        subspace_angles(first, np.stack([d, e], -1)), [np.pi / 2] * 2, atol=1e-6
    )


def test_invalid_alignments_raise(rng: np.random.Generator) -> None:
    three, two = rng.standard_normal((4, 5, 3)), rng.standard_normal((4, 5, 2))
    with pytest.raises(ValueError, match="choose one of affine, similarity"):
        align(three, three, kind="rigid")
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        align(three, two, kind="similarity")
    with pytest.raises(ValueError, match="source is constant"):
        align(np.ones((4, 5, 3)), three, kind="similarity")
    with pytest.raises(ValueError, match="must be invertible, from 3 to 3"):
        align(three, two).transform_dynamics(analysis.known_dynamics("lorenz"))
    with pytest.raises(ValueError, match="span no direction"):
        subspace_angles(three, np.ones((4, 5, 2)))
