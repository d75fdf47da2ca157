"""A report of what a fitted model misses, out of sample, and what to try next.

`check` draws from the posterior of trials that the fit has not seen, compares statistics of neural
data with their predictions, and collects calibration, evidence and the reliability of the method.
Printed, a `Report` is a table with sentences; `Report.save` writes one HTML file.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyrodyn.data.schema import Block, blocks, validate
from pyrodyn.infer.traces import Program
from pyrodyn.infer.training.fitted import Fit, model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior import statistics
from pyrodyn.posterior.calibration import coverage, covered
from pyrodyn.posterior.comparison import ELPDDataEvidence, elpd
from pyrodyn.posterior.ppc_view import Statistic, recorded_data
from pyrodyn.posterior.predictive_checks import (
    predictive_p_values,
    randomised_pit,
    summarise_p_values,
)
from pyrodyn.posterior.reliability import FEWEST_EFFECTIVE, LARGEST_K
from pyrodyn.posterior.report_page import page
from pyrodyn.posterior.samplers import BY_PARTICLES, require_use
from pyrodyn.posterior.source import source
from pyrodyn.posterior.tree import role_in_fit, to_datatree

NUM_ENTRIES = 40_000_000
"""Drawn observations held in memory, which decides on the number of draws and of trials."""

NUM_DRAWS = (100, 1000)
"""Fewest and most draws that are made unasked."""

NUM_PARTICLES = 500
"""Particles by default: fewer than those of a tree, since predictions are drawn, too."""

FALSE_DISCOVERIES = 0.02
"""False discovery rate at which a single value of a statistic is flagged."""

CHANCE = 1e-3
"""Probability below which so many values outside their intervals are no chance."""

LEVEL = 0.9
"""Probability of the predictive intervals that the report speaks of."""

PREDICTED = "predicted "
"""Prefix of the coverage of predictive intervals."""

OF_COUNTS: Mapping[str, Statistic] = {
    "mean rate": statistics.mean_rate,
    "fraction of empty bins": statistics.zero_fraction,
    "Fano factor": statistics.fano_factor,
    "dispersion given the rates": statistics.dispersion,
    "autocorrelation at lag 1": functools.partial(statistics.autocorrelation, num_lags=1),
    "population synchrony": statistics.population_synchrony,
}
OF_SIGNALS: Mapping[str, Statistic] = {
    "mean": statistics.mean_rate,
    "standard deviation": statistics.standard_deviation,
    "autocorrelation at lag 1": functools.partial(statistics.autocorrelation, num_lags=1),
    "population synchrony": statistics.population_synchrony,
}

ROLES = {
    "unseen": "Out of sample: the fit has not seen these trials.",
    "validated": "By these trials the fit chose its weights, so scores flatter the model a little;"
    " check trials that it has not seen.",
    "trained": "IN SAMPLE: the fit was trained on these trials. Scores flatter the model and"
    " p-values are conservative; check trials that it has not seen.",
    "unknown": "It is unknown whether the fit has seen these trials: its record lists none.",
}
"""What the relation of trials to the fit means, the best first."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found. Printing it gives a summary in sentences.

    Attributes:
        role: of the checked trials in the fit: ``"unseen"``, ``"validated"``, ``"trained"`` or
            ``"unknown"``.
        card: what was checked: model, data, method.
        statistics: rows of `summarise_p_values`, indexed by observed variable and statistic.
        p_values: those of `predictive_p_values`, by observed variable.
        calibration: coverage of predictive intervals, as ``"predicted {variable}"``, and of the
            truth where it is known, from `coverage`.
        pit: `randomised_pit` of each observed variable.
        evidence: of the trials, from `elpd`; None where the method has none.
        findings: what the model misses, in sentences.
        advice: what to try next, in sentences.
        tree: the posterior that was checked, from `to_datatree`.
    """

    role: str
    card: dict[str, str]
    statistics: pd.DataFrame
    p_values: dict[str, xr.Dataset]
    calibration: xr.Dataset
    pit: dict[str, xr.DataArray]
    evidence: ELPDDataEvidence | None
    findings: tuple[str, ...]
    advice: tuple[str, ...]
    tree: xr.DataTree

    @property
    def is_missed(self) -> pd.Series:
        """Whether the model misses each statistic: a value is flagged, or more values lie outside
        their intervals than chance explains.
        """
        return _is_missed(self.statistics)

    def __str__(self) -> str:
        width = max(map(len, self.card))
        card = [f"{name:<{width}}  {value}" for name, value in self.card.items()]
        table = self.statistics[["num", "observed", "predicted", "num_above", "num_below"]]
        return "\n".join(
            [
                ROLES[self.role],
                "",
                *card,
                "",
                table.to_string(float_format=lambda x: f"{x:.3g}"),
                "",
                *self.findings,
                "",
                "What to try next:",
                *(f"- {sentence}" for sentence in self.advice),
            ]
        )

    def save(self, path: str | Path) -> Path:
        """Write the report as one HTML file that needs no network.

        Args:
            path: of the file, whose folder is made; an existing file is replaced.

        Raises:
            ValueError: when it does not end in .html.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise ValueError(f"{path} must end in .html, the format of a report")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(self, ROLES[self.role]), encoding="utf-8")
        return path


