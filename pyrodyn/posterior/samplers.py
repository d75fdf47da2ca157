"""The methods by which posterior draws are made, each a function of a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.mcmc.latents import NUM_CHAINS, NUM_WARMUP
from pyrodyn.infer.traces import Program, guide_program, traced
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.posterior.draws import (
    GuideSampler,
    SingleDraws,
    active_dropout,
    exact_draws,
    importance_draws,
    mcmc_draws,
    pool_draws,
    smoother_draws,
)
from pyrodyn.posterior.parameter_draws import at_each_draw, concatenated
from pyrodyn.posterior.sites import Draws

METHODS = ("guide", "dropout", "importance", "smoother", "pool", "exact", "mcmc")
BY_PARTICLES = ("importance", "smoother", "pool")
NUM_PARTICLES = 1000
"""Of the methods above by default."""

NUM_DRAWS, NUM_MCMC_DRAWS = 100, 400
"""Draws per trial of a tree by default; those of chains depend on each other."""

TRIALS_AT_ONCE = 256
"""Copies of trials that a model without latents runs on at once."""

Sampler = Callable[[Batch, int], Draws]
"""Makes so many draws for every trial of a batch."""


def chains_of(method: str, num_chains: int | None, num_draws: int | None) -> tuple[int, int]:
    """Chains and draws of all chains together, where None stands for the method's default.

    Raises:
        ValueError: for draws that cannot be divided among the chains.
    """
    is_mcmc = method == "mcmc"
    if num_chains is None:
        num_chains = NUM_CHAINS if is_mcmc else 1
    if num_draws is None:
        num_draws = NUM_MCMC_DRAWS if is_mcmc else NUM_DRAWS
    check_integer(2 if is_mcmc else 1, num_chains=num_chains)
    check_integer(1, num_draws=num_draws)
    if num_draws % num_chains:
        raise ValueError(f"num_draws={num_draws} is not divisible by num_chains={num_chains}")
    return num_chains, num_draws


def require_use(method: str, **options: int | None) -> None:
    """Refuse the numbers of particles or of trajectories that a method has no use for.

    Raises:
        ValueError: naming the option and the methods that it is for.
    """
    for name, value in options.items():
        users = ("mcmc",) if name == "num_warmup" else BY_PARTICLES
        if value is not None and method not in users:
            raise ValueError(
                f"{name}={value!r} has no meaning for method={method!r}; it is for"
                f" {', '.join(map(repr, users))}"
            )


def sampler(
    method: str,
    model: LatentDynamics,
    guide: Program,
    num_particles: int | None = None,
    num_chains: int = NUM_CHAINS,
    num_warmup: int | None = None,
) -> Sampler:
    """The sampler of a method.

    One sampler draws for all batches of a recording, always the same number: sites that all trials
    share are drawn with the first batch and kept for the later ones. None stands for the default
    number.

    Raises:
        ValueError: for an unknown method, too few particles, numbers that the method has no use
            for, a method that does not apply to the
            model, and ``"mcmc"`` of a model with priors.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; it is one of {', '.join(METHODS)}")
    require_use(method, num_particles=num_particles, num_warmup=num_warmup)
    num_particles = NUM_PARTICLES if num_particles is None else num_particles
    num_warmup = NUM_WARMUP if num_warmup is None else num_warmup
    check_integer(2, num_particles=num_particles, num_warmup=num_warmup)
    if method == "dropout":
        return DropoutDraws(model, guide)
    if method != "guide":
        model.require_latents(f"method={method!r}")
    if model.priors is not None:
        if method == "mcmc":
            raise ValueError(
                "method='mcmc' draws the latents of single trials, and this model has priors of"
                " parameters, which all trials share: take method='guide'"
            )
        single = method == "guide"
        return (
            SingleDraws(model, guide)
            if single
            else AtParameters(method, model, guide, num_particles)
        )
    if method == "guide":
        return GuideSampler(model, guide)

    def draw(batch: Batch, num_draws: int) -> Draws:
        match method:
            case "importance":
                return importance_draws(model, guide, batch, num_draws, num_particles)
            case "smoother":
                return smoother_draws(model, batch, num_draws, num_particles)
            case "exact":
                return exact_draws(model, batch, num_draws)
            case "mcmc":
                return mcmc_draws(model, guide, batch, num_draws, num_chains, num_warmup)
            case _:
                return pool_draws(model, batch, num_draws, num_particles)

    return draw


