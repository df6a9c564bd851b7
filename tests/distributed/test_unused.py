"""Networks of which a part is used in some batches only, and by some ranks only, within an accumulation."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios import DataModule, Model, Trainer
from helios.core.distributed import get_world_size
from tests.distributed.test_elastic import assert_close, assert_equal

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState

pytestmark = pytest.mark.usefixtures("forked_ranks")
ACCUMULATION = 3


class Branches(nn.Module):
    """Two layers, of which the second is used on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(1, 41).double(), nn.Linear(1, 41).double()

    def forward(self, inputs: torch.Tensor, use_both: bool) -> torch.Tensor:
        outputs: torch.Tensor = self.always(inputs).tanh()
        return outputs + self.sometimes(inputs).tanh() if use_both else outputs


class Branching(Model):
    """Uses its second layer in the first batch of an accumulation: on the last rank alone, unless it must be on all."""

    def __init__(self, *, is_unreduced: bool, is_alike: bool) -> None:
        super().__init__("branching")
        self._is_alike = is_alike
        self._is_unreduced = is_unreduced

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        options: dict[str, Any] = {"find_unused_parameters": True} if self.trainer.strategy == "ddp" else {}
        self.net: Any = self.wrap(Branches(), **options)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        use_both = state.global_iteration % ACCUMULATION == 1 and (self._is_alike or self.rank == get_world_size() - 1)
        with self._exchange(state):
            outputs = self.net(batch[0], use_both)
            (outputs - batch[0].sin()).square().sum().backward()
        if self.is_optimizer_step(state):
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _exchange(self, state: TrainingState) -> contextlib.AbstractContextManager[None]:
        is_exchanged = not self._is_unreduced or self.is_optimizer_step(state)
        if self.trainer.strategy == "fsdp":
            self.net.set_requires_gradient_sync(is_exchanged)
            return contextlib.nullcontext()
        unreduced: contextlib.AbstractContextManager[None] = self.net.no_sync()
        return contextlib.nullcontext() if is_exchanged else unreduced

    def on_training_end(self) -> None:
        weights = [getattr(weight, "full_tensor", weight.clone)().detach() for weight in self.net.parameters()]
        self.trainer.queue.put((self.rank, weights))


class Numbers(DataModule):
    """Four batches for each rank."""

    def setup(self) -> None:
        samples = TensorDataset(torch.arange(4 * get_world_size(), dtype=torch.float64).reshape(-1, 1))
        self._train_dataset = self._create_dataset(samples, {"batch_size": 1, "shuffle": True})


def train(
    root: Path, ranks: int, epochs: int, *, strategy: str = "ddp", is_unreduced: bool, is_alike: bool = False
) -> list[list[torch.Tensor]]:
    """Train, from the newest checkpoint below `root` if there is one; return the weights of each rank."""
    trainer = Trainer(
        total_steps=epochs,
        chkpt_frequency=1,
        chkpt_root=root,
        accumulation_steps=ACCUMULATION,
        num_processes=ranks,
        strategy=strategy,
        print_banner=False,
    )
    assert trainer.fit(Branching(is_unreduced=is_unreduced, is_alike=is_alike), Numbers())
    told: list[tuple[int, list[torch.Tensor]]] = [trainer.queue.get() for _ in range(ranks)]
    return [weights for _, weights in sorted(told, key=lambda entry: entry[0])]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("is_unreduced", [True, False], ids=["unreduced", "reduced"])
def test_gradients_before_a_checkpoint_are_reduced(ranks: int, is_unreduced: bool, tmp_path: Path) -> None:
    """A layer that one rank uses before a checkpoint, and no rank after it, is resumed to the same bits.

    All ranks have the same weights, and those differ from what they would be without that layer's gradient.
    """
    whole = train(tmp_path / "whole", ranks, 3, is_unreduced=is_unreduced)
    for weights in whole:
        assert_equal(weights, whole[0])
    for stop in (1, 2):
        train(tmp_path / f"{stop}", ranks, stop, is_unreduced=is_unreduced)
        for weights in train(tmp_path / f"{stop}", ranks, 3, is_unreduced=is_unreduced):
            assert_equal(weights, whole[0])


def test_gradients_of_sharded_ranks_are_reduced_by_ddp(tmp_path: Path) -> None:
    """DDP reduces unreduced gradients that sharded ranks have saved, even of a layer that it does not use."""
    whole = train(tmp_path / "whole", 2, 3, is_unreduced=True, is_alike=True)
    train(tmp_path / "changing", 2, 1, strategy="fsdp", is_unreduced=True, is_alike=True)
    resumed = train(tmp_path / "changing", 2, 3, is_unreduced=True, is_alike=True)
    for weights in resumed:
        assert_equal(weights, resumed[0])
        assert_close(weights, whole[0])
