"""The lock of a folder of checkpoints: one run at a time owns it.

It is a lock of the operating system (`flock`) on a file in the folder, so it ends with the process that holds it,
however that one ends. The file says who the owner is; it is removed when the run ends, and harmless if it is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

from helios.checkpoint.owner import Owner
from helios.core.logging import get_root_logger
from helios.core.paths import open_regular
from helios.errors import FolderInUseError

if TYPE_CHECKING:
    from types import TracebackType

LOCK_NAME: Final = ".helios-lock"

_LOOK: Final = 0.05  # Seconds between two attempts to take the lock of an owner that is about to end.
_PATIENCE: Final = 10.0  # Seconds that such an owner has to end.
_MOMENT: Final = 1.0  # Seconds that an owner has to write who it is.
_TRIES: Final = 5  # To open a file in a folder that others remove.
_UNSUPPORTED: Final = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)

# On these file systems a lock that could be taken has no other holder, whichever host the last one had the name of.
_LOCAL: Final = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"))

_held: Final[set[FolderLock]] = set()
_table: Final = threading.RLock()


def _forget_in_child() -> None:
    """Close the descriptors that a fork has copied: a data loader's worker must not keep its trainer's lock."""
    for lock in list(_held):
        lock.close()
    _table.release()


# No process is forked between the opening of a file and its entry in the table.
os.register_at_fork(before=_table.acquire, after_in_parent=_table.release, after_in_child=_forget_in_child)


class FolderLock:
    """The ownership of a folder; a context manager that has it while the context lasts.

    A second owner is refused, in another process as well as in this one. One that was killed has released the lock.

    Args:
        folder: the folder, which is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._descriptor: int | None = None
        self._has_made_folder = False
        # Whether it is certain that nobody else writes here: not where the system's locks may not reach.
        self.is_certain = False

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            FolderInUseError: if another run has it.
            OSError: if no file can be made in the folder.
        """
        self._has_made_folder = not self._path.parent.exists()
        _, is_locked = self._open()
        try:
            self.is_certain = self._judge(self._read_owner(), is_locked=is_locked)
            with contextlib.suppress(
                OSError
            ):  # The disk may be full of what a killed writer left, which is swept next.
                self.write_owner()
        except BaseException:
            self.close()
            raise
        return self

    def write_owner(self) -> None:
        """Write into the file who has the lock; does nothing outside of the context.

        Raises:
            OSError: if the disk takes no more.
        """
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(dataclasses.asdict(Owner.here())).encode(), 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock, and remove its file, and the folder if nothing else was put into it."""
        if self._is_current():
            # Before the lock is released: afterwards the file may be that of another owner. One that stays is harmless.
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            if self._has_made_folder:
                with contextlib.suppress(OSError):  # There are checkpoints in it.
                    self._path.parent.rmdir()
        self.close()

    def ensure(self) -> None:
        """Check that the folder is still this owner's, and own it anew if it was deleted or moved away.

        Does nothing outside of the context.

        Raises:
            FolderInUseError: if another run has taken what has its name now.
        """
        if self._descriptor is not None and not self._is_current():
            self.close()
            self.__enter__()

    def close(self) -> None:
        """Close the file, which releases the lock unless this process is a fork of the owner."""
        with _table:
            _held.discard(self)
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self) -> tuple[int, bool]:
        """Return the descriptor of the file, and whether it could be locked; wait for an owner that is about to end."""
        began = time.monotonic()
        while (opened := self._try_to_open()) is None:
            owner = self._read_owner()
            patience = _MOMENT if owner is None else _PATIENCE if owner.is_orphan else 0.0
            if time.monotonic() - began >= patience:
                self._refuse(owner)
            time.sleep(_LOOK)
        return opened

    def _try_to_open(self) -> tuple[int, bool] | None:
        with _table:
            self._descriptor = self._open_file()
            _held.add(self)
        try:
            _ensure_file(self._descriptor, self._path)
            is_locked = _lock(self._descriptor)
        except BaseException as error:
            self.close()
            if isinstance(error, BlockingIOError):
                return None
            raise
        if self._is_current():
            return self._descriptor, is_locked
        self.close()  # The owner of before has just removed the file: another one has its name, or will have.
        return self._try_to_open()

    def _open_file(self) -> int:
        for _ in range(_TRIES):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # An owner that has ended has just removed the folder.
                # No link is followed: the file is overwritten.
                return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        raise FileNotFoundError(errno.ENOENT, "no file can be made there", str(self._path))

    def _is_current(self) -> bool:
        """Whether the open file is the one that has the name."""
        if self._descriptor is None:
            return False
        mine = os.fstat(self._descriptor)
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def _read_owner(self) -> Owner | None:
        with contextlib.suppress(OSError), open_regular(self._path) as file:
            return Owner.parse(file.read(1 << 12))
        return None

    def _judge(self, previous: Owner | None, *, is_locked: bool) -> bool:
        """Say what was found, and return whether it is certain that nobody else owns the folder."""
        log, folder = get_root_logger(), self._path.parent
        if not is_locked:
            if previous is not None and previous.is_here and previous.is_alive:
                self._refuse(previous)
            log.warning(
                "the file system of %s has no locks, so a second run in it from another machine would not be noticed",
                folder,
            )
            return False
        if previous is None:
            return True
        if previous.is_here or _is_local(folder):
            log.info("took over %s from %s, which has ended without releasing it", folder, previous)
            return True
        log.warning(
            "took over %s, last owned by %s: it has not released the folder, and whether it still runs there cannot be "
            "seen from here. If it does, stop one of the two",
            folder,
            previous,
        )
        return False

    def _refuse(self, owner: Owner | None) -> NoReturn:
        who = "a process that has not said who it is" if owner is None else str(owner)
        if owner is not None and owner.is_here and owner.pid == os.getpid():
            who = f"this very {owner}"
        raise FolderInUseError(
            f"{self._path.parent} is owned by a run that is in progress ({who}): wait until it has ended, or "
            "stop it; to train beside it, use another save_name or chkpt_root"
        )


def _ensure_file(descriptor: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))


def _lock(descriptor: int) -> bool:
    """Lock an open file; return false where the file system, or the operating system, has no locks.

    Raises:
        BlockingIOError: if another one has it.
    """
    try:
        import fcntl  # noqa: PLC0415 - POSIX only.
    except ImportError:
        return False
    try:
        # Not lockf: such a lock is lost as soon as anything in this process has opened and closed the file, a backup of
        # the folder for example.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _is_local(folder: Path) -> bool:
    """Whether a folder is on a file system that no other machine writes to."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    folder, nearest, is_local = folder.resolve(), -1, False
    for mount in mounts:
        fields, _, source = mount.partition(" - ")
        point = fields.split()[4].replace("\\040", " ")
        if folder.is_relative_to(point) and len(point) >= nearest:  # Of two at one place, the later covers the other.
            nearest, is_local = len(point), source.split()[0] in _LOCAL
    return is_local
