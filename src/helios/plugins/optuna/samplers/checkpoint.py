"""`checkpoint_sampler` and `restore_sampler`, for samplers other than `ReproducibleSampler`."""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING, Final

import optuna

from helios.checkpoint.archive import load_archive, save_archive, verify_archive
from helios.core.distributed import get_global_rank
from helios.core.logging import get_root_logger
from helios.core.paths import open_regular, to_path
from helios.errors import ArgumentTypeError, CheckpointError, CorruptCheckpointError
from helios.plugins.optuna.samplers.encoding import decode_sampler, encode_sampler
from helios.plugins.optuna.samplers.reproducible import ReproducibleSampler

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.samplers import BaseSampler

_NAME: Final = re.compile(r"sampler-(\d{6,})_trial-(\d+)\.pth")
_KEPT: Final = 3
_ZIP_START: Final = b"PK\x03\x04"
_CHECKSUM_MARK: Final = b"helios-sha256:"


def checkpoint_sampler(trial: optuna.Trial, chkpt_root: str | Path) -> None:
    """Save the sampler of a trial's study atomically; a folder keeps the newest three files.

    Call it in the objective, after the trial's last suggestion: the storage keeps the suggested values, and a sampler
    that was saved earlier would use the same random numbers again for the next suggestions. A `ReproducibleSampler` has
    no state and is not saved. In a distributed run only rank 0 saves, because the sampler is there.

    Args:
        trial: the running trial.
        chkpt_root: the folder, one for each study; it is created if it does not exist.

    Raises:
        ArgumentTypeError: if a part of the sampler is not one of Optuna's classes and functions, so that it could not
            be restored, or if `trial` is not a trial of a study; no file is written.
        CheckpointError: if the file cannot be written.
    """
    folder = to_path(chkpt_root, "chkpt_root")
    if get_global_rank() != 0:
        return
    if not isinstance(trial, optuna.Trial):
        raise ArgumentTypeError(f"trial is {trial!r}, a {type(trial).__name__}: pass the running trial of a study")
    sampler = trial.study.sampler
    if isinstance(sampler, ReproducibleSampler):
        get_root_logger().debug("the sampler of trial %d needs no checkpoint: it has no state", trial.number)
        return
    data = {"optuna": optuna.__version__, "sampler": encode_sampler(sampler)}
    decode_sampler(data["sampler"])  # Raises now if the file could not be read later.
    checkpoints = _find_checkpoints(folder)
    number = max(checkpoints, default=(0, 0))[0] + 1
    try:
        save_archive(folder / f"sampler-{number:06}_trial-{trial.number}.pth", data)
        for key in sorted(checkpoints)[: 1 - _KEPT]:
            checkpoints[key].unlink(missing_ok=True)  # Another worker may have deleted it.
    except OSError as error:
        raise CheckpointError(
            f"the sampler of trial {trial.number} cannot be saved in '{folder}' ({error}): earlier ones are intact"
        ) from error


def restore_sampler(root: str | Path) -> BaseSampler | None:
    """Return the sampler that was saved last, with its state, or `None` if there is none.

    No code in a file is run. A truncated file, or an entry that is not a file, is skipped with a warning that names it,
    and the file before it is used.

    A study that is killed after `checkpoint_sampler` and before the first suggestion of the next trial is resumed with
    exactly the same suggestions. After a kill between a trial's first suggestion and `checkpoint_sampler`, or after a
    trial without that call, it is not: the random numbers of that trial's suggestions are used again. With a
    `ReproducibleSampler` a study is resumed exactly after a kill at any time.

    Args:
        root: the folder that was passed to `checkpoint_sampler`; it may be missing.

    Raises:
        CheckpointError: if the folder cannot be read.
        CorruptCheckpointError: if a file was not written by `checkpoint_sampler`, or names a class or function that is
            not part of Optuna's samplers.
    """
    checkpoints = _find_checkpoints(to_path(root, "root"))
    for key in sorted(checkpoints, reverse=True):
        path = checkpoints[key]
        try:
            verify_archive(path)
        except OSError as error:
            get_root_logger().warning("skipped the sampler in %s, which cannot be read: %s", path, error)
            continue
        except CorruptCheckpointError as error:
            if not _is_truncated(path):
                raise CorruptCheckpointError(
                    f"'{path}' is not a file that checkpoint_sampler wrote: delete it, or pass another root"
                ) from error
            get_root_logger().warning("skipped the sampler in %s, which is truncated: %s", path, error)
            continue
        return _load(path)
    return None


def _find_checkpoints(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the checkpoints by their running number and the number of their trial."""
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"'{folder}' cannot be read ({error}): make it readable, or pass another root") from error
    found = ((_NAME.fullmatch(path.name), path) for path in paths)
    return {(int(match[1]), int(match[2])): path for match, path in found if match}


def _load(path: Path) -> BaseSampler:
    data = load_archive(path)
    try:
        sampler = decode_sampler(data.get("sampler"))
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"'{path}' is not a sampler: {error}") from error
    if data.get("optuna") != optuna.__version__:
        get_root_logger().warning(
            "the sampler in %s was saved by Optuna %s; with Optuna %s it may suggest other values",
            *(path, data.get("optuna"), optuna.__version__),
        )
    return sampler


def _is_truncated(path: Path) -> bool:
    """Return whether a file with a wrong checksum is the beginning of an archive, and not a file of another kind."""
    with open_regular(path) as file:
        content = file.read()
    if not content.strip(b"\0"):
        return True
    # A complete zip file without a checksum was not written by `save_archive`.
    return content.startswith(_ZIP_START) and (_CHECKSUM_MARK in content[-128:] or not zipfile.is_zipfile(path))
