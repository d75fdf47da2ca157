"""From a model and a recording to an ArviZ `DataTree`.

==================================  ================================================================
``posterior``                       latent sites, factors and rates, ``(chain, draw, trial, ...)``;
                                    sites that all trials share, such as parameters with priors,
                                    have no dim ``trial``
``posterior_predictive``            ``x`` drawn from the observation model
``log_likelihood``                  ``x``: log p(x | latents) summed within each trial; or of every
                                    entry, NaN where nothing was measured, on request
``predictions``                     ``x`` of held-out neurons and forecast bins, if there are any
``predictions_constant_data``       their observed values and constant data, see
                                    `pyrodyn.posterior.predictions`
``log_prior``                       ``latents``: log p(latents) of each trial; the log prior of each
                                    parameter by its name; ``shared``: that of other sites that all
                                    trials share
``sample_stats``                    per draw and trial ``lp``, log p(x, latents), and for draws of a
                                    guide ``log_q``, log q(latents | x); the terms of shared sites
                                    apart, as ``lp_shared`` and ``log_q_shared``. Per trial what the
                                    method reports: ``log_evidence`` with its error, ``pareto_k``,
                                    effective sample sizes, ``distinct_draws``, ``r_hat``
``prior``, ``prior_predictive``     the same sites drawn from the prior, on request
``observed_data``                   ``x``
``constant_data``                   the recording's other variables, the truth of simulations too,
                                    and ``role_in_fit`` of each trial: ``"trained"``,
                                    ``"validated"`` or ``"unseen"``
==================================  ================================================================

Only draws of a guide have ``log_q``: draws by weights or by a filter come from no density that is
known, and a bound computed from the guide's would lie above the evidence.

Rates are expected observations per bin. Where nothing was measured ``x`` is 0 in the observed and
in the predicted data alike; ``constant_data.valid`` marks them.

Where counts and a signal are observed, ``counts`` and ``signal`` stand for ``x``, and beside
``rates`` (of the counts) there is ``signal_mean``. ``log_likelihood`` holds those of both and,
summed within each trial, that of both together, ``x``.

The attributes of the root name model, guide, method, seed, versions and how the model was fitted.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arviz_base
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.data.schema import blocks, validate
from pyrodyn.data.trial_hashes import trial_hashes
from pyrodyn.infer.mcmc.latents import NUM_WARMUP
from pyrodyn.infer.traces import Program
from pyrodyn.infer.training.fitted import Fit, model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.draws import prior_draws
from pyrodyn.posterior.given import GivenDraws
from pyrodyn.posterior.predictions import CONSTANT, GROUP, Predicted
from pyrodyn.posterior.reliability import Reliability
from pyrodyn.posterior.samplers import (
    BY_PARTICLES,
    NUM_PARTICLES,
    Sampler,
    chains_of,
    sampler,
)
from pyrodyn.posterior.sites import Draws, Values, by_block, event_dims, variable_name
from pyrodyn.posterior.source import Source, source
from pyrodyn.posterior.storage import joined, new_zarr, storable, stream

LIBRARIES = ("torch", "pyro-ppl", "arviz-base", "xarray")
"""Whose versions a tree records beside pyrodyn's."""


