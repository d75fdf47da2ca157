"""Blocks of consecutive bins, whose intermediate values are kept and processed together."""

BLOCK_NUMBERS = 2**19
"""Numbers per block: two megabytes in single precision, so that a block stays in the cache (and
below what the C library keeps for reuse, see `pyrodyn.infer.training.allocator`)."""


def blocks(num_bins: int, numbers_per_bin: int) -> list[slice]:
    """Consecutive bins whose numbers fill about `BLOCK_NUMBERS`, from first to last."""
    length = max(1, BLOCK_NUMBERS // max(1, numbers_per_bin))
    return [slice(t, min(t + length, num_bins)) for t in range(0, num_bins, length)]
