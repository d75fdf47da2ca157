# %% [markdown]
# # Write your own guide
#
# A *guide* is the approximate posterior $q(z \mid x)$ of variational inference: a Pyro program that
# draws the latent variables of a model from what was observed. Every model of pyrodyn brings one.
# This tutorial replaces it, from Pyro's `AutoNormal` to a network of your own, a normalising flow
# and a proposal for particle filters, and measures on held-out trials what each is worth. You need
# to know what a latent variable and a KL divergence are; no knowledge of Pyro is assumed.
#
# The notebook takes about a minute on one core. All data are simulated and small and all
# fits short: the ranking of guides that comes out is one of this model and this amount of training.
#
# ## The yardstick
#
# For one trial $x$ with latent variables $z$, every guide gives a lower bound on the log evidence
# (the log probability of the data under the model), called the ELBO:
#
# $$
# \mathrm{ELBO}(q) = \mathbb E_{q(z \mid x)} \big[\log p(x, z) - \log q(z \mid x)\big]
#                  = \log p(x) - \mathrm{KL}\big(q(z \mid x) \,\|\, p(z \mid x)\big).
# $$
#
# The evidence belongs to the model and the gap to the guide. If the model is kept fixed, the guide
# with the higher ELBO is the one that is closer to the true posterior.

# %%
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyrodyn
from pyrodyn.data import simulate, split
from pyrodyn.infer import (
    ELBO,
    VSMC,
    FitWarning,
    FlowStart,
    GuideError,
    RefinedGuide,
    Schedule,
    check_guide,
    importance_sample,
    particle_filter,
)
from pyrodyn.models import Bootstrap, Proposal

torch.set_num_threads(1)  # matrix products this small are fastest on one thread
warnings.filterwarnings("ignore", category=FitWarning)  # the fits are short on purpose

# %% [markdown]
# ## One recording, one model
#
# 160 trials of 15 Poisson neurons that follow the chaotic Lorenz system for 25 bins of 10 ms. The
# model is an autoencoder with an ordinary differential equation,
#
# $$
# z_0 \sim \mathcal N(\mu, \operatorname{diag}(\sigma^2)), \qquad \dot z = f(z), \qquad
# x_t \sim \operatorname{Poisson}\big(\exp(B z_t + b)\big).
# $$
#
# Once the initial state $z_0$ is known, the rest of the trial follows from it. A guide of this
# model therefore has one site to draw, `z0`, a vector of three numbers per trial. Printing a model
# lists its sites.

# %%
recording = simulate("lorenz", num_trials=160, num_bins=25, num_neurons=15, mean_rate=30, seed=0)
train, test = split(recording, (0.75, 0.25), seed=0)
model = pyrodyn.models.NodeSAE.for_recording(
    train, latent_dim=3, encoder_dim=16, field_width=32, seed=0
)
own = pyrodyn.fit(
    model,
    train,
    transforms=[],  # no coordinated dropout: a guide then sees the same data here as below
    schedule=Schedule(learning_rate=1e-2, final_learning_rate=1e-3),
    max_epochs=80,
    progress=False,
)
model

# %% [markdown]
# From here on the model is frozen, so that every guide approximates the same posterior:

# %%
model.requires_grad_(False)
table, samples = {}, {}


def score(name, guide):
    """ELBO, evidence and the quality of importance weights on the test trials."""
    torch.manual_seed(0)
    found = importance_sample(model, guide, model.trials_of(test).batch(), num_particles=1000)
    table[name] = {
        "ELBO": float(found.log_weights.mean()),
        "log evidence": float(found.log_evidence.mean()),
        "k-hat > 0.7, % of trials": 100 * float((found.smoothed.pareto_k > 0.7).double().mean()),
        "effective draws of 1000": float(found.effective_sample_size.mean()),
    }
    samples[name] = found


score("the model's own", model.guide)
pd.DataFrame(table).T.round(1)

# %% [markdown]
# The three further columns come from *importance sampling*: each of 1000 draws gets the weight
# $p(x, z) / q(z \mid x)$, and the mean weight estimates the evidence. If the guide were exact, all
# weights would be equal and all 1000 draws effective. *k-hat* describes how heavy the tail of the
# weights is; above 0.7 the estimate of that trial is not reliable.
#
# The model's own guide is a Gaussian with independent entries, given by a recurrent network that
# reads the trial. It misses the evidence by about two nats per trial. Can we do better?
#
# ## Rung 1: `AutoNormal`
#
# Pyro's automatic guides need no code. `AutoNormal` has a mean and a standard deviation for each
# trial and each latent entry, found by gradient steps. It is not *amortised*: there is no network
# that reads a trial, so that it knows nothing of trials to which it was not fitted. To score it on
# the test trials we must fit it to the test trials. That is fair, since the model stays frozen, but
# slow for whoever has many recordings.

