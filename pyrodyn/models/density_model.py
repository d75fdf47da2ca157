"""A state-space model of one's own, from three functions::

    z_1 ~ initial(inputs_1)
    z_t ~ transition(z_{t-1}, inputs_t)
    x_t ~ emission(z_t)

`StateSpaceModel.of` builds one. The functions return plain distributions of torch or Pyro, and must
treat all dims but the last alike: among the left dims of z are particles, trials and bins. For a
model that needs more (a state beyond z, an initial condition, fast paths) subclass
`StateSpaceModel` itself.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution as AnyDistribution
from torch.distributions import Independent

from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.latent_dynamics import check_config
from pyrodyn.models.observations import OBSERVATIONS, ObservationSpec
from pyrodyn.models.observations import observation as observation_model
from pyrodyn.models.parameters import parameters_behind
from pyrodyn.models.proposals import EncoderFactor, GeneralEncoderFactor, gaussian_of
from pyrodyn.models.state_space import Bootstrap, Distribution, Proposal, StateSpaceModel

PROPOSALS = ("encoder", "causal_encoder", "bootstrap")

LEFT = (2, 3)
"""Left dims with which the functions are tried: particles and trials."""


class PathState(NamedTuple):
    """State of a model whose state is z alone.

    Attributes:
        z: latents.
    """

    z: Float[Tensor, "... latent"]


class Densities(NamedTuple):
    """The functions of a model.

    Attributes:
        initial: inputs ``(*left, input)`` to the distribution of z_1.
        transition: z ``(*left, latent)`` and inputs to that of z_t.
        emission: z to linear predictors ``(*left, predictor)``, or to the distribution of every
            entry of x_t.
    """

    initial: Callable[[Tensor], AnyDistribution]
    transition: Callable[[Tensor, Tensor], AnyDistribution]
    emission: Callable[[Tensor], Tensor | AnyDistribution]


class DensityModel(StateSpaceModel):
    """A state-space model from three functions; see `StateSpaceModel.of` for its arguments."""

    site_dims: ClassVar[dict[str, tuple[str, ...]]] = {
        "z": ("time", "latent"),
        "rates": ("time", "neuron"),
        "x": ("time", "neuron"),
    }

    def __init__(
        self,
        densities: Densities,
        latent_dim: int,
        input_dim: int,
        parameters: nn.Module | None,
        observation: ObservationSpec | None,
        proposal: str | Proposal,
    ) -> None:
        super().__init__()
        check_config({"latent_dim": latent_dim, "input_dim": input_dim}, ("input_dim",))
        if not isinstance(parameters, nn.Module | None):
            raise ValueError(
                f"parameters is a {type(parameters).__name__}; give the nn.Module whose parameters"
                " the functions use, such as an nn.ParameterDict"
            )
        self.densities, self.own, self.original = densities, parameters, _Original(parameters)
        self.config: dict[str, Any] = {"latent_dim": latent_dim, "input_dim": input_dim}
        like = next(self.parameters(), torch.empty(0))
        # Also the dtype and device of a model without parameters.
        self.origin: Tensor
        self.register_buffer("origin", like.new_zeros(latent_dim).detach(), persistent=False)
        spec, num_neurons = self._observed(observation)
        self.observation = observation_model(spec, num_neurons).to(like)
        if self.emits_distribution:
            # It only checks and standardises the data then.
            self.observation.requires_grad_(False)
        is_gaussian = self._probe()
        self.config |= {"num_neurons": num_neurons, "observation": spec}
        if isinstance(proposal, Proposal):
            self.proposal = proposal
        elif proposal == "bootstrap":
            self.proposal = Bootstrap()
        elif proposal not in PROPOSALS:
            raise ValueError(
                f"proposal={proposal!r} is unknown; it is one of {', '.join(PROPOSALS)}, or a"
                " Proposal"
            )
        elif not is_gaussian:
            raise ValueError(
                f"proposal={proposal!r} needs initial and transition to be Normal or"
                " MultivariateNormal; take 'bootstrap', or a Proposal of your own"
            )
        else:
            is_causal = proposal == "causal_encoder"
            encoder = EncoderFactor(num_neurons, latent_dim, is_causal=is_causal)
            self.proposal = GeneralEncoderFactor(encoder.to(like))

    @classmethod
    def for_recording(cls, *_: Any, **__: Any) -> Any:
        """Not available: the functions determine all sizes."""
        raise TypeError(
            "a model from functions has the sizes of its functions: build it by StateSpaceModel.of"
        )

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """Nothing: the functions keep their values."""

    # ------------------------------------------------------------------ the densities

    def initial(self, start: Tensor | None, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """The distribution that the function ``initial`` returns."""
        with self._current_parameters() as call:
            found = call(self.densities.initial, inputs)
        return self._latent("initial(inputs)", found, inputs.shape[:-1])

    def transition(self, state: PathState, inputs: Float[Tensor, "*left input"]) -> Distribution:
        """The distribution that the function ``transition`` returns."""
        left = torch.broadcast_shapes(state.z.shape[:-1], inputs.shape[:-1])
        z, inputs = (each.expand(*left, each.shape[-1]) for each in (state.z, inputs))
        with self._current_parameters() as call:
            found = call(self.densities.transition, z, inputs)
        return self._latent("transition(z, inputs)", found, left)

    def initial_state(
        self,
        start: Tensor | None,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> PathState:
        """The state is z."""
        return PathState(z)

    def advance(
        self,
        state: PathState,
        z: Float[Tensor, "*left dim"],
        inputs: Float[Tensor, "*shared input"],
    ) -> PathState:
        """The state is z."""
        return PathState(z)

    def states(
        self,
        start: Tensor | None,
        path: Float[Tensor, "*left time dim"],
        inputs: Float[Tensor, "trial time input"],
    ) -> PathState:
        """The path itself."""
        return PathState(path)

    def emission(self, state: PathState) -> Distribution:
        """The observation model of the linear predictors that the function ``emission`` returns, or
        the distribution that it returns.
        """
        with self._current_parameters() as call:
            found = call(self.densities.emission, state.z)
        left = state.z.shape[:-1]
        if isinstance(found, AnyDistribution):
            entries = _entries(found)
            return Shaped.broadcast(entries, (*left, entries.batch_shape[-1]), "emission(z)")
        return self.observation(found.expand(*left, found.shape[-1]))

    @property
    def path_is_markov(self) -> bool:
        """True: the state is z."""
        return True

    def dynamics(self) -> Dynamics:
        """The mean of the transition."""
        return Dynamics(
            step=lambda z, inputs: self.transition(PathState(z), inputs).mean,
            state_dim=self.config["latent_dim"],
            input_dim=self.config["input_dim"],
            bin_width=self.bin_width,
        )

    @contextlib.contextmanager
    def _current_parameters(self) -> Iterator[Callable[..., Any]]:
        """What calls a function with the parameters of this model.

        The functions refer to the module that the user passed. In a copy of the model, such as one
        at parameters drawn from priors, they are called with those of the copy.
        """
        given = self.original.module
        if given is None or given is self.own:
            yield lambda function, *arguments: function(*arguments)
            return
        assert self.own is not None
        tensors = {**dict(self.own.named_parameters()), **dict(self.own.named_buffers())}
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        calls = _Call(given)
        yield lambda *function_and_arguments: torch.func.functional_call(
            calls, named, function_and_arguments
        )

    # ------------------------------------------------------------------ checks

    def _latent(self, name: str, found: object, left: Sequence[int]) -> "Shaped":
        """A distribution of z with these left dims."""
        dim = self.config["latent_dim"]
        if not isinstance(found, AnyDistribution):
            raise ValueError(
                f"{name} returns a {type(found).__name__}; it must return a distribution of torch"
                " or Pyro, such as Normal(mean, sd)"
            )
        shapes = (
            f"batch shape {tuple(found.batch_shape)} and event shape {tuple(found.event_shape)}"
        )
        if not found.event_shape and found.batch_shape[-1:] == (dim,):
            found = Independent(found, 1)
        if found.event_shape != (dim,):
            raise ValueError(
                f"{name} returns a {type(found).__name__} of {shapes}; for latent_dim={dim} it must"
                f" be a distribution of vectors, of event shape ({dim},), or one of scalars whose"
                f" last dim is {dim}"
            )
        if not found.has_rsample:
            raise ValueError(
                f"{name} returns a {type(found).__name__} whose draws are not reparameterised"
                " (has_rsample is False); latents must be continuous"
            )
        return Shaped.broadcast(found, left, name)

    def _observed(self, given: ObservationSpec | None) -> tuple[ObservationSpec, int]:
        """Specification of the observation model, and number of neurons."""
        z = self.origin.expand(*LEFT, -1)
        found = _tried("emission(z)", self.densities.emission, z)
        self.emits_distribution = isinstance(found, AnyDistribution)
        if isinstance(found, AnyDistribution):
            if given is not None:
                raise ValueError(
                    f"emission(z) returns a distribution, so that observation={given!r} would have"
                    " no effect; leave it out, or return linear predictors"
                )
            entries = _entries(found)
            return _observation_on(entries.support), entries.batch_shape[-1]
        if not isinstance(found, Tensor) or found.shape[:-1] != LEFT:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"emission(z) returns {what} for z of shape {tuple(z.shape)}; it must return the"
                f" linear predictors {(*LEFT, 'predictor')} or a distribution of every entry"
            )
        spec = "poisson" if given is None else given
        if not isinstance(spec, str):
            return spec, sum(int(size) for _, size in spec.values())
        per_neuron = OBSERVATIONS[spec].num_predictors if spec in OBSERVATIONS else 1
        if found.shape[-1] % per_neuron:
            raise ValueError(
                f"emission(z) returns {found.shape[-1]} linear predictors; observation={spec!r}"
                f" takes {per_neuron} per neuron"
            )
        return spec, found.shape[-1] // per_neuron

    def _probe(self) -> bool:
        """Try all functions with a few left dims; returns whether z is Gaussian.

        Raises:
            ValueError: in one sentence, for a function that fails, does not broadcast, or uses
                parameters that the model does not know.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            z = torch.randn(*LEFT, self.config["latent_dim"]).to(self.origin)
            inputs = torch.randn(*LEFT, self.config["input_dim"]).to(self.origin)
        priors: list[Any] = []
        part = (slice(1, None), slice(2, None))
        tried: dict[str, tuple[Any, ...]] = {
            "initial": (inputs,),
            "transition": (z, inputs),
            "emission": (z,),
        }
        for name, arguments in tried.items():
            listed = (
                f"{name}({', '.join('inputs' if each is inputs else 'z' for each in arguments)})"
            )
            whole, alone = (
                self._density(name, listed, *its)
                for its in (arguments, tuple(each[part] for each in arguments))
            )
            if name != "emission":
                priors.append(whole)
            value = whole.sample().detach()
            one, other = whole.log_prob(value)[part], alone.log_prob(value[part])
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True):
                raise ValueError(
                    f"{listed} gives an element of the left dims another density when it is alone:"
                    " it must treat particles, trials and bins, all dims but the last, alike"
                )
            unknown = parameters_behind(whole.log_prob(value).sum()) - set(self.parameters())
            if unknown:
                shapes = ", ".join(str(tuple(each.shape)) for each in unknown)
                raise ValueError(
                    f"{listed} uses parameters of shape {shapes} that this model does not have:"
                    " pass the module that holds them as parameters="
                )
        return all(gaussian_of(prior) is not None for prior in priors)

    def _density(self, name: str, listed: str, *arguments: Tensor) -> Any:
        found = _tried(listed, getattr(self.densities, name), *arguments)
        if name != "emission":
            return self._latent(listed, found, arguments[0].shape[:-1])
        return self.emission(PathState(arguments[0]))


