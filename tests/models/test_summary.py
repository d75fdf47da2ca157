"""What models, batches and objectives show of themselves: sizes, sites, whether and how fitted."""

import dataclasses
import warnings

import pytest
import torch

import pyrodyn
from pyrodyn.data import HoldOutNeurons, simulate
from pyrodyn.infer import ELBO, GTF, IWELBO, RWS, VSMC, Ramp, SmoothedScore
from pyrodyn.models import LFADS


@pytest.fixture(scope="module")
def recording():
    return simulate("lorenz", 6, 10, 4)


def build(recording):
    return LFADS.for_recording(recording, factor_dim=2, generator_dim=5, seed=0)


def test_a_model_shows_sites_arguments_and_that_it_is_not_fitted(recording):
    model = build(recording)
    title, *rows = repr(model).splitlines()
    assert title == "LFADS: not fitted"
    shown = dict(row.strip().split("  ", 1) for row in rows)
    assert "g0 (trial, initial_condition)" in shown["sites"]
    assert "factor_dim=2, generator_dim=5" in shown["arguments"]
    assert int(shown["weights"].replace(",", "")) == sum(p.numel() for p in model.parameters())


def test_a_fit_shows_what_was_fitted_by_what_and_its_diagnostics(recording):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyrodyn.infer.FitWarning)
        fitted = pyrodyn.fit(build(recording), recording, recording, max_epochs=1, progress=False)
    fitted = dataclasses.replace(fitted, diagnostics=("the fit ended early",))
    title, *rows = repr(fitted).splitlines()
    assert title == "Fit of LFADS: fitted by ELBO to 6 trials in 1 step"
    loss = float(fitted.history["valid_loss"][0])
    assert f"epoch 0 of 1, valid loss {loss:.2f} nats per trial" in rows[0]
    assert any("counts of 4 neurons, 10 bins of 0.01 s" in row for row in rows)
    for sentence in fitted.diagnostics:
        assert any(sentence in row for row in rows)
    assert repr(fitted.model).startswith("LFADS: fitted by ELBO to 6 trials in 1 step\n")


def test_html_escapes_what_it_shows(recording):
    model = build(recording)
    model.record = {"training": {"objective": {"name": "<b>"}, "num_steps": 1}}
    page = model._repr_html_()
    assert "fitted by &lt;b&gt; in 1 step" in page
    assert "<b>LFADS</b>" in page


def test_a_subclass_can_be_shown_while_it_builds_itself(recording):
    class Broken(LFADS):
        def __init__(self, **options):
            torch.nn.Module.__init__(self)
            self.record = {}
            raise RuntimeError(f"stopped in {self!r}")

    with pytest.raises(RuntimeError, match="stopped in Broken: not fitted"):
        Broken.for_recording(recording)


def test_a_batch_shows_sizes_and_masks(recording):
    trials = build(recording).trials_of(recording)
    batch = trials.batch()
    expected = "(6 trials x 10 bins x 4 neurons; 100% visible, 100% scored; torch.float32 on cpu)"
    assert repr(batch) == f"Batch{expected}"
    assert repr(trials) == f"Trials{expected}"
    hidden = HoldOutNeurons([0])(batch).replace(horizon=7).unobserved()
    assert repr(hidden) == (
        "Batch(6 trials x 10 bins x 4 neurons; 75% visible, 100% scored; 3 forecast bins;"
        " without observations; torch.float32 on cpu)"
    )


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        (ELBO(), "ELBO(num_particles=1)"),
        (IWELBO(8), "IWELBO(num_particles=8, gradient='iwae')"),
        (RWS(4), "RWS(num_particles=4)"),
        (GTF(0.0), "GTF(alpha=0.0)"),
    ],
)
def test_objectives_show_their_settings(objective, shown):
    assert repr(objective) == shown


def test_objectives_show_all_that_they_describe():
    for objective in (ELBO(beta={"g0": Ramp(9)}), VSMC(4, ess_threshold=0.0), SmoothedScore(7)):
        settings = objective.describe()
        name = settings.pop("name")
        assert repr(objective).startswith(f"{name}(num_particles=")
        assert all(f"{key}={value!r}" in repr(objective) for key, value in settings.items())
