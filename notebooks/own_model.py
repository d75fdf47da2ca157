# %% [markdown]
# # Write your own model in 80 lines
#
# The models of pyrodyn are classes that state probability densities. Training, filtering,
# smoothing, posteriors, checks and files follow from these densities and are not written again.
# This tutorial writes a model that pyrodyn does not have, a noisy oscillator seen through spikes,
# checks it against exact answers where these are known, and fits it.
#
# The notebook takes about a minute on one core. The recording is simulated and small, so that the
# recovered parameters have visible errors.
#
# ## The model
#
# Many populations oscillate: respiration, locomotion, theta. Our latent state is a point $z$ in the
# plane that turns by one cycle in $P$ bins, is pushed outwards by a factor $\rho$, and saturates:
#
# $$
# \begin{aligned}
# z_1 &\sim \mathcal N(0, I) \\
# z_t &\sim \mathcal N\big(F(z_{t-1}),\; s^2 I\big), \qquad
#   F(z) = \frac{\rho\, R(2\pi / P)\, z}{\sqrt{1 + \kappa |z|^2}} \\
# x_t &\sim p\big(x \mid C z_t + d\big)
# \end{aligned}
# $$
#
# $R$ is the rotation by an angle and $p$ any observation model, such as Poisson counts with log
# rates $C z + d$. For $\rho > 1$ the noiseless map has a limit cycle: $|F(z)| = |z|$ at the radius
# $\sqrt{(\rho^2 - 1) / \kappa}$. The curvature $\kappa$ sets the unit of $z$ only, since rescaling
# $C$ and $s$ compensates for it, and is therefore fixed. With $\kappa = 0$ the model is linear; for
# Gaussian observations its posterior is then known exactly. We use this as a test.

# %%
import tempfile
import warnings
from typing import ClassVar, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from scipy.stats import multivariate_normal
from torch import Tensor, nn

import pyrodyn
from pyrodyn import analysis
from pyrodyn.data import recording, split
from pyrodyn.infer import (
    ELBO,
    IWELBO,
    VSMC,
    FitWarning,
    Schedule,
    check_guide,
    particle_filter,
)
from pyrodyn.models import OBSERVATIONS, Bootstrap, Dynamics, Proposal, StateSpaceModel

torch.set_num_threads(1)  # matrix products this small are fastest on one thread
warnings.filterwarnings("ignore", category=FitWarning)  # the fits are short on purpose

# %% [markdown]
# ## The class
#
# A subclass of `StateSpaceModel` states four densities: `initial`, `transition`, `emission`, and
# how a drawn $z_t$ updates the state (`initial_state`, `advance`). Here the state is $z$ itself;
# LFADS, for example, has a deterministic generator beside it. One rule holds everywhere: **all dims
# but the last are treated alike**, since particles, trials and bins may all be among them.
#
# `for_recording` calls the class with `num_neurons` and `input_dim` of the recording. `config`
# holds the arguments with which the model can be built again when it is loaded.


# %%
class State(NamedTuple):
    z: Tensor


class Oscillator(StateSpaceModel):
    """A noisy limit cycle; equations above."""

    site_dims: ClassVar = {
        "z": ("time", "latent"),
        "rates": ("time", "neuron"),
        "x": ("time", "neuron"),
    }
    path_is_markov = True  # z_t and the inputs are the whole state

    def __init__(self, num_neurons, *, input_dim=0, curvature=0.1, observation="poisson"):
        super().__init__()
        if input_dim:
            raise ValueError("Oscillator has no inputs: leave them out of the recording")
        self.config = {
            "num_neurons": num_neurons,
            "input_dim": input_dim,
            "curvature": curvature,
            "observation": observation,
        }
        self.curvature = curvature
        self.observation = OBSERVATIONS[observation](num_neurons)
        num_predictors = self.observation.predictor_dim
        self.log_period = nn.Parameter(torch.tensor(15.0).log())
        self.log_push = nn.Parameter(torch.tensor(0.05))
        self.log_noise = nn.Parameter(torch.tensor(0.1).log())
        self.loading = nn.Parameter(0.3 * torch.randn(num_predictors, 2))
        self.bias = nn.Parameter(torch.zeros(num_predictors))
        self.proposal = Bootstrap()

    def start_readout(self, predictors):
        """The bias begins at the mean of each neuron."""
        self.bias.copy_(predictors)

    def mean_step(self, z):
        """F(z)."""
        angle = 2 * torch.pi / self.log_period.exp()
        turned = torch.stack(
            [
                angle.cos() * z[..., 0] - angle.sin() * z[..., 1],
                angle.sin() * z[..., 0] + angle.cos() * z[..., 1],
            ],
            -1,
        )
        size = (1 + self.curvature * z.square().sum(-1, keepdim=True)).sqrt()
        return self.log_push.exp() * turned / size

    def initial(self, start, inputs):
        return dist.Normal(self.bias.new_zeros(*inputs.shape[:-1], 2), 1.0).to_event(1)

    def transition(self, state, inputs):
        return dist.Normal(self.mean_step(state.z), self.log_noise.exp()).to_event(1)

    def initial_state(self, start, z, inputs):
        return State(z)

    def advance(self, state, z, inputs):
        return State(z)

    def emission(self, state):
        return self.observation(state.z @ self.loading.mT + self.bias)

    def dynamics(self):
        """For fixed points, phase portraits and free runs."""
        return Dynamics(
            step=lambda z, inputs: self.mean_step(z), state_dim=2, bin_width=self.bin_width
        )


