"""What the loop adds to each training step; run with `python -m benchmarks.step_overhead`."""

from __future__ import annotations

import collections
import statistics
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks._idle import Idle, Ready
from benchmarks._parts import Shuffled
from benchmarks._table import Table
from benchmarks._timing import interleave, median_ratio, verdict
from helios import DataModule, Model, Trainer
from helios.core import rng
from helios.core.rng.pending import note_key
from helios.data import create_dataloader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from helios import TrainingState

_STEPS: Final = 20_000
_BATCH: Final = 64
_BATCHES: Final = 400
_FEATURES: Final = 64
_SMALL_STEPS: Final = 100  # In an epoch.
_SMALL_EPOCHS: Final = 4


class _Pairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A map-style dataset as users write them."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.labels[index]


_Parts: TypeAlias = tuple[nn.Module, torch.optim.Optimizer]


def _make_parts() -> _Parts:
    network = nn.Sequential(nn.Linear(_FEATURES, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)


class _Classifier(Model):
    """A small network."""

    def setup(self, fast_init: bool = False) -> None:
        """Make the network and its optimizer."""
        del fast_init
        self.network, self.optimizer = _make_parts()

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Descend."""
        del state
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self._loss_items["loss"] = loss


def _fit(model: Model, data: DataModule, epochs: int = 1) -> None:
    Trainer(total_steps=epochs, use_cpu=True, print_banner=False).fit(model, data)


def _train_by_hand(loader: Iterable[Any], make_parts: Callable[[], _Parts] = _make_parts) -> None:
    """Train as the bare torch loop does, summing up the loss on the device as Helios does."""
    network, optimizer = make_parts()
    running = torch.zeros(())
    for images, labels in loader:
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        running = running + loss.detach()


def _iterate_by_hand(batches: list[int]) -> None:
    step = Idle("bare").train_step
    state: Any = None
    for batch in batches:
        step(batch, state)


def run_idle() -> Table:
    """Measure the loop alone: a step that does nothing, over batches that are ready."""
    batches = [0] * _STEPS
    seconds = interleave(
        {
            "start": lambda: _fit(Idle("idle"), Ready([0])),
            "helios": lambda: _fit(Idle("idle"), Ready(batches)),
            "bare": lambda: _iterate_by_hand(batches),
        }
        | {name: _repeat(call) for name, call in _PARTS.items()},
        rounds=11,
        clock=time.process_time,
    )
    seconds["helios"] = [a - b for a, b in zip(seconds["helios"], seconds["start"], strict=True)]
    median, fastest = (
        {name: choose(values) / _STEPS * 1e6 for name, values in seconds.items()} for choose in (statistics.median, min)
    )

    def row(what: str, name: str, target: str = "") -> tuple[str, ...]:
        return what, f"{median[name]:.2f} µs", f"{fastest[name]:.2f} µs", target

    return Table(
        "A step that does nothing",
        ("what", "per step", "fastest round", "target"),
        (
            row("bare loop", "bare"),
            row("helios", "helios", verdict(median["helios"], 4, "at most 4 µs")),
            *(row(f"  of these, {name}", name) for name in _PARTS),
            ("  the loop itself", f"{median['helios'] - sum(median[name] for name in _PARTS):.2f} µs", "", ""),
        ),
        (f"{_STEPS:,} steps, less what starting and ending a run takes; medians of 11 rounds, in processor time.",),
    )


_SEEDS: Final = rng.SeedSequence(0, "step", 0)
_SEED: Final = _SEEDS[0]
# The parts of helios.core.rng.key_generators, one by one.
_PARTS: Final[dict[str, Callable[[int], object]]] = {
    "deriving the seed": lambda n: _SEEDS[n],
    "keying torch": lambda _: torch.default_generator.manual_seed(_SEED),
    "noting the key of NumPy and Python": lambda _: note_key(None, _SEED),
}


def _repeat(call: Callable[[int], object]) -> Callable[[], None]:
    return lambda: collections.deque(map(call, range(_STEPS)), maxlen=0).clear()


class _Small(_Classifier):
    """A network whose step is as short as a real one gets."""

    def setup(self, fast_init: bool = False) -> None:
        """Make the network and its optimizer."""
        del fast_init
        self.network, self.optimizer = _make_small_parts()


def _make_small_parts() -> _Parts:
    network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    return network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)


def run_small_step() -> Table:
    """Measure the loop around a small real step, over a list of ready batches."""
    batches = [(torch.randn(32, 32), torch.randint(0, 10, (32,))) for _ in range(_SMALL_STEPS)]
    seconds = interleave(
        {
            "start": lambda: _fit(_Small("mlp"), Ready(batches), epochs=1),
            "helios": lambda: _fit(_Small("mlp"), Ready(batches), epochs=1 + _SMALL_EPOCHS),
            "bare": lambda: _train_by_hand(batches * _SMALL_EPOCHS, _make_small_parts),
        },
        rounds=31,
        clock=time.process_time,
    )
    # The run of one epoch has what starting a run takes, and what comes with the first steps.
    seconds["helios"] = [a - b for a, b in zip(seconds["helios"], seconds["start"], strict=True)]
    bare, helios = (statistics.median(seconds[name]) for name in ("bare", "helios"))
    steps = _SMALL_STEPS * _SMALL_EPOCHS
    return Table(
        "A small real step: an MLP 32-64-10, batches of 32 that are ready",
        ("bare loop", "helios", "ratio of the medians", "target"),
        (
            (
                f"{bare / steps * 1e6:.0f} µs",
                f"{helios / steps * 1e6:.0f} µs",
                f"{helios / bare:.3f}",
                verdict(helios / bare, 1.05, "at most 1.05"),
            ),
        ),
        (f"Per step, medians of 31 interleaved rounds of {steps} steps, in processor time.",),
    )


def run_network() -> Table:
    """Measure a small network over a data loader, against the bare torch loop over torch's loader."""
    images, labels = torch.randn(_BATCH * _BATCHES, _FEATURES), torch.randint(0, 10, (_BATCH * _BATCHES,))
    rows = []
    for name, dataset in (
        ("TensorDataset", TensorDataset(images, labels)),
        ("a custom dataset", _Pairs(images, labels)),
    ):
        seconds = _time_loops(dataset)
        micro = {key: f"{statistics.median(values) / _BATCHES * 1e6:.0f} µs" for key, values in seconds.items()}
        loop, whole = (median_ratio(seconds["helios"], seconds[base]) for base in ("ours", "theirs"))
        rows.append(
            (
                name,
                micro["theirs"],
                micro["ours"],
                micro["helios"],
                f"{(loop - 1) * 100:+.1f} %",
                f"{(whole - 1) * 100:+.1f} %",
                verdict(whole, 1.03, "at most +3 %"),
            )
        )
    return Table(
        f"A small network, batches of {_BATCH}",
        ("data", "bare, torch's loader", "bare, our loader", "helios", "loop alone", "in all", "target"),
        tuple(rows),
        (
            f"Per step, medians of 7 rounds of {_BATCHES} steps, in processor time.",
            "Loop alone: helios over the bare loop with our loader; in all: over the bare loop with torch's.",
            f"A custom dataset may draw random numbers: each of its {_BATCH} samples per step is keyed.",
        ),
    )


def _time_loops(dataset: Any) -> dict[str, list[float]]:
    """Time the bare loop over torch's loader, the bare loop over the loader of Helios, and Helios."""
    return interleave(
        {
            "theirs": lambda: _train_by_hand(DataLoader(dataset, batch_size=_BATCH, shuffle=True)),
            "ours": lambda: _train_by_hand(create_dataloader(dataset, batch_size=_BATCH, shuffle=True)[0]),
            "helios": lambda: _fit(_Classifier("mlp"), Shuffled(dataset, _BATCH)),
        },
        rounds=7,
        clock=time.process_time,
    )


def run_items() -> Table:
    """Count how often a training loop reads a number from the device."""
    counts = {"item": 0}
    original = torch.Tensor.item

    def counting(tensor: torch.Tensor) -> Any:
        counts["item"] += 1
        return original(tensor)

    data = Shuffled(TensorDataset(torch.randn(_BATCH * 20, _FEATURES), torch.randint(0, 10, (_BATCH * 20,))), _BATCH)
    torch.Tensor.item = counting  # type: ignore[method-assign,assignment]  # Counted, and put back below.
    try:
        _fit(_Classifier("mlp"), data)
    finally:
        torch.Tensor.item = original  # type: ignore[method-assign]  # As it was.
    # torch's data loader draws the seed of its workers once an epoch, with .item().
    row = ("20 steps of one epoch", str(counts["item"]), verdict(counts["item"], 1, "1, by torch's loader, an epoch"))
    return Table("Numbers read from the device", ("what", ".item() calls", "target"), (row,))


def run() -> list[Table]:
    """Measure the loop alone and around a small network."""
    return [run_idle(), run_small_step(), run_network(), run_items()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*(table.render() for table in run()), sep="\n\n")
