"""How often ranks talk to each other, beyond the gradients that DDP exchanges."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
import threading
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from benchmarks._pair import RANKS
from helios import DataModule, Model, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from helios import TrainingState

STEPS: Final = 6
_PERIOD: Final = 2  # What is due now and then is due after every second step.
_BATCH: Final = 2

# What torch.distributed offers, and what each of its calls comes down to: one message around the ranks or several. The
# gradients go from C++ to C++, and are seen in neither.
_CALLS: Final = (
    *("all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object", "all_gather_single"),
    *("all_reduce", "all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier", "batch_isend_irecv"),
    *("broadcast", "broadcast_object_list", "gather", "gather_object", "irecv", "isend", "monitored_barrier"),
    *("new_group", "recv", "recv_object_list", "reduce", "reduce_scatter", "reduce_scatter_single"),
    *("reduce_scatter_tensor", "scatter", "scatter_object_list", "send", "send_object_list"),
)
_MESSAGES: Final = (
    *("_allgather_base", "_reduce_scatter_base", "all_gather_single", "all_to_all_single", "allgather"),
    *("allgather_coalesced", "allreduce", "allreduce_coalesced", "alltoall", "alltoall_base", "barrier", "broadcast"),
    *("gather", "monitored_barrier", "recv", "recv_anysource", "reduce", "reduce_scatter", "reduce_scatter_single"),
    *("scatter", "send"),
)
_STORE: Final = (
    *("add", "append", "check", "compare_set", "delete_key", "get", "list_keys", "multi_get", "multi_set"),
    *("num_keys", "queue_len", "queue_pop", "queue_push", "set", "wait"),
)


@dataclasses.dataclass(frozen=True)
class Tally:
    """How often a rank's main thread has talked to the others.

    Attributes:
        calls: of torch.distributed's functions, by name.
        messages: that went around the ranks for them.
        store: requests to a key-value store.
    """

    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    messages: int = 0
    store: int = 0

    def since(self, before: Tally) -> Tally:
        """Return what has come on top of an earlier tally."""
        added = {name: count - before.calls.get(name, 0) for name, count in self.calls.items()}
        calls = {name: count for name, count in added.items() if count}
        return Tally(calls, self.messages - before.messages, self.store - before.store)


class _Counter:
    """Counts while the context lasts, and marks where steps begin."""

    def __init__(self) -> None:
        self.marks: list[Tally] = []
        self._tally = Tally()
        self._patches = [
            *(self._patch(dist, name, self._count_call) for name in _CALLS),
            *(self._patch(dist.ProcessGroup, name, self._count_message) for name in _MESSAGES),
            *(self._patch(dist.Store, name, self._count_store) for name in _STORE),  # type: ignore[attr-defined]  # torch exports it, its annotations do not
        ]

    def _patch(self, owner: Any, name: str, count: Callable[[str], None]) -> Any:
        original = getattr(owner, name)

        @functools.wraps(original)
        def counting(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                count(name)
            return original(*arguments, **options)

        return mock.patch.object(owner, name, counting)

    def _count_call(self, name: str) -> None:
        calls = self._tally.calls
        self._tally = dataclasses.replace(self._tally, calls=calls | {name: calls.get(name, 0) + 1})

    def _count_message(self, _: str) -> None:
        self._tally = dataclasses.replace(self._tally, messages=self._tally.messages + 1)

    def _count_store(self, _: str) -> None:
        self._tally = dataclasses.replace(self._tally, store=self._tally.store + 1)

    def mark(self) -> None:
        """Mark a place."""
        self.marks.append(self._tally)

    def between_marks(self) -> list[Tally]:
        """Return what has come between each mark and the next."""
        return [after.since(before) for before, after in itertools.pairwise(self.marks)]

    def __enter__(self) -> Self:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()


class _Counted(Model):
    """A network that marks where each of its steps begins."""

    def __init__(self, mark: Callable[[], None]) -> None:
        super().__init__("counted")
        self._mark = mark

    def setup(self, fast_init: bool = False) -> None:
        """Make the network and its optimizer."""
        del fast_init
        self.network = self.wrap(nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01)

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Descend."""
        self._mark()
        loss = self.network(batch[0]).square().mean()
        torch.autograd.backward(loss)
        if self.is_optimizer_step(state):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._loss_items["loss"] = loss

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Be there: only a model that has this hook has its losses averaged when they are to be logged."""

    def valid_step(self, batch: Any, step: int) -> None:
        """Look."""
        del step
        self.network(batch[0])


class _Stopping(_Counted):
    """Is asked after every batch whether it ends training."""

    def should_training_stop(self) -> bool:
        """Continue."""
        return False


class _Stream(IterableDataset[tuple[torch.Tensor]]):
    """Samples whose number nobody knows before."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        yield from ((torch.zeros(4),) for _ in range(_BATCH * STEPS))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it is never resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing over."""


