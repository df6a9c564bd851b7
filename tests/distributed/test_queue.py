"""Results of ranks are returned completely, and to the right process."""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.errors import RankFailedError
from helios.trainer._jobs import _on_cpu
from helios.trainer.launch import spawn as _spawn
from tests.distributed import reports
from tests.distributed.reports import LARGE, MANY, PreparedData, Reporting, Ringing, make
from tests.processes import survivors
from tests.trainer.parts import ListData

if TYPE_CHECKING:
    from pathlib import Path

    from helios import Trainer

pytestmark = pytest.mark.usefixtures("forked_ranks")


def take_all(trainer: Trainer) -> list[Any]:
    return [trainer.queue.get() for _ in range(trainer.queue.qsize())]


def test_items_of_any_size_are_returned_in_order() -> None:
    """100 MB from one rank arrive while the other sends thousands of items; the items of each rank stay in order."""
    trainer = make()
    assert trainer.fit(Reporting(reports.put_large_and_many), ListData())
    items = take_all(trainer)
    of_rank = [[item for rank, item in items if rank == which] for which in range(2)]
    large, done = of_rank[0]
    assert (len(large), done) == (LARGE, "done")
    assert large == large[:1] * LARGE
    assert of_rank[1] == [*range(MANY), "done"]


def test_tensors_outlive_their_ranks() -> None:
    """Tensors that a rank has put are usable after its end, with the values at that moment."""
    trainer = make()
    assert trainer.fit(Reporting(reports.put_tensors), ListData())
    items = sorted(take_all(trainer), key=lambda item: item[0])
    for rank, numbers, ones, weights in items:
        assert torch.equal(numbers, torch.arange(5.0) + rank)
        assert torch.equal(ones.add_(1), torch.full((2,), 2, dtype=torch.bfloat16))
        assert weights["weight"].abs().item() > 0
    assert len(items) == 2


def test_an_empty_queue_says_so_at_once() -> None:
    """Without an item, `get` raises an error instead of waiting forever."""
    trainer = make()
    assert trainer.fit(Reporting(reports.put_nothing), ListData())
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        trainer.queue.get()
    assert time.monotonic() - began < 1


def test_items_of_a_failed_run_are_readable() -> None:
    """Items of a failed run stay readable; the next run starts without them."""
    trainer, model = make(), Reporting(reports.put_and_raise)
    with pytest.raises(RankFailedError, match="KeyError: 'after all'"):
        trainer.fit(model, ListData())
    assert 1 in take_all(trainer)
    with pytest.raises(RankFailedError, match="KeyError: 'after all'"):
        trainer.fit(model, ListData())
    model.report = reports.put_metrics
    assert trainer.fit(model, ListData())
    assert sorted(item[:2] for item in take_all(trainer)) == [("reporting", 0), ("reporting", 1)]


def test_two_runs_at_once_are_separate() -> None:
    """Two threads train at the same time, and each gets the results of its own ranks, and no error."""
    trainers = [make(random_seed=seed) for seed in (1, 2)]
    models = [Reporting(reports.put_metrics, f"model {number}") for number in range(2)]
    outcomes: list[Any] = [None, None]

    def work(number: int) -> None:
        outcomes[number] = trainers[number].fit(models[number], ListData())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True, True]
    items = [sorted(take_all(trainer)) for trainer in trainers]
    assert [[item[:2] for item in each] for each in items] == [
        [(f"model {number}", rank) for rank in range(2)] for number in range(2)
    ]
    assert len({item[2] for each in items for item in each}) == 4, "every rank of every run draws for itself"


def test_consecutive_runs_are_separate() -> None:
    """A trainer can be used again with the same results; items that were taken out do not return."""
    trainer, model = make(), Reporting(reports.put_metrics)
    runs = []
    for _ in range(2):
        assert trainer.fit(model, ListData())
        runs.append(sorted(take_all(trainer)))
    assert runs[0] == runs[1]
    assert len(runs[0]) == 2


def test_metrics_of_rank_0_are_returned() -> None:
    """`model.metrics` in the calling process is replaced by that of rank 0."""
    model = Reporting(reports.put_metrics)
    metrics = model.metrics
    metrics["stale"] = 1
    assert make().fit(model, ListData())
    assert model.metrics == {"stale": 1, "rank": 0}
    assert model.metrics is metrics


def test_a_model_is_tested_as_it_was_trained() -> None:
    """Without checkpoints, `test` after `fit` uses the weights of rank 0."""
    trainer, model = make(), Reporting(reports.put_metrics)
    assert trainer.fit(model, ListData())
    weights = {rank: weight for _, rank, weight in take_all(trainer)}
    assert weights[0] != weights[1]
    assert trainer.test(model, ListData())
    assert model.metrics["tested"] == weights[0]
    other = Reporting(reports.put_metrics)
    assert trainer.test(other, ListData())
    assert other.metrics["tested"] not in weights.values(), "a model that was not trained is tested as it is"


def test_states_keep_the_versions_of_their_networks() -> None:
    """States that are moved to the CPU keep the version numbers of their modules."""
    state = torch.nn.BatchNorm1d(2).state_dict()
    moved = _on_cpu({"net": state})["net"]
    assert list(moved) == list(state)
    assert moved._metadata == state._metadata  # type: ignore[attr-defined]  # torch sets it, unannotated


def test_a_model_with_a_state_of_its_own_is_tested_from_its_checkpoint(tmp_path: Path) -> None:
    """If other processes have trained, `state_dict` of the model in the calling process is not called."""
    trainer = make(chkpt_root=tmp_path, chkpt_frequency=1)
    model = reports.OwnState()
    assert trainer.fit(model, ListData())
    assert trainer.test(model, ListData())
    assert model.metrics["tested"] == 7.0


def test_data_is_prepared_once(tmp_path: Path) -> None:
    """`prepare_data` runs in the calling process, once for each call of `fit`, before any rank sets up."""
    trainer = make()
    for count in (1, 2):
        assert trainer.fit(Reporting(reports.put_nothing), PreparedData(tmp_path))
        assert len(list(tmp_path.glob(f"prepared-*-{os.getpid()}"))) == count
        assert len(list(tmp_path.iterdir())) == count


def test_a_rank_that_is_killed_in_the_middle_of_a_message_is_named() -> None:
    """`fit` does not wait for the rest of the message, even if a forked process of the rank still runs."""
    began = time.monotonic()
    with pytest.raises(RankFailedError, match="rank 1 .*: it was ended by SIGKILL$"):
        make().fit(Reporting(reports.break_off), ListData())
    assert time.monotonic() - began < 20


def test_a_rank_that_is_killed_while_it_asks_is_named() -> None:
    """The answer that the killed rank cannot receive causes no further error."""
    with pytest.raises(RankFailedError, match="rank 1 .*: it was ended by SIGKILL$"):
        make().fit(Ringing(), ListData())


def test_a_rank_that_does_not_come_to_its_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit` waits for a rank with a running thread for a while, and not forever."""
    monkeypatch.setattr(_spawn, "_SHUTDOWN", 0.5)
    model, began = Reporting(reports.leave_a_thread), time.monotonic()
    assert make().fit(model, ListData())
    assert time.monotonic() - began < 20
    assert model.metrics == {"rank": 0}
    assert survivors([]) == []
