"""Calibration: are posteriors as wide as they ought to be?

`calibrate` examines an inference method alone, on data simulated from the model: latents z* ~ p(z)
that generated the data x ~ p(x | z*) are one more draw from p(z | x), so that the rank of f(z*, x)
among its posterior draws is uniform, for every f. A guide that is too narrow, biased,
or blind to part of the data is rejected. `coverage` is how often central intervals contain the
truth, for such ranks and for simulated recordings, whose fit may be at fault as well.

Sources: Talts et al. 2018 (arXiv 1804.06788) for ranks; Modrak et al., Bayesian Analysis 20:461
(2025), for test quantities that depend on the data, such as the likelihood, without which draws
from the prior pass; Tesso & Vehtari 2026 (arXiv 2603.02928) for the test of uniformity.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import arviz_stats  # noqa: F401 (registers azstats)
import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro.distributions import Unit
from torch import nn
from tqdm import tqdm

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import blocks, measured, validate
from pyrodyn.data.trial_hashes import trial_hashes
from pyrodyn.infer.traces import (
    Program,
    is_local,
    latent_sites,
    module_of,
    observed_sites,
    traced,
)
from pyrodyn.infer.training.fitted import Fit, model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.draws import prior_draws, replayed
from pyrodyn.posterior.groups import require_draws, require_groups
from pyrodyn.posterior.ppc_view import recorded_data
from pyrodyn.posterior.ranks import SAMPLE_DIMS, fractional_rank
from pyrodyn.posterior.reliability import Reliability
from pyrodyn.posterior.samplers import BY_PARTICLES, NUM_PARTICLES, chains_of, sampler
from pyrodyn.posterior.sites import Draws, by_block, event_dims
from pyrodyn.posterior.source import Source, source
from pyrodyn.posterior.storage import PartFiles, new_zarr

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Probabilities of the default central intervals."""

QUANTITIES = ("log_likelihood", "log_joint", "mean_rate")
"""Test quantities: one number per simulation, of latents and data."""

LATENTS = ("factors", "z")
"""Variables of a posterior that may be compared with true latents."""


