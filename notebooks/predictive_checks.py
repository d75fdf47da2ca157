# %% [markdown]
# # Predictive checks in ArviZ
#
# A fitted model can be wrong in ways that no training loss shows. A *posterior predictive check*
# asks one question: do data that are drawn from the fitted model look like the recording? In this
# tutorial a check finds what a model misses, we mend the model, and the check clears. Then we ask
# what such checks cannot see, and test the widths of posteriors by calibration.
#
# The notebook takes about a minute on one core. The recording is simulated, so that we know what
# the checks ought to find. It is small and the fits are short.
#
# ## A recording with overdispersed counts
#
# Twelve neurons follow a noisy oscillation $z_t$ in the plane. Their counts vary more than Poisson
# counts: each bin's rate is multiplied by a gamma variable of mean 1 and variance 0.5, as attention
# or arousal might do. Counts are then *negative binomial*, with variance $m + \phi m^2$ for a mean
# $m$, and the dispersion is $\phi = 0.5$:
#
# $$
# z_t \sim \mathcal N\big(0.95\, R\, z_{t-1},\; (1 - 0.95^2)\, I\big), \qquad
# m_t = 0.8\, e^{C z_t}, \qquad
# x_t \sim \operatorname{NegativeBinomial}(m_t, \phi),
# $$
#
# where $R$ turns by a cycle in 25 bins. The true rates and latents are kept in the recording; no
# model sees them.

# %%
import warnings

import arviz_plots as azp
import arviz_stats as azs
import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr

import pyrodyn
from pyrodyn.data import recording, split
from pyrodyn.infer import VSMC, FitWarning, Schedule
from pyrodyn.posterior import (
    calibrate,
    check,
    coverage,
    for_ppc,
    predictive_p_values,
    statistics,
    summarise_calibration,
    summarise_p_values,
)

torch.set_num_threads(1)  # matrix products this small are fastest on one thread
warnings.filterwarnings("ignore", category=FitWarning)  # the fits are short on purpose

NUM_TRIALS, NUM_BINS, NUM_NEURONS = 120, 30, 12
DECAY, PERIOD, MEAN_COUNT, DISPERSION = 0.95, 25, 0.8, 0.5

rng = np.random.default_rng(0)
angle = 2 * np.pi / PERIOD
turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
latents = rng.normal(size=(NUM_TRIALS, NUM_BINS, 2))
for t in range(1, NUM_BINS):
    noise = (1 - DECAY**2) ** 0.5 * latents[:, t]
    latents[:, t] = DECAY * latents[:, t - 1] @ turn.T + noise
preferred = rng.uniform(0, 2 * np.pi, NUM_NEURONS)  # phase at which a neuron fires most
loading = 0.9 * np.stack([np.cos(preferred), np.sin(preferred)], -1)
rates = MEAN_COUNT * np.exp(latents @ loading.T)
modulation = rng.gamma(1 / DISPERSION, DISPERSION, size=rates.shape)  # mean 1
spikes = recording(rng.poisson(rates * modulation), bin_width=0.02)
spikes["rates"] = ("trial", "time", "neuron"), rates
spikes["latents"] = ("trial", "time", "latent"), latents
train, test = split(spikes, (0.7, 0.3), seed=0)

figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].imshow(
    train["counts"][0].T, aspect="auto", cmap="Greys", extent=(0, 0.6, NUM_NEURONS - 0.5, -0.5)
)
axes[0].set(xlabel="time (s)", ylabel="neuron", title="spike counts of one trial")
axes[1].step(train["time"], train["counts"][0, :, 0], where="mid", color="0.6", label="counts")
axes[1].plot(train["time"], train["rates"][0, :, 0], color="black", label="true rate")
axes[1].set(xlabel="time (s)", ylabel="spikes per bin", title="neuron 0")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# ## A model that we would believe
#
# A linear dynamical system with Poisson counts: the right dynamics, the wrong observation model. It
# is fitted by variational sequential Monte Carlo with 8 particles.


# %%
def fit(model, learning_rate):
    return pyrodyn.fit(
        model,
        train,
        objective=VSMC(8),
        transforms=[],
        schedule=Schedule(learning_rate=learning_rate, final_learning_rate=learning_rate / 10),
        max_epochs=50,
        progress=False,
        seed=0,
    )


options = {"latent_dim": 2, "noise": "diagonal", "encoder_bins": 11}
model = pyrodyn.models.LinearDynamics.for_recording(train, **options, seed=0)
poisson = fit(model, learning_rate=2e-2)

# %% [markdown]
# ## One call: `check`
#
# `check` draws data from the posterior of the trials that the fit has not seen, compares statistics
# of each neuron with the recording, and states what is missed and what to try next.

