"""A step that hangs when the process is told to leave: a second signal ends it, with a word, and nothing is harmed."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helios.testing import TinyDataModule, TinyModel, are_equal
from helios.trainer import _escape, _signals
from helios.trainer._escape import Escape
from helios.trainer._signals import SignalWatch
from tests.distributed.parts import Trouble, fit_into, once_there_is, wait_for
from tests.processes import survivors
from tests.trainer.parts import make_trainer

if TYPE_CHECKING:
    from types import FrameType

    import torch

    from helios import TrainingState

OPTIONS: dict[str, Any] = {"train_unit": "iteration", "total_steps": 8, "chkpt_frequency": 2}


def sleep() -> None:
    """Hang where Python's handlers of signals run."""
    threading.Event().wait()


def lock() -> None:
    """Hang in a call of a library, which no signal interrupts."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


HANGS = {"python": sleep, "library": lock, "alone": sleep}


class Hanging(TinyModel):
    """Hangs in a step, or not at all."""

    def __init__(self, folder: Path | None = None, how: str = "") -> None:
        super().__init__()
        self.folder, self.how = folder, how

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        super().train_step(batch, state)
        if self.folder is not None and state.global_iteration == 5:
            (self.folder / "here").touch()
            HANGS[self.how]()


def train(root: Path, how: str) -> None:
    """Train in a child process, which leaves a file when Python handles a signal."""
    _signals._DUPLICATE = 0.0  # type: ignore[misc]  # Signals of a test need not be seconds apart.
    _escape.GRACE = {"python": 60.0, "library": 0.5, "alone": 0.1}[how]  # type: ignore[misc]  # As above.
    handle = SignalWatch._handle

    def tell(self: SignalWatch, number: int, frame: FrameType | None) -> None:
        (root / "handled").touch()
        handle(self, number, frame)

    SignalWatch._handle = tell  # type: ignore[method-assign]  # In this child alone.
    options: dict[str, Any] = {"enable_file_logging": True, "log_path": root, **OPTIONS}
    make_trainer(root / "checkpoints", **options).fit(Hanging(root, how), TinyDataModule())


def end_twice(root: Path, how: str, number: int) -> tuple[int | None, str]:
    """Tell a child whose step hangs to leave, twice; return its exit code and its log."""
    process = multiprocessing.get_context("forkserver").Process(target=train, args=(root, how))
    process.start()
    assert process.pid is not None
    try:
        wait_for(root / "here")
        os.kill(process.pid, number)
        if how == "python":
            wait_for(root / "handled")
            os.kill(process.pid, number)
            process.join(150)
        for _ in range(100):  # Where nothing tells that one has arrived, two may be one.
            process.join(0.5)
            if process.exitcode is not None:
                break
            os.kill(process.pid, number)
        assert process.exitcode is not None, "it still hangs"
    finally:
        process.kill()
    return process.exitcode, (root / "helios.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["python", "library"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_step_that_hangs(tmp_path: Path, how: str, number: signal.Signals) -> None:
    """The process ends, the log says why, and the run is resumed from its newest checkpoint to the same bits."""
    code, log = end_twice(tmp_path, how, number)
    if how == "library":
        assert code == 128 + number
        assert f"{number.name} came again, and the main thread has not left for 0.5 s: the process is ended" in log
    elif number == signal.SIGTERM:
        assert code == 128 + number
        assert "SIGTERM came again before training could stop: it is ended without a checkpoint" in log
    else:
        assert code == 1  # As a KeyboardInterrupt ends a process of multiprocessing's.
    resumed, whole = Hanging(), Hanging()
    assert make_trainer(tmp_path / "checkpoints", **OPTIONS).fit(resumed, TinyDataModule())
    assert make_trainer(tmp_path / "whole", **OPTIONS).fit(whole, TinyDataModule())
    assert are_equal(resumed.net.state_dict(), whole.net.state_dict())


def test_one_signal_is_said_to_have_come(tmp_path: Path) -> None:
    """During a step that hangs, a warning says that a signal has arrived, and what a second one does."""
    process = multiprocessing.get_context("forkserver").Process(target=train, args=(tmp_path, "alone"))
    process.start()
    assert process.pid is not None
    try:
        wait_for(tmp_path / "here")
        os.kill(process.pid, signal.SIGTERM)
        told = "SIGTERM came 0.1 s ago, and training could not leave yet: a second SIGTERM, or Ctrl-C, ends it at once"
        while told not in (tmp_path / "helios.log").read_text(encoding="utf-8"):
            time.sleep(0.05)
        assert process.is_alive()
    finally:
        process.kill()


@pytest.mark.usefixtures("forked_ranks")
def test_ranks_that_hang_end_with_who_has_started_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SIGTERM to the process that called `fit` ends ranks that cannot stop, and then that process."""
    monkeypatch.setattr(_signals, "_DUPLICATE", 0.0)
    trouble = Trouble(tmp_path, "hook", 1, "wait")
    was_asked = SignalWatch.was_asked

    def insist(self: SignalWatch) -> bool:
        if was_asked(self):  # The first one has come.
            os.kill(os.getpid(), signal.SIGTERM)
        return was_asked(self)

    monkeypatch.setattr(SignalWatch, "was_asked", insist)
    with (
        pytest.raises(SystemExit) as caught,
        once_there_is(tmp_path / "waiting", lambda: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        fit_into(trouble, workers=0, chkpt_root=tmp_path / "checkpoints")
    assert caught.value.code == 128 + signal.SIGTERM
    assert len(trouble.processes()) >= 2
    assert survivors(trouble.processes()) == []


def test_the_same_signal_at_once_is_one(tmp_path: Path) -> None:
    """A SIGTERM that comes twice at once, as when a scheduler and a launcher send it, still leaves a checkpoint."""

    class Twice(TinyModel):
        def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
            super().train_step(batch, state)
            if state.global_iteration == 4:
                for _ in range(3):
                    signal.raise_signal(signal.SIGTERM)

    assert not make_trainer(tmp_path, **OPTIONS).fit(Twice(), TinyDataModule())
    assert [path.name for path in (tmp_path / "tiny").glob("*iter_4*.pth")]


def test_the_way_out_is_closed_behind() -> None:
    """After a run nothing of it is left: neither a thread, nor files, nor the place where signals are written."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    seen: list[int] = []
    gc.collect()  # What other tests have left open is not to be closed while files are counted.
    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    try:
        escape = Escape(seen.append)
        handler = signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.raise_signal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, handler)
        assert os.read(reader, 1) == bytes([signal.SIGUSR1]), "who had the signals before is told, too"
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        assert os.waitpid(child, 0)[1] == 0, "a forked process writes nothing"
        escape.close()
        assert signal.set_wakeup_fd(writer) == writer
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
    assert [number for number in seen if number != signal.SIGCHLD] == [signal.SIGUSR1]
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == (files - 2, threads)
