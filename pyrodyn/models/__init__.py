"""The zoo: one file per model, each a generative program with its default guide."""

from pyrodyn.models.dynamics import Dynamics
from pyrodyn.models.latent_dynamics import LatentDynamics
from pyrodyn.models.lfads import LFADS
from pyrodyn.models.linear_dynamics import LinearDynamics
from pyrodyn.models.low_rank_rnn import LowRankRNN
from pyrodyn.models.ndt import NDT
from pyrodyn.models.observations import OBSERVATIONS
from pyrodyn.models.proposals import EncoderFactor, OptimalFactor
from pyrodyn.models.sae import NodeSAE, RnnSAE
from pyrodyn.models.saving import MODELS, load, save
from pyrodyn.models.sessions import for_session
from pyrodyn.models.shallow_plrnn import ShallowPLRNN
from pyrodyn.models.state_space import Bootstrap, Proposal, StateSpaceModel

__all__ = [
    "LFADS",
    "MODELS",
    "NDT",
    "OBSERVATIONS",
    "Bootstrap",
    "Dynamics",
    "EncoderFactor",
    "LatentDynamics",
    "LinearDynamics",
    "LowRankRNN",
    "NodeSAE",
    "OptimalFactor",
    "Proposal",
    "RnnSAE",
    "ShallowPLRNN",
    "StateSpaceModel",
    "for_session",
    "load",
    "save",
]
