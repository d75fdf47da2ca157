"""How matrices lie in memory."""

from jaxtyping import Float
from torch import Tensor


def by_columns(matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """The same matrix in column-major order.

    On a CPU a product with few columns (inputs or states computed from many hidden units, and their
    gradients) is several times faster in it.
    """
    return matrix.t().contiguous().t()
