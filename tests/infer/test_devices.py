"""Objectives, filter and smoother find on a GPU what they find on the CPU from the same noise."""

import contextlib
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pyrodyn.data import simulate
from pyrodyn.data.batch import Trials
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    RWS,
    VSMC,
    Objective,
    SmoothedScore,
    particle_filter,
    particle_smoother,
)
from pyrodyn.models import LowRankRNN, NodeSAE
from pyrodyn.models.state_space import StateSpaceModel

needs_cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class NoiseOfTheCPU(TorchDispatchMode):
    """Random numbers are drawn on the CPU and then moved to where they are wanted."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.num_draws = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        self.num_draws += 1
        kwargs = {**(kwargs or {}), **({"device": "cpu"} if "device" in (kwargs or {}) else {})}
        home = tree_map(lambda a: a.cpu() if isinstance(a, Tensor) else a, args)
        drawn = func(*home, **kwargs)
        if func.overloadpacket.__name__.endswith("_"):
            return args[0].copy_(drawn)
        return drawn.to(self.device)


def low_rank(observation: str, **options: Any) -> tuple[LowRankRNN, xr.Dataset]:
    recording = simulate("lorenz", 4, 12, 6, observation=observation, seed=0)
    torch.manual_seed(0)
    return LowRankRNN.for_recording(recording, latent_dim=2, num_units=8, **options), recording


def node() -> tuple[NodeSAE, xr.Dataset]:
    recording = simulate("lorenz", 4, 12, 6, seed=0)
    torch.manual_seed(0)
    return NodeSAE.for_recording(
        recording, latent_dim=3, field_width=8, encoder_dim=5, process_noise=True
    ), recording


MODELS = {
    "optimal": lambda: low_rank("gaussian", activation="clipped_relu", noise="full"),
    "encoder": lambda: low_rank("poisson", proposal="causal_encoder", link="softplus"),
    "bootstrap": lambda: low_rank("poisson", proposal="bootstrap"),
    "node": node,
}


def on(kind: str, device: str) -> tuple[StateSpaceModel, Any]:
    """A model in double precision, so that rounding decides on no ancestor, and its batch."""
    model, recording = MODELS[kind]()
    model = model.double().to(device)
    return model, Trials(recording, torch.device(device), torch.double).batch()


KINDS = [
    pytest.param("encoder", "cpu"),  # shows that drawing noise apart changes nothing
    *(pytest.param(kind, "cuda", marks=needs_cuda) for kind in MODELS),
]


@pytest.mark.parametrize(("kind", "device"), KINDS)
@pytest.mark.parametrize(
    "objective",
    [ELBO(2), IWELBO(3), RWS(3), VSMC(5), SmoothedScore(6)],
    ids=lambda objective: type(objective).__name__,
)
def test_losses_and_gradients_agree(kind: str, objective: Objective, device: str) -> None:
    found = []
    for place, drawing in (("cpu", contextlib.nullcontext()), (device, NoiseOfTheCPU(device))):
        model, batch = on(kind, place)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.manual_seed(1)
        with drawing:
            loss = objective(model, model.guide)(batch)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        found.append([loss.detach().cpu(), *(gradient.cpu() for gradient in gradients)])
    assert drawing.num_draws > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("kind", "device"), KINDS)
def test_filter_and_smoother_agree(kind: str, device: str) -> None:
    found = []
    for place, drawing in (("cpu", contextlib.nullcontext()), (device, NoiseOfTheCPU(device))):
        model, batch = on(kind, place)
        torch.manual_seed(1)
        with drawing:
            filtered = particle_filter(model, batch, 20)
            paths = particle_smoother(model, batch, 5, filtered=filtered).paths
        found.append((filtered.log_evidence.cpu(), filtered.mean().cpu(), paths.detach().cpu()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
