"""Idioms of the documentation of helios-ml 1.x mean here what they mean there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helios import Model, Plugin
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class StepsByHand(CountingModel):
    """Accumulates gradients by the count of batches, unknown to the trainer or not, as the documentation prints it."""

    def __init__(self, every: int) -> None:
        super().__init__("by_hand")
        self.every = every
        self.stepped_at: list[int] = []

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.seen = []
        self.net = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        self.seen.append(float(batch[0]))
        (self.net(batch).sum() / 100).backward()
        if state.global_iteration % self.every == 0:
            self.stepped_at.append(state.global_iteration)
            self.optimizer.step()
            self.optimizer.zero_grad()


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_a_step_at_every_third_batch(unit: str, accumulation_steps: int) -> None:
    """`if state.global_iteration % 3 == 0: optimizer.step()` steps at batches 3, 6 and 9."""
    steps = 3 if unit == "epoch" else 9 // accumulation_steps
    model = StepsByHand(3)
    make_trainer(train_unit=unit, total_steps=steps, accumulation_steps=accumulation_steps).fit(model, ListData())
    assert model.stepped_at == [3, 6, 9]


class Counting(SimplePlugin):
    """Notes the counts in every hook that gets the state."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.noted: list[tuple[str, int, int, int]] = []

    def _note(self, hook: str, state: TrainingState) -> None:
        self.noted.append((hook, state.global_iteration, state.current_iteration, state.dataset_iter))

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        self._note("process", state)
        return batch

    def on_training_batch_start(self, state: TrainingState) -> None:
        self._note("start", state)

    def on_training_batch_end(self, state: TrainingState) -> None:
        self._note("end", state)


@pytest.mark.parametrize(("unit", "iterations"), [("epoch", [1, 2, 3, 4]), ("iteration", [0, 1, 1, 2])])
def test_the_state_counts_the_batch_in_every_hook(unit: str, iterations: list[int]) -> None:
    """All hooks of a batch see the same counts; with accumulation, the iteration that the batch completes as well."""
    trainer = make_trainer(train_unit=unit, total_steps=2, accumulation_steps=2)
    trainer.register_plugin(plugin := Counting())
    trainer.fit(CountingModel(), ListData())
    expected = [
        (hook, batch, iterations[batch - 1], (batch - 1) % 3 + 1)
        for batch in range(1, 5)
        for hook in ("process", "start", "end")
    ]
    assert plugin.noted[: len(expected)] == expected


def test_validation_cycles_count_from_0(tmp_path: Path) -> None:
    """Hooks get 0 for the first validation, which `validation_cycles` does not count yet; a resume continues."""

    class Cycles(SimplePlugin):
        def __init__(self) -> None:
            super().__init__("cycles")
            self.cycles: list[int] = []

        def on_validation_start(self, validation_cycle: int) -> None:
            self.cycles.append(validation_cycle)

        def on_validation_end(self, validation_cycle: int) -> None:
            self.cycles.append(validation_cycle)

    plugins = [Cycles(), Cycles()]
    for epochs, plugin in zip((2, 3), plugins, strict=True):
        trainer = make_trainer(tmp_path, total_steps=epochs, valid_frequency=1)
        trainer.register_plugin(plugin)
        trainer.fit(CountingModel(), ListData())
    assert plugins[1].cycles == [0, 0, 1, 1, 2, 2]


def test_metrics_are_asked_about_after_every_validation() -> None:
    """`have_metrics_improved` is called after each validation, also without early stopping."""

    class Asked(CountingModel):
        calls = 0

        def have_metrics_improved(self) -> bool:
            type(self).calls += 1
            return False

    make_trainer(total_steps=3, valid_frequency=1).fit(Asked(), ListData())
    assert Asked.calls == 3


