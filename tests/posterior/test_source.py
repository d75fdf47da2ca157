"""What a model is given to draw from, compared with what it was fitted to."""

import json
import warnings

import pytest

from pyrodyn import fit, load, predict, save, to_datatree
from pyrodyn.data import held_out
from pyrodyn.infer import ELBO
from pyrodyn.models import LowRankRNN
from pyrodyn.models.state_space import Bootstrap


@pytest.mark.filterwarnings("ignore::pyrodyn.infer.training.diagnostics.FitWarning")
def test_neurons_that_the_encoder_never_read_must_stay_hidden(make_recording, make_lfads, tmp_path):
    """A neuron that was held out during the fit has no trained weights in the encoder."""
    recorded = make_recording()
    marked = held_out(recorded, neurons=[1, 2])
    model = make_lfads(recorded)
    fit(model, marked, objective=ELBO(), max_epochs=1, progress=False)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    for read in (predict, to_datatree):
        with pytest.warns(UserWarning, match=r"2 neurons were held out .*neurons=\[1, 2\]\)"):
            read(loaded, recorded, num_draws=2)
        with pytest.warns(UserWarning, match=r"1 neurons were held out .*neurons=\[2\]\)"):
            read(loaded, held_out(recorded, neurons=[1]), num_draws=2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*were in the training set of the fit")
            read(loaded, marked, num_draws=2)
            read(loaded, held_out(recorded, neurons=[0, 1, 2]), num_draws=2)


@pytest.mark.filterwarnings("ignore::pyrodyn.infer.training.diagnostics.FitWarning")
def test_a_model_without_an_encoder_may_read_all_neurons(make_recording):
    recorded = make_recording()
    model = LowRankRNN.for_recording(recorded, latent_dim=2, num_units=8, seed=0)
    model.proposal = Bootstrap()
    fit(model, held_out(recorded, neurons=[1]), max_epochs=1, progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="draws by method=")
        predict(model, recorded, num_draws=2, num_particles=8)


def test_the_card_lists_held_out_neurons(make_recording, make_lfads, tmp_path):
    recorded = held_out(make_recording(), neurons=[1, 2])
    fitted = fit(make_lfads(recorded), recorded, max_epochs=1, progress=False)
    save(fitted, tmp_path / "model")
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["record"]["data"]["held_out"] == [1, 2]
