"""What a passport says of the machine: what decides the bits of a result, beside the program and its seed."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from helios._version import __version__


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the entries of a passport for versions, precision, threads and the kind of device, as they are now.

    Args:
        device: the device that trains.
    """
    is_cuda = device.type == "cuda"
    return {
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32_precision": _describe_precision(is_cuda=is_cuda),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": _describe_cudnn() if is_cuda else None,
        "device": _describe_device(device),
        "threads": torch.get_num_threads(),
        "helios": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _describe_device(device: torch.device) -> str:
    """Return the kind of a device: another model of it rounds otherwise."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return device.type


def _describe_precision(*, is_cuda: bool) -> dict[str, str]:
    """Return how float32 is computed with; not by `get_float32_matmul_precision`, which may raise."""
    backends = torch.backends
    of_device = backends.cudnn if is_cuda else backends.mkldnn
    matmul = backends.cuda.matmul if is_cuda else backends.mkldnn.matmul  # type: ignore[attr-defined]  # It is there at run time.
    return {
        "matmul": matmul.fp32_precision,
        "conv": of_device.conv.fp32_precision,
        "rnn": of_device.rnn.fp32_precision,
    }


def _describe_cudnn() -> dict[str, bool]:
    return {
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.backends.cudnn.deterministic,
    }
