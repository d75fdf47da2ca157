"""The figure of a fit's losses."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

LOSSES = {"train_loss": "training", "valid_loss": "validation"}


def plot_losses(history: xr.Dataset, best_epoch: int | None = None) -> Figure:
    """Training and validation loss over the epochs of a fit, in nats per trial.

    The scale shows the losses after the first tenth of the epochs; earlier ones may lie above it.

    Args:
        history: ``Fit.history``.
        best_epoch: ``Fit.best_epoch``, which is marked.

    Raises:
        ValueError: for a history without losses.
    """
    shown = {name: label for name, label in LOSSES.items() if name in history}
    if not shown:
        raise ValueError(f"no {' and no '.join(LOSSES)} among {', '.join(map(str, history))}")
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    epochs = history["epoch"].values
    later = epochs >= epochs[0] + len(epochs) // 10
    for name, label in shown.items():
        axis.plot(epochs, history[name].values, label=label, lw=1.4)
    settled = np.concatenate([history[name].values[later] for name in shown])
    settled = settled[np.isfinite(settled)]
    if len(settled) > 1 and np.ptp(settled) > 0:
        margin = 0.05 * np.ptp(settled)
        axis.set_ylim(settled.min() - margin, settled.max() + margin)
    if best_epoch is not None:
        axis.axvline(best_epoch, color="0.5", lw=0.9, ls="--", label="weights kept")
    axis.set(xlabel="epoch", ylabel="loss (nats per trial)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
