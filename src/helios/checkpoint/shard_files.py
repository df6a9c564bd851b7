"""A checkpoint of sharded tensors: a folder of which every rank has written a part.

In it, `plain.pth` is the tree of plain data, an archive like any other checkpoint, with a short description in place of
each sharded tensor. The tensors are in safetensors files, one of each rank that had something to write, whose sizes and
hashes the archive holds. Nothing in the folder is ever unpickled but by `torch.load(..., weights_only=True)`: what
`torch.distributed.checkpoint` would pickle for itself is not written.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch.distributed as dist

from helios.checkpoint.archive import load_archive, save_archive
from helios.checkpoint.files import atomic_folder
from helios.checkpoint.plain import encode
from helios.checkpoint.shard_tree import put_shards_in, take_shards_out
from helios.core.paths import open_regular
from helios.errors import CheckpointError, ConfigurationError, CorruptCheckpointError, RankFailedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

PLAIN_FILE: Final = "plain.pth"
_SHARDS: Final = "*.safetensors"


# --------------------------------------------------------------------------------------------------------------- saving


def save_sharded(path: Path, data: dict[str, Any], *, group: dist.ProcessGroup) -> None:
    """Write plain data with sharded tensors in it to the folder `path`, which is whole or not there at all.

    All ranks must call this. When it returns, the folder survives a loss of power. When one rank cannot continue, it
    raises on all of them, and what was at `path` before is still there.

    Args:
        path: where to, on a file system that all ranks share; what is there is replaced.
        data: each rank's own tree. They must agree in their sharded tensors; of everything else, rank 0's is kept.
        group: a gloo group of all ranks.

    Raises:
        ArgumentTypeError: if a part of `data` is not plain, or sharded in a way that cannot be saved.
        ConfigurationError: if safetensors is not installed.
        CheckpointError: if the ranks disagree, or another rank cannot continue.
        OSError: if this rank, or another one, cannot write.
    """
    with contextlib.ExitStack() as stack:
        saving = _Saving(path, dist.get_rank(group), stack)
        folders, plans = zip(*_together(group, lambda: saving.prepare(data)), strict=True)
        for rank, plan in enumerate(plans):
            if plan != plans[0]:
                raise CheckpointError(
                    f"{path.name} was not saved: rank {rank} has other sharded tensors than rank 0; all ranks must "
                    "save the same networks and optimizers at the same step",
                )
        written: list[dict[str, Any]] = _together(group, lambda: saving.write(path.with_name(folders[0]), group))
        shards = {name: entry for files in written for name, entry in files.items()}
        _together(group, lambda: saving.finish(shards))


class _Saving:
    """One rank's side of `save_sharded`, in steps after each of which the ranks tell each other how it went."""

    def __init__(self, path: Path, rank: int, stack: contextlib.ExitStack) -> None:
        self._path = path
        self._rank = rank
        self._stack = stack
        self._folder = path
        self._plain: dict[str, Any] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def prepare(self, data: dict[str, Any]) -> tuple[str, str]:
        """Check what can be checked before anybody writes; return the temporary folder's name and what is planned."""
        ensure_safetensors()
        self._plain, self._tensors, plan = take_shards_out(data)
        if self._rank == 0:
            encode(self._plain, "checkpoint")
            self._folder = self._stack.enter_context(atomic_folder(self._path))
        return self._folder.name, plan

    def write(self, folder: Path, group: dist.ProcessGroup) -> dict[str, dict[str, Any]]:
        """Write this rank's shards into the folder; return their sizes and hashes by the names of the files."""
        from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415 - heavy, and needed by few.
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # noqa: PLC0415 - as above.
        from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415 - as above.

        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            save(self._tensors, storage_writer=writer, process_group=group)
        except CheckpointException as error:  # No Exception at all, for torch.
            raise _cause_of(error, self._rank) from error
        # torch counts the ranks from 1, and does not say what it has called the file.
        own = folder.glob(f"shard-{self._rank + 1:05}-{_SHARDS}")
        return {file.name: {"size": file.stat().st_size, "sha256": _hash(file)} for file in own}

    def finish(self, shards: dict[str, dict[str, Any]]) -> None:
        """Write the plain data, on rank 0, and give the folder its name."""
        if self._rank != 0:
            return
        present = {file.name for file in self._folder.glob(_SHARDS)}
        if present != set(shards):
            raise CheckpointError(
                f"rank 0 finds the files {sorted(present)} in {self._folder.parent}, but the ranks wrote "
                f"{sorted(shards)}: save to a file system that all ranks share",
            )
        save_archive(self._folder / PLAIN_FILE, {"data": self._plain, "shards": shards})
        self._stack.close()


