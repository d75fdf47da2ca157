"""The Kalman filter, in square-root form::

    P_t = A F_{t-1} A' + Q = L_t L_t'                predicted covariance, P_1 = S_0
    M_t M_t' = I + L_t' J_t L_t,   J_t = C' diag(w_t / r) C
    F_t = U_t U_t',   U_t = L_t M_t^-T               filtered covariance (P_t^-1 + J_t)^-1
    m_t = p_t + F_t C' diag(w_t / r) (x_t - d_t - C p_t),    p_t = A m_{t-1} + b_t
    log p(x_t | x_<t) = - log det M_t - sum_n w_tn log(2 pi r_n) / 2
                        - [ sum_n w_tn (x_t - d_t - C m_t)_n^2 / r_n + |L_t^-1 (m_t - p_t)|^2 ] / 2

w_t is 1 for entries that are scored and 0 for the others (or the weight of scored entries where a
transform scores a random fraction of them). Covariances are never subtracted, and both squares are
positive, so that neither precise observations nor long trials spoil them. All is computed in double
precision, whatever the precision of the model.

Covariances do not depend on the observations. Trials of one pattern, those with the same scored
entries, share them, and if no entry is missing they are computed once. All results are
differentiable.

Sources: Kalman (1960); Bierman (1977), Factorization Methods for Discrete Sequential Estimation.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.distributions.gaussian import LOG_2PI, nan_where
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.linear_gaussian import LinearGaussian
from pyrodyn.models.parameters import local_parameters
from pyrodyn.models.state_space import StateSpaceModel


class Recursion(NamedTuple):
    """The forward recursion, in double precision.

    Attributes:
        system: the matrices.
        pattern: of every trial; trials of one pattern have the same scored entries.
        roots: U_t, per pattern.
        predicted: p_t.
        means: m_t.
        log_evidence: log p(x_t | x_<t).
    """

    system: LinearGaussian
    pattern: Int[Tensor, " trial"]
    roots: Float[Tensor, "pattern time dim dim"]
    predicted: Float[Tensor, "trial time dim"]
    means: Float[Tensor, "trial time dim"]
    log_evidence: Float[Tensor, "trial time"]

    def of_trials(self, per_pattern: Float[Tensor, "pattern ..."]) -> Float[Tensor, "trial ..."]:
        """What trials of one pattern share, for every trial; not copied if all are of one."""
        if len(per_pattern) == 1:
            return per_pattern.expand(len(self.pattern), *per_pattern.shape[1:])
        return per_pattern[self.pattern]


def kalman_recursion(
    system: LinearGaussian,
    x: Float[Tensor, "trial time neuron"],
    weight: Float[Tensor, "trial time neuron"],
    *,
    is_complete: bool | None = None,
) -> Recursion:
    """Filter observations.

    Args:
        system: the matrices.
        x: observations; not read where their weight is 0.
        weight: w of every entry.
        is_complete: whether w is the same for all trials; None if it is not known.
    """
    system, weight = system.double(), weight.double()
    A, b, initial_noise, noise, C, d, r = system
    patterns, pattern = _patterns(weight, is_complete)
    J = torch.einsum("ptn,nd,ne->ptde", patterns / r, C, C)
    scale = (patterns.sqrt() / r.sqrt())[pattern if len(patterns) > 1 else slice(1)]
    error = torch.where(weight > 0, x.double() - d, 0.0) * scale
    g = (error * scale) @ C
    before: Tensor = initial_noise.factor.expand(len(patterns), -1, -1)
    factors: list[Tensor] = []
    roots: list[Tensor] = []
    half_log_dets: list[Tensor] = []
    for t, J_t in enumerate(J.unbind(1)):
        if t:
            step = A @ roots[-1]
            before = cholesky(step @ step.mT + noise.matrix)
        root, half_log_det = conditioned(before, J_t)
        factors.append(before)
        roots.append(root)
        half_log_dets.append(half_log_det)
    predicted: list[Tensor] = []
    means: list[Tensor] = []
    shifts = b.expand(len(x), -1, -1).unbind(1)
    for t, (g_t, J_t, root) in enumerate(zip(g.unbind(1), J.unbind(1), roots, strict=True)):
        p = shifts[t] if t == 0 else shifts[t] + means[-1] @ A.mT
        innovation = g_t - by_pattern(J_t, p, pattern)
        predicted.append(p)
        means.append(p + by_pattern(root @ root.mT, innovation, pattern))
    p, m = torch.stack(predicted, 1), torch.stack(means, 1)
    L, half_log_det = torch.stack(factors, 1), torch.stack(half_log_dets, 1)
    # Solved for all trials of a shared factor at once.
    if len(L) == 1:
        moved = torch.linalg.solve_triangular(L[0], (m - p).permute(1, 2, 0), upper=False)
        squares = moved.square().sum(1).mT
    else:
        moved = torch.linalg.solve_triangular(L[pattern], (m - p)[..., None], upper=False)
        squares = moved.square().sum((-2, -1))
    squares = squares + torch.addcmul(error, scale, m @ C.mT, value=-1).square().sum(-1)
    constants = half_log_det + 0.5 * (patterns * (r.log() + LOG_2PI)).sum(-1)
    recursion = Recursion(system, pattern, torch.stack(roots, 1), p, m, squares)
    return recursion._replace(log_evidence=-0.5 * squares - recursion.of_trials(constants))


def conditioned(
    root: Float[Tensor, "*left dim dim"], J: Float[Tensor, "*left_or_none dim dim"]
) -> tuple[Float[Tensor, "*left dim dim"], Float[Tensor, "*left"]]:
    """A root of (P^-1 + J)^-1, P = root root', and log det(I + P J) / 2."""
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    M = cholesky(eye + root.mT @ J @ root)
    half_log_det = M.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.linalg.solve_triangular(M, root.mT, upper=False).mT, half_log_det


