"""Where a trial may have started: all first states that explain it, by a mixture of normals that
learns from its own draws::

    s_k ~ q_r(s),   w_k = p(s_k) p(x | s_k)^beta / mean_r q_r(s_k)      k: draws of all rounds r

    q_0      half p(s), half what the model's own guide says
    q_{r+1}  DEFENCE p(s) + (1 - DEFENCE) / C sum_c N(s; m_c, S_c)

with m_c drawn from the weighed s_k, and S_c the covariance of those near m_c. Each round asks as
much of the likelihood as all draws so far can tell: beta is the largest power, at most 1, at which
they are worth `FEWEST_COUNT` of a round's draws. A trial is done when that is 1, and the mixture
made then is its law. Sparse counts leave several first states open, or a curved set of them, of
which a single normal (`LaplaceStart`) covers a part; the mixture covers them all, as long as s has
few dimensions. It is wider than the posterior, on purpose: importance weights make exact what its
draws miss, and tell how much that is (``method="importance"``); the share of p(s) keeps them below
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
from pyrodyn.models.state_space import Distribution, StateSpaceModel

DEFENCE = 0.1
"""Share of p(s)."""

NUM_KERNELS = 64
"""C; a draw of high weight has several."""

WHOLE_COUNT = 3.0
"""Draws that the whole cloud counts for in S_c, beside those near."""

FEWEST_COUNT = 0.2
"""Effective sample size, in draws of a round, from which the next mixture may be made."""

MOST_ROUNDS = 20
"""After which a trial is left with the mixture that it has."""

POWERS = torch.logspace(-6, 0, 121)
"""Values of beta to choose from."""

JITTER = 1e-10
"""Of p(s)'s variance: what is added to the cloud's, lest it be singular."""

MOST_ENTRIES = 2**24
"""Observations whose likelihood is worked out at once."""


class _Mixture(NamedTuple):
    """Mixtures of normals, one per trial.

    Attributes:
        centres: m_c.
        roots: lower triangles of S_c.
        shares: weights of components, the same for all trials.
    """

    centres: Float[Tensor, "trial component dim"]
    roots: Float[Tensor, "trial component dim dim"]
    shares: Float[Tensor, " component"]

    @classmethod
    def of(cls, prior: Distribution, guess: Distribution) -> "_Mixture":
        """q_0, from laws with independent dims."""
        means = prior.mean.expand_as(guess.mean), guess.mean
        scales = prior.stddev.expand_as(guess.mean), guess.stddev
        centres, roots = torch.stack(means, 1), torch.diag_embed(torch.stack(scales, 1))
        return cls(centres, roots, centres.new_tensor([0.5, 0.5]))

    @classmethod
    def with_mean(
        cls,
        drawn: Float[Tensor, "draw trial dim"],
        weights: Float[Tensor, "draw trial"],
        prior: Distribution,
    ) -> "_Mixture":
        """The next mixture, from weighed draws."""
        like, dim = drawn, drawn.shape[-1]
        drawn, weights = drawn.transpose(0, 1).double(), weights.T
        chosen = torch.multinomial(weights, NUM_KERNELS, replacement=True)
        chosen = chosen[..., None].expand(-1, -1, dim)
        # In units of the whole cloud, whose mean is 0 and covariance the identity.
        left = drawn - (weights[..., None] * drawn).sum(1, keepdim=True)
        whole = left.mT @ (weights[..., None] * left) + torch.diag(JITTER * prior.variance)
        root = torch.linalg.cholesky(whole)
        y = torch.linalg.solve_triangular(root, left.mT, upper=False).mT
        # Of a cloud that is normal, those near have Silverman's covariance, `width` of the whole.
        width = (4 / (NUM_KERNELS * (dim + 2))) ** (2 / (dim + 4))
        distance = torch.cdist(y.gather(1, chosen), y).square() * (1 - width) / width
        near = (weights.log()[:, None] - 0.5 * distance).softmax(-1)
        mean = near @ y
        covariance = torch.einsum("tck,tkd,tke->tcde", near, y, y)
        covariance = covariance - mean[..., None] * mean[..., None, :]
        count = 1 / near.square().sum(-1)[..., None, None]
        all_alike = WHOLE_COUNT * width * torch.eye(dim).to(y)
        covariance = (count * covariance + all_alike) / (count + WHOLE_COUNT)
        roots = root[:, None] @ torch.linalg.cholesky(covariance)
        aside = prior.mean.expand(len(drawn), 1, -1)
        aside_root = torch.diag(prior.stddev).expand(len(drawn), 1, -1, -1)
        shares = y.new_tensor([*[(1 - DEFENCE) / NUM_KERNELS] * NUM_KERNELS, DEFENCE])
        centres, roots = (
            torch.cat([drawn.gather(1, chosen), aside], 1),
            torch.cat([roots, aside_root], 1),
        )
        return cls(centres.to(like), roots.to(like), shares.to(like))

    def take(self, trials: Int[Tensor, " trial"]) -> "_Mixture":
        """Those of some trials."""
        return _Mixture(self.centres[trials], self.roots[trials], self.shares)

    def put(self, trials: Int[Tensor, " trial"], others: "_Mixture") -> "_Mixture":
        """With those of some trials replaced."""
        centres = self.centres.index_copy(0, trials, others.centres)
        return _Mixture(centres, self.roots.index_copy(0, trials, others.roots), self.shares)

    def law(self) -> Distribution:
        """As a law of s per trial."""
        return dist.MixtureSameFamily(
            dist.Categorical(self.shares.expand(len(self.centres), -1)),
            dist.MultivariateNormal(self.centres, scale_tril=self.roots, validate_args=False),
            validate_args=False,
        )


class _Cloud(NamedTuple):
    """Draws of all rounds.

    Attributes:
        drawn: s_k.
        told: log p(x | s_k).
        log_sum: log of the sum over rounds of q_r(s_k).
        mixtures: q_r.
    """

    drawn: Float[Tensor, "draw trial dim"]
    told: Float[Tensor, "draw trial"]
    log_sum: Float[Tensor, "draw trial"]
    mixtures: tuple[_Mixture, ...]

    def grown(
        self,
        mixture: _Mixture,
        drawn: Float[Tensor, "draw trial dim"],
        told: Float[Tensor, "draw trial"],
    ) -> "_Cloud":
        """With those of one round more."""
        mixtures = (*self.mixtures, mixture)
        before = torch.logaddexp(self.log_sum, mixture.law().log_prob(self.drawn))
        now = torch.stack([each.law().log_prob(drawn) for each in mixtures]).logsumexp(0)
        return _Cloud(
            torch.cat([self.drawn, drawn]),
            torch.cat([self.told, told]),
            torch.cat([before, now]),
            mixtures,
        )

    def weights(
        self, prior: Distribution, fewest: float
    ) -> tuple[Float[Tensor, "draw trial"], Bool[Tensor, " trial"]]:
        """w_k, normalised, at the largest beta that leaves so many; and whether that is 1."""
        untold = (prior.log_prob(self.drawn) - self.log_sum).double()
        powers = POWERS.to(self.told)
        counts = torch.stack([effective_sample_size(untold + b * self.told) for b in powers])
        is_enough = counts >= fewest
        place = torch.arange(len(powers), device=counts.device)[:, None]
        # Where none leaves so many, that which leaves most.
        best = torch.where(is_enough.any(0), (place * is_enough).argmax(0), counts.argmax(0))
        weights = (untold + powers[best] * self.told).softmax(0)
        return weights, best == len(powers) - 1

    def take(self, trials: Int[Tensor, " trial"]) -> "_Cloud":
        """Those of some trials."""
        return _Cloud(
            self.drawn[:, trials],
            self.told[:, trials],
            self.log_sum[:, trials],
            tuple(mixture.take(trials) for mixture in self.mixtures),
        )


class MixtureStart(StartGuide):
    """A guide that covers all first states that explain a trial.

    Hand it to `predict`, `to_datatree` or `importance_sample` as ``guide=MixtureStart(model)``; for
    draws of the exact posterior, with ``method="importance"``.

    Args:
        model: a fitted model whose only latent is its start.
        num_draws: per trial and round.

    Raises:
        ValueError: for a model that draws more than its start, or fewer draws than kernels.
        ArithmeticError: once solved for, for a trial of which all draws' paths run off.
    """

    def __init__(self, model: StateSpaceModel, *, num_draws: int = 500) -> None:
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
            drawn = mixture.law().sample((self.num_draws,))
            told = self._log_likelihood(drawn, batch.take(trials), num_bins)
            cloud = cloud.grown(mixture, drawn, told)
            _check_told(cloud.told, batch.trial[trials])
            weights, is_done = cloud.weights(prior, FEWEST_COUNT * self.num_draws)
            mixture = _Mixture.with_mean(cloud.drawn, weights, prior)
            learned = learned.put(trials, mixture) if round_ else mixture
            going = (~is_done).nonzero()[:, 0]
            if not len(going):
                break
            trials, mixture, cloud = trials[going], mixture.take(going), cloud.take(going)
        return learned.law()

    def _log_likelihood(
        self, drawn: Float[Tensor, "draw trial dim"], batch: Batch, num_bins: int
    ) -> Float[Tensor, "draw trial"]:
        """Log p(x | s); of a path that runs off, less than of any other."""
        per_draw = batch.num_trials * num_bins * batch.seen.shape[-1]
        parts = drawn.split(max(1, MOST_ENTRIES // per_draw))
        told = [self._terms(part, batch, num_bins).sum(-1, dtype=torch.float64) for part in parts]
        return torch.cat(told).nan_to_num(nan=-torch.inf)


def _check_told(told: Float[Tensor, "draw trial"], trials: Int[Tensor, " trial"]) -> None:
    is_lost = told.isneginf().all(0)
    if is_lost.any():
        raise ArithmeticError(
            f"of {len(told)} first states none explains trial {int(trials[is_lost][0])}: the paths"
            " from all of them run off; fit longer, or with a lower learning_rate"
        )
