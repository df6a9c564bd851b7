from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from helios.testing import TinyDataModule, TinyModel, are_equal
from helios.trainer import find_last_checkpoint
from helios.trainer._signals import SignalWatch
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    import torch

    from helios import TrainingState

OPTIONS = {"total_steps": 6, "accumulation_steps": 2, "valid_frequency": 2}


class Slow(TinyModel):
    """Tells how far it is, and waits for an answer, so that the signal comes where the test wants it."""

    def __init__(self, pipe: Connection | None = None, at: int = -1, where: str = "step") -> None:
        super().__init__("slow")
        self._pipe, self._at, self._where = pipe, at, where

    def _pause(self) -> None:
        if self._pipe is not None:
            self._pipe.send("here")
            self._pipe.recv()
            time.sleep(0.01)  # The signal has been sent; now it is handled.

    def on_training_start(self) -> None:
        if self._where == "start":
            self._pause()

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        super().train_step(batch, state)
        if self._where == "step" and state.global_iteration == self._at:
            self._pause()

    def on_validation_start(self, validation_cycle: int) -> None:
        if self._where == "validation" and validation_cycle == self._at:
            self._pause()


def train(root: Path, at: int, where: str, pipe: Connection) -> None:
    """Train in a child process and tell what `fit` returned."""
    model = Slow(pipe, at, where)
    pipe.send(make_trainer(root, **OPTIONS).fit(model, TinyDataModule()))


def interrupt(root: Path, number: int, at: int, where: str) -> Any:
    """Send a child process a real signal at a point of its training, and return what its `fit` returned."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=train, args=(root, at, where, theirs))
    process.start()
    assert ours.recv() == "here"
    assert process.pid is not None
    os.kill(process.pid, number)
    ours.send("continue")
    finished = ours.recv()
    process.join(60)
    assert process.exitcode == 0
    return finished


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the state of a run that nobody interrupted."""
    model = Slow()
    assert make_trainer(tmp_path_factory.mktemp("whole"), **OPTIONS).fit(model, TinyDataModule())
    return model.state_dict()


@pytest.mark.parametrize(
    ("number", "at", "where"),
    [
        (signal.SIGTERM, 1, "step"),
        (signal.SIGINT, 8, "step"),
        (signal.SIGUSR1, 6, "step"),
        (signal.SIGHUP, 5, "step"),
        (signal.SIGTERM, 1, "validation"),
        (signal.SIGTERM, 0, "start"),
    ],
)
def test_a_signal_writes_a_checkpoint_that_the_next_fit_resumes(
    tmp_path: Path, whole: dict[str, Any], number: int, at: int, where: str
) -> None:
    """A real signal, also inside an accumulation: `fit` is false, and the next one ends alike."""
    assert interrupt(tmp_path, number, at, where) is False
    assert find_last_checkpoint(tmp_path / "slow") is not None
    model = Slow()
    assert make_trainer(tmp_path, **OPTIONS).fit(model, TinyDataModule())
    assert are_equal(model.state_dict(), whole)


class SignallingItself(CountingModel):
    """Sends its own process a signal."""

    def __init__(self, at: int, number: int = signal.SIGTERM, times: int = 1) -> None:
        super().__init__()
        self.at, self.number, self.times = at, number, times

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        super().train_step(batch, state)
        if state.global_iteration == self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)


def test_the_current_batch_is_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a signal, no further batch is trained, the log says what to do, and the handlers are restored."""
    before = signal.getsignal(signal.SIGTERM)
    model = SignallingItself(2)
    assert not make_trainer(tmp_path).fit(model, ListData())
    assert model.seen == [100.0, 101.0]
    assert "SIGTERM: training stops; a checkpoint is written, call fit again to continue" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_on_the_last_batch_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that is complete when the signal comes is complete: `fit` is true and the log does not mislead."""
    model = SignallingItself(6)
    assert make_trainer(tmp_path, train_unit="iteration", total_steps=6).fit(model, ListData())
    assert len(model.seen) == 6
    assert "SIGTERM came when training was at its end" in caplog.text
    assert "call fit again" not in caplog.text


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    """Who presses Ctrl-C twice does not want to wait: KeyboardInterrupt is raised where training is."""
    model = SignallingItself(2, signal.SIGINT, 2)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path).fit(model, ListData())
    assert len(model.seen) == 2


def test_nohup_stays_in_force(tmp_path: Path) -> None:
    """A run that was started with `nohup`, which ignores SIGHUP, is not stopped by it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert make_trainer(tmp_path).fit(SignallingItself(2, signal.SIGHUP), ListData())
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_checkpoints_ctrl_c_is_what_it_always_was() -> None:
    """Where nothing can be saved, signals are left alone."""
    with pytest.raises(KeyboardInterrupt):
        make_trainer().fit(SignallingItself(2, signal.SIGINT), ListData())


def test_a_handler_that_python_did_not_set_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal whose handler was set outside of Python is left at the default, in place of an error."""
    original = signal.signal
    restored: dict[int, Any] = {}

    def install(number: int, handler: Any) -> Any:
        assert handler is not None
        restored[number] = handler
        before = original(number, handler)
        return None if number == signal.SIGUSR1 else before

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", install)
        with SignalWatch(enabled=True):
            pass
    assert restored[signal.SIGUSR1] == signal.SIG_DFL
