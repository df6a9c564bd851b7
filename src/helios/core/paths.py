"""Where the process stands in the file system."""

from __future__ import annotations

import contextlib
from os import PathLike

from helios.core.files import accessing
from helios.errors import ArgumentTypeError


class ChdirContext(contextlib.chdir[str | PathLike[str]]):
    """A context in which `path` is the working directory; the one before is restored on exit.

    It may be entered again within itself. The working directory belongs to the whole process: other threads see it too.

    Args:
        path: the directory to enter.

    Raises:
        ArgumentTypeError: if `path` is no path.
        ConfigurationError: if no directory can have it.
        FileAccessError: on entry, if the directory cannot be entered; it is an `OSError`.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        if not isinstance(path, str | PathLike):
            raise ArgumentTypeError(f"path is {path!r}, a {type(path).__name__}: pass the path of a directory")
        super().__init__(path)

    def __enter__(self) -> None:
        """Enter the directory."""
        with accessing(self.path):
            super().__enter__()
