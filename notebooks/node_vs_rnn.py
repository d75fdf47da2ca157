# %% [markdown]
# # How a state changes, or what it becomes: neural ODE against GRU
#
# Two sequential autoencoders with three latents are fitted to a chaotic system of three dimensions.
# They differ in one module: the first learns how the state *changes*, a vector field, and the
# second, a GRU, what the next state *is*. With noise to help them both explain the data. We ask
# which of them has learned the system: what it predicts by itself, its fixed points, its Lyapunov
# exponents. It takes about two minutes on one core.
#
# ## A system whose dynamics are known
#
# Arneodo's system,
#
# $$ \dot x = y, \qquad \dot y = z, \qquad \dot z = 5.5\,x - 4.5\,y - z - x^3, $$
#
# is chaotic: its largest Lyapunov exponent is .203 per unit of time. It has three fixed points,
# one between two spirals. Its states are seen through 20 channels with noise. A bin lasts .0904
# units of the system's time, which we call seconds, so that all rates below are per second.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import pyrodyn
from pyrodyn import analysis, data
from pyrodyn.infer import NoiseAnnealing, Schedule

torch.set_num_threads(1)  # small products gain nothing by a second thread that must wait
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
for path in train["latents"][:30].values:
    right.plot(path[:, 0], path[:, 1], lw=0.6, color="black", alpha=0.6)
right.set(xlabel="x", ylabel="y", title="true latents of thirty trials")
plt.show()

# %% [markdown]
# ## Two models
#
# In both, a latent path with process noise explains the signal,
#
# $$
# \begin{aligned}
# z_t &\sim \mathcal N\big(\Phi(z_{t-1}),\, Q\big) \\
# x_t &\sim \mathcal N\big(B z_t + b,\; \operatorname{diag}(\sigma^2)\big)
# \end{aligned}
# $$
#
# and a guide that reads the whole trial says where the path went. In `NodeSAE` $\Phi$ is the flow
# over one bin of $\dot z = f(z)$, $f$ a perceptron with one hidden layer. In `RnnSAE` it is a GRU
# cell of three units.
#
# Noise lets the data lead the path while the dynamics are still poor. But dynamics that are
# corrected at every bin need not predict more than one bin. `NoiseAnnealing` takes the crutch
# away: from step 250 on, noise is pressed down geometrically, to a tenth of what it was for the
# neural ODE. The states of a GRU are bounded, so that noise of the same size is a larger share of
# their spread; its noise is pressed further, by about as much, for a like share in the end.

# %%
models = {}
figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for name, family, options, factor in (
    ("NODE", pyrodyn.models.NodeSAE, {"field_width": 64}, 0.1),
    ("GRU", pyrodyn.models.RnnSAE, {"cell": "gru"}, 0.0125),
):
    torch.manual_seed(0)
    model = family.for_recording(
        train,
        latent_dim=3,
        process_noise=True,
        encoder_dim=32,
        observation="gaussian",
        **options,
    )
    schedule = Schedule(
        learning_rate=1e-2,
        patience=10,
        stop_patience=250,
        noise=NoiseAnnealing(first_step=250, num_steps=500, factor=factor),
    )
    fitted = pyrodyn.fit(
        model,
        train,
        valid,
        max_epochs=250,
        batch_size=48,
        schedule=schedule,
        progress=False,
        seed=0,
    )
    axis.plot(fitted.history["epoch"], fitted.history["valid_loss"], lw=1, label=name)
    models[name] = model
axis.axvspan(250 / 4, 750 / 4, color="0.9", zorder=0, label="noise falls")
axis.set(xlabel="epoch", ylabel="validation loss\n(nats per trial)")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# While noise is free, the two explain the data about equally well. As it falls, more is asked of
# the dynamics, and they part.
#
# ## What is inferred
#
# Latents are known up to a change of coordinates, so they are scored by R2 of least-squares maps
# between inferred and true ones, in both directions, fitted on training trials.

# %%
inferred = {}
for name, model in models.items():
    on_train, on_valid = pyrodyn.predict(model, train, num_draws=10), pyrodyn.predict(model, valid)
    inferred[name] = on_train["z"], on_valid["z"]
    score = analysis.latent_r2(on_train["z"], train["latents"], on_valid["z"], valid["latents"])
    spread = on_train["z"].std(("trial", "time")).values
    left_over = (model.noise_scales()[1].detach().numpy() / spread).mean()
    print(
        f"{name:4}  R2 true to inferred {score.true_to_inferred:.3f},"
        f" inferred to true {score.inferred_to_true:.3f};"
        f" process noise, share of the latents' spread {left_over:.3f}"
    )