# %%
auto = pyrodyn.fit(
    model,
    test,
    guide=AutoNormal(model),
    transforms=[],
    objective=ELBO(),
    schedule=Schedule(learning_rate=5e-2, final_learning_rate=2e-3),
    batch_size=test.sizes["trial"],
    max_steps=400,
    progress=False,
)
score("AutoNormal", auto.guide)

try:
    pyrodyn.predict(auto, train, seed=0)
except GuideError as error:
    print(error)

# %% [markdown]
# ## Rung 2: a network of your own
#
# A guide is called with a batch and draws the model's latent sites, inside a *plate* of the name
# `trials` at dim -1: Pyro's word for "these are independent". It reads `batch.seen`, the
# observations that an encoder may see. This one runs a recurrent network backwards over the trial,
# so that its last step is the first bin, and turns its last state into mean and standard deviation.


# %%
class Reader(nn.Module):
    """A recurrent network that reads a trial from its end to its beginning."""

    def __init__(self, num_neurons, num_outputs, width=24):
        super().__init__()
        self.network = nn.GRU(num_neurons, width, batch_first=True)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, batch):
        _, last = self.network(batch.seen.flip(1))
        return self.head(last[-1])


class MeanField(nn.Module):
    """q(z0 | x) = N(m(x), diag(s(x)^2))."""

    def __init__(self, num_neurons, dim):
        super().__init__()
        self.reader = Reader(num_neurons, 2 * dim)

    def forward(self, batch):
        mean, log_scale = self.reader(batch).chunk(2, -1)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z0", dist.Normal(mean, log_scale.exp()).to_event(1))


def train_guide(guide, learning_rate=1e-2):
    """Fit a guide to the training trials of the frozen model."""
    fitted = pyrodyn.fit(
        model,
        train,
        guide=guide,
        transforms=[],
        objective=ELBO(),
        schedule=Schedule(learning_rate=learning_rate, final_learning_rate=learning_rate / 20),
        max_epochs=100,
        progress=False,
    )
    return fitted.guide


num_neurons, dim = train.sizes["neuron"], 3
torch.manual_seed(0)
mean_field = MeanField(num_neurons, dim)
print(check_guide(model, mean_field, model.trials_of(train).batch()))
score("MeanField", train_guide(mean_field))

# %% [markdown]
# `.to_event(1)` declares the three entries of `z0` to be one vector; what remains, the trials, is
# the plate. `fit` trains the guide with the objective that you pass, keeps it in `fitted.guide`,
# and reads it out in `predict` and `to_datatree`. It calls `check_guide` first.
#
# ## Four mistakes, and what `check_guide` answers
#
# Pyro runs many wrong guides without an error, and the posterior is then silently wrong.
# `check_guide` runs guide and model once and describes what does not fit.
#
# **A misspelt site.** The guide draws `z_0`; the model asks for `z0`, and would draw it from its
# prior.

# %%
batch = model.trials_of(train).batch()


class Misspelt(MeanField):
    def forward(self, batch):
        mean, log_scale = self.reader(batch).chunk(2, -1)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z_0", dist.Normal(mean, log_scale.exp()).to_event(1))


print(check_guide(model, Misspelt(num_neurons, dim), batch))

# %% [markdown]
# *The mend:* write `"z0"`.
#
# **A missing `to_event`.** Without it Pyro takes the three entries for three independent
# variables, and their dim for the plate of trials.


# %%
class WithoutEvent(MeanField):
    def forward(self, batch):
        mean, log_scale = self.reader(batch).chunk(2, -1)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z0", dist.Normal(mean, log_scale.exp()))


print(check_guide(model, WithoutEvent(num_neurons, dim), batch))

# %% [markdown]
# *The mend:* `dist.Normal(mean, log_scale.exp()).to_event(1)`.
#
# **Layers in a plain list.** `nn.Module` does not find the parameters in a Python list, so that no
# optimiser trains them. The loss even falls, since the head is trained.


