"""Adaptive mixture approximation of the posterior over the initial condition::

    s_k ~ q_r(s),   w_k = p(s_k) p(x | s_k)^beta / mean_r q_r(s_k)      k: draws of all rounds r

    q_0      half p(s), half q(s) of the model's own guide
    q_{r+1}  DEFENCE p(s) + (1 - DEFENCE) / C sum_c N(s; m_c, S_c)

with m_c resampled from the weighted s_k, and S_c the covariance of the draws near m_c. The
likelihood is tempered: beta is the largest power, at most 1, at which the effective sample size of
all draws is at least `LEAST_EFFECTIVE` of a round's draws. A trial is done when beta is 1, and the
mixture of that round is its q(s). With sparse counts the posterior may have several modes or be
curved, of which a single Gaussian (`LaplaceStart`) covers a part; the mixture covers all of it, for
an s of few dimensions. It is wider than the posterior on purpose: importance weights correct for
that (``method="importance"``) and measure it; the component p(s) bounds them by
p(x | s) / DEFENCE.

Sources: Cornuet, Marin, Mira & Robert 2012 (adaptive multiple importance sampling); Hesterberg 1995
(defensive mixtures); Neal 2001 (powers of the likelihood); Silverman 1986, section 4.3 (how near).
"""

from typing import NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.guides.initial_condition import StartGuide
from pyrodyn.infer.smc.resampling import effective_sample_size
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.state_space import Distribution, StateSpaceModel

DEFENCE = 0.1
"""Weight of the component p(s)."""

NUM_KERNELS = 64
"""C; a draw of high weight may be the centre of several."""

SHRINKAGE_COUNT = 3.0
"""Number of draws for which the covariance of all draws counts in S_c."""

LEAST_EFFECTIVE = 0.2
"""Least effective sample size for the next mixture, as a fraction of a round's draws."""

MOST_ROUNDS = 20
"""After which a trial keeps its last mixture."""

POWERS = torch.logspace(-6, 0, 121)
"""Values of beta to choose from."""

JITTER = 1e-10
"""Fraction of p(s)'s variance added to the covariance of all draws, against singularity."""

MOST_ENTRIES = 2**24
"""Observations whose likelihood is computed at once."""


class _Mixture(NamedTuple):
    """Mixtures of normals, one per trial.

    Attributes:
        centres: m_c.
        roots: lower triangles of S_c.
        weights: of the components, the same for all trials.
    """

    centres: Float[Tensor, "trial component dim"]
    roots: Float[Tensor, "trial component dim dim"]
    weights: Float[Tensor, " component"]

    @classmethod
    def of(cls, prior: Distribution, guess: Distribution) -> "_Mixture":
        """q_0, from distributions with independent dims."""
        means = prior.mean.expand_as(guess.mean), guess.mean
        scales = prior.stddev.expand_as(guess.mean), guess.stddev
        centres, roots = torch.stack(means, 1), torch.diag_embed(torch.stack(scales, 1))
        return cls(centres, roots, centres.new_tensor([0.5, 0.5]))

    @classmethod
    def around(
        cls,
        drawn: Float[Tensor, "draw trial dim"],
        weights: Float[Tensor, "draw trial"],
        prior: Distribution,
    ) -> "_Mixture":
        """The next mixture, from weighted draws."""
        like, dim = drawn, drawn.shape[-1]
        drawn, weights = drawn.transpose(0, 1).double(), weights.T
        chosen = torch.multinomial(weights, NUM_KERNELS, replacement=True)
        chosen = chosen[..., None].expand(-1, -1, dim)
        # Whitened: all draws together have mean 0 and covariance the identity.
        centred = drawn - (weights[..., None] * drawn).sum(1, keepdim=True)
        whole = centred.mT @ (weights[..., None] * centred) + torch.diag(JITTER * prior.variance)
        root = torch.linalg.cholesky(whole)
        y = torch.linalg.solve_triangular(root, centred.mT, upper=False).mT
        # For Gaussian draws, those near a centre have Silverman's covariance, `width` times all.
        width = (4 / (NUM_KERNELS * (dim + 2))) ** (2 / (dim + 4))
        distance = torch.cdist(y.gather(1, chosen), y).square() * (1 - width) / width
        near = (weights.log()[:, None] - 0.5 * distance).softmax(-1)
        mean = near @ y
        covariance = torch.einsum("tck,tkd,tke->tcde", near, y, y)
        covariance = covariance - mean[..., None] * mean[..., None, :]
        count = 1 / near.square().sum(-1)[..., None, None]
        shrunk = SHRINKAGE_COUNT * width * torch.eye(dim).to(y)
        covariance = (count * covariance + shrunk) / (count + SHRINKAGE_COUNT)
        roots = root[:, None] @ torch.linalg.cholesky(covariance)
        prior_centre = prior.mean.expand(len(drawn), 1, -1)
        prior_root = torch.diag(prior.stddev).expand(len(drawn), 1, -1, -1)
        component = y.new_tensor([*[(1 - DEFENCE) / NUM_KERNELS] * NUM_KERNELS, DEFENCE])
        centres, roots = (
            torch.cat([drawn.gather(1, chosen), prior_centre], 1),
            torch.cat([roots, prior_root], 1),
        )
        return cls(centres.to(like), roots.to(like), component.to(like))

    def take(self, trials: Int[Tensor, " trial"]) -> "_Mixture":
        """Those of some trials."""
        return _Mixture(self.centres[trials], self.roots[trials], self.weights)

    def put(self, trials: Int[Tensor, " trial"], others: "_Mixture") -> "_Mixture":
        """With those of some trials replaced."""
        centres = self.centres.index_copy(0, trials, others.centres)
        return _Mixture(centres, self.roots.index_copy(0, trials, others.roots), self.weights)

    def distribution(self) -> Distribution:
        """As a distribution of s per trial."""
        return dist.MixtureSameFamily(
            dist.Categorical(self.weights.expand(len(self.centres), -1)),
            dist.MultivariateNormal(self.centres, scale_tril=self.roots, validate_args=False),
            validate_args=False,
        )


