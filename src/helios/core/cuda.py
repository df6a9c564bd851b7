"""Helpers for CUDA that also work on machines without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helios.errors import DeviceUnavailableError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["DisableCuDNNBenchmarkContext", "requires_cuda_support"]


def requires_cuda_support() -> None:
    """Check that CUDA can be used on this machine.

    Raises:
        DeviceUnavailableError: if it cannot; it is a `RuntimeError`.
    """
    if not torch.cuda.is_available():
        raise DeviceUnavailableError(
            "CUDA is needed, and torch finds no CUDA device: install a CUDA build of torch and a driver for the GPU, "
            "or train with use_cpu=True"
        )


class DisableCuDNNBenchmarkContext:
    """A context in which cuDNN does not benchmark algorithms, for inputs whose shape changes in every batch.

    On exit, `torch.backends.cudnn.benchmark` has its previous value. The context is reentrant.
    """

    def __init__(self) -> None:
        self._before: list[bool] = []

    def __enter__(self) -> Self:
        """Switch benchmarking off."""
        self._before.append(torch.backends.cudnn.benchmark)
        torch.backends.cudnn.benchmark = False
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the previous value."""
        torch.backends.cudnn.benchmark = self._before.pop()
