"""Paths that callers pass, opening the files there, and the working directory."""

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
    """A context in which `path` is the working directory; the previous one is restored on exit.

    Entering it returns the previous working directory: `with ChdirContext("data") as previous`.

    The context is reentrant. The working directory is that of the process: other threads see the change, too.

    Args:
        path: the directory to enter.

    Raises:
        ArgumentTypeError: if `path` is no path.
        ConfigurationError: on entry, if no directory can have this path.
        FileAccessError: on entry, if the directory cannot be entered; it is an `OSError`.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        if not isinstance(path, str | PathLike):
            raise ArgumentTypeError(f"path is {path!r}, a {type(path).__name__}: pass the path of a directory")
        super().__init__(path)

    def __enter__(self) -> Path:  # type: ignore[override]  # That of contextlib.chdir returns nothing.
        """Enter the directory, and return the previous one."""
        try:
            with accessing(self.path):
                previous = Path.cwd()
                super().__enter__()
        except ValueError as error:  # Of os.chdir, for a NUL character or a lone surrogate.
            raise ConfigurationError(f"path is {self.path!r}: remove what no path may have ({error})") from error
        return previous


def ensure_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path is a regular file, or a link to one, before it is opened: opening a FIFO would wait forever.

    Raises:
        OSError: if it is something else, or does not exist.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - the path may be a string.
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        error = IsADirectoryError if stat.S_ISDIR(mode) else OSError
        raise error(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"it is {kind}, and not a file", str(path))


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; a FIFO would wait for a writer, and a device may never end.

    Raises:
        OSError: if there is no such file, if it cannot be read, or if it is not a regular file.
    """
    ensure_regular(path)
    return open(path, "rb", opener=_open_at_once)  # Path.open takes no opener.


def _open_at_once(name: str, flags: int) -> int:
    # A FIFO may have replaced the file since the check. With this flag, opening one does not wait; for a regular file,
    # the flag has no effect.
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def accessing(path: object) -> Iterator[None]:
    """Convert an `OSError` in the context to an error of Helios that names a path.

    Args:
        path: the file or folder that the caller passed.

    Raises:
        FileAccessError: for an `OSError`.
        MissingFileError: for a `FileNotFoundError`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(error.errno, f"{error.strerror}: correct the path", str(path)) from error
    except OSError as error:
        raise FileAccessError(error.errno, error.strerror or str(error), str(path)) from error


def can_be_in_name(text: str) -> bool:
    """Whether a text can be a part of a file name on every operating system."""
    try:
        return not any(character in b"/\\\0" for character in os.fsencode(text))
    except UnicodeEncodeError:  # A lone surrogate.
        return False


def as_path(path: str | os.PathLike[str] | None, argument: str = "path") -> Path | None:
    """Return what `to_path` returns, or `None` for `None`."""
    return None if path is None else to_path(path, argument)


def to_path(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Return an absolute path, which stays the same when the working directory changes.

    Args:
        path: a path; it may be relative, or begin with "~" or "~user".
        argument: the name of the argument in error messages.

    Raises:
        ArgumentTypeError: if `path` is no path.
        ConfigurationError: if no file can have this path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"{argument} is {path!r}, a {type(path).__name__}: pass a path")
    try:
        given = Path(path)
        if b"\0" in os.fsencode(given):
            raise ConfigurationError(
                f"{argument} is {str(given)!r}: remove the NUL character, which no path may contain"
            )
        return given.expanduser().absolute()
    except TypeError:
        raise ArgumentTypeError(f"{argument} is {path!r}, whose __fspath__ returns no string: pass a path") from None
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{argument} is {str(path)!r}, which no file system can hold ({error.reason}): use other characters"
        ) from error
    except RuntimeError as error:
        raise ConfigurationError(
            f"{argument} is {str(path)!r}, and that user has no home folder here: pass the path without '~'"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{argument} is {str(path)!r}, and the working folder cannot be found ({error}), it may have been deleted: "
            "pass an absolute path, or change to a folder that exists"
        ) from error
