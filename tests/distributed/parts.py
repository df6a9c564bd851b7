"""A model, data and a plug-in that get into trouble where they are told to, and who is left of their processes.

The fork server of the tests imports this module, so that ranks that are forked from it start in tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import torch
import torch._dynamo  # Optimizers import it, in a second or two, when they step first: once here, for all processes.
from torch import nn
from torch.utils.data import Dataset

from helios import DataModule, Model, Plugin, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helios import TrainingState

PATIENCE: Final = 60  # seconds; whoever needs longer waits for what will not come
PLACES: Final = {
    "forward": "forward",
    "backward": "backward",
    "worker": "__getitem__",
    "hook": "on_training_batch_end",
    "plug-in setup": "setup",
    "model setup": "setup",
    "data setup": "setup",
    "validation": "valid_step",
    "training end": "on_training_end",
    "saving": "state_dict",
    "teardown": "teardown",
}
"""Where there can be trouble, and the function that is in the traceback then."""


class Broken(Exception):  # noqa: N818 - what breaks here is no error of anybody's.
    """As any part of a run may raise it."""


class Stop(Exception):  # noqa: N818 - control flow, and no error.
    """As a plug-in may raise it that has registered it."""


class Unportable(Exception):  # noqa: N818 - as above.
    """Refuses to be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.held = lambda: text


KINDS: Final[dict[str, type[Exception]]] = {kind.__name__: kind for kind in (Broken, Stop, Unportable)}


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What happens to one rank, when and how.

    Attributes:
        folder: where processes leave their marks.
        where: one of `PLACES`; elsewhere nothing happens.
        rank: to which rank.
        how: the name of an exception, "exit", "segfault", or "wait" for who waits for what is done to it.
    """

    folder: Path
    where: str = "nowhere"
    rank: int = 1
    how: str = "Broken"

    def at(self, where: str, rank: int) -> None:
        """Be at a place: if this is the one, write down when, and do it."""
        if (where, rank) != (self.where, self.rank):
            return
        self.mark(f"when-{time.monotonic()}")
        if self.how == "exit":
            os._exit(3)
        elif self.how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.how == "wait":
            self.mark("waiting")
            time.sleep(PATIENCE)
        raise KINDS[self.how](f"trouble in {where}")

    def mark(self, name: str) -> None:
        """Leave a file of this name, with the process in it."""
        temporary = self.folder / f".{os.getpid()}"
        temporary.write_text(str(os.getpid()), encoding="utf-8")
        temporary.rename(self.folder / name)

    def sign(self, rank: int) -> None:
        """Have this process known as a rank, or as a part of one."""
        self.mark(f"process-{rank}-{os.getpid()}")

    def began(self) -> float:
        """Return the monotonic time at which it happened; the clock is that of the machine."""
        (mark,) = self.folder.glob("when-*")
        return float(mark.name.partition("-")[2])

    def processes(self) -> list[int]:
        """Return all processes that have signed."""
        return [int(mark.read_text(encoding="utf-8")) for mark in self.folder.glob("process-*")]


class _Passing(torch.autograd.Function):
    """Changes nothing, and may get into trouble on the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, trouble: Trouble, rank: int) -> torch.Tensor:
        ctx.trouble, ctx.rank = trouble, rank
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.trouble.at("backward", ctx.rank)
        return gradient, None, None


class Fragile(nn.Module):
    """A linear layer that may get into trouble both ways."""

    def __init__(self, trouble: Trouble, rank: int) -> None:
        super().__init__()
        self.trouble, self.rank = trouble, rank
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.trouble.at("forward", self.rank)
        outputs: torch.Tensor = _Passing.apply(self.linear(inputs), self.trouble, self.rank)  # type: ignore[no-untyped-call]  # torch's own method
        return outputs


class TroubledModel(Model):
    def __init__(self, trouble: Trouble) -> None:
        super().__init__("troubled")
        self.trouble = trouble
        self.steps = 0

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.trouble.at("model setup", self.rank)
        self.net = self.wrap(Fragile(self.trouble, self.rank))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        del state
        self.steps += 1
        self.net(batch).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def valid_step(self, batch: torch.Tensor, step: int) -> None:
        del step
        self.trouble.at("validation", self.rank)
        self.net(batch)

    def on_training_end(self) -> None:
        self.trouble.at("training end", self.rank)

    def state_dict(self) -> dict[str, Any]:
        if self.steps:  # What is asked for before the first step is checked, and not saved.
            self.trouble.at("saving", self.rank)
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        del fast_init
        self.steps = state_dict["steps"]


class _Samples(Dataset[torch.Tensor]):
    def __init__(self, trouble: Trouble, rank: int) -> None:
        self.trouble, self.rank = trouble, rank

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        self.trouble.sign(self.rank)
        if index >= 4:  # Not at once: when all are at work.
            self.trouble.at("worker", self.rank)
        return torch.tensor([index / 8])


class TroubledData(DataModule):
    def __init__(self, trouble: Trouble, workers: int = 1) -> None:
        super().__init__()
        self.trouble, self.workers = trouble, workers

    def setup(self) -> None:
        self.trouble.at("data setup", self.rank)
        # A rank inherits the start method of the tests; its workers must be forked, as in most programs.
        multiprocessing.set_start_method("fork", force=True)
        samples = _Samples(self.trouble, self.rank)
        self._train_dataset = self._create_dataset(samples, {"batch_size": 2, "num_workers": self.workers})
        self._valid_dataset = self._create_dataset(samples, {"batch_size": 2})

    def teardown(self) -> None:
        self.trouble.at("teardown", self.rank)


class TroubledPlugin(Plugin):
    """May have a type of exceptions that is control flow: registered with itself, or late, by each rank in `setup`."""

    def __init__(self, trouble: Trouble, host_group: type[BaseException] | None = None, *, late: bool = False) -> None:
        super().__init__("troubled")
        self.trouble, self.host_group, self.late = trouble, host_group, late

    def configure_trainer(self, trainer: Trainer) -> None:
        super().configure_trainer(trainer)
        if self.host_group is not None and not self.late:
            self._append_train_exceptions(self.host_group, trainer)

    def setup(self) -> None:
        if self.host_group is not None and self.late:
            self._append_train_exceptions(self.host_group, self.trainer)
        self.trouble.sign(self.rank)
        self.trouble.at("plug-in setup", self.rank)

    def on_training_batch_end(self, state: TrainingState) -> None:
        del state
        self.trouble.at("hook", self.rank)


def fit_into(trouble: Trouble, plugin: TroubledPlugin | None = None, *, workers: int = 1, **options: Any) -> bool:
    """Train on two ranks, in each of which there is a data loader's worker or more, unless told otherwise."""
    trainer = Trainer(total_steps=2, valid_frequency=1, num_processes=2, print_banner=False, **options)
    (plugin or TroubledPlugin(trouble)).configure_trainer(trainer)
    return trainer.fit(TroubledModel(trouble), TroubledData(trouble, workers))


def wait_for(path: Path) -> None:
    """Return as soon as there is such a file."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"nobody leaves {path.name}"
        time.sleep(0.01)


@contextlib.contextmanager
def once_there_is(path: Path, act: Callable[[], None]) -> Iterator[None]:
    """Do something, in another thread, as soon as there is a file of this name."""

    def work() -> None:
        wait_for(path)
        act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
