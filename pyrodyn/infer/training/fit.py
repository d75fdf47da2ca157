"""Fitting: a Lightning Trainer maximises an objective on a recording."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Transform
from pyrodyn.data.schema import blocks, validate
from pyrodyn.data.trial_hashes import trial_hashes
from pyrodyn.infer.guides.check_guide import check_guide
from pyrodyn.infer.guides.per_trial import cut_from_recording, prepare_guide
from pyrodyn.infer.objectives.objective import Objective
from pyrodyn.infer.traces import Program, guide_program, module_of, point_sites, traced
from pyrodyn.infer.training.allocator import keep_freed_memory
from pyrodyn.infer.training.batches import epochs_of
from pyrodyn.infer.training.checkpoint import CHECKPOINT, check_resumable, identity
from pyrodyn.infer.training.diagnostics import FitWarning, fit_diagnostics
from pyrodyn.infer.training.fitted import Fit, guide_name
from pyrodyn.infer.training.recommended import Recipe, recommended
from pyrodyn.infer.training.saving import save
from pyrodyn.infer.training.schedule import NonFiniteLossError, Schedule
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.state_space import StateSpaceModel


def fit[Model: LatentDynamics](
    model: Model,
    train: xr.Dataset,
    valid: xr.Dataset | None = None,
    *,
    objective: Objective | None = None,
    guide: Program | None = None,
    transforms: Sequence[Transform] | None = None,
    valid_transforms: Sequence[Transform] | None = None,
    max_steps: int | None = None,
    max_epochs: int | None = None,
    max_minutes: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    schedule: Schedule | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 30.0,
    loggers: Sequence[Any] = (),
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> Fit[Model]:
    """Fit a model to a recording.

    Objective, transforms, schedule, batch size and length are those that `recommended` gives for
    the model and the recording, unless given here; ``fitted.record["training"]`` holds what was
    used. The model is trained in place. On the CPU two runs with the same seed and arguments give
    identical results, bit by bit. Signs that the fit did not end well, and what the fitted model
    diagnoses (`LatentDynamics.diagnose`, such as the solver of a NODE that was too coarse), are
    warned of and kept in `Fit.diagnostics`. The guide must pass `check_guide` before anything is
    trained. This process keeps up to a gigabyte of freed memory for reuse, also after the fit.

    Args:
        model: the model to fit.
        train: recording to fit.
        valid: recording whose loss determines the learning rate, the kept weights and early
            stopping. Without it the last weights are kept.
        objective: the bound to maximise.
        guide: a Pyro program with the model's latent sites, in place of the model's own guide: a
            module or one of its methods, whose parameters are trained too, or a function without
            parameters of its own. An automatic guide of Pyro gets parameters for each trial of
            ``train``, see `pyrodyn.infer.guides.per_trial`.
        transforms: transforms of training batches from `pyrodyn.data`, such as
            `CoordinatedDropout`, in order; an empty list for none.
        valid_transforms: the same for validation batches, such as
            ``SampleValidation(...).complement()``.
        max_steps: number of training steps; the epoch in which it is reached is completed.
        max_epochs: largest number of passes over the training trials, in place of the recommended
            number of steps.
        max_minutes: largest duration of training in minutes, including the time before a resume; a
            limit in addition to that of steps or epochs.
        batch_size: trials per step.
        learning_rate: the initial learning rate of the recommended schedule, whose final one
            changes in proportion. With a schedule of your own it is an argument of `Schedule`.
        schedule: learning rates and patience, averaged weights, the growing horizon and the
            annealing of process noise.
        out: folder for checkpoint, logs (CSV and TensorBoard) and the fitted model; None writes
            nothing.
        resume: continue from the checkpoint in ``out``, with the same recordings, seed, batch size,
            guide, objective, transforms and ``average_weights``.
        checkpoint_seconds: seconds between checkpoints, which are written at the end of an epoch.
        loggers: Lightning's loggers, such as ``WandbLogger()``, which get losses, learning rate and
            diagnostics in addition to the logs in ``out``.
        seed: seeds batches, masks and noise (initial weights are drawn when the model is made).
        accelerator: Lightning's name of the hardware; ``"auto"`` uses CUDA if it is available and
            otherwise the CPU.
        progress: show one line with steps, time used and left, and losses.

    Returns:
        The fitted model with its guide and history.

    Raises:
        GuideError: for a guide that does not match the model, naming site, shape or parameter.
        ValueError: for arguments that do not fit together, recordings that do not fit the model,
            and a checkpoint that is broken or belongs to another run, before training starts.
        NonFiniteLossError: when a step is not finite; the model then has the last finite weights.
        KeyboardInterrupt: when interrupted; the checkpoint in ``out`` is the last that was written
            at the end of an epoch.
    """
    if isinstance(model, Fit):
        raise ValueError(
            "the model is a Fit; pass its .model to train it further, and its .guide as guide="
            " unless that is the model's own"
        )
    _check_kinds(objective, schedule, transforms, valid_transforms)
    _check_loggers(loggers)
    check_integer(1, **_given(max_steps=max_steps, max_epochs=max_epochs, batch_size=batch_size))
    if max_minutes is not None and max_minutes <= 0:
        raise ValueError(f"max_minutes={max_minutes} must be positive")
    train, valid = _validated(train), None if valid is None else _validated(valid)
    model.check(train)
    if valid is not None:
        model.check(valid)
    recipe, max_epochs = _recipe(
        model,
        train,
        guide,
        max_steps,
        max_epochs,
        learning_rate,
        **_given(
            objective=objective,
            transforms=transforms,
            valid_transforms=valid_transforms,
            schedule=schedule,
            batch_size=batch_size,
        ),
    )
    is_recommended = objective is None
    objective, transforms, batch_size = recipe.objective, recipe.transforms, recipe.batch_size
    schedule, valid_transforms = recipe.schedule, recipe.valid_transforms
    if schedule.noise is not None:
        schedule.noise.check(model)
    folder = None if out is None else Path(out)
    resumed = _resumed(folder, resume)
    keep_freed_memory()
    # Importing Lightning takes longer than importing all of pyrodyn, and only `fit` needs it.
    from pyrodyn.infer.training.callbacks import KeepBest
    from pyrodyn.infer.training.module import Training
    from pyrodyn.infer.training.trainer import run, trainer_with

    guide = model.guide if guide is None else guide
    own_module = module_of(guide)
    if not callable(guide) or isinstance(guide, type):
        check_guide(model, guide, model.trials_of(train).batch(slice(0, 2))).require()
    loss = objective(model, guide)
    best = KeepBest()
    trainer = trainer_with(
        best,
        validates=valid is not None,
        stop_patience=None
        if valid is None or schedule.final_learning_rate is not None
        else epochs_of(schedule.stop_patience, train.sizes["trial"], batch_size),
        max_epochs=max_epochs,
        max_minutes=max_minutes,
        checkpoint=None if folder is None else folder / CHECKPOINT,
        checkpoint_seconds=checkpoint_seconds,
        loggers=loggers,
        accelerator=accelerator,
        progress=progress,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trials = model.trials_of(train)
        first = trials.batch(slice(0, batch_size))
        prepare_guide(guide, trials.batch(), batch_size, sees_others=valid is not None)
        check_guide(
            model,
            guide,
            first,
            objective=objective,
            num_trials=len(trials),
            sees_other_trials=valid is not None,
        ).require()
        with torch.no_grad():
            factors = loss.evaluate(first).factors
            points = point_sites(traced(guide_program(guide), first))
        training = Training(
            loss,
            train,
            valid,
            transforms,
            valid_transforms,
            batch_size,
            schedule,
            model.first_bin,
            seed,
            None
            if folder is None
            else identity(
                train,
                valid,
                guide=guide_name(model, guide),
                objective=None if is_recommended else objective,
                transforms=transforms,
                valid_transforms=valid_transforms,
                batch_size=batch_size,
                average_weights=schedule.average_weights,
                seed=seed,
            ),
        )
        if resumed is not None and training.identity is not None:
            check_resumable(resumed, training.state_dict(), training.identity, max_epochs)
        model.train()
        if own_module is not None:
            own_module.train()
        try:
            with cut_from_recording(guide):
                run(trainer, training, resumed)
        finally:
            training.to("cpu")
            if best.best_weights:
                training.load_state_dict(best.best_weights)
            training.take_average()
            model.eval()
            if own_module is not None:
                own_module.eval()
            model.record = {
                "data": _schema(train),
                "training": {
                    "objective": objective.describe(),
                    "guide": guide_name(model, guide),
                    "transforms": [repr(transform) for transform in transforms],
                    "schedule": dataclasses.asdict(schedule),
                    "batch_size": batch_size,
                    "max_epochs": max_epochs,
                    "is_bound": objective.is_bound and not (transforms or factors or points),
                    "seed": seed,
                    "num_steps": trainer.global_step,
                    "best_epoch": best.kept_epoch,
                    "trials": {
                        "train": trial_hashes(train),
                        "valid": [] if valid is None else trial_hashes(valid),
                    },
                },
            }
            history = _history(best.history)
            of_fit = fit_diagnostics(
                history,
                best.kept_epoch,
                best.first_epoch,
                _informative_sites(model),
                max(objective.final_step, schedule.final_step) - trainer.global_step,
            )
            fitted = Fit(model, guide, history, best.kept_epoch, trainer.global_step, tuple(of_fit))
            if folder is not None:
                save(fitted, folder / "model")
    for sentence in of_fit:
        warnings.warn(sentence, FitWarning, stacklevel=2)
    of_model = model.diagnose(first)
    for sentence in of_model:
        warnings.warn(sentence, stacklevel=2)
    fitted = dataclasses.replace(fitted, diagnostics=(*of_fit, *of_model))
    if folder is not None and of_model:
        save(fitted, folder / "model")
    return fitted


def _validated(recording: xr.Dataset) -> xr.Dataset:
    with warnings.catch_warnings():  # neurons may be silent in one part of a split recording
        warnings.simplefilter("ignore", UserWarning)
        return validate(recording)


def _check_kinds(
    objective: object, schedule: object, transforms: object, valid_transforms: object
) -> None:
    if not isinstance(objective, Objective | None):
        raise ValueError(f"objective={objective!r}; give an objective such as ELBO() or VSMC(64)")
    if not isinstance(schedule, Schedule | None):
        raise ValueError(f"schedule={schedule!r}; give a Schedule(...), or leave it out")
    for name, value in _given(transforms=transforms, valid_transforms=valid_transforms).items():
        if not isinstance(value, Sequence) or not all(callable(each) for each in value):
            raise ValueError(f"{name}={value!r}; give a list, such as [SpikeJitter(1)]")


def _check_loggers(loggers: object) -> None:
    if isinstance(loggers, Sequence) and not loggers:
        return
    from lightning.pytorch.loggers import Logger

    if not isinstance(loggers, Sequence) or not all(isinstance(each, Logger) for each in loggers):
        raise ValueError(
            f"loggers={loggers!r}; give a list of Lightning's loggers, such as [WandbLogger()]"
        )


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def _recipe(
    model: LatentDynamics,
    train: xr.Dataset,
    guide: Program | None,
    max_steps: int | None,
    max_epochs: int | None,
    learning_rate: float | None,
    **given: Any,
) -> tuple[Recipe, int]:
    """The recommended settings, with those that were given in their place, and the largest number
    of epochs.
    """
    default = recommended(model, train, guide=guide)
    sizes = train.sizes["trial"], given.get("batch_size", default.batch_size)
    if max_steps is None and max_epochs is None:
        max_steps = default.max_steps
    limits = [] if max_epochs is None else [max_epochs]
    limits += [] if max_steps is None else [epochs_of(max_steps, *sizes)]
    num_epochs = min(limits)
    num_steps = num_epochs * math.ceil(sizes[0] / sizes[1])
    recipe = recommended(model, train, max_steps=num_steps, guide=guide)
    if learning_rate is not None:
        if "schedule" in given:
            raise ValueError(
                f"learning_rate={learning_rate} and a schedule are both given; pass"
                f" schedule=Schedule(learning_rate={learning_rate}, ...)"
            )
        recipe = dataclasses.replace(recipe, schedule=recipe.schedule.scaled_to(learning_rate))
    return dataclasses.replace(recipe, **given), num_epochs


def _resumed(folder: Path | None, resume: bool) -> Path | None:
    """The checkpoint to resume from, if any."""
    if folder is None:
        if resume:
            raise ValueError("resume=True needs out=, the folder of the run to resume")
        return None
    path = folder / CHECKPOINT
    if resume and not path.exists():
        raise ValueError(f"{folder} holds no {CHECKPOINT} to resume from; run without resume first")
    if path.exists() and not resume:
        raise ValueError(f"{folder} holds a run already; resume it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return path if resume else None


def _schema(recording: xr.Dataset) -> dict[str, Any]:
    observed = blocks(recording)
    marked = [block for block in observed if block.held_out in recording.coords]
    return {
        "observed": " and ".join(block.observed for block in observed),
        "bin_width": recording.attrs["bin_width"],
        "num_bins": recording.sizes["time"],
        **{b.unit: [str(label) for label in recording[b.unit].values] for b in observed},
        **{b.held_out: np.flatnonzero(recording[b.held_out].values).tolist() for b in marked},
    }


def _informative_sites(model: LatentDynamics) -> list[str]:
    """Latent sites that a posterior near the prior leaves without use; inferred inputs, which may
    rightly be silent, are none.
    """
    if not isinstance(model, StateSpaceModel):
        return [*model.site_dims]
    return [model.initial_condition_site or str(model.path_site)]


def _history(epochs: list[dict[str, float]]) -> xr.Dataset:
    names = sorted({name for metrics in epochs for name in metrics})
    return xr.Dataset(
        {
            name: ("epoch", [metrics.get(name, float("nan")) for metrics in epochs])
            for name in names
        },
        coords={"epoch": range(len(epochs))},
    )


__all__ = ["Fit", "NonFiniteLossError", "Schedule", "fit"]
