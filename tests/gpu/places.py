"""Where a tensor is, on GPUs that are not there, and what operations make of it. See `tests.gpu.tensors`."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from tests.gpu.driver import Copy, DeviceGenerator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gpu.driver import Driver

CPU = torch.device("cpu")
PLACE = "_stand_in_place"
BASE: Any = torch._C.TensorBase

_WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
}
_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


def place_of(tensor: torch.Tensor) -> torch.device:
    """Return the device that a tensor says that it is on."""
    real: torch.device = BASE.device.__get__(tensor)
    if hasattr(tensor, "_local_tensor"):
        return place_of(tensor._local_tensor)  # A part of one that is spread over the ranks.
    if real.type != "cpu" or is_wrapper(tensor) or tensor.layout is not torch.strided:
        return real
    place: torch.device = getattr(tensor.untyped_storage(), PLACE, CPU)
    return place


def is_wrapper(value: Any) -> bool:
    return is_traceable_wrapper_subclass(value)


class OnDevices(TorchDispatchMode):
    """Puts what operations make where their arguments are."""

    def __init__(self, fake: Driver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has not annotated it.
        self.driver = fake
        self.local = threading.local()

    def put(self, value: Any, place: torch.device, known: set[int] | None = None) -> None:
        """Have all tensors in a result be on a device, except those whose memory is known."""
        if place.type != "cuda":
            return
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor) and BASE.device.__get__(tensor).type == "cpu":
                storage = tensor.untyped_storage()
                if known is None or storage._cdata not in known:
                    setattr(storage, PLACE, place)
                    self.driver.used.add(place.index)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if any(map(is_wrapper, tensors)):
            return func(*args, **kwargs)
        if func is torch.ops.aten.copy_.default:
            self.copy(args[1], args[0], non_blocking=kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
            return func(*args, **kwargs)
        out = kwargs.get("out")  # Memory that DDP has made for its buckets knows nothing of a GPU yet.
        place = self._find_place(func, [tensor for tensor in tensors if tensor is not out])
        if place.type == "cuda" and func in _WAITING:
            self.driver.sync(str(func))
        known = {tensor.untyped_storage()._cdata for tensor in tensors if tensor.layout is torch.strided}
        is_drawn = torch.Tag.nondeterministic_seeded in func.tags
        has_generator = any(isinstance(leaf, torch.Generator) for leaf in leaves)
        with self._drawing_on(place) if is_drawn and not has_generator else contextlib.nullcontext():
            result = func(*args, **kwargs)
        self.put(result, place, known)
        self.put(out, place)
        return result

    def _find_place(self, func: Any, tensors: list[torch.Tensor]) -> torch.device:
        asked: torch.device | None = getattr(self.local, "place", None)
        if asked is not None:
            return asked
        # A number on the CPU goes with tensors anywhere.
        places = {place_of(tensor) for tensor in tensors if tensor.dim() > 0 or place_of(tensor) != CPU}
        if func in _INDEXING and place_of(tensors[0]) != CPU:
            if len(places) > 1:
                self.driver.sync(f"{func} with indices on the CPU")
            elif any(tensor.dtype is torch.bool for tensor in tensors[1:]):
                self.driver.sync(f"{func} with a mask, whose ones are counted")
            return place_of(tensors[0])
        if len(places) > 1:
            found = " and ".join(sorted(map(str, places), reverse=True))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {found}! ({func})"
            )
        return places.pop() if places else CPU

    def copy(self, source: torch.Tensor, target: torch.Tensor, *, non_blocking: bool) -> None:
        """Note a copy, if it is one between devices."""
        here, there = place_of(source), place_of(target)
        if here != there:
            pinned = bool(source.is_pinned() if here == CPU else target.is_pinned())
            self.driver.copies.append(Copy(here, there, source.numel(), pinned, non_blocking))
            if CPU in (here, there) and not non_blocking:
                self.driver.sync(f"a copy from {here} to {there}")

    @contextlib.contextmanager
    def _drawing_on(self, place: torch.device) -> Iterator[None]:
        if place.type != "cuda":
            yield
            return
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has not annotated it.
        generator, before = torch.cuda.default_generators[place.index], torch.default_generator.get_state()
        assert isinstance(generator, DeviceGenerator)
        torch.default_generator.set_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(before)

    @contextlib.contextmanager
    def making_on(self, place: torch.device) -> Iterator[None]:
        """Have what is made while the context lasts be on a device."""
        before = getattr(self.local, "place", None)
        self.local.place = place
        try:
            yield
        finally:
            self.local.place = before
