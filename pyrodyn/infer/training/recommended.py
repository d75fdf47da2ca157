"""How each model is fitted by default: objective, transforms, schedule, batch size and length.

`fit`, the command line, the demo, the notebooks and the documentation read these settings and have
none of their own. They were chosen on the recordings and simulators of `benchmarks/defaults.py`,
where the scores of the resulting fits stand beside those of `pyrodyn.analysis.baselines`.

Common to all models:

- The length is counted in training steps, since an epoch of a small recording has a step or two. A
  step has about a third of the trials, 8 to 64 of them; the number of steps falls with the bins of
  a step, so that a fit takes at most about five minutes on one thread of a current processor.
- The learning rate falls geometrically to `FINAL_FRACTION` of its initial value; with validation
  trials the weights of the lowest validation loss are kept.
- The KL of the initial condition or path is ramped over `RAMP_STEPS` steps (less in a short fit).
  Otherwise its posterior collapses onto its prior in small recordings. A ramp alone lets the
  encoder reproduce the noise of single trials; coordinated dropout prevents that. The KL of
  inferred inputs is not ramped, so that they do not replace autonomous dynamics.
- The low-rank RNN and the shallow PLRNN are fitted by particles. Their encoders copy noise within a
  few hundred steps if trials are few, and half of the entries are hidden from them. So is the
  linear dynamical system, unless its observation is Gaussian: then it is fitted by the exact
  evidence. Models from three functions are fitted by particles too, and more of them where the
  prior proposes them.
- NDT has no latents, and its objective is the likelihood of what is hidden from it; its validation
  loss is that of hidden entries too. It is fitted by masking single entries, as coordinated dropout
  does: by masking whole bins, as published, it overfits small recordings. Its learning rate is
  warmed up and then falls along a cosine.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import xarray as xr

from pyrodyn.data.batch import Transform
from pyrodyn.data.transforms import CoordinatedDropout
from pyrodyn.infer.objectives.elbo import ELBO
from pyrodyn.infer.objectives.kalman import Kalman
from pyrodyn.infer.objectives.objective import Objective, Ramp
from pyrodyn.infer.objectives.vsmc import VSMC
from pyrodyn.infer.traces import Program
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.infer.training.schedule import Schedule
from pyrodyn.models.density_model import DensityModel
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.lfads import LFADS
from pyrodyn.models.linear_dynamics import LinearDynamics
from pyrodyn.models.low_rank_rnn import LowRankRNN
from pyrodyn.models.ndt import NDT
from pyrodyn.models.sae import SequentialAutoencoder
from pyrodyn.models.shallow_plrnn import ShallowPLRNN
from pyrodyn.models.state_space import StateSpaceModel

FEWEST_TRIALS, MOST_TRIALS = 8, 64
"""Trials per step."""

FEWEST_STEPS = 400
"""Training steps."""


class Family(NamedTuple):
    """Settings of a model class."""

    learning_rate: float
    """Adam's initial step size."""
    hidden: float
    """Fraction of entries that coordinated dropout hides."""
    most_steps: int
    """Training steps."""
    bins: int
    """Bins of all trials of all steps."""


OF_LFADS = Family(5e-3, 0.3, 2000, 9_000_000)
OF_LOW_RANK_RNN = Family(3e-3, 0.5, 800, 4_000_000)
OF_DENSITIES = Family(1e-2, 0.5, 400, 4_000_000)
OF_LINEAR_DYNAMICS = Family(1e-2, 0.5, 800, 4_000_000)
OF_SAE = Family(5e-3, 0.3, 1000, 6_400_000)
OF_NDT = Family(2e-3, 0.5, 1000, 2_500_000)

FINAL_FRACTION = 0.2
"""Ratio of the final learning rate to the initial one."""

NUM_PARTICLES = 4
"""Few particles leave more of the work to the encoder, by which rates are predicted."""

NUM_PRIOR_PARTICLES = 32
"""Of a model from functions whose particles are proposed by the prior."""

RAMP_STEPS = 500

