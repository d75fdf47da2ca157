# %% [markdown]
# # Real recordings: motor cortex and EEG
#
# Simulations have a known truth; recordings do not. This notebook fits one recording of spikes and
# one of EEG, and asks each time the question that a reviewer would ask: does the model predict
# anything that a plain method does not? It takes about a minute and a half on one core.
#
# The story follows **MC_Maze** (Churchland & Kaufman; the subset of nine conditions of the Neural
# Latents Benchmark's large set): a macaque reaches through a maze on a screen while 162 units of
# its motor and premotor cortex are recorded. The same analysis is then done in short for **EEG**,
# where its answer is different.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import pyrodyn
from pyrodyn import analysis, data
from pyrodyn.infer import FitWarning

# The fits of this page are short on purpose, and `fit` would warn that they have not converged.
warnings.filterwarnings("ignore", category=FitWarning)
warnings.filterwarnings("ignore", message=".*never fire")  # one unit of MC_Maze

# %% [markdown]
# ## The recordings, if they are there
#
# `data.load(name)` looks for a recording in the folder that the environment variable
# `PYRODYN_DATA` names, then in your cache. `data.catalog()` lists all of them with their place on
# your machine. Where one is absent, this notebook says so and goes on with a simulated stand-in of
# the same form, so that every cell runs; its numbers then mean nothing about a brain.

# %%
present = {row.entry.name: row.path is not None for row in data.catalog()}


def maze() -> xr.Dataset:
    """MC_Maze in bins of 5 ms, or a stand-in with conditions and a two-dimensional behaviour."""
    if present["mc_maze_large_9cond"]:
        return data.load("mc_maze_large_9cond").sel(quantity=["hand velocity x", "hand velocity y"])
    print("MC_Maze IS NOT HERE: set PYRODYN_DATA. What follows is a simulated stand-in.")
    other = data.simulate("lorenz", 132, 100, 60, bin_width=0.005, mean_rate=30, seed=0)
    state = other["latents"].values
    return data.recording(
        other["counts"].values,
        bin_width=0.005,
        behavior=state[..., :2],
        condition=2 * (state[:, 0, 0] > 0) + (state[:, 0, 1] > 0),
    )


def eeg() -> xr.Dataset:
    """Two runs of 64 channels at 160 Hz, or a stand-in."""
    if present["eegmmidb_s001_imagery"]:
        return data.load("eegmmidb_s001_imagery")[["signal"]].isel(time=slice(19_840))
    print("THE EEG IS NOT HERE: set PYRODYN_DATA. What follows is a simulated stand-in.")
    options = {"observation": "gaussian", "bin_width": 1 / 160, "seed": 0}
    return data.simulate("rossler", 2, 19_840, 64, **options)[["signal"]]


fine = maze()
fine

# %% [markdown]
# ## From 5 ms to 20 ms
#
# The recording comes in bins of 5 ms. A hand does not change its velocity within 5 ms, and the cost
# of a recurrent model is proportional to the number of bins, so we add up four bins each. What does
# *not* change is the information on slow rates: sums of independent Poisson counts are Poisson.
#
# One of the 162 units never fires, and pyrodyn would warn of it. It does no harm, and we keep it,
# so that units and trials are those of `benchmarks/defaults.py`.

# %%
coarse = fine.coarsen(time=4)
recording = data.recording(
    coarse.sum()["counts"],
    bin_width=0.02,
    behavior=coarse.mean()["behavior"],
    condition=fine["condition"],
)
per_second = recording["counts"].mean(("trial", "time")) / recording.attrs["bin_width"]
print(
    f"{recording.sizes['trial']} trials of {recording.sizes['time']} bins,"
    f" {recording.sizes['neuron']} units, {len(np.unique(recording['condition']))} conditions,"
    f" median rate {float(per_second.median()):.1f} spikes per second"
)

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=(1.5, 1)
)
busy = np.argsort(per_second.values)[::-1]
raster = fine["counts"][0].values.T[busy]
left.spy(raster > 0, aspect="auto", markersize=1.2, color="black", origin="lower")
left.xaxis.set_ticks_position("bottom")
left.set(xlabel="bin of 5 ms", ylabel="unit (by rate)", title="one trial")
colours = plt.cm.turbo(np.linspace(0.05, 0.95, len(np.unique(recording["condition"]))))
for colour, label in zip(colours, np.unique(recording["condition"]), strict=True):
    velocity = recording["behavior"][recording["condition"].values == label].values
    position = velocity.cumsum(1) * recording.attrs["bin_width"]
    right.plot(*position.transpose(2, 1, 0), color=colour, lw=0.5)
