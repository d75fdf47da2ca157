"""What a bin asks of Gaussian vectors, forward and back by hand::

    affine          M v + b
    log_factor      c + z' h - z' J z / 2                      J symmetric
    log_ratio       log N(z; m, Q) - log N(z; q, P)            at the draw z = q + L eps, L L' = P
                    = (|eps|^2 - |R (z - m)|^2) / 2 + log det L + log det R,      R' R = Q^-1

Vectors are ``(*left, dim)``, small and many; M, J, L and R are shared by all of them, or by those
that stand for the same trial. What such a product costs is its handling, of which autograd's record
of transposes and views is the greater part: here each is a single function. The density of a draw
is that of the noise which made it, and no product at all.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrodyn.kernels.double_backward import recorded_gradients


def times(
    vectors: Float[Tensor, "*batch dim"], matrix: Float[Tensor, "*left row dim"]
) -> Float[Tensor, "*all row"]:
    """M v, M shared by all vectors or one per batch element; the batch dims broadcast."""
    if matrix.ndim == 2:
        return vectors @ _laid_out(matrix)
    extra = vectors.ndim - matrix.ndim
    if extra < 0:
        return (matrix @ vectors[..., None])[..., 0]
    # The vectors that meet the same matrix, side by side: one product instead of one each.
    met = vectors.flatten(0, extra) if extra else vectors
    product = (met.movedim(0, -2) @ matrix.mT).movedim(-2, 0)
    return product.unflatten(0, vectors.shape[: extra + 1]) if extra else product


def _laid_out(matrix: Float[Tensor, "row dim"]) -> Float[Tensor, "dim row"]:
    """M' such that its rows lie one after another, by which many short vectors are met faster."""
    return matrix.t().contiguous()


def half_sum(values: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Half the sum of every vector's entries. As a product: a reduction of few columns takes up to
    seven times as long.
    """
    return values @ values.new_full(values.shape[-1:], 0.5)


def _outer(
    one: Float[Tensor, "*batch row"], other: Float[Tensor, "*fewer dim"], like: Tensor
) -> Tensor:
    """The sum of one other', over all vectors that meet the same matrix ``like``; the vectors
    ``other`` may have fewer batch dims than the vectors ``one``.
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
    """M v + b, M shared by all vectors or one per batch element, b broadcasting against them."""
    moved: Tensor = _Affine.apply(vectors, matrix, offset)
    return moved


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, matrix, offset)
        shape = (*vectors.shape[:-1], matrix.shape[-2])
        if matrix.ndim == 2 and offset.shape == shape:
            rows, offsets = vectors.reshape(-1, matrix.shape[1]), offset.reshape(-1, shape[-1])
            return torch.addmm(offsets, rows, _laid_out(matrix)).view(shape)
        return times(vectors, matrix) + offset

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_moved,) = grads
        vectors, matrix, offset = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: let autograd record it
            return recorded_gradients(
                lambda v, m, b: times(v, m) + b, (vectors, matrix, offset), d_moved
            )
        of_vectors, of_matrix, of_offset = ctx.needs_input_grad
        d_vectors = d_matrix = d_offset = None
        # Only what the offset alone broadcasts over may be summed before the product.
        left = torch.broadcast_shapes(vectors.shape[:-1], matrix.shape[:-2])
        d_product = d_moved.sum_to_size(*left, d_moved.shape[-1])
        if of_vectors:
            d_vectors = times(d_product, matrix.mT).sum_to_size(vectors.shape)
        if of_matrix:
            d_matrix = _outer(d_product, vectors, matrix)
        if of_offset:
            d_offset = d_moved.sum_to_size(offset.shape)
        return d_vectors, d_matrix, d_offset


def log_factor(
    z: Float[Tensor, "*batch dim"],
    h: Float[Tensor, "*shared dim"],
    J: Float[Tensor, "*left dim dim"],
    constant: Float[Tensor, "*shared_constant"],
) -> Float[Tensor, "*batch"]:
    """Log of a Gaussian factor: c + z' h - z' J z / 2, J symmetric, h and c broadcasting against z.

    The gradient h - J z is at hand once the value is.
    """
    value: Tensor = _LogFactor.apply(z, h, J, constant)
    return value


class _LogFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, h: Tensor, J: Tensor, constant: Tensor) -> Tensor:
        pulled = times(z, J)
        ctx.save_for_backward(z, h, J, constant)
        ctx.slope = h - pulled
        return half_sum(z * (ctx.slope + h)).add_(constant)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_value,) = grads
        z, h, J, constant = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: let autograd record it
            return recorded_gradients(_recorded_log_factor, (z, h, J, constant), d_value)
        of_z, of_h, of_J, of_constant = ctx.needs_input_grad
        each = d_value[..., None]
        weighed = each * z
        return (
            each * ctx.slope if of_z else None,
            weighed.sum_to_size(h.shape) if of_h else None,
            _outer(weighed, z, J).mul_(-0.5) if of_J else None,
            d_value.sum_to_size(constant.shape) if of_constant else None,
        )


def _recorded_log_factor(z: Tensor, h: Tensor, J: Tensor, constant: Tensor) -> Tensor:
    return constant + (z * (h - 0.5 * times(z, J))).sum(-1)


class Drawn(NamedTuple):
    """A draw and how much likelier the prior makes it than the law that it was drawn from.

    Attributes:
        z: the draw.
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
    """Draw z = mean + L eps, and weigh it.

    Args:
        noise: eps.
        mean: of the law drawn from.
        factor: L.
        prior_mean: m, broadcasting against it.
        prior_inverse: R.
        half_log_det: log det L.
        prior_half_log_det: - log det R.
    """
    drawn: tuple[Tensor, Tensor] = _DrawAgainst.apply(
        noise, mean, factor, prior_mean, prior_inverse, half_log_det, prior_half_log_det
    )
    return Drawn(*drawn)


class _DrawAgainst(torch.autograd.Function):
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
        away = z - prior_mean
        whitened = times(away, prior_inverse)
        half_squares = half_sum(noise.square().addcmul_(whitened, whitened, value=-1))
        ctx.save_for_backward(noise, mean, factor, prior_mean, prior_inverse, *half_log_dets)
        ctx.tape = (away, whitened)
        one, other = half_log_dets
        return z, half_squares.add_(one).sub_(other)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_z, d_ratio = grads
        given = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: let autograd record it
            return recorded_gradients(_recorded_draw, given, (d_z, d_ratio))
        noise, mean, factor, prior_mean, prior_inverse, one, other = given
        away, whitened = ctx.tape
        d_whitened = d_ratio[..., None] * whitened
        d_prior_mean = times(d_whitened, prior_inverse.mT)
        d_mean = d_z - d_prior_mean
        return (
            None,
            d_mean.sum_to_size(mean.shape),
            _outer(d_mean, noise, factor),
            d_prior_mean.sum_to_size(prior_mean.shape),
            _outer(d_whitened, away, prior_inverse).neg_(),
            d_ratio.sum_to_size(one.shape),
            d_ratio.sum_to_size(other.shape).neg(),
        )


def _recorded_draw(
    noise: Tensor,
    mean: Tensor,
    factor: Tensor,
    prior_mean: Tensor,
    prior_inverse: Tensor,
    half_log_det: Tensor,
    prior_half_log_det: Tensor,
) -> tuple[Tensor, Tensor]:
    z = times(noise, factor) + mean
    whitened = times(z - prior_mean, prior_inverse)
    squares = (noise.square() - whitened.square()).sum(-1)
    return z, 0.5 * squares + half_log_det - prior_half_log_det
