"""The log of a run, and its TensorBoard writer."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from helios.core.logging import (
    check_tensorboard,
    get_root_logger,
    get_tensorboard_writer,
    is_root_logger_active,
    logging_session,
    tensorboard_session,
)
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def plain_session(*, log_file: Path | None = None, rank: int = 0) -> Iterator[logging.Logger]:
    """A session without the handlers that pytest adds to Python's root logger."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    root.handlers.clear()
    try:
        with logging_session(log_file=log_file, capture_warnings=False, rank=rank) as logger:
            yield logger
    finally:
        root.handlers[:] = handlers


def test_a_session_logs_to_file_and_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records of level INFO and above reach the console and the file during the session only."""
    logger, path = get_root_logger(), tmp_path / "logs" / "run.log"
    with plain_session(log_file=path) as opened:
        assert opened is logger
        assert is_root_logger_active()
        logger.debug("unseen")
        logger.info("epoch %d", 3)
    assert not is_root_logger_active()
    logger.info("too late")
    written = path.read_text()
    assert written.endswith(" INFO epoch 3\n")
    assert len(written.splitlines()) == 1
    assert capsys.readouterr().err == written


def test_a_file_is_continued(tmp_path: Path) -> None:
    """A resumed run appends to the log file of the previous run."""
    path = tmp_path / "run.log"
    for text in ("first", "second"):
        with logging_session(log_file=path, capture_warnings=False, rank=0) as logger:
            logger.warning(text)
    assert [line.split(" ", 2)[2] for line in path.read_text().splitlines()] == ["WARNING first", "WARNING second"]


def test_a_record_is_on_disk_at_once(tmp_path: Path) -> None:
    """A record can be read before the session ends, so that the log of a killed run is complete."""
    with logging_session(log_file=tmp_path / "run.log", capture_warnings=False, rank=0) as logger:
        logger.info("here")
        assert (tmp_path / "run.log").read_text().endswith("here\n")


def test_a_session_leaves_no_trace(tmp_path: Path) -> None:
    """A session restores handlers, level, propagation and warnings, also after an error, and leaves the root logger."""
    root, logger = logging.getLogger(), get_root_logger()

    def snapshot() -> tuple[object, ...]:
        return (*root.handlers, root.level, *logger.handlers, logger.level, logger.propagate, warnings.showwarning)

    before = snapshot()
    with (
        pytest.raises(ZeroDivisionError),
        logging_session(log_file=tmp_path / "run.log", capture_warnings=True, rank=0),
    ):
        assert [*root.handlers, root.level] == list(before[: len(root.handlers) + 1])
        assert snapshot() != before
        raise ZeroDivisionError
    assert snapshot() == before
    assert not is_root_logger_active()


def test_the_level_an_application_chose_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A logger whose level was DEBUG before a session logs debug records in it."""
    get_root_logger().setLevel(logging.DEBUG)
    with logging_session(log_file=None, capture_warnings=False, rank=0) as logger:
        logger.debug("details")
    assert caplog.messages == ["details"]


def test_an_application_that_logs_gets_records_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With handlers on Python's root logger, records go there, and Helios does not print them."""
    with logging_session(log_file=None, capture_warnings=False, rank=0) as logger:
        logger.info("to the application")
    assert caplog.messages == ["to the application"]
    assert capsys.readouterr().err == ""


def test_other_ranks_report_errors_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 3 prints errors with its rank, no warnings, and writes no file."""
    with plain_session(log_file=tmp_path / "run.log", rank=3) as logger:
        logger.warning("said by rank 0 too")
        logger.error("only here")
    assert capsys.readouterr().err.endswith("ERROR [rank 3] only here\n")
    assert not (tmp_path / "run.log").exists()


def test_a_session_within_a_session_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Testing in a training hook opens a second session, and each record is still printed once."""
    with plain_session() as logger:
        with plain_session():
            logger.info("inner")
        assert is_root_logger_active()
        logger.info("outer")
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["inner", "outer"]


