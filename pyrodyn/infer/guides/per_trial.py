"""Pyro's automatic guides on recordings: one set of parameters per trial.

An automatic guide is not amortised: its parameters have one row for each trial of its first run.
`fit` therefore shows it the whole recording first, and `RecordedTrials` then gives each batch the
rows of its trials. After the fit they are found by what was observed, so that trials may come in
any order; trials that the guide was not fitted to have no rows and are refused.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from jaxtyping import Int
from pyro.infer.autoguide import (
    AutoCallable,
    AutoContinuous,
    AutoDelta,
    AutoGaussian,
    AutoGuide,
    AutoGuideList,
    AutoMessenger,
    AutoNormal,
    AutoStructured,
)
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.guides.check_guide import GuideError
from pyrodyn.infer.traces import Program, drawn_sites
from pyrodyn.models.parameters import local_parameters

JOINT = (AutoContinuous, AutoGaussian, AutoStructured)
"""Guides that draw the latents of all trials jointly."""


class TrialRows(pyro.plate):
    """A plate that hands each trial its row of a parameter, be they all rows in another order.

    It does not scale what lies within: the model knows how many trials a batch stands for.
    """

    subsample_size: int

    def _process_message(self, msg: Any) -> None:
        scale = msg["scale"]
        super()._process_message(msg)
        msg["scale"] = scale

    def _postprocess_message(self, msg: Any) -> None:
        # Pyro takes rows only for fewer trials than there are rows, and else none but all in order.
        num_taken = self.subsample_size
        self.subsample_size = -1
        super()._postprocess_message(msg)
        self.subsample_size = num_taken


class RecordedTrials:
    """The plate over trials of a guide that has parameters for each trial of one recording.

    To be used as ``create_plates`` of an automatic guide.

    Args:
        keys: one per trial, by `trial_keys`.
        needs_all: whether the guide needs all trials at once, in their recorded order.

    Attributes:
        is_training: whether batches are cut from the recording itself, by ``batch.trial``; what
            they show of a trial may then be altered by a transform.
    """

    def __init__(self, keys: list[str], needs_all: bool) -> None:
        self.keys, self.needs_all = keys, needs_all
        self.is_training = False

    def __call__(self, batch: Batch) -> pyro.plate:
        """The plate for the trials of a batch."""
        return TrialRows("trials", len(self.keys), subsample=self.rows(batch), dim=-1)

    def checked(self, batch: Batch) -> bool:
        """True for a batch whose trials have rows; raises as `rows` does for others."""
        return len(self.rows(batch)) > 0

    def rows(self, batch: Batch) -> Int[Tensor, " trial"]:
        """The row of every trial of a batch.

        Raises:
            GuideError: for trials that have none, and for a part of the trials where all are
                needed at once.
        """
        if self.is_training:
            return batch.trial
        row_of = {key: row for row, key in reversed([*enumerate(self.keys)])}
        rows = [row_of.get(key, -1) for key in trial_keys(batch)]
        if -1 in rows:
            raise GuideError(
                f"trial {int(batch.trial[rows.index(-1)])} is none of the {len(self.keys)} trials"
                " that this guide was fitted to, and it has parameters for these alone; take an"
                " amortised guide, such as the model's own, for other trials"
            )
        if self.needs_all and rows != [row_of[key] for key in self.keys]:
            raise GuideError(
                f"this guide needs its {len(self.keys)} trials all at once, in their recorded"
                f" order; it was given {len(rows)} (raise batch_size)"
            )
        return torch.tensor(rows, device=batch.seen.device)


def trial_keys(batch: Batch) -> list[str]:
    """A checksum of what the encoder sees of each trial."""
    seen = batch.seen.detach().float().cpu().numpy()
    return [hashlib.blake2b(trial.tobytes(), digest_size=8).hexdigest() for trial in seen]


def is_per_trial(guide: Program) -> bool:
    """Whether a guide is an automatic one with parameters per trial."""
    if isinstance(guide, AutoMessenger):
        return "trials" not in guide.amortized_plates
    if not isinstance(guide, AutoGuide):
        return False
    containers = (AutoCallable, AutoGuideList)
    parts = [part for part in guide.modules() if isinstance(part, AutoGuide)]
    return any(not isinstance(part, containers) for part in parts)


def recorded_trials(guide: Program) -> RecordedTrials | None:
    """The trials that a guide has parameters for, where `prepare_guide` has set them."""
    if isinstance(guide, AutoMessenger):
        found = vars(guide).get("recorded_trials")
    elif isinstance(guide, AutoGuide):
        found = guide.create_plates
    else:
        return None
    return found if isinstance(found, RecordedTrials) else None


def prepare_guide(guide: Program, recording: Batch, batch_size: int, sees_others: bool) -> None:
    """Let an automatic guide make its parameters, for all trials of a recording.

    Args:
        guide: any guide; all but automatic ones are left alone.
        recording: all trials.
        batch_size: trials per batch.
        sees_others: whether the guide will be given other trials too, for validation.

    Raises:
        GuideError: for a guide that cannot be fitted so.
    """
    if not is_per_trial(guide):
        return
    assert isinstance(guide, AutoGuide | AutoMessenger)
    kind, num_trials = type(guide).__name__, recording.num_trials
    is_joint = any(isinstance(part, JOINT) for part in guide.modules())
    if num_trials > batch_size and (is_joint or isinstance(guide, AutoMessenger)):
        why = "draws all trials jointly" if is_joint else "has one set of parameters per trial"
        raise GuideError(
            f"{kind} {why} and cannot be trained on minibatches of {batch_size} trials; set"
            f" batch_size={num_trials} or more, or take AutoNormal"
        )
    if sees_others:
        raise GuideError(
            f"{kind} has parameters for the {num_trials} trials that it is fitted to and none for"
            " validation trials; leave valid= out, or take an amortised guide"
        )
    needs_all = is_joint or isinstance(guide, AutoMessenger)
    set_trials(guide, RecordedTrials(trial_keys(recording), needs_all=needs_all))
    try:
        with torch.no_grad(), local_parameters():
            guide(recording)
    except (ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, GuideError):
            raise
        reason = " ".join(str(error).split())[:300] or "no message"
        raise GuideError(
            f"{kind} cannot be set up for the {num_trials} trials of this recording"
            f" ({type(error).__name__}: {reason}); it must be a new guide of this model, with"
            " parameters for no other trials"
        ) from error
    _check_initial_values(guide)
    for parameter in guide.parameters():
        # Some initial values are expanded views of the model's own parameters.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _check_initial_values(guide: AutoGuide | AutoMessenger) -> None:
    """Refuse initial values of another shape than their site's, which trials would share."""
    for part in guide.modules():
        if not isinstance(part, AutoNormal | AutoDelta):
            continue
        for name in drawn_sites(part.prototype_trace):
            site = part.prototype_trace.nodes[name]
            wanted, found = tuple(site["fn"].shape()), tuple(site["value"].shape)
            if wanted != found:
                raise GuideError(
                    f"the initial value of site {name!r} has the shape {found}; give it the shape"
                    f" {wanted}, one value per trial"
                )


