"""Importance-weighted bounds, per trial::

    IWELBO_K = sum over trials n of  E[ log 1/K sum_k w_n^k ],   w = p(x, z) / q(z | x)

The mean over particles is taken within every trial, and the bound of a minibatch is scaled outside
the logarithm: a scale inside would be a power of the weights, and a single weight for all trials
jointly would degenerate. A site outside the plate over trials is drawn once and enters as in the
ELBO.

Gradients of the guide's parameters (the model's are those of the bound throughout):

* ``iwae``: of the bound itself. Its signal-to-noise ratio falls with K (Rainforth et al. 2018).
* ``stl``: sticking the landing, without the score of q (Roeder et al. 2017). For K = 1 unbiased,
  and with zero variance if q is the posterior; biased for K > 1.
* ``dreg``: doubly reparameterised (Tucker et al. 2019): unbiased, and its signal-to-noise ratio
  rises with K.

Source: Burda et al. 2016.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import TransformedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrodyn.data.batch import Batch
from pyrodyn.infer.fixed_dropout import FixedDropout
from pyrodyn.infer.frozen import frozen
from pyrodyn.infer.guides.site_checks import (
    check_reparameterised,
    check_sites,
    joint_problems,
)
from pyrodyn.infer.objectives.objective import Evaluation, Loss, Objective
from pyrodyn.infer.traces import (
    TRIALS,
    Program,
    drawn_sites,
    guide_program,
    is_local,
    is_plate,
    latent_sites,
    module_of,
    observed_sites,
    point_sites,
    priors_of,
    traced,
    with_particles,
)
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.rollout_cache import constant_weights

GRADIENTS = ("iwae", "stl", "dreg")


class IWELBO(Objective):
    """The importance-weighted bound.

    Args:
        num_particles: K, vectorised.
        gradient: ``"iwae"``, ``"stl"`` or ``"dreg"``, see the module's docstring.
    """

    def __init__(self, num_particles: int, gradient: str = "iwae") -> None:
        super().__init__(num_particles)
        if gradient not in GRADIENTS:
            raise ValueError(
                f"gradient={gradient!r} is unknown; it is one of {', '.join(GRADIENTS)}"
            )
        self.gradient = gradient

    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""
        return {"name": "IWELBO", "num_particles": self.num_particles, "gradient": self.gradient}

    def loss(self, model: Program, guide: Program) -> "IWELBOLoss":
        """The loss of this model and guide."""
        return IWELBOLoss(self, model, guide)


class RWS(Objective):
    """Reweighted wake-sleep (Bornschein & Bengio 2015; the wake phases of both).

    The model maximises the importance-weighted bound, the guide its log density of draws that are
    weighted to follow the posterior. The guide therefore need not be reparameterised, and covers
    the posterior rather than one of its modes. A parameter that model and guide share receives both
    gradients.

    Args:
        num_particles: K, at least 2.
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__(num_particles)
        if num_particles < 2:
            raise ValueError(
                "RWS weights draws relative to each other: num_particles must exceed 1"
            )

    def describe(self) -> dict[str, Any]:
        """The settings, for a model's card."""
        return {"name": "RWS", "num_particles": self.num_particles}

    def loss(self, model: Program, guide: Program) -> "RWSLoss":
        """The loss of this model and guide."""
        owner = module_of(model)
        if isinstance(owner, LatentDynamics):
            owner.require_latents("RWS")
        return RWSLoss(self, model, guide)


