"""Initial weights of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["default_init_weights"]

_NORMALIZATIONS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def default_init_weights(
    module_list: nn.Module | Iterable[nn.Module], scale: float = 1.0, bias_fill: float = 0.0, **kwargs: Any
) -> None:
    """Initialize the linear, convolution and batch normalization layers of networks.

    Weights of linear and convolution layers are drawn from He's normal distribution (He et al., "Delving Deep into
    Rectifiers", 2015) and multiplied by `scale`; a small scale keeps residual blocks close to the identity. Those of
    batch normalization become 1. All biases become `bias_fill`.

    Args:
        module_list: a network, or several.
        scale: the factor of the drawn weights.
        bias_fill: the value of the biases.
        **kwargs: passed on to `torch.nn.init.kaiming_normal_`.
    """
    networks = [module_list] if isinstance(module_list, nn.Module) else module_list
    layers = [layer for network in networks for layer in network.modules()]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, _LAYERS):
                nn.init.kaiming_normal_(layer.weight, **kwargs)
                layer.weight.mul_(scale)
            elif isinstance(layer, _NORMALIZATIONS) and layer.weight is not None:
                nn.init.ones_(layer.weight)
            else:
                continue
            if layer.bias is not None:
                layer.bias.fill_(bias_fill)
