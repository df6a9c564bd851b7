"""What a launcher runs in each process of a run, and what is returned from rank 0: plain data that can be sent."""

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
    """What is returned from rank 0.

    Attributes:
        is_finished: false if a signal has stopped training.
        metrics: those of the model.
        plugin_results: what the `rank0_result` of each plug-in has returned, by id.
        trained_state: the model's state, on the CPU, where no checkpoint holds it.
    """

    is_finished: bool = True
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    plugin_results: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained_state: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A call of `fit` or `test`.

    Attributes:
        trainer: what the parts see of the run.
        options: the arguments of the trainer.
        model: the model.
        datamodule: where the data comes from.
        plugins: the plug-ins.
        phase: training or testing.
        control_flow: the types of exceptions that are no errors.
        trained_state: the state of a model that was trained before, to be tested.
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
        """Do what is done once, before all ranks begin."""
        self.datamodule.prepare_data()

    def receive_results(self, results: dict[str, Any]) -> None:
        """Pass what the plug-ins of rank 0 have returned on to this process's plug-ins."""
        for plug_id, plugin in self.plugins.items():
            if plug_id in results:
                plugin.receive_result(results[plug_id])
