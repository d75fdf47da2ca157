"""Alignment of inferred and true latents, whose coordinates may differ.

A model's latents are identified only up to a change of coordinates: transformed latents explain the
same data if readout and dynamics are transformed to match. Before two sets of latents are compared,
one is mapped to the other, by a map fitted on training trials::

    y = x A + b        affine: A, b by least squares
                       similarity (Procrustes): A = s R, a rotation or reflection and one scale

An affine map allows for shears and stretches; a similarity preserves angles and shapes. Dynamics
are transformed along with their states, so that fields, fixed points and phase portraits can be
compared in the coordinates of the truth::

    step'(y) = step((y - b) A^-1) A + b,        field'(y) = field((y - b) A^-1) A

Angles between the subspaces that two sets of latents span over bins (the arccosines of their
canonical correlations) need no map and are invariant to affine maps.

Sources: Sedler, Versteeg & Pandarinath (2023, arXiv 2212.03771) for the latent R2 from true to
inferred; Schonemann (1966, Psychometrika 31) for Procrustes; Bjorck & Golub (1973, Mathematics of
Computation 27) for the angles.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike

from pyrodyn.analysis.dynamics import dynamics_of
from pyrodyn.analysis.scores.rates import Array, mean_r2, paired_rows, r2
from pyrodyn.models.dynamics import Derivative, Dynamics, Field

KINDS = ("affine", "similarity")


class LatentR2(NamedTuple):
    """R2 of affine maps between inferred and true latents.

    Attributes:
        true_to_inferred: how well the truth predicts the inferred dimensions, averaged over them;
            low if the inferred latents contain activity that the truth does not.
        inferred_to_true: how well the inference predicts the true dimensions, averaged over them;
            low if the inferred latents miss part of the truth.
        per_inferred_dim: ``(inferred dimension,)``, averaged in ``true_to_inferred``; NaN, and
            excluded from the mean, for a constant dimension.
        per_true_dim: ``(true dimension,)``, averaged in ``inferred_to_true``.
    """

    true_to_inferred: float
    inferred_to_true: float
    per_inferred_dim: Array
    per_true_dim: Array


class Alignment(NamedTuple):
    """The map y = x A + b from one set of coordinates to another. Calling it maps states.

    Attributes:
        matrix: A.
        offset: b.
    """

    matrix: Float[ndarray, "source target"]
    offset: Float[ndarray, " target"]

    def __call__(self, states: ArrayLike) -> Float[ndarray, "*left target"]:
        """States ``(*left, source)`` in the target's coordinates."""
        return np.asarray(states, float) @ self.matrix + self.offset

    def transform_dynamics(self, model_or_dynamics: object) -> Dynamics:
        """Dynamics of the source in the target's coordinates, in double precision.

        Their eigenvalues, Lyapunov exponents and unit of time are unchanged.

        Args:
            model_or_dynamics: a model of the zoo, or dynamics in double precision.

        Raises:
            ValueError: for what has no dynamics, and unless A is square, invertible and of the
                dynamics' dimension.
        """
        dynamics = dynamics_of(model_or_dynamics)
        dim, rank = dynamics.state_dim, np.linalg.matrix_rank(self.matrix)
        if self.matrix.shape != (dim, dim) or rank < dim:
            raise ValueError(
                f"a map of shape {self.matrix.shape} and rank {rank} cannot transform dynamics of"
                f" {dim} dimensions; it must be invertible, from {dim} to {dim}"
            )
        A, b = torch.from_numpy(self.matrix), torch.from_numpy(self.offset)
        back = torch.from_numpy(np.linalg.inv(self.matrix))

        def transformed(function: Field, shift: torch.Tensor) -> Field:
            return lambda y, inputs: function((y - b) @ back, inputs) @ A + shift

        def transformed_derivative(derivative: Derivative) -> Derivative:
            return lambda y, inputs: A.mT @ derivative((y - b) @ back, inputs) @ back.mT

        field = dynamics.vector_field
        of_step, of_field = dynamics.step_derivative, dynamics.field_derivative
        return dataclasses.replace(
            dynamics,
            step=transformed(dynamics.step, b),
            vector_field=None if field is None else transformed(field, torch.zeros_like(b)),
            step_derivative=None if of_step is None else transformed_derivative(of_step),
            field_derivative=None if of_field is None else transformed_derivative(of_field),
        )


