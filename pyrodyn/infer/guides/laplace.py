"""Laplace approximation of the initial condition::

    q(s | x) = N(s*, H^-1),   s* = argmax_s L(s),   H = -d^2 L / ds^2  at s*

Scoring ascends L (see `StartGuide`) from the encoder's estimate, each step damped per trial until
it improves L::

    s <- s + stretch (F + damping diag(F))^-1 dL/ds
    F = Lambda + sum_e g_e g_e',   g_e = d log p(x_e | s) / ds,   Lambda the precision of p(s)

on the first bins only and then on more of them: the likelihood of late bins of a chaotic trajectory
has many local maxima until early bins have determined s roughly. A search adds one bin only once it
has converged on those before; this finds more modes than restarting does. Far from the mode F is
much larger than H, so when little damping is left and steps still improve L, they are stretched.
The scores g_e are central differences (2 dim more trajectories), so any model will do; H comes from
differences of gradients, and a few Newton steps with it end the search.

Sources: Berndt, Hall, Hall & Hausman 1974 (scoring by the outer product); Marquardt 1963 (damping).
"""

from typing import NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.infer.guides.initial_condition import StartGuide
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.state_space import Distribution, StateSpaceModel

DIFFERENCE = 1e-3
"""Half the distance of central differences, in standard deviations of p(s)."""

FIRST_DAMPING, LEAST_DAMPING, DAMPING_FACTOR = 1e-2, 1e-4, 5.0
"""Initial and smallest damping, and the factor by which success lowers and failure raises it."""

MOST_STRETCH = 100.0
"""Largest stretch; it is LEAST_DAMPING / damping where damping is below the least."""

DEFAULT_STEPS = 480
"""Of a search by default; more for trials of more bins."""

CONVERGED_GAIN = 1.0
"""Nats: a search whose next step is expected to gain less adds one bin."""

LEAST_GAIN = 1e-4
"""Nats: a search over all bins ends when its next step is expected to gain less."""

NUM_NEWTON_STEPS = 2
"""Final steps with H itself in place of F."""


class _Ascent(NamedTuple):
    """State of the searches.

    Attributes:
        start: s.
        bins: how many of the first bins are scored.
        damping: of the next step, and its stretch.
        expected_gain: of the last step, by the quadratic model of L and F, in nats.
    """

    start: Float[Tensor, "search dim"]
    bins: Int[Tensor, " search"]
    damping: Float[Tensor, " search"]
    expected_gain: Float[Tensor, " search"]

    def take(self, searches: Int[Tensor, " search"]) -> "_Ascent":
        """Some of them."""
        return _Ascent(*(each[searches] for each in self))

    def put(self, searches: Int[Tensor, " search"], moved: "_Ascent") -> "_Ascent":
        """These, with some of them replaced."""
        pairs = zip(self, moved, strict=True)
        return _Ascent(*(each.index_copy(0, searches, new) for each, new in pairs))


