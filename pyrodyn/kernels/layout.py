"""How matrices lie in memory."""

from jaxtyping import Float
from torch import Tensor


def by_columns(matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """The same matrix, laid out column after column.

    On a CPU a product of few columns, inputs or states made of many hidden units and their
    gradients, is several times faster so.
    """
    return matrix.t().contiguous().t()
