"""Figures of a report, one panel each, so that a page can lay them out for any width."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyrodyn.data.schema import Block, blocks, measured
from pyrodyn.posterior import statistics
from pyrodyn.posterior.calibration import LATENTS
from pyrodyn.posterior.comparison import ELPDDataEvidence
from pyrodyn.posterior.ppc_view import recorded_data
from pyrodyn.posterior.predictive_checks import TAIL
from pyrodyn.posterior.ranks import SAMPLE_DIMS
from pyrodyn.posterior.reliability import LARGEST_K

SIZE = (4.2, 2.9)
"""Inches of a panel."""

NUM_UNITS, NUM_CONDITIONS, NUM_TRIALS = 4, 3, 2
"""Neurons, conditions and single trials that are shown."""


class Panel(NamedTuple):
    """A figure and a sentence that describes it.

    Attributes:
        figure: of one panel.
        caption: what it shows.
    """

    figure: Figure
    caption: str


def statistic_panels(p_values: xr.Dataset) -> Iterator[Panel]:
    """Observed against predicted values of each statistic that has several."""
    num_draws = p_values.attrs["num_draws"]
    for name in [n for n in p_values if f"{n}_observed" in p_values]:
        observed, predicted = (
            p_values[f"{name}_{what}"].values.ravel() for what in ("observed", "predicted")
        )
        if np.isfinite(observed).sum() < 2:
            continue
        rank = (num_draws * p_values[name].values.ravel() + 0.5) / (num_draws + 1)
        outside = (rank < TAIL) | (rank > 1 - TAIL)
        figure, axis = _panel(f"{name}: predicted", "observed")
        for where, colour, label in (
            (~outside, "C0", "inside 95 % of predictions"),
            (outside, "C3", "outside"),
        ):
            axis.scatter(predicted[where], observed[where], s=14, color=colour, label=label)
        ends = [np.nanmin([observed, predicted]), np.nanmax([observed, predicted])]
        axis.plot(ends, ends, color="0.5", lw=0.8, zorder=0)
        axis.legend(frameon=False, fontsize=8)
        yield Panel(figure, f"{name}, one point per neuron; the line marks equality")


def psth_panels(tree: xr.DataTree) -> Iterator[Panel]:
    """PSTHs of the most modulated neurons by condition, with the central 90 % of predictions."""
    recorded = recorded_data(tree)
    for block in blocks(recorded):
        scale, unit = _scale(tree, block)
        for position, label in _most_modulated(tree, block):
            observed, drawn = _masked(tree, recorded, block, {block.unit: position})
            of_data, of_draws = statistics.psth(observed), statistics.psth(drawn)
            figure, axis = _panel("time (s)", unit)
            labels = of_data["condition"].values if "condition" in of_data.dims else [None]
            for number, condition in enumerate(labels[:NUM_CONDITIONS]):
                of = {} if condition is None else {"condition": condition}
                colour = f"C{number}"
                band = of_draws.sel(of).quantile((0.05, 0.95), SAMPLE_DIMS).values * scale
                mean = of_data.sel(of).values[..., 0] * scale
                time = recorded["time"].values
                axis.fill_between(time, band[0, :, 0], band[1, :, 0], color=colour, alpha=0.3, lw=0)
                axis.plot(time, mean, color=colour, lw=1, label=condition)
            if labels[0] is not None:
                axis.legend(frameon=False, fontsize=8, title="condition", title_fontsize=8)
            axis.set_title(f"{block.unit} {label}", fontsize=9)
            yield Panel(figure, "PSTH (line) and the central 90 % of its predictions (band)")


def trial_panels(tree: xr.DataTree) -> Iterator[Panel]:
    """Single trials of the most modulated neuron with the rates and predictions of draws."""
    recorded = recorded_data(tree)
    for block in blocks(recorded):
        scale, unit = _scale(tree, block)
        ((position, label), *_) = _most_modulated(tree, block)
        time = recorded["time"].values
        num_trials = recorded.sizes["trial"]
        for trial in np.linspace(0, num_trials - 1, min(NUM_TRIALS, num_trials)).astype(int):
            of = {block.unit: [position], "trial": [trial]}
            observed, drawn = (each.isel(trial=0) for each in _masked(tree, recorded, block, of))
            figure, axis = _panel("time (s)", f"{unit}, single trial")
            band = drawn.quantile((0.05, 0.95), SAMPLE_DIMS).values[..., 0] * scale
            axis.fill_between(time, band[0], band[1], color="C1", alpha=0.25, lw=0, step="mid")
            rates = tree["posterior"].to_dataset()[block.rates].isel(of)
            few = rates.stack(sample=SAMPLE_DIMS).isel({"trial": 0, block.unit: 0}).values[:, :20]
            axis.plot(time, few * scale, color="C0", lw=0.5, alpha=0.6)
            axis.step(time, observed.values[..., 0] * scale, where="mid", color="0.5", lw=0.9)
            name = recorded["trial"].values[trial]
            axis.set_title(f"{block.unit} {label}, trial {name}", fontsize=9)
            caption = "one trial (grey), 20 drawn rates (blue) and 90 % of predictions (orange)"
            yield Panel(figure, caption)


def calibration_panels(pit: dict[str, xr.DataArray]) -> Iterator[Panel]:
    """Histogram of PIT values and coverage of central predictive intervals at all levels."""
    for name, values in pit.items():
        flat = values.values[np.isfinite(values.values)]
        figure, axis = _panel("randomised PIT", "density")
        axis.hist(flat, bins=20, range=(0, 1), density=True, color="C0", alpha=0.7)
        axis.axhline(1, color="0.5", lw=0.8)
        yield Panel(figure, f"PIT of {name}: flat at 1 if predictions are calibrated")
        figure, axis = _panel("level of central interval", "coverage minus level")
        levels = np.linspace(0.05, 0.95, 19)
        coverage = [(abs(flat - 0.5) <= level / 2).mean() - level for level in levels]
        axis.plot(levels, coverage, color="C0")
        axis.axhline(0, color="0.5", lw=0.8)
        reach = max(0.05, 1.1 * float(np.abs(coverage).max()))
        axis.set_ylim(-reach, reach)
        yield Panel(figure, f"predictive intervals of {name}: below 0 they are too narrow")


def evidence_panels(evidence: ELPDDataEvidence) -> Iterator[Panel]:
    """Log evidence and k-hat of each trial."""
    figure, axis = _panel("trial (sorted)", "log evidence (nats)")
    axis.plot(np.sort(evidence.elpd_i.values), ".", color="C0")
    yield Panel(figure, "log evidence of each trial")
    if evidence.pareto_k is not None:
        figure, axis = _panel("trial (sorted)", "k-hat")
        k = np.sort(evidence.pareto_k.values)
        axis.plot(k, ".", color="C0")
        axis.axhline(LARGEST_K, color="C3", lw=0.8)
        yield Panel(figure, f"k-hat of importance weights: unreliable above {LARGEST_K}")


def latent_panels(tree: xr.DataTree) -> Iterator[Panel]:
    """The first two principal components of posterior mean latents, by condition."""
    posterior = tree["posterior"].to_dataset()
    name = next((n for n in LATENTS if n in posterior), None)
    if name is None or posterior[name].shape[-1] < 2:
        return
    means = posterior[name].mean(SAMPLE_DIMS).transpose("trial", "time", ...).values
    centred = means - means.mean((0, 1))
    _, _, components = np.linalg.svd(centred.reshape(-1, means.shape[-1]), full_matrices=False)
    plane = centred @ components[:2].T
    constant = tree["constant_data"].to_dataset()
    condition = constant["condition"].values if "condition" in constant else np.zeros(len(plane))
    figure, axis = _panel("first principal component", "second")
    for number, label in enumerate(np.unique(condition)):
        colour = f"C{number % 10}"
        for path in plane[condition == label][:5]:
            axis.plot(*path.T, color=colour, lw=0.4, alpha=0.5)
        axis.plot(*plane[condition == label].mean(0).T, color=colour, lw=1.6)
    yield Panel(figure, f"posterior mean {name}: single trials (thin) and means by condition")


def _panel(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _scale(tree: xr.DataTree, block: Block) -> tuple[float, str]:
    """What values are multiplied by, and their unit then."""
    if block.observed == "counts":
        return 1 / float(tree.attrs["bin_width"]), "spikes per second"
    return 1.0, "signal"


def _most_modulated(tree: xr.DataTree, block: Block) -> list[tuple[int, object]]:
    """Positions and labels of the neurons whose mean rate varies most over time."""
    rates = tree["posterior"].to_dataset()[block.rates].mean([*SAMPLE_DIMS, "trial"])
    chosen: NDArray[np.int_] = np.argsort(rates.std("time").values)[::-1][:NUM_UNITS]
    return [(int(position), rates[block.unit].values[position]) for position in chosen]


def _masked(
    tree: xr.DataTree, recorded: xr.Dataset, block: Block, of: Mapping[str, Any]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Data and draws of a selection, NaN where nothing was measured, with conditions."""
    of = {dim: [value] if isinstance(value, int) else value for dim, value in of.items()}
    where = measured(recorded, block).isel(of)
    found = []
    for group in ("observed_data", "posterior_predictive"):
        values = tree[group][block.x].isel(of).load().where(where)
        if "condition" in recorded:
            labels = recorded["condition"].isel({k: v for k, v in of.items() if k == "trial"})
            values = values.assign_coords(condition=("trial", labels.values))
        found.append(values.transpose(..., "trial", "time", block.unit))
    return found[0], found[1]
