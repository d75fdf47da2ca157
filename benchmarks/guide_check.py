"""Processor time of what `fit` checks of a guide before training, beside one training step.

The check runs once per fit: the guide two or three times, the model on two trials, and for an
automatic guide the setup of its parameters for the whole recording, of ten batches. Timed in turns
with a training step (coordinated dropout, ELBO, gradient, Adam) at the sizes of `step.py`.

    uv run python benchmarks/guide_check.py
"""

import argparse
import time
from collections.abc import Callable

import results
import torch
from pyro.infer.autoguide import AutoNormal
from step import SIZES, Size, recording_and_model, training_step
from timing import compare, print_row

from pyrodyn.infer import ELBO, check_guide
from pyrodyn.infer.guides.per_trial import prepare_guide
from pyrodyn.infer.traces import Program
from pyrodyn.infer.training.allocator import keep_freed_memory
from pyrodyn.models import LFADS

GUIDES: dict[str, Callable[[LFADS], Program]] = {
    "its own": lambda model: model.guide,
    "AutoNormal": AutoNormal,
}
BATCHES = 10
"""Of the recording."""


def check(size: Size, make_guide: Callable[[LFADS], Program]) -> Callable[[], None]:
    recording, model = recording_and_model(size, BATCHES * size.batch)
    trials = model.trials_of(recording)

    def run() -> None:
        guide = make_guide(model)
        prepare_guide(guide, trials.batch(), size.batch, sees_others=False)
        first = trials.batch(slice(0, size.batch))
        check_guide(model, guide, first, objective=ELBO(), num_trials=len(trials)).require()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    rows = []
    print_row("size, guide")
    for name, size in SIZES.items():
        step = training_step(size, "cpu")
        for guide, make_guide in GUIDES.items():
            compared = compare(
                check(size, make_guide), step, arguments.pairs, clock=time.process_time
            )
            print_row(f"{name[:16]}, {guide}", compared)
            share = compared.ours_ms / 60e3
            print(f"{share:.2%} of a fit of one minute", flush=True)
            rows.append({"size": name, "guide": guide, "share": share, **compared._asdict()})
    results.save("guide_check", rows)


if __name__ == "__main__":
    main()
