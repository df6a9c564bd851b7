"""Gradients in flight: what has been added up since an optimizer last used it, and a checkpoint must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from helios.checkpoint.parts import bare_name, find_wrappers, networks_of
from helios.core.shard_gradients import be_whole_once, find_sharded
from helios.core.shard_tree import is_sharded
from helios.errors import CheckpointMismatchError
from helios.model.wrapping import mark_used

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import torch
    from torch.utils.hooks import RemovableHandle

    from helios.model.model import Model

_KEPT_BACK: Final = " (kept back)"  # No parameter has a space in its name.
# A gradient that was changed in place more often is taken for one that is never set to zero: clipping and unscaling
# change it a few times, and each backward pass once more.
_MANY_CHANGES: Final = 8


class GradientWatch:
    """Knows which gradients optimizers have used already.

    What an optimizer has used is overwritten by the next step of training, and need not be saved. It is found out in
    the batch before a checkpoint alone: in every other batch, a step costs nothing. At a checkpoint that was not
    expected, such as after a signal, all gradients are kept.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._handle: RemovableHandle | None = None
        self._used: dict[int, tuple[torch.Tensor, int]] = {}
        self._stepped: list[Optimizer] = []

    def arm(self) -> None:
        """Watch the steps of every optimizer until the next `find_used`."""
        if self._handle is None:
            self._handle = register_optimizer_step_post_hook(self._note)

    def close(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._used.clear()
        self._stepped.clear()

    def _note(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepped.append(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._used[id(parameter)] = parameter.grad, _version(parameter.grad)

    def find_used(self) -> set[int]:
        """Return the ids of the parameters whose gradients an optimizer has used since anything was added to them."""
        groups = [group for optimizer in self._stepped for group in optimizer.param_groups]
        used = {id(parameter) for group in groups for parameter in group["params"] if self._is_used(parameter)}
        self.close()
        return used

    def _is_used(self, parameter: torch.Tensor) -> bool:
        gradient, version = self._used.get(id(parameter), (None, 0))
        is_same = gradient is not None and gradient is parameter.grad and version == _version(gradient)
        return is_same and version <= _MANY_CHANGES


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - autograd's own counter; there is no public one.


def _parameters(model: Model) -> dict[str, torch.Tensor]:
    """Return everything that gradients are added up for, by name: parameters of networks, and what stands by itself."""
    found: dict[str, torch.Tensor] = {
        f"{name}.{bare_name(parameter_name, wrappers)}": parameter
        for name, network in networks_of(model).items()
        for wrappers in [find_wrappers(network)]
        for parameter_name, parameter in network.named_parameters()
    }
    known = {id(parameter) for parameter in found.values()}
    for path, tensor in model._attribute_states.find_leaves().items():  # noqa: SLF001 - the run's side of Model.
        if id(tensor) not in known:
            known.add(id(tensor))
            found[path] = tensor
    return found


def collect_gradients(model: Model, used: set[int] = frozenset()) -> dict[str, torch.Tensor]:  # type: ignore[assignment]  # it is only read
    """Return the gradients in flight by name; those that are `None` are left out.

    Of a parameter that is spread over the ranks there may be two: what each rank has kept back has a name of its own.

    Args:
        model: the model.
        used: ids of parameters whose gradients are left out.

    Raises:
        ConfigurationError: if a gradient has been exchanged within some ranks, and kept back from others.
    """
    sharded = find_sharded(networks_of(model).values())
    gradients: dict[str, torch.Tensor | None] = {}
    for name, parameter in _parameters(model).items():
        spread = sharded.get(id(parameter))
        part = parameter if spread is None else spread.part
        gradients[name] = None if {id(parameter), id(part)} & used else part.grad
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