def check(
    fitted: LatentDynamics | Fit[Any],
    recording: xr.Dataset,
    *,
    guide: Program | None = None,
    method: str | None = None,
    num_draws: int | None = None,
    num_particles: int | None = None,
    seed: int = 0,
) -> Report:
    """Check a fitted model on a recording, out of sample where the recording allows it.

    The trials that the fit has used least are checked: unseen ones; if there are none, those by
    which it chose its weights; otherwise those it was trained on. The report states
    which. Many trials are thinned to evenly spaced ones, so that memory suffices.

    Statistics of counts: mean rate, fraction of empty bins, Fano factor, dispersion given the
    rates, autocorrelation and population synchrony (`pyrodyn.posterior.statistics`). One is missed
    if a value is flagged at a false discovery rate of 2 %, or if more values lie outside the
    central 95 % of their predictions than chance explains (probability below 0.001 for independent
    values).

    Args:
        fitted: a fitted model, or the `Fit` that `fit` returned, which brings its guide.
        recording: trials of the neurons that the model was fitted to.
        guide: the guide to draw from, see `to_datatree`.
        method: where draws come from, see `to_datatree`. Where these give no evidence (those of the
            guide and of chains), it is estimated by importance weights of the guide.
        num_draws: draws per trial; by default as many as memory suggests, 100 to 1000.
        num_particles: draws that are weighted, particles of the filter, or trajectories in the
            pool, by which draws are made or the evidence is estimated; 500 by default.
        seed: seeds the draws.

    Raises:
        ValueError: for a recording that does not fit the model, fewer than 2 draws, and particles
            where neither draws nor evidence need any.
        ArithmeticError: for dynamics that diverge.
    """
    recording = validate(recording)
    model, _ = model_and_guide(fitted)
    model.check(recording)
    role, checked = least_seen(model, recording)
    num_candidates = checked.sizes["trial"]
    checked, num_draws = _within_memory(checked, num_draws)
    of = source(fitted, guide, method)
    is_by_particles = of.method in BY_PARTICLES
    if of.method in ("exact", "dropout"):
        require_use(of.method, num_particles=num_particles)
    num_particles = num_particles or NUM_PARTICLES
    options: dict[str, Any] = {"guide": guide, "seed": seed}
    with warnings.catch_warnings():
        # The warnings are part of the findings.
        warnings.filterwarnings("ignore", message="draws by method=")
        warnings.filterwarnings("ignore", message=".*were in the training set of the fit")
        tree = to_datatree(
            fitted,
            checked,
            method=method,
            num_draws=num_draws,
            num_particles=num_particles if is_by_particles else None,
            **options,
        )
        evidence, no_evidence = _evidence(fitted, checked, tree, num_particles, options)
    recorded = recorded_data(tree)
    p_values: dict[str, xr.Dataset] = {}
    pit: dict[str, xr.DataArray] = {}
    tables: dict[str, pd.DataFrame] = {}
    for block in blocks(recorded):
        statistics_of = OF_COUNTS if block.observed == "counts" else OF_SIGNALS
        p_values[block.x] = predictive_p_values(tree, statistics_of, block.x)
        tables[block.x] = summarise_p_values(p_values[block.x], FALSE_DISCOVERIES)
        pit[block.x] = randomised_pit(tree, variable=block.x, seed=seed)
    calibration = covered({f"{PREDICTED}{x}": values for x, values in pit.items()}, (LEVEL,))
    if {"rates", "signal_mean", "latents"} & set(tree["constant_data"].data_vars):
        calibration = calibration.merge(coverage(tree, (LEVEL,)))
    table = pd.concat(tables, names=["variable", "statistic"])
    is_missed = _is_missed(table)
    findings = [
        *_of_statistics(table, is_missed, {block.x: block for block in blocks(recorded)}),
        *_of_calibration(calibration),
        *_of_evidence(evidence, no_evidence, tree),
    ]
    if isinstance(fitted, Fit):
        findings += [f"The fit itself: {sentence}." for sentence in fitted.diagnostics]
    card = {
        "model": f"{of.attrs['model']}, {_sizes(model)}",
        "data": f"{checked.sizes['trial']} of {recording.sizes['trial']} trials"
        + (f" (thinned from {num_candidates})" if num_candidates > checked.sizes["trial"] else "")
        + f" x {recorded.sizes['time']} bins of {recording.attrs['bin_width']:g} s x "
        + " and ".join(f"{block.size} {block.unit}s" for block in blocks(recorded)),
        "fitted by": _objective(model),
        "posterior": f"{num_draws} draws by method={of.method!r}, guide {of.attrs['guide']}",
    }
    advice = tuple(_advice(table, is_missed, model, role, evidence, of.method))
    return Report(
        role, card, table, p_values, calibration, pit, evidence, tuple(findings), advice, tree
    )


