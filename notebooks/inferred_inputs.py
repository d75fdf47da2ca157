# %% [markdown]
# # Inferred inputs: when did something happen?
#
# A stimulus, a decision, a command from another area: a population often receives an input that
# nobody recorded. LFADS can infer it. The idea: the dynamics of a population, once learned, predict
# its activity from its own past, and where the activity departs from this prediction something
# must have come from outside. This notebook takes about a minute on one core.
#
# ## The recording
#
# A chaotic network of 50 rate units,
#
# $$ \tau\, \dot y = -y + \gamma\, W \tanh(y), $$
#
# of which we see the spikes of 50 neurons (random projections of $y$). In half of the trials, at a
# random time in the middle of the trial, a short pulse kicks $y$ in a fixed direction. The model
# sees spikes alone; the coordinate `pulse_bin` keeps the truth for us (-1: no pulse). Because the
# network is chaotic, every trial looks different, and nothing in the spikes of a single neuron
# gives the pulse away (Sussillo et al. 2016, section 4).

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np

import pyrodyn
from pyrodyn import analysis, data
from pyrodyn.infer import FitWarning

# The fits of this page are short on purpose, and `fit` would warn that they have not converged.
warnings.filterwarnings("ignore", category=FitWarning)

NETWORK = {
    "num_trials": 240,
    "num_bins": 50,
    "num_neurons": 50,
    "bin_width": 0.01,
    "mean_rate": 50,  # spikes per second
    "pulse_size": 0.7,  # of the pulse's direction, whose entries are standard normal
    "seed": 0,
}
recording = data.simulate("pulsed_rnn", pulse_probability=0.5, **NETWORK)
train, valid = data.split(recording, (0.8, 0.2), seed=0)
pulse = valid["pulse_bin"].values
has_pulse = pulse >= 0
print(f"{has_pulse.sum()} of {len(pulse)} validation trials have a pulse")

# %%
with_pulse, without = (np.flatnonzero(which)[0] for which in (has_pulse, ~has_pulse))
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
for axis, trial, title in ((axes[0], with_pulse, "with a pulse"), (axes[1], without, "without")):
    axis.imshow(
        valid["counts"][trial].values.T, aspect="auto", cmap="Greys", extent=(0, 0.5, 0, 50)
    )
    axis.set(xlabel="time (s)", title=title)
    if pulse[trial] >= 0:
        axis.axvline(0.01 * pulse[trial], color="C3", lw=1, ls=":", label="pulse")
        axis.legend(loc="upper left", fontsize=8)
axes[0].set_ylabel("neuron")
plt.show()

# %% [markdown]
# ## The model
#
# LFADS explains a trial by a generator, a recurrent network with initial state $g_0$, that is
# driven by an inferred input $u_t$:
#
# $$
# \begin{aligned}
# u_t &= \alpha\, u_{t-1} + \varepsilon_t, \qquad \varepsilon_t \sim \text{Student-}t, \\
# g_t &= \operatorname{GRU}(u_t,\, g_{t-1}), \\
# x_t &\sim \text{Poisson}\big(e^{W F g_t + b}\big).
# \end{aligned}
# $$
#
# Three choices matter here.
#
# - `inferred_input_dim=1`: one input. More inputs may also repair what the generator has not
#   learned, and then `u` no longer shows external events alone.
# - `input_prior="student_t"`: pulses are rare and large. The increments of a Student-t process are
#   mostly small and sometimes large, while a Gaussian process would have to spread them out.
# - The sizes are smaller than the defaults and the learning rate is higher, so that 400 steps
#   (half a minute) suffice. `pyrodyn demo` fits the default sizes for two minutes.

# %%
SIZES = {
    "factor_dim": 8,
    "generator_dim": 64,
    "encoder_dim": 32,
    "controller_dim": 32,
    "controller_encoder_dim": 32,
    "inferred_input_dim": 1,
    "input_prior": "student_t",
}
model = pyrodyn.models.LFADS.for_recording(train, seed=0, **SIZES)
fitted = pyrodyn.fit(model, train, valid, max_steps=400, learning_rate=1e-2, seed=0, progress=False)
predicted = pyrodyn.predict(fitted, valid, seed=0)

