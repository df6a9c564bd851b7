"""How training is ended from within: by a plug-in, by the model, by a lack of improvement."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from helios.core.archive import load_archive
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, make_trainer
from tests.trainer.trace import TracingModel, TracingPlugin

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class StopPlugin(TracingPlugin):
    """Stops after a batch."""

    def __init__(self, at: int, trace: list[str]) -> None:
        super().__init__("a", trace)
        self.unique_overrides.should_training_stop = True
        self.at = at
        self.done = 0

    def on_training_batch_end(self, state: TrainingState) -> None:
        super().on_training_batch_end(state)
        self.done = state.global_iteration

    def should_training_stop(self) -> bool:
        return self.done >= self.at


class StopModel(TracingModel):
    """Stops after a batch."""

    def __init__(self, at: int, trace: list[str]) -> None:
        super().__init__(trace)
        self.at = at
        self.done = 0

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        self.done = state.global_iteration

    def should_training_stop(self) -> bool:
        return self.done >= self.at


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
@pytest.mark.parametrize("who", ["plugin", "model"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_plugin_or_the_model_can_stop_training(tmp_path: Path, unit: str, who: str, at: int) -> None:
    """SPEC A10: training ends after that batch: end hooks run, a checkpoint is there, `fit` is true, and true again."""

    def run() -> list[str]:
        trace: list[str] = []
        trainer = make_trainer(tmp_path, train_unit=unit, total_steps=100)
        trainer.register_plugin(StopPlugin(at, trace) if who == "plugin" else TracingPlugin("a", trace))
        assert trainer.fit(StopModel(at, trace) if who == "model" else TracingModel(trace), ListData())
        return trace

    trace = run()
    steps = [line for line in trace if line.startswith("model.train_step")]
    assert len(steps) == at
    assert trace[-5:] == [
        f"model.on_training_batch_end {at}",
        f"a.on_training_epoch_end {(at + 2) // 3}",
        f"model.on_training_epoch_end {(at + 2) // 3}",
        "a.on_training_end",
        "model.on_training_end",
    ]
    path = find_last_checkpoint(tmp_path / "tracing")
    assert path is not None
    saved = load_archive(path)["training"]
    assert saved["state"]["global_iteration"] == at
    assert saved["stopped"]
    again = run()
    assert not any("train_step" in line for line in again)
    assert again[-1] == "model.on_training_end"


def test_the_checkpoint_of_a_stopped_run_is_whole(tmp_path: Path) -> None:
    """SPEC A10: the final checkpoint holds the weights of exactly the batches that were trained."""

    class Stopping(CountingModel):
        def should_training_stop(self) -> bool:
            return len(self.seen) == 4

    stopped, cut = Stopping(), CountingModel("cut")
    assert make_trainer(tmp_path, total_steps=9).fit(stopped, ListData())
    assert make_trainer(tmp_path, train_unit="iteration", total_steps=4).fit(cut, ListData())
    assert stopped.weight == cut.weight
    path = find_last_checkpoint(tmp_path / "counting")
    assert path is not None
    assert torch.equal(load_archive(path)["model"]["state"]["net"]["weight"], stopped.net.weight)


class Scored(CountingModel):
    """Improves for a number of validations, and then no more."""

    def __init__(self, improving: int) -> None:
        super().__init__()
        self.improving = improving
        self.cycles = 0

    def on_validation_end(self, validation_cycle: int) -> None:
        self.cycles = validation_cycle

    def have_metrics_improved(self) -> bool:
        return self.cycles <= self.improving or self.cycles == 5


@pytest.mark.parametrize(
    ("cycles", "improving", "validations"), [(1, 0, 1), (1, 2, 3), (2, 2, 4), (3, 3, 8), (2, 99, 10)]
)
def test_early_stopping(tmp_path: Path, cycles: int, improving: int, validations: int) -> None:
    """SPEC E1: training stops after so many validations in a row without improvement; one in between starts over."""
    for unit, batches in (("epoch", 3), ("iteration", 1)):
        model = Scored(improving)
        options = {"total_steps": 10, "valid_frequency": 1, "early_stop_cycles": cycles, "train_unit": unit}
        assert make_trainer(tmp_path / unit, **options).fit(model, ListData())
        assert (model.cycles, len(model.seen)) == (validations, validations * batches)
        again = Scored(improving)
        assert make_trainer(tmp_path / unit, **options).fit(again, ListData())
        assert len(again.seen) == len(model.seen), "a run that early stopping has ended is at its end"


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_an_infinite_run_ends_when_it_is_stopped(unit: str) -> None:
    """SPEC E1: with `total_steps=inf` training goes on until the model stops it, with a progress bar without an end."""

    class Stopping(CountingModel):
        def should_training_stop(self) -> bool:
            return len(self.seen) == 50

    model = Stopping()
    trainer = make_trainer(total_steps=math.inf, train_unit=unit, enable_progress_bar=True)
    assert trainer.fit(model, ListData())
    assert len(model.seen) == 50