def _tried(listed: str, function: Callable[..., Any], *arguments: Tensor) -> Any:
    """The value of a user's function."""
    try:
        return function(*arguments)
    except Exception as error:
        shapes = " and ".join(str(tuple(each.shape)) for each in arguments)
        raise ValueError(
            f"{listed} fails for tensors of shape {shapes}, whose left dims stand for particles and"
            f" trials: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _entries(found: AnyDistribution) -> AnyDistribution:
    """The distribution of single entries of x_t."""
    while isinstance(found, Independent):
        found = found.base_dist
    if found.event_shape or not found.batch_shape:
        raise ValueError(
            f"emission(z) returns a {type(found).__name__} of batch shape"
            f" {tuple(found.batch_shape)} and event shape {tuple(found.event_shape)}; its entries"
            " must be independent given z, one per neuron in the last dim, since any of them may be"
            " missing"
        )
    return found


def _observation_on(support: Any) -> str:
    """The observation model whose data have this support."""

    def includes(value: float) -> bool:
        return bool(support.check(torch.tensor(value)).all())

    if support.is_discrete:
        return "poisson" if includes(2.0) else "bernoulli"
    if includes(-1.0):
        return "gaussian"
    return "zero_inflated_gamma" if includes(0.0) else "gamma"


class _Original:
    """A reference to the module that the user passed, which copies of the model keep."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Original":
        return self


class _Call(nn.Module):
    """Calls a function while `torch.func.functional_call` has replaced the module's parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *arguments: Tensor) -> Any:
        return function(*arguments)


class Shaped(TorchDistribution):
    """Any distribution of torch as one of Pyro, with a given batch shape."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: AnyDistribution) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @classmethod
    def broadcast(cls, base: AnyDistribution, shape: Sequence[int], name: str) -> "Shaped":
        """A distribution expanded to a batch shape.

        Raises:
            ValueError: where it cannot be.
        """
        if base.batch_shape == torch.Size(shape):
            return cls(base)
        try:
            return cls(base.expand(torch.Size(shape)))
        except (RuntimeError, ValueError):
            raise ValueError(
                f"{name} returns a {type(base).__name__} of batch shape {tuple(base.batch_shape)}"
                f" where {tuple(shape)} is needed: it must keep the left dims of its arguments"
            ) from None

    @property
    def has_rsample(self) -> bool:
        """Whether draws are reparameterised."""
        return bool(self.base.has_rsample)

    @property
    def support(self) -> Any:
        """That of the distribution."""
        return self.base.support

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """That of the distribution."""
        return self.base.mean

    @property
    def base_dist(self) -> AnyDistribution:
        """The distribution inside."""
        return self.base

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Shaped":
        """The same for more particles."""
        return Shaped(self.base.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Reparameterised draws."""
        return self.base.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Draws."""
        return self.base.sample(torch.Size(sample_shape))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density in nats."""
        return self.base.log_prob(value)
