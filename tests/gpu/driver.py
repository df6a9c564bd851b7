"""A stand-in for the CUDA driver: `torch.cuda` is torch's own, and what it asks of the C++ side is answered here.

A CPU build of torch has the whole of the Python code of `torch.cuda`, with its lazy initialisation, its queue of seeds
and its current device, and lacks only the functions of `torch._C` beneath. These are put in their place, for GPUs that
are not there. `tests.gpu.tensors` adds tensors that are on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import types
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch._utils import _LazySeedTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class DeviceGenerator(torch.Generator):
    """The generator of a GPU. It draws as a CPU generator does, and says where it is."""

    index: int

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # torch's is an attribute
        return torch.device("cuda", self.index)


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy between the host and a GPU, or two GPUs."""

    source: torch.device
    target: torch.device
    elements: int
    pinned: bool
    non_blocking: bool


class Stream:
    """A stream, or an event on one: all work is done at once, so that there is nothing to wait for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ask nothing of the driver: Adam looks for the current stream wherever there is CUDA, also on the CPU."""

    def is_capturing(self) -> bool:
        return False

    def wait(self, *_: Any) -> None:
        """Do nothing."""

    wait_stream = wait_event = record = synchronize = wait

    def record_event(self, *_: Any) -> Stream:
        return Stream()


class Driver:
    """GPUs that are not there, and what was done with them.

    Attributes:
        calls: what was asked of the driver, in order: ("init",), ("set_device", 1), ...
        copies: the copies between devices.
        syncs: what has made the host wait for a GPU, in order.
        used: the GPUs on which there has been memory, or of which the current one was when memory was pinned.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[tuple[Any, ...]] = []
        self.copies: list[Copy] = []
        self.syncs: list[str] = []
        self.used: set[int] = set()
        self._sync_mode = 0
        self._process = os.getpid()
        self._local = threading.local()

    @property
    def current(self) -> int:
        """The current device of this thread."""
        index: int = getattr(self._local, "index", 0)
        return index

    def sync(self, what: str) -> None:
        """Note that the host waits for a GPU, and say so as `torch.cuda.set_sync_debug_mode` has it said."""
        self.syncs.append(what)
        if self._sync_mode == 1:
            warnings.warn(f"called a synchronizing CUDA operation: {what}", stacklevel=2)
        elif self._sync_mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")

    def _init(self) -> None:
        self.calls.append(("init",))
        generators = tuple(DeviceGenerator() for _ in range(self.count))
        for index, generator in enumerate(generators):
            generator.index = index
        torch.cuda.default_generators = generators  # type: ignore[assignment]  # its stub says that there is one.

    def _is_in_bad_fork(self) -> bool:
        return ("init",) in self.calls and os.getpid() != self._process

    def _exchange(self, index: int) -> int:
        before = self.current
        if index >= self.count:
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
        if index >= 0:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has not annotated it.
            self._local.index = index
            self.calls.append(("set_device", index))
        return before if index >= 0 else -1

    def _set_sync_mode(self, mode: int) -> None:
        self._sync_mode = mode

    def synchronize(self) -> None:
        """Wait for the current device; asked for by name, this is no hidden wait."""
        self.calls.append(("synchronize", self.current))

    def below(self) -> dict[str, Callable[..., Any]]:
        """Return what stands for the functions of `torch._C`, by their names."""
        return {
            "_cuda_getDeviceCount": lambda: self.count,
            "_cuda_init": self._init,
            "_cuda_isInBadFork": self._is_in_bad_fork,
            "_cuda_getDevice": lambda: self.current,
            "_cuda_setDevice": self._exchange,
            "_cuda_synchronize": self.synchronize,
            "_cuda_set_sync_debug_mode": self._set_sync_mode,
            "_cuda_get_sync_debug_mode": lambda: self._sync_mode,
            "_cuda_getArchFlags": lambda: None,
        }

    def beside(self) -> dict[str, Any]:
        """Return what `torch.cuda` found, or had, when it was imported in a build for CUDA, by the names there."""
        return {
            "_cudart": object(),
            "_initialized": False,
            "_queued_calls": [],
            "_lazy_seed_tracker": _LazySeedTracker(),  # type: ignore[no-untyped-call]  # torch has not annotated it.
            "_is_in_bad_fork": self._is_in_bad_fork,
            "_exchange_device": self._exchange,
            "_maybe_exchange_device": self._exchange,
            "_cached_device_count": None,
            "_device_count_nvml": lambda: -1,
            "_get_device_properties": lambda _: types.SimpleNamespace(name="GPU that is not there"),
            "default_generators": (),
            "Stream": Stream,
            "Event": Stream,
            "current_stream": Stream,
            "stream": contextlib.nullcontext,
        }

    def accelerator(self) -> dict[str, Callable[..., Any]]:
        """Return what stands for the functions of `torch.accelerator` that data loaders and optimizers call."""
        return {
            "is_available": lambda: True,
            "current_accelerator": lambda check_available=False: torch.device("cuda"),  # noqa: ARG005 - torch's name
            "current_device_index": torch.cuda.current_device,
            "set_device_index": torch.cuda.set_device,
            "current_stream": Stream,
        }


@contextlib.contextmanager
def replaced(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Let an object have other attributes while the context lasts, also such as it has not had."""
    nothing = object()
    before = {name: vars(owner).get(name, nothing) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is nothing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


@contextlib.contextmanager
def driver(count: int) -> Iterator[Driver]:
    """Let there be GPUs, as far as `torch.cuda` is concerned, while the context lasts; nothing is initialised yet.

    Args:
        count: how many.
    """
    fake = Driver(count)
    with (
        replaced(torch._C, fake.below()),
        replaced(torch.cuda, fake.beside()),
        replaced(torch, {"Event": Stream}),
        replaced(torch.accelerator, fake.accelerator()),
    ):
        yield fake