# %%
report = check(poisson, test, num_draws=300, seed=0)
print(report)

# %% [markdown]
# Read it from the bottom. *Dispersion given the rates* is the mean of $(x - r)^2 / r$ over bins,
# computed with the rates $r$ of each draw. It is 1 for Poisson counts, whatever the rates, and the
# recording has far more in every neuron. The other statistics alone could mislead: the Poisson
# model has inflated the variation of its rates to make up for what its counts lack, so that a *Fano
# factor* (variance over mean of a neuron's counts across trials) may be too small or too large, and
# its rates vary too smoothly (autocorrelation). The advice names the mend.
#
# `report.save("report.html")` writes the same with figures into one file.
#
# ## The same checks by hand
#
# `report.tree` is the ArviZ tree behind the report, the same that `to_datatree` returns. ArviZ's
# plots of counts want observations along one dimension, and `for_ppc` gives that view. A
# *rootogram* shows how often each count occurs, with the square root of the frequency on its axis:
# points are the data, and the marks with their intervals what the model draws.

# %%
azp.plot_ppc_rootogram(for_ppc(report.tree, num_draws=100), backend="matplotlib")
plt.xlim(-0.5, 20)
plt.show()

# %% [markdown]
# The model draws too few zeros and too many ones and twos. `plot_ppc_tstat` compares a single
# number, here the mean fraction of empty bins: the point is the recording, the curve the
# distribution over draws.

# %%
azp.plot_ppc_tstat(report.tree, t_stat=statistics.zero_fraction, backend="matplotlib")
plt.show()

# %% [markdown]
# `predictive_p_values` gives, for every statistic and neuron, the fraction of draws whose value
# exceeds that of the recording: a *p-value* near 0 or 1 means that the recording is unlike the
# draws. `summarise_p_values` counts the neurons that are flagged at a false discovery rate of 5 %.

# %%
summarise_p_values(predictive_p_values(report.tree)).round(3)

# %% [markdown]
# ## The mend
#
# The same model with negative binomial counts. Its dynamics and readout begin with the weights of
# the Poisson fit, so that only the dispersion is new.

# %%
mended = pyrodyn.models.LinearDynamics.for_recording(
    train, **options, observation="negative_binomial", seed=0
)
mended.load_state_dict(poisson.model.state_dict(), strict=False)  # lacks the dispersion
negative_binomial = fit(mended, learning_rate=3e-2)
print("dispersion per neuron:", mended.observation.log_dispersion.exp().detach().numpy().round(2))

# %% [markdown]
# The estimates lie within about 0.1 of the truth, 0.5. And the check?

# %%
cleared = check(negative_binomial, test, num_draws=300, seed=0)
print(cleared)

# %% [markdown]
# No statistic is missed any more. On larger recordings some may remain: compare the columns
# `observed` and `predicted` before you act on a flag, since with enough data every model is off by
# a little.

# %%
azp.plot_ppc_rootogram(for_ppc(cleared.tree, num_draws=100), backend="matplotlib")
plt.xlim(-0.5, 20)
plt.show()

# %% [markdown]
# ## A check without a statistic: PIT
#
# The *probability integral transform* (PIT) of an observation is its rank among the predictions of
# it. If these are right, ranks are uniform. Counts have ties, which are broken at random. The
# predictions must not have used the observation itself, so we take `one_step_predictions`, in which
# a particle filter predicts each bin from the bins before it. ArviZ's `plot_ecdf_pit` draws the
# difference between the distribution of the ranks and the uniform one, and marks in orange where it
# is larger than chance allows.

# %%
for name, each in {"Poisson": poisson, "negative binomial": negative_binomial}.items():
    ahead = pyrodyn.posterior.one_step_predictions(each, test, seed=0)
    pit = xr.Dataset({name: (("chain", "draw"), ahead["pit"].values.reshape(1, -1))})
    azp.plot_ecdf_pit(xr.DataTree.from_dict({"prior_sbc": pit}), backend="matplotlib")
    plt.show()

# %% [markdown]
# ## Which model predicts better?
#
# The score of a model on new trials is their log evidence. The reports hold it, in the form that
# ArviZ's `compare` takes (`pyrodyn.posterior.elpd` computes it from any tree that has weights).
# `elpd_diff` is the difference in log evidence, summed over the test trials, and `dse` its standard
# error. Stacking, the default method of `compare`, underflows for trials of many bins; pass
# `method="BB-pseudo-BMA"`.

# %%
azs.compare(
    {"Poisson": report.evidence, "negative binomial": cleared.evidence}, method="BB-pseudo-BMA"
)

