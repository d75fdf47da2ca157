"""A neural spline flow of the package zuko (Durkan, Bekasov, Murray & Papamakarios 2019)."""

from typing import Any

import torch
from torch import nn


def spline_flow(dim: int, *, num_transforms: int, hidden_dim: int, num_bins: int) -> Any:
    """A flow over vectors given means and log standard deviations, at first the identity.

    Args:
        dim: of a vector; the context has twice as many entries.
        num_transforms: coupling layers.
        hidden_dim: hidden units of the two hidden layers of their networks.
        num_bins: pieces of every spline.

    Returns:
        A module that gives a distribution of event shape ``(dim,)`` for a context
        ``(*left, 2 * dim)``.
    """
    # zuko's import switches off the validation of all distributions of torch.
    base = torch.distributions.Distribution
    kept = {name: vars(base)[name] for name in ("_validate_args", "arg_constraints")}
    from zuko.distributions import NormalizingFlow
    from zuko.flows import NSF

    for name, value in kept.items():
        setattr(base, name, value)
    NormalizingFlow.arg_constraints = {}
    flow: Any = NSF(
        dim,
        2 * dim,
        passes=2,
        transforms=num_transforms,
        bins=num_bins,
        hidden_features=(hidden_dim, hidden_dim),
    )
    for transform in flow.transform.transforms:
        for parameter in transform.hyper[-1].parameters():
            nn.init.zeros_(parameter)
    return flow
