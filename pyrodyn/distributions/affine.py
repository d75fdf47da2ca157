"""An affine map of random vectors, one map for each of a batch."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform


class TriangularAffine(Transform):
    """y = b + L x along the last dim (Pyro's `LowerCholeskyAffine` has a single L).

    Args:
        shift: b.
        triangle: L, lower triangular with a positive diagonal.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(
        self, shift: Float[Tensor, "*batch dim"], triangle: Float[Tensor, "*batch dim dim"]
    ) -> None:
        # The last draw is inverted exactly: a distribution may recognise its own draw.
        super().__init__(cache_size=1)
        self.shift, self.triangle = shift, triangle

    def _call(self, x: Float[Tensor, "*all dim"]) -> Float[Tensor, "*all dim"]:
        return self.shift + (self.triangle @ x[..., None])[..., 0]

    def _inverse(self, y: Float[Tensor, "*all dim"]) -> Float[Tensor, "*all dim"]:
        centred = (y - self.shift)[..., None]
        return torch.linalg.solve_triangular(self.triangle, centred, upper=False)[..., 0]

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "*all dim"], y: Float[Tensor, "*all dim"]
    ) -> Float[Tensor, "*all"]:
        """``log |det L|``."""
        return self.triangle.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])
