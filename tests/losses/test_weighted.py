"""Weighted losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helios.losses import WeightedLoss, create_loss, create_loss_function


class Distance(WeightedLoss):
    """The distance of two tensors, to some power."""

    def _eval(self, output: torch.Tensor, target: torch.Tensor, power: int = 1) -> torch.Tensor:
        return (output - target).abs().pow(power).sum()


def test_a_loss_is_multiplied_by_its_weight() -> None:
    """Arguments are passed on to `_eval`, and its result, with its gradient, is multiplied by the weight."""
    output = torch.tensor([3.0], requires_grad=True)
    loss = Distance(loss_weight=0.5)(output, torch.tensor([1.0]), power=2)
    loss.backward()
    assert loss.item() == 2.0
    assert output.grad is not None
    assert output.grad.item() == 2.0
    assert Distance().loss_weight == 1.0


def test_the_base_class_is_abstract() -> None:
    """A class without `_eval` cannot be made."""

    class Nothing(WeightedLoss):
        """No loss."""

    kind: Any = Nothing
    with pytest.raises(TypeError, match="_eval"):
        kind()


def test_losses_are_made_by_either_name() -> None:
    """`create_loss` and `create_loss_function` are one."""
    assert create_loss is create_loss_function
