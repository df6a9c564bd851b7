"""The process's environment variables: the one room that reads or sets them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def read_environment() -> Mapping[str, str]:
    """Return the environment of this process, live."""
    return os.environ


@contextlib.contextmanager
def kernel_choice(*, deterministic: bool, benchmark: bool) -> Iterator[None]:
    """Choose between exactness and speed in torch's kernels while the context lasts.

    Args:
        deterministic: use deterministic algorithms only; operations that have none raise `RuntimeError`.
        benchmark: let cuDNN time its algorithms and keep the fastest, which may differ from run to run.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Read when cuBLAS makes its first handle.
    torch.use_deterministic_algorithms(deterministic or before[0], warn_only=warn_only and not deterministic)
    torch.backends.cudnn.benchmark = benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warn_only)
        torch.backends.cudnn.benchmark = before[1]
