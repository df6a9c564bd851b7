"""Gradients in flight: what a checkpoint in the middle of an accumulation must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helios.core.shard_gradients import be_whole_once, find_sharded
from helios.core.shard_tree import is_sharded
from helios.core.stateful import bare_name, find_wrappers, networks_of
from helios.errors import CheckpointMismatchError
from helios.model.wrapping import mark_used

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from helios.model.model import Model

_KEPT_BACK: Final = " (kept back)"  # No parameter has a space in its name.


def _parameters(model: Model) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{bare_name(parameter_name, wrappers)}": parameter
        for name, network in networks_of(model).items()
        for wrappers in [find_wrappers(network)]
        for parameter_name, parameter in network.named_parameters()
    }


def collect_gradients(model: Model) -> dict[str, torch.Tensor]:
    """Return the gradients of a model's networks by name; those that are `None` are left out.

    Of a parameter that is spread over the ranks there may be two: what each rank has kept back has a name of its own.

    Raises:
        ConfigurationError: if a gradient has been exchanged within some ranks, and kept back from others.
    """
    sharded = find_sharded(networks_of(model).values())
    gradients: dict[str, torch.Tensor | None] = {}
    for name, parameter in _parameters(model).items():
        spread = sharded.get(id(parameter))
        gradients[name] = parameter.grad if spread is None else spread.part.grad
        if spread is not None:
            gradients[name + _KEPT_BACK] = spread.get_kept_back(name)
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def restore_gradients(model: Model, gradients: Mapping[str, torch.Tensor]) -> None:
    """Give back what `collect_gradients` returned; all others become `None`. All ranks must call this.

    The networks may be spread over the ranks in another way than they were. What is whole and each rank has for itself
    is averaged over the ranks in the next exchange, wherever it comes from. Whether the last pass was an exchange must
    have been given back before, by `restore_dues`.

    Raises:
        CheckpointMismatchError: if a gradient has no parameter of its name and shape.
    """
    parameters = _parameters(model)
    for key, gradient in gradients.items():
        name = key.removesuffix(_KEPT_BACK)
        if name not in parameters or parameters[name].shape != gradient.shape:
            raise CheckpointMismatchError(
                f"the checkpoint has a gradient of {name}, {tuple(gradient.shape)}; the model not"
            )
    networks = networks_of(model)
    in_flight = {key: parameters[key.removesuffix(_KEPT_BACK)] for key in gradients}
    kept_back = [parameter for key, parameter in in_flight.items() if key.endswith(_KEPT_BACK)]
    mark_used(networks, in_flight.values(), kept_back)
    be_whole_once(networks.values())
    sharded = find_sharded(networks.values())
    for name, parameter in parameters.items():
        both = [gradients[key] for key in (name, name + _KEPT_BACK) if key in gradients]
        whole = [gradient for gradient in both if not is_sharded(gradient)]
        total = sum(whole[1:], whole[0]) if whole else None
        if id(parameter) in sharded:
            spread = sharded[id(parameter)]
            spread.part.grad = next((part.to(spread.part.device).clone() for part in both if is_sharded(part)), None)
            spread.keep_back(total)
        else:
            parameter.grad = None if total is None else total.to(parameter.device, parameter.dtype, copy=True)
