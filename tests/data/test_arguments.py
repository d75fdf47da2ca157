"""Arguments that count something."""

import numpy as np
import pytest

from pyrodyn.data.arguments import check_integer


@pytest.mark.parametrize("number", [0, -1, 2.0, "2", True, None, float("nan")])
def test_what_counts_nothing_is_refused_by_name(number):
    sentence = f"num_draws={number!r} must be an integer of at least 1"
    with pytest.raises(ValueError, match=sentence):
        check_integer(1, batch_size=4, num_draws=number)


def test_whole_numbers_of_any_kind_count():
    check_integer(0, first=0, second=np.int64(3))
