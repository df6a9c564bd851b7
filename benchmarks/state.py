"""What capturing and restoring a model's state costs, beside torch's own; run with `python -m benchmarks.state`."""

from __future__ import annotations

import collections
import copy
import statistics
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from benchmarks._table import Table
from benchmarks._timing import interleave
from helios import Model
from helios.checkpoint.plain import dump, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios import TrainingState

_LAYERS: Final = 50
_WIDTH: Final = 500  # With 50 layers, about 50 MB.
_ROUNDS: Final = 20
_MEMORY: Final = 10_000


class _Big(Model):
    """A network of 50 MB with its optimizer, and a memory of small tensors if it is asked for."""

    def __init__(self, memory: int) -> None:
        super().__init__("big")
        self._size = memory

    def setup(self, fast_init: bool = False) -> None:
        """Make the network."""
        del fast_init
        self.net = nn.Sequential(*[nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)])
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.memory: collections.deque[Any] = collections.deque(maxlen=_MEMORY)

    def fill(self) -> None:
        """Remember transitions, as reinforcement learning does."""
        for number in range(self._size):
            self.memory.append((torch.zeros(4), number % 2, torch.zeros(4), 1.0))

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Train nothing."""


def _measure(title: str, memory: int) -> tuple[tuple[str, ...], ...]:
    model = _Big(memory)
    model.setup()
    model._helios_capture.mark()  # noqa: SLF001 - as a run does.
    model.fill()
    # As a file gives it back.
    saved = copy.deepcopy(model.state_dict())

    def bare_load() -> None:
        model.net.load_state_dict(saved["net"])
        model.optimizer.load_state_dict(saved["optimizer"])

    def bare_collect() -> tuple[Any, Any]:
        return model.net.state_dict(), model.optimizer.state_dict()

    ours_read, theirs_read = dump(model.state_dict()), dump(bare_collect())

    def bare_read_and_load() -> None:
        network, optimizer = load(theirs_read)
        model.net.load_state_dict(network)
        model.optimizer.load_state_dict(optimizer)

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "captured": (model.state_dict, bare_collect),
        "restored": (lambda: model.load_state_dict(saved), bare_load),
        "captured and serialized": (lambda: dump(model.state_dict()), lambda: dump(bare_collect())),
        "deserialized and restored": (lambda: model.load_state_dict(load(ours_read)), bare_read_and_load),
    }
    rows = []
    for name, (ours, theirs) in cases.items():
        times = interleave({"ours": ours, "theirs": theirs}, rounds=_ROUNDS)
        mine, bare = (statistics.median(times[who]) for who in ("ours", "theirs"))
        rows.append((f"{title}, {name}", f"{1e3 * mine:.1f} ms", f"{1e3 * bare:.1f} ms"))
    return tuple(rows)


def run() -> Table:
    """Measure a network alone, and with a memory of transitions beside it."""
    torch.set_num_threads(1)
    rows = (*_measure("50 MB", 0), *_measure(f"50 MB and {_MEMORY:,} transitions", _MEMORY))
    return Table(
        "The state of a model",
        ("what", "Helios", "state_dict of the network and the optimizer"),
        rows,
        ("Helios also finds out what else has changed; the transitions are in its state alone.",),
    )


if __name__ == "__main__":
    print(run().render())
