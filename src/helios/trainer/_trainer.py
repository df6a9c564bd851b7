"""The trainer, which connects the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helios.core.environment import read_environment
from helios.core.state import Phase, TrainingUnit
from helios.trainer._checks import check_parts, check_training
from helios.trainer._exclusive import exclusive
from helios.trainer._options import TrainerOptions
from helios.trainer._properties import TrainerProperties
from helios.trainer._states import PartStates
from helios.trainer._task import Task
from helios.trainer.launch.launcher import check_group, select_launcher
from helios.trainer.launch.rank import RankLauncher

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping
    from pathlib import Path

    from helios.data.datamodule import DataModule
    from helios.model.model import Model
    from helios.parallel.strategy import Strategy
    from helios.plugins.base import Plugin
    from helios.trainer._task import Result


class Trainer(TrainerProperties):
    """Trains and tests models.

    A run that has a checkpoint is resumed from it, and ends with the same weights as an uninterrupted run, to the bit.

    Args:
        run_name: the name of the run's log file and TensorBoard folder, which has a folder for each model and start.
        train_unit: what `total_steps` and most frequencies count: "epoch" or "iteration" (an optimizer step).
        total_steps: the length of training; `float("inf")` to train until something stops it.
        valid_frequency: steps between validations; `None` for none.
        chkpt_frequency: steps between checkpoints; with `None`, one is saved at the end and when a signal arrives.
        print_frequency: steps between batches at which the model is told to log.
        accumulation_steps: batches per optimizer step.
        enable_cudnn_benchmark: let cuDNN choose the fastest algorithms; the resume is then not exact.
        enable_deterministic: use deterministic algorithms only.
        early_stop_cycles: stop after this many validations in a row without an improvement.
        use_cpu: train on the CPU; `None` to do so only where CUDA is not available.
        gpus: the GPUs to train on, one rank each; `None` for all of this machine, or under `torchrun` for as many as it
            has ranks.
        random_seed: the seed of every draw of the run, in [0, 2**63); 6691 if it is `None`.
        enable_tensorboard: write to TensorBoard below `run_path`.
        enable_file_logging: write the log to a file in `log_path`.
        capture_warnings: put warnings into the log.
        enable_progress_bar: show progress bars.
        chkpt_root: the folder of all models' checkpoints; `None` to write none.
        log_path: the folder of log files.
        run_path: the folder of TensorBoard's files.
        src_root: a folder of modules to import first if they register something.
        import_prefix: the package that contains `src_root`.
        print_banner: print a summary of the run before training.
        num_processes: the number of CPU processes to train in, over gloo.
        strategy: how several ranks train a network that is passed to `Model.wrap`: "ddp" (each rank has a copy), "fsdp"
            (each rank has a shard of every parameter), or an instance of `helios.parallel.Strategy`.
        passport: names and plain values that must be the same when the run is resumed, such as the version of the data.
        on_drift: what happens when a run is resumed with other settings than those of its checkpoint. "refuse" refuses
            those that make it another run (the seed, the length of a dataset, ...), and warns about those that only end
            equality to the bit (a version, the number of threads, ...). "strict" refuses all of them, "warn" warns
            about all of them, and "ignore" does neither. A mapping of names to "refuse", "warn" or "ignore" applies to
            these names, and "refuse" to the others.

    Raises:
        ConfigurationError: if a value is out of range, or two contradict each other (it is a `ValueError`).
        ArgumentTypeError: if a value has the wrong type.
        DeviceUnavailableError: if a requested GPU does not exist.
    """

    def __init__(
        self,
        run_name: str = "",
        train_unit: TrainingUnit | str = TrainingUnit.EPOCH,
        total_steps: float = 0,
        valid_frequency: int | None = None,
        chkpt_frequency: int | None = None,
        print_frequency: int | None = None,
        accumulation_steps: int = 1,
        enable_cudnn_benchmark: bool = False,
        enable_deterministic: bool = False,
        early_stop_cycles: int | None = None,
        use_cpu: bool | None = None,
        gpus: list[int] | None = None,
        random_seed: int | None = None,
        enable_tensorboard: bool = False,
        enable_file_logging: bool = False,
        capture_warnings: bool = False,
        enable_progress_bar: bool = False,
        chkpt_root: Path | str | None = None,
        log_path: Path | str | None = None,
        run_path: Path | str | None = None,
        src_root: Path | str | None = None,
        import_prefix: str = "",
        print_banner: bool = True,
        num_processes: int | None = None,
        strategy: str | Strategy = "ddp",
        passport: Mapping[str, Any] | None = None,
        on_drift: str | Mapping[str, str] = "refuse",
    ) -> None:
        """Check the arguments."""
        arguments = dict(locals())
        del arguments["self"], arguments["__class__"]  # The class is there because of super().
        options = TrainerOptions(**arguments)
        super().__init__(options, select_launcher(read_environment(), options))
        # The model that was trained last, and its state if that is not in this process's object.
        self._trained: tuple[Model, dict[str, Any] | None] | None = None

    def register_plugin(self, plugin: Plugin) -> None:
        """Add a plug-in; the same as `trainer.plugins[plugin.plug_id] = plugin`.

        Raises:
            DuplicateNameError: if the id is taken by another plug-in.
            PluginConflictError: if another plug-in holds the same claim.
        """
        self._plugins[getattr(plugin, "plug_id", repr(plugin))] = plugin

    def fit(self, model: Model, datamodule: DataModule) -> bool:
        """Train a model, from its newest checkpoint if it has one.

        Args:
            model: the model to train.
            datamodule: the data module.

        Returns:
            True if training is complete; false if a signal stopped it. Then a checkpoint was saved: call `fit` again to
            continue.

        Raises:
            HeliosError: if the arguments, the data, a checkpoint or another run in this process do not allow training.
            Exception: any exception of the model, a plug-in or the data module, after it was logged.
        """
        check_parts(model, datamodule)
        check_training(model, self._options)
        with self._exclusive(Phase.TRAINING, model):
            self._trained = None  # The result of a failed run cannot be tested.
            result = self._run(Phase.TRAINING, model, datamodule)
            self._trained = model, result.trained_state
            return result.is_finished

    def test(self, model: Model, datamodule: DataModule) -> bool:
        """Test a model as `fit` left it.

        A model that this trainer has just trained is tested as it is, including the changes of `on_training_end`. Any
        other model is tested with the state of its newest checkpoint, or, without one, after `load_for_testing`.

        Args:
            model: the model to test.
            datamodule: the data module.

        Returns:
            True.

        Raises:
            HeliosError: if the arguments, the data or a checkpoint do not allow testing.
            Exception: any exception of the model, a plug-in or the data module, after it was logged.
        """
        check_parts(model, datamodule)
        with self._exclusive(Phase.TESTING, model):
            trained_state = None
            if self._trained is not None and self._trained[0] is model:
                trained_state = self._trained[1]
                if trained_state is None and self._launcher.trains_here:
                    trained_state = PartStates(model, self._plugins, datamodule).collect()
            return self._run(Phase.TESTING, model, datamodule, trained_state).is_finished

    def _exclusive(self, phase: Phase, model: Model) -> contextlib.AbstractContextManager[None]:
        return exclusive(self, phase, model.save_name, trains_here=self._launcher.trains_here)

    def _run(
        self, phase: Phase, model: Model, datamodule: DataModule, trained_state: dict[str, Any] | None = None
    ) -> Result:
        self._model, self._datamodule = model, datamodule
        self._plugins.ensure_no_conflict()
        control_flow = self._train_exceptions if phase is Phase.TRAINING else self._test_exceptions
        task = Task(
            self,
            self._options,
            model=model,
            datamodule=datamodule,
            plugins=self._plugins,
            phase=phase,
            control_flow=control_flow,
            trained_state=trained_state,
        )
        check_group(self._launcher)
        return self._launcher.launch(task)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a rank's trainer, which launches nothing."""
        return {**vars(self), "_launcher": RankLauncher(), "_queue": None, "_trained": None}
