"""The network that generated a recording of `pyrodyn.data.teacher`, as a model."""

import numpy as np
import torch
import xarray as xr

from pyrodyn import models
from pyrodyn.models.process_noise import NOISE_FLOOR


def teacher_as_model(recording: xr.Dataset) -> models.LowRankRNN:
    """A low-rank RNN with the weights that made the recording, and the bootstrap proposal."""
    is_signal = "signal" in recording
    num_units, latent_dim = recording["teacher_m"].shape
    model = models.LowRankRNN(
        recording.sizes["channel" if is_signal else "neuron"],
        latent_dim=latent_dim,
        num_units=num_units,
        noise="scalar",
        observation="gaussian" if is_signal else "poisson",
        link="canonical" if is_signal else "softplus",
        proposal="bootstrap",
    )
    about = recording.attrs
    weights = {
        "m": recording["teacher_m"].values,
        "n": recording["teacher_n"].values,
        "threshold": recording["teacher_threshold"].values,
        "log_rate": np.log(-np.log([about["decay"]])),
        "raw_noise": np.log([about["process_noise"] - NOISE_FLOOR]),
        "raw_start_noise": np.log([about["initial_sd"] - NOISE_FLOOR]),
        "loading": recording["teacher_loading"].values,
        "bias": recording["teacher_bias"].values,
    }
    model.observation.use_raw_units()
    if is_signal:
        scale = about["observation_noise"]
        weights["observation.log_scale"] = np.full(recording.sizes["channel"], np.log(scale))
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in weights.items()}
    model.load_state_dict({**model.state_dict(), **tensors})
    return model
