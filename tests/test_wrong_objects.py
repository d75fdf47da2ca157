"""What is no argument at all: one sentence, in an interpreter without the type checks of tests."""

import subprocess
import sys

import pytest

SCRIPT = """
import tempfile

import numpy as np
import torch
import xarray as xr

from pyrodyn import analysis, fit, predict
from pyrodyn.data import recording, sessions
from pyrodyn.infer import (
    ELBO, Fit, FlowStart, RefinedGuide, SequentialMonteCarlo, check_guide, filter_bin,
    importance_sample, particle_filter,
)
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, load, save
from pyrodyn.posterior import elpd, for_ppc, kfold, predictive_p_values

recorded = recording(counts=np.ones((2, 5, 3), int), bin_width=0.01)
model = LowRankRNN(3, latent_dim=1, num_units=2, proposal="bootstrap")
batch = model.trials_of(recorded).batch()
fitted = Fit(model, model.guide, xr.Dataset(), 0, 0)


def made_for_more():
    other = LowRankRNN(3, latent_dim=1, num_units=2)
    other.proposal = LowRankRNN(5, latent_dim=1, num_units=2).proposal
    return other.guide


def saved_and_loaded_as(model_class):
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        load(folder, model_class=model_class)


for name, call in {
    "objective": lambda: fit(model, recorded, objective="elbo"),
    "schedule": lambda: fit(model, recorded, schedule=1e-2),
    "guide": lambda: fit(model, recorded, guide=5),
    "check": lambda: check_guide(model, None, batch).require(),
    "checked": lambda: check_guide(model, model.guide, recorded),
    "fitted": lambda: fit(model, recorded, guide=fitted),
    "further": lambda: fit(fitted, recorded),
    "drawn by": lambda: predict(model, recorded, guide=fitted),
    "weights": lambda: importance_sample(fitted, model.guide, batch),
    "transforms": lambda: fit(model, recorded, transforms=abs),
    "beta": lambda: ELBO(beta=-1),
    "filter": lambda: particle_filter(model, recorded),
    "sample": lambda: importance_sample(model, model.guide, recorded),
    "stream": lambda: filter_bin(model, torch.zeros(1, 3)),
    "switch": lambda: LowRankRNN(3, is_full_rank="no"),
    "noise": lambda: NodeSAE(3, process_noise="yes"),
    "width": lambda: NodeSAE(3, initial_noise="2"),
    "epochs": lambda: fit(model, recorded, max_epochs=2.5),
    "run": lambda: analysis.free_run(model.dynamics(), 2, 3),
    "class": lambda: saved_and_loaded_as(model),
    "flow": lambda: FlowStart("fit"),
    "refined": lambda: RefinedGuide(model.guide),
    "elpd": lambda: elpd(3),
    "view": lambda: for_ppc(recorded),
    "p-values": lambda: predictive_p_values(xr.DataTree()),
    "folds": lambda: kfold(lambda train: None, recorded, num_folds=2),
    "sessions": lambda: sessions(recorded),
    "encoder": lambda: made_for_more()(model.trials_of(recorded).batch()),
}.items():
    try:
        call()
    except ValueError as problem:
        print(name, problem, sep=": ")
"""

NO_BATCH = (
    "expected a Batch, not a Dataset; make one from a recording by"
    " model.trials_of(recording).batch()"
)
OF_FIT = (
    "guide is a Fit, which cannot be called; a guide is a Pyro program that takes a batch (that"
    " of a Fit is its .guide)"
)
SENTENCES = (
    "further: the model is a Fit; pass its .model to train it further, and its .guide as guide="
    " unless that is the model's own",
    "objective: objective='elbo'; give an objective such as ELBO() or VSMC(64)",
    "schedule: schedule=0.01; give a Schedule(...), or leave it out",
    "guide: guide=5 cannot be called; a guide is a Pyro program that takes a batch",
    "check: guide=None cannot be called; a guide is a Pyro program that takes a batch",
    f"checked: {NO_BATCH}",
    f"fitted: {OF_FIT}",
    f"drawn by: {OF_FIT}",
    "weights: model is a Fit, which cannot be called; a model is a Pyro program that takes a"
    " batch (that of a Fit is its .model)",
    "transforms: transforms=<built-in function abs>; give a list, such as [SpikeJitter(1)]",
    "beta: beta=-1; give weights by site, such as {'z0': 0.5}",
    f"filter: {NO_BATCH}",
    f"sample: {NO_BATCH}",
    "stream: algorithm is a LowRankRNN; give SequentialMonteCarlo(model, num_particles)",
    "switch: is_full_rank='no' must be True or False",
    "noise: process_noise='yes' must be True or False",
    "width: initial_noise='2' must be a finite standard deviation above 0",
    "epochs: max_epochs=2.5 must be an integer of at least 1",
    "run: Dynamics has no initial-state distribution and no observation model; give a model of"
    " pyrodyn.models",
    "class: model_class must be a subclass of LatentDynamics, not an instance",
    "flow: FlowStart is for models that draw an initial state (LFADS, NodeSAE and RnnSAE without"
    " process noise); this str does not: use its own guide",
    "refined: RefinedGuide refines the guide of a model or of the Fit that fit(...) returned; a"
    " method is neither",
    "elpd: expected the DataTree that to_datatree returns, not a value of type int",
    "view: expected the DataTree that to_datatree returns, not a value of type Dataset",
    "p-values: the tree has no group posterior_predictive and observed_data and constant_data; its"
    " groups are none",
    "folds: fit returned a NoneType; it must return the Fit of pyrodyn.fit, or a model",
    "sessions: sessions are a dict of recordings by name, or a list of recordings; this is a"
    " Dataset",
    "encoder: this encoder was made for 5 neurons and 1 latents; the recording has 3 and the"
    " model 1",
)


@pytest.fixture(scope="module")
def printed() -> list[str]:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


@pytest.mark.parametrize("sentence", SENTENCES)
def test_wrong_objects_are_refused_in_a_sentence(sentence, printed):
    assert sentence in printed
