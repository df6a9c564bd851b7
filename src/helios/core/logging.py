"""The output of a run: console, log file and TensorBoard.

All records go to one logger of the standard library, `get_root_logger()`. A run opens a `logging_session`, which adds
handlers for the console and the log file to that logger. Python's root logger is never changed, and the records
propagate to it: if an application has added handlers there, they print the records, and Helios does not.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from tqdm import tqdm

from helios.core.failsafe_writer import make_failsafe
from helios.core.streams import STDERR
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

_LOGGER: Final = logging.getLogger("helios")
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
_RANK_FORMAT: Final = "%(asctime)s %(levelname)s [rank {rank}] %(message)s"


class _NullWriter:
    """A TensorBoard writer for where nothing is written: every `add_*` method does nothing, and `bool` is false."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not (name.startswith("add_") or name in ("flush", "close")):
            raise AttributeError(f"a TensorBoard writer has no {name!r}: it has add_* methods, flush and close")
        return _do_nothing


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Accept any arguments and return `None`."""


_NULL_WRITER: Final = cast("SummaryWriter", _NullWriter())

_open_writers: Final[list[SummaryWriter]] = []


class _Shared:
    """A setting that several sessions share: the first session makes it, and the last one to end undoes it.

    Sessions may be nested, and may be opened by several threads that close them in any order.
    """

    def __init__(self) -> None:
        self.users = 0
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, set_up: Callable[[contextlib.ExitStack], None]) -> Iterator[None]:
        """Keep the setting while the context lasts.

        Args:
            set_up: makes the setting, and registers on the stack what undoes it.
        """
        with self._lock:
            if self.users == 0:
                set_up(self._undo)
            self.users += 1
        try:
            yield
        finally:
            with self._lock:
                self.users -= 1
                if self.users == 0:
                    self._undo.close()


# There is one logger per process, so these are shared by all runs of the process.
_console: Final = _Shared()
_captured_warnings: Final = _Shared()


class _ConsoleHandler(logging.Handler):
    """Writes to the current `sys.stderr`, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        text = _format(self, record)
        if text is not None:
            STDERR.use(lambda stream: tqdm.write(text, file=stream))


class _FileHandler(logging.FileHandler):
    """A log file that is no longer written to after an error, so that training continues."""

    _has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        text = None if self._has_failed else _format(self, record)
        stream = self.stream
        if text is None or stream is None:
            return
        try:
            stream.write(text + self.terminator)
            stream.flush()  # So that the log of a killed run is complete.
        except (OSError, ValueError) as error:
            self._has_failed = True
            _LOGGER.warning(
                "the log file '%s' cannot be written (%s): nothing more is written to it, and training continues",
                self.baseFilename,
                error,
            )

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # Closing writes what is buffered, which may fail again.
            super().close()


def _format(handler: logging.Handler, record: logging.LogRecord) -> str | None:
    try:
        return handler.format(record)
    except Exception:  # noqa: BLE001 - a logging handler must report any error, and raise none.
        with contextlib.suppress(Exception):  # It reports to standard error, which may be closed.
            handler.handleError(record)
        return None


def get_root_logger() -> logging.Logger:
    """Return the logger of Helios, named "helios"; it can be used at any time.

    Within a run, its records go to the console and, if the run has one, to the log file. Outside of a run, the standard
    library prints warnings and errors to standard error, unless the application has added handlers.
    """
    return _LOGGER


def is_root_logger_active() -> bool:
    """Return whether a run is in progress that logs."""
    return _console.users > 0


def get_tensorboard_writer() -> SummaryWriter:
    """Return the TensorBoard writer of the run.

    Where nothing is written to TensorBoard (outside of a run, in a run without it, on ranks other than 0), this is an
    object whose `add_*` methods do nothing and whose `bool` is false, so that callers need not check.
    """
    return _open_writers[-1] if _open_writers else _NULL_WRITER


