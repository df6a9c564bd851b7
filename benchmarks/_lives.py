"""Runs in two processes that `fit` starts: how long they take to begin, to fail, and to leave when asked to."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from benchmarks._idle import Ready
from benchmarks._pair import RANKS
from helios import Model, Trainer
from helios.errors import RankFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helios import TrainingState

PACE: Final = 0.005  # Seconds that a step takes at least, where a signal comes.
_FAILS_AT: Final = 20


class _Wrapped(Model):
    """A network that the ranks train together."""

    def setup(self, fast_init: bool = False) -> None:
        """Make the network."""
        del fast_init
        self.network = self.wrap(nn.Linear(4, 1))

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Exchange gradients."""
        del batch, state
        torch.autograd.backward(self.network(torch.ones(4)).sum())


class _Failing(_Wrapped):
    """Rank 1 fails in the middle of training, while rank 0 waits for its gradients."""

    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__("failing")
        self._fail = fail

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Exchange gradients, or fail, and say when."""
        if self.rank == 1 and state.global_iteration == _FAILS_AT:
            time.sleep(0.2)  # So that rank 0 is in its backward pass by then.
            self.trainer.queue.put(time.monotonic())
            self._fail()
        super().train_step(batch, state)


class _Signalled(_Wrapped):
    """Rank 1 sends a signal in the middle of training, and tells of its steps from then on."""

    def __init__(self, step: int, *, to_rank: bool) -> None:
        super().__init__("signalled")
        self._sends_at = step
        self._to_rank = to_rank

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Train, at a pace that tells batches and seconds apart."""
        parent = multiprocessing.parent_process()
        assert parent is not None
        assert parent.pid is not None
        if self.rank == 1 and state.global_iteration == self._sends_at:
            self._tell(state)
            os.kill(os.getpid() if self._to_rank else parent.pid, signal.SIGTERM)
        time.sleep(PACE)
        super().train_step(batch, state)
        if self.rank == 1 and state.global_iteration >= self._sends_at:
            self._tell(state)

    def _tell(self, state: TrainingState) -> None:
        # All processes of a machine have the same monotonic clock.
        self.trainer.queue.put((state.global_iteration, time.monotonic()))


def time_start(method: str | None) -> float:
    """Return the seconds of a call of `fit` that has one step to do.

    Args:
        method: how Python starts two processes for it; `None` for a run in this process.
    """
    device: dict[str, Any] = {"use_cpu": True} if method is None else {"num_processes": RANKS}
    trainer = Trainer(total_steps=1, print_banner=False, **device)
    with started_by(method):
        begin = time.perf_counter()
        trainer.fit(_Wrapped("starting"), Ready([0]))
        return time.perf_counter() - begin


@contextlib.contextmanager
def started_by(method: str | None) -> Iterator[None]:
    """Have `fit` start its processes in one of Python's ways while the context lasts."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def raise_error() -> None:
    """Fail with an error."""
    raise ValueError("rank 1 has failed, as it should")


def kill_process() -> None:
    """Fail without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def time_failure(fail: Callable[[], None]) -> float:
    """Return the seconds from rank 1's failure to the error that `fit` raises.

    Args:
        fail: what rank 1 does.
    """
    trainer = Trainer(total_steps=1, num_processes=RANKS, print_banner=False)
    try:
        trainer.fit(_Failing(fail), Ready([0] * (_FAILS_AT + 2)))
    except RankFailedError as error:
        raised = time.monotonic()
        if error.rank != 1:
            raise
    else:
        raise AssertionError("rank 1 has not failed")
    failed: float = trainer.queue.get()
    return raised - failed


def time_leaving(step: int, *, to_rank: bool) -> tuple[int, float]:
    """Return the batches, including the current one, and the seconds from SIGTERM to the end of the last step.

    Args:
        step: when the signal is sent.
        to_rank: whether the signal comes to rank 1, and not to the process that has called `fit`.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(total_steps=1, num_processes=RANKS, chkpt_root=folder, print_banner=False)
        assert not trainer.fit(_Signalled(step, to_rank=to_rank), Ready([0] * 100_000)), "the signal has not come"
    sent, *_, last = [trainer.queue.get() for _ in range(len(trainer.queue))]
    return last[0] - sent[0] + 1, last[1] - sent[1]
