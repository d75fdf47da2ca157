"""What docs/guides.md has about sites and auxiliary draws holds; its other code runs as a notebook,
and its table of automatic guides is that of `test_autoguides`.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrodyn import fit, predict
from pyrodyn.data.batch import Batch, Trials
from pyrodyn.infer import ELBO, GuideReport, check_guide
from pyrodyn.infer.traces import latent_sites, traced
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, RnnSAE

PAGE = (Path(__file__).parents[3] / "docs" / "guides.md").read_text()
SIZES: dict[str, Any] = {"encoder_dim": 4, "latent_dim": 3}
MODELS: dict[str, tuple[Any, ...]] = {
    "LFADS": (LFADS, {"initial_condition_dim": 3, "inferred_input_dim": 2}, {}),
    "NodeSAE": (NodeSAE, SIZES, {"process_noise": True}),
    "RnnSAE": (RnnSAE, SIZES, {"process_noise": True}),
    "LowRankRNN": (LowRankRNN, {"latent_dim": 3, "num_units": 5}, {}),
}


def documented_sites(name: str) -> dict[str, str]:
    """Event shapes by site, as the page's table has them."""
    row = next(line for line in PAGE.splitlines() if line.startswith("| `") and f"`{name}`" in line)
    _, _, sites, shapes, _ = row.split("|")
    named = re.findall(r"`(\w+)`", sites)
    return dict(zip(named, re.findall(r"`(\(.*?\))`", shapes), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_sites_have_the_event_shapes_of_the_table(make_recording, name):
    data = make_recording(4, 6)
    kind, sizes, noise = MODELS[name]
    wanted, found = documented_sites(name), {}
    for options in ({}, noise):
        torch.manual_seed(0)
        model = kind.for_recording(data, **sizes, **options)
        trace = traced(model, Trials(data).batch())
        found |= {site: tuple(trace.nodes[site]["fn"].event_shape) for site in latent_sites(trace)}
        known = {"time": 6, **model.config}
        shapes = {site: eval(shape, {}, known) for site, shape in wanted.items()}
    assert found == shapes


def test_the_guide_of_auxiliary_draws_runs(make_recording):
    code = next(
        part for part in PAGE.split("```python\n")[1:] if "is_auxiliary" in part.split("```")[0]
    ).split("```")[0]

    class Markov(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.dim = nn.GRU(5, 4, batch_first=True), 2
            self.step, self.scale = nn.Linear(6, 2), 0.5

        def forward(self, batch: Batch) -> None:
            encoded, _ = self.encode(batch.seen)
            known = {"pyro": pyro, "dist": dist, "torch": torch}
            exec(textwrap.dedent(code), known, {"self": self, "batch": batch, "encoded": encoded})

    data = make_recording(6)
    torch.manual_seed(0)
    model = LowRankRNN.for_recording(data, latent_dim=2, num_units=5)
    guide = Markov()
    part = Trials(data).batch(slice(0, 4))
    assert check_guide(model, guide, part, objective=ELBO(), num_trials=6) == GuideReport()
    fitted = fit(model, data, guide=guide, batch_size=4, max_epochs=2, progress=False)
    assert {"kl_latents", "train_kl_latents"} & set(fitted.history)
    assert predict(fitted, data, num_draws=3)["z"].shape == (6, 8, 2)
