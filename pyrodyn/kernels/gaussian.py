"""The Gaussian operations of a bin, forward and backward by hand::

    affine          M v + b
    log_factor      c + z' h - z' J z / 2                      J symmetric
    log_ratio       log N(z; m, Q) - log N(z; q, P)            at the sample z = q + L eps, L L' = P
                    = (|eps|^2 - |R (z - m)|^2) / 2 + log det L + log det R,      R' R = Q^-1

Vectors are ``(*left, dim)``, many of them and short; M, J, L and R are shared by all vectors, or by
those of the same trial. Most of the time of such a product is overhead, and most of that is
autograd's bookkeeping of transposes and views: here each operation is a single function. The
density of a sample is that of the noise it was made from and takes no further product.

`reference_affine`, `reference_log_factor` and `reference_sample` are the definitions in plain
torch.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.kernels.double_backward import differentiable_gradients


def times(
    vectors: Float[Tensor, "*batch dim"], matrix: Float[Tensor, "*left row dim"]
) -> Float[Tensor, "*all row"]:
    """M v, M shared by all vectors or one per batch element; the batch dims broadcast."""
    if matrix.ndim == 2:
        return vectors @ _transposed(matrix)
    extra = vectors.ndim - matrix.ndim
    if extra < 0:
        return (matrix @ vectors[..., None])[..., 0]
    # One product for all vectors of the same matrix, instead of one for each.
    grouped = vectors.flatten(0, extra) if extra else vectors
    product = (grouped.movedim(0, -2) @ matrix.mT).movedim(-2, 0)
    return product.unflatten(0, vectors.shape[: extra + 1]) if extra else product


def _transposed(matrix: Float[Tensor, "row dim"]) -> Float[Tensor, "dim row"]:
    """M' in row-major order, in which products with many short vectors are faster."""
    return matrix.t().contiguous()


