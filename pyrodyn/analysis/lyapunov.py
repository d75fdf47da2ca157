"""Lyapunov spectra: growth rates of small perturbations along trajectories.

Tangent vectors V at the states z_t are propagated over each bin and orthonormalised::

    z_{t+1} = step(z_t, i_t)
    V_{t+1} R_{t+1} = (d step / d z)(z_t, i_t) V_t          QR decomposition
    lambda_k = lim (1 / T) sum_t log |R_t|_kk               nats per bin, largest first

A positive lambda_1 means chaos; a flow that does not converge to a fixed point has one lambda = 0;
the sum of all is the mean logarithmic growth of volumes. If lambda_1 + ... + lambda_j >= 0 and the
next sum is below 0, the attractor has the Kaplan-Yorke dimension
j - (lambda_1 + ... + lambda_j) / lambda_{j+1}.

Sources: Benettin, Galgani, Giorgilli & Strelcyn (1980, Meccanica 15); Kaplan & Yorke (1979, Lecture
Notes in Mathematics 730). No Jacobian is formed: one forward derivative per bin propagates all
tangent vectors of all trajectories at once.
"""

from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from pyrodyn.analysis.dynamics import constant_inputs, dynamics_of, states_for
from pyrodyn.data.arguments import check_integer
from pyrodyn.models.dynamics import Dynamics, jvp


@torch.no_grad()
def lyapunov_spectrum(
    model_or_dynamics: object,
    start: ArrayLike | Tensor,
    num_bins: int,
    *,
    num_exponents: int | None = None,
    inputs: ArrayLike | Tensor | None = None,
    burn_in: int = 100,
) -> xr.Dataset:
    """Lyapunov exponents along the trajectories from given states.

    Args:
        model_or_dynamics: a model of the zoo, or dynamics such as those of `known_dynamics`.
        start: initial states, ``(state,)`` or ``(..., state)``; each starts a trial.
        num_bins: bins over which growth is counted.
        num_exponents: how many of the largest exponents; all by default.
        inputs: constant, ``(input,)``, or per bin, ``(trial, burn_in + num_bins, input)``; 0 by
            default.
        burn_in: number of bins before those, in which the states approach the attractor and the
            tangent vectors the Lyapunov vectors.

    Returns:
        Exponents in descending order, averaged over trials:

        - ``exponents_per_bin (exponent)`` and ``exponents_per_second (exponent)``, the latter by
          the dynamics' ``bin_width``, and their ``standard_error_per_bin`` and
          ``standard_error_per_second`` over trials, NaN for a single one;
        - ``by_trial (trial, exponent)``, per second;
        - ``running (time, exponent)``, per second: the estimate from the bins up to ``time``, in
          seconds after the burn-in;
        - ``kaplan_yorke``, the dimension; NaN if the requested exponents do not determine it, and
          the dimension of the state if no partial sum of all exponents is negative.

    Raises:
        ValueError: for starts, inputs, lengths or a number of exponents that do not fit.
        ArithmeticError: for a trajectory that does not stay finite, naming its trial and bin.
    """
    dynamics = dynamics_of(model_or_dynamics)
    state = states_for(dynamics.state_dim, start, "start")
    num_trials, dim = state.shape
    count = dim if num_exponents is None else num_exponents
    check_integer(1, num_bins=num_bins, num_exponents=count)
    check_integer(0, burn_in=burn_in)
    if count > dim:
        raise ValueError(
            f"num_exponents={count}; these dynamics have {dim} exponents, choose 1 to {dim}"
        )
    total = burn_in + num_bins
    driven = _driven(dynamics, inputs, num_trials, total)
    # Random directions: a coordinate axis may be invariant, and would only see its own exponent.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(num_trials, dim, count, generator=generator, dtype=state.dtype)
    basis = torch.linalg.qr(drawn)[0]
    growth = state.new_empty(num_bins, num_trials, count)
    for t in range(total):
        i = driven[:, t, None].expand(-1, count, -1)
        # Copies, since forward derivatives do not accept tensors whose memory overlaps.
        copies = state[:, None].repeat(1, count, 1)
        moved, tangent = jvp(partial(_step, dynamics, i), copies, basis.mT)
        state = moved[:, 0]
        _check_finite(state, tangent, t)
        basis, triangle = torch.linalg.qr(tangent.mT)
        if t >= burn_in:
            growth[t - burn_in] = triangle.diagonal(dim1=-2, dim2=-1).abs().log()
    return _described(growth, dynamics)


