"""Runs that are started while another one is in progress in the same process."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from helios.core.state import Phase
from helios.errors import RunInProgressError
from helios.testing import TinyDataModule, TinyModel
from helios.trainer._exclusive import exclusive
from tests.trainer.parts import CountingModel, Failing, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helios import TrainingState

LIMIT = 60.0  # Seconds that another thread may take for what takes it milliseconds.


class Waiting(TinyModel):
    """Waits in its second batch until it is told to continue."""

    def __init__(self) -> None:
        super().__init__("waiting")
        self.is_there, self.may_continue = threading.Event(), threading.Event()

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        super().train_step(batch, state)
        if state.global_iteration == 1:
            self.is_there.set()
            assert self.may_continue.wait(LIMIT)


class Nesting(CountingModel):
    """Starts another run in one of its hooks."""

    def __init__(self, start: Callable[[], Any]) -> None:
        super().__init__("nesting")
        self.start = start

    def on_training_end(self) -> None:
        self.start()

    def on_testing_end(self) -> None:
        self.start()


@pytest.mark.parametrize("phase", ["fit", "test"])
def test_a_second_run_in_another_thread_is_refused(phase: str) -> None:
    """A run that would share the generators with one in another thread is refused, and that one is exact."""
    make_trainer().fit(alone := TinyModel(), TinyDataModule())
    model = Waiting()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="first") as pool:
        first = pool.submit(make_trainer().fit, model, TinyDataModule())
        assert model.is_there.wait(LIMIT)
        try:
            with pytest.raises(RunInProgressError, match=f"{phase} of 'tiny' .* fit of 'waiting' .* thread 'first_0'"):
                getattr(make_trainer(), phase)(TinyModel(), TinyDataModule())
        finally:
            model.may_continue.set()
        assert first.result(LIMIT)
    assert [weight.tolist() for weight in model.net.parameters()] == [w.tolist() for w in alone.net.parameters()]
    assert getattr(make_trainer(), phase)(TinyModel(), TinyDataModule())


@pytest.mark.parametrize("outer", ["fit", "test"])
@pytest.mark.parametrize("ranks", [None, 2])
def test_a_run_in_a_hook_of_another_is_refused(outer: str, ranks: int | None) -> None:
    """A run that a hook of another one starts is refused, wherever it would train, and the other one fails with it."""
    inner = make_trainer(num_processes=ranks)
    model = Nesting(lambda: inner.fit(CountingModel("inner"), ListData()))
    with pytest.raises(RunInProgressError, match=rf"fit of 'inner' .* {outer} of 'nesting' .*a hook"):
        getattr(make_trainer(), outer)(model, ListData())


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("where", ["setup", "step", "end"])
def test_however_a_run_ends_the_next_may_start(error: BaseException, where: str) -> None:
    """A run that has failed, or was interrupted, does not stand in the way of the next."""
    trainer = make_trainer()
    with pytest.raises(type(error)):
        trainer.fit(Failing(where, error), ListData())
    assert trainer.fit(CountingModel(), ListData())


def test_a_refused_run_changes_nothing() -> None:
    """A trainer whose second run is refused still knows the first, and tests what that has trained."""
    trainer = make_trainer()
    model = TinyModel()
    assert trainer.fit(model, TinyDataModule())
    with exclusive(make_trainer(), Phase.TRAINING, "other", trains_here=True), pytest.raises(RunInProgressError):
        trainer.fit(CountingModel(), ListData())
    assert trainer.model is model
    assert trainer.test(model, TinyDataModule())


def test_runs_in_other_processes_may_run_side_by_side() -> None:
    """Runs that train in other processes share nothing, so threads may start them, each with its own trainer."""

    def enter(trainer: Any, *, trains_here: bool) -> str:
        try:
            with exclusive(trainer, Phase.TRAINING, "second", trains_here=trains_here):
                return "entered"
        except RunInProgressError as error:
            return str(error)

    trainer = make_trainer()
    with ThreadPoolExecutor(max_workers=1) as pool:
        with exclusive(trainer, Phase.TRAINING, "first", trains_here=False):
            assert pool.submit(enter, make_trainer(), trains_here=False).result(LIMIT) == "entered"
            assert pool.submit(enter, make_trainer(), trains_here=True).result(LIMIT) == "entered"
            assert "give each thread a trainer" in pool.submit(enter, trainer, trains_here=False).result(LIMIT)
        with exclusive(trainer, Phase.TRAINING, "first", trains_here=True):
            assert pool.submit(enter, make_trainer(), trains_here=False).result(LIMIT) == "entered"


def enter_in_child(trainer: Any) -> None:
    with exclusive(trainer, Phase.TRAINING, "child", trains_here=True):
        pass


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_may_train_while_its_parent_does() -> None:
    """A process that was forked while a run was in progress has generators of its own."""
    trainer = make_trainer()
    with exclusive(trainer, Phase.TRAINING, "parent", trains_here=True):
        child = multiprocessing.get_context("fork").Process(target=enter_in_child, args=(trainer,))
        child.start()
        child.join(LIMIT)
        assert child.exitcode == 0
