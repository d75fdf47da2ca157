# %% [markdown]
# # Quickstart: from spikes to a checked model
#
# We simulate a recording whose truth is known, fit LFADS to it, draw its posterior, and ask how
# far the result can be trusted. Nothing is needed but pyrodyn; the whole takes about two minutes
# on two cores.

# %%
import warnings

import arviz_plots as azp
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.special import logsumexp

import pyrodyn
from pyrodyn import analysis
from pyrodyn.data import held_out, simulate, split
from pyrodyn.infer import FitWarning
from pyrodyn.posterior import elpd, for_ppc, predictive_p_values, summarise_p_values

# %% [markdown]
# ## A recording
#
# 500 trials of 40 neurons that follow the Lorenz system: each neuron's log rate is a random
# projection of the three latent coordinates. A recording is an `xarray.Dataset`; this one also
# holds the truth, as `rates` (expected spikes per bin) and `latents`.
#
# A quarter of the neurons is held out: no encoder ever sees them, but the model must predict
# them. They are how we will know, also where no truth is at hand, that the latents carry what the
# population shares.

# %%
recording = simulate("lorenz", num_trials=500, num_bins=50, num_neurons=40, mean_rate=50, seed=0)
recording = held_out(recording, neurons=0.25, seed=0)
train, valid = split(recording, (0.8, 0.2), seed=0)
recording

# %% [markdown]
# ## A model, and a fit
#
# `for_recording` takes numbers of neurons and inputs from the recording and starts the readout at
# each neuron's mean count. `fit` uses the settings that `pyrodyn.recommended` gives for this model
# and recording, here with fewer steps. One of them is coordinated dropout, which hides random
# entries from the encoder and scores only those, so that a spike cannot explain itself. Torch's
# seed sets the first weights; `fit` seeds everything else by itself. With so few steps `fit` warns
# that it has not converged; we know that, and filter the warning.

# %%
warnings.filterwarnings("ignore", category=FitWarning)
torch.manual_seed(0)
model = pyrodyn.models.LFADS.for_recording(
    train, factor_dim=3, generator_dim=64, inferred_input_dim=0
)
fitted = pyrodyn.fit(model, train, valid, max_steps=800, progress=False)
print(f"{fitted.num_steps} steps; the weights kept are those of epoch {fitted.best_epoch}")

# %% [markdown]
# The history holds losses and KLs per epoch, in nats per trial. The validation loss is the
# negative ELBO of trials that were never trained on. Is it still falling at the end? Then more
# epochs would help.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for name in ("train_loss", "valid_loss"):
    left.plot(fitted.history["epoch"], fitted.history[name], label=name)
left.axvline(fitted.best_epoch, color="0.6", lw=1, ls=":", label="weights kept")
left.set(xlabel="epoch", ylabel="nats per trial")
left.legend(frameon=False)
right.plot(fitted.history["epoch"], fitted.history["kl_g0"], color="C2")
right.set(xlabel="epoch", ylabel="KL of g0 (nats per trial)")
plt.show()

# %% [markdown]
# ## The posterior
#
# `to_datatree` draws from the posterior of every trial. The result is an ArviZ `DataTree`: its
# groups, dims and coordinates are what ArviZ's statistics and plots expect.

# %%
tree = pyrodyn.to_datatree(fitted, valid, num_draws=100)
print(*tree.children)
tree["posterior"]

# %% [markdown]
# `predict` gives means and standard deviations alone, for any number of trials. The neurons of
# the lower row are chosen for their modulation; black is the truth, which the model never saw.

# %%
predicted = pyrodyn.predict(fitted, valid)
trial = 4
analysis.plot_rates(valid, predicted, trial=trial)
plt.show()

# %% [markdown]
# ## Scores
#
# With the truth at hand: the R2 of the rates, and of affine maps between inferred factors and
# true latents in both directions, fitted on training trials. Low from true to inferred would mean
# that the model holds dynamics that the truth does not have; low from inferred to true, that it
# missed some.

# %%
predicted_train = pyrodyn.predict(fitted, train)
rate_r2 = analysis.rate_r2(predicted["rates"], valid["rates"])
latent_r2 = analysis.latent_r2(
    predicted_train["factors"], train["latents"], predicted["factors"], valid["latents"]
)
print(f"rates:               R2 {rate_r2.pooled:.3f}")
print(f"true to inferred:    R2 {latent_r2.true_to_inferred:.3f}")
print(f"inferred to true:    R2 {latent_r2.inferred_to_true:.3f}")

