"""Tensors on GPUs that are not there: the memory is the host's, and has the name of a GPU on it.

The name is an attribute of the storage, so that views, parameters and gradients have it without further ado. What an
operation makes is where its arguments are, and arguments on different devices are refused as CUDA refuses them. Numbers
are drawn from the generator of the device. What would make the host wait for a GPU is noted, see `Driver.sync`.

Not simulated: time, streams, memory limits, kernels that exist for one device alone, and rounding.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import TYPE_CHECKING, Any

import torch

from tests.gpu.driver import driver, replaced
from tests.gpu.places import BASE, CPU, PLACE, OnDevices, is_wrapper, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gpu.driver import Driver

_PINNED = "_stand_in_pinned"

# fmt: off
_FACTORIES = [
    "arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace",
    "logspace", "ones", "ones_like", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
    "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros", "zeros_like",
]
# fmt: on
_NEW = ["new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros"]
_FROM_HOST = {"tensor", "as_tensor", "new_tensor"}  # They copy what they are given.


def _resolve(device: Any) -> torch.device | None:
    """Return a device with its index, as CUDA does it: with the current one where none is named."""
    if device is None:
        return None
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type != "cuda":
        return torch.device(device.type)
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has not annotated it.
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
    return torch.device("cuda", index)


def _make_on_device(mode: OnDevices, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def make(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        place = _resolve(device)
        pin = kwargs.pop("pin_memory", False)
        if place is None:
            result = function(*args, **kwargs)
        elif name == "as_tensor" and isinstance(args[0], torch.Tensor):
            result = args[0].to(place, **kwargs)
        elif place.type not in ("cpu", "cuda"):
            result = function(*args, device=place, **kwargs)
        elif name in _FROM_HOST:
            result = function(*args, **kwargs).to(place)
        else:
            with mode.making_on(place):
                result = function(*args, **kwargs)
            mode.put(result, place)  # In another thread than the mode's, nobody else does.
        return result.pin_memory() if pin else result

    return make


def _make_to(mode: OnDevices) -> Callable[..., torch.Tensor]:
    plain_to = BASE.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, kwargs = _parse(list(args), kwargs)
        if is_wrapper(self):
            return self if not kwargs else plain_to(self, **kwargs)
        place, here = _resolve(device) or place_of(self), place_of(self)
        if place.type not in ("cpu", "cuda") or BASE.device.__get__(self).type != "cpu":
            moved: torch.Tensor = plain_to(self, place, **kwargs)
            return moved
        non_blocking = kwargs.pop("non_blocking", False)
        if place == here:
            same: torch.Tensor = plain_to(self, **kwargs) if kwargs else self
            return same
        moved = plain_to(self, **{"dtype": self.dtype, **kwargs, "copy": True})
        setattr(moved.untyped_storage(), PLACE, place)
        if place.type == "cuda":
            mode.driver.used.add(place.index)
        mode.copy(self, moved, non_blocking=non_blocking)
        return moved

    return to


def _parse(rest: list[Any], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the device that `Tensor.to` is given, and all else by name; a device, dtype or tensor comes first."""
    device = kwargs.pop("device", None)
    if rest and isinstance(rest[0], torch.Tensor):
        other = rest.pop(0)
        device, rest = place_of(other), [other.dtype, *rest]
    elif rest and (rest[0] is None or isinstance(rest[0], str | int | torch.device)):
        device = rest.pop(0)
        if rest and isinstance(rest[0], bool):
            rest.insert(0, None)  # Without a dtype.
    kwargs |= dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False))
    return device, {name: value for name, value in kwargs.items() if value is not None}


