"""From images to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import helios.data as hld
from helios.data.transforms import TRANSFORM_REGISTRY, ToImageTensor, create_transform
from helios.errors import ArgumentTypeError, ConfigurationError, UnknownNameError


class Picture:
    """What a PIL image is for NumPy."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self.pixels = pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.pixels, dtype=dtype, copy=copy)


PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


@pytest.mark.parametrize("make", [np.asarray, Picture, torch.from_numpy, lambda pixels: pixels[:, ::-1][:, ::-1]])
def test_an_image_of_bytes_becomes_floats_with_channels_first(make: Any) -> None:
    """An array, an image and a tensor of shape (H, W, C) give the same (C, H, W), divided by 255."""
    made = hld.transforms.ToImageTensor()(make(PIXELS.copy()))
    assert made.dtype == torch.float32
    assert made.is_contiguous()
    assert torch.equal(made, torch.from_numpy(PIXELS.transpose(2, 0, 1) / np.float32(255)))


@pytest.mark.parametrize(
    ("pixels", "shape"), [(PIXELS[:, :, 0], (1, 2, 4)), (PIXELS, (3, 2, 4)), (PIXELS[None], (1, 3, 2, 4))]
)
def test_grey_images_and_batches_have_channels_too(pixels: np.ndarray[Any, Any], shape: tuple[int, ...]) -> None:
    """A grey image gets one channel; a batch keeps its first dimension."""
    assert ToImageTensor()(pixels).shape == shape


def test_a_list_of_images_becomes_a_list_of_tensors() -> None:
    """Images of different sizes stay apart, in a list or a tuple."""
    for images in ([PIXELS, PIXELS[:, :2]], (PIXELS, PIXELS[:, :2])):
        made = ToImageTensor()(images)
        assert [each.shape for each in made] == [(3, 2, 4), (3, 2, 2)]


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("uint8", 255, 1.0),
        ("uint16", 65535, 1.0),
        (">u2", 65535, 1.0),
        ("bool", 1, 1.0),
        ("int32", 7, 7.0),
        ("f8", 0.5, 0.5),
    ],
)
def test_unsigned_integers_alone_are_scaled(dtype: str, value: float, expected: float) -> None:
    """Unsigned integers are divided by the largest of their dtype, whatever the byte order; other numbers are kept."""
    assert ToImageTensor()(np.full((1, 1, 1), value, dtype=dtype)).item() == expected
    assert ToImageTensor(normalize=False)(np.full((1, 1, 1), value, dtype=dtype)).item() == value


def test_the_image_is_not_shared() -> None:
    """Changing the tensor leaves an image of the same dtype as it was, so a dataset's images cannot be spoilt."""
    pixels = np.zeros((2, 2, 1), dtype=np.float32)
    ToImageTensor()(pixels).fill_(1)
    tensor = torch.zeros(2, 2, 1)
    ToImageTensor()(tensor).fill_(1)
    assert not pixels.any()
    assert not tensor.any()


def test_what_is_no_image_is_refused() -> None:
    """Shapes and contents that are no image are named, with what to pass; so is a dtype that is not floating point."""
    with pytest.raises(ArgumentTypeError, match=r"shape \(3,\): pass \(H, W\)"):
        ToImageTensor()(np.zeros(3))
    with pytest.raises(ArgumentTypeError, match="'cat.png'.*pass an array of numbers"):
        ToImageTensor()("cat.png")
    with pytest.raises(ConfigurationError, match=r"dtype is torch.uint8: pass a floating-point dtype"):
        ToImageTensor(dtype=torch.uint8)


def test_transforms_are_made_by_name() -> None:
    """`create_transform` makes registered transforms, a user's own too; an unknown name lists those there are."""
    made = create_transform("ToImageTensor", dtype=torch.float64)
    assert isinstance(made, nn.Module)
    assert made(PIXELS).dtype == torch.float64
    assert hld.create_transform is create_transform
    assert hld.TRANSFORM_REGISTRY is TRANSFORM_REGISTRY
    with pytest.raises(UnknownNameError, match="did you mean 'ToImageTensor'"):
        create_transform("ToImgTensor")
