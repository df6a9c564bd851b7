"""Paths that callers give, files that are read from there, and the working directory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final

from helios.errors import ArgumentTypeError, ConfigurationError, FileAccessError, MissingFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


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


def ensure_regular(path: str | os.PathLike[str]) -> None:
    """Check that what has a name is a file, or a link to one, before it is opened: opening a FIFO waits for ever.

    Raises:
        OSError: if it is something else, or there is nothing of that name.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - of a string as well.
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        error = IsADirectoryError if stat.S_ISDIR(mode) else OSError
        raise error(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"it is {kind}, and not a file", str(path))


def open_regular(path: Path) -> BufferedReader:
    """Open a file to be read. Nothing else is opened: a FIFO would wait for a writer, a device may never end.

    Raises:
        OSError: if there is no such file, if it cannot be read, or if it is something else than a file.
    """
    ensure_regular(path)
    return open(path, "rb", opener=_open_at_once)  # Path.open takes no opener.


def _open_at_once(name: str, flags: int) -> int:
    # Somebody may have put a FIFO in the file's place since it was looked at. On files, the flag does nothing.
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def accessing(path: object) -> Iterator[None]:
    """Name the file or folder that was given when it cannot be used.

    Raises:
        FileAccessError: for an `OSError`; it is a `FileNotFoundError` if that was one.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(error.errno, f"{error.strerror}: correct the path", str(path)) from error
    except OSError as error:
        raise FileAccessError(error.errno, error.strerror or str(error), str(path)) from error


def can_be_in_name(text: str) -> bool:
    """Whether a text can be a part of a file's name, on every system."""
    try:
        return not any(character in b"/\\\0" for character in os.fsencode(text))
    except UnicodeEncodeError:  # A half of a surrogate pair.
        return False


def as_path(path: str | os.PathLike[str] | None, argument: str = "path") -> Path | None:
    """Return an absolute path, so that a later change of the working folder does not move it; see `to_path`."""
    return None if path is None else to_path(path, argument)


def to_path(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Return an absolute path, so that a later change of the working folder does not move it.

    Args:
        path: a path, perhaps relative, or with "~" or "~user" in front.
        argument: what an error calls it.

    Raises:
        ArgumentTypeError: if it is no path.
        ConfigurationError: if no file can have it.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"{argument} is {path!r}, a {type(path).__name__}: pass a path")
    try:
        given = Path(path)
        if b"\0" in os.fsencode(given):
            raise ConfigurationError(f"{argument} is {str(given)!r}: no path has a NUL character in it, leave it out")
        return given.expanduser().absolute()
    except TypeError:
        raise ArgumentTypeError(f"{argument} is {path!r}, whose path is no string: pass a path") from None
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{argument} is {str(path)!r}, which no file system can hold ({error.reason}): use other characters"
        ) from error
    except RuntimeError as error:
        raise ConfigurationError(
            f"{argument} is {str(path)!r}, and there is no home folder of that name here: write the folder in its place"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{argument} is {str(path)!r}, and the working folder cannot be found, it may have been deleted ({error}): "
            "pass an absolute path, or change to a folder that exists"
        ) from error