width = recording.attrs["bin_width"]
smoothed = analysis.smooth(valid["counts"], width, 0.03)
print(f"R2 of the rates: {analysis.rate_r2(predicted['rates'], valid['rates']).pooled:.3f}")
print(f"  of spikes smoothed by 30 ms: {analysis.rate_r2(smoothed, valid['rates']).pooled:.3f}")

# %% [markdown]
# ## When?
#
# Every row is a trial, its colour the size of the inferred input; trials are sorted by the time of
# the true pulse, which is marked.

# %%
analysis.plot_inferred_inputs(valid, predicted)
plt.show()

# %%
size = np.abs(predicted["u"].values[..., 0])
largest = size.argmax(1)
error = (largest - pulse)[has_pulse]
print(f"largest input at most one bin from the pulse: {np.mean(np.abs(error) <= 1):.0%} of trials")
print(f"mean error {error.mean():+.2f} bins of 10 ms, standard deviation {error.std():.2f}")

# %% [markdown]
# A constant offset of one bin would be no error of the model: a pulse at the left edge of a bin and
# an input within the bin before have the same effect on the counts. Fits settle on the one or the
# other.
#
# ## Did something happen?
#
# In half of the trials nothing did, and the largest input of a trial is a statistic that detects
# pulses. Its threshold trades false alarms against misses.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
peak = size.max(1)
bins = np.linspace(0, peak.max(), 25)
left.hist(peak[~has_pulse], bins, color="0.6", label="no pulse")
left.hist(peak[has_pulse], bins, color="C3", alpha=0.7, label="pulse")
left.set(xlabel="largest inferred input of a trial", ylabel="trials")
left.legend(frameon=False)
thresholds = np.r_[np.inf, np.sort(peak)[::-1]]
hits = [np.mean(peak[has_pulse] >= t) for t in thresholds]
alarms = [np.mean(peak[~has_pulse] >= t) for t in thresholds]
right.plot(alarms, hits, color="C3")
right.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls=":")
right.set(xlabel="false alarms", ylabel="hits", aspect="equal", title="detection")
plt.show()
print(f"area under the curve: {np.trapezoid(hits, alarms):.3f}")

# %% [markdown]
# ## How certain?
#
# The posterior of `u` is a distribution, and `to_datatree` draws from it. For every draw we take
# the bin of its largest input; the distribution of this bin over draws is the model's uncertainty
# on the time of the event. The figure shows draws of `u` in three trials.

# %%
tree = pyrodyn.to_datatree(fitted, valid, num_draws=200, seed=0)
draws = tree["posterior/u"].values[0, ..., 0]  # (draw, trial, time)
when = np.abs(draws).argmax(-1)
entropy = [
    -np.sum(p * np.log(p)) for p in (np.unique(t, return_counts=True)[1] / 200 for t in when.T)
]
effective = np.exp(entropy)
print(
    "effective number of bins among which the time is uncertain, median:"
    f" {np.median(effective[has_pulse]):.1f} with a pulse,"
    f" {np.median(effective[~has_pulse]):.1f} without"
)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True, layout="constrained")
shown = [*np.flatnonzero(has_pulse)[:2], np.flatnonzero(~has_pulse)[0]]
for axis, trial in zip(axes, shown, strict=True):
    axis.plot(valid["time"], draws[:30, trial].T, color="C0", lw=0.5, alpha=0.4)
    axis.plot(valid["time"], draws[:, trial].mean(0), color="black", lw=1.2)
    if pulse[trial] >= 0:
        axis.axvline(width * pulse[trial], color="C3", lw=1, ls=":")
    axis.set(xlabel="time (s)", title="pulse" if pulse[trial] >= 0 else "no pulse")
axes[0].set_ylabel("inferred input")
plt.show()

# %% [markdown]
# In trials with a pulse the draws agree on its time. In trials without one, each draw has its
# largest value somewhere else: the maximum of noise.
#
# ## A control: the same trials without pulses
#
# Is what the model infers really the pulse? A simulation allows the perfect control. With
# `pulse_probability=0` all other random numbers stay the same, so that every trial begins in the
# same state and is identical up to its pulse. The *same fitted model* reads both recordings.

# %%
control = data.simulate("pulsed_rnn", pulse_probability=0.0, **NETWORK)
control_valid = control.isel(trial=np.isin(control["trial"], valid["trial"]))
control_size = np.abs(pyrodyn.predict(fitted, control_valid, seed=0)["u"].values[..., 0])

