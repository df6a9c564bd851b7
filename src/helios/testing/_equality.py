"""Bitwise comparison of states."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from helios.checkpoint.plain import encode


def are_equal(first: Any, second: Any) -> bool:
    """Whether two pieces of plain data are bitwise equal: types, keys and their order, numbers and tensors.

    A NaN equals a NaN; 0.0 and -0.0 differ, and so do 1 and 1.0. Tensors also differ by dtype, shape and device.

    Args:
        first: plain data, such as the state dict of a model.
        second: the data to compare it with.

    Raises:
        ArgumentTypeError: if either is not plain data.
    """
    return _are_equal(encode(first, "first"), encode(second, "second"))


def _are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and _are_same_tensor(first, second)
    if isinstance(first, dict):
        return isinstance(second, dict) and _are_equal(list(first.items()), list(second.items()))
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_are_equal, first, second))
    # repr distinguishes 0.0 from -0.0, and gives the same text for every NaN.
    return repr(first) == repr(second) if isinstance(first, float | complex) else bool(first == second)


def _are_same_tensor(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape or first.device != second.device:
        return False
    return first.is_meta or first.numel() == 0 or np.array_equal(_bytes_of(first), _bytes_of(second))


def _bytes_of(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
