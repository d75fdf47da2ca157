"""Figures of a recording and of a model's inference from it. Each function returns a matplotlib
figure without showing it.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyrodyn.analysis.figures.predictions import latents_of, moments
from pyrodyn.data.schema import blocks, measured, observed_name, unit_dim


def plot_rates(
    recording: xr.Dataset,
    predicted: xr.Dataset | xr.DataTree,
    *,
    trial: int = 0,
    num_neurons: int = 4,
) -> Figure:
    """One trial: all observations, all inferred rates (beside the true ones, if known), and single
    neurons or channels. Unmeasured bins are grey. Of a recording of both, only the neurons are
    drawn.

    Args:
        recording: the recording.
        predicted: from `pyrodyn.predict` or `pyrodyn.to_datatree`; ``rates`` in expected
            observations per bin.
        trial: position of the trial.
        num_neurons: number of single neurons, those of the largest inferred modulation.
    """
    predicted = moments(predicted)
    name, unit = observed_name(recording), unit_dim(recording)
    is_counts = name == "counts"
    time = predicted["time"].values
    shown = recording.isel(trial=trial).sel(time=time)
    where = measured(recording, blocks(recording)[0]).isel(trial=trial).sel(time=time).values
    observed = np.where(where, shown[name].values, np.nan)
    inferred = predicted["rates"].isel(trial=trial).values
    sd = predicted["rates_sd"].isel(trial=trial).values
    true = shown["rates"].values if "rates" in shown else None
    quantity = "rate" if is_counts else "mean"
    amount = "per bin" if is_counts else recording[name].attrs.get("units", "signal")

    maps = {"observed": observed, f"inferred {quantity}": inferred}
    if true is not None:
        maps[f"true {quantity}"] = true
    order = np.argsort(inferred.argmax(0))
    figure = plt.figure(figsize=(3.8 * len(maps), 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False)[:, 0]
    reference = inferred if true is None else true
    # Spikes have a scale of their own, a signal that of its mean.
    limits = {title: _limits(reference if is_counts else observed, is_counts) for title in maps}
    if is_counts:
        limits["observed"] = (0.0, max(1.0, _limits(observed, is_counts)[1]))
    axes = top.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        axis.set_facecolor("0.8")  # where nothing was measured
        image = axis.imshow(
            values.T[order],
            aspect="auto",
            origin="lower",
            cmap="magma",
            vmin=limits[title][0],
            vmax=limits[title][1],
            interpolation="nearest",
            extent=(time[0], time[-1] + recording.attrs["bin_width"], 0, values.shape[1]),
        )
        axis.set(title=title, xlabel="time (s)")
        if title != "observed" or is_counts:
            top.colorbar(image, ax=axis, label=amount, pad=0.01)
    axes[0].set_ylabel(f"{unit} (by time of peak)")

    chosen = np.argsort(inferred.std(0))[::-1][:num_neurons]
    axes = bottom.subplots(1, len(chosen), squeeze=False)[0]
    for axis, neuron in zip(axes, chosen, strict=True):
        if not is_counts:
            axis.plot(time, observed[:, neuron], color="0.6", lw=0.8, label="observed")
        if true is not None:
            axis.plot(time, true[:, neuron], color="black", lw=1.2, label=f"true {quantity}")
        axis.plot(time, inferred[:, neuron], color="C3", lw=1.4, label="posterior mean")
        low, high = (inferred[:, neuron] + sign * 2 * sd[:, neuron] for sign in (-1, 1))
        axis.fill_between(time, low, high, color="C3", alpha=0.25, lw=0, label="± 2 sd")
        if is_counts:
            for spike in time[observed[:, neuron] > 0]:
                axis.axvline(spike, ymax=0.06, color="0.4", lw=0.8)
            axis.set_ylim(min(0.0, low.min()), None)
        _shade(axis, time, ~where[:, neuron], recording.attrs["bin_width"])
        axis.set(title=f"{unit} {recording[unit].values[neuron]}", xlabel="time (s)")
    axes[0].set_ylabel(amount)
    handles, labels = axes[0].get_legend_handles_labels()
    bottom.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _limits(values: NDArray, from_zero: bool) -> tuple[float, float]:
    """Colour limits, without the most extreme values."""
    low, high = np.nanquantile(values, [0.005, 0.995])
    return (min(0.0, float(low)) if from_zero else float(low)), float(high)


def _shade(axis: Axes, time: NDArray, missing: NDArray[np.bool_], width: float) -> None:
    """Shade the bins in which nothing was measured."""
    edges = np.flatnonzero(np.diff(missing.astype(int), prepend=0, append=0))
    for first, last in edges.reshape(-1, 2):
        axis.axvspan(time[first], time[last - 1] + width, color="0.9", lw=0, zorder=0)


def plot_factors(predicted: xr.Dataset | xr.DataTree, *, trials: int = 5) -> Figure:
    """Factors, or the latent state z of a model without factors, of the first trials over time, one
    panel per dimension.

    Args:
        predicted: from `pyrodyn.predict` or `pyrodyn.to_datatree`.
        trials: number of trials.

    Raises:
        ValueError: for a prediction without latents over time.
    """
    drawn = moments(predicted)
    name = "factor" if "factors" in drawn else "z"
    factors = latents_of(drawn).isel(trial=slice(trials))
    num_factors = factors.sizes["latent"]
    columns = min(4, num_factors)
    rows = -(-num_factors // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 1.8 * rows), sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for factor, axis in enumerate(axes.flat):
        if factor >= num_factors:
            axis.remove()
            continue
        lines = axis.plot(factors["time"], factors[:, :, factor].transpose("time", "trial"), lw=1)
        axis.set_title(f"{name} {factor}", fontsize=9)
        if factor + columns >= num_factors:  # the lowest panel of its column
            axis.set_xlabel("time (s)")
            axis.tick_params(labelbottom=True)
    labels = [f"trial {label}" for label in factors["trial"].values]
    figure.legend(lines, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def plot_inferred_inputs(recording: xr.Dataset, predicted: xr.Dataset | xr.DataTree) -> Figure:
    """Norm of the inferred input in every trial, with the true pulses of a simulation, if any.

    Args:
        recording: the recording; its coordinate ``pulse_bin`` marks simulated pulses.
        predicted: from `pyrodyn.predict` or `pyrodyn.to_datatree`, of a model with inferred inputs.

    Raises:
        ValueError: if the model infers no inputs.
    """
    predicted = moments(predicted)
    if "u" not in predicted:
        raise ValueError("this model infers no inputs; fit one with inferred_input_dim >= 1")
    size = np.linalg.norm(predicted["u"].transpose(..., "inferred_input").values, axis=-1)
    time = predicted["time"].values
    width = recording.attrs["bin_width"]
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    order = np.arange(len(size))
    pulses = recording["pulse_bin"].values if "pulse_bin" in recording.coords else None
    if pulses is not None:
        order = np.argsort(pulses, kind="stable")
    image = axis.imshow(
        size[order],
        aspect="auto",
        origin="lower",
        cmap="magma",
        vmax=float(np.quantile(size, 0.999)),
        extent=(time[0], time[-1] + width, -0.5, len(size) - 0.5),
        interpolation="nearest",
    )
    if pulses is not None:
        pulsed = pulses[order] >= 0
        times = recording["time"].values[pulses[order][pulsed]]
        axis.plot(times, np.flatnonzero(pulsed), ".", ms=2, color="cyan", label="true pulse")
        axis.legend(loc="upper left", fontsize=8)
    axis.set(xlabel="time (s)", ylabel="trial" + ("" if pulses is None else " (by pulse)"))
    figure.colorbar(image, ax=axis, label="norm of inferred input")
    return figure
