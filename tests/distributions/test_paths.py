"""What a distribution of paths keeps of its last draw."""

import torch

from pyrodyn.distributions.paths import LastDraw


def test_a_value_is_recalled_for_the_very_draw_it_belongs_to():
    kept, drawn = LastDraw(), torch.zeros(2, 3)
    assert kept.recall(drawn) is None
    kept.keep(drawn, "value")
    assert kept.recall(drawn) == "value"
    assert kept.recall(drawn.clone()) is None
    with torch.no_grad():
        assert kept.recall(drawn) == "value"


def test_a_value_kept_without_a_gradient_is_not_recalled_where_one_is_wanted():
    kept, drawn = LastDraw(), torch.zeros(2, 3)
    with torch.no_grad():
        kept.keep(drawn, "value")
        assert kept.recall(drawn) == "value"
        assert kept.recall(drawn.clone()) is None
    assert kept.recall(drawn) is None
