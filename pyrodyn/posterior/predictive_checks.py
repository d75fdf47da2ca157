"""Posterior predictive p-values and a probability integral transform that is right for counts."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from pyrodyn.data.schema import Block, blocks, measured
from pyrodyn.posterior import statistics
from pyrodyn.posterior.groups import require_draws, require_groups
from pyrodyn.posterior.ppc_view import PREDICTIVE, Statistic, recorded_data, takes_rates
from pyrodyn.posterior.ranks import SAMPLE_DIMS, fractional_rank

OF_COUNTS: Mapping[str, Statistic] = {
    "mean_rate": statistics.mean_rate,
    "zero_fraction": statistics.zero_fraction,
    "fano_factor": statistics.fano_factor,
    "dispersion": statistics.dispersion,
}
"""Statistics that are looked at by default."""

TAIL = 0.025
"""Probability of either side outside the central 95 %."""


def predictive_p_values(
    tree: xr.DataTree,
    checks: Mapping[str, Statistic] | None = None,
    variable: str | None = None,
) -> xr.Dataset:
    """Posterior predictive p-values of statistics, value by value::

        p = P(T(x', theta) > T(x, theta) | x) + P(T(x', theta) = T(x, theta) | x) / 2

    with x' and theta drawn from the posterior. Near 0 the data's statistic lies above what the
    model predicts, near 1 below. A statistic with a parameter ``rates`` is a discrepancy: it is
    computed for data and prediction with the rates of the same draw.

    These p-values are conservative (concentrated around 0.5 under the right model) where the
    posterior has adapted to the same data: look at trials that the fit has not seen.

    Source: Gelman, Meng & Stern, Statistica Sinica 6:733, 1996.

    Args:
        tree: from `to_datatree`.
        checks: statistics by name, such as those of `pyrodyn.posterior.statistics`; by default
            mean rate, zero fraction, Fano factor and dispersion given the rates.
        variable: of a tree of counts and a signal, ``"counts"`` or ``"signal"``.

    Returns:
        Per statistic its p-values along the dims that it leaves, as ``{name}_error`` their Monte
        Carlo standard errors, and as ``{name}_observed`` and ``{name}_predicted`` its value for the
        data and the mean over draws of its predicted value; NaN where the statistic is undefined.
        The attribute ``num_draws`` is the number of draws behind each.

    Raises:
        ValueError: for a tree without predictive draws, or with a single one.
    """
    checks = OF_COUNTS if checks is None else checks
    (observed, predicted), rates = _observed_and_predicted(tree, variable=variable), None
    require_draws(predicted)
    found = {}
    for name, statistic in checks.items():
        if takes_rates(statistic):
            if rates is None:
                block = _block(recorded_data(tree), variable)
                rates = tree["posterior"][block.rates].load()
            of_data = statistic(observed, rates=rates)
            of_draws = statistic(predicted, rates=rates)
        else:
            of_data, of_draws = statistic(observed), statistic(predicted)
        exceeds = (of_draws > of_data) + 0.5 * (of_draws == of_data)
        is_defined = of_data.notnull() & of_draws.notnull()
        p = exceeds.where(is_defined).mean(SAMPLE_DIMS)
        num = is_defined.sum(SAMPLE_DIMS)
        # One success and one failure more, so that p = 0 does not look exact.
        padded = (p * num + 1) / (num + 2)
        found[name] = p
        found[f"{name}_observed"] = of_data.mean([d for d in SAMPLE_DIMS if d in of_data.dims])
        found[f"{name}_predicted"] = of_draws.mean(SAMPLE_DIMS)
        found[f"{name}_error"] = (padded * (1 - padded) / num.where(num > 0)) ** 0.5
    num_draws = predicted.sizes["chain"] * predicted.sizes["draw"]
    return xr.Dataset(found, attrs={"num_draws": num_draws})


def summarise_p_values(p_values: xr.Dataset, level: float = 0.05) -> pd.DataFrame:
    """A table of p-values with one row per statistic, corrected for the number of values.

    Args:
        p_values: from `predictive_p_values`.
        level: false discovery rate at which values count as flagged (Benjamini & Hochberg, Journal
            of the Royal Statistical Society B 57:289, 1995), two-sided.

    Returns:
        Columns ``num`` (defined values), ``median`` (of p), ``num_flagged`` and ``can_flag``,
        whether the number of draws suffices to flag a single value; ``num_above`` and
        ``num_below``, how many data values lie above and below the central 95 % of predictions,
        and ``chance``, the probability that so many or more lie outside if the model is right and
        values are independent; medians ``observed`` and ``predicted`` of the statistic.
    """
    num_draws = int(p_values.attrs["num_draws"])
    rows = {}
    for name in p_values.data_vars:
        if str(name).endswith(("_error", "_observed", "_predicted")):
            continue
        p = p_values[name].values.ravel()
        p = p[np.isfinite(p)]
        # As ranks among draws of data that are one more draw.
        fraction = (num_draws * p + 0.5) / (num_draws + 1)
        num_above, num_below = (int(tail.sum()) for tail in (fraction < TAIL, fraction > 1 - TAIL))
        # A p-value from draws is never below one over their number.
        two_sided = np.clip(2 * np.minimum(p, 1 - p), 1 / (num_draws + 1), 1)
        thresholds = level * np.arange(1, len(p) + 1) / max(len(p), 1)
        below = np.flatnonzero(np.sort(two_sided) <= thresholds)
        rows[str(name)] = {
            "num": len(p),
            "median": float(np.median(p)) if len(p) else np.nan,
            "num_flagged": int(below[-1]) + 1 if len(below) else 0,
            "can_flag": bool(len(p) and 1 / (num_draws + 1) <= thresholds[0]),
            "num_above": num_above,
            "num_below": num_below,
            "chance": float(stats.binom.sf(num_above + num_below - 1, len(p), 2 * TAIL)),
            "observed": float(p_values[f"{name}_observed"].median()),
            "predicted": float(p_values[f"{name}_predicted"].median()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def randomised_pit(
    tree: xr.DataTree,
    group: Literal["posterior_predictive", "prior_predictive"] = "posterior_predictive",
    seed: int = 0,
    variable: str | None = None,
) -> xr.DataArray:
    """Randomised probability integral transform of each observation: its `fractional_rank` among
    predictions.

    Uniform on (0, 1) whenever the data are one more draw of the predictive distribution, for
    counts as for real values. ArviZ's `plot_ppc_pit` takes predictions for continuous and rejects
    counts even where they are exactly right.

    Source: Czado, Gneiting & Held, Biometrics 65:1254, 2009; ranks with ties broken at random.

    Args:
        tree: from `to_datatree`.
        group: the predictions.
        seed: seeds u.
        variable: of a tree of counts and a signal, ``"counts"`` or ``"signal"``.

    Returns:
        Values with the dims of the observations, NaN where nothing was measured.
    """
    observed, predicted = _observed_and_predicted(tree, group, variable)
    rank = fractional_rank(observed, predicted, np.random.default_rng(seed))
    return rank.where(observed.notnull())


def _observed_and_predicted(
    tree: xr.DataTree, group: str = PREDICTIVE[0], variable: str | None = None
) -> tuple[xr.DataArray, xr.DataArray]:
    """Data and predictions, NaN where nothing was measured, with their conditions."""
    require_groups(tree, group, "observed_data", "constant_data")
    recorded = recorded_data(tree)
    block = _block(recorded, variable)
    where = measured(recorded, block)
    observed = tree["observed_data"][block.x].load().where(where)
    predicted = tree[group][block.x].load().where(where)
    if "condition" in recorded:
        condition = {"condition": ("trial", recorded["condition"].values)}
        observed, predicted = observed.assign_coords(condition), predicted.assign_coords(condition)
    return observed, predicted


def _block(recorded: xr.Dataset, variable: str | None) -> Block:
    """The observed variable of that name, or the only one."""
    observed = {block.x: block for block in blocks(recorded)}
    if variable is None and len(observed) == 1:
        return next(iter(observed.values()))
    if variable not in observed:
        raise ValueError(
            f"variable={variable!r} must be one of {', '.join(observed)}, the observations of this"
            " tree"
        )
    return observed[variable]
