"""What a run says: to the console, to its log file and to TensorBoard.

Everything goes to one logger of the standard library, `get_root_logger()`. A run opens a `logging_session`, which gives
that logger its console and its file; outside of a session it is a logger like any other. Python's own root logger is
never touched, and all records reach it too: an application that has set up logging by itself gets them there, and
Helios then leaves the console to it.
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
    """Stands in for a TensorBoard writer where nothing is written: every `add_*` does nothing. It is false."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not (name.startswith("add_") or name in ("flush", "close")):
            raise AttributeError(f"a TensorBoard writer has no {name!r}: it has add_scalar and its like, flush, close")
        return _do_nothing


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Take anything and return nothing."""


_NULL_WRITER: Final = cast("SummaryWriter", _NullWriter())

_open_writers: Final[list[SummaryWriter]] = []


class _Shared:
    """Something that is in place while any session needs it: the first one in sets it up, the last one out undoes it.

    Sessions are opened within each other, and by several threads, which close them in any order.
    """

    def __init__(self) -> None:
        self.users = 0
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, set_up: Callable[[contextlib.ExitStack], None]) -> Iterator[None]:
        """Have it in place while the context lasts.

        Args:
            set_up: sets it up, and puts what undoes that on the stack.
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


# A process has one log, so this is its home.
_console: Final = _Shared()
_captured_warnings: Final = _Shared()


class _ConsoleHandler(logging.Handler):
    """Writes to the standard error stream of the moment, above progress bars instead of through them."""

    def emit(self, record: logging.LogRecord) -> None:
        text = _format(self, record)
        if text is not None:
            STDERR.use(lambda stream: tqdm.write(text, file=stream))


class _FileHandler(logging.FileHandler):
    """A log file that is given up when it cannot be written, in place of the run."""

    _is_given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        text = None if self._is_given_up else _format(self, record)
        stream = self.stream
        if text is None or stream is None:
            return
        try:
            stream.write(text + self.terminator)
            stream.flush()  # A killed run leaves its whole log.
        except (OSError, ValueError) as error:
            self._is_given_up = True
            _LOGGER.warning(
                "the log file '%s' cannot be written (%s): nothing more is written to it, and training continues",
                self.baseFilename,
                error,
            )

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # What could not be written then cannot be written now.
            super().close()


def _format(handler: logging.Handler, record: logging.LogRecord) -> str | None:
    try:
        return handler.format(record)
    except Exception:  # noqa: BLE001 - what the logging package asks of a handler: report it, never raise.
        with contextlib.suppress(Exception):  # It reports to standard error, which may be closed.
            handler.handleError(record)
        return None


def get_root_logger() -> logging.Logger:
    """Return the logger of Helios, named "helios"; it can be used at any time.

    Within a run its records go to the console and, if asked for, to the log file. Outside of one the standard library
    decides: warnings and errors go to the standard error stream, unless the application has set up something else.
    """
    return _LOGGER


def is_root_logger_active() -> bool:
    """Return whether a run is logging now."""
    return _console.users > 0


def get_tensorboard_writer() -> SummaryWriter:
    """Return the TensorBoard writer of the run.

    Where nothing is written to TensorBoard (outside of a run, in a run without it, on ranks other than 0) this is a
    stand-in whose `add_*` methods do nothing and which is false, so callers need not ask.
    """
    return _open_writers[-1] if _open_writers else _NULL_WRITER


@contextlib.contextmanager
def logging_session(*, log_file: Path | None, capture_warnings: bool, rank: int) -> Iterator[logging.Logger]:
    """Give the logger its console and its file while the context lasts.

    Rank 0 writes records from INFO up, unless the logger was given another level before. Other ranks mostly repeat what
    rank 0 says: they write errors alone, marked with their rank, to the console.

    Args:
        log_file: where rank 0 writes its records, after those already there; `None` for no file. Its directory is made
            if there is none.
        capture_warnings: log the warnings of the `warnings` module instead of printing them.
        rank: the global rank of this process.

    Raises:
        ConfigurationError: if the log file cannot be opened; nothing has changed then.
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
        run_dir: the directory of the event files; made if there is none.
        rank: the global rank of this process; ranks other than 0 get the stand-in.

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
    """Give the logger a console and a level, unless the application has done so."""
    if logging.getLogger().handlers:  # They print the records already.
        handler: logging.Handler = logging.NullHandler()
    else:
        handler = _ConsoleHandler()
        handler.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    # Without any handler, the standard library would print warnings in a format of its own.
    _add(handler, rank, undo)
    undo.callback(_LOGGER.setLevel, _LOGGER.level)
    if _LOGGER.level == logging.NOTSET:  # An application that chose a level keeps it.
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
            raise OSError(errno.EINVAL, "it is a FIFO, and would be waited for until somebody reads")  # noqa: TRY301 - as one that cannot be opened.
        # What is not Unicode, such as a part of a file's name, is written with escapes.
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
        if file is not None:  # Somebody wants it there.
            show_warning(message, category, filename, lineno, file, line)
        else:
            _LOGGER.warning("%s", warnings.formatwarning(str(message), category, filename, lineno, line).rstrip())

    return log_warning
