"""The documentation's benchmark page and README's table of numbers, from the files of results.

uv run python benchmarks/page.py            writes both
uv run python benchmarks/page.py --check    fails where either is not what the results give
"""

import argparse
import json
import math
import string
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, README = ROOT / "benchmarks/results", ROOT / "docs/benchmarks.md", ROOT / "README.md"
BEGIN, END = "<!-- numbers: benchmarks/page.py -->", "<!-- end of numbers -->"

Row = dict[str, Any]

PREFIX = "uv run python "
"""Of every command."""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        heading: as printed.
        cell: text of a row's cell.
    """

    heading: str
    cell: Callable[[Row], str]


class Section(NamedTuple):
    """A benchmark on the page.

    Attributes:
        name: of the file of results.
        title: of the section.
        question: that it answers, with what data.
        columns: of its table, at most six.
        verdict: one line, from the rows.
        rows: what the table shows of the rows; all of them by default.
    """

    name: str
    title: str
    question: str
    columns: tuple[Column, ...]
    verdict: Callable[[list[Row]], str]
    rows: Callable[[list[Row]], list[Row]] = lambda rows: rows


def value(key: str, heading: str | None = None, digits: int = 3, scale: float = 1.0) -> Column:
    """A number of the rows to so many significant decimals; empty where there is none."""
    return Column(heading or key, lambda row: number(row.get(key), digits, scale))


def text(key: str, heading: str | None = None, names: dict[Any, str] | None = None) -> Column:
    return Column(heading or key, lambda row: (names or {}).get(row[key], str(row[key])))


def number(found: float | None, digits: int, scale: float = 1.0) -> str:
    if found is None or math.isnan(found):
        return ""
    # Adding 0 turns a rounded -0 into 0.
    return f"{round(scale * found, digits) + 0.0:.{digits}f}"


def below(row: Row) -> str:
    """By how much a family is worse than the true one, which has no such number."""
    return (
        "" if row["is_true"] else f"{row['gap']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
    )


def ratio() -> Column:
    return Column(
        "ratio (range)", lambda r: f"{r['ratio']:.2f} ({r['lowest']:.2f} to {r['highest']:.2f})"
    )


def span(rows: Sequence[Row], key: str, digits: int = 3, scale: float = 1.0) -> str:
    """Smallest and largest of a column."""
    found = [row[key] for row in rows if row.get(key) is not None]
    low, high = (number(end(found), digits, scale) for end in (min, max))
    return low if low == high else f"{low} to {high}"


def mean(rows: Sequence[Row], key: str, digits: int = 3) -> str:
    return number(sum(row[key] for row in rows) / len(rows), digits)


def averaged(rows: Sequence[Row]) -> Row:
    """The row of the network whose weights are averaged."""
    return next(row for row in rows if row["generator"].endswith("averaged"))


def by_model(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["model"]: row for row in rows}


def grouped(rows: list[Row]) -> list[Row]:
    """One row per system and kind of dynamics: mean and range over seeds."""
    found: list[Row] = []
    for key in dict.fromkeys((row["system"], row["dynamics"]) for row in rows):
        own = [row for row in rows if (row["system"], row["dynamics"]) == key]
        columns = ("rate R2", "hidden R2", "exponent")
        about = {name: f"{mean(own, name)} ({span(own, name)})" for name in columns}
        found.append({"system": key[0], "dynamics": key[1], "truth": own[0]["truth"], **about})
    return found


def by_dims(rows: list[Row]) -> list[Row]:
    """One row per system and kind of dynamics: rate R2 by the number of latents."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["system"], row["dynamics"])
        own = found.setdefault(key, {"system": key[0], "dynamics": key[1]})
        own[f"R2 {row['dim']}"] = row["rate R2"]
    return list(found.values())


REGRESSIONS = ("Poisson GLM", "ridge regression")
BASELINES = ("condition average", "templates", *REGRESSIONS, "principal components")
BASELINES += ("linear dynamical system",)