# %% [markdown]
# Without the truth: co-smoothing, the bits per spike by which the inferred rates of the held-out
# neurons beat their mean rates. A simulation also knows the ceiling, the score of the true rates.
# Scores on entries that the encoder saw would flatter: a model that copies spikes would beat the
# true rates there.

# %%
null = train["counts"].mean(("trial", "time"))
co_smoothing = analysis.recording_bits_per_spike(predicted["rates"], valid, "held_out", null=null)
ceiling = analysis.recording_bits_per_spike(valid["rates"], valid, "held_out", null=null)
print(f"co-smoothing: {co_smoothing:.3f} bits per spike; the true rates score {ceiling:.3f}")

# %% [markdown]
# Decoding is a ridge regression with its penalty chosen on the training trials. Here the latents
# stand in for the behaviour of a real experiment, and spikes smoothed by a 30 ms Gaussian are the
# baseline.

# %%
width = train.attrs["bin_width"]
smoothed = [analysis.smooth(part["counts"], width, 0.03) for part in (train, valid)]
decoded = analysis.decode(
    predicted_train["rates"], train["latents"], predicted["rates"], valid["latents"]
)
baseline = analysis.decode(smoothed[0], train["latents"], smoothed[1], valid["latents"])
print(
    f"decoding the latents: R2 {decoded.r2:.3f} from rates, {baseline.r2:.3f} from smoothed spikes"
)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharex=True, layout="constrained")
for axis, coordinate, label in zip(axes, range(3), "xyz", strict=True):
    axis.plot(valid["time"], valid["latents"][trial, :, coordinate], color="black", label="true")
    axis.plot(valid["time"], decoded.predicted[trial, :, coordinate], color="C3", label="decoded")
    axis.set(xlabel="time (s)", title=label)
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Predictive checks
#
# Do data drawn from the fitted model look like the data? `for_ppc` gives ArviZ's plots of counts
# the view that they need. A rootogram compares how often each count occurs; its axis is the
# square root of the frequency.

# %%
azp.plot_ppc_rootogram(for_ppc(tree), backend="matplotlib")
plt.show()

# %% [markdown]
# Posterior predictive p-values compare statistics of each neuron: near 0 or 1, the data lie above
# or below what the model draws. `num_flagged` counts the neurons that are flagged at a false
# discovery rate of 5 %. A Fano factor that is flagged where the dispersion given the rates is not
# points at rates that miss some of the variation, not at the observation model.

# %%
enough = pyrodyn.to_datatree(fitted, valid, num_draws=1000)
summarise_p_values(predictive_p_values(enough))

# %% [markdown]
# ## The evidence of trials
#
# Two scores of new trials: the ELBO, and the importance-weighted bound on the log evidence of each
# trial from the same draws, which lies between the ELBO and the evidence.

# %%
log_weights = (tree["sample_stats/lp"] - tree["sample_stats/log_q"]).squeeze("chain")
elbo = log_weights.mean("draw")
bound = log_weights.reduce(logsumexp, "draw") - np.log(log_weights.sizes["draw"])
print(f"ELBO                      {float(elbo.mean()):9.1f} nats per trial")
print(f"importance-weighted bound {float(bound.mean()):9.1f} nats per trial")

# %% [markdown]
# `elpd` converts the evidence to what ArviZ's `compare` takes. Compare several models with
# `compare(..., method="BB-pseudo-BMA")`: the default method, stacking, computes `exp(elpd_i)`,
# which underflows to 0 for trials with a log evidence below about -745 nats. Pareto k shows in how
# many trials the importance weights are reliable; where it is above 0.7 the value of that trial is
# likely too low. Do not use ArviZ's `loo` on draws of a guide: with fixed parameters, leaving out a
# trial takes its posterior back to the prior, which those draws do not reach. `to_datatree` warns
# where weights cannot be trusted; its sentence is printed here.

# %%
with warnings.catch_warnings(record=True) as raised:
    weighted = pyrodyn.to_datatree(fitted, valid, method="importance", num_particles=2000)
print(*(warning.message for warning in raised), sep="\n")
elpd(weighted)

# %% [markdown]
# ## What next
#
# - Your own data: `pyrodyn.data.recording(counts, bin_width=0.01)`, or
#   `pyrodyn.data.read("session.nwb", bin_width=0.01)`.
# - Inputs that nobody recorded: `for_recording(..., inferred_input_dim=1)`; `pyrodyn
#   demo` shows one.
# - Long fits: `fit(..., out="runs/first")` keeps checkpoints and logs; `resume=True` goes on
#   where it stopped.
# - Keeping the model: `pyrodyn.save(model, folder)`, `pyrodyn.load(folder)`.
