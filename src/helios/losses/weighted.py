"""Losses with a weight."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import nn

__all__ = ["WeightedLoss"]


class WeightedLoss(nn.Module, abc.ABC):
    """The base class of losses that are multiplied by a weight.

    >>> class Squared(WeightedLoss):
    ...     def _eval(self, output, target):
    ...         return (output - target).square().mean()
    >>> Squared(loss_weight=0.5)(torch.tensor(3.0), torch.tensor(1.0))
    tensor(2.)

    Args:
        loss_weight: the factor of the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self._loss_weight = loss_weight

    @property
    def loss_weight(self) -> float:
        """The factor of the loss."""
        return self._loss_weight

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the result of `_eval` for these arguments, multiplied by the weight."""
        return self._loss_weight * self._eval(*args, **kwargs)

    @abc.abstractmethod
    def _eval(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss without the weight."""
