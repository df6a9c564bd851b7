"""Training a network in two processes: by hand, and with Helios, in turns."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from benchmarks._pair import RANKS
from helios import DataModule, Model, Trainer
from helios.data import create_dataloader

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios import TrainingState

BATCH: Final = 64  # Of each rank.
_FEATURES: Final = 64


class _Pairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A data set as people write them, which every loader fetches sample by sample."""

    draws_nothing = True

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._inputs, self._labels = inputs, labels

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._inputs[index], self._labels[index]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        name: of the network and its data.
        width: of its two hidden layers.
        steps: in each round.
        rounds: how often each loop has its turn.
        is_plain: whether the data is a `TensorDataset`, of which Helios fetches whole batches.
    """

    name: str
    width: int
    steps: int
    rounds: int
    is_plain: bool = True

    @functools.cached_property
    def network(self) -> nn.Sequential:
        """The network that every loop starts with."""
        torch.manual_seed(0)
        width = self.width
        hidden = nn.Linear(_FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(width, 10))

    @functools.cached_property
    def dataset(self) -> Dataset[Any]:
        """The samples, alike on all ranks."""
        torch.manual_seed(1)
        size = BATCH * RANKS * self.steps
        inputs, labels = torch.randn(size, _FEATURES), torch.randint(0, 10, (size,))
        return TensorDataset(inputs, labels) if self.is_plain else _Pairs(inputs, labels)


@dataclasses.dataclass(frozen=True)
class Round:
    """What a rank has taken for one round.

    Attributes:
        step: the wall-clock seconds of its median step: those in which others had the processor fall out.
        processor: the processor seconds of all its steps and of every thread of the process, over their number.
    """

    step: float
    processor: float


class _Stopwatch:
    """Takes the time from where all ranks have met."""

    def __init__(self) -> None:
        self._processor = 0.0
        self._laps: list[float] = []

    def start(self) -> None:
        dist.barrier()
        self._processor = time.process_time()

    def lap(self) -> None:
        self._laps.append(time.perf_counter())

    def stop(self) -> Round:
        processor = time.process_time() - self._processor
        steps = [end - begin for begin, end in itertools.pairwise(self._laps)]
        return Round(statistics.median(steps), processor / len(self._laps))


class _Classifier(Model):
    """A network, as one would write it for Helios, under the watch."""

    def __init__(self, start: nn.Module) -> None:
        super().__init__("mlp")
        self._make = functools.partial(copy.deepcopy, start)
        self._watch = _Stopwatch()
        self.taken: Round | None = None

    def setup(self, fast_init: bool = False) -> None:
        """Make the network and its optimizer."""
        del fast_init
        self.network = self.wrap(self._make())
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Start the watch: what starting a run takes is no part of a step."""
        del current_epoch
        self._watch.start()

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Descend."""
        del state
        self._watch.lap()
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self._loss_items["loss"] = loss

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Stop the watch."""
        del current_epoch
        self.taken = self._watch.stop()


class _Data(DataModule):
    """A data set, shuffled."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self._dataset = dataset

    def setup(self) -> None:
        """Join the data set with its parameters."""
        self._train_dataset = self._create_dataset(self._dataset, {"batch_size": BATCH, "shuffle": True})


def _train_with_helios(plan: Plan) -> tuple[nn.Module, Round]:
    model = _Classifier(plan.network)
    Trainer(total_steps=1, use_cpu=True, print_banner=False).fit(model, _Data(plan.dataset))
    assert model.taken is not None
    return model.network, model.taken


def _train_by_hand(make_loader: Callable[[Any], Any], plan: Plan) -> tuple[nn.Module, Round]:
    """Train as one does with torch alone, summing up the loss on the device as Helios does."""
    network = DistributedDataParallel(copy.deepcopy(plan.network))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loader = make_loader(plan.dataset)
    running = torch.zeros(())
    watch = _Stopwatch()
    watch.start()
    for images, labels in loader:
        watch.lap()
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        running = running + loss.detach()
    return network, watch.stop()


def _torch_loader(dataset: Any) -> Any:
    return DataLoader(dataset, batch_size=BATCH, sampler=DistributedSampler(dataset, shuffle=True, seed=0))


def _our_loader(dataset: Any) -> Any:
    return create_dataloader(dataset, batch_size=BATCH, shuffle=True)[0]


# One of them twice: what two rounds of the same differ by is what this machine's noise does to any two.
_LOOPS: Final[dict[str, Callable[[Plan], tuple[nn.Module, Round]]]] = {
    "theirs": functools.partial(_train_by_hand, _torch_loader),
    "ours": functools.partial(_train_by_hand, _our_loader),
    "helios": _train_with_helios,
    "again": functools.partial(_train_by_hand, _our_loader),
}


def time_loops(plans: tuple[Plan, ...]) -> dict[str, dict[str, list[Round]]]:
    """Return, by plan and loop, every round of this rank of a pair."""
    return {plan.name: _time_plan(plan) for plan in plans}


def _time_plan(plan: Plan) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {name: [] for name in _LOOPS}
    order = collections.deque(_LOOPS)
    for turn in range(-1, plan.rounds):
        networks = {}
        for name in order:
            networks[name], taken = _LOOPS[name](plan)
            if turn >= 0:
                rounds[name].append(taken)
        order.rotate()  # Nobody always has the same one before it.
        _ensure_equal(networks["ours"], networks["helios"])
    return rounds


def _ensure_equal(first: nn.Module, second: nn.Module) -> None:
    """Check that two loops over the same batches have done the same work."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "helios has trained another network than the loop by hand"
