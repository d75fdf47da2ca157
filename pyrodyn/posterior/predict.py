"""Posterior means for new trials, in bounded memory."""

import torch
import xarray as xr

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.schema import blocks, validate
from pyrodyn.infer.traces import Program
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.draws import by_block, drawing_by


def predict(
    model: LatentDynamics,
    recording: xr.Dataset,
    *,
    num_draws: int = 50,
    guide: Program | None = None,
    method: str = "guide",
    num_particles: int = 1000,
    batch_size: int = 64,
    seed: int = 0,
) -> xr.Dataset:
    """Posterior mean and standard deviation of every latent and deterministic site.

    Only running sums over draws are held: for the draws themselves use `to_datatree`.

    Args:
        model: a fitted model.
        recording: trials of the neurons that the model was fitted to.
        num_draws: draws per trial that are averaged.
        guide: the guide the model was fitted with, if not its own.
        method: where the draws come from, see `to_datatree`. A guide fitted by `VSMC` only proposes
            where particles go: what weights make of it is told by ``"smoother"``.
        num_particles: draws that are weighed, particles of the filter, or paths in the pool.
        batch_size: trials at once.
        seed: seeds the draws.

    Returns:
        A dataset over the recording's trials with, per site such as ``rates`` (expected
        observation per bin) and ``factors``, its mean and, as ``{site}_sd``, its standard
        deviation. Of counts and a signal ``rates`` are those of the counts, beside the signal's
        ``signal_mean``.

    Raises:
        ValueError: when the recording does not fit the model.
        ArithmeticError: for dynamics that run off to infinity, naming trial and bin.
    """
    recording = validate(recording)
    model.check(recording)
    check_integer(1, num_draws=num_draws, batch_size=batch_size)
    draw = drawing_by(method, model, guide, num_particles)
    parts = []
    with model.evaluating(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in model.trials_of(recording).batches(batch_size):
            # A guide's draws, a few at a time, need memory by trials alone; particles are run once.
            sums: dict[str, torch.Tensor] = {}
            squares: dict[str, torch.Tensor] = {}
            for chunk in _chunks(num_draws) if method == "guide" else [num_draws]:
                draws = draw(batch, chunk)
                for name, value in draws.sites.items():
                    value = value.double()
                    sums[name] = sums.get(name, 0) + value.sum(0)
                    squares[name] = squares.get(name, 0) + value.square().sum(0)
            mean = {name: total / num_draws for name, total in sums.items()}
            sd = {
                f"{name}_sd": (squares[name] / num_draws - mean[name].square()).clamp_min(0).sqrt()
                for name in sums
            }
            parts.append({**mean, **sd})
    observed = blocks(recording)
    coords = {
        "trial": recording["trial"],
        "time": recording["time"][model.first_bin :],
        **{block.unit: recording[block.unit] for block in observed},
    }
    variables = {}
    for name in parts[0]:
        site = name.removesuffix("_sd")
        values = torch.cat([part[name] for part in parts]).float().cpu().numpy()
        for own, dims, its in by_block(site, model.site_dims[site], values, observed):
            variables[own + name.removeprefix(site)] = (("trial", *dims), its)
    used = {dim for dims, _ in variables.values() for dim in dims}
    return xr.Dataset(
        variables, coords={dim: coord for dim, coord in coords.items() if dim in used}
    )


def _chunks(num_draws: int, size: int = 10) -> list[int]:
    return [size] * (num_draws // size) + ([num_draws % size] if num_draws % size else [])
