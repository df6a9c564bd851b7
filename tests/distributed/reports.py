"""Models that report what they have seen in each way in which ranks return results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helios.ranks.object_host import call_host, register_proxy
from helios.trainer.launch import rank as _rank
from tests.distributed.parts import PATIENCE
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios import Trainer

LARGE = 100 << 20  # bytes
MANY = 2000


class Reporting(CountingModel):
    """Does something when training ends, on every rank."""

    def __init__(self, report: Callable[[Reporting], None], name: str = "reporting") -> None:
        super().__init__(name)
        self.report = report

    def on_training_end(self) -> None:
        self.report(self)

    def on_testing_end(self) -> None:
        self.metrics["tested"] = self.weight

    @property
    def put(self) -> Callable[[Any], None]:
        put: Callable[[Any], None] = self.trainer.queue.put
        return put


class PreparedData(ListData):
    """Leaves a file of each process that prepares it, or finds it unprepared."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def prepare_data(self) -> None:
        time.sleep(0.3)  # Time enough for a rank that does not wait for it.
        (self.folder / f"prepared-{len(list(self.folder.iterdir()))}-{os.getpid()}").touch()

    def setup(self) -> None:
        if not list(self.folder.glob("prepared-*")):
            (self.folder / f"unprepared-{os.getpid()}").touch()


class Bell:
    """Stays in the calling process. A rank that calls it is killed before it gets the answer."""


def _answer(bell: Bell, name: str, arguments: tuple[int], options: dict[str, Any]) -> str:
    del bell, options
    os.kill(arguments[0], signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    stat = Path(f"/proc/{arguments[0]}/stat")
    while stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return name


class Rope:
    """The stand-in of a bell."""

    def __init__(self, number: int) -> None:
        self.number = number

    def pull(self) -> None:
        call_host(self.number, "ring", os.getpid())


register_proxy(Bell, lambda _, number: (Rope, (number,)), _answer)


class Ringing(Reporting):
    """Rings a bell of the calling process on rank 1."""

    def __init__(self) -> None:
        super().__init__(ring)
        self.bell: Any = Bell()


def ring(model: Reporting) -> None:
    """Be killed while a question is answered."""
    assert isinstance(model, Ringing)
    if model.rank == 1:
        model.bell.pull()


class Calling(Reporting):
    """Sends the process that made it a signal when training is at its end."""

    def __init__(self) -> None:
        super().__init__(call)
        self.caller = os.getpid()


def call(model: Reporting) -> None:
    """Send a SIGTERM home from rank 0."""
    assert isinstance(model, Calling)
    if model.rank == 0:
        os.kill(model.caller, signal.SIGTERM)


def put_large_and_many(model: Reporting) -> None:
    """Put in something large on rank 0 while rank 1 puts in many small things, and something on both when done."""
    if model.rank == 0:
        model.put((0, os.urandom(1) * LARGE))
    else:
        for number in range(MANY):
            model.put((1, number))
    model.put((model.rank, "done"))


def put_tensors(model: Reporting) -> None:
    """Put in tensors of several kinds, and weights."""
    weights = model.net.state_dict()
    model.put((model.rank, torch.arange(5.0) + model.rank, torch.ones(2, dtype=torch.bfloat16), weights))
    for weight in weights.values():
        weight.zero_()  # What happens to them now is of no concern to anybody.


def put_metrics(model: Reporting) -> None:
    """Have other metrics on each rank, and put in what each has for a weight."""
    model.metrics["rank"] = model.rank
    model.put((model.save_name, model.rank, model.weight))


def put_nothing(model: Reporting) -> None:
    """Report nothing."""


def put_and_raise(model: Reporting) -> None:
    """Put something in before everything fails."""
    model.put(model.rank)
    if model.rank == 1:
        raise KeyError("after all")


def break_off(model: Reporting) -> None:
    """On rank 1, be killed in the middle of a message, with a process of one's own that lives on."""
    if model.rank == 1:
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(PATIENCE,)).start()
        file = _rank._channels[-1]._connection.fileno()
        os.write(file, (1000).to_bytes(4, "big") + b"only the beginning")
        os.kill(os.getpid(), signal.SIGKILL)


def leave_a_thread(model: Reporting) -> None:
    """Leave a thread behind that keeps the process from its end for a minute."""
    model.metrics["rank"] = model.rank
    threading.Thread(target=time.sleep, args=(PATIENCE,)).start()


class OwnState(CountingModel):
    """Says by itself what its state is, which is made in `setup`, and changes in training."""

    def __init__(self) -> None:
        super().__init__("own")

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.own = torch.tensor(1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"own": self.own}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        del fast_init
        self.own = state_dict["own"]

    def on_training_epoch_end(self, current_epoch: int) -> None:
        super().on_training_epoch_end(current_epoch)
        self.own.fill_(7.0)

    def on_testing_end(self) -> None:
        self.metrics["tested"] = float(self.own)


def make(ranks: int = 2, **options: Any) -> Trainer:
    """Return a quiet trainer for so many ranks."""
    return make_trainer(num_processes=ranks, **options)