def set_trials(guide: AutoGuide | AutoMessenger, trials: RecordedTrials) -> None:
    """Tie a guide to the trials of a recording, unless it creates its plates by itself.

    Raises:
        GuideError: for a guide that is tied to other trials.
    """
    before = recorded_trials(guide)
    if before is not None and before.keys != trials.keys:
        raise GuideError(
            f"this {type(guide).__name__} was fitted to {len(before.keys)} other trials and has"
            " parameters for these alone; make a new guide for this recording"
        )
    if isinstance(guide, AutoMessenger):
        guide.recorded_trials = trials
    elif guide.create_plates is None or before is not None:
        guide.create_plates = trials


def tie_to_first_run(guide: Program) -> None:
    """Tie an automatic guide that was set up outside `fit`, by Pyro's engines or by hand, to the
    trials of its first run, so that it is read out for these alone.
    """
    if not isinstance(guide, AutoGuide) or not is_per_trial(guide):
        return
    prototype = guide.prototype_trace
    if prototype is None or guide.create_plates is not None:
        return
    given = prototype.nodes.get("_INPUT", {}).get("args", ())
    first = [value for value in given if isinstance(value, Batch)]
    if first:
        is_joint = any(isinstance(part, JOINT) for part in guide.modules())
        set_trials(guide, RecordedTrials(trial_keys(first[0]), needs_all=is_joint))


@contextlib.contextmanager
def cut_from_recording(guide: Program) -> Iterator[None]:
    """Inside, batches are cut from the recording that a guide is tied to, whatever transforms make
    of them.
    """
    trials = recorded_trials(guide)
    if trials is None:
        yield
        return
    trials.is_training = True
    try:
        yield
    finally:
        trials.is_training = False