def align(
    source: ArrayLike, target: ArrayLike, *, valid: ArrayLike | None = None, kind: str = "affine"
) -> Alignment:
    """The least-squares map from one set of latents to another.

    Args:
        source: ``(trial, time, source dimension)``.
        target: ``(trial, time, target dimension)``, in the same trials and bins.
        valid: bool, ``(trial, time)``; false in bins to leave out.
        kind: "affine", or "similarity" for a rotation or reflection with one scale (Procrustes).

    Raises:
        ValueError: for another kind, trials or bins that disagree, latents that are not finite, and
            a similarity between spaces of different dimension or from a constant source.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} of alignment; choose one of {', '.join(KINDS)}")
    return _fitted(*paired_rows("latents", source, target, valid), kind)


def latent_r2(
    inferred_train: ArrayLike,
    true_train: ArrayLike,
    inferred_test: ArrayLike,
    true_test: ArrayLike,
    *,
    valid_train: ArrayLike | None = None,
    valid_test: ArrayLike | None = None,
) -> LatentR2:
    """R2 of affine least-squares maps between inferred and true latents, in both directions.

    Args:
        inferred_train: ``(trial, time, inferred dimension)`` latents on which the maps are fitted.
        true_train: ``(trial, time, true dimension)`` their true counterparts.
        inferred_test: latents of the test trials, on which the maps are scored.
        true_test: their true counterparts.
        valid_train: bool, ``(trial, time)``; false in bins to leave out.
        valid_test: the same for the test trials.

    Returns:
        R2 in both directions, averaged and per dimension.

    Raises:
        ValueError: if trials or bins disagree, a latent is not finite, or all latents are constant.
    """
    inferred, true = paired_rows("latents", inferred_train, true_train, valid_train)
    new_inferred, new_true = paired_rows("latents", inferred_test, true_test, valid_test)
    per_inferred_dim = r2(_fitted(true, inferred)(new_true), new_inferred)
    per_true_dim = r2(_fitted(inferred, true)(new_inferred), new_true)
    return LatentR2(
        mean_r2(per_inferred_dim), mean_r2(per_true_dim), per_inferred_dim, per_true_dim
    )


def subspace_angles(
    first: ArrayLike, second: ArrayLike, *, valid: ArrayLike | None = None
) -> Float[ndarray, " angle"]:
    """Principal angles between the subspaces that two sets of latents span over trials and bins.

    Args:
        first: ``(trial, time, dimension)``.
        second: ``(trial, time, other dimension)``, in the same trials and bins.
        valid: bool, ``(trial, time)``; false in bins to leave out.

    Returns:
        Angles in radians, smallest first, as many as the smaller rank: 0 for a shared direction,
        pi / 2 for orthogonal ones.

    Raises:
        ValueError: if trials or bins disagree, a latent is not finite, or one set is constant.
    """
    rows = [array - array.mean(0) for array in paired_rows("latents", first, second, valid)]
    if not all(array.any() for array in rows):
        raise ValueError(
            "constant latents span no direction, so that no angle is defined; leave them out"
        )
    return scipy.linalg.subspace_angles(*rows)[::-1]


def _fitted(
    source: Float[ndarray, "row source"], target: Float[ndarray, "row target"], kind: str = "affine"
) -> Alignment:
    centre, goal = source.mean(0), target.mean(0)
    x, y = source - centre, target - goal
    if kind == "affine":
        matrix, *_ = np.linalg.lstsq(x, y)
    else:
        if x.shape != y.shape or not x.any():
            raise ValueError(
                f"a similarity maps between spaces of equal dimension, from states that vary; these"
                f" have {x.shape[1]} and {y.shape[1]} dimensions"
                + ("" if x.any() else " and the source is constant")
            )
        rotation, overlap = scipy.linalg.orthogonal_procrustes(x, y)
        matrix = rotation * overlap / np.square(x).sum()
    return Alignment(matrix, goal - centre @ matrix)