def calibrate(
    model: LatentDynamics | Fit[Any],
    recording: xr.Dataset,
    *,
    num_simulations: int = 500,
    num_draws: int = 100,
    guide: Program | None = None,
    method: str | None = None,
    num_particles: int | None = None,
    batch_size: int = 50,
    seed: int = 0,
    path: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Simulation-based calibration: ranks of true latents among their posterior draws.

    Latents and data of every simulation are drawn from the model, with the parameters that it has.

    Args:
        model: a model, or the `Fit` that `fit` returned, which brings its guide.
        recording: gives simulations their number of bins, inputs, held-out neurons, forecast bins
            and unmeasured entries: simulation i has those of trial i, from the first trial again
            after the last. Its observations are not used.
        num_simulations: data sets to simulate, one trial each.
        num_draws: posterior draws per simulation.
        guide: the guide to draw from; by default that of the fit, or the model's own.
        method: where posterior draws come from, see `to_datatree`.
        num_particles: draws that are weighted, particles of the filter, or trajectories in the
            pool; 1000 by default.
        batch_size: simulations at once.
        seed: seeds simulations and draws.
        path: a new ``.zarr`` folder for the result. Finished batches are kept beside it, so that
            the same call continues a run that was interrupted.
        progress: show a progress bar.

    Returns:
        A tree whose group ``prior_sbc`` holds fractional ranks, uniform on (0, 1) if the posterior
        is right: of every latent site and of ``rates``, entry by entry, and of the test quantities
        ``log_likelihood``, log p(x | z), ``log_joint``, log p(x, z), and ``mean_rate``, the mean
        over bins and neurons; dims ``chain, draw`` with one draw per simulation. x are the entries
        that the encoder may see. ``sample_stats`` holds what the method reports. For
        `summarise_calibration`, `coverage` and ``arviz_plots.plot_ecdf_pit``, there with
        ``var_names=`` and ``coords=``, since a site has a panel per entry.

    Raises:
        ValueError: for a recording that does not fit the model, a model that cannot be simulated
            trial by trial (sites that all trials share, observations of a user's own, bins that set
            the initial state), and a path that exists or holds parts of another run.
        ArithmeticError: for dynamics that diverge.

    Warns:
        UserWarning: when importance weights or the filter are unreliable, naming how many
            simulations.
    """
    recording = validate(recording)
    model_and_guide(model)[0].check(recording)
    check_integer(2, num_simulations=num_simulations)
    check_integer(1, num_draws=num_draws, batch_size=batch_size)
    of = source(model, guide, method)
    of.model.require_latents("simulation-based calibration")
    sampler(of.method, of.model, of.guide, num_particles)  # refuses what it cannot take
    chains_of(of.method, None, num_draws)
    everything = of.model.trials_of(recording).batch()
    latents = _latents(of.model, everything)
    of.check(recording, everything.take(slice(0, batch_size)), seed=seed, is_simulated=True)
    settings = {
        **of.attrs,
        "num_simulations": num_simulations,
        "num_draws": num_draws,
        "seed": seed,
    }
    if of.method in BY_PARTICLES:
        settings["num_particles"] = num_particles or NUM_PARTICLES
    kept = None
    if path is not None:
        kept = PartFiles(new_zarr(path), {**settings, **_hashes(of, recording, batch_size)})
    parts: list[xr.DataTree] = []
    bar = tqdm(total=num_simulations, desc="simulations", unit="", disable=not progress)
    with of.evaluating(), torch.random.fork_rng(), bar:
        for number, start in enumerate(range(0, num_simulations, batch_size)):
            part = None if kept is None else kept.load(number)
            if part is None:
                simulations = np.arange(start, min(start + batch_size, num_simulations))
                positions = torch.from_numpy(simulations % everything.num_trials)
                template = everything.take(positions.to(everything.trial.device))
                part = _part(of, template, latents, recording, settings, (seed, number))
                if kept is not None:
                    kept.save(number, part)
            parts.append(part)
            bar.update(min(batch_size, num_simulations - start))
    groups = {
        name: xr.concat([part[name].to_dataset() for part in parts], dim="draw").assign_coords(
            chain=[0], draw=np.arange(num_simulations)
        )
        for name in parts[0].children
    }
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=settings), **groups})
    if "sample_stats" in groups:
        reliability = Reliability()
        stats = groups["sample_stats"].items()
        reliability.add({str(name): torch.from_numpy(values.values[0]) for name, values in stats})
        reliability.warn(of.method)
    if kept is not None:
        return kept.finish(tree)
    return tree


def coverage(tree: xr.DataTree, levels: Sequence[float] = LEVELS, seed: int = 0) -> xr.Dataset:
    """Expected coverage: the fraction of true values inside central posterior intervals.

    Args:
        tree: from `calibrate`, or from `to_datatree` of a recording whose ``rates`` or ``latents``
            are known. Latents are identified up to a change of coordinates: the draws of
            ``factors`` or, without these, ``z`` are mapped to the truth by the affine map that
            regresses the truth on the posterior means of the same trials.
        levels: probabilities of the intervals.
        seed: breaks ties.

    Returns:
        Per variable its coverage, along ``level``, over all entries that were measured; below the
        level where intervals are too narrow. As ``{name}_error`` the Monte Carlo standard error,
        from the variation between trials (or simulations); NaN for a single one.

    Raises:
        ValueError: for a tree without known truth or with a single draw, and levels outside (0, 1).
    """
    wrong = [level for level in levels if not 0 < level < 1]
    if wrong or not len(levels):
        raise ValueError(f"levels must lie between 0 and 1, unlike {wrong or 'an empty list'}")
    require_groups(tree)
    return covered(_ranks_of_truth(tree, np.random.default_rng(seed)), levels)


def summarise_calibration(tree: xr.DataTree, levels: Sequence[float] = (0.5, 0.9)) -> pd.DataFrame:
    """A table of calibration with one row per site and test quantity.

    Args:
        tree: from `calibrate`.
        levels: probabilities of central intervals.

    Returns:
        Columns ``num_entries``; ``p_value``, of uniform ranks (ArviZ's ``pot_c``), the smallest
        over entries times their number (Bonferroni); and per level ``coverage_{percent}`` with its
        ``_error``, over all entries.

    Raises:
        ValueError: for a tree without ``prior_sbc``.
    """
    require_groups(tree)
    if "prior_sbc" not in tree.children:
        raise ValueError("the tree has no group prior_sbc; make it by pyrodyn.posterior.calibrate")
    ranks = tree["prior_sbc"].to_dataset().load()
    covered = coverage(tree, levels)
    rows = {}
    for name, values in ranks.items():
        p_values, *_ = values.azstats.uniformity_test(dim=list(SAMPLE_DIMS))
        row: dict[str, float] = {"num_entries": p_values.size}
        row["p_value"] = float(np.clip(p_values.size * float(p_values.min()), 0, 1))
        for level in levels:
            at = covered.sel(level=level)
            row[f"coverage_{100 * level:g}"] = float(at[name])
            row[f"coverage_{100 * level:g}_error"] = float(at[f"{name}_error"])
        rows[str(name)] = row
    return pd.DataFrame.from_dict(rows, orient="index").astype({"num_entries": int})


def covered(ranks: Mapping[str, xr.DataArray], levels: Sequence[float]) -> xr.Dataset:
    """Fractions of ranks inside central intervals and their standard errors, see `coverage`.

    Args:
        ranks: fractional ranks with a dim ``trial``, NaN where nothing is known.
        levels: probabilities of the intervals.
    """
    level = xr.DataArray(np.asarray(levels, float), dims="level", name="level")
    found = {}
    for name, values in ranks.items():
        inside = (abs(values - 0.5) <= level / 2).where(values.notnull())
        per_trial = inside.mean([dim for dim in inside.dims if dim not in ("trial", "level")])
        found[name] = inside.mean([dim for dim in inside.dims if dim != "level"])
        num = per_trial.notnull().sum("trial")
        error = per_trial.std("trial", ddof=1) if int(num.max()) > 1 else per_trial.mean("trial")
        found[f"{name}_error"] = (error / num**0.5).where(num > 1)
    return xr.Dataset(found).assign_coords(level=level.values)


def _latents(model: LatentDynamics, batch: Batch) -> list[str]:
    """Names of the latent sites of a model that can be simulated trial by trial."""
    kind = type(model).__name__
    if model.first_bin:
        raise ValueError(
            f"the first {model.first_bin} bins set the initial state of this {kind}, which does not"
            " generate them, so that no data can be simulated from it"
        )
    with torch.no_grad():
        trace = traced(model, batch.take(slice(0, 1)).unobserved())
    sites = [name for name in latent_sites(trace) if name != "x"]
    shared = [name for name in sites if not is_local(trace.nodes[name])]
    if shared:
        raise ValueError(
            f"all trials share {', '.join(map(repr, shared))} of this {kind}; calibrate simulates"
            " single trials, whose posteriors must be independent"
            + ("; pass model.at(), at one value of each" if model.priors else "")
        )
    others = [name for name in observed_sites(trace) if name != "x"]
    if others:
        is_factor = isinstance(trace.nodes[others[0]]["fn"], Unit)
        what = "the factor" if is_factor else "the observations"
        raise ValueError(f"{what} {others[0]!r} of this {kind} cannot be simulated")
    return sites


@torch.no_grad()
def _part(
    of: Source,
    template: Batch,
    latents: list[str],
    recording: xr.Dataset,
    settings: dict[str, Any],
    seeds: tuple[int, int],
) -> xr.DataTree:
    """Ranks of a batch of simulations."""
    sequence = np.random.SeedSequence(seeds)
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    rng = np.random.default_rng(sequence)
    model, num_draws = of.model, settings["num_draws"]
    simulated, x = prior_draws(model, template, 1, {})
    if not all(values.isfinite().all() for values in (*simulated.local.values(), x)):
        raise ArithmeticError(
            f"the dynamics of this {type(model).__name__} diverge from its prior: fit longer, or"
            " with a lower learning_rate"
        )
    # Held-out neurons and forecast bins inform no posterior, so no test quantity may use them.
    x = torch.where(template.visible, x[0], 0)
    batch = template.as_seen().replace(x=x.to(template.seen), seen=x.to(template.seen))
    truth = replayed(model, batch, {name: simulated.local[name] for name in latents})
    draw = sampler(of.method, model, of.guide, settings.get("num_particles"))
    drawn = draw(batch, num_draws)
    observed = blocks(recording)
    true_quantities, drawn_quantities = _quantities(truth), _quantities(drawn)
    pairs = [
        *((site, truth.sites.local[site], drawn.sites.local[site]) for site in (*latents, "rates")),
        *((name, true_quantities[name], drawn_quantities[name]) for name in QUANTITIES),
    ]
    ranks = {}
    for site, true, draws in pairs:
        own = event_dims(model, site, true.ndim - 2)
        split = (by_block(site, own, values.cpu().numpy(), observed) for values in (true, draws))
        for (name, dims, its), (_, _, its_draws) in zip(*split, strict=True):
            if its.size:
                value = xr.DataArray(its[0], dims=("simulation", *dims))
                among = xr.DataArray(its_draws, dims=("draw", *value.dims))
                rank = fractional_rank(value, among, rng).rename(simulation="draw")
                ranks[name] = rank.expand_dims("chain")
    coords = {
        "time": recording["time"].values,
        **{block.unit: recording[block.unit].values for block in observed},
    }
    sizes = xr.Dataset(ranks).sizes
    reported = {
        name: (("chain", "draw", "time")[: values.ndim + 1], values[None].cpu().numpy())
        for name, values in drawn.diagnostics.items()
    }
    # ArviZ's panels are named by coordinates.
    labels = {dim: coords.get(str(dim), np.arange(size)) for dim, size in sizes.items()}
    groups = {"prior_sbc": xr.Dataset(ranks).assign_coords(labels)}
    if reported:
        groups["sample_stats"] = xr.Dataset(reported)
    return xr.DataTree.from_dict(groups)


def _quantities(draws: Draws) -> dict[str, torch.Tensor]:
    """Test quantities of draws and data, ``(draw, trial)``."""
    return {
        "log_likelihood": draws.log_likelihood["x"],
        "log_joint": draws.log_p.local,
        "mean_rate": draws.sites.local["rates"].mean((-2, -1)),
    }


def _hashes(of: Source, recording: xr.Dataset, batch_size: int) -> dict[str, Any]:
    """What distinguishes a run from another one with the same settings: parameters and template."""
    modules = dict.fromkeys(m for m in (of.model, module_of(of.guide)) if m is not None)
    return {
        "batch_size": batch_size,
        "parameters": _hash_of(modules),
        "template": hashlib.sha256("".join(trial_hashes(recording)).encode()).hexdigest(),
    }


def _hash_of(modules: Iterable[nn.Module]) -> str:
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return found.hexdigest()


def _ranks_of_truth(tree: xr.DataTree, rng: np.random.Generator) -> dict[str, xr.DataArray]:
    """Fractional ranks of what is known of a tree, along ``trial`` and others, NaN where nothing
    was measured.
    """
    if "prior_sbc" in tree.children:
        ranks = tree["prior_sbc"].to_dataset().load()
        return {
            str(name): values.stack(trial=SAMPLE_DIMS, create_index=False)
            for name, values in ranks.items()
        }
    found: dict[str, xr.DataArray] = {}
    if "posterior" in tree.children:
        require_draws(tree["posterior"].to_dataset())
    if {"posterior", "constant_data", "observed_data"} <= set(tree.children):
        constant, posterior = tree["constant_data"].to_dataset(), tree["posterior"].to_dataset()
        recorded = recorded_data(tree)
        everything = [(block, measured(recorded, block)) for block in blocks(recorded)]
        for block, where in everything:
            if block.rates in constant and block.rates in posterior:
                of_rates = constant[block.rates].load()
                rank = fractional_rank(of_rates, posterior[block.rates].load(), rng)
                found[block.rates] = rank.where(where)
        variable = next((name for name in LATENTS if name in posterior), None)
        if "latents" in constant and variable is not None:
            known = np.any([where.any(block.unit).values for block, where in everything], 0)
            truth = constant["latents"].load()
            aligned = _aligned(posterior[variable].load(), truth, known)
            rank = fractional_rank(truth, aligned, rng)
            found["latents"] = rank.where(xr.DataArray(known, dims=("trial", "time")))
    if not found:
        raise ValueError(
            "coverage needs known truth: a tree from calibrate, or from to_datatree of a simulated"
            " recording with rates or latents"
        )
    return found


def _aligned(draws: xr.DataArray, truth: xr.DataArray, known: NDArray[np.bool_]) -> xr.DataArray:
    """Draws of latents in the coordinates of the truth: the regression of the truth on posterior
    means is the identity where the posterior is right and coordinates agree.
    """
    means = draws.mean(SAMPLE_DIMS).transpose("trial", "time", ...).values[known]
    design = np.column_stack([means, np.ones(len(means))])
    solution, *_ = np.linalg.lstsq(design, truth.transpose("trial", "time", ...).values[known])
    ordered = draws.transpose(*SAMPLE_DIMS, "trial", "time", ...)
    mapped = ordered.values @ solution[:-1] + solution[-1]
    return xr.DataArray(mapped, dims=(*ordered.dims[:-1], truth.dims[-1]))
