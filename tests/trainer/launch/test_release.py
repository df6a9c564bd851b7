"""What a launcher needs for a run is released when the run ends, without the garbage collector."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from helios.core.distributed import DistributedInfo
from helios.core.logging import get_root_logger
from helios.errors import ConfigurationError, RankFailedError
from helios.ranks import limits
from helios.ranks.announcements import announce_failure
from helios.ranks.failures import Failure
from helios.ranks.monitor import RankMonitor
from helios.ranks.object_host import ObjectHost
from helios.ranks.stores import HostedStore, host_store
from helios.trainer._task import Task
from helios.trainer.launch import torchrun
from helios.trainer.launch.spawn import _RankPool
from tests.trainer.parts import CountingModel, Failing, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = (_RankPool, ObjectHost, HostedStore, RankMonitor, Task)


@pytest.fixture(autouse=True)
def without_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Switch the garbage collector off during a test."""
    monkeypatch.setattr(get_root_logger(), "disabled", True)  # pytest keeps the record of an error, and its frames.
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def count() -> list[int]:
    """Return how many objects of each kind are alive."""
    alive = gc.get_objects()
    return [sum(type(thing) is kind for thing in alive) for kind in KINDS]


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.parametrize("where", ["", "step"])
def test_a_spawned_run_is_released(where: str) -> None:
    """The rank pool and all that it holds are gone after `fit`, also if a rank has failed."""
    before = count()
    model = Failing(where, ValueError("boom")) if where else CountingModel()
    with pytest.raises(RankFailedError) if where else contextlib.nullcontext() as caught:
        make_trainer(use_cpu=None, num_processes=2).fit(model, ListData())
    del caught
    assert count() == before


def test_a_run_under_torchrun_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that raises the failure of another rank keeps neither the task nor the monitor."""
    before = count()
    store, _ = host_store()
    announce_failure(store, Failure.of(ConfigurationError("boom"), 1))
    monkeypatch.setattr(limits, "CHECK_PERIOD", 0.01)
    monkeypatch.setattr(torchrun, "get_dist_info", lambda: DistributedInfo(0, 2, 0, 2))
    monkeypatch.setattr(torchrun, "next_rendezvous_store", lambda: store)
    monkeypatch.setattr(torchrun, "process_group", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torchrun.Torchrun, "_run", _raise_echo)
    trainer = make_trainer()
    trainer._launcher = torchrun.Torchrun()
    with pytest.raises(RankFailedError, match="rank 1 .* failed first: .*boom") as caught:
        trainer.fit(CountingModel(), ListData())
    assert caught.value.__context__ is None, "the error of this rank only says that another rank is gone"
    del caught
    assert count() == before


def _raise_echo(*_: Any) -> None:
    raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")


class _Run:
    """Stands for what trains, and holds its monitor."""

    def __init__(self, monitor: RankMonitor) -> None:
        self.monitor = monitor
        self.position = [7]


def test_a_monitor_is_released() -> None:
    """A monitor and the run that holds it are gone with their last user; its threads keep neither."""
    store, _ = host_store()
    with RankMonitor(store, DistributedInfo(0, 1, 0, 1)) as monitor:
        run = _Run(monitor)
        position = run.position
        monitor.watch_stop_requests(lambda: False, lambda: position[0])
    watched = weakref.ref(run), weakref.ref(monitor)
    del run, monitor
    assert [reference() for reference in watched] == [None, None]
