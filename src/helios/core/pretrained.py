"""Finding files of pretrained weights by name."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from helios.core.paths import accessing, to_path
from helios.errors import ArgumentTypeError, ConfigurationError, MissingFileError

if TYPE_CHECKING:
    import os
    from pathlib import Path

__all__ = ["find_pretrained_file"]


def find_pretrained_file(root: str | os.PathLike[str], name: str) -> Path:
    """Return the file of this name in a folder of pretrained weights.

    The first of these rules that some files fit decides: the name of the file is `name`; it is `name` without the
    extension; it begins with `name`, as in `resnet18` for `resnet18-f37072fd.pth`.

    Args:
        root: the folder. Folders below it are not searched.
        name: the name, or the beginning of it.

    Raises:
        MissingFileError: if no file fits; the message lists the files that there are.
        ConfigurationError: if several files fit the same rule.
        FileAccessError: if `root` cannot be read.
        ArgumentTypeError: if an argument has the wrong type.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"name is {name!r}, a {type(name).__name__}: pass a string")
    if not name:
        raise ConfigurationError("name is '', which every file begins with: pass the name of a file")
    folder = to_path(root, "root")
    with accessing(folder):
        files = sorted(path for path in folder.iterdir() if path.is_file())
    found = (
        [path for path in files if path.name == name]
        or [path for path in files if path.stem == name]
        or [path for path in files if path.name.startswith(name)]
    )
    if not found:
        there = ", ".join(path.name for path in files) or "none"
        raise MissingFileError(errno.ENOENT, f"no file is named {name!r}, or begins so; there are {there}", str(folder))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigurationError(f"{name!r} fits {names} in '{folder}': pass the whole name of one")
    return found[0]