def to_datatree(
    model: LatentDynamics | Fit[Any],
    recording: xr.Dataset,
    *,
    num_draws: int | None = None,
    num_prior_draws: int = 0,
    num_chains: int | None = None,
    guide: Program | None = None,
    method: str | None = None,
    num_particles: int | None = None,
    num_warmup: int | None = None,
    draws: Mapping[str, Any] | None = None,
    log_likelihood: str = "trial",
    batch_size: int = 32,
    seed: int = 0,
    path: str | Path | None = None,
    progress: bool | None = None,
) -> xr.DataTree:
    """Draw from the posterior of every trial.

    Args:
        model: a fitted model, or the `Fit` that `fit` returned, which brings its guide.
        recording: the recording to explain: that of the fit, or new trials of the same neurons.
        num_draws: draws per trial of all chains, a multiple of ``num_chains``; by default 100, and
            400 by ``"mcmc"``.
        num_prior_draws: draws per trial from the prior; 0 leaves the prior's groups out.
        num_chains: chains of ``"mcmc"``, 4 by default and at least 2; by the other methods chains
            among which independent draws are divided, for plots that compare chains, 1 by default.
        guide: the guide to draw from; by default that of the fit, or the model's own.
        method: where the draws come from: ``"guide"``; ``"importance"``, the guide's draws
            resampled by their Pareto-smoothed weights; ``"smoother"``, trajectories of the particle
            smoother, for state-space models (by backward simulation, or along ancestors where the
            state has a deterministic part); ``"pool"``, trajectories of the model itself, the same
            for all trials and weighted for each (`path_pool`); ``"exact"``, independent draws of
            the posterior itself, for linear-Gaussian models (`exact_paths`); or ``"mcmc"``,
            Hamiltonian Monte Carlo from draws of the guide (`mcmc_sample`). For models without
            latents, such as NDT: ``"dropout"``, rates that differ by their dropout masks, or
            ``"guide"``, identical rates. None takes the smoother for models fitted by `VSMC`,
            `SmoothedScore` or `GTF`, whose guide is only a proposal, exact draws for those fitted
            by `Kalman`, dropout for models without latents, and otherwise the guide. Held-out
            neurons and forecast bins are never conditioned on, nor are they in ``log_evidence``;
            ``log_likelihood`` and ``lp`` include them.
        num_particles: draws that are weighted, particles of the filter, or trajectories in the
            pool; 1000 by default.
        num_warmup: trajectories of every chain of ``"mcmc"`` before its draws; 100 by default.
        draws: draws of another sampler, such as NUTS or HMC, in place of a method's: for each
            latent site an array ``(chain, draw, trial, *event)``, or ``(chain, draw, *event)`` for
            one that all trials share.
        log_likelihood: ``"trial"`` keeps log p(x | latents) of each trial, the unit that leaving
            out should leave out; ``"entry"`` that of each observation, ``(chain, draw, trial, time,
            neuron)``, as large as the predictive draws. Where counts and a signal are observed,
            that of both together stays per trial.
        batch_size: trials drawn at once. Sites that all trials share are drawn with the first
            batch. Where parameters have priors, draws are made one by one, each with parameters of
            its own (and by a particle filter, a pool or importance weights of its own, with
            ``num_particles`` each).
        seed: seeds the draws.
        path: a new ``.zarr`` folder to which the tree is streamed, ``batch_size`` trials at a
            time; memory then does not grow with the number of trials, and the tree returned reads
            from the folder lazily.
        progress: show a progress bar of the trials with the time left; None shows it where the
            tree is streamed.

    Returns:
        The tree, see the module's docstring.

    Raises:
        ValueError: when the recording does not fit the model, the model was fitted with another
            guide that is not given, ``draws`` do not fit the model, or ``path`` is no new ``.zarr``
            folder.
        ArithmeticError: for dynamics that diverge, naming trial and bin.

    Warns:
        UserWarning: when importance weights, the filter or chains are unreliable, naming how many
            trials.
    """
    recording = validate(recording)
    model_and_guide(model)[0].check(recording)
    check_integer(1, batch_size=batch_size)
    check_integer(0, num_prior_draws=num_prior_draws)
    if num_prior_draws:
        model_and_guide(model)[0].require_latents("a prior, num_prior_draws=")
    if log_likelihood not in ("trial", "entry"):
        raise ValueError(f"log_likelihood={log_likelihood!r} is unknown; it is 'trial' or 'entry'")
    trials = model_and_guide(model)[0].trials_of(recording)
    draw: Sampler
    if draws is None:
        of = source(model, guide, method)
        num_chains, total = chains_of(of.method, num_chains, num_draws)
        draw = sampler(of.method, of.model, of.guide, num_particles, num_chains, num_warmup)
        of.check(recording, trials.batch(slice(0, batch_size)), seed=seed)
        how = {**of.attrs, "seed": seed}
        if of.method == "mcmc":
            how["num_warmup"] = num_warmup or NUM_WARMUP
        elif of.method == "dropout":
            how["posterior"] = "Monte Carlo dropout"
        elif of.method in BY_PARTICLES:
            how["num_particles"] = num_particles or NUM_PARTICLES
    else:
        excluded = {
            "guide": guide,
            "method": method,
            "num_draws": num_draws,
            "num_particles": num_particles,
            "num_warmup": num_warmup,
        }
        for name, value in excluded.items():
            if value is not None:
                raise ValueError(f"{name}={value!r} has no meaning where draws are given")
        model_and_guide(model)[0].require_latents("draws=")
        if num_chains is not None:
            raise ValueError("num_chains has no meaning where draws are given: they have chains")
        of = source(model, None, "draws")
        draw = given = GivenDraws(of.model, recording, draws)
        num_chains, total = given.num_chains, given.num_draws
        how = {"model": type(of.model).__name__, "method": "draws", "seed": seed}
    target = None if path is None else new_zarr(path)
    reliability = Reliability()
    is_shown = path is not None if progress is None else progress
    batches = _with_progress(trials.batches(batch_size), recording.sizes["trial"], is_shown)
    predicted = Predicted(recording.isel(time=slice(of.model.first_bin, None)))
    builder = functools.partial(
        _Builder, of.model, recording, predicted, by_entry=log_likelihood == "entry"
    )
    parts = _parts(
        of, draw, builder, batches, (num_chains, total), num_prior_draws, seed, reliability
    )
    data = _data_groups(of.model, recording, predicted)
    attrs = {**_attrs(of.model, recording), **how}
    if target is not None:
        tree = stream(parts, data, attrs, target)
    else:
        groups = joined(list(parts))
        tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **groups, **data})
    reliability.warn(of.method)
    return tree