# %% [markdown]
# For a model that needs no class of its own, `StateSpaceModel.of(initial=..., transition=...,
# emission=...)` builds one from three functions, and [its page](../docs/models/own_model.md) has
# three examples.
#
# ## A recording with known truth
#
# 20 neurons, 60 trials of 60 bins of 20 ms. One cycle takes 20 bins, the radius is 1.

# %%
NUM_TRIALS, NUM_BINS, NUM_NEURONS = 60, 60, 20
PERIOD, CURVATURE, NOISE, MEAN_COUNT = 20.0, 0.1, 0.1, 0.4
PUSH = (1 + CURVATURE) ** 0.5  # a cycle of radius 1

rng = np.random.default_rng(0)
angle = 2 * np.pi / PERIOD
turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
latents = rng.normal(size=(NUM_TRIALS, NUM_BINS, 2))
for t in range(1, NUM_BINS):
    before = latents[:, t - 1]
    size = np.sqrt(1 + CURVATURE * np.square(before).sum(-1, keepdims=True))
    latents[:, t] = PUSH * before @ turn.T / size + NOISE * rng.normal(size=before.shape)
loading = rng.normal(size=(NUM_NEURONS, 2))
rates = MEAN_COUNT * np.exp(latents @ loading.T)
spikes = recording(rng.poisson(rates), bin_width=0.02)
train, test = split(
    spikes.assign(latents=(("trial", "time", "latent"), latents)), (0.8, 0.2), seed=0
)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.imshow(train["counts"][0].T, aspect="auto", cmap="Greys", extent=(0, 1.2, NUM_NEURONS, 0))
left.set(xlabel="time (s)", ylabel="neuron", title="spike counts of one trial")
for path in train["latents"][:6].values:
    right.plot(*path.T, lw=1)
right.set(xlabel="$z_1$", ylabel="$z_2$", title="true latents of six trials", aspect="equal")
plt.show()

# %% [markdown]
# ## First test: an exact answer
#
# Before any fit: does the class compute what its equations say? With $\kappa = 0$ and a Gaussian
# observation, all bins of a trial are jointly Gaussian. We write this joint distribution down with
# numpy, without pyrodyn, and compare the log evidence $\log p(x)$ with the estimate of the particle
# filter, and the posterior mean of $z$ with that of the smoother. (A Kalman filter gives the same
# numbers, bin by bin.)

# %%
signal = recording(
    signal=latents[:4, :10] @ loading.T + 0.5 * rng.normal(size=(4, 10, NUM_NEURONS)),
    bin_width=0.02,
)
linear = Oscillator.for_recording(signal, curvature=0.0, observation="gaussian", seed=0)


def exact(model, x):
    """Log evidence and posterior means (trial, time, latent) of a linear-Gaussian oscillator."""
    num_bins, with_noise = x.shape[1], model.log_noise.exp().item() ** 2
    A = model.mean_step(torch.eye(2)).T.numpy()  # a linear map, applied to unit vectors
    at = model.emission(State(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])))
    d, C = at.mean[0].numpy(), (at.mean[1:] - at.mean[0]).T.numpy()
    blocks = [[None] * num_bins for _ in range(num_bins)]  # Cov(z_t, z_r)
    for t in range(num_bins):
        blocks[t][t] = A @ blocks[t - 1][t - 1] @ A.T + with_noise * np.eye(2) if t else np.eye(2)
        for r in range(t):
            blocks[t][r] = A @ blocks[t - 1][r]
            blocks[r][t] = blocks[t][r].T
    prior, readout = np.block(blocks), np.kron(np.eye(num_bins), C)
    of_x = readout @ prior @ readout.T + np.diag(np.tile(at.variance[0].numpy(), num_bins))
    residual = (x - d).reshape(len(x), -1)
    evidence = multivariate_normal(np.zeros(len(of_x)), of_x).logpdf(residual)
    means = residual @ np.linalg.solve(of_x, readout @ prior)
    return evidence, means.reshape(len(x), num_bins, 2)


