"""Training a network in two processes: by hand, and with Helios, in turns."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from benchmarks._pair import RANKS
from benchmarks._parts import Shuffled
from helios import Model, Trainer
from helios.data import create_dataloader

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios import TrainingState

BATCH: Final = 64  # Of each rank.
_FEATURES: Final = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        name: of the network.
        width: of its two hidden layers.
        steps: in each round.
        rounds: how often each loop has its turn.
    """

    name: str
    width: int
    steps: int
    rounds: int

    @functools.cached_property
    def network(self) -> nn.Sequential:
        """The network that every loop starts with."""
        torch.manual_seed(0)
        width = self.width
        hidden = nn.Linear(_FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(width, 10))

    @functools.cached_property
    def dataset(self) -> TensorDataset:
        """The samples, alike on all ranks."""
        torch.manual_seed(1)
        size = BATCH * RANKS * self.steps * 10  # Most are left over: what an epoch begins with is no part of a step.
        return TensorDataset(torch.randn(size, _FEATURES), torch.randint(0, 10, (size,)))


@dataclasses.dataclass(frozen=True)
class Round:
    """What a rank has taken for one round.

    Attributes:
        step: the wall-clock seconds of its median step: those in which others had the processor fall out.
        processor: the mean of the processor seconds of its steps, every thread of the process included.
    """

    step: float
    processor: float


class _Stopwatch:
    """Takes the time from the beginning of the first step to that of the last one."""

    def __init__(self) -> None:
        self._laps: list[tuple[float, float]] = []

    def lap(self) -> None:
        """Begin a step."""
        self._laps.append((time.perf_counter(), time.process_time()))

    def read(self) -> Round:
        """Return what the steps have taken."""
        steps = [end[0] - begin[0] for begin, end in itertools.pairwise(self._laps)]
        return Round(statistics.median(steps), (self._laps[-1][1] - self._laps[0][1]) / len(steps))


class _Classifier(Model):
    """A network, as one would write it for Helios, under the watch."""

    def __init__(self, start: nn.Module) -> None:
        super().__init__("mlp")
        self._make = functools.partial(copy.deepcopy, start)
        self.watch = _Stopwatch()

    def setup(self, fast_init: bool = False) -> None:
        """Make the network and its optimizer."""
        del fast_init
        self.network = self.wrap(self._make())
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Descend."""
        del state
        self.watch.lap()
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self._loss_items["loss"] = loss


def _train_with_helios(plan: Plan) -> tuple[nn.Module, Round]:
    model = _Classifier(plan.network)
    trainer = Trainer(train_unit="iteration", total_steps=plan.steps, use_cpu=True, print_banner=False)
    trainer.fit(model, Shuffled(plan.dataset, BATCH))
    return model.network, model.watch.read()


def _train_by_hand(make_loader: Callable[[Any], Any], plan: Plan) -> tuple[nn.Module, Round]:
    """Train as one does with torch alone, summing up the loss on the device as Helios does."""
    network = DistributedDataParallel(copy.deepcopy(plan.network))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loader = make_loader(plan.dataset)
    running = torch.zeros(())
    watch = _Stopwatch()
    for images, labels in itertools.islice(loader, plan.steps):
        watch.lap()
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        running = running + loss.detach()
    return network, watch.read()


def _torch_loader(dataset: Any) -> Any:
    return DataLoader(dataset, batch_size=BATCH, sampler=DistributedSampler(dataset, shuffle=True, seed=0))


def _our_loader(dataset: Any) -> Any:
    return create_dataloader(dataset, batch_size=BATCH, shuffle=True)[0]


_LOOPS: Final[dict[str, Callable[[Plan], tuple[nn.Module, Round]]]] = {
    "theirs": functools.partial(_train_by_hand, _torch_loader),
    "ours": functools.partial(_train_by_hand, _our_loader),
    "helios": _train_with_helios,
}


def time_loops(plans: tuple[Plan, ...]) -> dict[str, dict[str, list[Round]]]:
    """Return, by plan and loop, every round of this rank of a pair."""
    return {plan.name: _time_plan(plan) for plan in plans}


def _time_plan(plan: Plan) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {name: [] for name in _LOOPS}
    orders = itertools.cycle(itertools.permutations(_LOOPS))  # Nobody always has the same one before it.
    for turn, order in zip(range(-1, plan.rounds), orders, strict=False):
        networks = {}
        for name in order:
            networks[name], taken = _LOOPS[name](plan)
            if turn >= 0:
                rounds[name].append(taken)
        _ensure_equal(networks["ours"], networks["helios"])
    return rounds


def _ensure_equal(first: nn.Module, second: nn.Module) -> None:
    """Check that two loops over the same batches have done the same work."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "helios has trained another network than the loop by hand"