# %% [markdown]
# The path of the neural ODE still follows the data with hardly any noise left. The guide of the GRU
# sees the same data, but its path must go where the cell can.
#
# ## Left to themselves
#
# Now without data and without noise. From the state inferred at the tenth bin of each validation
# trial, the dynamics alone predict the next 40 bins. `align` finds the affine map to the
# truth's coordinates on training trials, and `carried` takes dynamics with it, so that from here on
# all that we see of a model is in the coordinates of the truth.

# %%
FIRST = 10
truth = analysis.known_dynamics("arneodo")
seen = {"truth": truth}
starts = {"truth": valid["latents"].values[:, FIRST]}
for name, model in models.items():
    to_truth = analysis.align(inferred[name][0], train["latents"])
    seen[name] = to_truth.carried(model)
    starts[name] = to_truth(inferred[name][1][:, FIRST])


def run(dynamics, states, num_bins):
    """Paths (trial, time, state) that dynamics take from states."""
    path = [torch.as_tensor(states, dtype=torch.float64)]
    with torch.no_grad():
        for _ in range(num_bins):
            path.append(dynamics.step(path[-1], dynamics.no_inputs(path[-1])))
    return torch.stack(path, -2).numpy()


ahead = valid["latents"].values[:, FIRST:]
variance = ahead.var((0, 1))
time = BIN_WIDTH * np.arange(ahead.shape[1])
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(time, ahead[0, :, 0], color="black", lw=1, label="truth")
for name in models:
    predicted = run(seen[name], starts[name], ahead.shape[1] - 1)
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
# The search begins at visited states and beyond, in double precision. A flow's eigenvalues are per
# second; a map's, over one bin, are turned into rates by their logarithm.

# %%
points = {}
for name, dynamics in seen.items():
    points[name] = analysis.fixed_points(dynamics, starts=train["latents"])
    found = points[name]
    print(f"{name}: {found.sizes['fixed_point']} fixed point(s)")
    for point, eigenvalues in zip(found["point"].values, found["eigenvalues"].values, strict=True):
        rates = eigenvalues
        if found.attrs["kind"] == "map":
            rates = np.log(eigenvalues.astype(complex)) / BIN_WIDTH
        print(f"    {point}  eigenvalues per second {rates}")

# %% [markdown]
# Their fields, on the plane of the truth's first two principal components:

# %%
plane = analysis.Plane.principal(train["latents"].values.reshape(-1, 3))
for name, dynamics in seen.items():
    figure = analysis.phase_portrait(
        dynamics, run(dynamics, starts[name][:8], 40), fixed_points=points[name], plane=plane
    )
    figure.axes[0].set_title(name)
    plt.show()

# %% [markdown]
# ## Chaos
#
# Do small differences grow, and how fast? The exponents are measured over 1000 bins from 16 states,
# after 300 bins in which paths come to their attractor. The sum of a flow's exponents is how
# fast volumes shrink, -1 in Arneodo's system; the trials are so close to its attractor that they
# tell little of that, and the last exponent is the hardest to learn.

# %%
for name, dynamics in seen.items():
    spectrum = analysis.lyapunov_spectrum(dynamics, starts[name][:16], 1000, burn_in=300)
    exponents = spectrum["exponents_per_second"].values
    errors = spectrum["standard_error_per_second"].values
    print(f"{name:5}  exponents {exponents} +- {errors} per second")

# %% [markdown]
# And where each ends if it runs on and on: 500 bins from four states, the first 300 left out.

# %%
attractors = {name: run(seen[name], starts[name][:4], 800)[:, 300:] for name in seen}
for name in models:
    figure = analysis.plot_attractors(attractors["truth"], attractors[name])
    figure.axes[1].set_title(name)
    plt.show()

# %% [markdown]
# ## Why
#
# A GRU cell of three units moves its state to a convex combination of where it is and of
# $\tanh$ of a linear map, unit by unit: one layer, as wide as the state. That is a narrow family of
# maps. To hold this system's, the cell would need more units, that is more latents, and these bring
# dynamics of their own that the data do not have. In a neural ODE the width of the hidden
# layer is separate from the dimension of the state, and the state itself passes through unchanged:
# with no knowledge at all, the best guess is that nothing changes, and $f$ has only to
# learn what does. The residual perceptron of `RnnSAE(cell="residual_mlp")` has both properties
# too and comes close; Sedler, Versteeg & Pandarinath (2023) take them away one by one.
#
# ## What next
#
# - One seed and one minute is an illustration. `benchmarks/study.py` fits Arneodo's, Rossler's
#   and Lorenz' systems from spikes; its table says for each seed what was found and what was not.
# - `process_noise=False` asks the harder question of that paper: does the first state alone
#   suffice? Give it a `GrowingHorizon`, and time.
# - `cell="vanilla"`, `"residual"`, `"next_state"` swap the dynamics, and nothing else.