right.set(xlabel="x (mm)", ylabel="y (mm)", title="reaches, by condition", aspect="equal")
plt.show()

# %% [markdown]
# ## What must be decided before any model is fitted
#
# - **Test trials.** A fifth of the trials, stratified by condition, is used for nothing but the
#   final scores. A further part of the rest is for validation: it chooses the weights to keep.
# - **Held-out neurons.** A quarter of the units is marked in `held_out`: no encoder ever reads
#   their spikes, and the model must predict them from the others. This score is called
#   *co-smoothing*.
#
# The score is in bits per spike: the log likelihood of the held-out counts under the predicted
# rates, relative to each unit's mean rate,
#
# $$ \frac{1}{n_{\text{spikes}} \log 2} \sum_{t, i} \big[ \log \text{Poisson}(x_{ti} \mid
#   \hat\lambda_{ti}) - \log \text{Poisson}(x_{ti} \mid \bar\lambda_i) \big]. $$
#
# Zero is the mean rate. There is no absolute scale, which is why the baselines matter.

# %%
marked = data.held_out(recording, neurons=0.25, seed=0)
outer, test = data.folds(marked, 5, seed=0)[4]
train, valid = data.split(outer, (0.85, 0.15), seed=0)
print({"train": train.sizes["trial"], "valid": valid.sizes["trial"], "test": test.sizes["trial"]})

# %% [markdown]
# ## Baselines first
#
# `analysis.baselines` predicts the held-out units of the test trials by five plain methods, each
# with its options chosen on training trials:
#
# - *condition average*: the average training trial of the same condition. It uses the trial's
#   label and not one spike of the trial;
# - *templates*: the same averages, weighted by the probability of each condition given the spikes;
# - *Poisson GLM*: regression on the smoothed counts of the visible units;
# - *principal components* of those, and a *linear dynamical system* fitted by EM.
#
# The second column is the R2 of the hand velocity, decoded by ridge regression from the rates of
# all units; the hand follows the cortex by about 100 ms, `lag=5` bins of 20 ms.

# %%
LAG = 5
table = analysis.baselines(outer, test, lag=LAG)
table.round(3)

# %% [markdown]
# Two things deserve attention. The best plain method is a linear dynamical system, not a
# regression: dynamics help. And the hand velocity is predicted *best* by the condition average,
# which has read no spike of the trial: these reaches are so stereotyped that the label determines
# nearly everything. A high decoding score on such data is therefore no evidence that a model reads
# single trials.

# %% [markdown]
# ## LFADS
#
# `for_recording` takes all sizes from the recording, `fit` all other settings from
# `pyrodyn.recommended`. The one that we change is the length: 500 of the recommended 2000 steps,
# half a minute. The full fit at 5 ms is in `benchmarks/defaults.py`: it takes four minutes and
# reaches 0.272 bits per spike, with 0.256 and 0.247 for the best two baselines.

# %%
model = pyrodyn.models.LFADS.for_recording(train, seed=0)
print("recommended steps:", pyrodyn.recommended(model, train).max_steps)
fitted = pyrodyn.fit(model, train, valid, max_steps=500, seed=0, progress=False)
analysis.plot_losses(fitted.history, fitted.best_epoch)
plt.show()

# %%
predicted = {
    name: pyrodyn.predict(fitted, part, seed=0) for name, part in (("outer", outer), ("test", test))
}
scores = analysis.prediction_scores(
    outer, test, predicted["outer"]["rates"], predicted["test"]["rates"], lag=LAG
)
table.loc["LFADS, 500 steps"] = scores
table.round(3).sort_values("co_smoothing")

# %% [markdown]
# LFADS predicts the held-out units a little better than the linear dynamical system, and clearly
# better than the condition average. The first difference is small, and it depends on the choice of
# the hidden units and of the test trials: other choices move all scores by some 0.05, and for some
# of them the linear system is ahead after so short a fit (Exercise 1). One number from one split is
# not a result.
#
# How uncertain is a difference? The trials are independent, so we score each trial by itself and
# take the standard error of the differences over trials, here to the condition average.

