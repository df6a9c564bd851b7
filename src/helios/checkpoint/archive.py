"""Plain data in a file that knows when it is damaged.

An archive is what `torch.save` writes, a zip file, whose comment holds the SHA-256 of all the bytes before it. So
`torch.load(path, weights_only=True)` reads it without Helios, and `load_archive` notices every changed byte.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import torch

from helios.checkpoint.files import atomic_write
from helios.checkpoint.plain import decode, encode
from helios.core.paths import open_regular
from helios.core.safe_load import safe_torch_load
from helios.errors import CorruptCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_MARK: Final = b"helios-sha256:"
_COMMENT_SIZE: Final = len(_MARK) + 2 * hashlib.sha256().digest_size
_LENGTH_SIZE: Final = 2  # A zip file ends with the length of its comment, in two bytes, and the comment.
_PLAIN_END: Final = b"PK\5\6" + bytes(18)  # A zip file without a comment ends so: signature, counts, length 0.
_CHUNK: Final = 1 << 20


class _Sealer:
    """A file that hashes what is written to it and, when sealed, puts the hash into the zip comment."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._tail = b""  # The last two bytes are held back: they are the comment's length.
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _LENGTH_SIZE:
            view = memoryview(self._tail + bytes(view))
        else:
            self._put(self._tail)
        self._tail = bytes(view[-_LENGTH_SIZE:])
        self._put(view[:-_LENGTH_SIZE])
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def seal(self) -> None:
        if self._tail != b"\0\0":
            raise CorruptCheckpointError("torch.save wrote a zip file with a comment of its own")
        self._put(_COMMENT_SIZE.to_bytes(_LENGTH_SIZE, "little"))
        self._file.write(_MARK + self._hash.hexdigest().encode())


def save_archive(path: Path, data: dict[str, Any]) -> None:
    """Write plain data to `path`, atomically and durably.

    Raises:
        ArgumentTypeError: if a part of `data` is not plain; nothing is written then.
        OSError: if the file cannot be written.
    """
    plain = encode(data, "checkpoint")

    def write(file: BinaryIO) -> None:
        sealer = _Sealer(file)
        try:
            torch.save(plain, sealer)  # type: ignore[arg-type]  # torch asks for write and flush only.
        except RuntimeError:
            # torch closes its zip file whatever happened, and raises about that instead of the full disk.
            if sealer.failure is not None:
                raise sealer.failure from None
            raise
        sealer.seal()

    atomic_write(path, write, over_folder=True)


def verify_archive(path: Path) -> None:
    """Check that a file holds exactly the bytes that `save_archive` wrote.

    Raises:
        CorruptCheckpointError: if not.
        OSError: if it cannot be read, or is no file.
    """
    with open_regular(path) as file:
        size = path.stat().st_size - _COMMENT_SIZE
        digest, left = hashlib.sha256(), size
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
        comment = file.read(_COMMENT_SIZE + 1)
        file.seek(max(0, path.stat().st_size - len(_PLAIN_END)))
        end = file.read()
    if end[:4] == _PLAIN_END[:4] and end[-2:] == _PLAIN_END[-2:]:
        raise CorruptCheckpointError(
            f"{path.name} was written by torch.save without the checksum of Helios, as helios-ml 1.x does: such a run "
            "cannot be resumed; load its weights with torch.load in setup, and move the file to another folder"
        )
    if size <= 0 or not comment.startswith(_MARK):
        raise CorruptCheckpointError(f"{path.name} does not end in a checksum: it is truncated or not by Helios")
    if comment != _MARK + digest.hexdigest().encode():
        raise CorruptCheckpointError(f"{path.name} does not match its checksum: its bytes have changed")


def checksum_of(path: Path) -> bytes:
    """Return the checksum that a file says it has, without reading the rest of it; empty if it says none.

    Raises:
        OSError: if it cannot be read, or is no file.
    """
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - _COMMENT_SIZE))
        comment = file.read(_COMMENT_SIZE)
    return comment if comment.startswith(_MARK) else b""


def read_structure(path: Path) -> dict[str, Any]:
    """Read what a file of `save_archive` holds but the numbers in its tensors, which are on the meta device.

    Raises:
        CorruptCheckpointError: if the bytes are not those that were written, or not plain data.
        OSError: if the file cannot be read, or is no file.
    """
    verify_archive(path)
    return _load_dictionary(path, "meta")


def load_archive(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """Read what `save_archive` wrote, with tensors on the CPU. Never runs code out of the file.

    Args:
        path: the file.
        verify: whether its checksum is computed; it need not be for a file that has just been verified.

    Raises:
        CorruptCheckpointError: if the bytes are not those that were written, or not plain data.
        OSError: if the file cannot be read, or is no file.
    """
    if verify:
        verify_archive(path)
    data = _load_dictionary(path, "cpu")
    try:
        decoded: dict[str, Any] = decode(data)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # A valid checksum says that the bytes are whole, and not that `save_archive` wrote them.
        raise CorruptCheckpointError(
            f"{path.name} holds what save_archive never writes ({type(error).__name__}: {error})"
        ) from error
    return decoded


def _load_dictionary(path: Path, device: str) -> dict[str, Any]:
    data = safe_torch_load(path, map_location=device)
    if not isinstance(data, dict):
        raise CorruptCheckpointError(f"{path.name} holds a {type(data).__name__}, not a dictionary")
    return data
