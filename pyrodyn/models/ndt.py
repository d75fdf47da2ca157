"""NDT: the Neural Data Transformer, which predicts observations from those that it sees.

For every bin t of a trial, with the entries s_t that the encoder sees (0 where hidden) and the
fraction v_t of entries that it sees at all (multiplied by the gain of s_t, see `Batch`)::

    h_t^0 = drop(sqrt(d) W [s_t, v_t, i_t] + p_t)      i_t: known inputs, p_t: position
    a_t^l = h_t^l + drop(attention_t(norm(h^l)))       over the bins t - back ... t + forward
    h_t^{l+1} = a_t^l + drop(FFN(norm(a_t^l)))         FFN(h) = W_2 drop(relu(W_1 h + b_1)) + b_2
    eta_t = C drop(norm(h_t^L)) + c                    linear predictors
    x_t ~ p(x | eta_t)                                 observation, Poisson(exp(.)) by default

There are no latent variables: the model is a density of the observations given those that are
seen, p(x | s), and its guide draws nothing. Fitted as an autoencoder it would copy its input. It
learns by masking instead: entries or bins are hidden (`pyrodyn.data.CoordinatedDropout`,
`pyrodyn.data.MaskedModelling`), and the likelihood counts these alone, as it counts held-out
neurons and forecast bins.

Draws of the rates differ by their dropout masks (``method="dropout"``, Gal & Ghahramani 2016): the
variability between networks that dropout makes, not a posterior of a generative model.

Source: Ye & Pandarinath, Neurons, Behavior, Data analysis, and Theory 5(3), 2021. Departures: W
maps to any width d, so that small and odd numbers of neurons and known inputs are possible (there,
W = I); v_t distinguishes a bin in which nothing is seen from a silent one; attention has no biases
of its own (those of the layer norms before it suffice) and no dropout of its weights.
"""

import copy
import math
from typing import Any, ClassVar

import torch
import xarray as xr
from jaxtyping import Bool, Float
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.distributions.masked import Masked
from pyrodyn.models.latent_dynamics import LatentDynamics, check_config
from pyrodyn.models.observations import ObservationSpec, observe
from pyrodyn.models.observations import observation as observation_model

POSITIONS = ("sinusoidal", "learned")
"""Codes of the position of a bin."""

LONGEST_PERIOD = 10_000
"""Ratio of the longest to the shortest period of sinusoidal positions (Vaswani et al. 2017)."""

HIDE_EVERY = 4
"""Of the bins of a trial, every so many are hidden for a diagnosis."""

FEWEST_STEPS = 100
"""Fits of fewer training steps are not diagnosed."""

READOUT_SCALE = 0.1
"""Factor of the initial weights of the readout, under which rates start near their means."""


