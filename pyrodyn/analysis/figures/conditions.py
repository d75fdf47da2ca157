"""Figures by condition: PSTHs of data and model, and latent trajectories. Each function returns a
matplotlib figure without showing it.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrodyn.analysis.figures.predictions import latents_of, moments
from pyrodyn.analysis.scores.psth import condition_means, conditions_of, smooth
from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import blocks, measured, observed_name, unit_dim

COLOURS = "turbo"


def plot_psths(
    recording: xr.Dataset,
    predicted: xr.Dataset | xr.DataTree,
    *,
    num_neurons: int = 4,
    smoothing: float = 0.05,
) -> Figure:
    """Condition averages of the data (thin) and of the inferred rates (thick); of the neurons, if a
    recording has channels too.

    Args:
        recording: the recording, with ``condition``.
        predicted: from `pyrodyn.predict` or `pyrodyn.to_datatree`, of the same trials.
        num_neurons: number of neurons or channels, those that the model modulates most.
        smoothing: standard deviation of the Gaussian kernel on the observations, in seconds.

    Raises:
        ValueError: for a recording without ``condition``.
    """
    check_integer(1, num_neurons=num_neurons)
    known = conditions_of(recording)
    inferred = moments(predicted)["rates"].transpose("trial", "time", ...)
    name, unit, time = observed_name(recording), unit_dim(recording), inferred["time"].values
    shown = recording.sel(time=inferred["time"])
    where = measured(shown, blocks(shown)[0]).values
    width = recording.attrs["bin_width"]
    labels = np.unique(known)
    data = condition_means(smooth(shown[name], width, smoothing, where), where, known, labels)
    model = condition_means(inferred.values.astype(float), where, known, labels)
    per_second = width if name == "counts" else 1.0
    chosen = np.argsort(np.nanstd(model, axis=(0, 1)))[::-1][:num_neurons]
    figure, axes = plt.subplots(
        1, len(chosen), figsize=(3.2 * len(chosen), 2.8), squeeze=False, layout="constrained"
    )
    for axis, neuron in zip(axes[0], chosen, strict=True):
        for label, colour, of_data, of_model in zip(
            labels, _colours(len(labels)), data, model, strict=True
        ):
            axis.plot(time, of_data[:, neuron] / per_second, color=colour, lw=0.7, alpha=0.8)
            axis.plot(time, of_model[:, neuron] / per_second, color=colour, lw=1.8, label=label)
        axis.set(title=f"{unit} {recording[unit].values[neuron]}", xlabel="time (s)")
        axis.spines[["top", "right"]].set_visible(False)
    amount = recording[name].attrs.get("units", "signal")
    axes[0, 0].set_ylabel("spikes per second" if name == "counts" else amount)
    _legend(figure, axes[0, 0], "condition (thin: data, thick: model)")
    return figure


def plot_latents(
    predicted: xr.Dataset | xr.DataTree, recording: xr.Dataset | None = None, *, num_dims: int = 3
) -> Figure:
    """Latent trajectories in the space of their first principal components: single trials (thin),
    and the average of each condition, or of all trials (thick, from the dot).

    Args:
        predicted: from `pyrodyn.predict` or `pyrodyn.to_datatree`.
        recording: the recording of the same trials, for its ``condition`` and the bins that were
            measured.
        num_dims: 2 or 3 components to draw.

    Raises:
        ValueError: if the model has no latents over time or fewer than ``num_dims``.
    """
    latents = latents_of(moments(predicted))
    if num_dims not in (2, 3) or num_dims > latents.sizes["latent"]:
        raise ValueError(
            f"num_dims={num_dims} must be 2 or 3, and at most the {latents.sizes['latent']} latents"
            " of the model"
        )
    values = latents.values.astype(float)
    if recording is not None:
        shown = recording.sel(time=latents["time"])
        is_known = np.any([measured(shown, block).any(block.unit) for block in blocks(shown)], 0)
        values = np.where(is_known[..., None], values, np.nan)
    points = values.reshape(-1, values.shape[-1])
    points = points[~np.isnan(points).any(-1)]
    centre = points.mean(0)
    _, sizes, directions = np.linalg.svd(points - centre, full_matrices=False)
    paths = (values - centre) @ directions[:num_dims].T
    explained = sizes**2 / np.square(sizes).sum()

    known = None if recording is None or "condition" not in recording else conditions_of(recording)
    labels = np.array(["all trials"]) if known is None else np.unique(known)
    known = np.repeat(labels, len(paths)) if known is None else known
    averages = condition_means(paths, ~np.isnan(paths), known, labels)
    figure = plt.figure(figsize=(5, 4.4), layout="constrained")
    axis = figure.add_subplot(projection="3d" if num_dims == 3 else None)
    for label, colour, average in zip(labels, _colours(len(labels)), averages, strict=True):
        for path in paths[known == label]:
            axis.plot(*path.T, color=colour, lw=0.5, alpha=0.35)
        axis.plot(*average.T, color=colour, lw=2, label=label)
        axis.plot(*average[:1].T, "o", color=colour, ms=5)
    for set_label, share, number in zip(
        (axis.set_xlabel, axis.set_ylabel, getattr(axis, "set_zlabel", None)),
        explained,
        ("1", "2", "3"),
        strict=False,
    ):
        if set_label is not None:
            set_label(f"component {number} ({share:.0%})")
    axis.locator_params(nbins=4)
    _legend(figure, axis, "average of" if len(labels) == 1 else "condition")
    return figure


def _colours(number: int) -> list[tuple[float, ...]]:
    return [plt.get_cmap(COLOURS)((i + 0.5) / number) for i in range(number)]


def _legend(figure: Figure, axis: Axes, title: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=title,
        loc="outside lower center",
        ncols=min(6, len(labels)),
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )
