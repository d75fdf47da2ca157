"""A conditional normalising flow over the initial state, for posteriors that are not Gaussian::

    q(s | x):   s = m(x) + d(x) f(e; m(x), d(x)),     e ~ N(0, I)

m and d are mean and standard deviation of the model's own guide, so that the flow is conditioned on
the model's encoder, and f is a neural spline flow between coupling layers. At first f is the
identity, and q that guide with the Gaussian of the same mean and standard deviation. Whatever else
the guide draws, such as the inferred inputs of LFADS, it draws given s as before.

Splines bend f within 5 standard deviations of m. Flow and encoder are trained together::

    fitted = pyrodyn.fit(model, recording, guide=FlowStart(model))

Sources: Rezende & Mohamed 2015; Durkan, Bekasov, Murray & Papamakarios 2019 (splines); the package
zuko.
"""

import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions.transforms import AffineTransform

from pyrodyn.data.arguments import check_integer
from pyrodyn.data.batch import Batch
from pyrodyn.distributions.spline_flow import spline_flow
from pyrodyn.infer.guides.mapped_sites import MappedSites
from pyrodyn.infer.training.fitted import Fit
from pyrodyn.models.state_space import Distribution, StateSpaceModel


class FlowStart(nn.Module):
    """A guide whose distribution of the initial state is a normalising flow.

    Args:
        model: a model, or its `Fit`, with an initial state of its own: LFADS, `NodeSAE` and
            `RnnSAE` without process noise.
        num_transforms: coupling layers.
        hidden_dim: hidden units of the two hidden layers of their networks.
        num_bins: pieces of every spline.

    Raises:
        ValueError: for another model.
    """

    model: StateSpaceModel

    def __init__(
        self,
        model: StateSpaceModel | Fit[StateSpaceModel],
        *,
        num_transforms: int = 4,
        hidden_dim: int = 64,
        num_bins: int = 8,
    ) -> None:
        super().__init__()
        if isinstance(model, Fit):
            model = model.model
        check_integer(1, num_transforms=num_transforms, hidden_dim=hidden_dim)
        check_integer(2, num_bins=num_bins)
        if not isinstance(model, StateSpaceModel) or model.initial_condition_site is None:
            raise ValueError(
                "FlowStart is for models that draw an initial state (LFADS, NodeSAE and RnnSAE"
                f" without process noise); this {type(model).__name__} does not: use its own guide"
            )
        vars(self)["model"] = model  # not a part, whose parameters would be saved twice
        self.flow = spline_flow(
            *model.initial_condition().event_shape,
            num_transforms=num_transforms,
            hidden_dim=hidden_dim,
            num_bins=num_bins,
        ).to(next(model.parameters()))

    def forward(self, batch: Batch) -> None:
        """Draw the initial state from the flow, and further sites as the model's guide does."""
        with MappedSites({str(self.model.initial_condition_site): self.around}):
            self.model.guide(batch)

    def around(self, gaussian: Distribution) -> Distribution:
        """The flow around a Gaussian of the encoder."""
        prior = self.model.initial_condition()
        mean, scale = gaussian.mean, gaussian.stddev
        location = (mean - prior.mean) / prior.stddev
        context = torch.cat([location, (scale / prior.stddev).log()], -1)
        units = AffineTransform(mean, scale, event_dim=1)
        return dist.TransformedDistribution(self.flow(context), [units])
