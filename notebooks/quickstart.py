# %% [markdown]
# # Quickstart: from spikes to checked rates
#
# Spikes go in, LFADS is fitted, firing rates of single trials come out, and a check shows how far
# they can be trusted. Nothing is needed but pyrodyn. The recording is simulated, so that its true
# rates are known and every estimate can be compared with them.
#
# The notebook takes about a minute on one core, most of it in the fit, which is a third as long as
# a fit of a real recording would be.
#
# ## The model in four lines
#
# LFADS (latent factor analysis via dynamical systems) explains the spikes of a whole population in
# one trial by a recurrent network, the *generator*. A few *factors* $f_t$ are read from its state
# $g_t$, and each neuron's log rate is a weighted sum of the factors:
#
# $$
# g_0 \sim \mathcal N(\mu, \sigma^2), \qquad
# g_t = \operatorname{GRU}(g_{t-1}), \qquad
# f_t = W g_t, \qquad
# x_t \sim \operatorname{Poisson}\big(\exp(C f_t + d)\big).
# $$
#
# All that differs between trials is the initial state $g_0$. An encoder network reads the spikes of
# a trial and gives its approximate posterior, a Gaussian. (Sussillo et al. 2016; Pandarinath et al.
# 2018.)

# %%
import warnings

import matplotlib.pyplot as plt

import pyrodyn
from pyrodyn import analysis
from pyrodyn.data import held_out, simulate, split
from pyrodyn.infer import FitWarning
from pyrodyn.posterior import check

# %% [markdown]
# ## Spikes in
#
# 400 trials of 40 neurons, half a second each in bins of 10 ms. The neurons follow the Lorenz
# system, a chaotic system with three coordinates: each neuron's log rate is a random projection of
# these. A recording is an `xarray.Dataset`; this one also holds the truth, as `rates` (expected
# spikes per bin) and `latents`.
#
# A quarter of the neurons is *held out*: no encoder sees their spikes, but the model must predict
# them. They show, also where no truth is at hand, whether the factors carry what the population
# shares.

# %%
recording = simulate("lorenz", num_trials=400, num_bins=50, num_neurons=40, mean_rate=50, seed=0)
recording = held_out(recording, neurons=0.25, seed=0)
train, valid, test = split(recording, (0.7, 0.15, 0.15), seed=0)
recording

# %% [markdown]
# With your own data it is one line: `pyrodyn.data.recording(counts, bin_width=0.01)` for an array
# of counts (trial, time, neuron), or `pyrodyn.data.read("session.nwb", bin_width=0.01)`.
#
# ## LFADS
#
# `for_recording` takes the numbers of neurons and inputs from the recording and starts the readout
# at each neuron's mean. Three factors and a generator of 64 units suffice here;
# `inferred_input_dim=0` leaves out inferred inputs, which this recording does not need.
#
# `fit` uses the settings of `pyrodyn.recommended(model, train)`: among others coordinated dropout,
# which hides random entries from the encoder and scores only those, so that a spike cannot explain
# itself. We shorten the fit to 700 steps, a third of the recommended number, raise the learning
# rate to make up for some of it, and filter the warning that the fit could go on.

# %%
warnings.filterwarnings("ignore", category=FitWarning)
model = pyrodyn.models.LFADS.for_recording(
    train, factor_dim=3, generator_dim=64, inferred_input_dim=0, seed=0
)
fitted = pyrodyn.fit(model, train, valid, max_steps=700, learning_rate=2e-2, progress=False, seed=0)
print(f"{fitted.num_steps} steps; the weights kept are those of epoch {fitted.best_epoch}")

figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for name, label in (("train_loss", "training trials"), ("valid_loss", "validation trials")):
    axis.plot(fitted.history["epoch"], fitted.history[name], label=label)
axis.set(xlabel="epoch", ylabel="loss (nats per trial)")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# The loss is the negative ELBO, a bound on the log probability of the spikes. (Training trials are
# scored on hidden entries alone, so that the two curves need not agree.) Where the curve of the
# validation trials still falls at the end, more steps would help.
#
# ## Rates out
#
# `predict` gives posterior means and standard deviations for trials that the fit has not seen. The
# neurons of the lower row are chosen for their modulation; black is the truth, which the model
# never saw.

# %%
predicted = pyrodyn.predict(fitted, test, seed=0)
trial = 4
analysis.plot_rates(test, predicted, trial=trial)
plt.show()

# %% [markdown]
# `to_datatree(fitted, test)` returns the draws themselves, as an ArviZ `DataTree`.
#
# ## How good are the rates?
#
# With the truth at hand: R2 of the rates, 1 for exact ones and 0 for constant ones. The factors are
# compared with the true latents by regressions in both directions, fitted on training trials. A low
# R2 from true to inferred would mean that the factors hold activity that the truth does not have; a
# low R2 from inferred to true, that they miss part of it.

