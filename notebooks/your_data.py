# %% [markdown]
# # Your own data
#
# One experiment, and every form in which such data arrive: lists of spike times, an NWB file,
# trials of unequal length, samples that are missing, calcium imaging, a continuous recording
# without trials. Each section makes a *recording*, the `xarray.Dataset` that everything in pyrodyn
# takes; the last section shows what pyrodyn answers when something is wrong. The notebook takes
# a minute and a half on one core, and needs `pip install "pyrodyn[nwb]"` for the NWB file.
#
# The experiment is simulated, so that you can run this page anywhere and know what the answer
# should be: 120 trials of one second, 30 neurons that follow the Lorenz system. We keep the truth
# aside and start, as you do, from spike times on the clock of the session.

# %%
import datetime
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pynwb

import pyrodyn
from pyrodyn import analysis, data
from pyrodyn.infer import FitWarning

# The fits of this page are short on purpose, and `fit` would warn that they have not converged.
warnings.filterwarnings("ignore", category=FitWarning)

rng = np.random.default_rng(0)
truth = data.simulate("lorenz", 120, 50, 30, bin_width=0.02, mean_rate=30, seed=0)
NUM_TRIALS, NUM_BINS, NUM_NEURONS = truth["counts"].shape

# A trial begins every two seconds, after a cue whose time varies; spikes are placed at random
# within their bins.
cues = 2.0 * np.arange(NUM_TRIALS) + 0.5 + 0.2 * rng.random(NUM_TRIALS)
targets = np.where(truth["latents"].values[:, 0, 0] > 0, "right", "left")
spike_times = {}
for i in range(NUM_NEURONS):
    trial, time_bin = np.nonzero(truth["counts"].values[..., i])
    number = truth["counts"].values[trial, time_bin, i]
    trial, time_bin = np.repeat(trial, number), np.repeat(time_bin, number)
    within = 0.02 * (time_bin + rng.random(len(time_bin)))
    spike_times[f"unit {i}"] = np.sort(cues[trial] + within)
print({name: times[:4].round(3).tolist() for name, times in list(spike_times.items())[:2]})

# %% [markdown]
# ## Spike times to a recording
#
# `bin_spikes` takes spike times in seconds, one array per neuron, and the times of the events that
# trials are aligned to. `window` gives the first and last edge of the bins relative to the event. A
# spike on the left edge of a bin belongs to that bin.

# %%
recording = data.bin_spikes(
    spike_times, bin_width=0.02, window=(0.0, 1.0), events=cues, condition=targets
)
assert (recording["counts"].values == truth["counts"].values).all()
recording

# %% [markdown]
# Look at the printed sizes before anything else: `trial`, `time` and `neuron` must be the numbers
# that you expect, and `time` the seconds relative to your event.
#
# **Which bin width?** Bins should be shorter than the fastest change that you want to see and no
# shorter: the cost of a fit is proportional to their number. 10 to 20 ms are usual for motor
# cortex, 50 to 100 ms for slow behaviour.
#
# The rest is the same for every kind of data: split, make a model, fit, predict. 250 steps take ten
# seconds; leave `max_steps` out for a real fit.

# %%
SIZES = {"factor_dim": 4, "generator_dim": 48, "inferred_input_dim": 0, "seed": 0}
SHORT = {"max_steps": 250, "learning_rate": 1e-2, "seed": 0, "progress": False}


def rates_of(recording, **options):
    """Fit LFADS to 80 % of the trials; the rates of the other trials, and these trials."""
    train, valid = data.split(recording, (0.8, 0.2), seed=0)
    model = pyrodyn.models.LFADS.for_recording(train, **SIZES, **options)
    fitted = pyrodyn.fit(model, train, valid, **SHORT)
    return pyrodyn.predict(fitted, valid, seed=0), valid, fitted


predicted, valid, fitted = rates_of(recording)
true_rates = truth["rates"].isel(trial=valid["trial"].values)
print(f"R2 of the rates: {analysis.rate_r2(predicted['rates'], true_rates).pooled:.3f}")
analysis.plot_rates(valid, predicted, trial=3, num_neurons=3)
plt.show()

