"""Arguments that count something: trials, bins, draws, particles."""

from numbers import Integral


def check_integer(least: int, **numbers: object) -> None:
    """Refuse what is no whole number, or too small.

    Args:
        least: what each must be at least.
        numbers: by the names of the arguments that gave them.

    Raises:
        ValueError: naming the first that is refused, and it alone.
    """
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or int(number) < least:
            raise ValueError(f"{name}={number!r} must be a whole number of at least {least}")
