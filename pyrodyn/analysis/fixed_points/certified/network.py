"""Piecewise-linear low-rank networks, as tables of slopes and intercepts::

    z' = a z + n phi(m z) + offset,       phi_i(y) = slope_ip y + intercept_ip on piece p of unit i

Each unit has at most two kinks, hence three pieces, which meet: phi is continuous. Thresholds and
constant drive are part of where the kinks are. Relu, leaky relu, clipped relu and hard tanh are
such units; others can be defined by their tables.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Values = ArrayLike | float

SMALLEST_RETURN = 1e-9
"""Smallest allowed distance from 1 of a latent's own factor over a period."""


class PiecewiseLinear(NamedTuple):
    """A low-rank network z' = a z + n phi(m z) + offset; unit i has phi_i(y) = slope y + intercept.

    Attributes:
        a: ``(latent,)`` factor of each latent; a decay if within [0, 1).
        n: ``(latent, neuron)`` output weights.
        m: ``(neuron, latent)`` input weights.
        offset: ``(latent,)`` constant added at every step.
        breakpoints: ``(neuron, 2)`` kinks in ascending order; infinity where there are fewer.
        slopes: ``(neuron, 3)`` of the pieces before, between and after the kinks.
        intercepts: ``(neuron, 3)`` of the same pieces, which must meet at the kinks.
    """

    a: Array
    n: Array
    m: Array
    offset: Array
    breakpoints: Array
    slopes: Array
    intercepts: Array

    @classmethod
    def relu(
        cls, a: Values, n: Values, m: Values, threshold: Values, drive: Values = 0.0
    ) -> "PiecewiseLinear":
        """phi(y) = max(y - threshold, 0) at y = m z + drive.

        Args:
            a: ``(latent,)`` or one number for all.
            n: ``(latent, neuron)``.
            m: ``(neuron, latent)``.
            threshold: ``(neuron,)`` or one number for all.
            drive: ``(neuron,)`` or one number for all, the constant input.

        Returns:
            The network.

        Raises:
            ValueError: if shapes do not fit each other.
        """
        return cls.leaky_relu(a, n, m, threshold, drive, leak=0.0)

    @classmethod
    def leaky_relu(
        cls,
        a: Values,
        n: Values,
        m: Values,
        threshold: Values,
        drive: Values = 0.0,
        *,
        leak: Values,
    ) -> "PiecewiseLinear":
        """phi(y) = max(y - threshold, 0) + leak min(y - threshold, 0); the rest as in `relu`."""
        kink = np.asarray(threshold, float) - np.asarray(drive, float)
        left = np.asarray(leak, float)
        return cls._of(a, n, m, (kink, np.inf), (left, 1.0, 1.0), (-left * kink, -kink, -kink))

    @classmethod
    def clipped_relu(
        cls, a: Values, n: Values, m: Values, threshold: Values, drive: Values = 0.0
    ) -> "PiecewiseLinear":
        """phi(y) = max(y + threshold, 0) - max(y, 0), between 0 and threshold, of either sign."""
        h, shift = np.asarray(threshold, float), np.asarray(drive, float)
        kinks = np.minimum(-h, 0) - shift, np.maximum(-h, 0) - shift
        middle = np.where(h > 0, h + shift, np.where(h < 0, -shift, 0))
        return cls._of(a, n, m, kinks, (0.0, np.sign(h), 0.0), (0.0, middle, h))

    @classmethod
    def hard_tanh(
        cls, a: Values, n: Values, m: Values, threshold: Values, drive: Values = 0.0
    ) -> "PiecewiseLinear":
        """phi(y) = y - threshold clipped to [-1, 1]; arguments as in `relu`."""
        centre = np.asarray(threshold, float) - np.asarray(drive, float)
        return cls._of(a, n, m, (centre - 1, centre + 1), (0.0, 1.0, 0.0), (-1.0, -centre, 1.0))

    @classmethod
    def _of(
        cls,
        a: Values,
        n: Values,
        m: Values,
        *pieces: tuple[Values, ...],
    ) -> "PiecewiseLinear":
        n, m = np.asarray(n, float), np.asarray(m, float)
        if n.ndim != 2 or m.shape != n.shape[::-1]:
            raise ValueError(
                f"n is {n.shape} and m {m.shape}; give n as (latent, neuron), m as (neuron, latent)"
            )
        try:
            per_unit = [
                np.stack([np.broadcast_to(np.asarray(v, float), m.shape[:1]) for v in piece], -1)
                for piece in pieces
            ]
            factor = np.broadcast_to(np.asarray(a, float), n.shape[:1]).copy()
        except ValueError:
            raise ValueError(
                f"a must have one or {len(n)} numbers, threshold, drive and leak one or {len(m)}; "
                "give one per latent and one per neuron"
            ) from None
        return cls(factor, n, m, np.zeros(len(n)), *per_unit)


def check(network: PiecewiseLinear, period: int) -> None:
    """Raise a ValueError for invalid shapes, values or pieces."""
    if period not in (1, 2, 3):
        raise ValueError(f"period is {period}; choose 1 (fixed points), 2 or 3")
    n = np.asarray(network.n)
    latent_dim, num_neurons = n.shape if n.ndim == 2 else (0, 0)
    if latent_dim == 0 or num_neurons == 0:
        raise ValueError(f"n has shape {n.shape}; give (latent, neuron), at least one of each")
    shapes = {
        "a": (latent_dim,),
        "m": (num_neurons, latent_dim),
        "offset": (latent_dim,),
        "breakpoints": (num_neurons, 2),
        "slopes": (num_neurons, 3),
        "intercepts": (num_neurons, 3),
    }
    for name, shape in shapes.items():
        if np.shape(getattr(network, name)) != shape:
            raise ValueError(
                f"{name} has shape {np.shape(getattr(network, name))} where n of shape {n.shape} "
                f"requires {shape}; reshape it"
            )
    for name in ("n", *shapes):
        values = getattr(network, name)
        allowed = np.isfinite(values) | ((name == "breakpoints") & (values == np.inf))
        if not allowed.all():
            raise ValueError(f"{name} contains NaN or infinity; replace it by finite numbers")
    if (np.abs(1 - network.a**period) < SMALLEST_RETURN).any():
        raise ValueError(
            f"a to the power of {period} is 1 in some latent, in which every point may then be a"
            " solution; change a"
        )
    kinks = network.breakpoints
    if (kinks[:, 0] > kinks[:, 1]).any():
        raise ValueError("breakpoints must ascend; sort them, with their slopes and intercepts")
    position = np.where(np.isfinite(kinks), kinks, 0)
    jump = np.diff(network.slopes) * position + np.diff(network.intercepts)
    if (np.isfinite(kinks) & (np.abs(jump) > 1e-9 * (1 + np.abs(position)))).any():
        raise ValueError("the pieces of phi must meet at its breakpoints; correct the intercepts")
