"""Checks of arguments that all models share."""

import numpy as np
import pytest

from pyrodyn.models.latent_dynamics import check_config


@pytest.mark.parametrize("size", [3.5, "3", True])
@pytest.mark.parametrize("name", ["latent_dim", "num_units", "initial_condition_bins", "substeps"])
def test_sizes_that_are_not_integers_are_refused(name, size):
    with pytest.raises(ValueError, match=f"{name}={size!r} must be an integer"):
        check_config({"dropout": 0.5, name: size}, ())


def test_python_and_numpy_integers_are_accepted_as_sizes():
    sizes = {"latent_dim": 3, "field_width": np.int64(4), "lag": 0}
    check_config({"dropout": 0.5, "state_clip": 5.5, **sizes}, ("lag",))
