"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, BinaryIO, Final

from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_TEMPORARY: Final = re.compile(r"^\..+\.[0-9a-f]{16}\.tmp$")
_TEMPORARY_EXTRA: Final = len("..0123456789abcdef.tmp")  # What a temporary's name has beyond the file's.
# What the file systems in use take, where one does not say: bytes of a name, and of a path with the zero at its end.
_LONGEST_NAME: Final = 255
_LONGEST_PATH: Final = 4096
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def atomic_write(path: Path, write: Callable[[BinaryIO], object], *, over_folder: bool = False) -> None:
    """Write a file so that, whatever happens, `path` is the old file, the new one, or absent as before.

    The content goes to a temporary file in the same folder, is forced to the disk, and takes the name in one step. When
    this returns, the file survives a loss of power.

    Args:
        path: where to; the folder is made if it is missing.
        write: is given the open file and writes the content.
        over_folder: whether a folder of that name is replaced, with all that is in it, rather than an `OSError` raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if over_folder and path.is_dir():
            _supplant(path, temporary)
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder so that, whatever happens, `path` is what it was before, or the whole folder.

    The context is given a temporary folder beside it, and forces to the disk what it puts in there. When it ends, the
    folder takes the name in one step, in place of a file or folder that has it; if it raises, the folder is removed.

    Where the file system cannot exchange two names (on NFS, or not on Linux), replacing takes two steps: a process that
    is killed between them leaves neither.

    Args:
        path: where to; the folder around it is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        _sync_folder(temporary)
        if path.exists():
            _supplant(path, temporary)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # What failed is worth more than what fails after it.
        raise
    _sync_folder(path.parent)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _supplant(path: Path, temporary: Path) -> None:
    """Give the temporary the name of a file or folder, which is removed: renaming replaces files by files only."""
    old = temporary
    if not _exchange(path, temporary):
        old = _temporary_name(path)
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            old.rename(path)
            raise
    _sync_folder(path.parent)  # Or a loss of power could undo the renaming alone.
    with contextlib.suppress(OSError):  # The new one is there: what stays of the old one is a temporary like others.
        _remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths swap what they name, in one step; return whether the system could."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # Not Linux, or an old C library.
        return False
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    return bool(renameat2(*names, _RENAME_EXCHANGE) == 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Where folders cannot be opened (Windows), renaming is as durable as it gets.
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path) -> list[Path]:
    """Delete what killed writers left behind in a folder; only for one who owns it, so that nobody else writes there.

    Returns:
        What was deleted.
    """
    left = [path for path in folder.iterdir() if _TEMPORARY.match(path.name)] if folder.is_dir() else []
    for path in left:
        _remove(path)
    return left


def ensure_writable(folder: Path) -> None:
    """Make a folder if it is missing, and check by writing that files can be made in it.

    Raises:
        OSError: if they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe.{secrets.token_hex(8)}.tmp"
    try:
        probe.write_bytes(b"helios")
    finally:
        probe.unlink(missing_ok=True)


def check_length(path: Path, reserved: int = 0) -> None:
    """Check that a file of this name can be written: neither the name nor the path is too long for the file system.

    Args:
        path: where `atomic_write` or `atomic_folder` is going to write.
        reserved: bytes that will be added to the path, for files within a folder.

    Raises:
        ConfigurationError: if not.
    """
    name, whole = len(os.fsencode(path.name)) + _TEMPORARY_EXTRA, len(os.fsencode(path)) + _TEMPORARY_EXTRA + 1
    longest_name, longest_path = _limits_at(path.parent)
    for what, length, longest in (("name", name, longest_name), ("path", whole + reserved, longest_path)):
        if length > longest:
            raise ConfigurationError(
                f"the {what} of the file {path} is {length - longest} bytes too long: the file system takes {longest}, "
                f"and {length} are needed while it is written; shorten the {what}"
            )


def _limits_at(folder: Path) -> tuple[int, int]:
    for place in (folder, *folder.parents):  # The folder may be missing as yet.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return os.pathconf(place, "PC_NAME_MAX"), os.pathconf(place, "PC_PATH_MAX")
    return _LONGEST_NAME, _LONGEST_PATH