# %%
null = outer["counts"].mean(("trial", "time"))


def per_trial(rates: xr.DataArray) -> np.ndarray:
    """Co-smoothing of every test trial."""
    trials = range(test.sizes["trial"])
    parts = [(rates.isel(trial=[k]), test.isel(trial=[k])) for k in trials]
    return np.array(
        [analysis.recording_bits_per_spike(*part, "held_out", null=null) for part in parts]
    )


averages = analysis.condition_psth(outer, test)
gain = per_trial(predicted["test"]["rates"]) - per_trial(averages)
print(
    f"LFADS minus condition average: {gain.mean():.3f} +- {gain.std(ddof=1) / len(gain) ** 0.5:.3f}"
    f" bits per spike; better in {(gain > 0).sum()} of {len(gain)} trials"
)

# %% [markdown]
# ## PSTHs and single trials
#
# A model of single trials must, when averaged, give the trial averages. Thin lines are the
# condition averages of the smoothed spikes, thick ones those of the inferred rates. The test trials
# are only three per condition, so the figure shows the others.

# %%
analysis.plot_psths(outer, predicted["outer"], num_neurons=3)
plt.show()

# %% [markdown]
# Single trials: the hand velocity decoded from the inferred rates (red) and from spikes smoothed by
# a Gaussian of 50 ms (grey), beside the measured one (black).

# %%
width = recording.attrs["bin_width"]
sources = {
    "smoothed spikes": [analysis.smooth(part["counts"], width, 0.05) for part in (outer, test)],
    "LFADS rates": [predicted["outer"]["rates"], predicted["test"]["rates"]],
}
decoded = {
    name: analysis.decode(before, outer["behavior"], after, test["behavior"], lag=LAG)
    for name, (before, after) in sources.items()
}
print({name: round(float(result.r2), 3) for name, result in decoded.items()})
figure, axes = plt.subplots(2, 3, figsize=(9, 3.6), sharex=True, sharey="row", layout="constrained")
for column, trial in enumerate((0, 8, 16)):
    for row, label in enumerate(("x", "y")):
        axis = axes[row, column]
        axis.plot(test["time"], test["behavior"][trial, :, row], color="black", label="measured")
        for (name, result), colour in zip(decoded.items(), ("0.6", "C3"), strict=True):
            axis.plot(test["time"], result.predicted[trial, :, row], color=colour, label=name)
        if column == 0:
            axis.set_ylabel(f"{label} velocity\n(mm/s)")
    axes[0, column].set_title(f"test trial {trial}", fontsize=9)
    axes[1, column].set_xlabel("time (s)")
