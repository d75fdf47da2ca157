"""The report: a right model passes, overdispersed counts are found, and the page stands alone."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from pyrodyn.data import recording
from pyrodyn.data.trial_hashes import trial_hashes
from pyrodyn.models import LFADS, LowRankRNN
from pyrodyn.posterior import check, report, to_datatree

SHAPE = NUM_TRIALS, NUM_BINS, NUM_NEURONS = 40, 15, 6


@pytest.fixture(scope="module")
def network() -> LowRankRNN:
    torch.manual_seed(0)
    model = LowRankRNN(NUM_NEURONS, latent_dim=2, num_units=8, proposal="bootstrap")
    with torch.no_grad():
        model.loading.mul_(0.4)
        model.bias.fill_(1.0)
    return model


def drawn_from(model: LowRankRNN, overdispersed: bool = False):
    """Counts of the model's own, or with its rates and the variance of geometric counts."""
    template = recording(np.ones(SHAPE, int), bin_width=0.01)
    tree = to_datatree(model, template, num_draws=1, num_prior_draws=1, seed=5)
    rng = np.random.default_rng(0)
    counts = tree["prior_predictive/x"].values[0, 0]
    if overdispersed:
        counts = rng.poisson(rng.gamma(1.0, tree["prior/rates"].values[0, 0]))
    condition = np.arange(NUM_TRIALS) % 2
    return recording(counts, bin_width=0.01, condition=condition)


@pytest.fixture(scope="module")
def right(network):
    return check(network, drawn_from(network), method="smoother", num_draws=100, num_particles=200)


@pytest.fixture(scope="module")
def wrong(network):
    counts = drawn_from(network, overdispersed=True)
    return check(network, counts, method="smoother", num_draws=100, num_particles=200)


def test_a_right_model_misses_nothing(right):
    assert not right.is_missed.any()
    assert "No statistic is missed beyond chance" in " ".join(right.advice)
    (calibrated,) = (each for each in right.findings if "the observations x" in each)
    assert calibrated.endswith(
        "not too narrow (latents inferred from the same data make for more)."
    )
    assert right.evidence.n_data_points == NUM_TRIALS
    assert right.statistics.loc[("x", "dispersion given the rates"), "observed"] == pytest.approx(
        1, abs=0.05
    )


def test_overdispersed_counts_are_found_and_a_remedy_named(wrong):
    missed = wrong.is_missed["x"]
    assert missed[["dispersion given the rates", "fraction of empty bins", "Fano factor"]].all()
    row = wrong.statistics.loc[("x", "dispersion given the rates")]
    assert row["num_above"] == NUM_NEURONS and row["chance"] == pytest.approx(0.05**NUM_NEURONS)
    assert any('observation="negative_binomial"' in each for each in wrong.advice)
    assert any("which neurons the missed statistics come from" in each for each in wrong.advice)
    assert any(
        re.match(rf"Dispersion given the rates: above .* in 6 and below in 0 of {NUM_NEURONS} ", e)
        for e in wrong.findings
    )
    assert "they are too narrow" in str(wrong)


class Page(HTMLParser):
    """What a page refers to, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href")]


@pytest.mark.slow
def test_draws_without_evidence_of_their_own_have_that_of_the_guide(network):
    """Chains estimate no evidence."""
    checked = drawn_from(network).isel(trial=slice(0, 3), time=slice(0, 6))
    report = check(network, checked, method="mcmc", num_draws=16, num_particles=50)
    assert report.evidence.n_data_points == 3
    assert "by method='mcmc'" in report.card["posterior"]


def test_the_page_stands_alone(wrong, tmp_path):
    path = wrong.save(tmp_path / "new" / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert page.tags.count("svg") == page.tags.count("figure") >= 12
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "#010203" not in text and "currentColor" in text
    for heading in ("Findings", "What to try next", "Peristimulus", "Single trials", "Calibration"):
        assert f"<h2>{heading}" in text
    assert 'tr class="missed"' in text
    with pytest.raises(ValueError, match=r"report.txt must end in .html"):
        wrong.save(tmp_path / "report.txt")


@pytest.mark.parametrize(
    ("train", "valid", "role", "num_checked"),
    [
        (slice(0, 10), slice(10, 30), "unseen", 10),
        (slice(0, 30), slice(30, 40), "validated", 10),
        (slice(0, 40), slice(0), "trained", 40),
        (None, None, "unknown", 40),
    ],
)
def test_the_trials_that_the_fit_knows_least(network, train, valid, role, num_checked):
    counts = drawn_from(network)
    hashes = trial_hashes(counts)
    record = {} if train is None else {"trials": {"train": hashes[train], "valid": hashes[valid]}}
    try:
        network.record = {"training": record}
        found, checked = report.least_seen(network, counts)
        assert found == role and checked.sizes["trial"] == num_checked
        if role == "trained":
            text = str(check(network, counts, num_draws=2, num_particles=20))
            assert text.startswith("IN SAMPLE: the fit was trained on these trials.")
            assert "Check trials that the fit has not seen" in text
    finally:
        network.record = {}


def test_counts_and_a_signal_have_statistics_of_their_own(make_recording, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    both = recording(
        1 + rng.poisson(1.0, (8, 6, 3)), signal=rng.normal(size=(8, 6, 2)), bin_width=0.02
    )
    torch.manual_seed(0)
    model = LFADS.for_recording(
        both,
        factor_dim=2,
        generator_dim=4,
        encoder_dim=4,
        observation={"counts": "poisson", "signal": "gaussian"},
    )
    monkeypatch.setattr(report, "NUM_ENTRIES", 1500)  # of 30 per trial and draw
    found = check(model, both, num_particles=20, num_draws=10)
    assert found.card["data"].startswith("5 of 8 trials (thinned from 8) x 6 bins")
    assert found.card["data"].endswith("3 neurons and 2 channels")
    assert {"Fano factor", "mean rate"} <= set(found.statistics.loc["counts"].index)
    assert {"standard deviation", "mean"} <= set(found.statistics.loc["signal"].index)
    assert found.save(tmp_path / "both.html").exists()
    with pytest.raises(ValueError, match="num_draws=1 must be at least 2"):
        check(model, both, num_draws=1)
