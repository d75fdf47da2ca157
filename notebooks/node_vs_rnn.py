# %% [markdown]
# # Neural ODE vs GRU
#
# Two sequential autoencoders with three latents are fitted to a chaotic system of three dimensions.
# They differ in one module: the first learns the *change* of the state, a vector field, and the
# second, a GRU, the *next* state. With process noise, both explain the data. We ask which of them
# has learned the system, by its predictions, its fixed points and its Lyapunov exponents.
#
# The notebook takes about a minute and a half on one core, nearly all of it in the two fits. Each
# result is one seed's; the benchmark named at the end has several.
#
# ## A system whose dynamics are known
#
# Arneodo's system,
#
# $$ \dot x = y, \qquad \dot y = z, \qquad \dot z = 5.5\,x - 4.5\,y - z - x^3, $$
#
# is chaotic: its largest Lyapunov exponent is 0.203 per unit of time. It has three fixed points, a
# saddle between two spirals. 20 noisy channels observe its state. A bin lasts 0.0904 units of the
# system's time, which we call seconds, so that all rates below are per second.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyrodyn
from pyrodyn import analysis, data
from pyrodyn.infer import ELBO, FitWarning, NoiseAnnealing, Schedule

torch.set_num_threads(1)  # such small matrix products are fastest on one thread
warnings.filterwarnings("ignore", category=FitWarning)  # the fits are short on purpose
np.set_printoptions(precision=2, suppress=True)

BIN_WIDTH = data.SYSTEMS["arneodo"].time_per_bin
recording = data.simulate(
    "arneodo",
    num_trials=240,
    num_bins=50,
    num_neurons=20,
    bin_width=BIN_WIDTH,
    observation="gaussian",
    seed=0,
)
train, valid = data.split(recording, (0.8, 0.2), seed=0)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(train["time"], train["signal"][0, :, :5], lw=1)
left.set(xlabel="time (s)", ylabel="signal", title="five channels of one trial")
for trajectory in train["latents"][:30].values:
    right.plot(trajectory[:, 0], trajectory[:, 1], lw=0.6, color="black", alpha=0.6)
right.set(xlabel="x", ylabel="y", title="true latents of thirty trials")
plt.show()

# %% [markdown]
# ## Two models
#
# In both, a latent trajectory with process noise explains the signal,
#
# $$
# \begin{aligned}
# z_t &\sim \mathcal N\big(\Phi(z_{t-1}),\, Q\big) \\
# x_t &\sim \mathcal N\big(B z_t + b,\; \operatorname{diag}(\sigma^2)\big)
# \end{aligned}
# $$
#
# and a guide that reads the whole trial infers the trajectory. In `NodeSAE` $\Phi$ is the flow over
# one bin of $\dot z = f(z)$, where $f$ is a perceptron with one hidden layer. In `RnnSAE` it is a
# GRU cell of three units.
#
# With process noise, the data determine the inferred trajectory while the dynamics are still poor.
# But dynamics that are corrected at every bin need not predict more than one bin. `NoiseAnnealing`
# removes the correction: from step 250 on, the noise is reduced geometrically, to a tenth of its
# value for the neural ODE. The states of a GRU are bounded and smaller, so that its noise is
# reduced further, to about the same fraction of the standard deviation of the latents. A step is
# one batch of 48 trials, four of which make an epoch of the 192 training trials.

# %%
models = {}
figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for name, family, options, factor in (
    ("NODE", pyrodyn.models.NodeSAE, {"field_width": 64}, 0.1),
    ("GRU", pyrodyn.models.RnnSAE, {"cell": "gru"}, 0.0125),
):
    model = family.for_recording(
        train,
        seed=0,
        latent_dim=3,
        process_noise=True,
        encoder_dim=32,
        observation="gaussian",
        **options,
    )
    schedule = Schedule(
        learning_rate=1e-2,
        patience=40,
        stop_patience=1000,
        noise=NoiseAnnealing(first_step=250, num_steps=500, factor=factor),
    )
    fitted = pyrodyn.fit(
        model,
        train,
        valid,
        objective=ELBO(),
        transforms=[],
        max_epochs=200,
        batch_size=48,
        schedule=schedule,
        progress=False,
        seed=0,
    )
    axis.plot(fitted.history["epoch"], fitted.history["valid_loss"], lw=1, label=name)
    models[name] = model
