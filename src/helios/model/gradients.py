"""Gradients in flight: what a checkpoint in the middle of an accumulation must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios.core.stateful import networks_of, unwrap_module
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from helios.model.model import Model


def _parameters(model: Model) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{parameter_name}": parameter
        for name, network in networks_of(model).items()
        for parameter_name, parameter in unwrap_module(network).named_parameters()
    }


def collect_gradients(model: Model) -> dict[str, torch.Tensor]:
    """Return the gradients of a model's networks by name; those that are `None` are left out."""
    gradients = {name: parameter.grad for name, parameter in _parameters(model).items()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def restore_gradients(model: Model, gradients: Mapping[str, torch.Tensor]) -> None:
    """Give back what `collect_gradients` returned; all others become `None`.

    Raises:
        CheckpointMismatchError: if a gradient has no parameter of its name and shape.
    """
    parameters = _parameters(model)
    for name, gradient in gradients.items():
        if name not in parameters or parameters[name].shape != gradient.shape:
            raise CheckpointMismatchError(
                f"the checkpoint has a gradient of {name}, {tuple(gradient.shape)}; the model not"
            )
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].to(parameter.device).clone() if name in gradients else None