# %% [markdown]
# `rates` are expected counts **per bin**; `rates / bin_width` are spikes per second.
#
# ## An NWB file
#
# We write the same session as a small NWB file: a table of trials, spike times, and the position of
# a hand at 100 Hz.

# %%
file = pynwb.NWBFile("example", "session-1", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
file.add_trial_column("cue_time", "time of the cue")
file.add_trial_column("target", "where to")
for cue, target in zip(cues, targets, strict=True):
    file.add_trial(cue - 0.3, cue + 1.1, cue_time=cue, target=target)
for times in spike_times.values():
    file.add_unit(spike_times=times)
clock = np.arange(0, cues[-1] + 2, 0.01)
hand = np.stack([np.sin(clock), np.cos(1.3 * clock)], axis=1)
file.add_acquisition(
    pynwb.TimeSeries(name="hand", data=hand, rate=100.0, unit="mm", starting_time=0.0)
)
with pynwb.NWBHDF5IO("session.nwb", "w") as io:
    io.write(file)

# %% [markdown]
# Reading it takes one call. `align_to` and `condition` are columns of the trials table, `behavior`
# names time series, which are averaged in the same bins; `unit_filter` and `trial_filter` select
# rows of the tables.

# %%
from_file = data.read_nwb(
    "session.nwb",
    bin_width=0.02,
    align_to="cue_time",
    window=(0.0, 1.0),
    condition="target",
    behavior=["hand"],
)
print("same counts:", bool((from_file["counts"].values == recording["counts"].values).all()))
print("behaviour:", from_file["behavior"].sizes, from_file["quantity"].values)

# %% [markdown]
# ## Trials of unequal length
#
# Trials that end at a reaction have different lengths. A list with one array per trial is padded,
# and the Boolean variable `valid` marks the bins that were measured. Padding enters neither a
# likelihood nor a score; never pad with zeros yourself, since a zero is a measurement.

# %%
lengths = rng.integers(30, NUM_BINS + 1, NUM_TRIALS)
ragged = data.recording(
    [trial[:n] for trial, n in zip(recording["counts"].values, lengths, strict=True)],
    bin_width=0.02,
)
print("measured bins of the first trials:", ragged["valid"][:5].sum("time").values)

# %% [markdown]
# ## Missing samples
#
# A unit is lost in some trials, an amplifier saturates: mark these entries in `valid` with the
# shape of the data. The encoder does not see them, the likelihood does not score them, and the
# model infers the rates there from the other neurons. Here unit 5 is lost in a third of the trials,
# and in some others an artefact covers 0.1 s in the middle of the trial (grey in the figure).

# %%
measured = np.ones(recording["counts"].shape, bool)
measured[::3, :, 5] = False
measured[1::10, 25:30] = False
broken = recording["counts"].values.copy()
broken[~measured] = 0  # whatever stands there is ignored
gaps = data.recording(broken, bin_width=0.02, valid=measured, condition=targets)
_, _, of_gaps = rates_of(gaps)
inferred = pyrodyn.predict(of_gaps, gaps, seed=0)
lost = ~measured[:, 0, 5]
for name, trials in (("lost", lost), ("recorded", ~lost)):
    r2 = analysis.rate_r2(inferred["rates"][trials, :, [5]], truth["rates"][trials, :, [5]]).pooled
    print(f"R2 of the rate of unit 5 in the {trials.sum()} trials in which it was {name}: {r2:.3f}")
analysis.plot_rates(gaps, inferred, trial=11, num_neurons=3)
plt.show()

# %% [markdown]
# The rate of a lost unit is predicted from the other units alone, nearly as well as with its own
# spikes. What the encoder receives in place of a hidden entry is zero: drop a unit that is lost
# in most trials, and a trial that is mostly artefact, rather than mask them.

# %% [markdown]
# ## Calcium imaging
#
# Deconvolved calcium events are neither counts nor Gaussian: most bins are exactly zero, the others
# positive amplitudes. The zero-inflated gamma distribution describes them,
#
# $$ p(x) = (1 - q_t)\, \delta_0(x) + q_t\, \text{Gamma}(x \mid k, k / \mu_t), $$
#
# with a probability $q_t$ of an event and a mean amplitude $\mu_t$ that both follow the latent
# state. (For traces that are always positive there is `"gamma"`, and for dF/F with its noise around
# zero the default, `"gaussian"`.) We simulate such events from the true rates of the experiment and
# compare the two observation models, also by data that they predict.

# %%
chance = -np.expm1(-truth["rates"].values)
events = rng.random(chance.shape) < chance
amplitudes = np.where(events, rng.gamma(2.0, 0.5, chance.shape), 0.0)
calcium = data.recording(signal=amplitudes, bin_width=0.02)
print(f"{np.mean(amplitudes == 0):.0%} of the entries are zero")
for observation in ("gaussian", "zero_inflated_gamma"):
    predicted, valid, of_calcium = rates_of(calcium, observation=observation)
    expected = chance[valid["trial"].values]  # the mean amplitude of an event is 1
    tree = pyrodyn.to_datatree(of_calcium, valid, num_draws=20, seed=0)
    drawn = tree["posterior_predictive/x"].values
    r2 = analysis.rate_r2(predicted["rates"], expected).pooled
    print(
        f"{observation:20} R2 of the means {r2:.2f},"
        f" zeros among predicted data {np.mean(drawn == 0):.0%}, negative {np.mean(drawn < 0):.0%}"
    )

# %% [markdown]
# After this short fit the means of the Gaussian model are the better ones: it has half as many
# readout weights to learn. But it predicts data that cannot occur, negative amplitudes and never a
# zero, so that its uncertainty, its predictive checks and its evidence refer to other data than
# these. Take it for a first look at the means, and the zero-inflated gamma model, with more trials
# and steps, where draws and probabilities matter.

# %% [markdown]
# ## A continuous recording
#
# Without trials there is one long array. `segment` cuts it into windows, `split` keeps neighbouring
# windows together, so that training and test data share no samples, and `merge` puts what was
# inferred back on the time axis of the session, cross-fading where windows overlap.

# %%
long = data.simulate(
    "rossler", 1, 4000, 12, observation="gaussian", bin_width=0.01, noise_sd=1.0, seed=0
)
session = data.recording(signal=long["signal"], bin_width=0.01)
segments = data.segment(session, seconds=1.0, overlap=0.2)
print("segments:", dict(segments.sizes))
train, valid = data.split(segments, (0.8, 0.2), seed=0)
linear = pyrodyn.models.LinearDynamics.for_recording(train, latent_dim=4, seed=0)
linear = pyrodyn.fit(linear, train, valid, max_steps=200, seed=0, progress=False)
merged = data.merge(pyrodyn.predict(linear, segments, seed=0), segments)
print("merged:", dict(merged["rates"].sizes))

figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
shown = slice(800, 1200)
axis.plot(long["time"][shown], long["signal"][0, shown, 0], color="0.7", lw=0.8, label="observed")
axis.plot(long["time"][shown], long["rates"][0, shown, 0], color="black", label="true mean")
axis.plot(
    merged["time"][shown],
    merged["rates"][0, shown, 0],
    color="C3",
    lw=1.2,
    label="inferred, merged",
)
axis.set(xlabel="time (s)", ylabel="channel 0")
axis.legend(frameon=False, ncols=3, loc="upper right")
plt.show()

# %% [markdown]
# ## When it goes wrong
#
# Data are checked once, when the recording is made. What is wrong is refused in one sentence that
# names the variable, the fault and the first place; what is valid but improbable gives a warning.
# The following cell makes the mistakes that are most frequent and prints what you would read.


# %%
def attempt(title, call, *args, **options):
    """Print the error or the warnings of a call."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        try:
            call(*args, **options)
        except (ValueError, TypeError) as error:
            print(f"{title}\n    ERROR: {error}\n")
    for warning in raised:
        print(f"{title}\n    warning: {warning.message}\n")


counts = recording["counts"].values
with_nan = counts.astype(float)
with_nan[2, 5, 1] = np.nan
attempt("Rates in place of counts", data.recording, counts / 0.02 / 3, bin_width=0.02)
attempt("NaN without a word", data.recording, with_nan, bin_width=0.02)
attempt("Bin width in milliseconds", data.recording, counts, bin_width=20)
attempt(
    "Time and neurons exchanged", data.recording, counts, bin_width=0.02, condition=targets[:50]
)
attempt("A silent neuron", data.recording, counts * (np.arange(30) != 7), bin_width=0.02)
in_ms = {name: 1000 * times for name, times in spike_times.items()}
options = {"bin_width": 0.02, "window": (0.0, 1.0), "events": cues}
attempt("Spike times in milliseconds", data.bin_spikes, in_ms, **options)
attempt(
    "Negative values for a gamma model",
    pyrodyn.models.LFADS.for_recording,
    data.recording(signal=amplitudes - 0.1, bin_width=0.02),
    observation="gamma",
)
day = data.recording(signal=np.tile(session["signal"], (1, 3, 1)), bin_width=0.01)
attempt("One long trial", pyrodyn.models.LinearDynamics.for_recording, day, latent_dim=2, seed=0)
other = data.simulate("lorenz", 5, 50, 29, bin_width=0.02, seed=0)
attempt("A model of other neurons", pyrodyn.predict, fitted, other)

# %% [markdown]
# | what you read | what to do |
# |---|---|
# | counts is fractional | give counts, or `signal=` for anything real-valued |
# | counts is NaN in ... entries | if intended, `valid=~np.isnan(x)`; else find its source |
# | bins are 20 s wide | all times are in seconds: `bin_width=0.02` |
# | lengths must agree | labels, behaviour and inputs belong to the same trials and bins |
# | neuron(s) never fire | such a neuron carries no information: `recording.isel(neuron=...)` |
# | none of the spike times lies in a window | one clock and one unit for spikes and events |
# | observations are real numbers > 0 | choose another `observation=` |
# | the recording is one trial of ... bins | `data.segment(recording, seconds=...)` |
# | this model was made for 30 | predict trials of the neurons of the fit |
#
# > **What can go wrong, without any message**
# >
# > - **An event in the wrong clock.** Rates around the event are then flat. Plot the average over
# >   trials before you fit: a response must be locked to the event.
# > - **A window that ends after the next trial begins.** Its last bins belong to another trial.
# > - **Multi-unit duplicates.** The same spikes in two units make co-smoothing trivially good.
# > - **Padding with zeros.** A model explains the silence. Give a list of arrays, or `valid`.
# > - **Filtering before splitting.** A filter that is wider than the gap between training and test
# >   data carries information from one into the other.
#
# ## Exercises
#
# **1.** Align the NWB file to `start_time` in place of `cue_time`, without `window`. What does the
# average over trials look like, and why?
#
# <details><summary>Answer</summary>
#
# `data.read_nwb("session.nwb", bin_width=0.02)` has trials from `start_time` to `stop_time`, 1.4 s
# or 70 bins. No spikes lie in the first 0.3 s, which is 15 bins: simulated spikes begin at the cue.
# In a real file the step at the cue would show that the alignment is right.
#
# </details>
#
# **2.** In the section on missing samples, how good is the model for unit 5 in the trials in which
# it was lost, compared with a unit that is hidden in *all* trials?
#
# <details><summary>Answer</summary>
#
# The readout of unit 5 is learned from the other two thirds of the trials, so that its rate in a
# lost trial is inferred as well as the latents are. For a unit without any measurement
# nothing determines its readout, and `recording` warns; leave it out.
#
# </details>
#
# **3.** The calcium traces have a slow decay. What happens if raw dF/F is modelled in place of
# deconvolved events?
#
# <details><summary>Answer</summary>
#
# With the Gaussian model the latents must follow the fluorescence, including its exponential decay:
# the inferred dynamics then contain the indicator's time constant. Events from a deconvolution,
# with the zero-inflated gamma model, leave the indicator out; the price is that errors of the
# deconvolution are taken as data.
#
# </details>
#
# ## Next
#
# - Short recipes for tables, pynapple, neo, spikeinterface and LFADS files:
#   [From your data to rates](../docs/your_data.md). The schema: [Recordings](../docs/data.md).
# - Real spikes and EEG with baselines: [Real recordings](real_recordings.ipynb).
# - The model card of [LFADS](../docs/models/lfads.md).
