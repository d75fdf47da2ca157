"""The examples in the docstrings of the rooms run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("room", ["kernels", "nn", "distributions"])
def test_the_example_of_each_room_runs(room):
    failed, tried = doctest.testmod(importlib.import_module(f"pyrodyn.{room}"))
    assert tried > 0
    assert failed == 0
