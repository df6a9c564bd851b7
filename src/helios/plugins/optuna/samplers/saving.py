"""Samplers that are saved as they are, for studies whose sampler is not a `ReproducibleSampler`."""

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
from helios.plugins.optuna.samplers.reproducible import ReproducibleSampler
from helios.plugins.optuna.samplers.state import decode_sampler, encode_sampler

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.samplers import BaseSampler

_NAME: Final = re.compile(r"sampler-(\d{6,})_trial-(\d+)\.pth")
_KEPT: Final = 3
_ZIP_START: Final = b"PK\x03\x04"
_SEAL: Final = b"helios-sha256:"


def checkpoint_sampler(trial: optuna.Trial, root: str | Path) -> None:
    """Save the sampler of a trial's study, whole or not at all; the newest three in a folder are kept.

    Call it in the objective, after the trial's last suggestion: what a trial has been suggested stands in the storage,
    and a sampler that was saved before would draw the same numbers again, for what comes next. A `ReproducibleSampler`
    has no state and is not saved. In a distributed run rank 0 alone saves: the sampler lives there.

    Args:
        trial: the running trial.
        root: the folder, one for each study; it is made if it is missing.

    Raises:
        ArgumentTypeError: if a part of the sampler is not Optuna's own (a class or a function of yours), so that it
            could not be restored, or if `trial` is no trial of a study; nothing is written then.
        CheckpointError: if the file cannot be written.
    """
    folder = to_path(root, "root")
    if get_global_rank() != 0:
        return
    if not isinstance(trial, optuna.Trial):
        raise ArgumentTypeError(f"trial is {trial!r}, a {type(trial).__name__}: pass the running trial of a study")
    sampler = trial.study.sampler
    if isinstance(sampler, ReproducibleSampler):
        get_root_logger().debug("the sampler of trial %d needs no checkpoint: it has no state", trial.number)
        return
    data = {"optuna": optuna.__version__, "sampler": encode_sampler(sampler)}
    decode_sampler(data["sampler"])  # What cannot be read shall be known now, not when it is needed.
    checkpoints = _find_checkpoints(folder)
    number = max(checkpoints, default=(0, 0))[0] + 1
    try:
        save_archive(folder / f"sampler-{number:06}_trial-{trial.number}.pth", data)
        for key in sorted(checkpoints)[: 1 - _KEPT]:
            checkpoints[key].unlink(missing_ok=True)  # Another worker may have been faster.
    except OSError as error:
        raise CheckpointError(
            f"the sampler of trial {trial.number} cannot be saved in '{folder}' ({error}): earlier ones are intact"
        ) from error


def restore_sampler(root: str | Path) -> BaseSampler | None:
    """Return the sampler that was saved last, in the state it was in, or `None` if there is none.

    Code in a file is never run. A torn file, and what is no file, is passed over, with a warning that names it, and the
    one before it is used.

    A study that is killed after `checkpoint_sampler` saved a trial's sampler, and before the next trial's first
    suggestion, goes on with the very suggestions that it would have had. One that is killed between a trial's first
    suggestion and that call does not, and a trial that ended without the call is no better: the numbers behind what the
    trial had been suggested are drawn again. A `ReproducibleSampler` goes on exactly wherever it is killed.

    Args:
        root: the folder that `checkpoint_sampler` was given; it need not exist.

    Raises:
        CheckpointError: if the folder cannot be read.
        CorruptCheckpointError: if a file is not by `checkpoint_sampler`, or asks for anything that no sampler of Optuna
            is made of.
    """
    checkpoints = _find_checkpoints(to_path(root, "root"))
    for key in sorted(checkpoints, reverse=True):
        path = checkpoints[key]
        try:
            verify_archive(path)
        except OSError as error:
            get_root_logger().warning("passed over the sampler in %s, which cannot be read: %s", path, error)
            continue
        except CorruptCheckpointError as error:
            if not _is_torn(path):
                raise CorruptCheckpointError(
                    f"'{path}' is not a file that checkpoint_sampler wrote: delete it if you do not know it"
                ) from error
            get_root_logger().warning("passed over the sampler in %s, which is torn: %s", path, error)
            continue
        return _load(path)
    return None


def _find_checkpoints(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the checkpoints by their running number and their trial's."""
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
            "the sampler in %s was saved by Optuna %s; that of %s may go on differently",
            *(path, data.get("optuna"), optuna.__version__),
        )
    return sampler


def _is_torn(path: Path) -> bool:
    """Return whether a file that does not match its checksum is a part of an archive, rather than something else."""
    with open_regular(path) as file:
        content = file.read()
    if not content.strip(b"\0"):
        return True
    # A whole zip file without a seal is somebody else's.
    return content.startswith(_ZIP_START) and (_SEAL in content[-128:] or not zipfile.is_zipfile(path))