# %%
predicted_train = pyrodyn.predict(fitted, train, seed=0)
rate_r2 = analysis.rate_r2(predicted["rates"], test["rates"])
smoothed = analysis.smooth(test["counts"], bin_width=0.01, sd=0.03)
baseline = analysis.rate_r2(smoothed, test["rates"])
latent_r2 = analysis.latent_r2(
    predicted_train["factors"], train["latents"], predicted["factors"], test["latents"]
)
print(
    f"rates:             R2 {rate_r2.pooled:.3f}; spikes smoothed by 30 ms: {baseline.pooled:.3f}"
)
print(f"true to inferred:  R2 {latent_r2.true_to_inferred:.3f}")
print(f"inferred to true:  R2 {latent_r2.inferred_to_true:.3f}")

# %% [markdown]
# Without the truth: *co-smoothing*, the bits per spike by which the inferred rates of the held-out
# neurons beat their mean rates. A simulation also knows the ceiling, the score of the true rates.

# %%
null = train["counts"].mean(("trial", "time"))
co_smoothing = analysis.recording_bits_per_spike(predicted["rates"], test, "held_out", null=null)
ceiling = analysis.recording_bits_per_spike(test["rates"], test, "held_out", null=null)
print(f"co-smoothing: {co_smoothing:.3f} bits per spike; the true rates score {ceiling:.3f}")

# %% [markdown]
# ## One check
#
# Would data drawn from the fitted model look like the recording? `check` draws them, compares
# statistics of each neuron, and states what the model misses and what to try next.

# %%
print(check(fitted, test, num_draws=500, seed=0))

# %% [markdown]
# Compare the columns `observed` and `predicted`: sizes matter, not only flags. *Dispersion given
# the rates* close to 1 means that Poisson counts are the right noise model. A *Fano factor*
# (variance over mean of counts) somewhat above the predictions means that the rates still miss a
# little of what varies between trials: the fit is short. The intervals of the rates are too narrow,
# which is typical of a Gaussian encoder; `pyrodyn.to_datatree(..., method="mcmc")` mends it at a
# price in time.
#
# ## What can go wrong
#
# > - **A score on what the encoder saw.** A model that copies spikes beats the true rates there.
# >   Score held-out neurons or, with the truth, rates.
# > - **A fit that stops too early** has smooth, too flat rates: look at the loss, and at the
# >   warning that we filtered above.
# > - **Weights that cannot be trusted.** `method="importance"` corrects the guide's draws by
# >   weights and warns where Pareto k-hat is above 0.7. For LFADS, whose latent has dozens of
# >   dimensions, that is nearly every trial: do not use those weights, nor ArviZ's `loo` on draws
# >   of a guide.
# > - **Inputs in disguise.** If something unpredictable happens in the trial, an initial state
# >   cannot explain it. Leave `inferred_input_dim` at its default, and see `pyrodyn demo`.
#
# ## Exercises
#
# 1. Halve the number of training trials. Which score suffers most?
#
# <details><summary>Answer</summary>
#
# Take `train.isel(trial=slice(0, 140))`. Co-smoothing and the R2 of the rates fall, and the
# validation loss turns upward earlier: there are fewer trials from which to learn the dynamics. The
# smoothed spikes, which learn nothing, stay where they are.
#
# </details>
#
# 2. Give the model eight factors in place of three. Why does R2 from true to inferred fall,
#    although the rates are as good?
#
# <details><summary>Answer</summary>
#
# Three coordinates cannot predict eight factors if some of these carry noise or nothing at all. The
# R2 from inferred to true stays high: the truth is contained in the factors.
#
# </details>
#
# 3. Make the counts overdispersed, `simulate(..., observation="negative_binomial")`. What does
#    `check` advise?
#
# <details><summary>Answer</summary>
#
# Dispersion given the rates lies far above 1, and the advice is
# `observation="negative_binomial"`. [Predictive checks in ArviZ](predictive_checks.ipynb) goes
# through this case.
#
# </details>
#
# ## Next
#
# - [LFADS](../docs/models/lfads.md): all options, and when to choose another model.
# - [Your data](../docs/your_data.md): spike times, NWB, calcium, EEG.
# - Long fits: `fit(..., out="runs/first")` keeps checkpoints and logs, and `resume=True` goes on
#   where it stopped. `pyrodyn.save(fitted, folder)` and `pyrodyn.load(folder)` keep the result.
# - The next notebook: [Predictive checks in ArviZ](predictive_checks.ipynb).
