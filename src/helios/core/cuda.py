"""Small helpers around CUDA that run on machines without it as well."""

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

    On exit `torch.backends.cudnn.benchmark` has the value that it had before. Contexts may be nested, and one object
    may be entered again within itself.
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
        """Restore the value of before."""
        torch.backends.cudnn.benchmark = self._before.pop()
