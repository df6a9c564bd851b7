"""Files of pretrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helios.core import find_pretrained_file
from helios.errors import ArgumentTypeError, ConfigurationError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    for name in ("net.pth", "net", "net-1a2b.pth", "resnet-3c4d.pth", "vgg.pth", "vgg.ckpt", "alexnet.pth"):
        (tmp_path / name).touch()
    (tmp_path / "alexnet").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [("net", "net"), ("net.pth", "net.pth"), ("net-", "net-1a2b.pth"), ("resnet", "resnet-3c4d.pth"), ("alexnet",) * 2],
)
def test_the_closest_name_is_found(weights: Path, name: str, file: str) -> None:
    """A whole name comes before one without its extension, and that before a beginning; folders are no files."""
    expected = "alexnet.pth" if file == "alexnet" else file
    assert find_pretrained_file(weights, name) == weights / expected
    assert find_pretrained_file(root=str(weights), name=name) == weights / expected


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("bert", MissingFileError, "no file is named 'bert', or begins so; there are alexnet.pth, net, net-1a2b.pth"),
        ("vgg", ConfigurationError, "'vgg' fits vgg.ckpt, vgg.pth in .*: pass the whole name of one"),
        ("", ConfigurationError, "name is '', which every file begins with"),
        (3, ArgumentTypeError, "name is 3, a int: pass a string"),
    ],
)
def test_a_name_that_no_file_or_several_have_is_refused(weights: Path, name: Any, error: type, message: str) -> None:
    """The errors list the files that there are, or those that fit."""
    with pytest.raises(error, match=message):
        find_pretrained_file(weights, name)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that does not exist is a FileNotFoundError with its path."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_pretrained_file(tmp_path / "nowhere", "net")