def cholesky(matrix: Float[Tensor, "*left dim dim"]) -> Float[Tensor, "*left dim dim"]:
    """The lower triangular root; NaN where the dynamics diverged and there is none, so that the
    checks of losses and evidence can report it.
    """
    root, failed = torch.linalg.cholesky_ex(matrix)
    return root + nan_where(failed)


def by_pattern(
    matrices: Float[Tensor, "pattern row dim"],
    vectors: Float[Tensor, "*left trial dim"],
    pattern: Int[Tensor, " trial"],
) -> Float[Tensor, "*left trial row"]:
    """Products of vectors with the matrix of their trial's pattern."""
    if len(matrices) == 1:
        return vectors @ matrices[0].mT
    return (matrices[pattern] @ vectors[..., None])[..., 0]


def _patterns(
    weight: Float[Tensor, "trial time neuron"], is_complete: bool | None
) -> tuple[Float[Tensor, "pattern time neuron"], Int[Tensor, " trial"]]:
    """The distinct weights, and the number of each trial's among them; on a GPU, which the host
    would have to wait for, each trial's own if they are not known to be the same.
    """
    if weight.is_cuda and not is_complete:
        return weight, torch.arange(len(weight), device=weight.device)
    if is_complete or (weight == weight[:1]).all():
        return weight[:1], torch.zeros(len(weight), dtype=torch.long, device=weight.device)
    distinct, pattern = torch.unique(weight.flatten(1), dim=0, return_inverse=True)
    return distinct.unflatten(1, weight.shape[1:]), pattern


def model_recursion(model: StateSpaceModel, batch: Batch) -> Recursion:
    """The forward recursion of a model on the scored entries of a batch.

    Raises:
        ValueError: for a model that is not linear and Gaussian, and a batch without observations.
    """
    if batch.x is None:
        raise ValueError("the batch holds no observations to filter")
    bins = slice(model.first_bin, None)
    with model.hoisting():
        system = model.linear_gaussian(model.known_inputs(batch))
    weight = batch.scored[:, bins].to(batch.x.dtype) * batch.scored_weight
    return kalman_recursion(system, batch.x[:, bins], weight, is_complete=batch.is_complete)


def exact_recursion(model: LatentDynamics | Fit[Any], batch: Batch) -> Recursion:
    """`model_recursion` for a user, with all checks.

    Raises:
        ValueError: for a model that is not linear and Gaussian, and a batch that does not fit it.
        ArithmeticError: where the evidence is not finite.
    """
    if isinstance(model, Fit):
        model = model.model
    if not isinstance(model, StateSpaceModel):
        raise ValueError(
            f"the Kalman filter needs a StateSpaceModel; {type(model).__name__} is none"
        )
    model.check_batch(batch)
    with local_parameters():
        found = model_recursion(model, batch)
    is_off = ~found.log_evidence.isfinite()
    if is_off.any():
        trial, t = is_off.nonzero()[0].tolist()
        raise ArithmeticError(
            f"the evidence of trial {int(batch.trial[trial])} is not finite at bin"
            f" {t + model.first_bin}: the dynamics diverge"
        )
    return found


class KalmanResult(NamedTuple):
    """The result of a Kalman filter over a batch, with the leading dims of a `FilterResult`.

    Attributes:
        means: E[z_t | x_{1:t}].
        covariances: Cov[z_t | x_{1:t}].
        log_evidence: log p(x_t | x_{<t}), in double precision; the sum over time is log p(x).
    """

    means: Float[Tensor, "time trial dim"]
    covariances: Float[Tensor, "time trial dim dim"]
    log_evidence: Float[Tensor, "time trial"]


def kalman_filter(model: StateSpaceModel | Fit[StateSpaceModel], batch: Batch) -> KalmanResult:
    """Filter all trials of a batch exactly.

    Gradients flow to the parameters of the model, unless it is called under ``torch.no_grad``.

    Args:
        model: a linear-Gaussian model (see `StateSpaceModel.linear_gaussian`), or its `Fit`.
        batch: its trials; entries that are not scored are missing.

    Raises:
        ValueError: for a model that is not linear and Gaussian, and a batch that does not fit it.
        ArithmeticError: where the evidence is not finite, naming trial and bin.
    """
    found = exact_recursion(model, batch)
    covariances = found.of_trials(found.roots @ found.roots.mT)
    return KalmanResult(
        found.means.transpose(0, 1).to(batch.seen),
        covariances.transpose(0, 1).to(batch.seen),
        found.log_evidence.mT,
    )
