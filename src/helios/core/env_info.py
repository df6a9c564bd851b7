"""The software and hardware that a run uses, as text."""

from __future__ import annotations

import platform

import numpy as np
import torch

from helios._version import __version__

__all__ = ["get_env_info_str"]


def get_env_info_str() -> str:
    """Return the versions of Helios, Python, torch and NumPy, the operating system and the GPUs, one a line."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines = {
        "Helios": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "NumPy": np.__version__,
        "CUDA": torch.version.cuda or "not in this build of torch",
        "cuDNN": str(torch.backends.cudnn.version() or "not in this build of torch"),  # type: ignore[no-untyped-call]  # torch has not annotated it.
        "GPUs": ", ".join(gpus) or "none",
        "System": platform.platform(),
        "Threads": str(torch.get_num_threads()),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
