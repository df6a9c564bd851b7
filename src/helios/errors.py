"""The errors Helios raises.

Every one of them is also the builtin error that callers already catch::

    HeliosError
    ├── ConfigurationError        ValueError    an argument, or a combination of arguments, breaks a rule
    ├── ArgumentTypeError         TypeError     an argument or a return value has the wrong type
    ├── UnknownNameError          KeyError      a table has no such name; the message lists the names it has
    ├── DuplicateNameError        KeyError      the name is taken
    ├── MissingArgumentError      KeyError      a mapping of arguments lacks one that is needed
    ├── PluginConflictError       ValueError    two plug-ins claim one unique override
    ├── FileAccessError           OSError       a file or folder that was given cannot be opened, read or entered
    │   └── MissingFileError      FileNotFoundError  there is no such file or folder
    ├── DeviceUnavailableError    RuntimeError  the device asked for does not exist here
    ├── NotRunningError           RuntimeError  something that only a run provides was asked for outside of one
    ├── RunInProgressError        RuntimeError  another run is in progress that would share the random generators
    ├── StudyStorageError         RuntimeError  the database of a study is full, deleted, damaged or out of reach
    ├── StudyInUseError           RuntimeError  another process runs trials of the study that shall be changed
    ├── StudyTimeoutError         TimeoutError  another process of a study was waited for too long
    ├── StudyViewError            RuntimeError  a study is to be changed through a view of it
    ├── TrainingError             RuntimeError  training cannot go on and nobody's code raised
    │   └── StoreContentError     RuntimeError  the store of a run holds what no rank of the run has written
    ├── RankFailedError           RuntimeError  another process of the run has failed; the message has its traceback
    └── CheckpointError           RuntimeError  a checkpoint cannot be written or used
        ├── CorruptCheckpointError  ValueError  the bytes are not what was written, or would run code
        ├── CheckpointMismatchError ValueError  the bytes are fine but belong to something else
        └── FolderInUseError                    another run owns the folder of checkpoints
"""

from __future__ import annotations


class HeliosError(Exception):
    """The root of every error that Helios raises on purpose."""


class ConfigurationError(HeliosError, ValueError):
    """An argument, or a combination of arguments, breaks a rule."""


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
    """A mapping of arguments lacks one that is needed, or has a value there that comes to the same."""


class PluginConflictError(HeliosError, ValueError):
    """Two plug-ins claim one unique override."""


class FileAccessError(HeliosError, OSError):
    """A file or folder that was given cannot be opened, read or entered."""


class MissingFileError(FileAccessError, FileNotFoundError):
    """There is no such file or folder."""


class DeviceUnavailableError(HeliosError, RuntimeError):
    """The device asked for does not exist on this machine."""


class NotRunningError(HeliosError, RuntimeError):
    """Something that only a run provides was asked for outside of one."""


class RunInProgressError(HeliosError, RuntimeError):
    """Another run is in progress in this process, and would share its random generators, or its trainer."""


class StudyStorageError(HeliosError, RuntimeError):
    """The database of a study is full, deleted, damaged or out of reach. What it held is as it was."""


class StudyInUseError(HeliosError, RuntimeError):
    """Another process runs trials of the study that shall be changed."""


class StudyTimeoutError(HeliosError, TimeoutError):
    """Another process of the study was waited for, for as long as the caller wanted to."""


class StudyViewError(HeliosError, RuntimeError):
    """A study is to be changed on a rank that has a view of it alone."""


class TrainingError(HeliosError, RuntimeError):
    """Training cannot go on, and it was not the user's code that raised."""


class StoreContentError(TrainingError):
    """The key-value store that the ranks of a run share holds what none of them has written."""


class RankFailedError(HeliosError, RuntimeError):
    """Another process of the run has failed, been killed or lost. What it raised, if it could be sent, is the cause.

    Attributes:
        rank: the global rank that failed first.
        is_lost: whether it has raised nothing, but was killed, has crashed, or is out of reach: it may do better in
            another life.
    """

    def __init__(self, message: str, rank: int, is_lost: bool = False) -> None:
        super().__init__(message)
        self.rank = rank
        self.is_lost = is_lost

    def __reduce__(self) -> tuple[type[RankFailedError], tuple[str, int, bool]]:
        """Pickle all arguments: an exception by itself keeps only what it was printed with."""
        return type(self), (str(self), self.rank, self.is_lost)


class CheckpointError(HeliosError, RuntimeError):
    """A checkpoint cannot be written, found or used."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """A checkpoint's bytes are not those that were written, or loading them would run code."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A checkpoint is intact but belongs to another class, plug-in or version."""


class FolderInUseError(CheckpointError):
    """Another run owns the folder of checkpoints that this one would write to."""
