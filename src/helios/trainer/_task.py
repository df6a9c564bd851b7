"""The task that a launcher runs in each process of a run, and the result that rank 0 returns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helios.core.context import RunContext
    from helios.core.state import Phase
    from helios.data.datamodule import DataModule
    from helios.model.model import Model
    from helios.plugins.table import PluginTable
    from helios.trainer._options import TrainerOptions


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of rank 0.

    Attributes:
        is_finished: false if a signal has stopped training.
        metrics: the metrics of the model.
        plugin_results: the results of `rank0_result` of the plug-ins, by id.
        trained_state: the model's state, on the CPU; `None` if a checkpoint has it.
    """

    is_finished: bool = True
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    plugin_results: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained_state: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A call of `fit` or `test`.

    Attributes:
        trainer: the trainer, as the parts see it.
        options: the arguments of the trainer.
        model: the model.
        datamodule: the data module.
        plugins: the plug-ins.
        phase: training or testing.
        control_flow: the types of exceptions that are not errors.
        trained_state: the state of a model that was trained before, for a test.
    """

    trainer: RunContext
    options: TrainerOptions
    model: Model
    datamodule: DataModule
    plugins: PluginTable
    phase: Phase
    control_flow: list[type[BaseException]]
    trained_state: dict[str, Any] | None = None

    def prepare(self) -> None:
        """Prepare the data, once, before the ranks begin."""
        self.datamodule.prepare_data()

    def receive_results(self, results: dict[str, Any]) -> None:
        """Pass the results of rank 0's plug-ins to the plug-ins of this process."""
        for plug_id, plugin in self.plugins.items():
            if plug_id in results:
                plugin.receive_result(results[plug_id])