with torch.no_grad():
    evidence, means = exact(linear, signal["signal"].values)
torch.manual_seed(0)
filtered = particle_filter(linear, linear.trials_of(signal).batch(), num_particles=20_000)
smoothed = pyrodyn.predict(
    linear, signal, method="smoother", num_draws=1000, num_particles=2000, seed=0
)
table = pd.DataFrame(
    {"exact": evidence, "particle filter": filtered.log_evidence.sum(0)},
    index=pd.Index(range(4), name="trial"),
)
error = np.abs(smoothed["z"].values - means).max()
print(f"largest error of a smoothed mean: {error:.3f}; the latents have a standard deviation of 1")
table.round(2)

# %% [markdown]
# ## Second test: the contract
#
# The models of pyrodyn are held to a contract: they work with Pyro's own engines, and all bounds on
# the evidence agree where theory wants it. The same checks for our class, with a proposal that
# reads the data (the one that [Write your own guide](own_guide.ipynb) explains):


# %%
class Towards(Proposal):
    """The prior step, moved towards what a convolution over nine bins reads."""

    def __init__(self, num_neurons, dim):
        super().__init__()
        self.network = nn.Conv1d(num_neurons, dim, kernel_size=9, padding=4)
        self.gain = nn.Parameter(torch.full((2, dim), -2.0))  # of the first bin, of later ones
        self.log_factor = nn.Parameter(torch.zeros(2, dim))

    def encode(self, model, batch):
        return self.network(batch.seen.mT).mT

    def propose(self, prior, memory, encoding, t, is_first):
        gain, factor = (
            each[int(not is_first)] for each in (self.gain.sigmoid(), self.log_factor.exp())
        )
        mean = prior.mean + gain * (encoding[:, t] - prior.mean)
        return dist.Normal(mean, prior.stddev * factor).to_event(1)


def new_model():
    model = Oscillator.for_recording(train, curvature=CURVATURE, seed=0)
    torch.manual_seed(0)
    model.proposal = Towards(NUM_NEURONS, 2)
    return model


def bound(objective, model, batch, seed=0):
    """The bound on the log evidence that an objective maximises, in nats per trial."""
    torch.manual_seed(seed)
    return -objective.loss(model, model.guide)(batch) / batch.num_trials


model = new_model()
batch = model.trials_of(train).batch()

print(check_guide(model, model.guide, batch))

bound(ELBO(), model, batch).backward()
assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())

with torch.no_grad():
    torch.manual_seed(0)
    by_pyro = -Trace_ELBO().loss(model.model, model.guide, batch) / batch.num_trials
    same = [bound(objective, model, batch) for objective in (ELBO(), IWELBO(1), VSMC(1))]
    rows = {
        f"{number} particles": {
            name: float(np.mean([bound(kind(number), model, batch, seed) for seed in range(5)]))
            for name, kind in {"ELBO": ELBO, "IWELBO": IWELBO, "VSMC": VSMC}.items()
        }
        for number in (1, 4, 16)
    }
print(f"one particle, same noise: {by_pyro:.2f} by Pyro,", *(f"{float(each):.2f}" for each in same))
pd.DataFrame(rows).T.round(1)

# %% [markdown]
# With one particle and the same random numbers, Pyro's `Trace_ELBO` and the three bounds of pyrodyn
# are one number. With more particles the ELBO stays (it is a mean), the importance-weighted bound
# rises, and VSMC, which resamples particles at every bin, rises most.
#
# ## Fit
#
# The same model and proposal train by any of these objectives. We take VSMC with 8 particles.

# %%
fitted = pyrodyn.fit(
    model,
    train,
    objective=VSMC(8),
    transforms=[],
    schedule=Schedule(learning_rate=5e-2, final_learning_rate=5e-3),
    max_epochs=60,
    batch_size=16,
    progress=False,
    seed=0,
)
with torch.no_grad():
    radius = ((model.log_push.exp().item() ** 2 - 1) / CURVATURE) ** 0.5
    noise = model.log_noise.exp().item()
    estimates = {
        "period (bins)": (PERIOD, model.log_period.exp().item()),
        "process noise / radius": (NOISE, noise / radius),
        "radius": (1.0, radius),
    }
pd.DataFrame(estimates, index=["truth", "estimate"]).T.round(3)

# %% [markdown]
# The period is recovered to a fraction of a percent, and the noise in units of the radius to some
# ten percent: 180 steps with 8 particles are few, and few particles make the noise too large. The
# radius itself depends on the unit of $z$, which only $\kappa$ and the prior of $z_1$ determine; it
# is still moving when the fit ends, together with the scale of $C$.
#
# ## Filter, smoother, tree
#
# The smoother draws whole trajectories given all bins. `to_datatree` returns them as an ArviZ tree,
# with predicted data, diagnostics and the recording. Latents are identified up to a rotation and a
# reflection, which `align` finds on the training trials.

