"""The process's environment variables: the one room that reads or sets them."""

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
    """Return the environment of this process, live."""
    return os.environ


def prefer_loopback() -> None:
    """Have gloo and NCCL connect processes of this machine over its loopback interface, unless another one was chosen.

    By themselves, gloo chooses by the machine's name, which may lead nowhere, and NCCL chooses any other interface: its
    sockets then accept connections from the network.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name in _LOOPBACKS), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={loopback}")  # "=": this name, not every name it begins.


@contextlib.contextmanager
def deterministic_kernels(*, deterministic: bool, benchmark: bool) -> Iterator[None]:
    """Choose between exactness and speed in torch's kernels while the context lasts.

    Args:
        deterministic: use deterministic algorithms only; operations that have none raise `RuntimeError`.
        benchmark: let cuDNN time its algorithms and keep the fastest, which may differ from run to run.
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

    The current GPU is used by what names none: `"cuda"` without an index, collectives of NCCL, pinned memory.

    Args:
        device: the device of the run, of the CPU or with an index.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):  # It also initialises CUDA.
        yield


def _set_determinism(mode: bool, *, warn_only: bool) -> None:
    # Setting it imports torch's compiler, for a second: not where nothing changes.
    if (mode, warn_only) != (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