RAMP_FRACTION = 0.25
"""Largest part of a fit that ramps take."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Arguments of `fit`, by their names.

    Attributes:
        objective: the bound to maximise.
        transforms: transforms of training batches.
        valid_transforms: transforms of validation batches.
        schedule: learning rates.
        batch_size: trials per step.
        max_steps: training steps.
    """

    objective: Objective
    transforms: Sequence[Transform]
    valid_transforms: Sequence[Transform]
    schedule: Schedule
    batch_size: int
    max_steps: int


def recommended(
    model: LatentDynamics | Fit[LatentDynamics],
    recording: xr.Dataset,
    *,
    max_steps: int | None = None,
    guide: Program | None = None,
) -> Recipe:
    """The settings with which `fit` trains a model where it is given none.

    ::

        recipe = pyrodyn.recommended(model, train)
        pyrodyn.fit(model, train, valid, transforms=[*recipe.transforms, SpikeJitter(1)])

    Args:
        model: the model to fit, or a `Fit` of it.
        recording: the training trials.
        max_steps: length of the fit where it is given; ramps are shorter in a short fit.
        guide: a guide in place of the model's own. With it, and for models of your own, the
            settings are the plain ELBO without transforms.

    Returns:
        All settings, each an argument of `fit` of the same name.
    """
    if isinstance(model, Fit):
        model = model.model
    is_own = guide is None or getattr(guide, "__self__", None) is model
    family = _family(model) if is_own else None
    if family is None:
        return Recipe(ELBO(), (), (), Schedule(), MOST_TRIALS, max_steps or OF_LFADS.most_steps)
    batch_size = _batch_size(recording.sizes["trial"])
    if max_steps is None:
        bins_per_step = batch_size * recording.sizes["time"]
        max_steps = max(FEWEST_STEPS, min(family.most_steps, family.bins // bins_per_step))
    ramp_steps = min(RAMP_STEPS, int(RAMP_FRACTION * max_steps))
    final = FINAL_FRACTION * family.learning_rate
    schedule = Schedule(learning_rate=family.learning_rate, final_learning_rate=final)
    if isinstance(model, NDT):
        schedule = dataclasses.replace(schedule, decay="cosine", warmup_steps=ramp_steps // 4)
        masked = (CoordinatedDropout(family.hidden),)
        return Recipe(ELBO(), masked, masked, schedule, batch_size, max_steps)
    assert isinstance(model, StateSpaceModel)
    ramp = Ramp(ramp_steps)
    objective: Objective
    if isinstance(model, LinearDynamics) and model.observation.is_gaussian():
        objective = Kalman()
    elif isinstance(model, DensityModel) and not model.proposal.has_encoder:
        objective = VSMC(NUM_PRIOR_PARTICLES)
    elif isinstance(model, DensityModel | LinearDynamics | LowRankRNN | ShallowPLRNN):
        objective = VSMC(NUM_PARTICLES)
    else:
        objective = ELBO(beta={model.initial_condition_site or str(model.path_site): ramp})
    has_encoder = model.proposal.has_encoder  # which alone can copy the data
    transforms = (CoordinatedDropout(family.hidden),) if has_encoder else ()
    return Recipe(objective, transforms, (), schedule, batch_size, max_steps)


def _family(model: LatentDynamics) -> Family | None:
    """The settings of the model's class; None for a model of the user's own."""
    if isinstance(model, LFADS):
        return OF_LFADS
    if isinstance(model, LowRankRNN | ShallowPLRNN):
        return OF_LOW_RANK_RNN
    if isinstance(model, LinearDynamics):
        return OF_LINEAR_DYNAMICS
    if isinstance(model, NDT):
        return OF_NDT
    if isinstance(model, DensityModel):
        return OF_DENSITIES
    return OF_SAE if isinstance(model, SequentialAutoencoder) else None


def _batch_size(num_trials: int) -> int:
    """The power of two that is nearest to a third of the trials, within limits."""
    size = FEWEST_TRIALS
    while size < MOST_TRIALS and 1.5 * size < num_trials / 3:
        size *= 2
    return size