# %%
with warnings.catch_warnings(record=True) as raised:
    warnings.simplefilter("always")
    on_train = pyrodyn.predict(fitted, train, num_draws=50, num_particles=300, seed=0)
    tree = pyrodyn.to_datatree(fitted, test, num_draws=100, num_particles=1000, seed=0)
print("Warning:", raised[-1].message)
to_truth = analysis.align(on_train["z"], train["latents"])
draws = to_truth(tree["posterior/z"].squeeze("chain"))  # (draw, trial, time, latent)
low, high = np.quantile(draws, (0.05, 0.95), axis=0)
truth = test["latents"].values
inside = ((low < truth) & (truth < high)).mean()
print(f"R2 of the posterior mean {1 - np.square(draws.mean(0) - truth).mean() / truth.var():.3f}")
print(f"90 % intervals contain the truth at {100 * inside:.0f} % of the bins")

figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for dim, axis in enumerate(axes):
    band = low[0, :, dim], high[0, :, dim]
    axis.fill_between(test["time"], *band, color="C0", alpha=0.4, lw=0, label="90 % of draws")
    axis.plot(test["time"], truth[0, :, dim], color="black", lw=1, label="truth")
    axis.set(xlabel="time (s)", title=f"$z_{dim + 1}$ of one test trial")
axes[0].legend(frameon=False, ncols=2, loc="upper right")
axes[0].set_ylim(-2.2, 2.5)
plt.show()

# %% [markdown]
# The warning counts trials in which some bin has few effective particles, often the first. Whether
# this matters shows in the intervals: they contain the truth about as often as they should.
#
# `dynamics` makes the analysis of dynamical systems available: the fixed point in the middle is
# unstable, and trajectories of the noiseless map approach the cycle around it.

# %%
points = analysis.fixed_points(fitted, starts=on_train["z"])
print("fixed points:", *points["stability"].values)
run = analysis.free_run(fitted, num_trials=3, num_bins=60, seed=0)
analysis.phase_portrait(fitted, run["latents"], fixed_points=points)
plt.show()

# %% [markdown]
# ## Save and load
#
# `save` writes weights and a card that can be read by people. Loading needs the two classes again,
# because no code is stored in the file.

# %%
with tempfile.TemporaryDirectory() as folder:
    pyrodyn.save(fitted, folder)
    loaded = pyrodyn.load(folder, model_class=Oscillator, proposal=Towards(NUM_NEURONS, 2))
loaded

# %% [markdown]
# ## What can go wrong
#
# > - **A density that does not broadcast.** `weights @ z` fails or, worse, mixes trials;
# >   `z @ weights.mT` works for any left dims. Compare a run with one and with several particles.
# > - **A state that is more than z.** If `advance` updates a field of its own (a filter of inputs,
# >   an adaptation), set `path_is_markov = False`, the default: the smoother then follows
# >   ancestors.
# > - **Few particles bias the noise.** The VSMC bound is tight where particles are many; with few,
# >   the estimated process noise is off. Finish with more particles and a smaller learning rate.
# > - **Bad initial values.** An oscillator that begins at half its true period may settle on a
# >   harmonic. Try several, and compare the evidence.
#
# ## Exercises
#
# 1. Let the recording be a signal: pass `observation="gaussian"` to `for_recording`. What changes
#    in the class?
#
# <details><summary>Answer</summary>
#
# Nothing. `OBSERVATIONS` provides the emission for linear predictors, and `start_readout` receives
# predictors that fit it.
#
# </details>
#
# 2. Make the process noise differ between the two latents. Which lines change, and which inference
#    code?
#
# <details><summary>Answer</summary>
#
# One line: `self.log_noise = nn.Parameter(torch.full((2,), 0.3).log())`. No inference code changes,
# because all of it calls `transition`. (Rotation makes the two noises nearly indistinguishable over
# a cycle, so expect them to be poorly determined.)
#
# </details>
#
# 3. Add the method `linear_gaussian` for $\kappa = 0$ and use `pyrodyn.infer.kalman_filter` in
#    place of `exact`. What must the method do for $\kappa > 0$?
#
# <details><summary>Answer</summary>
#
# It returns the matrices $A$, $b$, $S_0$, $S$, $C$, $d$ and the noise variances, as
# `pyrodyn/models/linear_dynamics.py` does. For $\kappa > 0$ it must raise a `ValueError`, since the
# model has no closed form then.
#
# </details>
#
# ## Next
#
# - [A model of your own](../docs/models/own_model.md): models from three functions, and the rules.
# - [Particles](../docs/particles.md): filters, smoothers, resampling.
# - [Parameter recovery: low-rank RNN](low_rank_rnn.ipynb) does the same for a network of the
#   library.
