"""The arguments of `for_recording`: signature, seed, and names that no class has."""

import inspect

import pytest
import torch

from pyrodyn.data import simulate
from pyrodyn.models import LFADS, LowRankRNN, NodeSAE, RnnSAE


class Wider(NodeSAE):
    """Of a user: one more required argument, the others passed on."""

    def __init__(self, *, margin: int, **options):
        super().__init__(latent_dim=2 + margin, **options)
        self.config = {**self.config, "margin": margin}


@pytest.fixture(scope="module")
def recording():
    return simulate("lorenz", 4, 8, 3)


@pytest.mark.parametrize(
    ("cls", "some", "absent"),
    [
        (LFADS, {"factor_dim": 20, "lag": 1}, {"num_neurons", "input_dim"}),
        (NodeSAE, {"latent_dim": 6, "encoder_dim": 64, "solver": "midpoint"}, {"phi", "config"}),
        (RnnSAE, {"cell": "gru", "process_noise": False}, {"phi", "config"}),
        (LowRankRNN, {"num_units": 128, "observation": None}, {"num_neurons"}),
        (Wider, {"margin": inspect.Parameter.empty, "solver": "midpoint"}, {"phi"}),
    ],
)
def test_the_signature_lists_the_arguments_of_the_class(cls, some, absent):
    parameters = inspect.signature(cls.for_recording).parameters
    assert {name: parameters[name].default for name in some} == some
    assert not absent & set(parameters)
    assert list(parameters)[:3] == ["recording", "seed", "observation"]
    assert "support of the observation model" in inspect.getdoc(cls.for_recording)


def test_arguments_reach_the_class(recording):
    assert Wider.for_recording(recording, margin=2, solver="rk4").config["latent_dim"] == 4


def test_a_seed_determines_the_weights_and_leaves_the_generator_alone(recording):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (LFADS.for_recording(recording, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.state_dict()[name])
    assert not torch.equal(first.factor_weight, other.factor_weight)
    with pytest.raises(ValueError, match="seed=-1 must be an integer of at least 0"):
        LFADS.for_recording(recording, seed=-1)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LFADS, {"factors": 3}, "LFADS has no argument 'factors'; did you mean 'factor_dim'[?]"),
        (NodeSAE, {"latents": 3}, "NodeSAE has no argument 'latents'; did you mean 'latent_dim'"),
        (LowRankRNN, {"bla": 3}, "LowRankRNN has no argument 'bla'; it has latent_dim, num_units"),
        (
            LFADS,
            {"num_neurons": 3},
            "LFADS.for_recording takes num_neurons from the recording; leave it out",
        ),
    ],
)
def test_names_that_no_class_has_are_refused(cls, options, message, recording):
    with pytest.raises(TypeError, match=message):
        cls.for_recording(recording, **options)
