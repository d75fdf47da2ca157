"""The examples in the docstrings of the analysis rooms run and print what they show."""

import doctest
import importlib

import matplotlib.pyplot as plt
import pytest


@pytest.mark.parametrize(
    "name", ["", ".scores", ".fixed_points", ".fixed_points.certified", ".figures"]
)
def test_the_example_of_a_room(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"pyrodyn.analysis{name}"))
    plt.close("all")
    assert results.attempted > 0
    assert results.failed == 0
