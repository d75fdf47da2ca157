"""A fit does not depend on the unit of a signal, and a dead channel does not disturb the others."""

from typing import Any

import numpy as np
import pytest
import torch

import pyrodyn
from pyrodyn.data.recording import recording
from pyrodyn.infer import ELBO, Schedule
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE

pytestmark = pytest.mark.filterwarnings("ignore:the path of")  # short fits of NodeSAE

SIZES: dict[type, dict[str, Any]] = {
    LFADS: {"factor_dim": 2, "generator_dim": 6, "encoder_dim": 5},
    LowRankRNN: {"latent_dim": 2, "num_units": 8},
    NodeSAE: {"latent_dim": 2},
}


def waves(num_channels: int = 4) -> np.ndarray:
    """Noisy oscillations of random phase, (trial, time, channel), of unit scale."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (16, 1))
    angle = np.arange(15) / 3 + phase
    latent = np.stack([np.sin(angle), np.cos(angle)], -1)
    mean = latent @ rng.normal(size=(2, num_channels))
    return mean + 0.3 * rng.normal(size=mean.shape)


def fitted_rates(kind: type, signal: np.ndarray, **options: Any) -> tuple[np.ndarray, float]:
    """Inferred means after a short fit, and the last training loss."""
    data = recording(signal=signal, bin_width=0.01)
    torch.manual_seed(0)
    model = kind.for_recording(data, **SIZES[kind], **options)
    fit = pyrodyn.fit(
        model,
        data,
        objective=ELBO(),
        transforms=[],
        max_epochs=8,
        batch_size=8,
        schedule=Schedule(learning_rate=1e-2),
        progress=False,
    )
    loss = float(fit.history["train_loss"][-1])
    return pyrodyn.predict(model, data, num_draws=3)["rates"].values, loss


@pytest.mark.parametrize("kind", SIZES)
def test_rates_do_not_depend_on_the_unit(kind: type) -> None:
    signal = waves()
    plain, loss = fitted_rates(kind, signal)
    units = np.array([1e-5, 1e3, 0.02, 1.0])  # volts, ADC counts, ...
    # Beside an offset of 1e4 single precision keeps three digits of the signal.
    for unit, offset, tolerance in ((1e-5, 0.0, 1e-3), (units, 0.0, 1e-3), (1.0, 1e4, 0.1)):
        found, own_loss = fitted_rates(kind, signal * unit + offset)
        np.testing.assert_allclose((found - offset) / unit, plain, atol=tolerance)
        # The density of a signal in another unit differs by the Jacobian alone.
        jacobian = signal.shape[1] * np.log(np.broadcast_to(unit, (4,))).sum()
        assert own_loss - jacobian == pytest.approx(loss, abs=0.2)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.filterwarnings("ignore:1 channel")
@pytest.mark.parametrize("value", [0.0, 3.7])
def test_a_dead_channel_does_not_disturb_the_others(kind: type, value: float) -> None:
    signal = np.concatenate([waves(), np.full((16, 15, 1), value)], -1)
    found, _ = fitted_rates(kind, signal)
    residual = ((found[..., :4] - signal[..., :4]) ** 2).mean()
    alone, _ = fitted_rates(kind, waves())
    assert residual < 1.2 * ((alone - waves()) ** 2).mean() + 0.02
    np.testing.assert_allclose(found[..., 4], value, atol=1.0)


def test_encoders_see_standardised_channels_and_raw_counts() -> None:
    signal = waves() * [1e-5, 1e3, 1.0, 0.1] + [0, 1e4, 0, -5]
    counts = 1 + np.random.default_rng(1).poisson(1.0, (16, 15, 2))
    data = recording(counts, signal=signal, bin_width=0.05)
    model = LFADS.for_recording(data, factor_dim=2, generator_dim=6, encoder_dim=5)
    batch = model.trials_of(data).batch()
    hidden = torch.rand(batch.seen.shape) < 0.3
    for seen in (batch, batch.replace(seen=2 * batch.seen * ~hidden, visible=~hidden, gain=2.0)):
        view = model.encoder_view(seen)
        assert torch.equal(view[..., :2], seen.seen[..., :2])
        expected = (signal - signal.mean((0, 1))) / signal.std((0, 1)) * seen.gain
        expected = np.where(seen.visible[..., 2:], expected, 0.0)
        np.testing.assert_allclose(view[..., 2:], expected, atol=5e-3)
