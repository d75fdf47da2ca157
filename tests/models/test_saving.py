import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from pyrodyn.infer import fit
from pyrodyn.models import saving
from pyrodyn.models.lfads import LFADS
from pyrodyn.models.saving import load, read_card, save
from pyrodyn.posterior import predict

SMALL = {"factor_dim": 3, "generator_dim": 7, "controller_dim": 6}

OPTIONS = {
    "inferred_input_dim": 2,
    "input_prior": "student_t",
    "observation": "negative_binomial",
    "initial_condition_bins": 2,
    "dropout": 0.2,
    "recurrent_precision": 0.1,
}
"""Arguments that differ from the defaults, which loading must restore."""


@pytest.fixture
def data(make_recording) -> xr.Dataset:
    return make_recording(6, inputs=np.random.default_rng(0).normal(size=(6, 8, 1)))


@pytest.fixture
def model(data, make_lfads) -> LFADS:
    return make_lfads(data, **OPTIONS).eval()


def test_a_loaded_model_predicts_the_same_bits(model, data, tmp_path):
    save(model, tmp_path / "new" / "folder")
    with torch.random.fork_rng():
        torch.manual_seed(99)  # the weights drawn before loading must not matter
        loaded = load(tmp_path / "new" / "folder")
    assert isinstance(loaded, LFADS)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    one, other = (predict(m, data, num_draws=3, seed=1) for m in (model, loaded))
    xr.testing.assert_identical(one, other)