def kaplan_yorke(exponents: ArrayLike, state_dim: int) -> float:
    """The Kaplan-Yorke dimension of an attractor.

    Args:
        exponents: the largest Lyapunov exponents, in any unit.
        state_dim: number of all exponents.

    Returns:
        The dimension; ``state_dim`` if the sum of all is not negative, NaN if too few exponents are
        given or one is NaN. It is discontinuous where the largest exponent is 0: for a limit cycle
        it is 1 or 0, depending on the sign of the estimate of that exponent.
    """
    ordered = np.sort(np.asarray(exponents, float))[::-1]
    if np.isnan(ordered).any():
        return float("nan")
    sums = np.cumsum(ordered)
    negative = np.flatnonzero(sums < 0)
    if not len(negative):
        return float(state_dim) if len(ordered) == state_dim else float("nan")
    first = int(negative[0])
    before = sums[first - 1] if first else 0.0
    return first + float(before / abs(ordered[first]))


def _step(dynamics: Dynamics, inputs: Tensor, state: Tensor) -> Tensor:
    return dynamics.step(state, inputs)


def _driven(
    dynamics: Dynamics, inputs: ArrayLike | Tensor | None, num_trials: int, total: int
) -> Float[Tensor, "trial time input"]:
    """Inputs of every trial and bin."""
    wanted = (num_trials, total, dynamics.input_dim)
    given = inputs if inputs is None or isinstance(inputs, Tensor) else np.asarray(inputs, float)
    if given is None or given.ndim != 3:
        return constant_inputs(dynamics, given).expand(wanted)
    driven = torch.as_tensor(given).detach().cpu().double()
    if tuple(driven.shape) != wanted or not driven.isfinite().all():
        raise ValueError(
            f"inputs must be finite and of shape {wanted}, burn-in included, or"
            f" ({dynamics.input_dim},) if constant; not {tuple(driven.shape)}"
        )
    return driven


def _check_finite(
    state: Float[Tensor, "trial state"], tangent: Float[Tensor, "trial exponent state"], t: int
) -> None:
    """Raise an error at the first bin whose state, or growth from the bin before, is not finite."""
    # A single sum checks every entry; only if it is not finite are entries checked one by one.
    if torch.isfinite(state.sum() + tangent.sum()):
        return
    is_fine = state.isfinite().all(-1) & tangent.isfinite().all((-2, -1))
    if not is_fine.all():
        trial = int((~is_fine).nonzero()[0])
        raise ArithmeticError(
            f"the trajectory of trial {trial} is not finite after bin {t} and has no Lyapunov"
            " exponents: start it inside the basin of an attractor"
        )


def _described(growth: Float[Tensor, "time trial exponent"], dynamics: Dynamics) -> xr.Dataset:
    """The dataset of `lyapunov_spectrum`."""
    num_bins, num_trials, _ = growth.shape
    by_trial = growth.mean(0)
    order = by_trial.mean(0).argsort(descending=True, stable=True)
    growth, by_trial = growth[..., order], by_trial[:, order]
    exponents = by_trial.mean(0)
    error = torch.full_like(exponents, torch.nan)
    if num_trials > 1:
        error = by_trial.std(0) / num_trials**0.5
    count = torch.arange(1, num_bins + 1, dtype=growth.dtype)
    running = growth.mean(1).cumsum(0) / count[:, None]
    width = dynamics.bin_width
    return xr.Dataset(
        {
            "exponents_per_bin": ("exponent", exponents.numpy()),
            "standard_error_per_bin": ("exponent", error.numpy()),
            "exponents_per_second": ("exponent", (exponents / width).numpy()),
            "standard_error_per_second": ("exponent", (error / width).numpy()),
            "by_trial": (("trial", "exponent"), (by_trial / width).numpy()),
            "running": (("time", "exponent"), (running / width).numpy()),
            "kaplan_yorke": kaplan_yorke(exponents.numpy(), dynamics.state_dim),
        },
        coords={"time": (count * width).numpy()},
        attrs={"bin_width": width, "num_bins": num_bins},
    )