def least_seen(model: LatentDynamics, recording: xr.Dataset) -> tuple[str, xr.Dataset]:
    """The trials that a fit has used least, and their role in it, a key of `ROLES`."""
    roles = role_in_fit(model, recording)
    if roles is None:
        return "unknown", recording
    role = next(role for role in ROLES if role in roles)
    return role, recording.isel(trial=[each == role for each in roles])


def _within_memory(recording: xr.Dataset, num_draws: int | None) -> tuple[xr.Dataset, int]:
    """Trials and a number of draws whose predictions fit in memory."""
    if num_draws is not None and num_draws < 2:
        raise ValueError(f"num_draws={num_draws} must be at least 2, so that draws can be compared")
    num_units = sum(block.size for block in blocks(recording))
    per_trial = recording.sizes["time"] * num_units
    fewest, most = NUM_DRAWS
    largest = max(2, NUM_ENTRIES // (per_trial * (num_draws or fewest)))
    if recording.sizes["trial"] > largest:
        chosen = np.linspace(0, recording.sizes["trial"] - 1, largest).round().astype(int)
        recording = recording.isel(trial=chosen)
    affordable = NUM_ENTRIES // (per_trial * recording.sizes["trial"])
    return recording, num_draws or int(np.clip(affordable, fewest, most))


def _evidence(
    fitted: LatentDynamics | Fit[Any],
    recording: xr.Dataset,
    tree: xr.DataTree,
    num_particles: int,
    options: dict[str, Any],
) -> tuple[ELPDDataEvidence | None, str]:
    """Log evidence per trial, or why there is none."""
    if "log_evidence" in tree["sample_stats"]:
        return elpd(tree), ""
    num_units = sum(block.size for block in blocks(recording))
    drawn = num_particles * recording.sizes["time"] * num_units
    batch_size = max(1, NUM_ENTRIES // drawn)
    try:
        weighted = to_datatree(
            fitted,
            recording,
            method="importance",
            num_draws=1,
            num_particles=num_particles,
            batch_size=batch_size,
            **options,
        )
    except ValueError as problem:
        return None, str(problem)
    return elpd(weighted), ""


def _is_missed(table: pd.DataFrame) -> pd.Series:
    return (table["num_flagged"] > 0) | (table["chance"] < CHANCE)


def _of_statistics(
    table: pd.DataFrame, is_missed: pd.Series, observed: Mapping[str, Block]
) -> Iterator[str]:
    for (variable, name), row in table.iterrows():
        if not is_missed[variable, name]:
            continue
        values = f"{row['observed']:.3g} observed, {row['predicted']:.3g} predicted"
        of = "" if len(observed) == 1 else f" of the {variable}"
        what = f"{name[0].upper()}{name[1:]}{of}"
        if row["num"] == 1:
            yield f"{what}: {values}."
            continue
        units = observed[variable].unit
        yield (
            f"{what}: above the central 95 % of predictions in {row['num_above']:.0f} and below in"
            f" {row['num_below']:.0f} of {row['num']:.0f} {units}s, where {0.025 * row['num']:.1f}"
            f" each are expected (median {values})."
        )
    kept = [name for (_, name), missed in is_missed.items() if not missed]
    if kept:
        yield f"As predicted: {', '.join(dict.fromkeys(kept))}."


def _of_calibration(calibration: xr.Dataset) -> Iterator[str]:
    for name in calibration:
        if str(name).endswith("_error"):
            continue
        found, error = float(calibration[name][0]), float(calibration[f"{name}_error"][0])
        tolerance = max(0.01, 4 * error)
        verdict = "as they should"
        if found < LEVEL - tolerance:
            verdict = "they are too narrow"
        elif str(name).startswith(PREDICTED):
            verdict = "not too narrow (latents inferred from the same data make for more)"
        elif found > LEVEL + tolerance:
            verdict = "they are too wide"
        what = f"the true {name}"
        if str(name).startswith(PREDICTED):
            what = f"the observations {str(name).removeprefix(PREDICTED)}"
        contained = f"{100 * found:.1f} ± {100 * error:.1f} %"
        yield f"{100 * LEVEL:g} % intervals contain {contained} of {what}: {verdict}."


def _of_evidence(
    evidence: ELPDDataEvidence | None, reason: str, tree: xr.DataTree
) -> Iterator[str]:
    if evidence is None:
        yield f"There is no estimate of the evidence: {reason}."
        return
    num = evidence.n_data_points
    yield (
        f"Log evidence: {evidence.elpd / num:.2f} nats per trial"
        f" (standard error over trials {evidence.se / num:.2f})."
    )
    if evidence.pareto_k is not None:
        heavy = int((evidence.pareto_k > LARGEST_K).sum())
        if heavy:
            yield (
                f"k-hat is above {LARGEST_K} in {heavy} of {num} trials: the importance weights are"
                " unreliable there and the evidence is likely too low."
            )
    stats = tree["sample_stats"].to_dataset()
    if "effective_sample_size" in stats:
        few = int((stats["effective_sample_size"] < FEWEST_EFFECTIVE).sum())
        if few:
            yield (
                f"Fewer than {FEWEST_EFFECTIVE} effective particles in {few} of {num} trials: the"
                " draws are mostly Monte Carlo noise there."
            )


def _advice(
    table: pd.DataFrame,
    is_missed: pd.Series,
    model: LatentDynamics,
    role: str,
    evidence: ELPDDataEvidence | None,
    method: str,
) -> Iterator[str]:
    above = {
        name
        for (_, name), row in table[is_missed].iterrows()
        if row["num_above"] > row["num_below"] or (row["num"] == 1 and row["median"] < 0.5)
    }
    missed = {name for (_, name), is_off in is_missed.items() if is_off}
    if role in ("trained", "unknown"):
        yield "Check trials that the fit has not seen: pyrodyn.data.split sets some aside."
    is_poisson = "Poisson" in [type(single).__name__ for single in model.observation.singles()]
    dispersion = "dispersion given the rates"
    if {"autocorrelation at lag 1", "population synchrony"} & above:
        # Overdispersed counts alone lower both.
        yield (
            "Rates miss shared or slow variation: a longer fit, more latent dimensions or less"
            " regularisation come before another observation model."
        )
    elif dispersion in above and is_poisson:
        yield (
            "Counts vary more around the rates than Poisson counts do: fit"
            ' observation="negative_binomial" and compare by elpd.'
        )
    elif dispersion in missed and is_poisson:
        yield "Counts vary less around the rates than Poisson counts do, as after refractoriness."
    if "Fano factor" in above and dispersion not in above:
        yield (
            "Rates miss variation between trials: more latent dimensions, inferred inputs (LFADS),"
            " process noise or a longer fit."
        )
    if {"mean rate", "mean", "standard deviation"} & missed:
        yield (
            "Levels differ from those of the training trials: look for drift over the session, and"
            " fit longer or to more trials."
        )
    if evidence is not None and evidence.warning:
        remedy = "more particles or method='pool'"
        yield f"Evidence by better weights: {remedy}, or the smoother for state-space models."
    if not missed:
        yield (
            "No statistic is missed beyond chance. Compare with other models by elpd, and test the"
            " widths of posteriors by calibrate: predictions of counts cannot show them."
        )
    else:
        yield (
            "See which neurons the missed statistics come from: predictive_p_values(report.tree)"
            " has one value per neuron, and plot_ppc_tstat draws them."
        )
        if method == "guide":
            yield "Test the widths of the guide's posteriors by pyrodyn.posterior.calibrate."


def _sizes(model: LatentDynamics) -> str:
    """The sizes that a user chose."""
    names = ("factor_dim", "generator_dim", "inferred_input_dim", "latent_dim", "num_units")
    sizes = [f"{name}={model.config[name]}" for name in names if name in model.config]
    kinds = " and ".join(type(single).__name__ for single in model.observation.singles())
    return ", ".join([*sizes, f"observations {kinds}"])


def _objective(model: LatentDynamics) -> str:
    objective = model.record.get("training", {}).get("objective")
    if objective is None:
        return "nothing: this model has not been fitted"
    options = ", ".join(f"{k}={v}" for k, v in objective.items() if k != "name")
    return f"{objective['name']}({options})"