axis.axvspan(250 / 4, 750 / 4, color="0.9", zorder=0, label="noise annealing")
axis.set(xlabel="epoch", ylabel="validation loss\n(nats per trial)")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# As long as the noise is learned freely, the two explain the data about equally well. As it is
# annealed, the dynamics have to predict more, and the losses separate.
#
# ## Inferred latents
#
# Latents are identified only up to a change of coordinates. They are scored by the R2 of
# least-squares maps between inferred and true ones, in both directions, fitted on training trials.

# %%
inferred = {}
for name, model in models.items():
    on_train = pyrodyn.predict(model, train, num_draws=10, seed=0)
    on_valid = pyrodyn.predict(model, valid, seed=0)
    inferred[name] = on_train["z"], on_valid["z"]
    score = analysis.latent_r2(on_train["z"], train["latents"], on_valid["z"], valid["latents"])
    sd = on_train["z"].std(("trial", "time")).values
    relative_noise = (model.noise_scales()[1].detach().numpy() / sd).mean()
    print(
        f"{name:4}  R2 true to inferred {score.true_to_inferred:.3f},"
        f" inferred to true {score.inferred_to_true:.3f};"
        f" process noise relative to the latents' sd {relative_noise:.3f}"
    )

# %% [markdown]
# The inferred trajectories of the neural ODE still follow the data with hardly any noise left. The
# guide of the GRU reads the same data, but its trajectories are constrained by the cell.
#
# ## Prediction
#
# From the state inferred at bin 10 of each validation trial, the noiseless dynamics alone predict
# the remaining 40 bins. `align` fits the affine map to the true coordinates on training trials, and
# `transform_dynamics` transforms the dynamics, so that from here on all results of a model are in
# the coordinates of the truth.

# %%
FIRST = 10
truth = analysis.known_dynamics("arneodo")
aligned = {"truth": truth}
starts = {"truth": valid["latents"].values[:, FIRST]}
for name, model in models.items():
    to_truth = analysis.align(inferred[name][0], train["latents"])
    aligned[name] = to_truth.transform_dynamics(model)
    starts[name] = to_truth(inferred[name][1][:, FIRST])


def run(dynamics, states, num_bins):
    """Trajectories (trial, time, state) from given states."""
    trajectory = [torch.as_tensor(states, dtype=torch.float64)]
    with torch.no_grad():
        for _ in range(num_bins):
            trajectory.append(dynamics.step(trajectory[-1], dynamics.no_inputs(trajectory[-1])))
    return torch.stack(trajectory, -2).numpy()


ahead = valid["latents"].values[:, FIRST:]
variance = ahead.var((0, 1))
time = BIN_WIDTH * np.arange(ahead.shape[1])
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(time, ahead[0, :, 0], color="black", lw=1, label="truth")
for name in models:
    predicted = run(aligned[name], starts[name], ahead.shape[1] - 1)
    error = (np.square(predicted - ahead) / variance).mean((0, 2))
    left.plot(time, predicted[0, :, 0], lw=1, label=name)
    right.plot(time, 1 - error, lw=1.5, label=name)
    print(f"{name:4}  R2 one second ahead {1 - error[11]:.2f}, three seconds {1 - error[33]:.2f}")
left.set(xlabel="time ahead (s)", ylabel="x", title="one trial, predicted")
right.set(xlabel="time ahead (s)", ylabel="R2 of prediction", ylim=(None, 1.05))
left.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Fixed points
#
# The search starts from visited states and from noise around them, in double precision. The
# eigenvalues of a flow are per second; those of a map, over one bin, are converted to rates by
# their logarithm.

# %%
points = {}
for name, dynamics in aligned.items():
    points[name] = analysis.fixed_points(dynamics, starts=train["latents"])
    found = points[name]
    print(f"{name}: {found.sizes['fixed_point']} fixed point(s)")
    for point, eigenvalues in zip(found["point"].values, found["eigenvalues"].values, strict=True):
        rates = eigenvalues
        if found.attrs["kind"] == "map":
            rates = np.log(eigenvalues.astype(complex)) / BIN_WIDTH
        print(f"    {point}  eigenvalues per second {rates}")

# %% [markdown]
# Their vector fields, on the plane of the true latents' first two principal components:

