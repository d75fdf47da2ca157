"""The examples in the docstrings of the rooms run and print what they show."""

import doctest
import importlib
import pkgutil

import matplotlib.pyplot as plt
import pytest

import pyrodyn

ROOMS = [
    name
    for _, name, is_package in pkgutil.walk_packages(pyrodyn.__path__, "pyrodyn.")
    if is_package and ">>> " in (importlib.import_module(name).__doc__ or "")
]


def test_rooms_have_examples():
    assert len(ROOMS) >= 8


@pytest.mark.parametrize("name", ROOMS)
def test_the_example_of_a_room_runs(name):
    results = doctest.testmod(importlib.import_module(name))
    plt.close("all")
    assert results.attempted > 0
    assert results.failed == 0
