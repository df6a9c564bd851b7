"""Checkpoints on disk: their names, and which of them a run goes on from."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING, Any, Final

from helios.checkpoint.archive import load_archive, save_archive
from helios.checkpoint.files import check_length, ensure_writable, remove_temporaries
from helios.checkpoint.format import check_contents
from helios.checkpoint.lock import FolderLock
from helios.checkpoint.plain import dump, encode, load
from helios.checkpoint.rank_deltas import collect_rank_deltas, select_rank_state
from helios.checkpoint.shard_files import fill_shards, load_sharded_plain, save_sharded
from helios.checkpoint.shard_tree import take_shards_out
from helios.core.logging import get_root_logger
from helios.core.paths import can_be_in_name, to_path
from helios.errors import CheckpointError, ConfigurationError, CorruptCheckpointError
from helios.ranks.host_group import HostGroup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helios.ranks.mesh import Mesh

SUFFIX: Final = ".pth"
_COUNTS: Final = re.compile(
    r"_epoch_(?P<epoch>[0-9]+)_iter_(?P<iteration>[0-9]+)(?P<metadata>(?:[^0-9].*)?)", re.DOTALL
)

# What room a name has for its counts from the start: a run comes no further.
_MOST_EPOCHS: Final = 10**9 - 1
_MOST: Final = 10**12 - 1
_LONGEST_INNER_NAME: Final = 64  # Of the files in a folder of shards.


@dataclasses.dataclass(frozen=True)
class CheckpointName:
    """The name of a checkpoint: `str` writes it, and `parse` is the inverse.

    Attributes:
        save_name: the model's save name.
        epoch: epochs started.
        iteration: iterations done.
        metadata: what the model has added; it does not begin with a digit.
    """

    save_name: str
    epoch: int
    iteration: int
    metadata: str = ""

    def __str__(self) -> str:
        """Return the name of the file."""
        return f"{self.save_name}_epoch_{self.epoch}_iter_{self.iteration}{self.metadata}{SUFFIX}"

    @classmethod
    def parse(cls, file_name: str, save_name: str) -> CheckpointName | None:
        """Return what a file's name says; `None` if it is no checkpoint of this model.

        The save name must be known: it may itself hold anything, "_epoch_1_iter_1" too.
        """
        if not (file_name.startswith(save_name) and file_name.endswith(SUFFIX)):
            return None
        match = _COUNTS.fullmatch(file_name[len(save_name) : -len(SUFFIX)])
        if match is None:
            return None
        return cls(save_name, int(match["epoch"]), int(match["iteration"]), match["metadata"])

    @property
    def stem(self) -> str:
        """The name without the suffix."""
        return str(self)[: -len(SUFFIX)]

    def with_stem(self, stem: object, owner: str) -> CheckpointName:
        """Return this name with the metadata that a model has added to the stem.

        Raises:
            ConfigurationError: if the model has changed what it should only add to.
        """
        added = stem[len(self.stem) :] if isinstance(stem, str) and stem.startswith(self.stem) else None
        if added is None or added[:1].isdigit() or not can_be_in_name(added):
            raise ConfigurationError(
                f"{owner}.append_metadata_to_chkpt_name made {stem!r} of {self.stem!r}: it may add text at the end "
                "that does not begin with a digit and has no '/' or '\\'; return chkpt_name + '_acc_0.9', say",
            )
        return dataclasses.replace(self, metadata=added)


def check_can_be_saved(data: dict[str, Any]) -> None:
    """Check that everything in a checkpoint-to-be is plain data.

    Raises:
        ArgumentTypeError: if a part is not; the message has its path.
    """
    encode(take_shards_out(data)[0], "checkpoint")


class CheckpointStore:
    """The folder of one model's checkpoints."""

    def __init__(self, root: Path, save_name: str) -> None:
        """Use the folder `root/save_name`, which need not exist."""
        self.folder = root / save_name
        self._save_name = save_name
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
        """Write a checkpoint, whole or not at all: a file, or a folder if ranks have parts of its tensors.

        Args:
            name: its name.
            data: what this rank has to keep; what it has apart from rank 0 is added to what rank 0 writes.
            host_group: what the ranks agree through, all of which must call this; `None` for a process alone.

        Raises:
            CheckpointError: if the disk refuses; what is there already is not touched.
        """
        path = self.folder / str(name)
        host_group = HostGroup() if host_group is None else host_group
        if host_group.rank == 0:
            self._lock.ensure()
        plain, shards, _ = take_shards_out(data)
        if host_group.world_size > 1:
            data = {**data, "ranks": collect_rank_deltas(plain, host_group)}
        try:
            if shards and host_group.group is not None:
                save_sharded(path, data, group=host_group.group)
            elif host_group.rank == 0:
                save_archive(path, data)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {path} could not be written ({error}): earlier ones are intact"
            ) from error
        return path

    def load_newest(
        self, host_group: HostGroup | None = None, mesh: Mesh | None = None
    ) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest valid checkpoint and what it holds for this rank; `None` if there is none at all.

        Damaged ones are skipped, and the log says which and why. Rank 0 reads, and gives it to the others: they need
        not have the same disk, and shall not choose another one.

        Args:
            host_group: what the ranks agree through, all of which must call this; `None` for a process alone.
            mesh: the ranks over which tensors that were spread over ranks are spread now; `None` to have them whole.

        Raises:
            CheckpointError: if there are checkpoints but not one is valid: a run that would begin anew must not do so
                unasked.
            CheckpointMismatchError: if the checkpoint cannot be gone on from with this number of ranks.
        """
        host_group = HostGroup() if host_group is None else host_group
        newest = self._load_newest_here() if host_group.rank == 0 else None
        if host_group.world_size > 1:
            packed = host_group.broadcast_object(None if newest is None else (newest[0], dump(newest[1]), newest[2]))
            newest = None if packed is None else (packed[0], load(packed[1]), packed[2])
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
                f"none of the checkpoints in {self.folder} can be used: {'; '.join(reasons)}. Bring back an intact "
                "one to go on, or move them away to begin anew",
            )
        return None

    def _load_newest_of(self, rivals: list[Path], reasons: list[str]) -> tuple[Path, dict[str, Any]] | None:
        loaded = [(path, data) for path in rivals if (data := self._try_load(path, reasons)) is not None]
        return max(loaded, key=lambda entry: _progress(entry[1]), default=None)

    def _try_load(self, path: Path, reasons: list[str]) -> dict[str, Any] | None:
        try:
            data = load_sharded_plain(path) if path.is_dir() else load_archive(path)
            check_contents(data, path.name)
            return data  # noqa: TRY300 - what is checked is in the block.
        except (CorruptCheckpointError, OSError) as error:
            get_root_logger().warning("skipped the checkpoint %s: %s", path, error)
            reasons.append(str(error))
            return None

    def find_newest(self) -> Path | None:
        """Return the newest checkpoint whose bytes are intact; `None` if there is none."""
        for rivals in self._newest_first():
            newest = self._load_newest_of(rivals, [])
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


def find_last_checkpoint(root: Path | str) -> Path | None:
    """Return the newest intact checkpoint in a model's folder, by the counts in its name.

    Args:
        root: the folder `<chkpt_root>/<save_name>`.

    Returns:
        The path; `None` if the folder has no intact checkpoint, or does not exist.

    Raises:
        ArgumentTypeError: if `root` is no path.
        ConfigurationError: if no folder can have this path.
        CheckpointError: if the folder cannot be read.
    """
    folder = to_path(root, "root")
    return CheckpointStore(folder.parent, folder.name).find_newest()