def _together(group: dist.ProcessGroup, step: Callable[[], T]) -> list[T]:
    """Take a step on every rank, and return what it returned on each; if it raises on one, raise on all."""
    report: tuple[T | None, str | None, bool] = (None, None, False)
    own: BaseException | None = None
    try:
        report = (step(), None, False)
    except BaseException as error:  # noqa: BLE001 - raised again as soon as the others know.
        own = error
        report = (None, f"{type(error).__name__}: {error}", isinstance(error, OSError))
    reports: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, report, group=group)
    if own is not None:
        raise own
    for rank, (_, failure, is_os_error) in enumerate(reports):
        if failure is not None:
            message = f"rank {rank} could not continue to save: {failure}"
            raise (OSError if is_os_error else CheckpointError)(message) from RankFailedError(message, rank)
    return [value for value, _, _ in reports]


def _cause_of(error: Any, own_rank: int) -> BaseException:
    rank, (cause, _) = min(error.failures.items(), key=lambda entry: entry[0])
    if own_rank in error.failures and not isinstance(error.failures[own_rank][0], Exception):
        interrupt: BaseException = error.failures[own_rank][0]
        return interrupt
    message = f"rank {rank} could not write its shards: {type(cause).__name__}: {cause}"
    return OSError(message) if isinstance(cause, OSError) else CheckpointError(message)


# -------------------------------------------------------------------------------------------------------------- loading


def load_sharded_plain(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """Read the plain data of a folder that `save_sharded` wrote, with a description in place of each sharded tensor.

    Args:
        path: the folder.
        verify: whether every byte of the shards is checked, too; one rank is enough for that.

    Raises:
        CorruptCheckpointError: if anything is not as it was written.
        OSError: if there is no such folder, or it cannot be read.
    """
    if path.is_dir() and not (path / PLAIN_FILE).exists():
        raise CorruptCheckpointError(f"{path.name} has no {PLAIN_FILE}: it is no checkpoint, or not the whole of one")
    try:
        archive = load_archive(path / PLAIN_FILE)
        data, shards = archive["data"], archive["shards"]
        if verify:
            _verify(path, shards)
    except (CorruptCheckpointError, AttributeError, LookupError, TypeError) as error:
        raise CorruptCheckpointError(f"{path.name} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise CorruptCheckpointError(f"{path.name} holds a {type(data).__name__}, not a dictionary")
    return data


def _verify(path: Path, shards: dict[str, dict[str, Any]]) -> None:
    present = {file.name for file in path.glob(_SHARDS)}
    if present != set(shards):
        # One too many would be read like the others.
        raise CorruptCheckpointError(f"it was written with the shards {sorted(shards)}, and has {sorted(present)}")
    for name, entry in shards.items():
        file = path / name
        if file.stat().st_size != entry["size"]:
            raise CorruptCheckpointError(
                f"{name} has {file.stat().st_size} bytes, and was written with {entry['size']}"
            )
        if _hash(file) != entry["sha256"]:
            raise CorruptCheckpointError(f"{name} does not match its checksum: its bytes have changed")


def _hash(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fill_shards(data: dict[str, Any], path: Path, mesh: DeviceMesh | None) -> dict[str, Any]:
    """Return what `load_sharded_plain` did with the tensors in it, which each rank reads by itself, waiting for nobody.

    Args:
        data: the tree; it is not changed.
        path: the folder.
        mesh: the ranks over which each tensor is cut as it was when it was saved, however many they were then; on the
            mesh's device, each reads its part alone. `None` for whole tensors on the CPU.

    Raises:
        CheckpointMismatchError: if the mesh has another number of dimensions than the one that was saved.
        ConfigurationError: if safetensors is not installed.
        CorruptCheckpointError: if the shards cannot be read.
    """
    ensure_safetensors()
    filled, tensors = put_shards_in(data, mesh)
    _read(path, tensors)
    return filled


def _read(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415 - heavy, and needed by few.
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # noqa: PLC0415 - as above.
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415 - as above.

    with warnings.catch_warnings():
        # Each rank reads by itself on purpose: nobody waits for one that cannot.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
        except CheckpointException as error:  # No Exception at all, for torch.
            cause, _ = error.failures[0]
            raise CorruptCheckpointError(
                f"the shards of {path.name} cannot be read: {type(cause).__name__}: {cause}"
            ) from error


def ensure_safetensors() -> None:
    """Check that there is what writes and reads shards.

    Raises:
        ConfigurationError: if safetensors is not installed; the message names the extra to install.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise ConfigurationError(
            "checkpoints of sharded networks need safetensors, which is not installed: "
            "pip install 'helios-train[sharded]'",
        )
