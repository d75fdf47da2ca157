"""Posteriors as ArviZ trees, and checks of them.

======================  ============================================================================
`to_datatree`           draws for every trial as a `DataTree`; the groups: `pyrodyn.posterior.tree`
`check`                 a report of what a model misses, in the terminal or as one HTML page
`predict`               posterior means and standard deviations alone
`for_ppc`               a view of a tree for ArviZ's predictive checks
`statistics`            statistics of neural data, for such checks
`predictive_p_values`   posterior predictive p-values, tabulated by `summarise_p_values`
`randomised_pit`        calibration of predicted counts
`one_step_predictions`  each bin against its prediction from the bins before
`elpd`                  log evidence per trial, for `arviz_stats.compare`
`kfold`                 the same of trials that each fit leaves out
`calibrate`             simulation-based calibration, tabulated by `summarise_calibration`
`coverage`              how often central intervals contain the truth, where it is known
======================  ============================================================================

For example::

    tree = to_datatree(fitted, new_trials)
    summarise_p_values(predictive_p_values(tree))
"""

from pyrodyn.posterior import statistics
from pyrodyn.posterior.calibration import calibrate, coverage, summarise_calibration
from pyrodyn.posterior.comparison import elpd, kfold
from pyrodyn.posterior.one_step import one_step_predictions
from pyrodyn.posterior.ppc_view import for_ppc
from pyrodyn.posterior.predict import predict
from pyrodyn.posterior.predictive_checks import (
    predictive_p_values,
    randomised_pit,
    summarise_p_values,
)
from pyrodyn.posterior.report import check
from pyrodyn.posterior.tree import to_datatree

__all__ = [
    "calibrate",
    "check",
    "coverage",
    "elpd",
    "for_ppc",
    "kfold",
    "one_step_predictions",
    "predict",
    "predictive_p_values",
    "randomised_pit",
    "statistics",
    "summarise_calibration",
    "summarise_p_values",
    "to_datatree",
]