def bare_calls(rows: list[Row]) -> list[Row]:
    """One row per recording and model: means over seeds, beside the baselines'."""
    found: list[Row] = []
    for key in dict.fromkeys((row["recording"], row["model"]) for row in rows):
        own = [row for row in rows if (row["recording"], row["model"]) == key]
        scores = {
            name: sum(row[name] for row in own) / len(own)
            for name in ("co-smoothing", *BASELINES, "behaviour", "behaviour of GLM", "rate R2")
            if all(row.get(name) is not None for row in own)
        }
        known = {
            name: scores[name] for name in BASELINES if not math.isnan(scores.get(name, math.nan))
        }
        best = max(known, key=lambda name: known[name])
        regression = next(known[name] for name in REGRESSIONS if name in known)
        average = number(known.get("condition average"), 3) or "none"
        truth = ""
        if "behaviour" in scores:
            truth = f"{scores['behaviour']:.3f} ({scores['behaviour of GLM']:.3f})"
        elif "rate R2" in scores:
            truth = f"rates {scores['rate R2']:.3f}"
        found.append(
            {
                "recording": f"`{key[0]}`",
                "model": f"{key[1]}, {len(own)} seed{'s' * (len(own) > 1)}",
                "co-smoothing": scores["co-smoothing"],
                "plain": f"{average}, {regression:.3f}",
                "best": f"{known[best]:.3f} ({best})",
                "other": truth,
                "ahead": scores["co-smoothing"]
                > max(known.get("condition average", -1), regression),
                "seconds": max(row["seconds"] for row in own),
            }
        )
    return found


def by_method(rows: list[Row]) -> list[Row]:
    """One row per model and method: means over seeds, and what the method reports."""
    found: list[Row] = []
    for key in dict.fromkeys((row["model"], row["method"]) for row in rows):
        own = [row for row in rows if (row["model"], row["method"]) == key]
        scores = ("c50", "c90", "rate R2", "seconds")
        averages = {name: sum(row[name] for row in own) / len(own) for name in scores}
        names = {"pareto_k": "k-hat", "r_hat": "R-hat"}
        reported = [
            f"{about} {mean(own, name, 2)}" for name, about in names.items() if name in own[0]
        ]
        about = {"model": key[0], "method": f"`{key[1]}`", "reported": ", ".join(reported)}
        found.append({**about, **averages})
    return found


def of_mcmc(rows: list[Row]) -> list[Row]:
    return [row for row in by_method(rows) if row["method"] == "`mcmc`"]


SYSTEM = {"arneodo": "Arneodo", "rossler": "Rossler", "lorenz": "Lorenz"}
FAMILY = {"poisson": "Poisson", "negative_binomial": "negative binomial"}
DYNAMICS = {
    "node": "NODE: flow of MLP(z)",
    "gru": "GRU",
    "residual_mlp": "z + MLP(z) / 10",
    "next_state": "MLP(z)",
    "vanilla": "tanh(W z + b)",
    "residual": "z + tanh(W z + b) / 10",
}
TIMES = (value("ours_ms", "pyrodyn, ms", 1), value("theirs_ms", "alternative, ms", 1), ratio())