@contextlib.contextmanager
def logging_session(*, log_file: Path | None, capture_warnings: bool, rank: int) -> Iterator[logging.Logger]:
    """Add handlers for the console and the log file to the logger while the context lasts.

    Rank 0 writes records of level INFO and above, unless the logger already has another level. Most records of other
    ranks repeat those of rank 0, so these ranks write errors only, with their rank, to the console.

    Args:
        log_file: the file to which rank 0 appends its records; `None` for no file. Missing directories are made.
        capture_warnings: log the warnings of the `warnings` module instead of printing them.
        rank: the global rank of this process.

    Raises:
        ConfigurationError: if the log file cannot be opened; the logger is then unchanged.
    """
    with contextlib.ExitStack() as stack:
        if rank == 0 and log_file is not None:
            _add(_open_file(log_file), rank, stack)
        stack.enter_context(_console.held(lambda undo: _open_console(rank, undo)))
        if capture_warnings:
            stack.enter_context(_captured_warnings.held(_capture_warnings))
        yield _LOGGER


@contextlib.contextmanager
def tensorboard_session(run_dir: Path, rank: int) -> Iterator[SummaryWriter]:
    """Make `get_tensorboard_writer` return a writer into `run_dir` while the context lasts, on rank 0.

    Args:
        run_dir: the directory of the event files; made if it does not exist.
        rank: the global rank of this process; the writer of ranks other than 0 does nothing.

    Raises:
        ConfigurationError: if tensorboard is not installed, or `run_dir` cannot be written.
    """
    if rank != 0:
        yield _NULL_WRITER
        return
    writer = _make_writer(run_dir)
    _open_writers.append(writer)
    try:
        yield writer
    finally:
        _open_writers.remove(writer)
        writer.close()


def check_tensorboard() -> None:
    """Check that tensorboard can be imported.

    Raises:
        ConfigurationError: if it is not installed; the message names the extra to install.
    """
    _import_writer()


def _import_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - heavy, and optional.
    except ImportError as error:
        raise ConfigurationError(
            f"writing to TensorBoard needs tensorboard, which cannot be imported ({error}): "
            "pip install 'helios-train[tensorboard]', or leave enable_tensorboard off"
        ) from error
    return SummaryWriter


def _open_console(rank: int, undo: contextlib.ExitStack) -> None:
    """Add a console handler and set a level, unless the application has done so."""
    if logging.getLogger().handlers:  # The handlers of the application print the records already.
        handler: logging.Handler = logging.NullHandler()
    else:
        handler = _ConsoleHandler()
        handler.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    # Without any handler, the standard library's logging.lastResort would print warnings in another format.
    _add(handler, rank, undo)
    undo.callback(_LOGGER.setLevel, _LOGGER.level)
    if _LOGGER.level == logging.NOTSET:  # A level that the application has set is kept.
        _LOGGER.setLevel(logging.INFO)


def _add(handler: logging.Handler, rank: int, undo: contextlib.ExitStack) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT if rank == 0 else _RANK_FORMAT.format(rank=rank)))
    _LOGGER.addHandler(handler)
    undo.callback(handler.close)
    undo.callback(_LOGGER.removeHandler, handler)


def _capture_warnings(undo: contextlib.ExitStack) -> None:
    undo.callback(setattr, warnings, "showwarning", warnings.showwarning)
    warnings.showwarning = _make_warning_logger(warnings.showwarning)


def _open_file(log_file: Path) -> logging.FileHandler:
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        if log_file.is_fifo():
            raise OSError(errno.EINVAL, "it is a FIFO, and opening it would wait for a reader")  # noqa: TRY301 - handled as an error of open.
        # File names may contain bytes that are not valid Unicode; these are written with escapes.
        return _FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(
            f"the log file '{log_file}' cannot be opened ({error}): pass another log_path, or turn file logging off"
        ) from error


def _make_writer(run_dir: Path) -> SummaryWriter:
    writer_class = make_failsafe(_import_writer())
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return writer_class(str(run_dir))
    except OSError as error:
        raise ConfigurationError(
            f"TensorBoard files cannot be written to '{run_dir}' ({error}): pass another run_path"
        ) from error


def _make_warning_logger(show_warning: Callable[..., None]) -> Callable[..., None]:
    def log_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None:  # The caller of showwarning has chosen where to print it.
            show_warning(message, category, filename, lineno, file, line)
        else:
            _LOGGER.warning("%s", warnings.formatwarning(str(message), category, filename, lineno, line).rstrip())

    return log_warning