class WeightedDraws(NamedTuple):
    """Densities of a guide's draws.

    Attributes:
        log_p: log p(x, local latents) per draw and trial, without the factor by which a minibatch
            stands for its recording.
        log_q: log q of the local latents.
        shared: log p - log q of sites outside the plate over trials, and factors of the model.
        factors: names of those factors.
    """

    log_p: Float[Tensor, "particle trial"]
    log_q: Float[Tensor, "particle trial"]
    shared: Float[Tensor, ""]
    factors: tuple[str, ...]

    @property
    def log_weights(self) -> Float[Tensor, "particle trial"]:
        """Log w."""
        return self.log_p - self.log_q

    def bound(self) -> Float[Tensor, " trial"]:
        """Log of the mean weight of every trial."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))


class IWELBOLoss(Loss):
    """Negative importance-weighted bound."""

    objective: IWELBO

    def __init__(self, objective: IWELBO, model: Program, guide: Program) -> None:
        super().__init__(model, guide)
        self.objective = objective

    @constant_weights()
    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative bound whose gradient is the chosen estimator."""
        num_particles, gradient = self.objective.num_particles, self.objective.gradient
        draws_first = priors_of(self.model) is not None
        if gradient == "iwae":
            drawn = local_draws(guide_program(self.guide), batch, num_particles, draws_first)
            check_reparameterised(drawn, "IWELBO")
            log_q = log_densities(drawn)
            weighted = weighted_draws(self.model, drawn, log_q, batch, num_particles)
            bound = weighted.bound()
            return _evaluation(bound, bound, weighted, batch)
        # Draws that lead back to the guide's parameters, densities of q that do not.
        guide = FixedDropout(guide_program(self.guide))
        drawn = local_draws(guide, batch, num_particles, draws_first)
        check_reparameterised(drawn, "IWELBO")
        _check_has_density(drawn, gradient)
        copies = _CopiedDraws(drawn)
        with _without_gradient(self.guide):
            guide.program = guide_program(_detached(self.guide))
            program = with_particles(guide, num_particles)
            fixed = _with_fixed_parameters(copies.trace) if draws_first else copies.trace
            log_q = log_densities(traced(poutine.replay(program, trace=fixed), batch))
        if draws_first:
            log_q |= log_densities(_outside_trials(drawn))
        weighted = weighted_draws(self.model, copies.trace, log_q, batch, num_particles)
        weights = torch.softmax(weighted.log_weights, 0).detach()
        if gradient == "dreg":
            copies.multiply_gradients(weights)
        surrogate = (weights * weighted.log_weights).sum(0)
        return _evaluation(weighted.bound(), surrogate, weighted, batch)


class RWSLoss(Loss):
    """Negative importance-weighted bound whose gradient is that of reweighted wake-sleep."""

    objective: RWS

    def __init__(self, objective: RWS, model: Program, guide: Program) -> None:
        super().__init__(model, guide)
        self.objective = objective

    def evaluate(self, batch: Batch, step: int | None = None) -> Evaluation:
        """Negative bound with the wake-phase gradients."""
        num_particles = self.objective.num_particles
        draws_first = priors_of(self.model) is not None
        with _DrawnWithoutGradient():
            drawn = local_draws(guide_program(self.guide), batch, num_particles, draws_first)
        log_q = log_densities(drawn)
        weighted = weighted_draws(self.model, drawn, log_q, batch, num_particles)
        weights = torch.softmax(weighted.log_weights, 0).detach()
        surrogate = (weights * (weighted.log_p + weighted.log_q)).sum(0)
        return _evaluation(weighted.bound(), surrogate, weighted, batch)


def _evaluation(
    bound: Float[Tensor, " trial"],
    surrogate: Float[Tensor, " trial"],
    weighted: WeightedDraws,
    batch: Batch,
) -> Evaluation:
    """The bound's value with the surrogate's gradient."""
    total = batch.weight * surrogate.sum() + weighted.shared
    value = batch.weight * bound.sum() + weighted.shared
    with torch.no_grad():
        effective = torch.softmax(weighted.log_weights, 0).square().sum(0).reciprocal()
        logged = {"ess": batch.weight * (effective / len(weighted.log_weights)).sum()}
    return Evaluation(-(total + (value - total).detach()), logged, weighted.factors)


def local_draws(
    guide: Program, batch: Batch, num_particles: int, draws_first: bool = False
) -> poutine.Trace:
    """A trace of K draws per trial of the sites inside the plate over trials, and one draw of the
    sites outside it.

    Args:
        guide: the guide.
        batch: the trials.
        num_particles: K.
        draws_first: whether the guide can only make K draws where it is given those outside, for
            it runs a model at parameters that it draws.
    """
    program = with_particles(guide, num_particles)
    drawn = traced(guide if draws_first else program, batch)
    outside = _outside_trials(drawn).nodes
    if num_particles == 1 or not (outside or draws_first):
        return drawn  # the one run of the guide, and so of its encoder
    once = _outside_trials(drawn if draws_first else traced(guide, batch))
    return traced(poutine.replay(program, trace=once), batch)


