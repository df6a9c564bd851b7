"""Gradients in flight: what has been added up since an optimizer last used it, and a checkpoint must keep."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Final, Protocol

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from helios.checkpoint.shard_tree import is_sharded
from helios.checkpoint.state.fsdp import find_sharded, unshard_once
from helios.checkpoint.state.parts import bare_name, find_wrappers, networks_of, parts_of
from helios.errors import CheckpointMismatchError
from helios.parallel.strategies import SingleProcessStrategy

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    import torch
    from torch.utils.hooks import RemovableHandle

    from helios.checkpoint.state.capture import AttributeCapture
    from helios.parallel.strategy import Strategy

_UNREDUCED: Final = " (unreduced)"  # No parameter has a space in its name.


class RunPart(Protocol):
    """A model, a plug-in or a data module."""

    _helios_capture: AttributeCapture


_SINGLE: Final = SingleProcessStrategy()
_NO_OTHERS: Final[Mapping[str, RunPart]] = types.MappingProxyType({})


class GradientWatch:
    """Knows which gradients need not be saved, because the next step of training drops them.

    That is so for a gradient that an optimizer has used, if nothing was added to it since, and if the one that was left
    in its place by the batch before was dropped in this batch: a model that sets gradients to zero before each backward
    pass does so. It is found out in the batch before a checkpoint alone: in every other batch, a step costs nothing.
    All other gradients are kept, and all of them at a checkpoint that was not expected, such as after a signal.
    """

    def __init__(self, model: object) -> None:
        """Watch nothing yet.

        Args:
            model: the object whose optimizers are watched.
        """
        self._model = model
        self._handle: RemovableHandle | None = None
        self._left: dict[int, torch.Tensor] = {}
        self._used: dict[int, tuple[torch.Tensor, int]] = {}
        self._stepped: list[Optimizer] = []

    def arm(self) -> None:
        """Watch the steps of every optimizer until the next `find_used`; called before a batch."""
        if self._handle is None:
            optimizers = parts_of(self._model, Optimizer).values()
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            parameters = [parameter for group in groups for parameter in group["params"]]
            self._left = {id(each): each.grad for each in parameters if each.grad is not None}
            self._handle = register_optimizer_step_post_hook(self._note)

    def close(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for table in (self._left, self._used, self._stepped):
            table.clear()

    def _note(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepped.append(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._used[id(parameter)] = parameter.grad, _version(parameter.grad)

    def find_used(self) -> set[int]:
        """Return the ids of the parameters whose gradients need not be saved."""
        groups = [group for optimizer in self._stepped for group in optimizer.param_groups]
        used = {id(parameter) for group in groups for parameter in group["params"] if self._is_used(parameter)}
        self.close()
        return used

    def _is_used(self, parameter: torch.Tensor) -> bool:
        gradient, version = self._used.get(id(parameter), (None, 0))
        left = self._left.get(id(parameter))
        is_same = gradient is not None and gradient is parameter.grad and version == _version(gradient)
        return is_same and left is not None and left is not gradient


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - autograd's own counter; there is no public one.


def _parameters(model: RunPart, others: Mapping[str, RunPart]) -> dict[str, torch.Tensor]:
    """Return everything that gradients are added up for, by name: parameters of networks, and what stands by itself."""
    found: dict[str, torch.Tensor] = {
        f"{name}.{bare_name(parameter_name, wrappers)}": parameter
        for name, network in networks_of(model).items()
        for wrappers in [find_wrappers(network)]
        for parameter_name, parameter in network.named_parameters()
    }
    known = {id(parameter) for parameter in found.values()}
    for path, tensor in model._helios_capture.find_leaves().items():  # noqa: SLF001 - the run's side of each part.
        if id(tensor) not in known:
            known.add(id(tensor))
            found[path] = tensor
    for root, part in others.items():
        for path, tensor in part._helios_capture.find_leaves().items():  # noqa: SLF001 - the run's side of each part.
            if id(tensor) not in known:
                known.add(id(tensor))
                found[f"{root} {path}"] = tensor
    return found


def _is_of_other(key: str) -> bool:
    return " " in key.removesuffix(_UNREDUCED)


def collect_gradients(
    model: RunPart, used: Collection[int] = (), others: Mapping[str, RunPart] = _NO_OTHERS
) -> dict[str, torch.Tensor]:
    """Return the gradients in flight by name; those that are `None` are left out.

    A sharded parameter may have two: its unreduced gradient has a name of its own.

    Args:
        model: the model.
        used: ids of parameters whose gradients are left out.
        others: the other parts of the run, which may train networks of their own, by name.

    Raises:
        ConfigurationError: if a gradient is reduced among some ranks but not among all.
    """
    sharded = find_sharded(networks_of(model).values())
    gradients: dict[str, torch.Tensor | None] = {}
    for name, parameter in _parameters(model, others).items():
        sharded_parameter = sharded.get(id(parameter))
        held = parameter if sharded_parameter is None else sharded_parameter.shard
        gradients[name] = None if not {id(parameter), id(held)}.isdisjoint(used) else held.grad
        if sharded_parameter is not None:
            gradients[name + _UNREDUCED] = sharded_parameter.get_unreduced(name)
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def restore_gradients(
    model: RunPart,
    gradients: Mapping[str, torch.Tensor],
    others: Mapping[str, RunPart] = _NO_OTHERS,
    strategy: Strategy = _SINGLE,
) -> None:
    """Set the gradients that `collect_gradients` returned, and all others to `None`. All ranks must call this.

    The networks may be sharded in another way than they were. An unreduced gradient is averaged over the ranks in the
    next reduction. `restore_buffer_sync_flags` must be called first.

    Raises:
        CheckpointMismatchError: if a gradient has no parameter of its name and shape.
    """
    parameters = _parameters(model, others)
    # A plug-in that is not registered any more is warned of by its state.
    gradients = {key: each for key, each in gradients.items() if not _is_of_other(key) or key in parameters}
    for key, gradient in gradients.items():
        name = key.removesuffix(_UNREDUCED)
        if name not in parameters or parameters[name].shape != gradient.shape:
            raise CheckpointMismatchError(
                f"the checkpoint has a gradient of {name}, {tuple(gradient.shape)}; the model has none"
            )
    networks = networks_of(model)
    in_flight = {key: parameters[key.removesuffix(_UNREDUCED)] for key in gradients}
    unreduced = [parameter for key, parameter in in_flight.items() if key.endswith(_UNREDUCED)]
    strategy.mark_used(networks, in_flight.values(), unreduced)
    unshard_once(networks.values())
    sharded = find_sharded(networks.values())
    for name, parameter in parameters.items():
        both = [gradients[key] for key in (name, name + _UNREDUCED) if key in gradients]
        whole = [gradient for gradient in both if not is_sharded(gradient)]
        total = sum(whole[1:], whole[0]) if whole else None
        if id(parameter) in sharded:
            sharded_parameter = sharded[id(parameter)]
            shard = sharded_parameter.shard
            shard.grad = next((each.to(shard.device).clone() for each in both if is_sharded(each)), None)
            sharded_parameter.set_unreduced(total)
        else:
            parameter.grad = None if total is None else total.to(parameter.device, parameter.dtype, copy=True)
