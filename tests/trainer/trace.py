"""A model and plug-ins that write down every hook in the order in which they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helios import Model, Plugin

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class TracingPlugin(Plugin):
    """Overrides every hook but those that only one plug-in may have."""

    non_persistent_attributes = ("trace",)  # A trace is of one process.

    def __init__(self, plug_id: str, trace: list[str]) -> None:
        super().__init__(plug_id)
        self.trace = trace

    def _note(self, hook: str, *arguments: object) -> None:
        self.trace.append(" ".join([f"{self.plug_id}.{hook}", *map(str, arguments)]))

    def setup(self) -> None:
        self._note("setup")

    def on_training_start(self) -> None:
        self._note("on_training_start")

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self._note("on_training_epoch_start", current_epoch)

    def on_training_batch_start(self, state: TrainingState) -> None:
        self._note("on_training_batch_start", state.global_iteration)

    def on_optimizer_step(self, state: TrainingState) -> None:
        self._note("on_optimizer_step", state.global_iteration)

    def on_training_batch_end(self, state: TrainingState) -> None:
        self._note("on_training_batch_end", state.global_iteration)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self._note("on_training_epoch_end", current_epoch)

    def on_training_end(self) -> None:
        self._note("on_training_end")

    def on_checkpoint_saved(self, path: Path, state: TrainingState) -> None:
        """Note nothing: how often a run is saved depends on when it is killed."""

    def on_exception(self, error: BaseException) -> None:
        self._note("on_exception", type(error).__name__)

    def on_fit_end(self, *, interrupted: bool) -> None:
        self._note("on_fit_end", interrupted)

    def on_validation_start(self, validation_cycle: int) -> None:
        self._note("on_validation_start", validation_cycle)

    def on_validation_batch_start(self, step: int) -> None:
        self._note("on_validation_batch_start", step)

    def on_validation_batch_end(self, step: int) -> None:
        self._note("on_validation_batch_end", step)

    def on_validation_end(self, validation_cycle: int) -> None:
        self._note("on_validation_end", validation_cycle)

    def on_testing_start(self) -> None:
        self._note("on_testing_start")

    def on_testing_batch_start(self, step: int) -> None:
        self._note("on_testing_batch_start", step)

    def on_testing_batch_end(self, step: int) -> None:
        self._note("on_testing_batch_end", step)

    def on_testing_end(self) -> None:
        self._note("on_testing_end")


class ProcessingPlugin(TracingPlugin):
    """Processes the batches, too."""

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        self._note("process_training_batch", state.global_iteration)
        return batch

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        self._note("process_validation_batch", step)
        return batch

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        self._note("process_testing_batch", step)
        return batch


class TracingModel(Model):
    """Overrides everything."""

    def __init__(self, trace: list[str], save_name: str = "tracing") -> None:
        super().__init__(save_name)
        self.trace = trace

    def _note(self, hook: str, *arguments: object) -> None:
        self.trace.append(" ".join([f"model.{hook}", *map(str, arguments)]))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Take nothing: a trace is of one process."""

    def setup(self, fast_init: bool = False) -> None:
        self._note("setup", fast_init)

    def train(self) -> None:
        self._note("train")

    def eval(self) -> None:
        self._note("eval")

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        assert torch.is_grad_enabled()
        self._note("train_step", float(batch[0]), state.global_iteration)

    def valid_step(self, batch: torch.Tensor, step: int) -> None:
        assert not torch.is_grad_enabled()
        self._note("valid_step", float(batch[0]), step)

    def test_step(self, batch: torch.Tensor, step: int) -> None:
        assert not torch.is_grad_enabled()
        self._note("test_step", float(batch[0]), step)

    def load_for_testing(self) -> None:
        self._note("load_for_testing")

    def on_training_start(self) -> None:
        self._note("on_training_start")

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self._note("on_training_epoch_start", current_epoch)

    def on_training_batch_start(self, state: TrainingState) -> None:
        self._note("on_training_batch_start", state.global_iteration)

    def on_optimizer_step(self, state: TrainingState) -> None:
        self._note("on_optimizer_step", state.global_iteration)

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        self._note("on_training_batch_end", state.global_iteration, *["log"] * should_log)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self._note("on_training_epoch_end", current_epoch)

    def on_training_end(self) -> None:
        self._note("on_training_end")

    def on_checkpoint_saved(self, path: Path, state: TrainingState) -> None:
        """Note nothing: how often a run is saved depends on when it is killed."""

    def on_exception(self, error: BaseException) -> None:
        self._note("on_exception", type(error).__name__)

    def on_validation_start(self, validation_cycle: int) -> None:
        self._note("on_validation_start", validation_cycle)

    def on_validation_batch_start(self, step: int) -> None:
        self._note("on_validation_batch_start", step)

    def on_validation_batch_end(self, step: int) -> None:
        self._note("on_validation_batch_end", step)

    def on_validation_end(self, validation_cycle: int) -> None:
        self._note("on_validation_end", validation_cycle)

    def on_testing_start(self) -> None:
        self._note("on_testing_start")

    def on_testing_batch_start(self, step: int) -> None:
        self._note("on_testing_batch_start", step)

    def on_testing_batch_end(self, step: int) -> None:
        self._note("on_testing_batch_end", step)

    def on_testing_end(self) -> None:
        self._note("on_testing_end")
