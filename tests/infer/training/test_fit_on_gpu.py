"""`fit` on the double of a GPU: the same weights as on the CPU, and no wait within a step."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from gpu_double import GPU, DoubleTensor, gpu_double, record
from gpu_models import CASES
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from pyrodyn import infer
from pyrodyn.data import Batch, CoordinatedDropout
from pyrodyn.infer import ELBO, VSMC, GrowingHorizon, NonFiniteLossError, Ramp, Schedule
from pyrodyn.infer.training import trainer
from pyrodyn.infer.training.module import Training

SCHEDULE = Schedule(
    learning_rate=1e-2,
    final_learning_rate=1e-3,
    average_weights=True,
    horizon=GrowingHorizon(2, 3),
)
QUIET = {"progress": False, "accelerator": "cpu", "batch_size": 2, "seed": 3}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`fit` on the double. Lightning is given the device, for it looks for hardware by itself."""
    on_hardware = lightning.Trainer

    def fit(*args: Any, **options: Any) -> Any:
        with gpu_double(), monkeypatch.context() as patch:
            strategy = SingleDeviceStrategy(device=GPU)
            patch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
            patch.setattr(
                trainer.lightning,
                "Trainer",
                lambda **kw: on_hardware(**{**kw, "strategy": strategy}),
            )
            return infer.fit(*args, **options)

    return fit


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (value.values if isinstance(value, DoubleTensor) else value).detach()
        for name, value in model.state_dict().items()
    }


def check_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, value), there in zip(weights(one).items(), weights(other).values(), strict=True):
        torch.testing.assert_close(value, there, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (
            "LFADS with inputs",
            {
                "objective": ELBO(beta={"g0": Ramp(4)}),
                "transforms": [CoordinatedDropout(0.3)],
                "schedule": SCHEDULE,
            },
        ),
        pytest.param("optimal", {"objective": VSMC(4), "transforms": []}, marks=pytest.mark.slow),
    ],
)
def test_a_fit_ends_at_the_weights_of_the_cpu_and_no_step_waits(
    kind: str, options: dict[str, Any], on_gpu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, fits = CASES[kind].recording, []
    step, end, waits = Training.training_step, Training.on_train_batch_end, []

    def training_step(self: Training, batch: Batch, index: int) -> Any:
        assert isinstance(next(self.parameters()).device, torch.device)
        record.clear()
        return step(self, batch, index)

    def on_train_batch_end(self: Training, *arguments: Any) -> None:
        end(self, *arguments)
        waits.append(dict(record.waits))

    monkeypatch.setattr(Training, "training_step", training_step)
    monkeypatch.setattr(Training, "on_train_batch_end", on_train_batch_end)
    for fit in (infer.fit, on_gpu):
        model = CASES[kind].model()
        fits.append(fit(model, recording, recording, max_epochs=3, **options, **QUIET))
    assert len(waits) == 2 * 3 * 2
    assert not any(waits)
    check_same(fits[0].model, fits[1].model)
    assert not any(value.is_cuda for value in weights(fits[1].model).values())


@pytest.mark.slow
def test_a_fit_on_a_gpu_is_resumed(on_gpu: Callable[..., Any], tmp_path: Path) -> None:
    case, models = CASES["NodeSAE"], []
    settings = {"objective": ELBO(), "transforms": [], "schedule": Schedule(), **QUIET}
    for lengths in ((4,), (2, 4)):
        model, out = case.model(), tmp_path / str(len(lengths))
        for number, max_epochs in enumerate(lengths):
            options = {"max_epochs": max_epochs, "resume": number > 0, **settings}
            model = on_gpu(case.model(), case.recording, out=out, **options).model
        models.append(model)
    check_same(*models)


@dataclasses.dataclass
class BreakAt:
    """Makes the observations of one training step NaN."""

    step: int
    count: int = -1

    def __call__(self, batch: Batch) -> Batch:
        self.count += 1
        if self.count != self.step or batch.x is None:
            return batch
        return batch.replace(x=batch.x + torch.nan)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_step_that_is_not_finite_stops_the_fit_before_the_next_update(
    step: int, on_gpu: Callable[..., Any]
) -> None:
    """Also the last step of an epoch, and of the fit."""
    case = CASES["NodeSAE"]
    stopped, good = case.model(), case.model()
    with pytest.raises(NonFiniteLossError, match=f"step {step}: the log density of") as caught:
        on_gpu(stopped, case.recording, max_epochs=2, transforms=[BreakAt(step)], **QUIET)
    assert caught.value.step == step
    with pytest.raises(NonFiniteLossError):
        infer.fit(good, case.recording, max_epochs=2, transforms=[BreakAt(step)], **QUIET)
    check_same(stopped, good)
