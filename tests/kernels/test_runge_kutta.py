"""Runge-Kutta steps by hand, against their definition."""

import functools

import pytest
import torch
from agreement import assert_agrees, combinations, normal

from pyrodyn.kernels import blocks
from pyrodyn.kernels.runge_kutta import (
    TABLEAUX,
    Correction,
    Tableau,
    TanhNetwork,
    reference_roll,
    roll_network,
)

SHAPES = {
    "one bin": (1, 3, True),
    "one row": (4, 1, True),
    "no drive": (4, 3, False),
    "several of each": (4, 3, True),
}
"""Bins, rows, and whether inputs drive the field."""


def roll(
    tableau: Tableau,
    substeps: int,
    num_bins: int,
    initial: torch.Tensor,
    drive: torch.Tensor | None,
    gain: torch.Tensor | None,
    shift: torch.Tensor | None,
    *flat: torch.Tensor,
) -> torch.Tensor:
    correction = None if gain is None or shift is None else Correction(gain, shift)
    network, schedule = TanhNetwork.of_flat(flat), (tableau, substeps, num_bins)
    return roll_network(network, initial, drive, correction, *schedule)


def case(
    num_bins: int, rows: int, is_driven: bool, is_corrected: bool = True, is_full: bool = True
) -> dict[str, torch.Tensor | None]:
    """A network of one hidden layer, or of two and with a linear term."""
    weights = [normal(4, 2, seed=1), normal(4, 4, seed=2), normal(2, 4, seed=3)]
    biases = [normal(4, seed=9), normal(4, seed=4), normal(2, seed=5)]
    flat = [*weights, *biases, normal(2, 2, seed=6, scale=0.3)]
    if not is_full:
        flat = [weights[0], weights[2], biases[0], biases[2]]
    return {
        "initial": normal(rows, 2),
        "drive": normal(num_bins, rows, 4) if is_driven else None,
        "gain": normal(num_bins, rows, 2, seed=7) if is_corrected else None,
        "shift": normal(num_bins, rows, 2, seed=8) if is_corrected else None,
        **{f"weight {position}": weight for position, weight in enumerate(flat)},
    }


@pytest.mark.parametrize(("shape", "layout"), combinations(SHAPES))
def test_the_kernel_is_its_reference(shape, layout):
    schedule = (TABLEAUX["midpoint"], 2, SHAPES[shape][0])
    assert_agrees(
        functools.partial(roll, *schedule),
        functools.partial(reference_roll, *schedule),
        case(*SHAPES[shape]),
        layout,
    )


@pytest.mark.parametrize("bins_per_block", [1, 2, 100])
@pytest.mark.parametrize("is_corrected", [False, True])
@pytest.mark.parametrize("scheme", TABLEAUX)
def test_every_scheme_in_blocks_of_any_length(scheme, is_corrected, bins_per_block, monkeypatch):
    schedule = (TABLEAUX[scheme], 1, 5)
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", bins_per_block * len(schedule[0].weight) * 3 * 4)
    assert_agrees(
        functools.partial(roll, *schedule),
        functools.partial(reference_roll, *schedule),
        case(5, 3, True, is_corrected, is_full=False),
        twice=False,
    )