# Times relative to the pulse that a trial has in the one recording and lacks in the other.
around = np.arange(-10, 11)
aligned = [
    np.mean([each[trial, pulse[trial] + around] for trial in np.flatnonzero(has_pulse)], axis=0)
    for each in (size, control_size)
]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for values, colour, name in zip(
    aligned, ("C3", "0.5"), ("pulse", "the same, no pulse"), strict=True
):
    left.plot(1000 * width * around, values, color=colour, label=name)
left.set(xlabel="time from the pulse (ms)", ylabel="mean size of the input", ylim=(0, None))
left.legend(frameon=False, fontsize=8)
for name, colour in (("kl_u", "C3"), ("kl_g0", "C0")):
    right.plot(
        fitted.history["epoch"], fitted.history[name], color=colour, label=f"KL of {name[3:]}"
    )
right.set(xlabel="epoch", ylabel="nats per trial", ylim=(0, None))
right.legend(frameon=False, fontsize=8)
plt.show()
print(f"largest input: {size[has_pulse].max(1).mean():.2f} with the pulse,", end=" ")
print(f"{control_size[has_pulse].max(1).mean():.2f} in the same trials without it")

# %% [markdown]
# The right panel shows what the inputs cost. The ELBO charges the posterior for its distance to the
# prior,
#
# $$ \text{KL}\big(q(u \mid x)\, \|\, p(u)\big) \quad \text{in nats per trial}, $$
#
# so that an input is inferred only where it explains more of the spikes than it costs. A real
# experiment has no such control, but it may have a recording without events (rest, no stimulus).
# Fit the model to it: in the long fits of `benchmarks/pulses.py` the KL of `u` is 4.7 nats per
# trial with pulses and 0.6 in a control recording. After our short fit it is higher, since inputs
# still repair what the generator has not learned.
#
# > **What can go wrong**
# >
# > - **Inputs that repair the dynamics.** A generator that is too small or a fit that is too short
# >   leaves errors in every bin, and the controller corrects them: inputs everywhere, also in the
# >   control. Compare `kl_u` with `kl_g0`, and fit a control where there is one.
# > - **The size of `u` has no unit.** `u` may be multiplied by a constant and the generator's
# >   weights divided by it. Compare trials of one fit, never values of two fits.
# > - **The sign of `u` is arbitrary**, too: two fits may differ by it.
# > - **An input at every trial's beginning.** The first bins have no past to predict them from;
# >   what is inferred there completes the initial state. Ignore the first few bins, or give
# >   `initial_condition_bins`.
# > - **Events locked to the trial.** If the event always comes at the same time, the generator can
# >   learn it as part of its dynamics, and no input is needed or found.
#
# ## Exercises
#
# **1.** Use `input_prior="ar1"` in place of `"student_t"`. How do the inferred inputs and their KL
# change?
#
# <details><summary>Answer</summary>
#
# Change `SIZES` and run again. A Gaussian process with one variance must allow for the pulses in
# every bin: its variance grows, the inputs between pulses become larger, and the histograms of
# trials with and without a pulse move towards each other.
#
# </details>
#
# **2.** At which pulse size does detection fail?
#
# <details><summary>Answer</summary>
#
# Repeat with `pulse_size` 0.5, 0.3 and 0.1. The area under the curve falls to 0.5 when the pulse
# changes the counts by less than their Poisson noise; more neurons, or higher rates, move this
# point. A longer fit moves it as well, since errors of the dynamics hide small pulses.
#
# </details>
#
# **3.** Fit with `inferred_input_dim=0`. What happens to the rates after a pulse?
#
# <details><summary>Answer</summary>
#
# The whole trial must follow from `g0`. The encoder can place the trajectory so that both halves
# are roughly right, at the price of large errors at the pulse; the R2 of the rates falls, most in
# the trials with a pulse, and `kl_g0` grows.
#
# </details>
#
# ## Next
#
# - The model card of [LFADS](../docs/models/lfads.md), with all options of the inputs.
# - Inputs that *were* recorded: `data.recording(..., inputs=...)`, see
#   [Recordings](../docs/data.md).
# - One model, several inferences: [Which inference?](inference_choice.ipynb)