class DropoutDraws:
    """Draws of a model without latents, each with dropout masks of its own (Monte Carlo dropout).

    Args:
        model: the model.
        guide: its guide, which draws the parameters that have priors.

    Raises:
        ValueError: for a model with latents, whose guide draws, and for one without dropout.
    """

    def __init__(self, model: LatentDynamics, guide: Program) -> None:
        if model.has_latents:
            raise ValueError(
                f"method='dropout' is for models without latent sites, and {type(model).__name__}"
                " has some, which its guide draws: take method='guide'"
            )
        if not model.has_dropout:
            raise ValueError(
                f"this {type(model).__name__} has no dropout by which draws could differ: take"
                " method='guide', whose draws of the rates are identical"
            )
        self.model = model
        self.one_by_one = SingleDraws(model, guide)
        self.at_once = GuideSampler(model, guide)

    def __call__(self, batch: Batch, num_draws: int) -> Draws:
        """Draws for the trials of a batch."""
        with active_dropout(self.model):
            if self.model.priors is not None:
                return self.one_by_one(batch, num_draws)
            most = max(1, TRIALS_AT_ONCE // batch.num_trials)
            starts = range(0, num_draws, most)
            return concatenated(
                [self._of_copies(batch, min(most, num_draws - start)) for start in starts]
            )

    def _of_copies(self, batch: Batch, num_draws: int) -> Draws:
        """One draw for each of so many copies of every trial, as so many draws."""
        shape = num_draws, batch.num_trials
        drawn = self.at_once(batch.take(torch.arange(batch.num_trials).repeat(num_draws)), 1)

        def separate(value: Tensor) -> Tensor:
            return value.reshape(*shape, *value.shape[2:])

        local = {name: separate(value) for name, value in drawn.sites.local.items()}
        return drawn._replace(
            sites=drawn.sites._replace(local=local),
            predictive=separate(drawn.predictive),
            log_likelihood={name: separate(value) for name, value in drawn.log_likelihood.items()},
            log_p=drawn.log_p._replace(local=separate(drawn.log_p.local)),
            entries=lambda scored: separate(drawn.entries(scored.repeat(num_draws, 1, 1))),
        )


class AtParameters:
    """Draws by weights or by a filter, each given a draw of the parameters that have priors.

    The parameters are drawn from the guide, with the first batch, and the latents of every trial
    by the method, from the model at these parameters.

    Args:
        method: one of `METHODS` other than ``"guide"``.
        model: a model with priors.
        guide: draws its parameters.
        num_particles: of each run of the method.

    Raises:
        ValueError: for importance weights of a guide that is not the model's own.
    """

    def __init__(
        self, method: str, model: LatentDynamics, guide: Program, num_particles: int
    ) -> None:
        if method == "importance" and getattr(guide, "__self__", None) is not model:
            raise ValueError(
                "method='importance' weights draws of the latents given the parameters that have"
                " priors, which only model.guide makes; take method='guide'"
            )
        self.method, self.model, self.guide = method, model, guide
        self.num_particles = num_particles
        self.parameters: dict[str, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, num_draws: int) -> Draws:
        """Draws for the trials of a batch."""
        if self.parameters is None:
            assert self.model.priors is not None
            traces = [traced(guide_program(self.guide), batch) for _ in range(num_draws)]
            self.parameters = {
                name: torch.stack([trace.nodes[name]["value"] for trace in traces])
                for name in self.model.priors.cards
            }

        def run(at: LatentDynamics, _: int) -> Draws:
            num_particles = self.num_particles if self.method in BY_PARTICLES else None
            return sampler(self.method, at, at.guide, num_particles)(batch, 1)

        return at_each_draw(self.model, self.parameters, run)
