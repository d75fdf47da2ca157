"""Checks of integer arguments: numbers of trials, bins, draws, particles."""

from numbers import Integral


def check_integer(least: int, **numbers: object) -> None:
    """Raise an error unless every argument is an integer and large enough.

    Args:
        least: smallest value allowed.
        numbers: the values by argument name.

    Raises:
        ValueError: naming the first argument that is not accepted.
    """
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or int(number) < least:
            raise ValueError(f"{name}={number!r} must be an integer of at least {least}")