class LaplaceStart(StartGuide):
    """A guide that solves for the most likely initial condition of every trial.

    Pass it to `predict`, `to_datatree` or `importance_sample` as ``guide=LaplaceStart(model)``. If
    several initial conditions explain a trial, use `MixtureStart`.

    Args:
        model: a fitted model whose only latent is its initial condition; its own guide gives the
            initial estimates.
        num_searches: searches per trial, from the mean of the model's own guide and from draws of
            it; the best is kept.
        num_steps: largest number of steps per search, at most half of them on fewer bins than all.
            By default as many as a trial has bins, and at least `DEFAULT_STEPS`.

    Raises:
        ValueError: for a model with other latent sites.
    """

    def __init__(
        self,
        model: StateSpaceModel | Fit[StateSpaceModel],
        *,
        num_searches: int = 4,
        num_steps: int | None = None,
    ) -> None:
        super().__init__(model)
        check_integer(1, num_searches=num_searches)
        if num_steps is not None:
            check_integer(2, num_steps=num_steps)
        self.num_searches, self.num_steps = num_searches, num_steps

    def _solve(self, batch: Batch, num_bins: int) -> Distribution:
        """A multivariate normal."""
        mode = self._mode(batch, num_bins)
        gradient, root = self._curvature(mode, batch, num_bins)
        for _ in range(NUM_NEWTON_STEPS):
            step = root @ (root.mT @ gradient[..., None])
            tried = mode + step[..., 0].to(mode)
            before, after = (self._log_joint(s, batch, num_bins) for s in (mode, tried))
            mode = torch.where((after > before)[:, None], tried, mode)
            gradient, root = self._curvature(mode, batch, num_bins)
        triangle = torch.linalg.qr(root.mT).R.mT  # L with L L' = R R'
        triangle = triangle * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        return dist.MultivariateNormal(mode, scale_tril=triangle.to(mode), validate_args=False)

    def _mode(self, batch: Batch, num_bins: int) -> Float[Tensor, "trial dim"]:
        """The best end point of all searches."""
        guess = self._guess(batch)
        start = torch.cat([guess.mean[None], guess.sample((self.num_searches - 1,))])
        trials = torch.arange(batch.num_trials, device=start.device)
        searched = batch.take(trials.repeat(self.num_searches))
        zeros = torch.zeros_like(start[..., 0]).flatten()
        ascent = _Ascent(start.flatten(0, 1), zeros.long(), zeros, zeros + torch.inf)
        num_steps = self.num_steps or max(DEFAULT_STEPS, num_bins)
        for step in range(1, num_steps + 1):
            is_open = (ascent.bins < num_bins) | (ascent.expected_gain > LEAST_GAIN)
            unfinished = is_open.nonzero()[:, 0]
            if not len(unfinished):
                break
            least = min(num_bins, -(-2 * num_bins * step // num_steps))
            moved = self._extended(ascent.take(unfinished), least, num_bins)
            ascent = ascent.put(unfinished, self._stepped(moved, searched.take(unfinished)))
        ends = ascent.start.unflatten(0, (self.num_searches, -1))
        return ends[self._log_joint(ends, batch, num_bins).argmax(0), trials]

    def _extended(self, ascent: _Ascent, least: int, most: int) -> _Ascent:
        """With one more bin where a search has converged, and with at least ``least`` bins."""
        more = ascent.bins + (ascent.expected_gain < CONVERGED_GAIN)
        bins = more.clamp(least, most)
        damping = torch.where(bins > ascent.bins, FIRST_DAMPING, ascent.damping)
        return ascent._replace(bins=bins, damping=damping)

    def _stepped(self, ascent: _Ascent, batch: Batch) -> _Ascent:
        """One step of each search; search n belongs to trial n of the batch."""
        start, bins, damping, _ = ascent
        num_bins = int(bins.max())
        is_scored = torch.arange(batch.num_bins, device=bins.device) < (
            self.model.first_bin + bins[:, None]
        )
        batch = batch.replace(visible=batch.visible & is_scored[..., None])
        before, gradient, F = self._scores(start, batch, num_bins)
        damped = F + torch.diag_embed(damping[..., None] * F.diagonal(dim1=-2, dim2=-1))
        step = torch.linalg.solve(damped, gradient)
        stretch = (LEAST_DAMPING / damping).clamp_min(1.0)
        tried = start + (stretch[..., None] * step).to(start)
        is_better = self._log_joint(tried, batch, num_bins) > before
        moved = torch.where(is_better, damping / DAMPING_FACTOR, damping * DAMPING_FACTOR)
        return _Ascent(
            torch.where(is_better[..., None], tried, start),
            bins,
            moved.clamp_min(LEAST_DAMPING / MOST_STRETCH),
            0.5 * (step * gradient).sum(-1).to(start),
        )

    def _scores(
        self, start: Float[Tensor, "search dim"], batch: Batch, num_bins: int
    ) -> tuple[
        Float[Tensor, " search"],
        Float[Tensor, "search dim"],
        Float[Tensor, "search dim dim"],
    ]:
        """L, its gradient and F, from trajectories at s and at displaced s."""
        prior, steps = self.model.initial_condition(), self._steps()
        places = torch.cat([torch.zeros_like(steps[:1]), steps, -steps])
        terms = self._terms(start + places[:, None], batch, num_bins)
        here, ahead, behind = terms.split([1, len(steps), len(steps)])
        scores = ((ahead - behind).movedim(0, -1) / (2 * steps.sum(0))).double()
        scores = scores.nan_to_num(0.0, 0.0, 0.0)  # of diverged trajectories
        gradient = scores.sum(-2) - (start - prior.mean) / prior.variance
        F = scores.mT @ scores + torch.diag(prior.variance.reciprocal())
        return self._with_prior(here[0], start), gradient, F

    def _log_joint(
        self, start: Float[Tensor, "*left trial dim"], batch: Batch, num_bins: int
    ) -> Float[Tensor, "*left trial"]:
        """L over the first bins that the model generates."""
        return self._with_prior(self._terms(start, batch, num_bins), start)

    def _with_prior(
        self, terms: Float[Tensor, "*left trial entry"], start: Float[Tensor, "*left trial dim"]
    ) -> Float[Tensor, "*left trial"]:
        """L from its terms; minus infinity for a diverged trajectory."""
        total = terms.sum(-1, dtype=torch.float64)  # near the mode the last digits matter
        return (total + self.model.initial_condition().log_prob(start)).nan_to_num(nan=-torch.inf)

    def _curvature(
        self, mode: Float[Tensor, "trial dim"], batch: Batch, num_bins: int
    ) -> tuple[Float[Tensor, "trial dim"], Float[Tensor, "trial dim dim"]]:
        """The gradient of `_log_joint`, and a root R of H^-1 = R R'.

        Eigenvalues of H are at least those of the prior's precision, in case a search ended early.
        """
        steps = self._steps()
        sides = torch.cat([steps, -steps])[:, None]
        with torch.enable_grad():
            start = (mode + sides).requires_grad_()
            log_joint = self._log_joint(start, batch, num_bins).sum()
            (gradients,) = torch.autograd.grad(log_joint, start)
        ahead, behind = gradients.double().nan_to_num(0.0, 0.0, 0.0).chunk(2)
        scale = self.model.initial_condition().stddev.double()
        # In units of the prior's standard deviations, where its precision is 1.
        H = ((behind - ahead) / (2 * steps.sum(0)[:, None, None])).movedim(0, -1)
        H = H * scale[:, None] * scale
        values, vectors = torch.linalg.eigh(0.5 * (H + H.mT))
        root = scale[:, None] * vectors * values.clamp_min(1.0).rsqrt()[..., None, :]
        return 0.5 * (ahead + behind).mean(0), root

    def _steps(self) -> Float[Tensor, "dim dim"]:
        """Displacements of the central differences, one row per direction."""
        return torch.diag(DIFFERENCE * self.model.initial_condition().stddev)
