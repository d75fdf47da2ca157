"""Priors on the parameters of a model, and the guide of these parameters::

    theta ~ p(theta)                        prior, drawn once for all trials
    q(theta) = N(parameter, s^2)            guide, entry by entry

A parameter with a prior is a site of the model, named as the parameter, outside the plate over
trials. The location of its guide is the parameter itself, so that the weights of a model mean the
same with a prior and without; the scale s is a parameter of its own.

A prior is kept as its class and arguments, by which a model's card names it.
"""

import difflib
import inspect
import operator
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, TransformedDistribution, constraints
from torch.distributions.transforms import Transform, _InverseTransform

Card = dict[str, Any]
"""A distribution by its class and arguments, ready for JSON."""

START_SCALE = 0.1
"""Initial scale of the guide, as a fraction of the prior's standard deviation (of 1 where it has
none).
"""

ALTERNATIVES = {"scale_tril": ("covariance_matrix", "precision_matrix")}
"""Arguments that stand for one another, of which the first suffices."""


class Priors(nn.Module):
    """The priors of some parameters of a model, and the scales of their guide.

    Args:
        cards: the priors by the names of their parameters.
        parameters: these parameters.

    Attributes:
        cards: as given.
        log_scale: log s of each parameter's guide, of the parameter's shape; slashes stand for the
            dots of a name.
    """

    def __init__(self, cards: Mapping[str, Card], parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.cards = dict(cards)
        self._built: dict[tuple[str, torch.dtype, torch.device], TorchDistributionMixin] = {}
        scales = {}
        for name in self.cards:
            like = parameters[name].detach()
            scale = START_SCALE * _standard_deviation(self.prior(name, like)).to(like)
            scales[name.replace(".", "/")] = nn.Parameter(scale.log())
        self.log_scale = nn.ParameterDict(scales)

    def prior(self, name: str, like: Tensor) -> TorchDistributionMixin:
        """The prior of a parameter, in its shape and precision and on its device."""
        key = name, like.dtype, like.device
        if key not in self._built:
            self._built[key] = _in_shape(distribution_of(self.cards[name], like), like.shape)
        return self._built[key]

    def guide(self, name: str, parameter: Tensor) -> TorchDistributionMixin:
        """The guide of a parameter, N(parameter, s^2)."""
        scale = self.log_scale[name.replace(".", "/")].exp()
        normal: Any = dist.Normal(parameter, scale, validate_args=False)
        return normal.to_event(parameter.ndim)

    def pairs(
        self, model: nn.Module
    ) -> dict[str, tuple[TorchDistributionMixin, TorchDistributionMixin]]:
        """Guide and prior of each parameter."""
        found = {}
        for name in self.cards:
            parameter = _parameter(model, name)
            found[name] = self.guide(name, parameter), self.prior(name, parameter)
        return found


def sites_from_priors(model: Any) -> dict[str, Tensor]:
    """Pyro sites of the parameters of a model that have priors, from these, by name."""
    if model.priors is None:
        return {}
    return {name: pyro.sample(name, p) for name, (_, p) in model.priors.pairs(model).items()}


def sites_from_guide(model: Any) -> dict[str, Tensor]:
    """The same sites, from their guide."""
    if model.priors is None:
        return {}
    return {name: pyro.sample(name, q) for name, (q, _) in model.priors.pairs(model).items()}


def _parameter(model: nn.Module, name: str) -> Tensor:
    parameter: Tensor = operator.attrgetter(name)(model)
    return parameter


def priors_of(
    given: Mapping[str, Any], parameters: Mapping[str, Tensor], of_guide: tuple[str, ...], kind: str
) -> Priors | None:
    """The priors that a user gives for a model.

    Args:
        given: priors, or their cards, by name or pattern of names. Where a name has several
            patterns, the last counts. A pattern leaves out parameters that are fixed or empty.
        parameters: all parameters of the model.
        of_guide: patterns of those of its guide.
        kind: the model's class, for errors.

    Raises:
        ValueError: for a name that the model does not have, and a prior that does not fit its
            parameter or cannot be written to a card.
    """
    cards: dict[str, Card] = {}
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if not any(fnmatchcase(name, pattern) for pattern in of_guide)
    }
    for pattern, prior in given.items():
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if pattern not in named:
            matched = [n for n in matched if named[n].requires_grad and named[n].numel()]
        if not matched:
            raise ValueError(_unknown(pattern, named, parameters, kind))
        for name in matched:
            cards[name] = _checked(name, prior, named[name])
    return Priors(cards, parameters) if cards else None


def _unknown(
    pattern: str, named: Mapping[str, Tensor], parameters: Mapping[str, Tensor], kind: str
) -> str:
    if any(fnmatchcase(name, pattern) for name in parameters):
        return (
            f"{pattern!r} is a parameter of the guide of {kind} alone, on which the model does not"
            " depend, so that it has no prior"
        )
    nearest = difflib.get_close_matches(pattern, named, 1, 0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(named)}"
    return f"{kind} has no parameter {pattern!r} to give a prior; {hint}"


