"""Training continues when what it says cannot be written: full disks, broken pipes, closed and missing streams."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from helios.core.distributed import global_print, local_print
from helios.core.logging import get_root_logger, get_tensorboard_writer
from helios.core.streams import STDERR, STDOUT
from helios.trainer._progress import RichDisplay, StderrDisplay
from tests.checkpoint.test_files import limited_file_size
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helios import TrainingState


class Talking(CountingModel):
    """Logs in every epoch, so that more than one record cannot be written."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        get_root_logger().info("epoch %d begins", current_epoch)


def train(**options: Any) -> float:
    """Train with everything that writes to the standard streams; return the one weight."""
    model = Talking()
    shown = {"print_banner": True, "enable_progress_bar": True, "valid_frequency": 1}
    with plain_program():
        assert make_trainer(**{**shown, **options}).fit(model, ListData())
    return model.weight


@contextlib.contextmanager
def plain_program() -> Iterator[None]:
    """Take pytest's handlers off Python's root logger."""
    root = logging.getLogger()
    handlers, root.handlers[:] = list(root.handlers), []
    try:
        yield
    finally:
        root.handlers[:] = handlers


@pytest.fixture
def weight(capsys: pytest.CaptureFixture[str]) -> float:
    """Return what a run ends with whose output can be written."""
    result = train()
    capsys.readouterr()
    return result


def full() -> io.TextIOBase:
    """Return a stream on a full disk."""
    return Path("/dev/full").open("w", encoding="utf-8")


def broken() -> io.TextIOBase:
    """Return a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed() -> io.TextIOBase:
    """Return a stream that was closed."""
    stream = io.StringIO()
    stream.close()
    return stream


def missing() -> None:
    """Return what programs without a console have."""


STREAMS = [full, broken, closed, missing]


@contextlib.contextmanager
def replaced(make: Callable[[], Any], *names: str) -> Iterator[None]:
    """Put streams that cannot be written in the place of the standard ones."""
    before = {name: getattr(sys, name) for name in names}
    streams = {name: make() for name in names}
    vars(sys).update(streams)
    try:
        yield
    finally:
        vars(sys).update(before)
        for stream in filter(None, streams.values()):
            with contextlib.suppress(OSError):
                stream.close()


@pytest.mark.parametrize("names", [("stdout",), ("stderr",), ("stdout", "stderr")])
@pytest.mark.parametrize("make", STREAMS)
def test_training_outlives_its_standard_streams(
    tmp_path: Path, weight: float, make: Callable[[], Any], names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Banner, bars and console are switched off, said once each in the log file; the weights are equal to the bit."""
    for stream in (STDOUT, STDERR):
        monkeypatch.setattr(stream, "_broken", ...)  # That there is none is said once a process.
    with replaced(make, *names):
        assert train(enable_file_logging=True, log_path=tmp_path) == weight
    log = (tmp_path / "helios.log").read_text()
    for name, title in (("stdout", "standard output"), ("stderr", "standard error")):
        assert log.count(f"WARNING {title} cannot be written") == (name in names)
    assert "6 iterations trained" in log
    assert not tqdm._instances  # type: ignore[attr-defined]  # tqdm's own list of open bars.