# %%
class PlainList(MeanField):
    def __init__(self, num_neurons, dim):
        super().__init__(num_neurons, dim)
        self.layers = [nn.Linear(dim, dim)]

    def forward(self, batch):
        mean, log_scale = self.reader(batch).chunk(2, -1)
        for layer in self.layers:
            mean = layer(mean.tanh())
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z0", dist.Normal(mean, log_scale.exp()).to_event(1))


print(check_guide(model, PlainList(num_neurons, dim), batch))

# %% [markdown]
# *The mend:* `nn.ModuleList([nn.Linear(dim, dim)])`.
#
# **Reading `batch.x`.** It holds everything that was recorded, held-out neurons and forecast bins
# included, and the score of those would then be cheating.


# %%
class Peeking(MeanField):
    def forward(self, batch):
        mean, log_scale = self.reader(batch.replace(seen=batch.x)).chunk(2, -1)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z0", dist.Normal(mean, log_scale.exp()).to_event(1))


print(check_guide(model, Peeking(num_neurons, dim), batch))

# %% [markdown]
# *The mend:* read `batch.seen`.
#
# ## Rung 3: correlated entries
#
# What spikes leave open of one latent depends on the others: the posterior has correlations, which
# independent entries cannot follow. The head now also outputs a lower triangular matrix $L$, and
# $q(z_0 \mid x) = \mathcal N(m, L L^\top)$.


# %%
class FullCovariance(nn.Module):
    """q(z0 | x) = N(m(x), L(x) L(x)')."""

    def __init__(self, num_neurons, dim):
        super().__init__()
        self.dim = dim
        self.reader = Reader(num_neurons, dim + dim**2)

    def forward(self, batch):
        mean, entries = self.reader(batch).split([self.dim, self.dim**2], -1)
        entries = entries.unflatten(-1, (self.dim, self.dim))
        scale = entries.diagonal(dim1=-2, dim2=-1).exp()  # positive
        factor = entries.tril(-1) + torch.diag_embed(scale)
        with pyro.plate("trials", batch.num_trials, dim=-1):
            pyro.sample("z0", dist.MultivariateNormal(mean, scale_tril=factor))


torch.manual_seed(0)
full = train_guide(FullCovariance(num_neurons, dim))
score("FullCovariance", full)

# %% [markdown]
# ## Rung 4: a normalising flow
#
# A *flow* bends a Gaussian by an invertible network, so that its density remains known and it can
# follow curved posteriors. `FlowStart` puts a neural spline flow (of the package zuko) around the
# model's own guide: $z_0 = m(x) + d(x) \, f\big(\varepsilon; m(x), d(x)\big)$ with
# $\varepsilon \sim \mathcal N(0, I)$. It starts as the identity, that is as the model's own guide.

# %%
torch.manual_seed(0)
flow = train_guide(FlowStart(model, num_transforms=2, hidden_dim=32), learning_rate=3e-3)
score("FlowStart", flow)

# %% [markdown]
# ## The comparison
#
# For reference we add `RefinedGuide`, which improves the model's own guide by some hundred gradient
# steps on each test trial: what is possible without amortisation.

# %%
score("RefinedGuide", RefinedGuide(model))
pd.DataFrame(table).T.round(1)

# %% [markdown]
# Read the columns in this order:
#
# 1. **Log evidence.** All guides estimate the same number. One that lies clearly below the others
#    misses part of the posterior, or has unreliable weights (k-hat).
# 2. **ELBO.** The difference to the evidence is the KL divergence from guide to posterior, the
#    error that draws of the guide make.
# 3. **Effective draws and k-hat.** Whether importance weights can repair that error:
#    `to_datatree(..., method="importance")`.
#
# `MeanField` and `AutoNormal` are the same family of distributions. The 0.6 nats between them are
# the *amortisation gap*: one network for all trials is not as good as an optimum for each. The
# rest, up to the evidence, is the *family gap*, which correlations nearly close: the posterior of
# this model is close to a Gaussian with correlated entries, and the flow has little to add.
# (`RefinedGuide` has a few trials of high k-hat although nearly all draws are effective. Its
# weights are nearly equal, and k-hat, which describes their largest differences, is then of no
# concern.)
#
# The following figure shows why: draws of two entries of $z_0$ for the test trial in which they are
# most strongly correlated. Grey points are draws of the refined guide, resampled by their weights.