def log_densities(drawn: poutine.Trace) -> dict[str, Tensor]:
    """Log q of every draw and factor of a guide's trace, neither scaled nor masked.

    Raises:
        ValueError: for a distribution that can score none but its own last draw.
    """
    log_q = {}
    for name in [*drawn_sites(drawn), *observed_sites(drawn)]:
        site = drawn.nodes[name]
        try:
            log_q[name] = site["fn"].log_prob(site["value"])
        except (KeyError, NotImplementedError) as error:
            if not isinstance(site["fn"], TransformedDistribution):
                raise
            raise ValueError(
                f"the guide's site {name!r} is a flow that has no inverse and so no density of a"
                " given value, which RWS and the gradients 'stl' and 'dreg' need: take ELBO, the"
                " gradient 'iwae', or a flow with an inverse such as affine_autoregressive"
            ) from error
    return log_q


def weighted_draws(
    model: Program,
    drawn: poutine.Trace,
    log_q: Mapping[str, Tensor],
    batch: Batch,
    num_particles: int,
) -> WeightedDraws:
    """Log p and log q of a guide's draws, per draw and trial.

    Args:
        model: replayed on the draws.
        drawn: the guide's trace that holds them.
        log_q: by `log_densities`.
        batch: the trials.
        num_particles: K.

    Raises:
        ValueError: for sites that do not fit the model's, and a guide that draws several trials at
            once, so that no trial has weights of its own.
    """
    program = with_particles(model, num_particles)
    model_trace = traced(poutine.replay(program, trace=drawn), batch)
    check_sites(drawn, model_trace)
    _check_per_trial(drawn, model_trace)
    observed = observed_sites(model_trace)
    log_p = {
        name: model_trace.nodes[name]["fn"].log_prob(model_trace.nodes[name]["value"])
        for name in [*latent_sites(drawn), *observed]
    }
    shape = (num_particles, batch.num_trials)
    zero = batch.seen.new_zeros(())
    total_p, total_q, shared = zero.expand(shape), zero.expand(shape), zero
    for trace, sign, log_probs in ((model_trace, 1, log_p), (drawn, -1, log_q)):
        for name, log_prob in log_probs.items():
            site = trace.nodes[name]
            if not is_local(site):
                # One draw, which the plate over particles has repeated for all of them.
                term = scale_and_mask(log_prob, site["scale"], site["mask"])
                shared = shared + sign * term.sum() / _num_copies(term, num_particles)
                continue
            # The model's scale and mask for both: a guide need not know the size of the recording.
            # An auxiliary site of the guide is scaled as one of the model's.
            scale, mask = 1.0, site["mask"]
            if name in model_trace:
                scale = model_trace.nodes[name]["scale"] / batch.weight
                mask = model_trace.nodes[name]["mask"]
            term = scale_and_mask(log_prob, scale, mask)
            if sign > 0:
                total_p = total_p + term
            else:
                total_q = total_q + term
    factors = tuple(name for name in observed if name != "x")
    return WeightedDraws(total_p.expand(shape), total_q.expand(shape), shared, factors)


def _check_per_trial(drawn: poutine.Trace, model_trace: poutine.Trace) -> None:
    """Refuse a model or a guide in which trials have no weights of their own."""
    observed = model_trace.nodes.get("x")
    if observed is not None and not is_local(observed):
        raise ValueError(
            f"the model observes 'x' outside a plate named {TRIALS!r}, by which the trials are"
            f" known: take pyro.plate({TRIALS!r}, batch.num_trials, dim=-1) in model and guide"
        )
    for problem in joint_problems(drawn, model_trace):
        raise ValueError(problem)


def _check_has_density(drawn: poutine.Trace, gradient: str) -> None:
    """Refuse a guide of point masses, for gradients that differ by the score of q alone."""
    names = drawn_sites(drawn)
    if point_sites(drawn) == names:
        raise ValueError(
            f"the guide puts all mass of {names[0]!r} on one point (AutoDelta does), so that there"
            f" is no density for gradient={gradient!r} to treat otherwise: take 'iwae' or ELBO"
        )


