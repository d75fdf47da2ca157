"""Inference per trial on the CPU: rates of NDT beside those of LFADS and NODE-SAE.

202 neurons and 70 bins, one thread, weights as initialised. Each row is timed in turns with the NDT
of default sizes: from a batch to its rates by both Pyro programs, with one draw of the guide, and
for "network alone" without them. "Among 64": a batch of 64 trials, per trial.

    uv run python benchmarks/ndt.py
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import pyro
import results
import torch
from timing import compare, print_row

from pyrodyn import data, models
from pyrodyn.data.batch import Batch
from pyrodyn.infer.traces import paired_traces

NEURONS, BINS, TOGETHER = 202, 70, 64

PUBLISHED = {"model_dim": 202, "ffn_dim": 128, "num_layers": 6}
"""Sizes of the network whose 3.9 ms on a GPU Ye & Pandarinath (2021) report."""

CAUSAL = "NDT, causal"

MODELS: dict[str, Callable[[], models.LatentDynamics]] = {
    "NDT": lambda: models.NDT(NEURONS),
    CAUSAL: lambda: models.NDT(NEURONS, context_forward=0),
    "NDT, published sizes": lambda: models.NDT(NEURONS, **PUBLISHED),
    "LFADS": lambda: models.LFADS(NEURONS),
    "LFADS, two inferred inputs": lambda: models.LFADS(NEURONS, inferred_input_dim=2),
    "NodeSAE": lambda: models.NodeSAE(NEURONS),
}


def inference(model: models.LatentDynamics, batch: Batch) -> Callable[[], torch.Tensor]:
    """From a batch to its rates, as `pyrodyn.predict` makes them from one draw."""
    model.eval()

    @torch.inference_mode()
    def rates() -> torch.Tensor:
        _, trace = paired_traces(model, model.guide, batch, 1)
        return trace.nodes["rates"]["value"]

    return rates


def network(model: models.NDT, batch: Batch) -> Callable[[], torch.Tensor]:
    """The same without Pyro."""
    model.eval()

    @torch.inference_mode()
    def rates() -> torch.Tensor:
        return model.predictive(batch).mean

    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    counts = np.random.default_rng(0).poisson(0.2, (TOGETHER, BINS, NEURONS))
    trials = data.Trials(data.recording(counts, bin_width=0.01))
    one, several = trials.batch(slice(0, 1)), trials.batch()
    built = {name: (build(), inference) for name, build in MODELS.items()}
    alone = {f"{name}, network alone": (built[name][0], network) for name in ("NDT", CAUSAL)}
    rows = []
    print_row("model")
    for name, (model, run) in {**alone, **built}.items():
        compared, many = (
            compare(
                run(model, batch), inference(built["NDT"][0], batch), pairs, clock=time.process_time
            )
            for batch, pairs in ((one, arguments.pairs), (several, arguments.pairs // 20 + 1))
        )
        print_row(name, compared)
        rows.append(
            {
                "model": name,
                "ms": compared.ours_ms,
                "ratio": 1 / compared.ratio,
                "lowest": 1 / compared.highest,
                "highest": 1 / compared.lowest,
                "ms among 64": many.ours_ms / TOGETHER,
                "weights": sum(parameter.numel() for parameter in model.parameters()),
            }
        )
    results.save("ndt", rows)


if __name__ == "__main__":
    main()
