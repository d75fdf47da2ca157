"""From a model and a recording to an ArviZ `DataTree`.

==================================  ================================================================
``posterior``                       latent sites, factors and rates, ``(chain, draw, trial, ...)``
``posterior_predictive``            ``x`` drawn from the observation model
``log_likelihood``                  ``x``: log p(x | latents) summed within each trial, so that
                                    `arviz_stats.loo` leaves out whole trials
``sample_stats``                    per draw and trial ``lp``, log p(x, latents), and ``log_q``,
                                    log q(latents | x) (where a guide drew); and what the method
                                    tells of itself per trial: ``log_evidence`` with its error,
                                    ``pareto_k``, effective sample sizes, ``distinct_draws``
``prior``, ``prior_predictive``     the same sites drawn from the prior, where asked for
``observed_data``                   ``x``
``constant_data``                   the recording's other variables, the truth of simulations too
==================================  ================================================================

One chain holds all draws, since they are independent. Rates are expected observations per bin.
Where nothing was measured ``x`` is 0 in the observed and in the predicted data alike;
``constant_data.valid`` says where.

Where counts and a signal are observed, ``counts`` and ``signal`` stand for ``x``, and beside
``rates`` (of the counts) there is ``signal_mean``. ``log_likelihood`` holds those of both and their
sum ``x``: to leave out whole trials, ask `arviz_stats.loo` for ``var_name="x"``.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arviz_base
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import blocks, validate
from pyrodyn.infer.traces import Program
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.draws import (
    Draws,
    by_block,
    drawing_by,
    prior_draws,
)


def to_datatree(
    model: LatentDynamics,
    recording: xr.Dataset,
    *,
    num_draws: int = 100,
    num_prior_draws: int = 0,
    guide: Program | None = None,
    method: str = "guide",
    num_particles: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    path: str | Path | None = None,
) -> xr.DataTree:
    """Draw from the posterior of every trial.

    Args:
        model: a fitted model.
        recording: the recording to explain: that of the fit, or new trials of the same neurons.
        num_draws: draws per trial.
        num_prior_draws: draws per trial from the prior; 0 leaves the prior's groups out.
        guide: the guide the model was fitted with, if not its own.
        method: where the draws come from: ``"guide"``; ``"importance"``, the guide's draws kept by
            their Pareto-smoothed weights; ``"smoother"``, paths of the particle smoother, for
            state-space models (by backward simulation, or along ancestors where the state has a
            deterministic part); or ``"pool"``, paths that the model draws by itself, the same for
            all trials and weighed for each (`path_pool`). Whichever, held-out neurons and forecast
            bins are not conditioned on, nor are they in ``log_evidence``; ``log_likelihood`` and
            ``lp`` count them.
        num_particles: draws that are weighed, particles of the filter, or paths in the pool.
        batch_size: trials drawn at once.
        seed: seeds the draws.
        path: a new ``.zarr`` folder to which the tree is streamed, ``batch_size`` trials at a
            time; memory then does not grow with the number of trials, and the tree returned reads
        from the folder lazily.

    Returns:
        The tree, see the module's docstring.

    Raises:
        ValueError: when the recording does not fit the model, or ``path`` is no new ``.zarr``
            folder.
        ArithmeticError: for dynamics that run off to infinity, naming trial and bin.
    """
    recording = validate(recording)
    model.check(recording)
    check_integer(1, num_draws=num_draws, batch_size=batch_size)
    check_integer(0, num_prior_draws=num_prior_draws)
    draw = drawing_by(method, model, guide, num_particles)
    target = None if path is None else _new_zarr(path)
    parts = _parts(model, draw, recording, num_draws, num_prior_draws, batch_size, seed)
    data = _data_groups(model, recording)
    attrs = _attrs(model)
    if target is not None:
        return _stream(parts, data, attrs, target)
    drawn = list(parts)
    groups = {
        name: xr.concat([part[name].to_dataset() for part in drawn], dim="trial")
        for name in drawn[0].children
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **groups, **data})


def _parts(
    model: LatentDynamics,
    draw: Callable[[Batch, int], Draws],
    recording: xr.Dataset,
    num_draws: int,
    num_prior_draws: int,
    batch_size: int,
    seed: int,
) -> Iterator[xr.DataTree]:
    """The drawn groups of some trials at a time."""
    with model.evaluating(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in model.trials_of(recording).batches(batch_size):
            draws = draw(batch, num_draws)
            stats = {"lp": draws.log_p}
            if draws.log_q is not None:
                stats["log_q"] = draws.log_q
            groups = {
                "posterior": draws.sites,
                "posterior_predictive": {"x": _measured(draws.predictive, model, batch)},
                "log_likelihood": draws.log_likelihood,
                "sample_stats": stats,
            }
            if num_prior_draws:
                prior = prior_draws(model, batch, num_prior_draws)
                groups["prior_predictive"] = {"x": _measured(prior.pop("x"), model, batch)}
                groups["prior"] = prior
            yield _tree(groups, draws.diagnostics, model, recording, batch)


def _measured(x: Tensor, model: LatentDynamics, batch: Batch) -> Tensor:
    return x.masked_fill(~batch.scored[:, model.first_bin :], 0)


def _tree(
    groups: dict[str, dict[str, Tensor]],
    diagnostics: dict[str, Tensor],
    model: LatentDynamics,
    recording: xr.Dataset,
    batch: Batch,
) -> xr.DataTree:
    observed = blocks(recording)
    counts = [block.x for block in observed if block.observed == "counts"]
    per_trial = ("log_likelihood", "sample_stats")
    arrays: dict[str, dict[str, NDArray[Any]]] = {group: {} for group in groups}
    dims: dict[str, dict[str, list[str]]] = {group: {} for group in groups}
    for group, sites in groups.items():
        for site, value in sites.items():
            event_dims = () if group in per_trial else model.site_dims[site]
            for name, own_dims, its in by_block(site, event_dims, value, observed):
                array = its[None].cpu().numpy()
                is_count = name in counts and group.endswith("predictive")
                arrays[group][name] = array.astype(np.int32) if is_count else array
                dims[group][name] = ["trial", *own_dims]
    trials = recording["trial"].values[batch.trial.cpu().numpy()]
    coords = {
        "trial": trials,
        "time": recording["time"].values[model.first_bin :],
        **{block.unit: recording[block.unit].values for block in observed},
    }
    trees = {
        group: arviz_base.from_dict({group: arrays[group]}, dims=dims[group], coords=coords)[
            group
        ].to_dataset()
        for group in groups
    }
    for name, values in diagnostics.items():
        dims_of = ("trial", "time")[: values.ndim]
        if "time" in dims_of:
            trees["sample_stats"].coords["time"] = coords["time"]
        trees["sample_stats"][name] = (dims_of, values.cpu().numpy())
    return xr.DataTree.from_dict(trees)


def _data_groups(model: LatentDynamics, recording: xr.Dataset) -> dict[str, xr.Dataset]:
    """Observed and constant data over the bins that the model generates."""
    generated = recording.isel(time=slice(model.first_bin, None))
    names = {block.observed: block.x for block in blocks(recording)}
    return {
        "observed_data": generated[list(names)].rename(names),
        "constant_data": generated.drop_vars(names),
    }


def _attrs(model: LatentDynamics) -> dict[str, Any]:
    training = model.record.get("training", {})
    return {
        "inference_library": "pyrodyn",
        "inference_library_version": version("pyrodyn"),
        "model": type(model).__name__,
        "training": json.dumps(training),
        "fitted_by_a_bound": str(training.get("is_bound", "unknown")),
    }


def _new_zarr(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".zarr":
        raise ValueError(f"{path} must end in .zarr, the format a posterior is streamed to")
    if path.exists():
        raise ValueError(f"{path} exists already; remove it or choose another name")
    return path


def _stream(
    parts: Iterator[xr.DataTree], data: dict[str, xr.Dataset], attrs: dict[str, Any], target: Path
) -> xr.DataTree:
    """Append part after part along trial beside the target, then rename: the target is whole or
    absent.
    """
    beside = target.with_suffix(".zarr.part")
    shutil.rmtree(beside, ignore_errors=True)
    xr.Dataset(attrs=attrs).to_zarr(beside, consolidated=False)
    for position, part in enumerate(parts):
        for name, node in part.children.items():
            place: dict[str, Any] = {"append_dim": "trial"} if position else {"mode": "a"}
            node.to_dataset().to_zarr(beside, group=name, consolidated=False, **place)
    for name, dataset in data.items():
        dataset.to_zarr(beside, group=name, mode="a", consolidated=False)
    beside.replace(target)
    return xr.open_datatree(target, engine="zarr", consolidated=False)
