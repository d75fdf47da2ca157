"""Whether a guide fits its model.

`check_guide` runs guide and model on a batch and lists, in one sentence each, what would otherwise
end in a wrong posterior or in an error deep inside a run: sites that do not match, shapes that
merely broadcast, draws without a gradient, parameters that no optimiser holds. `fit` calls it
before training::

    report = check_guide(model, guide, model.trials_of(recording).batch())
    print(report)
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro import poutine

from pyrodyn.data.batch import Batch
from pyrodyn.infer.guides.parameter_checks import (
    gradient_problems,
    idle_parameters,
    memory_problems,
    untrained_parameters,
)
from pyrodyn.infer.guides.site_checks import (
    PLATE,
    Site,
    joint_problems,
    matching_problems,
    site_problems,
)
from pyrodyn.infer.objectives.objective import Objective
from pyrodyn.infer.traces import Program, guide_program, latent_sites, module_of, traced
from pyrodyn.nn.solvers import DivergenceError


class GuideError(ValueError):
    """A guide that does not fit its model, or is used for what it cannot do."""


@dataclasses.dataclass(frozen=True)
class GuideReport:
    """What `check_guide` found.

    Attributes:
        problems: what makes results wrong or ends in an error, a sentence each.
        warnings: what is likely a mistake, a sentence each.
    """

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.problems and not self.warnings:
            return "the guide fits the model"
        lines = [f"problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def require(self) -> None:
        """Raise the problems as one `GuideError`, if there are any; warn of the warnings."""
        if self.problems:
            raise GuideError("; ".join(self.problems))
        for warning in self.warnings:
            warnings.warn(warning, stacklevel=3)


def check_guide(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    objective: Objective | None = None,
    num_trials: int | None = None,
    sees_other_trials: bool = False,
    training: bool = True,
) -> GuideReport:
    """Whether a guide fits a model.

    The guide runs once, or twice for minibatches, in evaluation mode, and the model once on two
    trials; the state of torch's random number generator is kept.

    Args:
        model: a model of the zoo, or any Pyro program.
        guide: its guide.
        batch: trials, as many as the guide will be given at once.
        objective: with which the guide will be trained; None leaves out what depends on it.
        num_trials: of the recording that batches are cut from; by default the batch is all of it.
        sees_other_trials: whether the guide will be given other trials than those of the
            recording, as for validation.
        training: whether parameters will be trained; without it only sites and shapes are checked.

    Returns:
        Problems and warnings. A guide that cannot be run at all is a problem.
    """
    if isinstance(guide, type):
        name = guide.__name__
        return GuideReport((f"the guide is the class {name}; pass an instance of it, {name}(...)",))
    if not callable(guide):
        return GuideReport(
            (f"guide={guide!r} cannot be called; a guide is a Pyro program that takes a batch",)
        )
    with torch.random.fork_rng(), _evaluating(guide):
        latent = _latent_sites(model, guide, batch)
        watched, reads = _watched(batch)
        try:
            trace = _traced(guide, watched, training)
            if num_trials is not None and num_trials > batch.num_trials > 1:
                _traced(guide, watched.take(slice(0, batch.num_trials // 2)), False)
        except ArithmeticError:  # about the data: no trajectory explains them
            raise
        except Exception as error:  # whatever a user's program ends with
            return GuideReport((_failure(error, latent, reads, batch, num_trials),))
    problems = matching_problems(latent, trace)
    problems += [
        sentence
        for name in latent_sites(trace)
        if name in latent
        for sentence in site_problems(name, latent[name], trace.nodes[name], batch)
    ]
    problems += joint_problems(guide, trace, objective, batch, num_trials)
    if sees_other_trials and "trial" in reads:
        problems.append(
            "the guide reads batch.trial, so it has parameters per trial and none for the trials"
            " of another recording; leave valid= out"
        )
    problems = list(dict.fromkeys(problems))  # sites that share a plate share its problem
    if not training:
        return GuideReport(tuple(problems))
    problems += gradient_problems(guide, trace, objective)
    problems += untrained_parameters(model, guide, trace)
    problems += memory_problems(model, guide)
    return GuideReport(tuple(problems), tuple(idle_parameters(model, guide, trace)))


def _latent_sites(model: Program, guide: Program, batch: Batch) -> dict[str, Site]:
    """The model's latent sites, from a run on two trials."""
    few = batch.take(slice(0, 2))
    with torch.no_grad():
        try:
            trace = traced(model, few)
        except DivergenceError:  # a trajectory that diverges from a draw of the prior
            drawn = traced(guide_program(guide), few)
            trace = traced(poutine.replay(model, trace=drawn), few)
    return {name: trace.nodes[name] for name in latent_sites(trace) if name != "x"}


def _traced(guide: Program, batch: Batch, with_gradient: bool) -> poutine.Trace:
    with torch.set_grad_enabled(with_gradient):
        return traced(guide_program(guide), batch)


@contextlib.contextmanager
def _evaluating(guide: Program) -> Iterator[None]:
    """Inside, a guide is in evaluation mode, so that runs leave its statistics as they are."""
    owner = module_of(guide)
    modes = {} if owner is None else {module: module.training for module in owner.modules()}
    if owner is not None:
        owner.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _watched(batch: Batch) -> tuple[Batch, set[str]]:
    """The batch, and which of its fields the guide has read so far."""
    reads: set[str] = set()

    class Watched(Batch):
        def __getattribute__(self, name: str) -> Any:
            reads.add(name)
            return super().__getattribute__(name)

        def replace(self, **changes: object) -> Batch:
            before = set(reads)
            copied = super().replace(**changes)
            reads.intersection_update(before)
            return copied

        def take(self, positions: Any) -> Batch:
            before = set(reads)
            taken = super().take(positions)
            reads.intersection_update(before)
            return taken

    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return Watched(**fields), reads


def _failure(
    error: Exception,
    latent: Mapping[str, Site],
    reads: set[str],
    batch: Batch,
    num_trials: int | None,
) -> str:
    """What ended a run of the guide."""
    if isinstance(error, GuideError):
        return str(error)
    reason = " ".join(str(error).split())[:300] or "no message"
    ended = f"the guide ends in {type(error).__name__} ({reason})"
    if isinstance(error, AttributeError | TypeError) and "NoneType" in reason and "x" in reads:
        return (
            f"{ended}: it reads batch.x, which guides are not given because it holds what the"
            " encoder must not see (held-out neurons, forecast bins); read batch.seen"
        )
    shapes = ", ".join(f"{name} {tuple(site['fn'].event_shape)}" for name, site in latent.items())
    sentence = (
        f"{ended}; it must run on any batch and draw, {PLATE}, the sites with these event shapes:"
        f" {shapes}"
    )
    if num_trials is not None and num_trials > batch.num_trials:
        sentence += (
            "; a guide with one set of parameters per trial needs the rows of batch.trial, or all"
            f" trials in one batch (batch_size={num_trials})"
        )
    return sentence