class _Data(DataModule):
    """Some samples."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self._dataset = dataset

    def setup(self) -> None:
        """Join the samples with their parameters."""
        few = TensorDataset(torch.zeros(_BATCH * RANKS, 4))
        self._train_dataset = self._create_dataset(self._dataset, {"batch_size": _BATCH})
        self._valid_dataset = self._create_dataset(few, {"batch_size": _BATCH})


@dataclasses.dataclass(frozen=True)
class Case:
    """Something that may be due.

    Attributes:
        name: what.
        options: the trainer's arguments that make it due after every second step.
        model: the class of the model.
        epoch: batches in an epoch; `None` for an iterable dataset.
        is_always_due: whether it is due after every step instead.
        is_silent: whether nothing is to be said.
    """

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: type[_Counted] = _Counted
    epoch: int | None = STEPS
    is_always_due: bool = False
    is_silent: bool = False


CASES: Final = (
    Case("a step", is_always_due=True, is_silent=True),
    Case("a step that accumulates", {"accumulation_steps": 3}, is_always_due=True, is_silent=True),
    Case("a step beside a checkpoint to come", {"chkpt_frequency": 100 * STEPS}, is_always_due=True, is_silent=True),
    Case("a logged step", {"print_frequency": _PERIOD}),
    Case("a validation", {"valid_frequency": _PERIOD}),
    Case("a validation, early stopping on", {"valid_frequency": _PERIOD, "early_stop_cycles": STEPS}),
    Case("a checkpoint", {"chkpt_frequency": _PERIOD}),
    Case("the end of an epoch", epoch=_PERIOD),
    Case("a step of a model that overrides should_training_stop", model=_Stopping, is_always_due=True),
    Case("a step over an iterable dataset", epoch=None, is_always_due=True),
)


def count_cases() -> dict[str, Tally]:
    """Return, in a process of a pair, what every case costs where it is due.

    Raises:
        AssertionError: if anything is said where nothing is due, or not the same is said wherever it is.
    """
    return {case.name: _count(case) for case in CASES}


def _count(case: Case) -> Tally:
    tallies = _run(case)[1:-1]  # Between two steps: not what starts the run, nor what ends it.
    due = [tally for step, tally in enumerate(tallies, 1) if case.is_always_due or step % _PERIOD == 0]
    assert due == due[:1] * len(due), f"{case.name} does not always cost the same: {due}"
    silent = [tally for tally in tallies if tally not in due]
    assert all(tally == Tally() for tally in silent), f"{case.name} costs where it is not due: {silent}"
    return due[0]


def _run(case: Case) -> list[Tally]:
    samples = None if case.epoch is None else TensorDataset(torch.zeros(_BATCH * RANKS * case.epoch, 4))
    # Rank 0 writes, and the others need not have the same disk.
    with tempfile.TemporaryDirectory() as folder, _Counter() as counter:
        counter.mark()
        trainer = Trainer(
            train_unit="iteration",
            total_steps=STEPS // case.options.get("accumulation_steps", 1),
            use_cpu=True,
            print_banner=False,
            chkpt_root=folder if "chkpt_frequency" in case.options else None,
            **case.options,
        )
        trainer.fit(case.model(counter.mark), _Data(_Stream() if samples is None else samples))
        counter.mark()
    assert len(counter.marks) == STEPS + 2
    return counter.between_marks()