SECTIONS = (
    Section(
        "defaults",
        "Bare calls: every model beside baselines",
        "Does `fit(Model.for_recording(train), train, valid)` beat"
        " {py:func}`baselines <pyrodyn.analysis.baselines>`? Co-smoothing of a"
        " quarter of the neurons; settings were chosen on these test trials, which is optimistic.",
        (
            text("recording"),
            text("model"),
            value("co-smoothing"),
            text("plain", "condition average, GLM (EEG: ridge)"),
            text("best", "best baseline"),
            text("other", "behaviour R2 (of the GLM)"),
        ),
        lambda rows: (
            f"{sum(r['ahead'] for r in bare_calls(rows))} of {len(bare_calls(rows))} beat average"
            f" and regression, in {span(bare_calls(rows), 'seconds', 0)} processor seconds."
        ),
        bare_calls,
    ),
    Section(
        "lorenz",
        "LFADS: simulated Lorenz system",
        "Does LFADS recover rates, hidden neurons and latents? `lorenz_lfads_truth`, 640 training"
        " and 160 validation trials, 3 factors, 15 of 60 neurons hidden from the encoder; scores of"
        " validation trials, which also chose the kept weights.",
        (
            value("seed", digits=0),
            value("seconds", "minutes", 1, 1 / 60),
            value("rate R2"),
            value("share", "co-smoothing, % of the true rates'", 1, 100),
            value("true->inferred", "latents, true → inferred"),
            value("inferred->true", "inferred → true"),
        ),
        lambda rows: f"Rate R2 is {span(rows, 'rate R2')}; more steps help.",
    ),
    Section(
        "pulses",
        "LFADS: inferred inputs",
        "Are pulses found, and are inputs silent without pulses? A chaotic network of 50 units,"
        " 2000 trials, one pulse per trial or none; validation trials. Their KL ends with"
        " weight 6: not the plain bound.",
        (
            value("seed", digits=0),
            text("pulsed", "pulses", {1.0: "one per trial", 0.0: "none"}),
            value("rate R2"),
            value("within 3 bins", "% of pulses within 3 bins of the largest input", 1, 100),
            value("KL(u) nats", "KL of inputs, nats per trial", 2),
        ),
        lambda rows: (
            f"{span([r for r in rows if r['pulsed']], 'within 3 bins', 1, 100)} % of pulses are"
            " found; without pulses the inputs carry"
            f" {span([r for r in rows if not r['pulsed']], 'KL(u) nats', 2)} nats."
        ),
    ),
    Section(
        "maze_lfads",
        "LFADS: monkey motor cortex",
        "Does LFADS predict hidden neurons and hand velocity on new trials? `mc_maze_large_9cond`,"
        " 132 trials, 162 neurons, 5 folds, a quarter of the neurons hidden from the encoder;"
        " test trials, one seed per fold.",
        (
            value("fold", digits=0),
            value("co-bps", "co-smoothing, bits/spike"),
            value("PSTH co-bps", "condition average"),
            value("velocity", "velocity R2"),
            value("spikes", "from smoothed spikes"),
        ),
        lambda rows: (
            f"Means: co-smoothing {mean(rows, 'co-bps')} (condition average"
            f" {mean(rows, 'PSTH co-bps')}), velocity R2 {mean(rows, 'velocity')} (smoothed spikes"
            f" {mean(rows, 'spikes')})."
        ),
    ),
    Section(
        "maze_low_rank",
        "Low-rank RNN: monkey motor cortex",
        "The same trials by a stochastic low-rank RNN of rank 5 fitted by VSMC. Settings were"
        " chosen on fold 0's test trials: that fold is optimistic.",
        (
            value("fold", digits=0),
            value("co-bps", "co-smoothing, bits/spike"),
            value("PSTH co-bps", "condition average"),
            value("velocity", "velocity R2"),
        ),
        lambda rows: (
            f"Means: co-smoothing {mean(rows, 'co-bps')} (condition average"
            f" {mean(rows, 'PSTH co-bps')}), velocity R2 {mean(rows, 'velocity')}."
        ),
    ),
    Section(
        "teacher_student_gaussian",
        "Parameter recovery: low-rank RNN, Gaussian observations",
        "Are the noise, the map and the period of a known limit cycle recovered by VSMC? Relative"
        " errors in %; students start from a wrong decay on purpose.",
        (
            text("student", "proposal and particles"),
            value("seed", digits=0),
            value("sigma_z %", "process noise", 1),
            value("sigma_x %", "observation noise", 1),
            value("slope %", "slope of the map", 1),
            value("period %", "period", 1),
        ),
        lambda rows: (
            "The optimal proposal with 64 particles finds the process noise within"
            f" {max(abs(r['sigma_z %']) for r in rows if r['student'] == 'optimal 64'):.1f} %; one"
            " particle (the ELBO) overestimates it, and the bootstrap proposal fails with"
            " observations this sharp."
        ),
    ),
    Section(
        "teacher_student_poisson",
        "Parameter recovery: low-rank RNN, counts",
        "Does a network fitted to counts by `SmoothedScore` infer rates as well as the network that"
        " generated them, and generate the same statistics? In brackets: one half of the data"
        " against the other.",
        (
            value("seed", digits=0),
            value("inferred", "rates, correlation", 4),
            value("by teacher", "by the true network", 4),
            Column("mean rates", lambda r: f"{r['mean rate']:.4f} ({r['mean rate half']:.4f})"),
            Column("pairwise", lambda r: f"{r['pairwise']:.4f} ({r['pairwise half']:.4f})"),
            Column("autocorrelation", lambda r: f"{r['autocorr']:.4f} ({r['autocorr half']:.4f})"),
        ),
        lambda rows: (
            "Rates are inferred within"
            f" {max(r['by teacher'] - r['inferred'] for r in rows):.4f} of the true network's."
        ),
    ),
    Section(
        "eeg",
        "Low-rank RNN: generated EEG",
        "Does what a rank-3 network generates resemble 64-channel EEG, beside trivial generators?"
        " Fitted to the first 75 % of time; Hellinger distance of spectra (D_H) and KL in state"
        " space (D_stsp), means over 5 seeds. Published rank-3 models: 0.155 and 2.11, in sample.",
        (
            text("generator"),
            value("D_H in sample"),
            value("D_stsp in sample", digits=2),
            value("D_H held out"),
            value("D_stsp held out", digits=2),
        ),
        lambda rows: (
            "The averaged network's spectra are close (D_H"
            f" {averaged(rows)['D_H in sample']:.3f} in sample,"
            f" {averaged(rows)['D_H held out']:.3f} held out); held out, a VAR model and a"
            " phase-randomised surrogate come as near."
        ),
    ),
    Section(
        "gtf_eeg",
        "Shallow PLRNN by teacher forcing: generated EEG",
        "The same by `GTF`, in a fortieth of the published steps, one seed, without and with"
        " noise.",
        (
            text("generator"),
            value("parameters", digits=0),
            value("latents", digits=0),
            value("D_H in sample"),
            value("D_stsp in sample", digits=2),
            value("D_H held out"),
        ),
        lambda rows: (
            "After so short a fit the map alone ends in a fixed point. With noise its spectra are"
            " close (held out), its states are not."
        ),
        lambda rows: [row for row in rows if row["latents"]],
    ),
    Section(
        "gtf_lorenz",
        "Shallow PLRNN by teacher forcing: Lorenz-63",
        "Does a map of 3 latents, fitted by adaptive `GTF` in a sixtieth of the published steps,"
        " generate the attractor? One seed.",
        (
            text("generator"),
            value("D_stsp", digits=2),
            value("D_H"),
            value("largest exponent", digits=2),
            value("true exponent", digits=2),
            value("fixed points", digits=0),
        ),
        lambda rows: (
            f"It is close, with {rows[-1]['fixed points']} certified fixed points, as many as"
            " Lorenz' system has."
        ),
    ),
    Section(
        "sessions",
        "Several sessions fitted together",
        "Five populations of 10 neurons see the same Lorenz system: one LFADS for all, or one each;"
        " then a sixth by 10 trials. Test trials, means over sessions, one seed.",
        (
            text("fit"),
            value("rate R2"),
            value("latent R2"),
        ),
        lambda rows: (
            "Together they are better. With fixed dynamics 10 trials give half of it, alone"
            " nothing."
        ),
    ),
    Section(
        "study",
        "Neural ODE and GRU: systems of three dimensions",
        "Do dynamics of the true dimension suffice? The study of Sedler, Versteeg & Pandarinath"
        " (2023) with three latents: the trajectory from the initial state alone, on test trials;"
        " mean (range) over 5 seeds, and the largest Lyapunov exponent.",
        (
            text("system", names=SYSTEM),
            text("dynamics", names=DYNAMICS),
            text("rate R2"),
            text("hidden R2", "latents R2"),
            text("exponent", "exponent"),
            value("truth", "true exponent"),
        ),
        lambda rows: "Three latents suffice the neural ODE and not the GRU.",
        grouped,
    ),
    Section(
        "study_dims",
        "Neural ODE and GRU: number of latents",
        "Does the GRU need more dimensions? Rate R2 by the number of latents, one seed.",
        (
            text("system", names=SYSTEM),
            text("dynamics", names=DYNAMICS),
            value("R2 3", "3 latents"),
            value("R2 5", "5"),
            value("R2 10", "10"),
        ),
        lambda rows: (
            "Yes: it gains with every step; the neural ODE does not need them.\n\n"
            "![Rate R2 of NODE and GRU by the number of latents](images/study.png)"
        ),
        by_dims,
    ),
    Section(
        "study_ablation",
        "Neural ODE and GRU: ablation",
        "Which part of the neural ODE matters? Arneodo's system, three latents, one seed.",
        (
            text("dynamics", names=DYNAMICS),
            value("rate R2"),
            value("hidden R2", "latents R2"),
            value("exponent", "exponent (true 0.203)"),
        ),
        lambda rows: "The perceptron; a pass-through without it does not suffice.",
    ),
    Section(
        "calibration",
        "Calibration of posterior draws",
        "Which draws can be trusted? Coverage of true rates of 12 trials that the fitted model"
        " itself generates; one fit each, 400 draws.",
        (
            text("model"),
            text("method"),
            Column("50 %, 90 % intervals hold", lambda r: f"{r['c50']:.1%}, {r['c90']:.1%}"),
            value("rate R2"),
            value("seconds", digits=1),
            text("reported", "median"),
        ),
        lambda rows: f"90 % intervals by `mcmc` hold {span(of_mcmc(rows), 'c90', 1, 100)} %.",
        by_method,
    ),
    Section(
        "node_lorenz",
        "Neural ODE: simulated Lorenz system",
        "Does a neural ODE with three latents recover the recording of LFADS above? Rate R2 by"
        " trajectory pools with process noise and from the initial state alone; settings were"
        " chosen on these validation trials.",
        (
            value("seed", digits=0),
            value("noisy", "rate R2, with noise", 4),
            value("first", "initial state alone", 4),
            value("noisy share", "co-smoothing, % of the true rates'", 1, 100),
            value("noisy t->i", "latents, true → inferred"),
            value("noisy i->t", "inferred → true"),
        ),
        lambda rows: (
            f"Rate R2 is {span(rows, 'noisy')}, but on their own the fitted dynamics are"
            f" hardly chaotic (largest exponent {span(rows, 'exponent', 2)}; true 0.91)."
        ),
    ),
    Section(
        "step",
        "Speed: one LFADS training step",
        "Coordinated dropout, ELBO, gradient and Adam, beside one forward and backward pass of"
        " `torch.nn.GRU` of the generator's size; a step rolls five or more.",
        (text("size"), *TIMES),
        lambda rows: (
            "A step takes"
            f" {min(1 / r['ratio'] for r in rows):.1f} to {max(1 / r['ratio'] for r in rows):.1f}"
            " passes of one GRU."
        ),
    ),
    Section(
        "ndt",
        "Speed: inference per trial",
        "Counts to rates, 202 neurons, 70 bins; ratio to NDT. Published: 3.9 ms on a GPU.",
        (
            text("model"),
            value("ms", "ms", 2),
            ratio(),
            value("ms among 64", "ms per trial of 64 at once", 2),
        ),
        lambda rows: (
            f"NDT {by_model(rows)['NDT']['ms']:.1f} ms, its network"
            f" {by_model(rows)['NDT, network alone']['ms']:.1f} ms, LFADS"
            f" {by_model(rows)['LFADS']['ratio']:.1f} times NDT."
        ),
    ),
    Section(
        "guide_check",
        "Speed: the check of a guide",
        "Processor time of the check in `fit`, beside one LFADS training step; ten batches.",
        (
            text("size"),
            text("guide"),
            value("ours_ms", "check, ms", 0),
            value("theirs_ms", "step, ms", 0),
            value("share", "% of a one-minute fit", 2, 100),
        ),
        lambda rows: f"It is {span(rows, 'share', 2, 100)} % of a fit of one minute.",
    ),
    Section(
        "low_rank_step",
        "Speed: one VSMC step of a low-rank RNN",
        "The fused bound beside the same bound recorded by autograd (`SequentialMonteCarlo`).",
        (text("size"), *TIMES),
        lambda rows: f"The fused bound is {span(rows, 'ratio', 1)} times faster.",
    ),
    Section(
        "node_step",
        "Speed: rolling out a neural ODE",
        "Forward and backward, 70 bins, 3 latents, 128 units, beside torchdiffeq and a plain loop"
        " under autograd.",
        (text("method"), value("trials", digits=0), text("beside", "alternative"), *TIMES),
        lambda rows: " ".join(
            f"{name}: {span([r for r in rows if r['beside'] == name], 'ratio', 1)} times as long."
            for name in ("torchdiffeq", "plain loop")
        ),
    ),
    Section(
        "filter",
        "Speed: particle filter",
        "Bootstrap filter, 100 bins, 20 channels, beside the package `particles` (warm);"
        " nanoseconds per particle and bin.",
        (
            value("trials", digits=0),
            value("particles", digits=0),
            value("ours_ns", "pyrodyn, ns", 0),
            value("theirs_ns", "`particles`, ns", 0),
            ratio(),
        ),
        lambda rows: (
            f"With 1000 trials and 256 particles pyrodyn is {rows[3]['ratio']:.1f} times faster;"
            f" on a single trial it takes {1 / rows[0]['ratio']:.1f} times as long."
        ),
    ),
    Section(
        "path_pool",
        "Speed: trajectory pool",
        "`path_pool` beside `importance_sample` from the same prior; nanoseconds per trajectory and"
        " trial.",
        (value("pool_ns", "pool", 0), value("own_ns", "separate", 0), ratio()),
        lambda rows: f"Sharing trajectories is {rows[0]['ratio']:.0f} times faster.",
    ),
    Section(
        "fixed_points",
        "Speed: fixed points of smooth dynamics",
        "Levenberg-Marquardt beside Adam on |g|², 512 starts, residual 1e-6; processor seconds and"
        " distinct points, one seed.",
        (
            text("dynamics"),
            value("ours_s", "pyrodyn, s", 2),
            value("our_points", "points", 0),
            value("adam_s", "Adam, s", 2),
            value("adam_points", "points", 0),
            value("ratio", "ratio", 0),
        ),
        lambda rows: f"{span(rows, 'ratio', 0)} times faster, and no point is missed.",
    ),
    Section(
        "comparison",
        "Comparison by evidence: does the true family win?",
        "Counts of a rank-2 network, Poisson or negative binomial; low-rank RNNs fitted with few"
        " steps; evidence of unseen trials below that of the true family, and seeds in which a"
        " check flags neurons.",
        (
            text("counts", names=FAMILY),
            Column("model", lambda r: f"{FAMILY[r['observation']]}, rank {r['rank']}"),
            Column(
                "nats per trial below the true one (range)",
                lambda r: (
                    ""
                    if r["is_true"]
                    else f"{r['gap']:.2f} ({r['lowest']:.2f} to {r['highest']:.2f})"
                ),
            ),
            Column(
                "true one wins",
                lambda r: "" if r["is_true"] else f"{r['num_won']} of {r['num_seeds']}",
            ),
            Column(
                "flagged: dispersion, zeros, Fano factor",
                lambda r: ", ".join(
                    str(r[f"{check}_flagged"])
                    for check in ("dispersion", "zero_fraction", "fano_factor")
                ),
            ),
        ),
        lambda rows: (
            f"In {sum(r['num_won'] for r in rows)} of"
            f" {sum(r['num_seeds'] for r in rows if not r['is_true'])} comparisons it does."
        ),
    ),
    Section(
        "reading",
        "Memory: reading a file",
        "How much memory does reading 1 GB of incompressible data take, imports apart? The NWB file"
        " holds spike times and a field potential, which are binned.",
        (
            text("format"),
            value("file_mb", "data, MB", 0),
            value("recording_mb", "recording, MB", 0),
            value("peak_mb", "peak, MB", 0),
            value("ratio", "peak / data", 2),
        ),
        lambda rows: f"At most {max(row['ratio'] for row in rows):.2f} times the data.",
    ),
    Section(
        "memory",
        "Memory: inference",
        "How does peak memory grow? An exponent of 0 does not, 1 in proportion.",
        (
            text("work"),
            value("trials", digits=0),
            value("bins", digits=0),
            value("particles", digits=0),
            value("peak_mb", "peak, MB", 0),
            value("exponent", digits=2),
        ),
        lambda rows: f"Exponents of at most {max(row['exponent'] or 0 for row in rows):.2f}.",
        lambda rows: list({row["work"]: row for row in rows}.values()),
    ),
)


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    lines = [[column.heading for column in columns], ["---"] * len(columns)]
    lines += [[column.cell(row) for column in columns] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def machines() -> list[str]:
    """Those on which the sections were measured, in their order."""
    return list(dict.fromkeys(load(about.name)["machine"] for about in measured()))


def section(about: Section) -> list[str]:
    found = load(about.name)
    machine = string.ascii_uppercase[machines().index(found["machine"])]
    assert len(about.columns) <= 6, about.name
    return [
        f"## {about.title}",
        "",
        about.question,
        "",
        *table(about.columns, about.rows(found["rows"])),
        "",
        about.verdict(found["rows"]),
        "",
        f"`{found['command'].replace(PREFIX, '')}`, machine {machine}, {found['date']}.",
        "",
    ]


def measured() -> list[Section]:
    """Sections whose script has been run."""
    return [about for about in SECTIONS if (RESULTS / f"{about.name}.json").exists()]


def page() -> str:
    names = [f"{a}, {b}" for a, b in zip(string.ascii_uppercase, machines(), strict=False)]
    head = [
        "# Benchmarks",
        "",
        f"Each section is generated by `benchmarks/page.py` from the file that its command (after"
        f" `{PREFIX.strip()}`) writes to `benchmarks/results/`. Ratios are medians of runs in"
        " turns, both sides warmed up, with their range. Nothing has been run on a GPU yet."
        " `benchmarks/against.py COMMIT` compares"
        f" step times with those of an older commit. Machines: {'; '.join(names)}.",
        "",
    ]
    return (
        "\n".join([*head, *(line for about in measured() for line in section(about))]).rstrip()
        + "\n"
    )


def readme_table() -> str:
    """What README shows: one row per claim."""
    lorenz, maze = load("lorenz")["rows"], load("maze_lfads")["rows"]
    pulses, teacher = load("pulses")["rows"], load("teacher_student_gaussian")["rows"]
    study = [r for r in load("study")["rows"] if r["dynamics"] == "node"]
    teacher = [r for r in teacher if r["student"] == "optimal 64"]
    error = max(abs(r["sigma_z %"]) for r in teacher)
    bare = next(
        row
        for row in bare_calls(load("defaults")["rows"])
        if row["recording"] == "`mc_maze_large_9cond`" and row["model"].startswith("LFADS")
    )
    rows = [
        (
            f"bare call of LFADS on {bare['recording']}, {bare['model'].removeprefix('LFADS, ')}",
            "co-smoothing, bits/spike (condition average, Poisson GLM; best baseline)",
            f"{bare['co-smoothing']:.3f} ({bare['plain']}; {bare['best']})",
        ),
        ("", "hand velocity R2 from rates (of the GLM)", bare["other"]),
        (
            "LFADS on a simulated Lorenz system, 3 seeds",
            "rate R2 against the truth",
            span(lorenz, "rate R2"),
        ),
        (
            "LFADS on a chaotic network with one pulse per trial, 3 seeds",
            "pulses within 3 bins of the largest inferred input",
            span([r for r in pulses if r["pulsed"]], "within 3 bins", 1, 100) + " %",
        ),
        (
            "LFADS on `mc_maze_large_9cond`, 5 folds",
            "co-smoothing, bits/spike (condition average)",
            f"{mean(maze, 'co-bps')} ({mean(maze, 'PSTH co-bps')})",
        ),
        (
            "",
            "hand velocity R2 from rates (from smoothed spikes)",
            f"{mean(maze, 'velocity')} ({mean(maze, 'spikes')})",
        ),
        (
            "low-rank RNN fitted by VSMC to a known one, 3 seeds",
            "error of the process noise",
            f"at most {error:.1f} %",
        ),
        (
            "NODE-SAE on Arneodo's, Rossler's and Lorenz' systems, 5 seeds each",
            "rate R2 of the trajectory from the initial state alone",
            span(study, "rate R2"),
        ),
    ]
    names = ("model and data", "measured", "result")
    columns = [Column(name, lambda row, n=name: row[n]) for name in names]
    return "\n".join(table(columns, [dict(zip(names, row, strict=True)) for row in rows]))


def readme() -> str:
    """README with its table of numbers as the results give it."""
    before, rest = README.read_text().split(BEGIN)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = False
    for path, wanted in ((PAGE, page()), (README, readme())):
        if arguments.check:
            if path.read_text() != wanted:
                print(f"{path.name} is not what benchmarks/results gives: run benchmarks/page.py")
                stale = True
        else:
            path.write_text(wanted)
    sys.exit(stale)


if __name__ == "__main__":
    main()
