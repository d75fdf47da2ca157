"""Posterior draws of a model whose parameters have priors: every draw has parameters of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.sites import Draws, LogDensity, Values

LARGEST, SMALLEST = torch.Tensor.amax, torch.Tensor.amin

OVER_DRAWS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "pareto_k": LARGEST,
    "effective_sample_size": SMALLEST,
    "effective_sample_size_by_bin": SMALLEST,
    "first_particles_with_descendants": SMALLEST,
    "distinct_draws": torch.Tensor.sum,
    "log_evidence": torch.Tensor.mean,
    "log_evidence_error": lambda errors, dim: errors.square().sum(dim).sqrt() / errors.shape[dim],
}
"""What becomes of a diagnostic that is reported for every draw of the parameters: the least
favourable one, or for the log evidence given the parameters its mean.
"""


def at_each_draw(
    model: LatentDynamics,
    parameters: dict[str, Tensor],
    run: Callable[[LatentDynamics, int], Draws],
) -> Draws:
    """Draws of the latents given each draw of the parameters, and these.

    Args:
        model: a model with priors.
        parameters: values of the parameters that have them, ``(draw, *shape)``.
        run: makes the single draw of a number, by the model at its parameters.
    """
    assert model.priors is not None
    num_draws = len(next(iter(parameters.values())))
    given = [
        run(model.at({name: value[i] for name, value in parameters.items()}), i)
        for i in range(num_draws)
    ]
    drawn = concatenated(given)
    log_p = {
        name: prior.log_prob(parameters[name])
        for name, (_, prior) in model.priors.pairs(model).items()
    }
    total = torch.stack([*log_p.values()]).sum(0)
    shared = total if drawn.log_p.shared is None else total + drawn.log_p.shared
    return drawn._replace(
        sites=Values(drawn.sites.local, {**parameters, **drawn.sites.shared}),
        log_p=LogDensity(drawn.log_p.local, shared),
        log_parameters=log_p,
    )


def concatenated(parts: Sequence[Draws]) -> Draws:
    """Draws that were made apart, one after the other."""
    return Draws(
        sites=joined_values([part.sites for part in parts]),
        predictive=torch.cat([part.predictive for part in parts]),
        log_likelihood=_joined([part.log_likelihood for part in parts]),
        log_p=_densities([part.log_p for part in parts]),
        log_q=_densities([part.log_q for part in parts if part.log_q is not None])
        if parts[0].log_q is not None
        else None,
        diagnostics={
            name: OVER_DRAWS[name](torch.stack([part.diagnostics[name] for part in parts]), 0)
            for name in parts[0].diagnostics
        },
        entries=lambda scored: torch.cat([part.entries(scored) for part in parts]),
        log_parameters=_joined([part.log_parameters for part in parts]),
    )


def joined_values(parts: Sequence[Values]) -> Values:
    """Values of the same sites, one draw after the other."""
    return Values(_joined([part.local for part in parts]), _joined([part.shared for part in parts]))


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _densities(parts: Sequence[LogDensity]) -> LogDensity:
    shared = [part.shared for part in parts if part.shared is not None]
    return LogDensity(
        torch.cat([part.local for part in parts]), torch.cat(shared) if shared else None
    )