def _with_progress(batches: Iterable[Batch], num_trials: int, is_shown: bool) -> Iterator[Batch]:
    """The batches, while a bar shows how many trials are done and the time left."""
    with tqdm(total=num_trials, desc="trials", unit="", disable=not is_shown) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.num_trials)


def _parts(
    of: Source,
    draw: Sampler,
    builder: "Callable[[Batch], _Builder]",
    batches: Iterable[Batch],
    chains_and_draws: tuple[int, int],
    num_prior_draws: int,
    seed: int,
    reliability: Reliability,
) -> Iterator[dict[str, xr.Dataset]]:
    """The drawn groups of some trials at a time."""
    model = of.model
    num_chains, num_draws = chains_and_draws
    shared_of_prior: dict[str, Tensor] = {}
    with of.evaluating(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in batches:
            drawn = draw(batch, num_draws)
            reliability.add(drawn.diagnostics)
            build = builder(batch)
            predictive = build.predictive(drawn.predictive, num_chains)
            groups = {
                "posterior": build.sites(drawn.sites, num_chains),
                "posterior_predictive": predictive,
                **build.predictions(predictive),
                "log_likelihood": build.log_likelihood(drawn, num_chains),
                "log_prior": build.log_prior(drawn, num_chains),
                "sample_stats": build.sample_stats(drawn, num_chains),
            }
            if num_prior_draws:
                sites, x = prior_draws(model, batch, num_prior_draws, shared_of_prior)
                groups["prior"] = build.sites(sites, 1)
                groups["prior_predictive"] = build.predictive(x, 1)
            yield groups


class _Builder:
    """Makes the groups of one batch.

    Args:
        model: the model.
        recording: the whole recording.
        predicted: its predicted entries.
        batch: some of its trials.
        by_entry: whether the log likelihood is that of every entry.
    """

    def __init__(
        self,
        model: LatentDynamics,
        recording: xr.Dataset,
        predicted: Predicted,
        batch: Batch,
        by_entry: bool,
    ) -> None:
        self.model, self.batch = model, batch
        self.predicted, self.by_entry = predicted, by_entry
        self.observed = blocks(recording)
        self.coords = {
            "trial": recording["trial"].values[batch.trial.cpu().numpy()],
            "time": recording["time"].values[model.first_bin :],
            **{block.unit: recording[block.unit].values for block in self.observed},
        }

    def sites(self, sites: Values, num_chains: int) -> xr.Dataset:
        """Latent and deterministic sites."""
        arrays, dims = {}, {}
        for site, value in sites.local.items():
            own = event_dims(self.model, site, value.ndim - 2)
            for name, its_dims, its in by_block(site, own, value, self.observed):
                arrays[name], dims[name] = its, ["trial", *its_dims]
        for site, value in sites.shared.items():
            own = event_dims(self.model, site, value.ndim - 1)
            for name, its_dims, its in by_block(site, own, value, self.observed):
                arrays[name], dims[name] = its, [*its_dims]
        dataset = self._dataset("posterior", arrays, dims, num_chains)
        for block in self.observed:
            if block.rates in dataset:
                what = "counts" if block.observed == "counts" else "signal"
                dataset[block.rates].attrs["units"] = f"expected {what} per bin"
        return dataset

    def predictive(self, x: Tensor, num_chains: int) -> xr.Dataset:
        """Drawn observations, integers for counts; 0 where nothing was measured."""
        x = x.masked_fill(~self.batch.scored[:, self.model.first_bin :], 0)
        arrays, dims = {}, {}
        counts = [block.x for block in self.observed if block.observed == "counts"]
        own = self.model.site_dims["x"]
        for name, its_dims, its in by_block("x", own, x, self.observed):
            arrays[name] = its.to(torch.int32) if name in counts else its
            dims[name] = ["trial", *its_dims]
        return self._dataset("posterior_predictive", arrays, dims, num_chains)

    def predictions(self, predictive: xr.Dataset) -> dict[str, xr.Dataset]:
        """The predicted entries of the predictive draws, if there are any."""
        if not self.predicted.blocks:
            return {}
        return {GROUP: self.predicted.drawn(predictive, self.batch.trial.cpu().numpy())}

    def log_likelihood(self, drawn: Draws, num_chains: int) -> xr.Dataset:
        """One value per draw and trial, or per draw and entry of ``x``."""
        names = {name.replace("/", "_"): value for name, value in drawn.log_likelihood.items()}
        dims = {name: ["trial"] for name in names}
        if self.by_entry:
            scored = self.batch.scored[:, self.model.first_bin :]
            entries = drawn.entries(scored)
            for block in self.observed:
                names[block.x], dims[block.x] = entries[..., block.columns], [*block.dims]
        return self._dataset("log_likelihood", names, dims, num_chains, units="nats")

    def log_prior(self, drawn: Draws, num_chains: int) -> xr.Dataset:
        """Log density of the latents: what remains of log p(x, latents) without observations."""
        # Where counts and a signal are observed, x is the sum of both.
        own = {block.x for block in self.observed} - {"x"}
        observed = [value for name, value in drawn.log_likelihood.items() if name not in own]
        arrays = {"latents": drawn.log_p.local - torch.stack(observed).sum(0)}
        dims: dict[str, list[str]] = {"latents": ["trial"], "shared": []}
        for name, value in drawn.log_parameters.items():
            arrays[variable_name(name)] = value
            dims[variable_name(name)] = []
        shared = [name for name in drawn.sites.shared if name not in drawn.log_parameters]
        if drawn.log_p.shared is not None and shared:
            of_parameters = sum(drawn.log_parameters.values(), torch.zeros(()))
            arrays["shared"] = drawn.log_p.shared - of_parameters
        return self._dataset("log_prior", arrays, dims, num_chains, units="nats")

    def sample_stats(self, drawn: Draws, num_chains: int) -> xr.Dataset:
        """Log densities of the draws, and what the method reports."""
        arrays: dict[str, Tensor] = {}
        dims: dict[str, list[str]] = {}
        for name, density in {"lp": drawn.log_p, "log_q": drawn.log_q}.items():
            if density is not None:
                arrays[name], dims[name] = density.local, ["trial"]
                if density.shared is not None:
                    arrays[f"{name}_shared"], dims[f"{name}_shared"] = density.shared, []
        dataset = self._dataset("sample_stats", arrays, dims, num_chains, units="nats")
        for name, values in drawn.diagnostics.items():
            dims_of = ("trial", "time")[: values.ndim]
            if "time" in dims_of:
                dataset.coords["time"] = self.coords["time"]
            dataset[name] = (dims_of, values.cpu().numpy())
        return dataset

    def _dataset(
        self,
        group: str,
        arrays: dict[str, Tensor],
        dims: dict[str, list[str]],
        num_chains: int,
        units: str | None = None,
    ) -> xr.Dataset:
        by_chain: dict[str, NDArray[Any]] = {
            name: value.reshape(num_chains, -1, *value.shape[1:]).cpu().numpy()
            for name, value in arrays.items()
        }
        tree = arviz_base.from_dict({group: by_chain}, dims=dims, coords=self.coords)
        dataset: xr.Dataset = tree[group].to_dataset()
        if units is not None:
            for name in arrays:
                dataset[name].attrs["units"] = units
        return dataset


def _data_groups(
    model: LatentDynamics, recording: xr.Dataset, predicted: Predicted
) -> dict[str, xr.Dataset]:
    """Observed and constant data over the bins that the model generates."""
    role = role_in_fit(model, recording)
    generated = recording.isel(time=slice(model.first_bin, None))
    names = {block.observed: block.x for block in blocks(recording)}
    constant = generated.drop_vars(names)
    if role is not None:
        constant["role_in_fit"] = ("trial", role)
    observed = generated[list(names)].rename(names)
    groups = {"observed_data": observed, "constant_data": constant}
    if predicted.blocks:
        groups[CONSTANT] = predicted.constant(constant, observed)
    return {name: storable(data) for name, data in groups.items()}


def role_in_fit(model: LatentDynamics, recording: xr.Dataset) -> list[str] | None:
    """Whether the fit ``"trained"`` on each trial, ``"validated"`` by it or left it ``"unseen"``;
    None for a model whose record does not hold its trials.
    """
    fitted = model.record.get("training", {}).get("trials")
    if fitted is None:
        return None
    trained, validated = set(fitted["train"]), set(fitted["valid"])
    return [
        "trained" if of_trial in trained else "validated" if of_trial in validated else "unseen"
        for of_trial in trial_hashes(recording)
    ]


def _attrs(model: LatentDynamics, recording: xr.Dataset) -> dict[str, Any]:
    training = {k: v for k, v in model.record.get("training", {}).items() if k != "trials"}
    return {
        "inference_library": "pyrodyn",
        "inference_library_version": version("pyrodyn"),
        **{f"{library.replace('-', '_')}_version": version(library) for library in LIBRARIES},
        "bin_width": float(recording.attrs["bin_width"]),
        "objective": json.dumps(training.get("objective")),
        "training": json.dumps(training),
        "fitted_by_a_bound": str(training.get("is_bound", "unknown")),
    }
