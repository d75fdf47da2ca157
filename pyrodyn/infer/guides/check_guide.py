"""Whether a guide fits its model.

`check_guide` runs guide and model on a batch and lists, in one sentence each, what would otherwise
end in a wrong posterior or in an error deep inside a run: sites that do not match, shapes that
merely broadcast, draws without a gradient, parameters that no optimiser holds. `fit` calls it
before training::

    report = check_guide(model, guide, model.trials_of(recording).batch())
    report.problems, report.warnings
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
    idle_parameters,
    memory_problems,
    modules_around,
    parameters,
    plain_tensors,
    point_problems,
    renewed_parameters,
    untrained_parameters,
)
from pyrodyn.infer.guides.site_checks import (
    PLATE,
    Site,
    density_problems,
    gradient_problems,
    joint_problems,
    matching_problems,
    shape_problems,
    weight_problems,
)
from pyrodyn.infer.objectives.elbo import ELBO
from pyrodyn.infer.objectives.importance_weighted import IWELBO, RWS, local_draws
from pyrodyn.infer.objectives.objective import Objective
from pyrodyn.infer.traces import (
    Program,
    guide_program,
    joint_sites,
    latent_sites,
    module_of,
    priors_of,
    runs_the_model,
    traced,
)
from pyrodyn.models.latent_dynamics import LatentDynamics
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

    The guide runs twice, or three times for minibatches, in evaluation mode and on a copy of the
    batch, and the model once on two trials; the state of torch's random number generator is kept.

    Args:
        model: a model of the zoo, or any Pyro program.
        guide: its guide.
        batch: trials, as many as the guide will be given at once.
        objective: with which the guide will be trained; None leaves out what depends on it.
        num_trials: of the recording that batches are cut from; by default the batch is all of it.
        sees_other_trials: whether the guide will be given other trials than those that it is, or
            was, fitted to.
        training: whether parameters will be trained; without it only sites and shapes are checked.

    Returns:
        Problems and warnings. A guide that cannot be run at all is a problem.

    Raises:
        ValueError: for what is no batch of this model.
    """
    problem = unusable(model, guide)
    if problem:
        return GuideReport((problem,))
    if isinstance(model, LatentDynamics):
        model.check_batch(batch)
    warned = plain_tensors(model, guide)  # before a run, which may cache some
    with torch.random.fork_rng(), _evaluating(guide):
        model_trace = _model_trace(model, guide, batch)
        latent = {
            name: model_trace.nodes[name] for name in latent_sites(model_trace) if name != "x"
        }
        if not latent and _has_no_latents(model) and module_of(guide) is not model:
            name = type(model).__name__
            return GuideReport(
                (f"{name} has no latent site for a guide to draw: leave guide= out",)
            )
        watched, reads = _watched(batch)
        versions = _versions(watched)
        try:
            trace = _traced(guide, watched, training)
            own = parameters(guide)
            if num_trials is not None and num_trials > batch.num_trials > 1:
                _traced(guide, watched.take(slice(0, batch.num_trials // 2)), False)
        except ArithmeticError:  # about the data: no trajectory explains them
            raise
        except Exception as error:  # whatever a user's program ends with
            ended = _wrapped(guide) or _failure(error, latent, reads, batch, num_trials)
            return GuideReport((ended,))
        if "x" in trace and _wrapped(guide):
            return GuideReport((_wrapped(guide),))
        problems = matching_problems(latent, trace)
        for name in latent_sites(trace):
            if name in latent:
                both = latent[name], trace.nodes[name]
                problems += shape_problems(name, *both, batch.num_trials) or density_problems(
                    name, *both, batch.num_trials
                )
        if not problems:
            problems += _joint_problems(guide, trace, model_trace, objective, batch, num_trials)
            problems += weight_problems(latent, trace, batch.weight)
            problems += _vectorisation_problems(model, guide, watched)
    changed = [name for name, version in _versions(watched).items() if versions[name] != version]
    if changed:
        problems.append(
            f"the guide changes batch.{changed[0]} in place, and so the recording itself; compute"
            " a new tensor, for example x = batch.seen / scale in place of x /= scale"
        )
    if sees_other_trials and "trial" in reads:
        problems.append(
            "the guide reads batch.trial, so it has parameters per trial, of the recording that it"
            " is fitted to, and none for other trials; give it that recording in the same order,"
            " and leave valid= out"
        )
    problems = list(dict.fromkeys(problems))  # sites that share a plate share its problem
    if not training:
        return GuideReport(tuple(problems))
    if isinstance(objective, RWS):
        problems += point_problems(guide, trace)
    elif isinstance(objective, ELBO | IWELBO):
        problems += gradient_problems(trace, type(objective).__name__)
    problems += renewed_parameters(own, guide) or untrained_parameters(model, guide, trace)
    problems += memory_problems(model, guide)
    return GuideReport(tuple(problems), (*warned, *idle_parameters(model, guide, trace)))


def unusable(model: Program, guide: Program) -> str | None:
    """What makes a guide no program at all."""
    if isinstance(guide, type):
        name = guide.__name__
        return f"the guide is the class {name}; pass an instance of it, {name}(...)"
    for role, program in {"model": model, "guide": guide}.items():
        if not callable(program):
            is_short = len(repr(program)) < 50
            what = f"={program!r}" if is_short else f" is a {type(program).__name__}, which"
            sentence = (
                f"{role}{what} cannot be called; a {role} is a Pyro program that takes a batch"
            )
            of_fit = hasattr(program, "model") and hasattr(program, "guide")
            return f"{sentence} (that of a Fit is its .{role})" if of_fit else sentence
    if guide is model:
        return "the guide is the model itself; pass model.guide, or leave guide= out"
    return None


def _has_no_latents(model: Program) -> bool:
    return isinstance(model, LatentDynamics) and not model.has_latents


def _joint_problems(
    guide: Program,
    trace: poutine.Trace,
    model_trace: poutine.Trace,
    objective: Objective | None,
    batch: Batch,
    num_trials: int | None,
) -> list[str]:
    """Draws that all trials share, where trials must be independent."""
    joint = joint_sites(trace, model_trace)
    if joint and num_trials is not None and num_trials > batch.num_trials:
        return [
            f"{type(guide).__name__} draws all trials jointly (site {joint[0]!r}) and so cannot be"
            f" trained on minibatches; set batch_size={num_trials}, all trials"
        ]
    return joint_problems(trace, model_trace) if isinstance(objective, IWELBO | RWS) else []


def _vectorisation_problems(model: Program, guide: Program, batch: Batch) -> list[str]:
    """What ends a run that makes several draws per trial at once."""
    draws_first = priors_of(model) is not None
    try:
        with torch.no_grad():
            local_draws(guide_program(guide), batch, 2, draws_first)
    except ArithmeticError:
        raise
    except Exception as error:
        return [
            f"{_ended(error)} when it makes several draws per trial at once; draws and what is"
            " computed from them then have the shape (draw, trial, ...), so write it for any"
            " number of left dims, for example h.expand(*z.shape[:-1], -1) before"
            " torch.cat([h, z], -1)"
        ]
    return []


def _model_trace(model: Program, guide: Program, batch: Batch) -> poutine.Trace:
    """A run of the model on two trials."""
    few = batch.take(slice(0, 2))
    with torch.no_grad():
        try:
            return traced(model, few)
        except DivergenceError:  # a trajectory that diverges from a draw of the prior
            drawn = traced(guide_program(guide), few)
            return traced(poutine.replay(model, trace=drawn), few)


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
    """A copy of the batch, and which of its fields the guide has read so far."""
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

    Watched.__name__ = Batch.__name__
    fields: dict[str, Any] = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    copied: dict[str, Any] = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in fields.items()
    }
    return Watched(**copied), reads


def _versions(batch: Batch) -> dict[str, int]:
    """How often each tensor of a batch has been changed in place."""
    return {
        name: value._version
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }


def _wrapped(guide: Program) -> str:
    """Why a function that runs an automatic guide cannot do so; empty for other guides."""
    for name, module in modules_around(guide):
        if runs_the_model(module):
            kind = type(module).__name__
            return (
                f"the guide wraps the automatic guide {name}, which runs the model and so needs"
                f" the observations, which guides are not given; pass the {kind} itself"
            )
    return ""


def _failure(
    error: Exception,
    latent: Mapping[str, Site],
    reads: set[str],
    batch: Batch,
    num_trials: int | None,
) -> str:
    """What ended a run of the guide."""
    if isinstance(error, GuideError):
        return str(error).partition("Trace Shapes:")[0].strip()
    ended, reason = _ended(error), str(error)
    if isinstance(error, AttributeError | TypeError) and "NoneType" in reason and "x" in reads:
        return (
            f"{ended}: it reads batch.x, which guides are not given because it holds what the"
            " encoder must not see (held-out neurons, forecast bins); read batch.seen"
        )
    if isinstance(error, NotImplementedError) and "pyro.param" in reason:
        return (
            f"{ended}: pyro.param keeps parameters in Pyro's global store, where fit does not train"
            " them; give the PyroModule an nn.Parameter or a PyroParam for each"
        )
    if "Multiple sample sites named" in reason:
        return (
            f"{ended}: a name stands for one site, or plate, of a run; make a plate once, as"
            " plate = pyro.plate(...), and enter it as often as needed"
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


def _ended(error: Exception) -> str:
    reason = " ".join(str(error).partition("Trace Shapes:")[0].split())[:300] or "no message"
    return f"the guide ends in {type(error).__name__} ({reason})"