def half_sum(values: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Half the sum of every vector's entries, computed as a product: a reduction over few columns
    takes up to seven times as long.
    """
    return values @ values.new_full(values.shape[-1:], 0.5)


def _outer(
    one: Float[Tensor, "*batch row"], other: Float[Tensor, "*fewer dim"], like: Tensor
) -> Tensor:
    """The sum of outer products ``one other'`` over all vectors of the same matrix ``like``; the
    vectors ``other`` may have fewer batch dims than the vectors ``one``.
    """
    other = other.expand(*one.shape[:-1], other.shape[-1])
    if like.ndim == 2:
        return one.reshape(-1, one.shape[-1]).t() @ other.reshape(-1, other.shape[-1])
    extra = one.ndim - like.ndim
    if extra < 0:
        return (one[..., None] * other[..., None, :]).sum_to_size(like.shape)
    if extra:
        one, other = one.flatten(0, extra), other.flatten(0, extra)
    return (one.movedim(0, -1) @ other.movedim(0, -2)).sum_to_size(like.shape)


def affine(
    vectors: Float[Tensor, "*batch dim"],
    matrix: Float[Tensor, "*left row dim"],
    offset: Float[Tensor, "*shared row"],
) -> Float[Tensor, "*all row"]:
    """M v + b, M shared by all vectors or one per batch element; all batch dims broadcast."""
    result: Tensor = _Affine.apply(vectors, matrix, offset)
    return result


def reference_affine(vectors: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """`affine` in plain torch."""
    return (matrix @ vectors[..., None])[..., 0] + offset


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, matrix, offset)
        shape = (*vectors.shape[:-1], matrix.shape[-2])
        if matrix.ndim == 2 and offset.shape == shape:
            rows, offsets = vectors.reshape(-1, matrix.shape[1]), offset.reshape(-1, shape[-1])
            return torch.addmm(offsets, rows, _transposed(matrix)).view(shape)
        return times(vectors, matrix) + offset

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_result,) = grads
        vectors, matrix, offset = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return differentiable_gradients(reference_affine, (vectors, matrix, offset), d_result)
        of_vectors, of_matrix, of_offset = ctx.needs_input_grad
        d_vectors = d_matrix = d_offset = None
        # Only what the offset alone broadcasts over may be summed before the product.
        left = torch.broadcast_shapes(vectors.shape[:-1], matrix.shape[:-2])
        d_product = d_result.sum_to_size(*left, d_result.shape[-1])
        if of_vectors:
            d_vectors = times(d_product, matrix.mT).sum_to_size(vectors.shape)
        if of_matrix:
            d_matrix = _outer(d_product, vectors, matrix)
        if of_offset:
            d_offset = d_result.sum_to_size(offset.shape)
        return d_vectors, d_matrix, d_offset


def log_factor(
    z: Float[Tensor, "*batch dim"],
    h: Float[Tensor, "*shared dim"],
    J: Float[Tensor, "*left dim dim"],
    constant: Float[Tensor, "*shared_constant"],
) -> Float[Tensor, "*batch"]:
    """Log of a Gaussian factor: c + z' h - z' J z / 2, J symmetric, h and c broadcasting against z.

    Computing the value yields the gradient h - J z too.
    """
    value: Tensor = _LogFactor.apply(z, h, J, constant)
    return value


def reference_log_factor(z: Tensor, h: Tensor, J: Tensor, constant: Tensor) -> Tensor:
    """`log_factor` in plain torch."""
    return constant + (z * (h - 0.5 * (J @ z[..., None])[..., 0])).sum(-1)


class _LogFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, h: Tensor, J: Tensor, constant: Tensor) -> Tensor:
        Jz = times(z, J)
        ctx.save_for_backward(z, h, J, constant)
        ctx.slope = h - Jz
        return half_sum(z * (ctx.slope + h)).add_(constant)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_value,) = grads
        z, h, J, constant = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return differentiable_gradients(reference_log_factor, (z, h, J, constant), d_value)
        of_z, of_h, of_J, of_constant = ctx.needs_input_grad
        each = d_value[..., None]
        scaled = each * z
        return (
            each * ctx.slope if of_z else None,
            scaled.sum_to_size(h.shape) if of_h else None,
            _outer(scaled, z, J).mul_(-0.5) if of_J else None,
            d_value.sum_to_size(constant.shape) if of_constant else None,
        )


class Drawn(NamedTuple):
    """A sample of a proposal q with its log density ratio to a prior p.

    Attributes:
        z: the sample.
        log_ratio: log p(z) - log q(z).
    """

    z: Float[Tensor, "... dim"]
    log_ratio: Float[Tensor, "..."]


def draw_with_log_ratio(
    noise: Float[Tensor, "*batch dim"],
    mean: Float[Tensor, "*batch dim"],
    factor: Float[Tensor, "*left dim dim"],
    prior_mean: Float[Tensor, "*prior_batch dim"],
    prior_inverse: Float[Tensor, "*prior_left dim dim"],
    half_log_det: Float[Tensor, "*shared"],
    prior_half_log_det: Float[Tensor, "*prior_shared"],
) -> Drawn:
    """The sample z = q + L eps and its log ratio.

    Args:
        noise: eps; it is given no gradient.
        mean: q.
        factor: L.
        prior_mean: m, broadcasting against q.
        prior_inverse: R.
        half_log_det: log det L.
        prior_half_log_det: - log det R.
    """
    drawn: tuple[Tensor, Tensor] = _DrawWithLogRatio.apply(
        noise, mean, factor, prior_mean, prior_inverse, half_log_det, prior_half_log_det
    )
    return Drawn(*drawn)


def reference_sample(
    noise: Tensor,
    mean: Tensor,
    factor: Tensor,
    prior_mean: Tensor,
    prior_inverse: Tensor,
    half_log_det: Tensor,
    prior_half_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    """`draw_with_log_ratio` in plain torch."""
    z = mean + (factor @ noise[..., None])[..., 0]
    whitened = (prior_inverse @ (z - prior_mean)[..., None])[..., 0]
    squares = (noise.square() - whitened.square()).sum(-1)
    return z, 0.5 * squares + half_log_det - prior_half_log_det


class _DrawWithLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        noise: Tensor,
        mean: Tensor,
        factor: Tensor,
        prior_mean: Tensor,
        prior_inverse: Tensor,
        *half_log_dets: Tensor,
    ) -> tuple[Tensor, Tensor]:
        z = times(noise, factor) + mean
        deviation = z - prior_mean
        whitened = times(deviation, prior_inverse)
        half_squares = half_sum(noise.square().addcmul_(whitened, whitened, value=-1))
        ctx.save_for_backward(noise, mean, factor, prior_mean, prior_inverse, *half_log_dets)
        ctx.tape = (deviation, whitened)
        one, other = half_log_dets
        return z, half_squares.add_(one).sub_(other)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_z, d_ratio = grads
        given = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return differentiable_gradients(reference_sample, given, (d_z, d_ratio))
        noise, mean, factor, prior_mean, prior_inverse, one, other = given
        deviation, whitened = ctx.tape
        d_whitened = d_ratio[..., None] * whitened
        d_prior_mean = times(d_whitened, prior_inverse.mT)
        d_mean = d_z - d_prior_mean
        return (
            None,
            d_mean.sum_to_size(mean.shape),
            _outer(d_mean, noise, factor),
            d_prior_mean.sum_to_size(prior_mean.shape),
            _outer(d_whitened, deviation, prior_inverse).neg_(),
            d_ratio.sum_to_size(one.shape),
            d_ratio.sum_to_size(other.shape).neg(),
        )