# %%
torch.manual_seed(0)
reference = samples["RefinedGuide"]
rows = reference.smoothed.resampled(400)  # (draw, trial)
z0 = reference.sites["z0"]
posterior = z0.gather(0, rows[..., None].expand(-1, -1, dim)).double()
centred = posterior - posterior.mean(0)
covariance = torch.einsum("dti,dtj->tij", centred, centred) / len(centred)
sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
correlation = covariance / sd[:, :, None] / sd[:, None, :]
trial, i, j = max(
    ((t, i, j) for t in range(len(sd)) for i in range(dim) for j in range(i)),
    key=lambda which: abs(correlation[which]),
)
guides = {"the model's own": model.guide, "FullCovariance": full, "FlowStart": flow}
figure, axes = plt.subplots(
    1, len(guides), figsize=(9, 3), sharex=True, sharey=True, layout="constrained"
)
for axis, (name, guide) in zip(axes, guides.items(), strict=True):
    tree = pyrodyn.to_datatree(model, test, guide=guide, num_draws=400, method="guide", seed=0)
    drawn = tree["posterior/z0"].values[0, :, trial]
    axis.scatter(*posterior[:, trial, [i, j]].T, s=6, color="0.6", lw=0, label="posterior")
    axis.scatter(drawn[:, i], drawn[:, j], s=6, color="C0", lw=0, alpha=0.6, label="guide")
    axis.set(title=name, xlabel=f"$z_0$, entry {i + 1}")
axes[0].set_ylabel(f"$z_0$, entry {j + 1}")
axes[0].legend(frameon=False, markerscale=2)
plt.show()

# %% [markdown]
# ## The same guide under Pyro's SVI
#
# Nothing of this needs `pyrodyn.fit`. `pyro.module` registers the parameters of your guide with
# Pyro, whose `SVI` then trains them. `model.model` is the generative program; its frozen parameters
# stay as they are.

# %%
torch.manual_seed(0)
by_svi = MeanField(num_neurons, dim)


def guide(batch):
    pyro.module("by_svi", by_svi)
    by_svi(batch)


pyro.clear_param_store()
pyro.set_rng_seed(0)
svi = SVI(model.model, guide, pyro.optim.Adam({"lr": 5e-3}), Trace_ELBO())
losses = [svi.step(batch) / batch.num_trials for _ in range(200)]
score("MeanField by Pyro's SVI", by_svi)
pd.DataFrame(table).T.loc[["MeanField", "MeanField by Pyro's SVI"]].round(1)

# %% [markdown]
# The two differ by their numbers of steps and learning rates alone: the bound is the same.
#
# ## Rung 5: a proposal for particle filters
#
# A model with noise at every step has a whole trajectory as its latent site. Instead of a guide it
# is often easier to write a *proposal*: the distribution $q(z_t \mid z_{t-1}, x)$ of the next
# state, given the previous one and the data. The guide of the trajectory, the particle filter and
# the smoother all follow from it. The simplest such model is a linear dynamical system with Poisson
# neurons,
#
# $$
# z_t \sim \mathcal N(A z_{t-1}, S), \qquad
# x_t \sim \operatorname{Poisson}\big(\exp(C z_t + d)\big).
# $$
#
# A proposal pays where one bin says much about the state. Our 15 neurons fire about 4.5 spikes per
# bin together, and there the prior step is hard to beat. We therefore let the same system be
# observed by 60 neurons at twice the rate, 36 spikes per bin.

# %%
many = simulate("lorenz", num_trials=100, num_bins=25, num_neurons=60, mean_rate=60, seed=0)
many_train, many_test = split(many, (0.75, 0.25), seed=0)
linear = pyrodyn.models.LinearDynamics.for_recording(many_train, latent_dim=3, seed=0)
pyrodyn.fit(linear, many_train, max_epochs=40, progress=False)
linear.requires_grad_(False)
linear

# %% [markdown]
# Our proposal moves the mean of the prior step, $m_t = A z_{t-1}$, towards what a small network
# reads from the spikes around bin $t$, and narrows its standard deviation:
# $q = \mathcal N\big(m_t + g\,(e_t - m_t),\, \operatorname{diag}((c\, s)^2)\big)$ with learned $g$
# and $c$.


