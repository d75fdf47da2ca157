"""Small models of every kind, to be run on the CPU and on the double of a GPU."""

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from gpu_double import gpu_double
from torch import Tensor, nn
from torch.distributions import Normal

from pyrodyn import data, models
from pyrodyn.data.batch import Batch

SHAPE = (4, 7, 6)
POISSON = data.simulate("lorenz", *SHAPE, seed=0)
GAUSSIAN = data.simulate("lorenz", *SHAPE, observation="gaussian", seed=0)
BOTH = data.simulate("lorenz", *SHAPE, num_channels=3, seed=0)
HELD_OUT = data.held_out(POISSON, neurons=[5], forecast_bins=2)
DRIVEN = data.recording(
    counts=np.random.default_rng(0).poisson(1.0, SHAPE),
    inputs=np.random.default_rng(1).normal(size=(*SHAPE[:2], 2)),
    bin_width=0.01,
)
DRIVEN_SIGNAL = data.recording(
    signal=np.random.default_rng(2).normal(size=SHAPE),
    inputs=np.random.default_rng(1).normal(size=(*SHAPE[:2], 2)),
    bin_width=0.01,
)

LFADS_SIZES = {
    "factor_dim": 3,
    "generator_dim": 7,
    "initial_condition_dim": 4,
    "encoder_dim": 5,
    "controller_encoder_dim": 5,
    "controller_dim": 6,
}
SAE_SIZES = {"latent_dim": 3, "encoder_dim": 5}
LOW_RANK_SIZES = {"latent_dim": 2, "num_units": 8}


class Case(NamedTuple):
    """A model, and a recording for it."""

    build: Callable[..., Any]
    recording: xr.Dataset
    options: Mapping[str, Any] = MappingProxyType({})

    def model(self) -> Any:
        torch.manual_seed(0)
        return self.build(self.recording, **self.options)


def three_functions(recording: xr.Dataset) -> models.StateSpaceModel:
    own = nn.ParameterDict(
        {"mean": torch.randn(2), "log_sd": torch.tensor(-1.0), "loading": torch.randn(6, 2)}
    )
    return models.StateSpaceModel.of(
        initial=lambda inputs: Normal(own["mean"], torch.ones_like(own["mean"])),
        transition=lambda z, inputs: Normal(0.9 * z, own["log_sd"].exp()),
        emission=lambda z: z @ own["loading"].mT,
        latent_dim=2,
        parameters=own,
    )


LFADS, NODE, RNN = (kind.for_recording for kind in (models.LFADS, models.NodeSAE, models.RnnSAE))
LOW_RANK, LINEAR = (kind.for_recording for kind in (models.LowRankRNN, models.LinearDynamics))
CASES = {
    "LFADS": Case(LFADS, POISSON, LFADS_SIZES),
    "LFADS with inputs": Case(LFADS, HELD_OUT, {**LFADS_SIZES, "inferred_input_dim": 2}),
    "LFADS with both inputs": Case(
        LFADS,
        DRIVEN,
        {**LFADS_SIZES, "inferred_input_dim": 1, "dropout": 0.1, "initial_condition_bins": 2},
    ),
    "LFADS with heavy tails": Case(
        LFADS, POISSON, {**LFADS_SIZES, "inferred_input_dim": 1, "input_prior": "student_t"}
    ),
    "NodeSAE": Case(NODE, POISSON, {**SAE_SIZES, "field_width": 8}),
    "NodeSAE with noise": Case(NODE, BOTH, {**SAE_SIZES, "field_width": 8, "process_noise": True}),
    "RnnSAE": Case(RNN, POISSON, {**SAE_SIZES, "observation": "negative_binomial"}),
    "RnnSAE with noise": Case(RNN, DRIVEN, {**SAE_SIZES, "process_noise": True}),
    "optimal": Case(
        LOW_RANK, GAUSSIAN, {**LOW_RANK_SIZES, "activation": "clipped_relu", "noise": "full"}
    ),
    "encoder": Case(
        LOW_RANK, POISSON, {**LOW_RANK_SIZES, "proposal": "causal_encoder", "link": "softplus"}
    ),
    "bootstrap": Case(LOW_RANK, GAUSSIAN, {**LOW_RANK_SIZES, "proposal": "bootstrap"}),
    "heavy tails": Case(LOW_RANK, POISSON, {**LOW_RANK_SIZES, "noise_df": 4.0}),
    "driven": Case(LOW_RANK, DRIVEN, {**LOW_RANK_SIZES, "filters_inputs": True}),
    "counts and signal": Case(LOW_RANK, BOTH, LOW_RANK_SIZES),
    "LinearDynamics": Case(LINEAR, DRIVEN_SIGNAL, {"latent_dim": 2}),
    "Poisson LinearDynamics": Case(LINEAR, POISSON, {"latent_dim": 2}),
    "ShallowPLRNN": Case(models.ShallowPLRNN.for_recording, DRIVEN_SIGNAL, LOW_RANK_SIZES),
    "DensityModel": Case(three_functions, POISSON),
}


def made(kind: str, device: str) -> tuple[Any, xr.Dataset, Batch]:
    """Model, recording and batch of all trials, in double precision."""
    case = CASES[kind]
    model = case.model().double().to(device)
    return model, case.recording, data.Trials(case.recording, device, torch.double).batch()


def plain(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def check_agreement(work: Callable[[str], list[Any]]) -> None:
    """The results of ``work(device)`` are the same on the CPU and on the double of a GPU."""
    results = []
    for device in ("cpu", "cuda"):
        with gpu_double() if device == "cuda" else contextlib.nullcontext():
            torch.manual_seed(1)
            results.append([plain(value) for value in work(device)])
    assert results[0]
    for on_cpu, on_gpu in zip(*results, strict=True):
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-6, atol=1e-9)