def test_sessions_may_end_in_any_order(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that train at once share console, level and warnings; the last one to end restores all."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger, show_warning = get_root_logger(), warnings.showwarning
    first, second = (logging_session(log_file=None, capture_warnings=True, rank=0) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    logger.info("still here")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd thing", UserWarning, stacklevel=1)
    assert is_root_logger_active()
    second.__exit__(None, None, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(" INFO still here")
    assert "WARNING" in lines[1]
    assert "odd thing" in lines[1]
    assert (logger.handlers, logger.level, warnings.showwarning) == ([], logging.NOTSET, show_warning)
    assert not is_root_logger_active()


def test_writers_may_be_closed_in_any_order(tmp_path: Path) -> None:
    """The writer of a run stays available when the run of another thread ends."""
    first, second = (tensorboard_session(tmp_path / name, rank=0) for name in "ab")
    first.__enter__()
    writer = second.__enter__()
    first.__exit__(None, None, None)
    assert get_tensorboard_writer() is writer
    second.__exit__(None, None, None)
    assert not get_tensorboard_writer()


def test_the_console_goes_around_progress_bars(capsys: pytest.CaptureFixture[str]) -> None:
    """A record that is printed while a bar is shown has its own line, and the bar is drawn again below it."""
    with plain_session() as logger:
        bar = tqdm(total=2, desc="bar", file=sys.stderr, mininterval=0, ncols=60)
        bar.update()
        logger.info("message")
        bar.close()
    screen = capsys.readouterr().err
    message = next(line for line in screen.replace("\r", "\n").splitlines() if "message" in line)
    assert message.endswith(" INFO message")
    assert "bar:" not in message
    assert "bar:" in screen[screen.index("message") :]


def test_warnings_are_captured_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `capture_warnings`, a warning is one WARNING record with its category and source line; without, none."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown: list[str] = []
        warnings.showwarning = lambda message, *_args, **_kwargs: shown.append(str(message))
        with logging_session(log_file=tmp_path / "run.log", capture_warnings=True, rank=0):
            warnings.warn("odd thing", UserWarning, stacklevel=1)
        with logging_session(log_file=None, capture_warnings=False, rank=0):
            warnings.warn("printed", UserWarning, stacklevel=1)
    assert shown == ["printed"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "UserWarning: odd thing" in (tmp_path / "run.log").read_text()
    assert "test_logging.py:" in caplog.messages[0]


def test_a_log_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A path below a file is a ConfigurationError with path and remedy, after which no session is open."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match="file/run.log' cannot be opened .*: pass another log_path"),
        logging_session(log_file=tmp_path / "file" / "run.log", capture_warnings=True, rank=0),
    ):
        pytest.fail("opened a log below a file")
    assert not is_root_logger_active()
    assert get_root_logger().handlers == []


def test_the_logger_works_outside_of_a_run() -> None:
    """Without a session, warnings are printed to standard error, and records of level INFO are not."""
    code = (
        "from helios.core.logging import get_root_logger\n"
        "get_root_logger().info('quiet')\nget_root_logger().warning('loud')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "loud\n")


def test_the_writer_of_the_run_is_found(tmp_path: Path) -> None:
    """In a session, `get_tensorboard_writer` returns its writer, and what is added is in the files afterwards."""
    with tensorboard_session(tmp_path / "runs" / "a", rank=0) as writer:
        assert get_tensorboard_writer() is writer
        get_tensorboard_writer().add_scalar("loss", 0.5, 7)
    assert not get_tensorboard_writer()
    events = EventAccumulator(str(tmp_path / "runs" / "a"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.5)]


def test_the_stand_in_takes_everything(tmp_path: Path) -> None:
    """Where nothing is written, the writer is false, accepts any `add_*`, makes no files, and has no other methods."""
    with tensorboard_session(tmp_path / "none", rank=1) as writer:
        assert get_tensorboard_writer() is writer
        writer.add_scalar("loss", 1.0, 1)
        writer.flush()
    assert not writer
    assert not (tmp_path / "none").exists()
    with pytest.raises(AttributeError, match="has no 'ad_scalar'"):
        writer.ad_scalar  # type: ignore[attr-defined]  # noqa: B018 - the mistake under test.


def test_a_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tensorboard, a session raises an error with the command that installs it."""
    check_tensorboard()
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        pytest.raises(ConfigurationError, match=r"pip install 'helios-train\[tensorboard\]'"),
        tensorboard_session(tmp_path, rank=0),
    ):
        pytest.fail("opened a session without tensorboard")
    assert not get_tensorboard_writer()


def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A path below a file is a ConfigurationError that names it."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match="cannot be written to '.*file/runs' .*: pass another run_path"),
        tensorboard_session(tmp_path / "file" / "runs", rank=0),
    ):
        pytest.fail("opened a writer below a file")


def test_tensorboard_is_imported_only_when_used() -> None:
    """Importing helios.core.logging and opening a session do not import tensorboard."""
    code = (
        "import sys\nfrom helios.core.logging import get_tensorboard_writer, logging_session\n"
        "with logging_session(log_file=None, capture_warnings=True, rank=0):\n"
        "    get_tensorboard_writer().add_scalar('a', 1, 1)\n"
        "sys.exit('tensorboard' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
