"""Comparison of models by the evidence of trials."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from arviz_stats import ELPDData

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import validate
from pyrodyn.infer.training.fitted import Fit, model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.groups import require_groups
from pyrodyn.posterior.reliability import LARGEST_K
from pyrodyn.posterior.source import source
from pyrodyn.posterior.tree import role_in_fit, to_datatree

PER_TRIAL = ("log_evidence", "log_evidence_error", "pareto_k")
"""What the comparison needs of each trial."""


@dataclass(kw_only=True, repr=False)
class ELPDDataEvidence(ELPDData):
    """An `arviz_stats.ELPDData` of log evidence per trial.

    Attributes:
        monte_carlo_se: standard error of ``elpd`` from the Monte Carlo estimates of evidence alone.
        num_trained: trials on which the fit was trained, whose scores are in sample; None for a
            model that does not record its trials.
        num_validated: trials by which the fit chose its weights; None likewise.
        pareto_k: k-hat of each trial's importance weights; None for methods without any.
    """

    _kind: ClassVar[str | None] = "evidence"

    monte_carlo_se: float
    num_trained: int | None
    num_validated: int | None
    pareto_k: xr.DataArray | None = None  # type: ignore[assignment]  # as ArviZ itself leaves it


def elpd(tree: xr.DataTree) -> ELPDDataEvidence:
    """Expected log predictive density of new trials: the log evidence log p(x) of each trial.

    With fixed parameters, leaving a trial out takes its posterior back to the prior, so what
    PSIS-LOO by trial estimates is the evidence, and it does so from the draws that are least suited
    to it. The importance-weighted draws, the filter and the pool estimate the evidence itself, and
    for linear-Gaussian models it is known exactly.

    Args:
        tree: from ``to_datatree(..., method="importance" | "smoother" | "pool" | "exact")``, of
            trials that the fit has not seen.

    Returns:
        What `arviz_stats.compare` and `arviz_plots.plot_compare` take, in nats, with ``elpd_i`` per
        trial; ``se`` is the standard error over trials, and ``pareto_k`` that of the importance
        weights (None for other methods). ``p`` is NaN: there is no effective number of parameters.

    Raises:
        ValueError: for a tree without ``log_evidence``.

    Warns:
        UserWarning: when the fit was trained on some of the trials.
    """
    require_groups(tree)
    stats = tree["sample_stats"].to_dataset() if "sample_stats" in tree.children else xr.Dataset()
    if "log_evidence" not in stats:
        raise ValueError(
            "this tree has no log_evidence: draw it by to_datatree(..., method='importance',"
            " 'smoother', 'pool' or 'exact')"
        )
    per_trial = stats["log_evidence"].load()
    num_trials = per_trial.size
    num_trained = num_validated = None
    constant = tree["constant_data"].to_dataset()
    if "role_in_fit" in constant:
        role = constant["role_in_fit"].values.tolist()
        num_trained, num_validated = role.count("trained"), role.count("validated")
        if num_trained:
            warnings.warn(
                f"{num_trained} of {num_trials} trials were in the training set of the fit: their"
                " log evidence is in sample and flatters the model",
                stacklevel=2,
            )
    pareto_k = stats["pareto_k"].load() if "pareto_k" in stats else None
    return ELPDDataEvidence(
        elpd=float(per_trial.sum()),
        se=float(np.sqrt(num_trials * per_trial.var())),
        p=np.nan,
        n_samples=int(tree.attrs.get("num_particles", stats.sizes.get("draw", 0))),
        n_data_points=num_trials,
        scale="log",
        warning=pareto_k is not None and bool((pareto_k > LARGEST_K).any()),
        good_k=LARGEST_K,
        elpd_i=per_trial,
        pareto_k=pareto_k,
        monte_carlo_se=float(np.sqrt((stats["log_evidence_error"] ** 2).sum())),
        num_trained=num_trained,
        num_validated=num_validated,
    )


def kfold(
    fit: Callable[[xr.Dataset], LatentDynamics | Fit[Any]],
    recording: xr.Dataset,
    *,
    num_folds: int = 5,
    method: str | None = None,
    num_particles: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> ELPDDataEvidence:
    """K-fold cross-validation over trials: the log evidence of each trial under a model that was
    fitted without it.

    Args:
        fit: makes and fits a model to the trials that it is given, such as ``lambda train:
            pyrodyn.fit(LFADS.for_recording(train), *split(train, (0.8, 0.2)))``.
        recording: all trials.
        num_folds: fits; each leaves out as many trials as any other, give or take one.
        method: estimates the evidence: ``"importance"``, ``"smoother"``, ``"pool"`` or
            ``"exact"``. None takes the smoother for models fitted by `VSMC`, `SmoothedScore` or
            `GTF`, ``"exact"`` for those fitted by `Kalman`, and otherwise importance weights of the
            guide.
        num_particles: draws that are weighted, particles of the filter, or trajectories in the
            pool; 1000 by default.
        batch_size: trials at once.
        seed: divides the trials into folds and seeds the estimates; compare models by the same.

    Returns:
        As from `elpd`, in the order of the recording; ``elpd_i`` has the coordinate ``fold``.

    Raises:
        ValueError: for fewer than two folds, more folds than trials, ``method="guide"``, which
            gives no evidence, and a fit that was trained on a trial that it was to leave out.

    Warns:
        UserWarning: when importance weights or the filter are unreliable.
    """
    recording = validate(recording)
    num_trials = recording.sizes["trial"]
    check_integer(2, num_folds=num_folds)
    if num_folds > num_trials:
        raise ValueError(f"num_folds={num_folds} exceeds the {num_trials} trials of the recording")
    if method in ("guide", "mcmc"):
        raise ValueError(
            f"method={method!r} gives no evidence; take importance, smoother, pool or exact"
        )
    order = np.random.default_rng(seed).permutation(num_trials)
    fold = np.empty(num_trials, int)
    fold[order] = np.arange(num_trials) % num_folds
    stats: list[xr.Dataset] = []
    roles: list[str] = []
    for number in range(num_folds):
        fitted, left_out = fit(recording.isel(trial=fold != number)), fold == number
        if not isinstance(fitted, Fit | LatentDynamics):
            raise ValueError(
                f"fit returned a {type(fitted).__name__}; it must return the Fit of pyrodyn.fit, or"
                " a model"
            )
        role = role_in_fit(model_and_guide(fitted)[0], recording.isel(trial=left_out)) or []
        num_leaked = len(role) - role.count("unseen")
        if num_leaked:
            raise ValueError(
                f"the fit of fold {number} has used {num_leaked} of the {len(role)} trials that it"
                " was to leave out: fit only the recording that is passed to the function"
            )
        roles += role
        how = method
        if how is None:
            chosen = source(fitted, None, None).method
            how = "importance" if chosen == "guide" else chosen
        tree = to_datatree(
            fitted,
            recording.isel(trial=left_out),
            method=how,
            num_draws=1,
            num_particles=num_particles,
            batch_size=batch_size,
            seed=seed + number,
        )
        reported = tree["sample_stats"].to_dataset()
        stats.append(reported[[name for name in PER_TRIAL if name in reported]])
    back = np.argsort(np.concatenate([np.flatnonzero(fold == n) for n in range(num_folds)]))
    groups = {
        "/": xr.Dataset(attrs={k: v for k, v in tree.attrs.items() if k == "num_particles"}),
        "sample_stats": xr.concat(stats, dim="trial").isel(trial=back),
        "constant_data": xr.Dataset({"role_in_fit": ("trial", roles)} if roles else {}),
    }
    found = elpd(xr.DataTree.from_dict(groups))
    found.elpd_i = found.elpd_i.assign_coords(fold=("trial", fold))
    return found
