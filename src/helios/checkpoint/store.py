"""Checkpoints on disk: how they are written, and which of them a run resumes."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final

import torch

from helios.checkpoint.archive import load_archive, read_structure, save_archive
from helios.checkpoint.files import check_length, ensure_writable, remove_temporaries
from helios.checkpoint.format import check_contents
from helios.checkpoint.lock import FolderLock
from helios.checkpoint.names import CheckpointName
from helios.checkpoint.plain import encode
from helios.checkpoint.rank_deltas import collect_rank_deltas, select_rank_state
from helios.checkpoint.shard_files import fill_shards, load_sharded_plain, save_sharded
from helios.checkpoint.shard_tree import is_sharded, map_tree, take_shards_out
from helios.checkpoint.sharing import share_checkpoint
from helios.core.logging import get_root_logger
from helios.errors import CheckpointError, ConfigurationError, CorruptCheckpointError
from helios.ranks.host_group import HostGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helios.ranks.mesh import Mesh

# What room a name has for its counts from the start: a run comes no further.
_MOST_EPOCHS: Final = 10**9 - 1
_MOST: Final = 10**12 - 1
_LONGEST_INNER_NAME: Final = 64  # Of the files in a folder of shards.


def check_can_be_saved(data: dict[str, Any]) -> None:
    """Check that everything in a checkpoint-to-be is plain data.

    Raises:
        ArgumentTypeError: if a part is not; the message has its path.
    """
    encode(take_shards_out(data)[0], "checkpoint")


@dataclasses.dataclass(frozen=True)
class PendingCheckpoint:
    """What `CheckpointStore.collect` has brought together, and `CheckpointStore.commit` writes.

    Attributes:
        path: where to.
        data: what is written: on rank 0 all of it, on other ranks what they have of sharded tensors.
        rank: this process's rank.
        group: the process group that writes shards together; `None` if rank 0 writes alone.
    """

    path: Path
    data: dict[str, Any]
    rank: int
    group: Any

    def snapshot(self) -> PendingCheckpoint:
        """Return a copy on the host that training does not change, so that it may be committed later."""
        return dataclasses.replace(self, data=map_tree(self.data, _copy_to_host))


def _copy_to_host(_: tuple[Any, ...], leaf: Any) -> Any:
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, torch.Tensor) and not is_sharded(leaf) else leaf


class CheckpointStore:
    """The folder of one model's checkpoints."""

    def __init__(self, root: Path, save_name: str, *, of_any_name: bool = False) -> None:
        """Use the folder `root/save_name`, which need not exist.

        Args:
            root: the folder of all models.
            save_name: the save name of the model.
            of_any_name: whether checkpoints that begin with another save name are found as well.
        """
        self.folder = root / save_name
        self._save_name = None if of_any_name else save_name
        self._lock = FolderLock(self.folder)

    def check_name(self, name: CheckpointName) -> None:
        """Check that checkpoints can have names like this one, however far the run comes.

        Raises:
            ConfigurationError: if such a name, or the path, is too long for the file system.
        """
        widest = dataclasses.replace(name, epoch=max(name.epoch, _MOST_EPOCHS), iteration=max(name.iteration, _MOST))
        check_length(self.folder / str(widest), reserved=_LONGEST_INNER_NAME)

    def fit_name(self, name: CheckpointName) -> CheckpointName:
        """Return the name, without what the model has added if that is too long: nothing is lost but the text."""
        try:
            check_length(self.folder / str(name), reserved=_LONGEST_INNER_NAME)
        except ConfigurationError as error:
            get_root_logger().warning("a checkpoint is saved without what the model adds to its name: %s", error)
            return dataclasses.replace(name, metadata="")
        return name

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder while the context lasts: make it if it is missing, and delete what killed writers left in it.

        Raises:
            FolderInUseError: if another run owns it.
            CheckpointError: if nothing can be written there.
        """
        with contextlib.ExitStack() as stack:
            self._prepare(stack)
            yield

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        try:
            stack.enter_context(self._lock)
            # What killed writers left may be what fills the disk: it goes before anything else is written.
            if self._lock.is_certain:
                remove_temporaries(self.folder)
            self._lock.write_owner()
            ensure_writable(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"checkpoints cannot be written to {self.folder} ({error}): choose another chkpt_root, or make it "
                "writable",
            ) from error

    def save(self, name: CheckpointName, data: dict[str, Any], host_group: HostGroup | None = None) -> Path:
        """Write a checkpoint: `collect` and `commit` it.

        Args:
            name: its name.
            data: what this rank has to keep.
            host_group: what the ranks agree through, all of which must call this; `None` for a process alone.

        Raises:
            CheckpointError: if the disk refuses; what is there already is not touched.
        """
        return self.commit(self.collect(name, data, HostGroup() if host_group is None else host_group))

    def collect(self, name: CheckpointName, data: dict[str, Any], host_group: HostGroup) -> PendingCheckpoint:
        """Bring together what the ranks have to keep; a collective, and the first of three steps.

        The second is `PendingCheckpoint.snapshot`, the third is `commit`.

        Args:
            name: the name of the checkpoint.
            data: what this rank has to keep; what it has apart from rank 0 is added to what rank 0 writes.
            host_group: what the ranks agree through.
        """
        plain, shards, _ = take_shards_out(data)
        if host_group.world_size > 1:
            data = {**data, "ranks": collect_rank_deltas(plain, host_group)}
        group = host_group.group if shards else None
        return PendingCheckpoint(self.folder / str(name), data, host_group.rank, group)

    def commit(self, pending: PendingCheckpoint) -> Path:
        """Write what was collected, whole or not at all: a file, or a folder if ranks have shards of its tensors.

        Rank 0 writes the file; other ranks return at once, unless there are shards, which every rank writes.

        Raises:
            CheckpointError: if the disk refuses; what is there already is not touched.
        """
        path = pending.path
        if pending.rank == 0:
            self._lock.ensure()
        try:
            if pending.group is not None:
                save_sharded(path, pending.data, group=pending.group)
            elif pending.rank == 0:
                save_archive(path, pending.data)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {path} could not be written ({error}): earlier ones are intact"
            ) from error
        return path

    def load_newest(
        self, host_group: HostGroup | None = None, mesh: Mesh | None = None
    ) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest valid checkpoint and what it holds for this rank; `None` if there is none at all.

        Rank 0 chooses it by the names of the files, and verifies it; damaged ones are skipped, and the log says which
        and why. The other ranks read the same file, or, where they do not see it, are sent its bytes.

        Args:
            host_group: what the ranks agree through, all of which must call this; `None` for a process alone.
            mesh: the ranks over which sharded tensors are sharded now; `None` to have them whole.

        Raises:
            CheckpointError: if there are checkpoints but not one is valid: a run that would begin anew must not do so
                unasked.
            CheckpointMismatchError: if it cannot be resumed with this number of ranks.
        """
        host_group = HostGroup() if host_group is None else host_group
        newest = self._load_newest_here() if host_group.rank == 0 else None
        if host_group.world_size > 1:
            newest = share_checkpoint(newest, host_group)
        if newest is None:
            return None
        path, data, is_folder = newest
        data = select_rank_state(data, host_group)
        return path, fill_shards(data, path, mesh) if is_folder else data

    def _load_newest_here(self) -> tuple[Path, dict[str, Any], bool] | None:
        reasons: list[str] = []
        for rivals in self._newest_first():
            newest = self._load_newest_of(rivals, reasons)
            if newest is not None:
                return (*newest, newest[0].is_dir())
        if reasons:
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be used: {'; '.join(reasons)}. Restore an intact "
                "one to resume, or move them away to begin anew",
            )
        return None

    def _load_newest_of(
        self, rivals: list[Path], reasons: list[str], *, structure_only: bool = False
    ) -> tuple[Path, dict[str, Any]] | None:
        reader = read_structure if structure_only else load_archive
        loaded = [(path, data) for path in rivals if (data := self._try_load(path, reasons, reader)) is not None]
        return max(loaded, key=lambda entry: _progress(entry[1]), default=None)

    def _try_load(
        self, path: Path, reasons: list[str], reader: Callable[[Path], dict[str, Any]]
    ) -> dict[str, Any] | None:
        try:
            data = load_sharded_plain(path) if path.is_dir() else reader(path)
            check_contents(data, path.name)
            return data  # noqa: TRY300 - what is checked is in the block.
        except (CorruptCheckpointError, OSError) as error:
            get_root_logger().warning("skipped the checkpoint %s: %s", path, error)
            reasons.append(str(error))
            return None

    def find_newest(self) -> Path | None:
        """Return the newest checkpoint whose bytes are intact, by their names; no tensor is loaded."""
        for rivals in self._newest_first():
            newest = self._load_newest_of(rivals, [], structure_only=True)
            if newest is not None:
                return newest[0]
        return None

    def _newest_first(self) -> Iterator[list[Path]]:
        """Iterate over groups of checkpoints of the same counts, which only their metadata tells apart."""
        groups: dict[tuple[int, int], list[Path]] = {}
        for path in self._list():
            name = CheckpointName.parse(path.name, self._save_name)
            if name is not None:
                groups.setdefault((name.epoch, name.iteration), []).append(path)
        for counts in sorted(groups, reverse=True):
            yield groups[counts]

    def has_any(self) -> bool:
        """Return whether the folder has a checkpoint, by the names in it."""
        return any(CheckpointName.parse(path.name, self._save_name) for path in self._list())

    def _list(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            # What cannot be listed may well hold checkpoints: to begin anew would hide them.
            raise CheckpointError(
                f"the folder of checkpoints {self.folder} cannot be read ({error}): make it readable, or choose another"
            ) from error


def _progress(data: dict[str, Any]) -> tuple[int, int, int]:
    """Return what orders checkpoints that agree in their names."""
    state = data.get("training", {}).get("state", {})
    between_epochs = int(state.get("dataset_iter", 1) == 0)
    return state.get("global_iteration", 0), between_epochs, state.get("validation_cycles", 0)
