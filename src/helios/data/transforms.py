"""Transforms by name, and `ToImageTensor`, which needs NumPy and torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from helios.core.registry import Registry
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TRANSFORM_REGISTRY", "ToImageTensor", "create_transform"]

# Numbers of dimensions.
_MATRIX: Final = 2  # (H, W), a grey image.
_IMAGE: Final = 3  # (H, W, C), an image.
_BATCH: Final = 4  # (N, H, W, C), a batch of images.

TRANSFORM_REGISTRY: Registry[Callable[..., Any]] = Registry("transform")
"""The transforms: callables that take a sample, or a part of one, and return the transformed one."""


def create_transform(type_name: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Make the transform that is registered as `type_name`.

    >>> create_transform("ToImageTensor", normalize=False)
    ToImageTensor(dtype=torch.float32, normalize=False)

    Args:
        type_name: the registered name.
        *args: passed on.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is no such name; the message lists the registered ones.
    """
    return TRANSFORM_REGISTRY.create(type_name, *args, **kwargs)


@TRANSFORM_REGISTRY.register
class ToImageTensor(nn.Module):
    """Convert images to tensors: from (H, W, C) to (C, H, W), and to floating point.

    An image is a NumPy array, a tensor or anything that `numpy.asarray` converts, such as a PIL image. Its shape is
    (H, W), which gets one channel, (H, W, C), or (N, H, W, C) for a batch of images. A list or tuple of images becomes
    a list of tensors. Unsigned integers are divided by the largest value of their dtype (255 for `uint8`).

    >>> ToImageTensor()(np.full((4, 6, 3), 255, dtype=np.uint8)).shape
    torch.Size([3, 4, 6])

    Args:
        dtype: the floating-point dtype of the result.
        normalize: divide unsigned integers by the largest value of their dtype; otherwise they keep their values.

    Raises:
        ConfigurationError: if `dtype` is not a floating-point dtype.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, normalize: bool = True) -> None:
        super().__init__()
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigurationError(f"dtype is {dtype!r}: pass a floating-point dtype, such as torch.float32")
        self.dtype = dtype
        self.normalize = normalize

    def extra_repr(self) -> str:
        """Return the arguments, as `repr` shows them."""
        return f"dtype={self.dtype}, normalize={self.normalize}"

    def forward(self, image: Any) -> Any:
        """Return a tensor of shape (C, H, W) or (N, C, H, W), or a list of them for a list or tuple of images.

        Raises:
            ArgumentTypeError: if the image has another number of dimensions, or does not consist of numbers.
        """
        if isinstance(image, list | tuple):
            return [self._convert(each) for each in image]
        return self._convert(image)

    def _convert(self, image: Any) -> torch.Tensor:
        values = image if isinstance(image, torch.Tensor) else _as_tensor(image)
        if values.ndim == _MATRIX:
            values = values.unsqueeze(-1)
        if values.ndim not in (_IMAGE, _BATCH):
            raise ArgumentTypeError(
                f"the image has the shape {tuple(values.shape)}: pass (H, W), (H, W, C) or, for a batch, (N, H, W, C)"
            )
        moved = values.movedim(-1, -3)
        # Copied even if the dtype is the same: the tensor must not share memory with the dataset's image.
        converted = moved.to(self.dtype, memory_format=torch.contiguous_format, copy=True).contiguous()
        is_unsigned = not values.dtype.is_floating_point and not values.dtype.is_signed and values.dtype != torch.bool
        return converted.div_(torch.iinfo(values.dtype).max) if self.normalize and is_unsigned else converted


def _as_tensor(image: Any) -> torch.Tensor:
    array = np.asarray(image)
    if array.dtype.kind not in "biuf":
        raise ArgumentTypeError(
            f"the image is {image!r:.80}, an array of {array.dtype}: pass an array of numbers, or an image that "
            "numpy.asarray converts to one"
        )
    # torch.from_numpy accepts neither negative strides nor a byte order other than the machine's.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