# %% [markdown]
# ## What predictive checks cannot see
#
# Predictions of counts average over the noise of the counts, which is much larger than the
# uncertainty of the rates. A posterior may be far too narrow without any of the checks above
# noticing. Where the truth is known, `coverage` shows it directly: how often do central intervals
# of the posterior contain the true rates and (after an affine map) the true latents?

# %%
for name, each in {"Poisson": report, "negative binomial": cleared}.items():
    inside = coverage(each.tree, levels=(0.9,)).sel(level=0.9)
    print(f"{name:17}  90 % intervals contain {100 * float(inside['rates']):.0f} % of true rates")

# %% [markdown]
# The mended model's intervals contain somewhat too little: its parameters are estimates from 84
# trials, and their uncertainty is not part of the posterior. Is the rest of the inference right?
# For a real recording the truth is unknown, but this can still be tested. `calibrate` draws latents
# and data from the fitted model *itself*, infers the latents back, and ranks the truth among its
# posterior draws (simulation-based calibration). The ranks are uniform if the posterior is right
# for these parameters. This tests the inference, not the model.

# %%
warnings.filterwarnings("ignore", message="draws by method='smoother'")  # what is tested here
settings = {"num_simulations": 100, "num_draws": 100, "seed": 0, "progress": False}
ranks = calibrate(negative_binomial, test, method="smoother", num_particles=300, **settings)
azp.plot_ecdf_pit(
    ranks, var_names=["log_likelihood", "log_joint", "mean_rate"], backend="matplotlib"
)
plt.show()
summarise_calibration(ranks).round(3)

# %% [markdown]
# `p_value` is the one of uniform ranks; `log_likelihood`, `log_joint` and `mean_rate` are test
# quantities of latents and data together. That of `mean_rate` is small here: 300 particles leave
# fewer than 20 effective ones for some trials, as the check above warned. For draws to rely on take
# more particles, or `method="mcmc"`. For comparison, the draws of the guide, which is the proposal
# of the particle filter and was never meant to be a posterior:

# %%
of_guide = calibrate(negative_binomial, test, method="guide", **settings)
summarise_calibration(of_guide).round(3)

# %% [markdown]
# ## What can go wrong
#
# > - **Checks on training trials** are too kind: the parameters have seen the noise. `check` states
# >   at the top which trials it used; set some aside by `pyrodyn.data.split`.
# > - **ArviZ's `plot_ppc_pit` and `plot_loo_pit` on counts** treat predictions as continuous and
# >   reject even the right model. They are right for signals:
# >   `azp.plot_ppc_pit(for_ppc(tree))`. For counts take `one_step_predictions` or, for models
# >   without a filter, `randomised_pit`.
# > - **Few draws cannot flag.** With $N$ neurons it takes more than $20 N$ draws (`can_flag`).
# > - **PSIS-LOO on draws of a guide** (`azs.loo`) is not the score of a new trial: with fixed
# >   parameters it estimates the evidence from the draws least suited to it. Use `elpd`.
# > - **A mend for the wrong cause.** Negative binomial counts can absorb rate variation that a
# >   better model of the rates should explain. If autocorrelation or population synchrony are above
# >   the predictions, look at the rates first.
#
# ## Exercises
#
# 1. Fit a model with `latent_dim=1`. Which statistics are missed now, and does the advice change?
#
# <details><summary>Answer</summary>
#
# One latent cannot follow a rotation, so that the rates miss variation that neurons share: Fano
# factor and population synchrony lie above the predictions, and the advice is more latent
# dimensions.
#
# </details>
#
# 2. Write a statistic of your own, such as the largest count of each neuron, and show it by
#    `for_ppc(report.tree, statistic=...)` and `azp.plot_ppc_interval`.
#
# <details><summary>Answer</summary>
#
# `view = for_ppc(report.tree, statistic=lambda x: x.max(("trial", "time")))`. A statistic reduces
# some of the dims `trial`, `time`, `neuron` and keeps any others, so that it works on the data and
# on all draws at once.
#
# </details>
#
# 3. Run `calibrate` on the Poisson fit. Its predictive checks fail: will its calibration fail too?
#
# <details><summary>Answer</summary>
#
# No. `calibrate` draws data from the Poisson model itself, for which the smoother is right. It
# tests the inference under the model; `check` tests the model.
#
# </details>
#
# ## Next
#
# - [Posteriors](../docs/posterior.md): all groups of a tree, all checks, and what ArviZ's functions
#   expect.
# - [Linear dynamics](../docs/models/linear_dynamics.md) is the card of the model used here.
# - [Write your own model](own_model.ipynb) goes on from mending a model to writing one.
