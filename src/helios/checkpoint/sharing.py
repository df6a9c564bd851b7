"""How the ranks of a run get the checkpoint that rank 0 has chosen, whether or not they see its file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from helios.checkpoint.archive import checksum_of, load_archive
from helios.checkpoint.shard_files import PLAIN_FILE, load_sharded_plain
from helios.core.paths import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helios.ranks.host_group import HostGroup

    # The path, what it holds, and whether it is a folder with shards.
    Loaded: TypeAlias = tuple[Path, dict[str, Any], bool]

_CHUNK: Final = 1 << 26  # Bytes that are sent at once.


def share_checkpoint(newest: Loaded | None, host_group: HostGroup) -> Loaded | None:
    """Return, on every rank, the checkpoint that rank 0 has loaded; a collective.

    A rank that sees a file of the same path and checksum reads it by itself. If any does not, rank 0 sends the bytes of
    the file, one chunk at a time, and those ranks read them from a temporary file of their own.

    Args:
        newest: what rank 0 has loaded, if it has found anything; it is ignored on the other ranks.
        host_group: what the ranks agree through.
    """
    told = None
    if newest is not None:
        path, _, is_folder = newest
        told = path, is_folder, checksum_of(_archive_of(path, is_folder=is_folder))
    told = host_group.broadcast_object(told)
    if told is None:
        return None
    path, is_folder, checksum = told
    archive = _archive_of(path, is_folder=is_folder)
    sees_it = newest is not None or _has_checksum(archive, checksum)
    (somebody_is_blind,) = host_group.all_reduce_max(not sees_it)
    with tempfile.NamedTemporaryFile(suffix=".pth") as copy:
        if somebody_is_blind:
            for chunk in host_group.broadcast_bytes(_read(archive) if host_group.rank == 0 else None):
                if not sees_it:
                    copy.write(chunk)
        if newest is not None:
            return newest
        if sees_it:
            data = load_sharded_plain(path, verify=False) if is_folder else load_archive(path, verify=False)
            return path, data, is_folder
        copy.flush()
        data = load_archive(Path(copy.name))
        return path, data["data"] if is_folder else data, is_folder


def _archive_of(path: Path, *, is_folder: bool) -> Path:
    return path / PLAIN_FILE if is_folder else path


def _has_checksum(archive: Path, checksum: bytes) -> bool:
    try:
        return checksum_of(archive) == checksum
    except OSError:
        return False  # It is not there, or not to be read: the bytes are asked for.


def _read(archive: Path) -> Iterator[bytes]:
    with open_regular(archive) as file:
        while chunk := file.read(_CHUNK):
            yield chunk