handles, labels = axes[0, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## EEG: the same question, another answer
#
# 64 channels of raw scalp EEG (PhysioNet, subject 1, motor imagery), two runs of two minutes. We
# average two samples each (80 Hz), standardise the channels, and cut the runs into windows of one
# second by `segment`. `split` keeps neighbouring windows together.

# %%
averaged = eeg().coarsen(time=2).mean()["signal"]
standard = (averaged - averaged.mean(("trial", "time"))) / averaged.std(("trial", "time"))
windows = data.segment(data.recording(signal=standard, bin_width=1 / 80), seconds=1.0)
eeg_train, eeg_test = data.split(windows, (0.8, 0.2), seed=0)
hidden_train, hidden_test = (
    data.held_out(part, neurons=0.25, seed=0) for part in (eeg_train, eeg_test)
)
eeg_table = analysis.baselines(hidden_train, hidden_test)
eeg_table.round(3)

# %% [markdown]
# Ridge regression explains 97 % of the variance of a hidden channel, from its neighbours *in the
# same bin*: the skull blurs the potential, so neighbouring electrodes record nearly the same. No
# dynamics are needed, and no dynamical model will do better in this task. (`benchmarks/defaults.py`
# has LFADS at 0.86 and the low-rank RNN at 0.94 after four minutes each.) Co-smoothing is the
# wrong question for this kind of signal.
#
# A question that only dynamics can answer is **forecasting**: hide the last bins of every window
# from the model. Baselines for it are persistence (the last value stays), and the mean.

# %%
HORIZON = 8  # bins, 0.1 s
forecast_train, forecast_test = (
    data.held_out(part, forecast_bins=HORIZON) for part in (eeg_train, eeg_test)
)
fit_part, valid_part = data.split(eeg_train, (0.85, 0.15), seed=0)
linear = pyrodyn.models.LinearDynamics.for_recording(fit_part, latent_dim=16, seed=0)
linear = pyrodyn.fit(linear, fit_part, valid_part, max_steps=100, seed=0, progress=False)
forecast = pyrodyn.predict(linear, forecast_test, seed=0)["rates"].values[:, -HORIZON:]

future = eeg_test["signal"].values[:, -HORIZON:]
last = np.repeat(eeg_test["signal"].values[:, -HORIZON - 1 : -HORIZON], HORIZON, axis=1)
figure, axis = plt.subplots(figsize=(5.5, 3), layout="constrained")
for name, values in (("linear dynamical system", forecast), ("persistence", last)):
    error = np.square(future - values).mean((0, 2))
    r2 = 1 - error / np.square(future - future.mean((0, 1))).mean((0, 2))
    axis.plot(1000 * np.arange(1, HORIZON + 1) / 80, r2, marker="o", ms=3, label=name)
axis.axhline(0, color="0.6", lw=0.8)
axis.set(xlabel="milliseconds after the last visible bin", ylabel="R2, mean over channels")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The model is `LinearDynamics`, whose evidence is exact, so that the fit takes ten seconds. It
# forecasts better than persistence from the second bin on: rhythms of the EEG are rotations in its
# latent space, and such a rotation is predictable for about one cycle of alpha, 0.1 s.
#
# > **What can go wrong**
# >
# > - **Scores on visible entries.** A model that copies spikes into its rates scores high on the
# >   entries that it has read. Score held-out neurons, forecast bins, or new trials.
# > - **Test trials chosen at random from overlapping or neighbouring windows.** Neighbours share
# >   samples or slow drifts. `split` keeps runs of segments together; keep it so.
# > - **Behaviour that the label predicts.** Compare with the condition average, as above.
# > - **Baselines without tuned options.** A GLM with a badly chosen kernel makes every model look
# >   good. `analysis.baselines` chooses kernels, dimensions and penalties on training trials.
# > - **Bins too fine.** At 5 ms these units fire once in twenty bins or less; the fit takes four
# >   times as long and is no better.
#
# ## Exercises
#
# **1.** Repeat the comparison with the other four folds (`data.folds(marked, 5, seed=0)[k]`). Is
# LFADS better than the linear dynamical system in each?
#
# <details><summary>Answer</summary>
#
# Loop over `k` with the cells above; it takes about four minutes. Do the same with other seeds of
# `data.held_out`. The folds differ by more than the
# methods do, so compare within a fold: take the difference per fold, its mean, and its standard
# error over the five folds. Claim an advantage only if the mean difference is more than twice that
# error.
#
# </details>
#
# **2.** Does LFADS use single trials, or has it learned the condition averages? Subtract from each
# unit's counts the condition average and correlate the residual with that of the inferred rates, on
# held-out units.
#
# <details><summary>Answer</summary>
#
# With `averages = analysis.condition_psth(outer, test)` compare `test["counts"] - averages` with
# `predicted["test"]["rates"] - averages` on `test["held_out"]`. A positive correlation in most
# units shows that the rates carry information on the trial beyond its condition. The gain per trial
# printed above is the same statement in bits.
#
# </details>
#
# **3.** Bins of 10 ms in place of 20 ms: which scores change, and which must not?
#
# <details><summary>Answer</summary>
#
# Use `coarsen(time=2)`, `bin_width=0.01` and `lag=10`. The bits per spike of all methods change
# little, since the sums carry nearly the same information; time per step doubles. Velocities are
# compared at twice as many times, with nearly the same R2.
#
# </details>
#
# ## Next
#
# - The model card of [LFADS](../docs/models/lfads.md), with its options, and that of
#   [linear dynamical systems](../docs/models/linear_dynamics.md).
# - Your own files: [Your own data](your_data.ipynb).
# - When did an input arrive? [Inferred inputs](inferred_inputs.ipynb).
