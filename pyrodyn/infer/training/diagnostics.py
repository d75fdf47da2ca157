"""Signs in a fit's history that it did not end well, each a sentence in `Fit.diagnostics`."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

FEWEST_EPOCHS = 10
"""Fits of fewer epochs show none of these signs reliably and get no diagnostics."""

LAST_PART, LEAST_GAIN = 0.2, 0.02
"""A fit has not converged if the last part of its epochs brought more than this fraction of all
that the validation loss gained."""

COLLAPSED_KL = 0.01
"""Nats per trial below which a site's posterior is its prior for all that matters."""


class FitWarning(UserWarning):
    """A fit that ended, but hardly as its user wished."""


def fit_diagnostics(
    history: xr.Dataset,
    best_epoch: int,
    first_epoch: int,
    sites: Sequence[str],
    steps_missing: int = 0,
) -> list[str]:
    """What a user should be warned of, in a sentence each.

    Args:
        history: losses and KLs per epoch, see `Fit`.
        best_epoch: epoch of the kept weights.
        first_epoch: the first epoch whose validation loss could be the best: the one in which
            ramps, horizon and noise became final.
        sites: latent sites whose KL may be expected to be positive.
        steps_missing: training steps by which the fit ended before ramps, horizon and noise were
            final.
    """
    num_epochs = history.sizes["epoch"]
    found: list[str] = []
    if num_epochs < FEWEST_EPOCHS:
        return found
    if steps_missing > 0:
        found.append(
            f"this fit ended {steps_missing} steps before its ramps, growing horizon or noise"
            " annealing: it optimised another objective than the final one, and keeps its last"
            " weights; raise max_steps or max_minutes, or let these end earlier"
        )
    if "valid_loss" in history and first_epoch >= 0:
        losses = history["valid_loss"].values[first_epoch:]
        last = num_epochs - 1
        if len(losses) >= FEWEST_EPOCHS and best_epoch == first_epoch:
            found.append(
                f"this fit keeps the weights of epoch {best_epoch}, the first whose validation loss"
                f" counted: the {last - best_epoch} epochs after it only raised that loss; lower"
                " the learning_rate, or let ramps, horizon and process noise become final later"
            )
        start = first_epoch + int((1 - LAST_PART) * len(losses))
        if len(losses) >= FEWEST_EPOCHS and best_epoch >= start:
            best = losses[best_epoch - first_epoch]
            gained = losses[: start - first_epoch].min() - best
            if gained > LEAST_GAIN * (losses[0] - best):
                found.append(
                    f"this fit has not converged: its best epoch, {best_epoch} of {num_epochs}, is"
                    f" one of the last, and the last {LAST_PART:.0%} of the epochs lowered the"
                    f" validation loss by {gained:.3g} nats per trial; raise max_steps, or fit"
                    " again with the model that it returned"
                )
    for site in sites:
        name = f"kl_{site}"
        if name in history:
            kl = float(history[name][best_epoch])
            if np.isfinite(kl) and kl < COLLAPSED_KL:
                found.append(
                    f"this fit does not use the latent site {site!r}: its KL is {kl:.2g} nats per"
                    " trial, so that its posterior is its prior (posterior collapse); weight its KL"
                    f" less at first, beta={{{site!r}: Ramp(...)}}, or leave the site out of the"
                    " model"
                )
    return found