# %%
class Towards(Proposal):
    """The prior step, moved towards what a convolution over five bins reads."""

    def __init__(self, num_neurons, dim):
        super().__init__()
        self.network = nn.Conv1d(num_neurons, dim, kernel_size=5, padding=2)
        self.gain = nn.Parameter(torch.full((dim,), -2.0))
        self.log_factor = nn.Parameter(torch.zeros(dim))

    def encode(self, model, batch):
        """Once per batch, whatever the number of particles: (trial, time, dim)."""
        return self.network(batch.seen.mT).mT

    def propose(self, prior, memory, encoding, t, is_first):
        mean = prior.mean + self.gain.sigmoid() * (encoding[:, t] - prior.mean)
        return dist.Normal(mean, prior.stddev * self.log_factor.exp()).to_event(1)


proposals = {"prior (bootstrap)": Bootstrap(), "the model's own": linear.proposal}
torch.manual_seed(0)
linear.proposal = Towards(num_neurons=60, dim=3)
pyrodyn.fit(
    linear,
    many_train,
    objective=VSMC(4),  # four particles
    transforms=[],
    schedule=Schedule(learning_rate=2e-2, final_learning_rate=2e-3),
    max_epochs=40,
    progress=False,
)
proposals["Towards"] = linear.proposal

# %% [markdown]
# A particle filter's estimate of the evidence is unbiased, so that its logarithm is too low, on
# average, by an amount that grows with the variance of the estimate. A better proposal makes the
# estimate less variable and higher. Each filter runs five times on the test trials, with few and
# with many particles.

# %%
batch = linear.trials_of(many_test).batch()
rows = {}
for name, proposal in proposals.items():
    linear.proposal = proposal
    for num_particles in (10, 100):
        torch.manual_seed(0)
        runs = [particle_filter(linear, batch, num_particles) for _ in range(5)]
        evidence = torch.stack([run.log_evidence.sum(0) for run in runs])  # (run, trial)
        rows[f"{name}, {num_particles} particles"] = {
            "log evidence": float(evidence.mean()),
            "its sd between runs": float(evidence.std(0).mean()),
        }
pd.DataFrame(rows).T.round(1)

# %% [markdown]
# With 10 particles the few lines of `Towards` gain many nats per trial over the prior; with 100
# particles all three proposals do equally well. A proposal is worth writing where particles are
# expensive, or where they must be few, as in training by `VSMC`.
#
# ## What can go wrong
#
# > - **A joint fit pulls the model towards its guide.** A poor guide favours models whose
# >   posteriors it can represent. Compare guides on a frozen model, as here, and models by their
# >   evidence.
# > - **Low k-hat, wrong posterior.** A guide that covers one of two modes has equal weights there.
# >   Its evidence is too low by the log of the fraction that it covers, so compare the evidence
# >   between guides.
# > - **One draw at a time.** In `predict` and `to_datatree` draws have the shape
# >   `(draw, trial, ...)`. Distributions of `batch.seen` need nothing for this; what you compute
# >   from *draws* must allow for dims on the left. `check_guide` tries it.
# > - **Scales in the guide.** `poutine.scale` in a guide is refused; weight the KL of a site by
# >   `ELBO(beta=...)`.
#
# ## Exercises
#
# 1. Let `MeanField` read only the first five bins, `batch.seen[:, :5]`. Which column of the table
#    shows what the other bins are good for?
#
# <details><summary>Answer</summary>
#
# The ELBO falls, since the guide ignores information that the posterior uses, and so do the
# effective draws. The log evidence stays the same wherever k-hat is low: it belongs to the model.
#
# </details>
#
# 2. Replace `dist.Normal` in `MeanField` by `dist.StudentT(5, mean, log_scale.exp())`. Why may
#    k-hat fall although the ELBO does not rise?
#
# <details><summary>Answer</summary>
#
# Heavy tails cover the posterior's tails, so that no draw of the posterior has a huge weight. The
# ELBO punishes draws where the posterior is small, which heavy tails make more often.
#
# </details>
#
# 3. Train `FullCovariance` by `objective=RWS(16)` in place of `ELBO()`. What changes in the figure?
#
# <details><summary>Answer</summary>
#
# RWS minimises the KL divergence from the posterior to the guide, which punishes missing mass: the
# guide becomes wider. k-hat falls, and the ELBO falls a little too.
#
# </details>
#
# ## Next
#
# - [Guides](../docs/guides.md) lists everything that a guide must do, and
#   [Choosing a guide](../docs/guide_choice.md) compares those that pyrodyn brings.
# - The models used here: [sequential autoencoders](../docs/models/sae.md) and
#   [linear dynamics](../docs/models/linear_dynamics.md).
# - The next notebook, [Predictive checks in ArviZ](predictive_checks.ipynb), asks whether the
#   *model* fits.
