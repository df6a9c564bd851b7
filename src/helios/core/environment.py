"""The environment variables of the process, and the settings of torch that depend on them.

No other module of the package reads or sets environment variables.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOOPBACKS: Final = ("lo", "lo0")  # As Linux names it, and as macOS does.


def read_environment() -> Mapping[str, str]:
    """Return the environment variables of this process; the mapping shows later changes."""
    return os.environ


def prefer_loopback() -> None:
    """Make gloo and NCCL connect processes of this machine over its loopback interface, unless another one is set.

    By default, gloo uses the interface of the address that the machine's name resolves to, which may be unreachable.
    NCCL prefers any interface but the loopback one, and its sockets then accept connections from the network.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name in _LOOPBACKS), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={loopback}")  # "=": exactly this name, not a prefix.


@contextlib.contextmanager
def deterministic_kernels(*, deterministic: bool, benchmark: bool) -> Iterator[None]:
    """Set whether torch's kernels are deterministic, and whether cuDNN is benchmarked, while the context lasts.

    Args:
        deterministic: use deterministic algorithms only; operations that have none raise `RuntimeError`.
        benchmark: let cuDNN time its algorithms and use the fastest one, which may differ from run to run.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Read when cuBLAS makes its first handle.
    _set_determinism(deterministic or before[0], warn_only=warn_only and not deterministic)
    torch.backends.cudnn.benchmark = benchmark
    try:
        yield
    finally:
        _set_determinism(before[0], warn_only=warn_only)
        torch.backends.cudnn.benchmark = before[1]


@contextlib.contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Make a GPU the current device of this thread while the context lasts; for a CPU device, change nothing.

    The current GPU is used where no index is given: by `"cuda"`, by NCCL's collectives and by pinned memory.

    Args:
        device: the device of the run: a CPU, or a GPU with an index.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):  # It also initialises CUDA.
        yield


def _set_determinism(mode: bool, *, warn_only: bool) -> None:
    # torch.use_deterministic_algorithms imports torch's compiler, which takes a second; so only a change calls it.
    if (mode, warn_only) != (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
