"""Posterior means for new trials, in bounded memory."""

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import blocks, validate
from pyrodyn.infer.traces import Program
from pyrodyn.infer.training.fitted import Fit, model_and_guide
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.reliability import Reliability
from pyrodyn.posterior.samplers import NUM_MCMC_DRAWS, chains_of, sampler
from pyrodyn.posterior.sites import by_block, event_dims
from pyrodyn.posterior.source import source


def predict(
    model: LatentDynamics | Fit[Any],
    recording: xr.Dataset,
    *,
    num_draws: int | None = None,
    guide: Program | None = None,
    method: str | None = None,
    num_particles: int | None = None,
    num_warmup: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> xr.Dataset:
    """Posterior mean and standard deviation of every latent and deterministic site.

    Only running sums over draws are kept: for the draws themselves use `to_datatree`.

    Args:
        model: a fitted model, or the `Fit` that `fit` returned, which brings its guide.
        recording: trials of the neurons that the model was fitted to.
        num_draws: draws per trial that are averaged; by default 50, and 400 (of 4 chains) by
            ``"mcmc"``.
        guide: the guide to draw from; by default that of the fit, or the model's own.
        method: where the draws come from, see `to_datatree`. None takes the smoother for models
            fitted by `VSMC`, `SmoothedScore` or `GTF`, exact draws for those fitted by
            `Kalman`, dropout for models without latents, and otherwise the guide.
        num_particles: draws that are weighted, particles of the filter, or trajectories in the
            pool; 1000 by default.
        num_warmup: trajectories of every chain of ``"mcmc"`` before its draws; 100 by default.
        batch_size: trials at once. Sites that all trials share are averaged over the draws that
            were made with the first batch.
        seed: seeds the draws.

    Returns:
        A dataset over the recording's trials with, per site such as ``rates`` (expected
        observation per bin) and ``factors``, its mean and, as ``{site}_sd``, its standard
        deviation. Of counts and a signal ``rates`` are those of the counts, beside the signal's
        ``signal_mean``. A method that weights draws adds what it reports per trial, such as
        ``pareto_k``, ``effective_sample_size`` and ``log_evidence``.

    Raises:
        ValueError: when the recording does not fit the model, or the model was fitted with another
            guide that is not given.
        ArithmeticError: for dynamics that diverge, naming trial and bin.

    Warns:
        UserWarning: when importance weights, the filter or chains are unreliable, naming how many
            trials.
    """
    recording = validate(recording)
    model_and_guide(model)[0].check(recording)
    check_integer(1, batch_size=batch_size)
    of = source(model, guide, method)
    if num_draws is None:
        num_draws = NUM_MCMC_DRAWS if of.method == "mcmc" else 50
    num_chains, num_draws = chains_of(of.method, None, num_draws)
    # A guide's draws, a few at a time, bound memory by trials alone; particles are run once.
    chunks = _chunks(num_draws) if of.method in ("guide", "dropout") else [num_draws]
    options = (of.method, of.model, of.guide, num_particles, num_chains, num_warmup)
    samplers = [sampler(*options) for _ in chunks]
    trials = of.model.trials_of(recording)
    of.check(recording, trials.batch(slice(0, batch_size)), seed=seed)
    reliability = Reliability()
    parts: list[dict[str, Tensor]] = []
    reported: list[dict[str, Tensor]] = []
    shared: dict[str, Tensor] = {}
    with of.evaluating(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in trials.batches(batch_size):
            local_moments, shared_moments = _Moments(), _Moments()
            for draw, chunk in zip(samplers, chunks, strict=True):
                draws = draw(batch, chunk)
                local_moments.add(draws.sites.local)
                shared_moments.add(draws.sites.shared)
            reliability.add(draws.diagnostics)
            parts.append(local_moments.summary())
            reported.append(draws.diagnostics)
            shared = shared or shared_moments.summary()
    reliability.warn(of.method)
    observed = blocks(recording)
    coords = {
        "trial": recording["trial"],
        "time": recording["time"][of.model.first_bin :],
        **{block.unit: recording[block.unit] for block in observed},
    }
    variables: dict[str, Any] = {}
    local = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for leading, moments in ((("trial",), local), ((), shared)):
        for name, value in moments.items():
            site = name.removesuffix("_sd")
            values = value.float().cpu().numpy()
            own_dims = event_dims(of.model, site, values.ndim - len(leading))
            for own, dims, its in by_block(site, own_dims, values, observed):
                variables[own + name.removeprefix(site)] = ((*leading, *dims), its)
    for name in reported[0]:
        values = torch.cat([part[name] for part in reported]).cpu().numpy()
        variables[name] = (("trial", "time")[: values.ndim], values)
    used = {dim for dims, _ in variables.values() for dim in dims}
    return xr.Dataset(
        variables,
        coords={dim: coord for dim, coord in coords.items() if dim in used},
        attrs=of.attrs,
    )


class _Moments:
    """Running sums of draws and of their squares, in double precision."""

    def __init__(self) -> None:
        self.num_draws = 0
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def add(self, sites: dict[str, Tensor]) -> None:
        """Add draws by site, along the first dim."""
        for name, value in sites.items():
            value = value.double()
            self.sums[name] = self.sums.get(name, 0) + value.sum(0)
            self.squares[name] = self.squares.get(name, 0) + value.square().sum(0)
            num_added = len(value)
        if sites:
            self.num_draws += num_added

    def summary(self) -> dict[str, Tensor]:
        """Mean and standard deviation of each site."""
        found = {}
        for name, total in self.sums.items():
            mean = total / self.num_draws
            variance = self.squares[name] / self.num_draws - mean.square()
            found[name] = mean
            found[f"{name}_sd"] = variance.clamp_min(0).sqrt()
        return found


def _chunks(num_draws: int, size: int = 10) -> list[int]:
    return [size] * (num_draws // size) + ([num_draws % size] if num_draws % size else [])