def _num_copies(term: Tensor, num_particles: int) -> int:
    return num_particles if term.ndim >= 2 and term.shape[-2] == num_particles else 1


class _CopiedDraws:
    """A guide's draws, each replaced by a copy whose gradient can be multiplied before it flows on
    into the guide.

    A copy, because the gradient of a draw from which another draw was made includes that of the
    other draw, which belongs to the guide.

    Args:
        drawn: the guide's trace.

    Attributes:
        trace: the same with the copies.
    """

    def __init__(self, drawn: poutine.Trace) -> None:
        self.trace = drawn.copy()
        self._multiplier = _Multiplier()
        for name in drawn_sites(drawn):
            site = dict(drawn.nodes[name])
            value = site["value"]
            if value.requires_grad and torch.is_grad_enabled() and is_local(site):
                copied = value * 1
                copied.register_hook(self._multiplier)
                site["value"] = copied
            self.trace.nodes[name] = site

    def multiply_gradients(self, weights: Float[Tensor, "particle trial"]) -> None:
        """Multiply the gradient of every copy by its draw's weight."""
        self._multiplier.weights = weights


class _Multiplier:
    """The factor by which gradients of draws are multiplied, once it is known.

    It must not refer to the draws whose hook it is: Python's collector does not see through
    autograd's nodes, so that such a cycle would keep the graph of every step.

    Attributes:
        weights: per draw; None for 1.
    """

    weights: Float[Tensor, "particle trial"] | None = None

    def __call__(self, grad: Tensor) -> Tensor:
        """The gradient that flows on into the guide."""
        if self.weights is None:
            return grad
        weights = self.weights if grad.ndim >= 2 and len(self.weights) > 1 else self.weights[0]
        return grad * weights.reshape(*weights.shape, *[1] * (grad.ndim - weights.ndim))


class _DrawnWithoutGradient(Messenger):
    """Draws made inside carry no gradient; densities keep that of their parameters.

    Those that all trials share keep it where they are reparameterised, for they enter as in the
    ELBO.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if is_plate(msg) or msg["done"] or msg["is_observed"]:
            return
        if not is_local(msg) and msg["fn"].has_rsample:
            return
        with torch.no_grad():
            # A copy: a distribution that recognises its own draw may score it by values that it
            # cached without a gradient.
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"]).clone()
        msg["done"] = True


@contextlib.contextmanager
def _without_gradient(guide: Program) -> Iterator[None]:
    """Densities computed inside do not lead back to the guide's parameters.

    Raises:
        ValueError: for a guide that is no module's, whose parameters cannot be known.
    """
    module = module_of(guide)
    if module is None:
        raise ValueError(
            "the gradients 'stl' and 'dreg' need the guide's parameters: make the guide a"
            " torch.nn.Module or a method of one"
        )
    with frozen(p for p in module.parameters() if p.is_leaf):
        yield


def _outside_trials(drawn: poutine.Trace) -> poutine.Trace:
    """The drawn sites of a guide's trace that all trials share."""
    kept = poutine.Trace()
    for name in drawn_sites(drawn):
        if not is_local(drawn.nodes[name]):
            kept.nodes[name] = drawn.nodes[name]
    return kept


def _with_fixed_parameters(drawn: poutine.Trace) -> poutine.Trace:
    """A guide's trace whose values that all trials share lead back to nothing: the guide draws
    trials by a model at these values.
    """
    fixed = drawn.copy()
    for name in _outside_trials(drawn).nodes:
        fixed.nodes[name] = {**drawn.nodes[name], "value": drawn.nodes[name]["value"].detach()}
    return fixed


def _detached(guide: Program) -> Program:
    """A guide whose densities do not lead back to values drawn for parameters of its model."""
    model = getattr(guide, "__self__", None)
    if not isinstance(model, LatentDynamics):
        return guide
    drawn = {name: p.detach() for name, p in model.named_parameters() if not p.is_leaf}
    program: Program = getattr(model.at(drawn), guide.__name__) if drawn else guide
    return program
