"""Runs whose number of ranks changes, and what each of their ranks has seen."""

from __future__ import annotations

import dataclasses
import os
import signal
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from helios import DataModule, Model, Trainer
from helios.core.distributed import get_global_rank, get_world_size
from helios.plugins import DevicePlugin

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator
    from pathlib import Path

    from helios import TrainingState

GLOBAL_BATCH = 12  # Can be shared out among 1, 2, 3 and 4 ranks.


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is like.

    Attributes:
        ranks: how many processes; 1 for the calling one.
        iterations: the iterations trained in total; epochs, if the options say so.
        samples: the size of the training data.
        strategy: as in `Trainer`.
        kill_at: the iteration in which rank 1 is killed, if it is.
        stream: whether the dataset is iterable.
        valid_stream: how many numbers there are to validate on as a stream, if at all.
        on_gpus: whether each rank has a GPU.
        unreduced: whether gradients are exchanged at optimizer steps only.
        options: more arguments of the trainer.
    """

    ranks: int = 1
    iterations: int = 4
    samples: int = 48
    strategy: str = "ddp"
    kill_at: int | None = None
    stream: bool = False
    valid_stream: int | None = None
    on_gpus: bool = False
    unreduced: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


class Counting(IterableDataset[torch.Tensor]):
    """Every rank's own part of some numbers; rank 0 has more than the others, if they cannot be shared out evenly."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __iter__(self) -> Iterator[torch.Tensor]:
        for number in range(get_global_rank(), self._size, get_world_size()):
            yield torch.tensor([float(number)])


class Numbered(DataModule):
    """Samples that are their own number, and a target."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def setup(self) -> None:
        def numbered(size: int) -> TensorDataset:
            return TensorDataset(torch.arange(size, dtype=torch.float64).reshape(-1, 1))

        share = {"batch_size": GLOBAL_BATCH // self._plan.ranks}
        training = Counting(27) if self._plan.stream else numbered(self._plan.samples)
        shuffle = {} if self._plan.stream else {"shuffle": True}
        self._train_dataset = self._create_dataset(training, share | shuffle)
        size = self._plan.valid_stream
        validation = numbered(7) if size is None else Counting(size)
        self._valid_dataset = self._test_dataset = self._create_dataset(validation, {"batch_size": 2})


@dataclasses.dataclass
class Notes:
    """What one life of a rank has seen: no state of the model, and so in no checkpoint."""

    seen: list[tuple[int, list[int]]] = dataclasses.field(default_factory=list)
    validated: list[int] = dataclasses.field(default_factory=list)
    logged: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)
    gradient: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))


class Elastic(Model):
    """A network without chance, so that the gradients of any number of ranks are those of one, but for rounding."""

    non_persistent_attributes = ("notes",)

    def __init__(self, plan: Plan) -> None:
        super().__init__("elastic")
        self._plan = plan
        self.notes = Notes()

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        # 7 and 5 cannot be shared out evenly by any number of ranks.
        network = nn.Sequential(nn.Linear(1, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.net = self.wrap(network, units=[network[2]]) if self._plan.strategy == "fsdp" else self.wrap(network)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.notes = Notes()

    def train_step(self, batch: list[torch.Tensor] | torch.Tensor, state: TrainingState) -> None:
        numbers = (batch if isinstance(batch, torch.Tensor) else batch[0]).double()
        index = state.global_iteration - 1
        self.notes.seen.append((index, numbers[:, 0].int().tolist()))
        if self.rank == 1 and index == self._plan.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with self._exchange(state):
            loss = nn.functional.mse_loss(self.net(numbers / 10), numbers.sin())
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own method
        if index == 0 and not self._plan.unreduced:
            self.notes.gradient = torch.cat([_whole(p.grad).reshape(-1).clone() for p in self.net.parameters()])
        if self.is_optimizer_step(state):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._loss_items["loss"] = loss.detach()

    def _exchange(self, state: TrainingState) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients are reduced, or stay unreduced until an optimizer step."""
        return self.no_sync(self.net, enabled=self._plan.unreduced and not self.is_optimizer_step(state))

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        if should_log:
            entry = state.current_iteration, float(self._loss_items["loss"]), float(self._running_losses["loss"])
            self.notes.logged.append(entry)

    def valid_step(self, batch: list[torch.Tensor] | torch.Tensor, step: int) -> None:
        del step
        numbers = (batch if isinstance(batch, torch.Tensor) else batch[0]).double()
        self.net(numbers)
        self.notes.validated += numbers[:, 0].int().tolist()

    test_step = valid_step

    def on_training_end(self) -> None:
        if self.is_distributed:
            self.trainer.queue.put(self.tell())

    def tell(self) -> dict[str, Any]:
        """Return what this rank has seen, and its weights and moments as they are now; a collective if sharded."""
        weights = [_whole(parameter).clone() for parameter in self.net.parameters()]
        moments = [_whole(state["exp_avg"]).clone() for state in self.optimizer.state.values()]
        return {"rank": self.rank, **vars(self.notes), "weights": weights + moments}


def _whole(tensor: Any) -> torch.Tensor:
    whole: torch.Tensor = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()
    return whole.cpu()


def make_trainer(plan: Plan, root: Path) -> Trainer:
    device: dict[str, Any] = {"use_cpu": True} if plan.ranks == 1 else {"num_processes": plan.ranks}
    if plan.on_gpus:
        device = {"gpus": list(range(plan.ranks))}
    trainer = Trainer(
        total_steps=plan.iterations,
        chkpt_frequency=1,
        chkpt_root=root,
        strategy=plan.strategy,
        print_banner=False,
        **device,
        **{"train_unit": "iteration", **plan.options},
    )
    trainer.register_plugin(DevicePlugin())
    return trainer


def train(plan: Plan, root: Path) -> list[dict[str, Any]]:
    """Train, from the newest checkpoint below `root` if there is one; return what each rank has seen."""
    trainer, model = make_trainer(plan, root), Elastic(plan)
    assert trainer.fit(model, Numbered(plan))
    if trainer.queue is not None:
        return sorted((trainer.queue.get() for _ in range(plan.ranks)), key=lambda told: int(told["rank"]))
    return [model.tell()]


def batches(told: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Return the samples of each global batch, all ranks' together, in ascending order, by iteration."""
    joined: dict[int, list[int]] = {}
    for rank in told:
        for iteration, indices in rank["seen"]:
            joined[iteration] = sorted(joined.get(iteration, []) + indices)
    return joined