def _methods(mode: OnDevices) -> dict[str, Any]:
    """Return the methods of tensors that ask for a device, or tell of it."""
    to, plain_numpy, plain_list = _make_to(mode), BASE.numpy, BASE.tolist

    def pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:
        del device
        if place_of(self) != CPU:
            raise RuntimeError(f"cannot pin '{place_of(self)}' only dense CPU tensors can be pinned")
        mode.driver.used.add(torch.cuda.current_device())
        pinned = self.detach().clone()
        setattr(pinned.untyped_storage(), _PINNED, True)
        return pinned

    def numpy(self: torch.Tensor, **kwargs: Any) -> Any:
        if place_of(self).type == "cuda":
            raise TypeError(f"can't convert {place_of(self)} device type tensor to numpy. Use Tensor.cpu() first")
        return plain_numpy(self, **kwargs)

    def tolist(self: torch.Tensor) -> Any:
        if place_of(self).type == "cuda":
            mode.driver.sync("tolist")
        return plain_list(self)

    def is_pinned(self: torch.Tensor, device: Any = None) -> bool:
        del device
        return bool(getattr(self.untyped_storage(), _PINNED, False))

    def get_device(self: torch.Tensor) -> int:
        index: int | None = place_of(self).index
        return -1 if index is None else index

    def cuda(self: torch.Tensor, device: Any = None, non_blocking: bool = False) -> torch.Tensor:
        return to(self, "cuda" if device is None else device, non_blocking=non_blocking)

    return {
        "device": property(place_of),
        "is_cuda": property(_is_cuda),
        "is_cpu": property(_is_cpu),
        "get_device": get_device,
        "to": to,
        "cuda": cuda,
        "cpu": lambda self: to(self, CPU),
        "pin_memory": pin_memory,
        "is_pinned": is_pinned,
        "numpy": numpy,
        "tolist": tolist,
        **{name: _make_on_device(mode, name, getattr(BASE, name)) for name in _NEW},
    }


def _is_cuda(tensor: torch.Tensor) -> bool:
    return place_of(tensor).type == "cuda"


def _is_cpu(tensor: torch.Tensor) -> bool:
    return place_of(tensor).type == "cpu"


def _storage_methods(fake: Driver) -> dict[str, Any]:
    """Return the methods of storages that ask for a device, or tell of it."""

    def to(self: torch.UntypedStorage, *, device: Any, non_blocking: bool = False) -> torch.UntypedStorage:
        del non_blocking
        place = _resolve(device)
        assert place is not None
        copied = _clone_storage(self)
        setattr(copied, PLACE, place)
        if place.type == "cuda":
            fake.used.add(place.index)
        return copied

    return {"clone": _clone_storage, "to": to, "device": property(lambda self: getattr(self, PLACE, CPU))}


def _clone_storage(self: torch.UntypedStorage) -> torch.UntypedStorage:
    copied = torch.UntypedStorage(self.nbytes()).copy_(self)  # type: ignore[no-untyped-call]  # as in OnDevices
    if hasattr(self, PLACE):
        setattr(copied, PLACE, getattr(self, PLACE))
    return copied


@contextlib.contextmanager
def _files(fake: Driver) -> Iterator[None]:
    """Let files say of tensors on which GPU they were, and put them back there unless told otherwise."""
    registry = torch.serialization._package_registry
    before = list(registry)

    def put_back(storage: Any, location: str) -> Any:
        if not location.startswith("cuda"):
            return None
        place = _resolve(location)
        assert place is not None
        setattr(storage, PLACE, place)
        fake.used.add(place.index)
        return storage

    torch.serialization.register_package(5, _tag, put_back)  # Before the CPU's, which is 10.
    try:
        yield
    finally:
        registry[:] = before


def _tag(storage: Any) -> str | None:
    place = getattr(storage, PLACE, None)
    return None if place is None or place == CPU else str(place)


@contextlib.contextmanager
def gpus(count: int) -> Iterator[Driver]:
    """Let there be GPUs with tensors on them while the context lasts, in this thread; nothing is initialised yet.

    Args:
        count: how many.
    """
    # Optimizers import it; where there seems to be a GPU already, it would look for more of it than there is.
    importlib.import_module("torch._dynamo")
    with driver(count) as fake, contextlib.ExitStack() as stack:
        mode = OnDevices(fake)
        makers = {name: _make_on_device(mode, name, getattr(torch, name)) for name in _FACTORIES}
        stack.enter_context(replaced(torch, makers))
        stack.enter_context(replaced(torch.Tensor, _methods(mode)))
        stack.enter_context(replaced(torch.UntypedStorage, _storage_methods(fake)))
        stack.enter_context(_files(fake))
        stack.enter_context(mode)
        yield fake
