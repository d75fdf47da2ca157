"""A running average of the parameters of a module."""

import torch
from torch import Tensor, nn

from pyrodyn.infer.training.schedule import AVERAGING


class WeightAverage(nn.Module):
    """Running average of a module's parameters, which gives late weights more weight.

        average_n = average_{n-1} + (a + 1) / (n + a) (weights_n - average_{n-1}),   a = `AVERAGING`

    The averages are buffers, so that checkpoints contain them: that of the parameter
    ``model.readout.bias`` is named ``model/readout/bias``. Buffers of the module are not averaged.

    The module is not copied, in contrast to ``torch.optim.swa_utils.AveragedModel``: copying an
    automatic guide of Pyro removes the references of the original to its model and to the guide
    that it is a part of.

    Args:
        module: the module whose parameters are averaged. It is passed again at each call, because
            as an attribute it would be part of the state.

    Source: Shamir & Zhang 2013, section 4.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, parameter in module.named_parameters():
            self.register_buffer(_buffer_name(name), parameter.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module, num_steps: int) -> None:
        """Include the module's parameters as those after training step ``num_steps``, from 1."""
        fraction = (AVERAGING + 1) / (num_steps + AVERAGING)
        for average, parameter in self._pairs(module):
            average.lerp_(parameter, fraction)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Replace the module's parameters by their averages."""
        for average, parameter in self._pairs(module):
            parameter.copy_(average)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's parameters and their averages, in place."""
        for average, parameter in self._pairs(module):
            previous = average.clone()
            average.copy_(parameter)
            parameter.copy_(previous)

    def _pairs(self, module: nn.Module) -> list[tuple[Tensor, nn.Parameter]]:
        return [
            (self.get_buffer(_buffer_name(name)), parameter)
            for name, parameter in module.named_parameters()
        ]


def _buffer_name(parameter_name: str) -> str:
    """Names of buffers must not contain dots."""
    return parameter_name.replace(".", "/")