class _Cloud(NamedTuple):
    """Draws of all rounds.

    Attributes:
        drawn: s_k.
        log_likelihood: log p(x | s_k).
        log_sum: log of the sum over rounds of q_r(s_k).
        mixtures: q_r.
    """

    drawn: Float[Tensor, "draw trial dim"]
    log_likelihood: Float[Tensor, "draw trial"]
    log_sum: Float[Tensor, "draw trial"]
    mixtures: tuple[_Mixture, ...]

    def extended(
        self,
        mixture: _Mixture,
        drawn: Float[Tensor, "draw trial dim"],
        log_likelihood: Float[Tensor, "draw trial"],
    ) -> "_Cloud":
        """With the draws of one more round."""
        mixtures = (*self.mixtures, mixture)
        before = torch.logaddexp(self.log_sum, mixture.distribution().log_prob(self.drawn))
        now = torch.stack([each.distribution().log_prob(drawn) for each in mixtures]).logsumexp(0)
        return _Cloud(
            torch.cat([self.drawn, drawn]),
            torch.cat([self.log_likelihood, log_likelihood]),
            torch.cat([before, now]),
            mixtures,
        )

    def weights(
        self, prior: Distribution, fewest: float
    ) -> tuple[Float[Tensor, "draw trial"], Bool[Tensor, " trial"]]:
        """w_k, normalised, at the largest beta with that effective sample size; whether it is 1."""
        log_ratio = (prior.log_prob(self.drawn) - self.log_sum).double()
        powers = POWERS.to(self.log_likelihood)
        counts = torch.stack(
            [effective_sample_size(log_ratio + b * self.log_likelihood) for b in powers]
        )
        is_enough = counts >= fewest
        place = torch.arange(len(powers), device=counts.device)[:, None]
        # If no power reaches it, the one of the largest effective sample size.
        best = torch.where(is_enough.any(0), (place * is_enough).argmax(0), counts.argmax(0))
        weights = (log_ratio + powers[best] * self.log_likelihood).softmax(0)
        return weights, best == len(powers) - 1

    def take(self, trials: Int[Tensor, " trial"]) -> "_Cloud":
        """Those of some trials."""
        return _Cloud(
            self.drawn[:, trials],
            self.log_likelihood[:, trials],
            self.log_sum[:, trials],
            tuple(mixture.take(trials) for mixture in self.mixtures),
        )


class MixtureStart(StartGuide):
    """A guide that covers all initial conditions that explain a trial.

    Pass it to `predict`, `to_datatree` or `importance_sample` as ``guide=MixtureStart(model)``; for
    draws of the exact posterior, with ``method="importance"``.

    Args:
        model: a fitted model whose only latent is its initial condition.
        num_draws: per trial and round.

    Raises:
        ValueError: for a model with other latent sites, or fewer draws than kernels.
        ArithmeticError: when solving, if the trajectories of all draws of a trial diverge.
    """

    def __init__(
        self, model: StateSpaceModel | Fit[StateSpaceModel], *, num_draws: int = 500
    ) -> None:
        super().__init__(model)
        check_integer(NUM_KERNELS, num_draws=num_draws)
        self.num_draws = num_draws

    def _solve(self, batch: Batch, num_bins: int) -> Distribution:
        """A mixture of multivariate normals."""
        prior = self.model.initial_condition()
        mixture = learned = _Mixture.of(prior, self._guess(batch))
        nothing = prior.mean.new_zeros(0, batch.num_trials)
        cloud = _Cloud(nothing[..., None] + prior.mean, nothing.double(), nothing, ())
        trials = torch.arange(batch.num_trials, device=nothing.device)
        for round_ in range(MOST_ROUNDS):
            drawn = mixture.distribution().sample((self.num_draws,))
            log_likelihood = self._log_likelihood(drawn, batch.take(trials), num_bins)
            cloud = cloud.extended(mixture, drawn, log_likelihood)
            _check_explained(cloud.log_likelihood, batch.trial[trials])
            weights, is_done = cloud.weights(prior, LEAST_EFFECTIVE * self.num_draws)
            mixture = _Mixture.around(cloud.drawn, weights, prior)
            learned = learned.put(trials, mixture) if round_ else mixture
            left = (~is_done).nonzero()[:, 0]
            if not len(left):
                break
            trials, mixture, cloud = trials[left], mixture.take(left), cloud.take(left)
        return learned.distribution()

    def _log_likelihood(
        self, drawn: Float[Tensor, "draw trial dim"], batch: Batch, num_bins: int
    ) -> Float[Tensor, "draw trial"]:
        """Log p(x | s); minus infinity for a diverged trajectory."""
        per_draw = batch.num_trials * num_bins * batch.seen.shape[-1]
        parts = drawn.split(max(1, MOST_ENTRIES // per_draw))
        sums = [self._terms(part, batch, num_bins).sum(-1, dtype=torch.float64) for part in parts]
        return torch.cat(sums).nan_to_num(nan=-torch.inf)


def _check_explained(
    log_likelihood: Float[Tensor, "draw trial"], trials: Int[Tensor, " trial"]
) -> None:
    is_lost = log_likelihood.isneginf().all(0)
    if is_lost.any():
        raise ArithmeticError(
            f"none of {len(log_likelihood)} initial conditions explains trial"
            f" {int(trials[is_lost][0])}: the trajectories of all of them diverge;"
            " fit longer, or with a lower learning_rate"
        )
