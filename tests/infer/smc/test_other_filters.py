"""Our filter beside Pyro's and that of the package `particles`, on one model."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import NUM_BINS, batch_of, by_recursion, data, exact_of, linear_network
from pyro.infer.smcfilter import SMCFilter

from pyrodyn.infer import particle_filter

NUM_PARTICLES = 20_000


@pytest.fixture
def setting():
    recorded = data()
    model, batch = linear_network(recorded, proposal="bootstrap"), batch_of(recorded)
    exact = exact_of(model, batch)
    torch.manual_seed(0)
    return exact, particle_filter(model, batch, NUM_PARTICLES), by_recursion(exact, 0)


def test_pyros_filter_finds_the_same_means(setting):
    exact, filtered, truth = setting
    A, S0, S, C = (torch.from_numpy(each) for each in (exact.A, exact.S0, exact.S, exact.C))
    pushed, d, x = (torch.from_numpy(each[0]) for each in (exact.pushed, exact.d, exact.x))
    scale = torch.from_numpy(np.diag(exact.R).copy()).sqrt()

    class Model:
        """The same densities as Pyro's filter asks for them."""

        def init(self, state):
            self.t = 0
            self.draw(state, pushed[0].expand(NUM_PARTICLES, -1), S0)

        def step(self, state, x=None):
            self.t += 1
            self.draw(state, state["z"] @ A.T + pushed[self.t], S)

        def draw(self, state, mean, covariance):
            distribution = dist.MultivariateNormal(mean, covariance)
            state["z"] = pyro.sample(f"z_{self.t}", distribution)
            emission = dist.Normal(state["z"] @ C.T + d[self.t], scale).to_event(1)
            pyro.sample(f"x_{self.t}", emission, obs=x[self.t])

    class Guide(Model):
        """The bootstrap."""

        def draw(self, state, mean, covariance):
            pyro.sample(f"z_{self.t}", dist.MultivariateNormal(mean, covariance))

    torch.manual_seed(0)
    smc = SMCFilter(Model(), Guide(), num_particles=NUM_PARTICLES, max_plate_nesting=0)
    smc.init()
    for _ in range(1, NUM_BINS):
        smc.step()
    empirical = smc.get_empirical()["z"]
    theirs = empirical.mean
    ours = filtered.mean()[-1, 0]
    error = 5 * float(filtered.log_evidence_variance[0]) ** 0.5
    assert (theirs - torch.from_numpy(truth.filtered[-1])).abs().max() < error
    assert (ours - theirs).abs().max() < error


def test_the_package_particles_finds_the_same_evidence(setting):
    particles = pytest.importorskip("particles")
    from particles import distributions, state_space_models

    exact, filtered, truth = setting

    class Model(state_space_models.StateSpaceModel):
        """The same densities as the package asks for them."""

        def PX0(self):  # noqa: N802 (the name that the package looks for)
            return distributions.MvNormal(loc=exact.pushed[0, 0], cov=exact.S0)

        def PX(self, t, xp):  # noqa: N802 (the name that the package looks for)
            return distributions.MvNormal(loc=xp @ exact.A.T + exact.pushed[0, t], cov=exact.S)

        def PY(self, t, xp, x):  # noqa: N802 (the name that the package looks for)
            return distributions.MvNormal(loc=x @ exact.C.T + exact.d[0, t], cov=exact.R)

    np.random.seed(0)  # noqa: NPY002 (what the package draws from)
    bootstrap = state_space_models.Bootstrap(ssm=Model(), data=list(exact.x[0]))
    theirs = particles.SMC(fk=bootstrap, N=NUM_PARTICLES)
    theirs.run()
    error = 5 * float(filtered.log_evidence_variance[0]) ** 0.5
    assert abs(theirs.logLt - truth.log_evidence) < error
    assert abs(theirs.logLt - float(filtered.log_evidence[:, 0].sum())) < error