def _checked(name: str, prior: Any, parameter: Tensor) -> Card:
    """The card of a prior that fits its parameter."""
    of = f"the prior of {name!r}"
    if not parameter.requires_grad:
        raise ValueError(f"{of} has no use, since this parameter is fixed (requires_grad is False)")
    if isinstance(prior, dict):
        card = prior
    elif isinstance(prior, Distribution):
        card = _card(prior, of)
    else:
        raise ValueError(
            f"{of} is a {type(prior).__name__}; give a distribution, such as"
            " pyro.distributions.Normal(0, 1)"
        )
    built: Any = distribution_of(card, parameter.detach())
    if not _is_real(built.support):
        raise ValueError(
            f"{of} is a {type(built).__name__}, whose support is not the real line, and this"
            " parameter may be any real number; give the log of a positive quantity the prior"
            " TransformedDistribution(prior, ExpTransform().inv)"
        )
    found, wanted = tuple(built.shape()), tuple(parameter.shape)
    sizes = zip(reversed(found), reversed(wanted), strict=False)
    is_vector = built.event_shape != parameter.shape[parameter.ndim - built.event_dim :]
    if len(found) > len(wanted) or any(n not in (1, m) for n, m in sizes) or is_vector:
        raise ValueError(
            f"{of} has the shape {found}, which does not expand to the parameter's, {wanted}"
        )
    return card


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _in_shape(prior: Any, shape: torch.Size) -> TorchDistributionMixin:
    """A prior expanded to the shape of its parameter, without batch dims."""
    batch = shape[: len(shape) - prior.event_dim]
    expanded: TorchDistributionMixin = prior.expand(batch).to_event(len(batch))
    return expanded


def _standard_deviation(prior: Any) -> Tensor:
    """Of every entry; 1 where it is infinite, undefined or 0."""
    try:
        deviation: Tensor = prior.stddev
    except NotImplementedError:
        return torch.ones(prior.shape())
    is_known = deviation.isfinite() & (deviation > 0)
    return torch.where(is_known, deviation, torch.ones_like(deviation))


# ------------------------------------------------------------------ cards


def _card(prior: Any, of: str) -> Card:
    """The card of a distribution.

    Raises:
        ValueError: if the distribution cannot be made from it again.
    """
    while isinstance(prior, Independent) or type(prior).__name__ == "ExpandedDistribution":
        prior = prior.base_dist
    card: Card
    if isinstance(prior, TransformedDistribution) and type(prior).__name__ == (
        TransformedDistribution.__name__
    ):
        card = {
            "class": TransformedDistribution.__name__,
            "base": _card(prior.base_dist, of),
            "transforms": [_transform_card(transform, of) for transform in prior.transforms],
        }
    else:
        card = {"class": type(prior).__name__, **_arguments(prior)}
    try:
        with torch.random.fork_rng():
            value = prior.sample()
        built: Any = distribution_of(card, value)
        is_same = torch.equal(built.log_prob(value), prior.log_prob(value))
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        is_same = False
    if not is_same or isinstance(prior, dist.Delta):
        raise ValueError(
            f"{of} is a {type(prior).__name__}, which a model's card cannot name; give a"
            " distribution of pyro.distributions with a density on the real line, such as Normal,"
            " StudentT or MultivariateNormal"
        )
    return card


def _arguments(prior: Any) -> dict[str, Any]:
    taken = inspect.signature(type(prior).__init__).parameters
    names = [name for name in prior.arg_constraints if name in taken]
    for name, others in ALTERNATIVES.items():
        if name in names:
            names = [each for each in names if each not in others]
    return {name: _plain(getattr(prior, name)) for name in names}


def _transform_card(transform: Transform, of: str) -> Card:
    if isinstance(transform, _InverseTransform):  # by class: zuko gives it another name
        return {**_transform_card(transform.inv, of), "inverse": True}
    taken = inspect.signature(type(transform).__init__).parameters
    names = [name for name in ("loc", "scale", "exponent") if name in taken]
    if not hasattr(torch.distributions, type(transform).__name__):
        raise ValueError(f"{of} has a {type(transform).__name__}, which a card cannot name")
    return {"class": type(transform).__name__, **{n: _plain(getattr(transform, n)) for n in names}}


def _plain(value: Any) -> Any:
    return value.detach().cpu().tolist() if isinstance(value, Tensor) else value


def distribution_of(card: Card, like: Tensor) -> TorchDistributionMixin:
    """The distribution that a card names, in the precision and on the device of a tensor.

    Raises:
        ValueError: for a card that names none.
    """
    made: TorchDistributionMixin
    try:
        arguments = {**card}
        kind: Any = getattr(dist, arguments.pop("class"))
        _require(kind, Distribution)
        if kind.__name__ == TransformedDistribution.__name__:
            transforms = [_transform_of(each, like) for each in arguments["transforms"]]
            made = dist.TransformedDistribution(
                distribution_of(arguments["base"], like), transforms
            )
        else:
            made = kind(**{name: _tensor(value, like) for name, value in arguments.items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{card!r} names no prior: {reason}") from None
    return made


def _transform_of(card: Card, like: Tensor) -> Transform:
    arguments = {**card}
    kind: Any = getattr(torch.distributions, arguments.pop("class"))
    _require(kind, Transform)
    is_inverse = arguments.pop("inverse", False)
    transform = kind(**{name: _tensor(value, like) for name, value in arguments.items()})
    return transform.inv if is_inverse else transform


def _require(kind: Any, base: type) -> None:
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise AttributeError(f"{kind} is no {base.__name__}")


def _tensor(value: Any, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)
