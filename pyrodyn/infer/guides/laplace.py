"""Where a trial started, by its most likely first state::

    q(s | x) = N(s*, H^-1),   s* = argmax_s L(s),   H = -d^2 L / ds^2  at s*

Scoring climbs L (see `StartGuide`) from the encoder's guess, each step damped per trial until it
helps::

    s <- s + stretch (F + damping diag(F))^-1 dL/ds
    F = Lambda + sum_e g_e g_e',   g_e = d log p(x_e | s) / ds,   Lambda the precision of p(s)

on the first bins at first and then on more of them: late bins of a chaotic path have a likelihood
full of local maxima until early bins have fixed s roughly. Patience finds more than many searches
do: where a search counts one bin more only once it has settled on those before, hardly any is lost
on the way. Far from the mode F is made of misfits and much larger than H, so that where hardly any
damping is left and steps go on helping, they are stretched. The scores g_e are central differences,
2 dim paths more, so that any model will do; H is one of gradients, and ends the search by Newton's
steps.

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
from pyrodyn.models.state_space import Distribution, StateSpaceModel

DIFFERENCE = 1e-3
"""Half the distance of central differences, in standard deviations of p(s)."""

FIRST_DAMPING, LEAST_DAMPING, DAMPING_FACTOR = 1e-2, 1e-4, 5.0
"""Damping at first, at least, and what success divides and failure multiplies it by."""

MOST_STRETCH = 100.0
"""At most; damping below the least says how much: LEAST_DAMPING / damping."""

FEWEST_STEPS = 480
"""That a search may take by default; more for trials of more bins."""

SETTLED_PROMISE = 1.0
"""Nats: a search whose next step promises less counts one bin more."""

LEAST_PROMISE = 1e-4
"""Nats: a search that counts all bins ends where its next step promises less."""

NUM_NEWTON_STEPS = 2
"""Steps with H itself at the end, of which scoring has only an estimate."""


class _Climb(NamedTuple):
    """Where searches stand.

    Attributes:
        start: s.
        bins: how many of the first bins count.
        damping: of the next step, and its stretch.
        promise: how much better the last step was to make it, as L and F told, in nats.
    """

    start: Float[Tensor, "search dim"]
    bins: Int[Tensor, " search"]
    damping: Float[Tensor, " search"]
    promise: Float[Tensor, " search"]

    def take(self, searches: Int[Tensor, " search"]) -> "_Climb":
        """Some of them."""
        return _Climb(*(each[searches] for each in self))

    def put(self, searches: Int[Tensor, " search"], moved: "_Climb") -> "_Climb":
        """These, with some of them moved."""
        pairs = zip(self, moved, strict=True)
        return _Climb(*(each.index_copy(0, searches, new) for each, new in pairs))


class LaplaceStart(StartGuide):
    """A guide that solves for the most likely first state of every trial.

    Hand it to `predict`, `to_datatree` or `importance_sample` as ``guide=LaplaceStart(model)``.
    Where trials leave several first states open, `MixtureStart` tells all of them.

    Args:
        model: a fitted model whose only latent is its start; its own guide gives the first guesses.
        num_searches: searches per trial, from the mean of the model's own guide and from draws of
            it; the best is kept.
        num_steps: most steps per search, half of them at most on fewer bins than all. By default as
            many as a trial has bins, and at least `FEWEST_STEPS`.

    Raises:
        ValueError: for a model that draws more than its start.
    """

    def __init__(
        self, model: StateSpaceModel, *, num_searches: int = 4, num_steps: int | None = None
    ) -> None:
        super().__init__(model)
        check_integer(1, num_searches=num_searches)
        if num_steps is not None:
            check_integer(2, num_steps=num_steps)
        self.num_searches, self.num_steps = num_searches, num_steps

    def _solve(self, batch: Batch, num_bins: int) -> Distribution:
        """A multivariate normal."""
        mode = self._climbed(batch, num_bins)
        gradient, root = self._curved(mode, batch, num_bins)
        for _ in range(NUM_NEWTON_STEPS):
            step = root @ (root.mT @ gradient[..., None])
            tried = mode + step[..., 0].to(mode)
            before, after = (self._log_joint(s, batch, num_bins) for s in (mode, tried))
            mode = torch.where((after > before)[:, None], tried, mode)
            gradient, root = self._curved(mode, batch, num_bins)
        triangle = torch.linalg.qr(root.mT).R.mT  # of the same product with its own transpose
        triangle = triangle * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        return dist.MultivariateNormal(mode, scale_tril=triangle.to(mode), validate_args=False)

    def _climbed(self, batch: Batch, num_bins: int) -> Float[Tensor, "trial dim"]:
        """The best end of all searches."""
        guess = self._guess(batch)
        start = torch.cat([guess.mean[None], guess.sample((self.num_searches - 1,))])
        trials = torch.arange(batch.num_trials, device=start.device)
        searched = batch.take(trials.repeat(self.num_searches))
        zeros = torch.zeros_like(start[..., 0]).flatten()
        climb = _Climb(start.flatten(0, 1), zeros.long(), zeros, zeros + torch.inf)
        num_steps = self.num_steps or max(FEWEST_STEPS, num_bins)
        for step in range(1, num_steps + 1):
            is_open = (climb.bins < num_bins) | (climb.promise > LEAST_PROMISE)
            going = is_open.nonzero()[:, 0]
            if not len(going):
                break
            least = min(num_bins, -(-2 * num_bins * step // num_steps))
            moved = self._grown(climb.take(going), least, num_bins)
            climb = climb.put(going, self._stepped(moved, searched.take(going)))
        ends = climb.start.unflatten(0, (self.num_searches, -1))
        return ends[self._log_joint(ends, batch, num_bins).argmax(0), trials]

    def _grown(self, climb: _Climb, least: int, most: int) -> _Climb:
        """With a bin more where a search has settled, and at least so many anyway."""
        more = climb.bins + (climb.promise < SETTLED_PROMISE)
        bins = more.clamp(least, most)
        damping = torch.where(bins > climb.bins, FIRST_DAMPING, climb.damping)
        return climb._replace(bins=bins, damping=damping)

    def _stepped(self, climb: _Climb, batch: Batch) -> _Climb:
        """One step of each search, which has a trial of the batch each."""
        start, bins, damping, _ = climb
        num_bins = int(bins.max())
        is_counted = torch.arange(batch.num_bins, device=bins.device) < (
            self.model.first_bin + bins[:, None]
        )
        batch = batch.replace(visible=batch.visible & is_counted[..., None])
        before, gradient, F = self._scored(start, batch, num_bins)
        damped = F + torch.diag_embed(damping[..., None] * F.diagonal(dim1=-2, dim2=-1))
        step = torch.linalg.solve(damped, gradient)
        stretch = (LEAST_DAMPING / damping).clamp_min(1.0)
        tried = start + (stretch[..., None] * step).to(start)
        is_better = self._log_joint(tried, batch, num_bins) > before
        moved = torch.where(is_better, damping / DAMPING_FACTOR, damping * DAMPING_FACTOR)
        return _Climb(
            torch.where(is_better[..., None], tried, start),
            bins,
            moved.clamp_min(LEAST_DAMPING / MOST_STRETCH),
            0.5 * (step * gradient).sum(-1).to(start),
        )

    def _scored(
        self, start: Float[Tensor, "search dim"], batch: Batch, num_bins: int
    ) -> tuple[
        Float[Tensor, " search"],
        Float[Tensor, "search dim"],
        Float[Tensor, "search dim dim"],
    ]:
        """L, its gradient and F, from one roll of a path and those to either side of it."""
        prior, steps = self.model.initial_condition(), self._steps()
        places = torch.cat([torch.zeros_like(steps[:1]), steps, -steps])
        terms = self._terms(start + places[:, None], batch, num_bins)
        here, ahead, behind = terms.split([1, len(steps), len(steps)])
        scores = ((ahead - behind).movedim(0, -1) / (2 * steps.sum(0))).double()
        scores = scores.nan_to_num(0.0, 0.0, 0.0)  # of paths that have run off
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
        """L from its terms; of a path that runs off, less than of any other."""
        told = terms.sum(-1, dtype=torch.float64)  # near the mode the last digits decide
        return (told + self.model.initial_condition().log_prob(start)).nan_to_num(nan=-torch.inf)

    def _curved(
        self, mode: Float[Tensor, "trial dim"], batch: Batch, num_bins: int
    ) -> tuple[Float[Tensor, "trial dim"], Float[Tensor, "trial dim dim"]]:
        """The gradient of `_log_joint`, and a root R of H^-1 = R R'.

        H is nowhere taken for less than the prior's precision, should the search have ended early.
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
        """Where central differences look, one row per direction."""
        return torch.diag(DIFFERENCE * self.model.initial_condition().stddev)