def test_double_precision_is_restored(model, tmp_path):
    save(model.double(), tmp_path)
    for name, tensor in load(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_fitted_model_is_loaded_with_the_record_of_its_fit(data, make_lfads, tmp_path):
    fitted = fit(make_lfads(data), data, max_epochs=1, progress=False, accelerator="cpu").model
    save(fitted, tmp_path)
    assert load(tmp_path).record == fitted.record


def test_the_card_describes_the_model(model, tmp_path):
    model.record = {"training": {"seed": 3}}
    save(model, tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card == read_card(tmp_path)
    assert set(card) == {"pyrodyn", "model", "config", "record", "proposal"}
    assert (card["pyrodyn"], card["model"]) == (version("pyrodyn"), "LFADS")
    assert card["config"] == model.config
    assert OPTIONS.items() <= card["config"].items()
    assert (card["config"]["num_neurons"], card["config"]["input_dim"]) == (5, 1)
    assert card["record"] == {"training": {"seed": 3}}
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "weights.safetensors"}


def test_sizes_may_be_numpy_integers(model, tmp_path):
    model.config.update(factor_dim=np.int64(3), state_clip=np.float32(5.0))
    save(model, tmp_path)
    assert read_card(tmp_path)["config"]["factor_dim"] == 3
    assert load(tmp_path).config["state_clip"] == 5.0


def test_values_without_json_form_are_refused_before_anything_is_written(model, tmp_path):
    model.record = {"when": {1, 2}}
    with pytest.raises(
        TypeError, match=r"\{1, 2\} of type set cannot be written to a model's card"
    ):
        save(model, tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ classes of a user


class Shifted(LFADS):
    """An LFADS with another emission."""

    def emission(self, state):
        return self.observation(self.readout(self.factors(state.g)) + 1.0)


def test_a_subclass_is_loaded_by_its_class(data, tmp_path):
    model = Shifted.for_recording(data, **SMALL, **OPTIONS).eval()
    save(model, tmp_path)
    with pytest.raises(ValueError, match=r"is a Shifted, .*model_class=Shifted\)"):
        load(tmp_path)
    loaded = load(tmp_path, model_class=Shifted)
    assert type(loaded) is Shifted
    one, other = (predict(m, data, num_draws=3, seed=1) for m in (model, loaded))
    xr.testing.assert_identical(one, other)


def test_another_class_than_that_of_the_model_is_refused(model, tmp_path):
    save(model, tmp_path)
    assert type(load(tmp_path, model_class=LFADS)) is LFADS
    with pytest.raises(ValueError, match="is a LFADS, not a Shifted; pass model_class=LFADS"):
        load(tmp_path, model_class=Shifted)


def test_a_class_with_the_name_of_a_pyrodyn_model_is_not_saved(data, tmp_path):
    model = type("LFADS", (Shifted,), {}).for_recording(data, **SMALL)
    with pytest.raises(ValueError, match=r"has the name of a model of pyrodyn.*rename the class"):
        save(model, tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ interrupted writes


def stopped_half_way(path: Path) -> None:
    path.write_bytes(b"half of what was to be")
    raise OSError("no space left on device")


@pytest.mark.parametrize("which", ["weights", "card"])
def test_an_interrupted_write_leaves_the_previous_file(
    which, model, data, make_lfads, tmp_path, monkeypatch
):
    save(model, tmp_path)
    good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if which == "weights":
        monkeypatch.setattr(saving, "save_file", lambda weights, path: stopped_half_way(path))
    else:
        monkeypatch.setattr(Path, "write_text", lambda path, text: stopped_half_way(path))
    same_but_for_seed = make_lfads(data, **OPTIONS, seed=1)
    with pytest.raises(OSError, match="no space left"):
        save(same_but_for_seed, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "card.json").read_bytes() == good["card.json"]
    if which == "weights":
        assert (tmp_path / "weights.safetensors").read_bytes() == good["weights.safetensors"]
    load(tmp_path)
    save(same_but_for_seed, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(good)


# ------------------------------------------------------------------ broken folders


def edited(folder: Path, **changes: object) -> None:
    """Change entries of a card, or remove those that are None."""
    card = {**read_card(folder), **changes}
    card = {name: value for name, value in card.items() if value is not None}
    (folder / "card.json").write_text(json.dumps(card))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def other_sizes(folder: Path) -> None:
    edited(folder, config={**read_card(folder)["config"], "factor_dim": 9})


def fewer_parameters(folder: Path) -> None:
    edited(folder, config={**read_card(folder)["config"], "inferred_input_dim": 0})


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda f: (f / "card.json").write_text("{"), r"card\.json is not valid JSON: Expecting"),
        (
            lambda f: (f / "card.json").write_bytes(b"\xff\xfe"),
            r"card\.json is not valid JSON: .*decode",
        ),
        (
            lambda f: (f / "card.json").write_text("[1]"),
            r"card\.json is not a model card: it must name",
        ),
        (lambda f: edited(f, model=None), r"card\.json lacks 'model'"),
        (lambda f: edited(f, config=None), r"card\.json lacks 'config'"),
        (lambda f: edited(f, record=None), r"card\.json lacks 'record'"),
        (
            lambda f: edited(f, model="SFADL"),
            r"is a SFADL, which is none of LFADS, .*load\(\.\.\., model_class=SFADL\)",
        ),
        (
            lambda f: edited(f, config={"num_neurons": 5, "wings": 2}),
            r"card\.json is no valid config of LFADS: .*'wings'",
        ),
        (other_sizes, r"weights in .* cannot be loaded: size mismatch for "),
        (fewer_parameters, r"weights in .* cannot be loaded: Unexpected key\(s\) in state_dict"),
        (
            lambda f: (f / "weights.safetensors").unlink(),
            r"weights in .* cannot be loaded: No such file",
        ),
        (
            lambda f: cut(f / "weights.safetensors", 200),
            r"weights in .* cannot be loaded: .*invalid header length",
        ),
        (
            lambda f: cut(f / "weights.safetensors", -100),
            r"weights in .* cannot be loaded: .*file not fully covered",
        ),
        (
            lambda f: (f / "weights.safetensors").write_bytes(b"a pickle, perhaps"),
            r"weights in .* cannot be loaded: .*header too large",
        ),
    ],
)
def test_a_broken_folder_is_refused_in_one_sentence(harm, sentence, model, tmp_path):
    save(model, tmp_path)
    harm(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere contains no saved model \(it has no card.json"
    ):
        load(tmp_path / "nowhere")
