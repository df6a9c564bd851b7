"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}\.tmp$")


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that, whatever happens, `path` is the old file, the new one, or absent as before.

    The content goes to a temporary file in the same folder, is forced to the disk, and takes the name in one step. When
    this returns, the file survives a loss of power.

    Args:
        path: where to; the folder is made if it is missing.
        write: is given the open file and writes the content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Where folders cannot be opened (Windows), renaming is as durable as it gets.
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path) -> list[Path]:
    """Delete what killed writers left behind in a folder; nobody may be writing there meanwhile.

    Returns:
        What was deleted.
    """
    left = [path for path in folder.iterdir() if _TEMPORARY.match(path.name)] if folder.is_dir() else []
    for path in left:
        path.unlink(missing_ok=True)
    return left


def ensure_writable(folder: Path) -> None:
    """Make a folder if it is missing, and check by writing that files can be made in it.

    Raises:
        OSError: if they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe.{secrets.token_hex(8)}.tmp"
    probe.write_bytes(b"helios")
    probe.unlink()


def as_path(path: str | Path | None) -> Path | None:
    """Return an absolute path, so that a later change of the working folder does not move it."""
    return None if path is None else Path(path).expanduser().absolute()