class NDT(LatentDynamics):
    """Neural Data Transformer. The module's docstring has the equations.

    Args:
        num_neurons: neurons or channels observed, or both together.
        input_dim: known external inputs.
        model_dim: dimension d of the tokens, a multiple of ``num_heads``.
        num_heads: heads of the attention.
        num_layers: layers L.
        ffn_dim: hidden units of the feed-forward networks.
        context_back: bins before its own that a bin attends to; None for all of them.
        context_forward: bins after its own that a bin attends to; None for all of them, and 0 for a
            causal model, whose rates do not depend on later observations.
        positions: ``"sinusoidal"``, or ``"learned"`` for a parameter per bin, after which trials of
            more bins are refused.
        num_bins: bins that learned positions are for; `for_recording` takes those of the recording.
            Sinusoidal positions have no such limit.
        observation: a name in `pyrodyn.models.observations.OBSERVATIONS`, or two (see
            `ObservationSpec`).
        dropout: dropout probability. Without strong dropout this model overfits recordings of
            usual size.
    """

    has_latents = False
    site_dims: ClassVar[dict[str, tuple[str, ...]]] = {
        "rates": ("time", "neuron"),
        "x": ("time", "neuron"),
    }

    def __init__(
        self,
        num_neurons: int,
        *,
        input_dim: int = 0,
        model_dim: int = 128,
        num_heads: int = 2,
        num_layers: int = 4,
        ffn_dim: int = 128,
        context_back: int | None = None,
        context_forward: int | None = None,
        positions: str = "sinusoidal",
        num_bins: int | None = None,
        observation: ObservationSpec = "poisson",
        dropout: float = 0.3,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        _check(config)
        self.config: dict[str, Any] = config
        self.context = context_back, context_forward
        self.embedding = nn.Linear(num_neurons + 1 + input_dim, model_dim, bias=False)
        if positions == "learned":
            assert num_bins is not None
            self.positions = nn.Parameter(torch.randn(num_bins, model_dim))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            [EncoderLayer(model_dim, num_heads, ffn_dim, dropout) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(model_dim)
        self.observation = observation_model(observation, num_neurons)
        self.readout = nn.Linear(model_dim, self.observation.predictor_dim)
        with torch.no_grad():
            self.readout.weight.mul_(READOUT_SCALE)

    @classmethod
    def sizes_for(cls, recording: xr.Dataset, sizes: dict[str, Any]) -> dict[str, Any]:
        """The bins of the recording, for learned positions."""
        if sizes.get("positions") == "learned":
            return {"num_bins": recording.sizes["time"], **sizes}
        return sizes

    def start_readout(self, predictors: Float[Tensor, " predictor"]) -> None:
        """Initialise the bias of the readout; its input is centred at 0."""
        self.readout.bias.copy_(predictors)

    def parameter_dims(self) -> dict[str, tuple[str, ...]]:
        """Also those of the readout."""
        return {
            **super().parameter_dims(),
            "readout.weight": ("predictor", "hidden"),
            "readout.bias": ("predictor",),
        }

    def check(self, recording: xr.Dataset) -> None:
        """Also refuse more bins than there are learned positions."""
        super().check(recording)
        self._check_bins(recording.sizes["time"])

    def model(self, batch: Batch) -> None:
        """Sites ``rates`` and ``x``."""
        with self.trials(batch), poutine.scale(scale=batch.scored_weight):
            observe(self.predictive(batch), batch.x, batch.scored, self.observation.filler)

    def guide(self, batch: Batch) -> None:
        """No sites."""

    @torch.no_grad()
    def diagnose(self, batch: Batch) -> list[str]:
        """Predictions of hidden bins that are no better than the mean of each neuron or channel."""
        if self.record.get("training", {}).get("num_steps", 0) < FEWEST_STEPS:
            return []
        assert batch.x is not None
        hidden = torch.zeros_like(batch.visible)
        hidden[:, ::HIDE_EVERY] = True
        shown = batch.replace(seen=batch.seen * ~hidden, visible=batch.visible & ~hidden)
        constant = copy.deepcopy(self.observation)
        means = constant.initialise(batch.x, batch.scored)
        scores = []
        for distribution in (
            self.predictive(shown),
            constant(means.expand(*batch.x.shape[:2], -1)),
        ):
            scored = Masked(distribution, batch.scored & hidden, self.observation.filler)
            scores.append(float(scored.log_prob(batch.x).sum()) / batch.num_trials)
        if scores[0] > scores[1]:
            return []
        return [
            f"this NDT predicts bins that are hidden from it no better than each neuron's mean does"
            f" ({scores[0]:.4g} against {scores[1]:.4g} nats per trial): fit it longer, or to more"
            " trials"
        ]

    def predictive(self, batch: Batch) -> TorchDistributionMixin:
        """p(x | seen), batch shape ``(trial, time, neuron)``."""
        visible = batch.visible.to(batch.seen.dtype).mean(-1, keepdim=True) * batch.gain
        seen = torch.cat([self.encoder_view(batch), visible, batch.inputs], -1)
        return self.observation(self.predictors(seen))

    def predictors(
        self, seen: Float[Tensor, "*left time seen"]
    ) -> Float[Tensor, "*left time predictor"]:
        """The linear predictors eta of all bins.

        Args:
            seen: [s_t, v_t, i_t].
        """
        num_bins = seen.shape[-2]
        scale = math.sqrt(self.config["model_dim"])
        tokens = torch.add(self.position_codes(num_bins), self.embedding(seen), alpha=scale)
        hidden = self.dropout(tokens)
        mask = self.attention_mask(num_bins)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        predictors: Tensor = self.readout(self.dropout(self.norm(hidden)))
        return predictors

    def position_codes(self, num_bins: int) -> Float[Tensor, "time hidden"]:
        """The codes p_t of the first bins."""
        self._check_bins(num_bins)
        if self.config["positions"] == "learned":
            return self.positions[:num_bins]
        dim = self.config["model_dim"]
        like = self.embedding.weight
        t = torch.arange(num_bins, device=like.device, dtype=like.dtype)
        channels = torch.arange(0, dim, 2, device=like.device, dtype=like.dtype)
        angle = t[:, None] * LONGEST_PERIOD ** (-channels / dim)
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :dim]

    def attention_mask(self, num_bins: int) -> Bool[Tensor, "time time"] | None:
        """Which bins (columns) a bin (row) attends to; None for all."""
        back, forward = self.context
        if back is None and forward is None:
            return None
        t = torch.arange(num_bins, device=self.device)
        lead = t - t[:, None]
        inside = torch.ones_like(lead, dtype=torch.bool)
        if back is not None:
            inside &= lead >= -back
        if forward is not None:
            inside &= lead <= forward
        return inside

    def _check_bins(self, num_bins: int) -> None:
        known = self.config["num_bins"]
        if known is not None and num_bins > known:
            raise ValueError(
                f"the trials have {num_bins} bins; this NDT has learned positions for {known}: make"
                ' one with positions="sinusoidal", or of more num_bins'
            )


class EncoderLayer(nn.Module):
    """One layer of the transformer, with layer norms before its two parts (pre-norm).

    Args:
        model_dim: dimension of the tokens.
        num_heads: heads of the attention.
        ffn_dim: hidden units of the feed-forward network.
        dropout: dropout probability.
    """

    def __init__(self, model_dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(model_dim)
        self.queries_keys_values = nn.Linear(model_dim, 3 * model_dim, bias=False)
        self.attended = nn.Linear(model_dim, model_dim)
        self.ffn_norm = nn.LayerNorm(model_dim)
        self.ffn_in = nn.Linear(model_dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, model_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: Float[Tensor, "*left time hidden"],
        mask: Bool[Tensor, "time time"] | None,
    ) -> Float[Tensor, "*left time hidden"]:
        """h^{l+1} from h^l."""
        hidden = hidden + self.dropout(self._attention(self.attention_norm(hidden), mask))
        within = self.dropout(functional.relu(self.ffn_in(self.ffn_norm(hidden))))
        return hidden + self.dropout(self.ffn_out(within))

    def _attention(
        self,
        normed: Float[Tensor, "*left time hidden"],
        mask: Bool[Tensor, "time time"] | None,
    ) -> Float[Tensor, "*left time hidden"]:
        heads = self.queries_keys_values(normed).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = heads.transpose(-4, -2).unbind(-3)
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        result: Tensor = self.attended(attended.transpose(-3, -2).flatten(-2))
        return result


def _check(config: dict[str, Any]) -> None:
    """Refuse arguments that are invalid or do not fit together."""
    for name in ("context_back", "context_forward"):
        if config[name] is not None:
            check_integer(0, **{name: config[name]})
    given = {name: value for name, value in config.items() if value is not None}
    check_config(given, ("input_dim",))
    check_integer(1, num_heads=config["num_heads"], num_layers=config["num_layers"])
    if config["model_dim"] % config["num_heads"]:
        raise ValueError(
            f"model_dim={config['model_dim']} is not divisible by num_heads={config['num_heads']}"
        )
    if not 0 <= config["dropout"] < 1:
        raise ValueError(f"dropout={config['dropout']} must be a probability below 1")
    if config["positions"] not in POSITIONS:
        raise ValueError(
            f"positions={config['positions']!r} is unknown; it is one of {', '.join(POSITIONS)}"
        )
    if (config["positions"] == "learned") != (config["num_bins"] is not None):
        raise ValueError(
            f"positions={config['positions']!r} and num_bins={config['num_bins']} do not fit"
            " together: learned positions need num_bins, and only these have any"
        )
