"""The command line: every command does its work; bad input is one line and exit code 2."""

import datetime
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal

import pyrodyn
from pyrodyn.analysis import fixed_points, prediction_scores
from pyrodyn.analysis.fixed_points.certified import PiecewiseLinear
from pyrodyn.cli import main
from pyrodyn.cli.dynamics import table_of
from pyrodyn.cli.fitting import MODELS
from pyrodyn.cli.options import METHODS
from pyrodyn.data import held_out, read, recording, write
from pyrodyn.posterior import samplers
from pyrodyn.posterior.tree import role_in_fit


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pyrodyn", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture
def counts_file(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "counts.npz"
    write(recording(counts=rng.poisson(1.0, (10, 12, 4)), bin_width=0.01), path)
    return path


SHORT = ("--max-epochs", 2, "--batch-size", 4)
FIT = (*SHORT, "--factors", 2, "--generator", 6)


def test_simulate_fit_posterior(command, tmp_path):
    simulated = tmp_path / "lorenz.npz"
    code, out, _ = command(
        "simulate", "lorenz", "--out", simulated, "--trials", 12, "--bins", 20, "--neurons", 6
    )
    assert code == 0
    assert "wrote 12 trials x 20 bins x 6 neurons" in out
    code, out, _ = command("fit", simulated, "--out", tmp_path / "run", *FIT)
    assert code == 0
    assert re.search(r"validation loss \d+\.\d\d nats per trial", out)
    code, out, _ = command(
        "posterior", tmp_path / "run", simulated, "--out", tmp_path / "tree.zarr", "--draws", 3
    )
    assert code == 0
    tree = xr.open_datatree(tmp_path / "tree.zarr", engine="zarr", consolidated=False)
    assert tree["posterior/rates"].shape == (1, 3, 12, 20, 6)
    page = tmp_path / "report.html"
    code, out, _ = command("check", tmp_path / "run", simulated, "--out", page)
    assert code == 0
    # The fit drew a fifth of the trials for validation and trained on the others.
    assert out.startswith("By these trials the fit chose its weights")
    assert "2 of 12 trials x 20 bins" in out and f"wrote {page}" in out
    assert page.read_text().startswith("<!doctype html>")
    code, _, err = command("check", tmp_path / "run", simulated, "--out", tmp_path / "a.pdf")
    assert code == 2 and err.endswith("a.pdf must end in .html\n")


def test_posterior_refuses_a_fit_whose_guide_it_cannot_build(command, counts_file, tmp_path):
    data = read(counts_file)
    torch.manual_seed(0)
    model = pyrodyn.models.LFADS.for_recording(data, factor_dim=2, generator_dim=4)
    guide, run = AutoNormal(model), tmp_path / "run"
    pyrodyn.fit(model, data, guide=guide, max_epochs=1, progress=False, out=run)
    tree = tmp_path / "tree.zarr"
    for options in ((), ("--method", "importance")):
        code, _, err = command("posterior", run, counts_file, "--out", tree, *options)
        assert code == 2
        assert err.startswith(f"pyrodyn: the fit in {run} used the guide AutoNormal,")
        call = f"pyrodyn.to_datatree(pyrodyn.load({str(run / 'model')!r}, guide=...), recording)"
        assert call in err
        assert err.count("\n") == 1
    code, _, err = command("fixed-points", run, counts_file)
    assert code == 2
    assert "used the guide AutoNormal, which the command line cannot build; leave REC" in err
    drawn = pyrodyn.to_datatree(pyrodyn.load(run / "model", guide=AutoNormal), data, num_draws=2)
    assert drawn["posterior/rates"].shape == (1, 2, 10, 12, 4)


def test_version(command):
    code, out, _ = command("--version")
    assert code == 0
    assert re.fullmatch(r"pyrodyn \d+\.\d+\.\d+\S*\n", out)


def test_fit_prints_what_it_read_and_takes_the_options_of_nwb(command, tmp_path):
    pynwb = pytest.importorskip("pynwb")
    file = pynwb.NWBFile("s", "i", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
    file.add_trial_column("go", "time of the go cue")
    file.add_trial_column("target", "where to")
    for trial in range(10):
        start = 2.0 * trial
        file.add_trial(start_time=start, stop_time=start + 1, go=start + 0.5, target=trial % 2)
    for _ in range(2):
        file.add_unit(spike_times=0.025 + 0.05 * np.arange(420))
    potential = np.sin(np.arange(2100.0))
    file.add_acquisition(pynwb.TimeSeries(name="lfp", data=potential, rate=100.0, unit="V"))
    path = tmp_path / "a.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(file)
    options = ("--align-to", "go", "--window", -0.2, 0.3, "--condition", "target")
    code, out, err = command(
        "fit", path, "--out", tmp_path / "run", "--bin-width", 0.1, *options, *FIT
    )
    assert code == 0, err
    assert "10 trials x 5 bins of 0.1 s x 2 neurons, 20 spikes per second and neuron" in out
    code, out, err = command(
        "fit", path, "--out", tmp_path / "both", "--bin-width", 0.1, "--signal", "lfp", *FIT
    )
    assert code == 0, err
    assert "10 trials x 10 bins of 0.1 s x 2 neurons and 1 channels" in out
    code, _, err = command("fit", tmp_path / "b.npz", "--out", tmp_path / "r", "--align-to", "go")
    assert code == 2
    assert "--align-to: for NWB files, which" in err


def test_counts_and_a_signal_from_simulation_to_posterior(command, tmp_path):
    simulated = tmp_path / "lorenz.nc"
    sizes = ("--trials", 12, "--bins", 20, "--neurons", 6, "--channels", 2)
    assert command("simulate", "lorenz", "--out", simulated, *sizes)[0] == 0
    of_both = ("--observation", "negative_binomial,gaussian")
    code, _, err = command("fit", simulated, "--out", tmp_path / "run", *of_both, *FIT)
    assert code == 0, err
    tree_path = tmp_path / "tree.zarr"
    code, _, err = command(
        "posterior", tmp_path / "run", simulated, "--out", tree_path, "--draws", 3
    )
    assert code == 0, err
    tree = xr.open_datatree(tree_path, engine="zarr", consolidated=False)
    assert tree["posterior_predictive/counts"].shape == (1, 3, 12, 20, 6)
    assert tree["posterior_predictive/signal"].shape == (1, 3, 12, 20, 2)
    for named in ("negative_binomial", "poisson,gaussian,gamma"):
        code, _, err = command(
            "fit", simulated, "--out", tmp_path / "other", "--observation", named, *FIT
        )
        assert code == 2
        assert "name both" in err


def test_a_low_rank_network_trains_by_default(command, tmp_path):
    """At the learning rate of the other models its recurrence runs off within two steps."""
    simulated = tmp_path / "lorenz.npz"
    code, _, err = command("simulate", "lorenz", "--out", simulated, "--trials", 80)
    assert code == 0, err
    options = ("--model", "low-rank-rnn", "--max-epochs", 4, "--batch-size", 32)
    code, _, err = command("fit", simulated, "--out", tmp_path / "run", *options)
    assert code == 0, err
    code, _, err = command(
        "fit", simulated, "--out", tmp_path / "0", *options, "--learning-rate", 0
    )
    assert code == 2
    assert "learning_rate=0.0 must be a positive number" in err


@pytest.mark.parametrize("model", ["lfads", "node-sae", "low-rank-rnn"])
def test_fixed_points_are_listed_and_written(command, counts_file, tmp_path, model):
    slowly = ("--model", model, "--learning-rate", 1e-4)
    code, _, err = command(
        "fit",
        counts_file,
        "--out",
        tmp_path / "run",
        *slowly,
        *(FIT if model == "lfads" else SHORT),
    )
    assert code == 0, err
    out = tmp_path / "points" / "first"
    code, printed, err = command("fixed-points", tmp_path / "run", counts_file, "--out", out)
    assert code == 0, err
    points = xr.load_dataset(out.with_suffix(".nc"), engine="h5netcdf")
    found = int(re.search(r"(\d+) fixed points?", printed)[1])
    assert points.sizes["fixed_point"] == found
    assert len(re.findall(r"^ *\d+  \w+ +\d+ ", printed, re.MULTILINE)) == found
    assert "eigenvalues_imag" in points
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert ("the complete set" in printed) == bool(points.attrs["complete"])


def test_a_fixed_point_on_a_kink_is_printed_without_eigenvalues():
    kinked = PiecewiseLinear.relu(0.5, [[0.3]], [[1.0]], 0.0)
    row = table_of(fixed_points(kinked)).splitlines()[1]
    assert row.split()[:4] == ["0", "stable", "-", "-"]


@pytest.mark.parametrize("model", ["lfads", "rnn-sae"])
def test_fixed_points_need_no_recording(command, counts_file, tmp_path, model):
    code, _, err = command(
        "fit",
        counts_file,
        "--out",
        tmp_path / "run",
        "--model",
        model,
        *(FIT if model == "lfads" else SHORT),
    )
    assert code == 0, err
    code, printed, err = command("fixed-points", tmp_path / "run")
    assert code == 0, err
    header, *rows = printed.splitlines()
    assert header.split()[:3] == ["stability", "growing", "first"]
    points = xr.load_dataset(tmp_path / "run" / "fixed_points.nc", engine="h5netcdf")
    for number, stability in enumerate(points["stability"].values):
        assert rows[number].split()[:2] == [str(number), stability]
        eigenvalues = points["eigenvalues_real"] + 1j * points["eigenvalues_imag"]
        growing = int((np.abs(eigenvalues[number]) > 1).sum())
        assert int(rows[number].split()[2]) == growing
    assert (tmp_path / "run" / "fixed_points.png").exists()


@pytest.mark.filterwarnings("ignore:draws by method=")
@pytest.mark.parametrize(
    ("model", "options", "site"),
    [
        ("node-sae", ("--process-noise",), "z"),
        ("rnn-sae", (), "z0"),
        ("low-rank-rnn", ("--dropout", 0.2), "z"),
    ],
)
def test_every_model_of_the_zoo_is_fitted_by_name(
    command, counts_file, tmp_path, model, options, site
):
    code, _, err = command(
        "fit",
        counts_file,
        "--out",
        tmp_path / "run",
        "--model",
        model,
        "--latents",
        2,
        "--max-epochs",
        1,
        *options,
    )
    assert code == 0, err
    code, _, err = command(
        "posterior",
        tmp_path / "run",
        counts_file,
        "--out",
        tmp_path / "tree.zarr",
        "--draws",
        30,
        "--method",
        "smoother" if site == "z" else "importance",
        "--particles",
        40,
    )
    assert code == 0, err
    tree = xr.open_datatree(tmp_path / "tree.zarr", engine="zarr", consolidated=False)
    assert tree[f"posterior/{site}"].shape[:3] == (1, 30, 10)


def test_plot_draws_what_the_recording_has(command, tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "conditions.npz"
    counts = rng.poisson(1.0, (10, 12, 4))
    write(recording(counts=counts, bin_width=0.01, condition=[0, 1] * 5), file)
    run = ("--model", "node-sae", "--max-epochs", 1)
    assert command("fit", file, "--out", tmp_path / "run", *run)[0] == 0
    code, out, err = command("plot", tmp_path / "run", file, "--trial", 3)
    assert code == 0, err
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"rates.png", "latents.png", "trajectories.png", "psths.png"}
    assert all(name in out for name in figures)
    code, _, err = command("plot", tmp_path / "run", file)
    assert code == 2 and "figures exists; choose another folder with --out" in err
    arguments = ("plot", tmp_path / "run", file, "--out", tmp_path / "more", "--trial", 10)
    code, _, err = command(*arguments)
    assert code == 2 and "--trial 10" in err and not (tmp_path / "more").exists()


@pytest.fixture
def known_rates_file(tmp_path):
    """Trials of which one latent drives six neurons, with the true rates and behaviour."""
    rng = np.random.default_rng(0)
    latents = np.sin(0.4 * np.arange(12) + rng.uniform(0, 6, (40, 1)))[..., None]
    rates = np.exp(latents * np.array([1.0, -1.0, 0.7, -0.7, 1.2, 0.5]))
    counts = rng.poisson(rates)
    path = tmp_path / "known.npz"
    write(recording(counts=counts, bin_width=0.02, rates=rates, behavior=latents), path)
    return path


def test_score_compares_unseen_trials_with_baselines(command, known_rates_file, tmp_path):
    marks = ("--test-fraction", 0.25, "--held-out", 0.34)
    assert command("fit", known_rates_file, "--out", tmp_path / "run", *FIT, *marks)[0] == 0
    code, out, err = command("score", tmp_path / "run", known_rates_file)
    assert code == 0, err
    assert out.startswith("10 trials. Out of sample")
    header, *rows = out.strip().splitlines()[2:]
    assert header.split() == ["co_smoothing", "rate_r2", "behavior_r2"]
    assert rows[0].startswith("LFADS") and rows[3].startswith("Poisson GLM")

    # The same in Python, with the neurons that the fit held out.
    fitted = pyrodyn.load(tmp_path / "run" / "model")
    hidden = fitted.record["data"]["held_out"]
    assert len(hidden) == 2
    data = held_out(read(known_rates_file), neurons=hidden)
    is_new = np.array(role_in_fit(fitted, data)) == "unseen"
    train, test = data.isel(trial=~is_new), data.isel(trial=is_new)
    rates = [pyrodyn.predict(fitted, part)["rates"] for part in (train, test)]
    expected = prediction_scores(train, test, *rates)
    assert [float(value) for value in rows[0].split()[1:]] == pytest.approx(
        [*expected.values()], abs=6e-4
    )


def test_options_that_have_no_use_are_refused(command, counts_file, tmp_path):
    run = tmp_path / "run"
    assert command("fit", counts_file, "--out", run, "--test-fraction", 0.2, *FIT)[0] == 0
    code, _, err = command("score", run, counts_file, "--lag", 2)
    assert code == 2 and "has no behaviour that could follow the rates" in err
    tree = ("--out", tmp_path / "t.zarr", "--method", "guide")
    code, _, err = command("posterior", run, counts_file, *tree, "--particles", 9)
    assert code == 2 and "num_particles=9 has no meaning for method='guide'" in err
    assert not (tmp_path / "t.zarr").exists()


def test_score_without_held_out_neurons_or_new_trials(command, known_rates_file, tmp_path):
    assert command("fit", known_rates_file, "--out", tmp_path / "run", *FIT)[0] == 0
    code, out, err = command("score", tmp_path / "run", known_rates_file)
    assert code == 0, err
    assert out.startswith("8 trials. By these trials the fit chose its weights")
    assert "rate_r2" in out and "Baselines need held-out neurons: fit with --held-out" in out

    data = read(known_rates_file)
    roles = np.array(role_in_fit(pyrodyn.load(tmp_path / "run" / "model"), data))
    for name, part, sentence in (
        ("seen", data.isel(trial=roles == "trained"), "no trial that is known to be new"),
        ("new", data.isel(trial=roles == "validated"), "lacks the trials that the fit was trained"),
        ("bare", data.drop_vars(["rates", "behavior"]), "neither held-out neurons"),
    ):
        write(part, tmp_path / f"{name}.npz")
        code, _, err = command("score", tmp_path / "run", tmp_path / f"{name}.npz")
        assert code == 2 and sentence in err, name


def test_resume_goes_on(command, counts_file, tmp_path):
    assert command("fit", counts_file, "--out", tmp_path / "run", *FIT)[0] == 0
    more = [
        4 if argument == 2 and position == 1 else argument for position, argument in enumerate(FIT)
    ]
    code, out, _ = command("fit", counts_file, "--out", tmp_path / "run", *more, "--resume")
    assert code == 0
    assert "of 4:" in out


def test_help_and_import_load_no_numerical_library():
    """They would take seconds."""
    heavy = {"torch", "pyro", "matplotlib", "lightning", "arviz_base", "scipy", "pandas", "xarray"}
    script = (
        "import sys, pyrodyn, pyrodyn.cli\n"
        "sys.argv = ['pyrodyn', 'fit', '--help']\n"
        "try: pyrodyn.cli.main()\n"
        "except SystemExit: print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage:" in run.stdout
    assert not heavy & set(run.stdout.split())


def test_every_public_name_is_imported_when_used():
    script = (
        "import pyrodyn\n"
        "for name in pyrodyn.__all__: getattr(pyrodyn, name)\n"
        "assert dir(pyrodyn) == sorted(pyrodyn.__all__)\n"
        "print(pyrodyn.fit.__name__, pyrodyn.models.LFADS.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "fit LFADS\n"
    with pytest.raises(AttributeError, match="module 'pyrodyn' has no attribute 'fits'"):
        _ = pyrodyn.fits


@pytest.mark.parametrize(
    ("arguments", "typed", "expected"),
    [
        (("fit", "x.npz", "--model"), "no", "node-sae"),
        (("posterior", "run", "x.npz", "--method"), "s", "smoother"),
    ],
)
def test_names_are_completed_in_the_shell(arguments, typed, expected, monkeypatch, capsys):
    words = ["pyrodyn", *arguments, typed]
    monkeypatch.setenv("_PYRODYN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    _, out, _ = run(monkeypatch, capsys)
    assert out.split() == [expected]


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_latents(command, counts_file, tmp_path):
    run, out = tmp_path / "run", tmp_path / "more"
    arguments = ("fit", counts_file, "--out", run, "--model", "ndt", "--max-epochs", 1)
    code, printed, err = command(*arguments, "--test-fraction", 0.3)
    assert code == 0, err
    assert "model in" in printed
    code, printed, err = command("check", run, counts_file)
    assert code == 0, err
    assert "draws by method='dropout'" in printed
    assert re.search(r"There is no estimate of the evidence: .*NDT has none", printed)
    code, printed, err = command("plot", run, counts_file, "--out", out)
    assert code == 0, err
    assert [path.name for path in out.iterdir()] == ["rates.png"]
    code, _, err = command(
        "posterior", run, counts_file, "--out", tmp_path / "t.zarr", "--draws", 3
    )
    assert code == 0, err
    assert xr.open_datatree(tmp_path / "t.zarr").attrs["method"] == "dropout"
    for words in (("fixed-points", run), ("posterior", run, counts_file, "--method", "pool")):
        code, _, err = command(*words, "--out", tmp_path / "p.zarr")
        assert code == 2
        assert re.search(r"NDT has (no dynamics of its own|none: it predicts)", err)


def test_the_names_offered_are_those_accepted():
    assert METHODS == samplers.METHODS
    for name, model in MODELS.items():
        assert name.replace("-", "") == model.lower()
        assert model in pyrodyn.models.__all__


def test_sessions_become_one_recording(command, counts_file, tmp_path):
    rng = np.random.default_rng(1)
    other, both = tmp_path / "tuesday.nc", tmp_path / "both.nc"
    write(recording(counts=rng.poisson(1.0, (6, 12, 3)), bin_width=0.01), other)
    code, out, err = command("sessions", counts_file, other, "--out", both)
    assert code == 0, err
    assert out.startswith("wrote 2 sessions, 16 trials x 12 bins of 0.01 s x 7 neurons")
    assert set(read(both)["session"].values) == {"counts", "tuesday"}
    assert command("fit", both, "--out", tmp_path / "run", *FIT)[0] == 0
    code, _, err = command("sessions", counts_file, counts_file, "--out", tmp_path / "c.nc")
    assert code == 2 and "two sessions are named counts; rename one of the files" in err
    code, _, err = command("sessions", counts_file, "--out", tmp_path / "c.nc")
    assert code == 2 and "at least two are needed" in err


def test_data_list(command):
    code, out, _ = command("data", "list")
    assert code == 0
    assert re.search(r"lorenz_lfads_truth +(present|absent)", out)
    assert "CC-BY-4.0" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fit", "missing.npz", "--out", "run"), r"missing.npz"),
        (("fit", "no_such_name", "--out", "run"), r"no recording is named 'no_such_name'"),
        (("fit", "FILE", "--out", "run", "--model", "hmm"), r"--model hmm is unknown"),
        (("fit", "FILE", "--out", "run", "--observation", "normal"), r"observation.*normal"),
        (("fit", "FILE", "--out", "run", "--dropout", "1.5"), r"rate=1.5 is a fraction"),
        (("fit", "FILE", "--out", "run", "--valid-fraction", "0.99"), r"."),
        (("fit", "FILE", "--out", "run", "--max-epochs", "0"), r"max_epochs=0"),
        (
            ("fit", "FILE", "--out", "run", "--latents", "3"),
            r"--latents: LFADS has no such",
        ),
        (
            ("fit", "FILE", "--out", "run", "--model", "ndt", "--factors", "3"),
            r"--factors: NDT has no such size; of these options it takes none",
        ),
        (
            ("fit", "FILE", "--out", "run", "--model", "low-rank-rnn", "--process-noise"),
            r"--process-noise: LowRankRNN has no such size; of these options it takes --latents",
        ),
        (("fit", "FILE", "--out", "run", "--resume"), r"holds no last.ckpt to resume from"),
        (("posterior", "nowhere", "FILE", "--out", "t.zarr"), r"nowhere contains no saved model"),
        (("simulate", "lorentz", "--out", "x.npz"), r"lorentz.*lorenz"),
        (("simulate", "lorenz", "--out", "x.csv"), r"x.csv"),
        (("simulate", "lorenz", "--out", "FILE"), r"counts.npz exists; choose another file"),
        (("simulate", "lorenz", "--out", "x.npz", "--trials", "0"), r"num_trials"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command, counts_file, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    arguments = [counts_file if argument == "FILE" else argument for argument in arguments]
    code, _, err = command(*arguments)
    assert code == 2
    assert err.startswith("pyrodyn: ")
    assert err.count("\n") == 1
    assert re.search(sentence, err)


def _interrupted(process: subprocess.Popen) -> str:
    """What a process prints after Ctrl-C, pressed again where Python lost it in a destructor."""
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("Ctrl-C was ignored three times")


def test_ctrl_c_keeps_the_checkpoint_and_says_so(counts_file, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pyrodyn.cli", "fit", counts_file, "--out", out),
            *("--max-epochs", "100000", "--factors", "2", "--generator", "6"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A test run in the background of a shell hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "last.ckpt").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        err = _interrupted(process)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the last checkpoint is kept" in err
    assert "--resume" in err
    assert (out / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fit", "FILE"), "Missing option '--out'"),
        (("fit", "FILE", "--out", "run", "--foo"), "No such option: --foo"),
        (("simulate", "lorenz", "--out", "x.npz", "--trials", "abc"), "'--trials'"),
        (("nope",), "No such command 'nope'"),
        (("fit", "FILE", "--out", "run", "--bin-width", "0"), "states its own bin width"),
        (("fit", "lorenz_lfads_truth", "--out", "run", "--bin-width", "0.5"), "--bin-width 0.5"),
        (("fit", "FILE", "--out", "run", "--test-fraction", "0.8"), "must lie between 0 and 0.8"),
        (("fit", "FILE", "--out", "run", "--held-out", "1"), "--held-out 1 must lie between"),
        (
            ("fit", "FILE", "--out", "run", "--valid-fraction", "0"),
            "--valid-fraction 0 must lie between",
        ),
    ],
)
def test_wrong_usage_is_one_line_too(
    command, counts_file, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*(counts_file if one == "FILE" else one for one in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("pyrodyn: ") and err.count("\n") == 1
    assert sentence in err


def test_a_command_without_arguments_shows_its_help(command):
    code, out, err = command()
    assert code == 2
    assert "Usage: pyrodyn" in out + err


def test_a_files_own_parts_are_taken(command, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    both = recording(counts=rng.poisson(1.0, (10, 12, 4)), bin_width=0.01)
    part = np.array(["train"] * 7 + ["valid"] * 3)
    path = tmp_path / "parts.nc"
    write(both.assign_coords(split=("trial", part)), path)
    given = []

    def stop(model, train, valid, **options):
        given.append((train.sizes["trial"], valid["trial"].values.tolist()))
        raise ValueError("seen enough")

    monkeypatch.setattr("pyrodyn.fit", stop)
    assert command("fit", path, "--out", tmp_path / "run")[0] == 2
    assert command("fit", path, "--out", tmp_path / "run", "--valid-fraction", 0.5)[0] == 2
    assert given[0] == (7, [7, 8, 9])
    assert given[1][0] == 5
    code, _, err = command("fit", path, "--out", tmp_path / "run", "--test-fraction", 0.2)
    assert code == 2 and "states which trials to train and validate on" in err
    assert len(given) == 2


def test_ctrl_c_before_the_first_epoch_claims_no_checkpoint(
    command, counts_file, tmp_path, monkeypatch
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyrodyn.fit", interrupted)
    code, _, err = command("fit", counts_file, "--out", tmp_path / "run", "--factors", 2)
    assert code == 130
    assert "before the end of the first epoch" in err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").touch()
    code, _, err = command("fit", counts_file, "--out", tmp_path / "run", "--factors", 2)
    assert code == 130
    assert f"pyrodyn fit {counts_file} --out {tmp_path / 'run'} --factors 2 --resume" in err
    monkeypatch.setattr("pyrodyn.demo.run", interrupted)
    code, _, err = command("demo")
    assert (code, err) == (130, "\npyrodyn: interrupted\n")
