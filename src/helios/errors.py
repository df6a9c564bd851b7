"""The errors that Helios raises.

Each of them is also the builtin error that callers already catch::

    HeliosError
    ├── ConfigurationError        ValueError    an argument, or a combination of arguments, breaks a rule
    │   └── EmptyOptionalError    RuntimeError  a required optional value is None
    ├── ArgumentTypeError         TypeError     an argument or a return value has the wrong type
    ├── UnknownNameError          KeyError      a table has no such name; the message lists the names it has
    ├── DuplicateNameError        KeyError      the name is taken
    ├── MissingArgumentError      KeyError      a mapping of arguments lacks a required one
    ├── PluginConflictError       ValueError    two plug-ins claim the same unique override
    ├── FileAccessError           OSError       a given file or folder cannot be opened, read or entered
    │   └── MissingFileError      FileNotFoundError  there is no such file or folder
    ├── DeviceUnavailableError    RuntimeError  the requested device does not exist on this machine
    ├── NotRunningError           RuntimeError  something that only a run provides was used outside of a run
    ├── RunInProgressError        RuntimeError  another run is in progress that would share the random generators
    ├── StudyStorageError         RuntimeError  the database of a study is full, deleted, damaged or unreachable
    ├── StudyInUseError           RuntimeError  another process runs trials of the study to be changed
    ├── StudyTimeoutError         TimeoutError  waiting for another process of a study took too long
    ├── StudyViewError            RuntimeError  a study was changed through a read-only view of it
    ├── TrainingError             RuntimeError  training cannot continue, and the user's code did not raise
    │   └── StoreContentError     RuntimeError  the store of a run has content that no rank of the run has written
    ├── RankFailedError           RuntimeError  another process of the run has failed; the message has its traceback
    └── CheckpointError           RuntimeError  a checkpoint cannot be written or used
        ├── CorruptCheckpointError  ValueError  the bytes are not those that were written, or would run code; it is a
        │                                       pickle.UnpicklingError, too
        ├── CheckpointMismatchError ValueError  the checkpoint is intact but belongs to something else
        └── FolderInUseError                    another run owns the folder of checkpoints
"""

from __future__ import annotations

import pickle


class HeliosError(Exception):
    """The base class of all errors of Helios."""


class ConfigurationError(HeliosError, ValueError):
    """An argument, or a combination of arguments, breaks a rule."""


class EmptyOptionalError(ConfigurationError, RuntimeError):
    """An optional value that is required here is `None`."""


class ArgumentTypeError(HeliosError, TypeError):
    """An argument or a return value has the wrong type."""


class _NameError(HeliosError, KeyError):
    """A `KeyError` that prints its message as written, without `KeyError`'s quotes around it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownNameError(_NameError):
    """A table has no entry of this name."""


class DuplicateNameError(_NameError):
    """A table already has an entry of this name."""


class MissingArgumentError(_NameError):
    """A mapping of arguments lacks a required one, or has a value for it that means the same, such as `None`."""


class PluginConflictError(HeliosError, ValueError):
    """Two plug-ins claim the same unique override: a method that at most one plug-in may override."""


class FileAccessError(HeliosError, OSError):
    """A given file or folder cannot be opened, read or entered."""


class MissingFileError(FileAccessError, FileNotFoundError):
    """There is no such file or folder."""


class DeviceUnavailableError(HeliosError, RuntimeError):
    """The requested device does not exist on this machine."""


class NotRunningError(HeliosError, RuntimeError):
    """Something that only a run provides was used outside of a run."""


class RunInProgressError(HeliosError, RuntimeError):
    """Another run is in progress in this process, and would share its random generators, or its trainer."""


class StudyStorageError(HeliosError, RuntimeError):
    """The database of a study is full, deleted, damaged or unreachable. Its content is unchanged."""


class StudyInUseError(HeliosError, RuntimeError):
    """Another process runs trials of the study to be changed."""


class StudyTimeoutError(HeliosError, TimeoutError):
    """Waiting for another process of the study took longer than the caller's timeout."""


class StudyViewError(HeliosError, RuntimeError):
    """A study was changed on a rank that only has a read-only view of it."""


class TrainingError(HeliosError, RuntimeError):
    """Training cannot continue, and the user's code did not raise."""


class StoreContentError(TrainingError):
    """The key-value store that the ranks of a run share has content that none of them has written."""


class RankFailedError(HeliosError, RuntimeError):
    """Another process of the run has failed, was killed or cannot be reached.

    The `__cause__` is the exception of that process, if it could be sent.

    Attributes:
        rank: the global rank that failed first.
        is_lost: whether it raised no exception, but was killed, crashed or cannot be reached: restarting the run may
            then help.
    """

    def __init__(self, message: str, rank: int, is_lost: bool = False) -> None:
        super().__init__(message)
        self.rank = rank
        self.is_lost = is_lost

    def __reduce__(self) -> tuple[type[RankFailedError], tuple[str, int, bool]]:
        """Pickle all arguments: by default, an exception pickles those of `Exception.__init__` only."""
        return type(self), (str(self), self.rank, self.is_lost)


class CheckpointError(HeliosError, RuntimeError):
    """A checkpoint cannot be written, found or used."""


class CorruptCheckpointError(CheckpointError, ValueError, pickle.UnpicklingError):
    """A checkpoint's bytes are not those that were written, or loading them would run code."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A checkpoint is intact but belongs to other data, or to another class, plug-in or version."""


class FolderInUseError(CheckpointError):
    """Another run owns the folder of checkpoints that this one would write to."""