# %%
plane = analysis.Plane.principal(train["latents"].values.reshape(-1, 3))
for name, dynamics in aligned.items():
    figure = analysis.phase_portrait(
        dynamics, run(dynamics, starts[name][:8], 40), fixed_points=points[name], plane=plane
    )
    figure.axes[0].set_title(name)
    plt.show()

# %% [markdown]
# ## Chaos
#
# Lyapunov exponents measure the growth of small perturbations. They are averaged over 1000 bins
# from 16 states, after 300 bins in which trajectories approach their attractor. The sum of a flow's
# exponents is the rate at which volumes grow, -1 in Arneodo's system. The trials are so close to
# its attractor that they contain little information on this contraction, and the last exponent is
# the hardest to learn.

# %%
for name, dynamics in aligned.items():
    spectrum = analysis.lyapunov_spectrum(dynamics, starts[name][:16], 1000, burn_in=300)
    exponents = spectrum["exponents_per_second"].values
    errors = spectrum["standard_error_per_second"].values
    print(f"{name:5}  exponents {exponents} +- {errors} per second")

# %% [markdown]
# The attractors: 500 bins from four states, after 300 bins of transient.

# %%
attractors = {name: run(aligned[name], starts[name][:4], 800)[:, 300:] for name in aligned}
for name in models:
    figure = analysis.plot_attractors(attractors["truth"], attractors[name])
    figure.axes[1].set_title(name)
    plt.show()

# %% [markdown]
# ## Explanation
#
# The next state of a GRU cell of three units is a convex combination of its state and of $\tanh$ of
# a linear map, unit by unit: one layer, as wide as the state. This is a narrow family of maps. To
# represent this system, the cell would need more units, that is more latents, which have dynamics
# that the system does not have. In a neural ODE the width of the hidden layer is independent of the
# dimension of the state, and an untrained field leaves the state unchanged, so that $f$ has to
# learn only the changes. The residual perceptron of `RnnSAE(cell="residual_mlp")` has both
# properties and performs similarly; Sedler, Versteeg & Pandarinath (2023) remove them one by one.
#
# ## What can go wrong
#
# > - **A good fit without the dynamics.** With free process noise both models explain the signal
# >   equally well. Neither the loss nor the inferred latents show which one has learned the system;
# >   predictions and free runs do.
# > - **Too sudden an annealing.** If the noise vanishes before the field is roughly right, the
# >   guide can no longer follow the data and the fit gets stuck. Begin later, or anneal over more
# >   steps.
# > - **Exponents of a wrong attractor.** A trajectory of the fitted model may leave the region of
# >   the data. Look at the attractor before you read its Lyapunov exponents.
# > - **A coarse solver.** The default takes one midpoint step per bin; a stiff field needs more
# >   `substeps`. `fit` warns if the solver's trajectory departs from that of the field.
#
# ## Exercises
#
# 1. Leave the annealing out (`noise=` of the schedule). Which panels change?
#
# <details><summary>Answer</summary>
#
# The losses end lower and closer together, and the R2 of the inferred latents hardly changes, but
# predictions from bin 10 get worse sooner: dynamics that are corrected at every bin need not
# predict more than one.
#
# </details>
#
# 2. Give the GRU six latents. Does it predict better? What do its fixed points and exponents show?
#
# <details><summary>Answer</summary>
#
# It predicts better, since its map is less constrained. But a system of six dimensions has three
# exponents, and possibly fixed points, that Arneodo's system does not have.
#
# </details>
#
# 3. Replace Arneodo's system by `"lorenz"`. Which exponent is the hardest to learn, and why?
#
# <details><summary>Answer</summary>
#
# Again the last. Lorenz' system contracts strongly (-14.6 per unit of time), so that all trials lie
# on its attractor and hardly any data show the contraction.
#
# </details>
#
# ## Next
#
# - [Sequential autoencoders](../docs/models/sae.md): the cells (`"vanilla"`, `"residual"`,
#   `"residual_mlp"`), `process_noise=False` with a `GrowingHorizon`, and solvers.
# - [Analysing learned dynamics](../docs/dynamics.md): fixed points, exponents, attractors.
# - Several seeds and systems, from spikes: `benchmarks/study.py`.
# - The next notebook: [Write your own guide](own_guide.ipynb).
