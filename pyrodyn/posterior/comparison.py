"""Comparison of models by the evidence of trials."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import xarray as xr
from arviz_stats import ELPDData

from pyrodyn.posterior.reliability import LARGEST_K


@dataclass(kw_only=True, repr=False)
class ELPDDataEvidence(ELPDData):
    """An `arviz_stats.ELPDData` of log evidence per trial.

    Attributes:
        monte_carlo_se: standard error of ``elpd`` from the Monte Carlo estimates of evidence alone.
        num_trained: trials on which the fit was trained, whose scores are in sample; None for a
            model that does not record its trials.
        num_validated: trials by which the fit chose its weights; None likewise.
        pareto_k: k-hat of each trial's importance weights; None for the smoother.
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
    to it. The importance-weighted draws, the filter and the pool estimate the evidence itself.

    Args:
        tree: from ``to_datatree(..., method="importance" | "smoother" | "pool")``, of trials that
            the fit has not seen.

    Returns:
        What `arviz_stats.compare` and `arviz_plots.plot_compare` take, in nats, with ``elpd_i`` per
        trial; ``se`` is the standard error over trials, and ``pareto_k`` that of the importance
        weights (None for the smoother). ``p`` is NaN: there is no effective number of parameters.

    Raises:
        ValueError: for a tree without ``log_evidence``.

    Warns:
        UserWarning: when the fit was trained on some of the trials.
    """
    stats = tree["sample_stats"].to_dataset() if "sample_stats" in tree.children else xr.Dataset()
    if "log_evidence" not in stats:
        raise ValueError(
            "this tree has no log_evidence: draw it by to_datatree(..., method='importance',"
            " 'smoother' or 'pool')"
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
        n_samples=int(tree.attrs.get("num_particles", stats.sizes["draw"])),
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