def test_plugins_are_asked_about_stopping_before_the_model() -> None:
    """`should_training_stop` of a plug-in comes before that of the model."""
    asked: list[str] = []

    class AskedPlugin(SimplePlugin):
        def should_training_stop(self) -> bool:
            asked.append("plug-in")
            return False

    class AskedModel(CountingModel):
        def should_training_stop(self) -> bool:
            asked.append("model")
            return True

    trainer = make_trainer(total_steps=3)
    trainer.register_plugin(AskedPlugin())
    trainer.fit(AskedModel(), ListData())
    assert asked[:2] == ["plug-in", "model"]


def test_base_hooks_do_their_bookkeeping_when_called_by_hand() -> None:
    """Called outside of a run, hooks clear losses and scores and add up the running losses; in a run, only once."""
    model: Any = CountingModel()
    model._loss_items = {"old": torch.ones(())}
    model.on_training_batch_start(None)
    assert model._loss_items == {}
    for _ in range(2):
        model.on_training_batch_start(None)
        model._loss_items["loss"] = torch.tensor(2.0, requires_grad=True)
        model.on_training_batch_end(None)
        model.on_training_batch_end(None)
    assert float(model._running_losses["loss"]) == 4.0
    model._val_scores, model._test_scores = {"a": 1}, {"b": 1}
    model.on_validation_start(0)
    model.on_testing_start()
    assert (model._val_scores, model._test_scores) == ({}, {})

    class Calling(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            super().train_step(batch, state)
            self._loss_items["loss"] = torch.tensor(1.0)

        def on_training_batch_start(self, state: TrainingState) -> None:
            super().on_training_batch_start(state)

        def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
            super().on_training_batch_end(state, should_log)
            self.total = float(self._running_losses["loss"])

    calling = Calling()
    make_trainer(total_steps=1).fit(calling, ListData())
    assert calling.total == 3.0


def test_scores_survive_a_resume_of_the_end(tmp_path: Path) -> None:
    """`on_training_end` of a finished run that is started again reads the scores and losses of the last batch."""

    class Ending(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            super().train_step(batch, state)
            self._loss_items["loss"] = torch.tensor(float(state.global_iteration))

        def valid_step(self, batch: torch.Tensor, step: int) -> None:
            del batch
            self._val_scores["seen"] = step

        def on_training_end(self) -> None:
            self.told = self._val_scores["seen"], float(self._loss_items["loss"])

    for _ in range(2):
        model = Ending()
        make_trainer(tmp_path, valid_frequency=1).fit(model, ListData())
        assert model.told == (1, 6.0)


def test_attributes_of_a_users_own_collide_with_none_of_ours(tmp_path: Path) -> None:
    """Models, plug-ins and data modules may have private attributes of any name: all of ours have a prefix."""
    surface = {
        "_loss_items": Model, "_running_losses": Model, "_val_scores": Model, "_test_scores": Model,
        "_train_dataset": ListData, "_valid_dataset": ListData, "_test_dataset": ListData, "_create_dataset": ListData,
        "_append_train_exceptions": Plugin, "_append_test_exceptions": Plugin, "_register_in_trainer": Plugin,
        "_overrides": Plugin,
    }  # fmt: skip
    parts = CountingModel(), SimplePlugin(), ListData()
    ours = {name for part in parts for name in dir(part) if name.startswith("_") and not name.startswith("__")}
    own = {"_batches", "_abc_impl"}  # Of ListData above, and of Python's abc.
    assert {name for name in ours - own if not name.startswith("_helios_")} == set(surface)

    class Metrics(CountingModel):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self._metrics = nn.ModuleDict({"scale": nn.Linear(1, 1)})
            self._trainer, self._device, self._rank = "mine", "too", -1

    model = Metrics()
    make_trainer(tmp_path).fit(model, ListData())
    make_trainer(tmp_path, total_steps=3).fit(again := Metrics(), ListData())
    assert (again._trainer, again._device, again._rank, again.rank) == ("mine", "too", -1, 0)
    pairs = zip(again._metrics.parameters(), model._metrics.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert find_last_checkpoint(tmp_path / "counting") is not None