def test_a_stream_that_fails_is_named_on_the_other(weight: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a log file the failure of standard error is said on standard output, and the other way round."""
    with replaced(full, "stderr"):
        assert train() == weight
    assert capsys.readouterr().out.count("standard error cannot be written (OSError: [Errno 28]") == 1
    with replaced(full, "stdout"):
        assert train() == weight
    assert capsys.readouterr().err.count("standard output cannot be written (OSError: [Errno 28]") == 1


def test_a_stream_that_is_exchanged_is_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    """What was switched off is the stream that failed: one put in its place afterwards shows banner and bars again."""
    with replaced(broken, "stdout", "stderr"):
        train()
    train()
    shown = capsys.readouterr()
    assert shown.out.startswith("Helios ")
    assert "Training: 100%|" in shown.err
    assert "epoch 2 begins" in shown.err


def test_training_outlives_its_log_file(tmp_path: Path, weight: float, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk under the log file switches it off, with one warning on the console, which continues."""
    (tmp_path / "helios.log").symlink_to("/dev/full")
    assert train(enable_file_logging=True, log_path=tmp_path, enable_progress_bar=False) == weight
    shown = capsys.readouterr().err
    assert shown.count(f"WARNING the log file '{tmp_path / 'helios.log'}' cannot be written") == 1
    assert "epoch 2 begins" in shown
    assert "Traceback" not in shown


# TensorBoard's own thread raises what it cannot write, and leaves its file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_training_outlives_its_tensorboard_files(
    tmp_path: Path, weight: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk under the event files switches the writer off with one warning; it still is torch's writer."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    class Writing(CountingModel):
        def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
            del state, should_log
            writer = get_tensorboard_writer()
            assert isinstance(writer, tensorboard.SummaryWriter)
            for step in range(1000):
                writer.add_scalar("x", 1.0, step)
            writer.flush()

    model = Writing()
    with plain_program(), limited_file_size(2000):
        assert make_trainer(enable_tensorboard=True, run_path=tmp_path, valid_frequency=1).fit(model, ListData())
    assert model.weight == weight
    assert capsys.readouterr().err.count(f"TensorBoard's files in '{tmp_path / 'counting_0'}' cannot be written") == 1


def test_nothing_is_left_to_write_to(tmp_path: Path, weight: float) -> None:
    """With the log file on a full disk and both streams broken, training ends with the same weights, in silence."""
    (tmp_path / "helios.log").symlink_to("/dev/full")
    with replaced(broken, "stdout", "stderr"):
        assert train(enable_file_logging=True, log_path=tmp_path) == weight


def test_a_log_file_takes_any_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text that no encoding has, such as the name of a file that is not UTF-8, is written with escapes in its place."""

    class Odd(CountingModel):
        def on_training_start(self) -> None:
            get_root_logger().info("file %s", os.fsdecode(b"\xff.txt"))

    with plain_program():
        make_trainer(enable_file_logging=True, log_path=tmp_path).fit(Odd(), ListData())
    assert "file \\udcff.txt\n" in (tmp_path / "helios.log").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_a_banner_goes_through_any_encoding() -> None:
    """On a stream that only has ASCII, the banner shows escapes for all else, and nothing is switched off."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with replaced(lambda: stream, "stdout"):
        for _ in range(2):
            global_print("Größe", 1, sep="-", flush=True)
        assert raw.getvalue() == b"Gr\\xf6\\xdfe-1\n" * 2


def test_a_stream_of_the_callers_own_raises() -> None:
    """`global_print(file=...)` and `local_print(file=...)` raise what that file raises: it is the caller's."""
    for write in (global_print, local_print):
        with contextlib.suppress(OSError), full() as stream, pytest.raises(OSError, match="No space left"):
            write("text", file=stream, flush=True)


def test_bars_of_rich_are_given_up_alike(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, rich would end the process when its pipe breaks: its bars are off, and training continues."""
    pytest.importorskip("rich")
    monkeypatch.setattr("helios.trainer._progress.open_display", lambda: StderrDisplay(RichDisplay))
    monkeypatch.setattr("helios.trainer._session.open_display", lambda: StderrDisplay(RichDisplay))
    for make in (full, broken):
        with replaced(make, "stderr"):
            assert train(print_banner=False) == weight


SCRIPT = """
import sys
from tests.trainer.parts import CountingModel, ListData, make_trainer

options = {"print_banner": True, "enable_progress_bar": True, "enable_file_logging": True, "log_path": sys.argv[1]}
sys.exit(not make_trainer(**options).fit(CountingModel(), ListData()))
"""


def test_a_process_without_streams_ends_well(tmp_path: Path) -> None:
    """A real process whose descriptors 1 and 2 are closed from the start trains to its end, and exits with 0."""
    (tmp_path / "job.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = f"exec {sys.executable} {tmp_path / 'job.py'} {tmp_path} >&- 2>&-"
    done = subprocess.run(["/bin/sh", "-c", command], env=environment, check=False, timeout=120)
    assert done.returncode == 0
    assert "6 iterations trained" in (tmp_path / "helios.log").read_text()
