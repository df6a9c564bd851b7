"""The trainer: it wires the parts together and decides nothing by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helios.core.distributed import get_dist_info, is_using_torchrun
from helios.core.environment import read_environment
from helios.core.state import Phase, TrainingUnit
from helios.errors import NotRunningError
from helios.plugins.table import PluginTable
from helios.trainer._checks import check_parts, check_training
from helios.trainer._exclusive import exclusive
from helios.trainer._options import TrainerOptions
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
    from helios.trainer.launch.launcher import Launcher


class Trainer:
    """Trains and tests models.

    A run that has a checkpoint is resumed from it, and ends as if it had never stopped: the same weights, to the bit.

    Args:
        run_name: the name of the run's log file and TensorBoard folder.
        train_unit: what `total_steps` and the frequencies count: "epoch" or "iteration" (an optimizer step).
        total_steps: when training is complete; `float("inf")` to train until something stops it.
        valid_frequency: steps between validations; `None` for none.
        chkpt_frequency: steps between checkpoints; with `None`, one is written at the end and when a signal comes.
        print_frequency: steps between batches at which the model is told to log.
        accumulation_steps: batches per optimizer step.
        enable_cudnn_benchmark: let cuDNN choose the fastest algorithms, at the price of exactness.
        enable_deterministic: use deterministic algorithms only.
        early_stop_cycles: stop after this many validations in a row without an improvement.
        use_cpu: train on the CPU; `None` to do so only where CUDA is not available.
        gpus: the GPUs to train on; `None` for the first, or under `torchrun` for as many as this machine has ranks.
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
        print_banner: say in a few lines what is about to be trained.
        num_processes: CPU processes to train in, over gloo.
        strategy: how several ranks train a network that `Model.wrap` is given: "ddp" (each rank has a copy), "fsdp"
            (each rank has a shard of every parameter), or an instance of `helios.parallel.Strategy`.
        passport: names and plain values that must be the same when the run is resumed: the version of the data, say.
        on_drift: what is done when a run is resumed with other settings than its checkpoint was written with. "refuse"
            refuses those that make it another run (the seed, the length of a dataset, ...) and warns of those that only
            end bit-equality (a version, the number of threads, ...); "strict" refuses all of them, "warn" warns of
            all, "ignore" says nothing. A mapping of names to "refuse", "warn" or "ignore" decides for these names, and
            "refuse" for the others.

    Raises:
        ConfigurationError: if a value is out of range, or two contradict each other (it is a `ValueError`).
        ArgumentTypeError: if a value has the wrong type.
        DeviceUnavailableError: if a GPU is asked for that is not there.
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
        del arguments["self"]
        self._options = TrainerOptions(**arguments)
        self._launcher: Launcher | RankLauncher = select_launcher(read_environment(), self._options)
        self._plugins = PluginTable()
        self._model: Model | None = None
        self._datamodule: DataModule | None = None
        # The model that was trained last, and its state if that is not in this process's object.
        self._trained: tuple[Model, dict[str, Any] | None] | None = None
        self._train_exceptions: list[type[BaseException]] = []
        self._test_exceptions: list[type[BaseException]] = []

    @property
    def plugins(self) -> PluginTable:
        """The plug-ins, by id, class or position."""
        return self._plugins

    @property
    def model(self) -> Model:
        """The model of the last call of `fit` or `test`.

        Raises:
            NotRunningError: if there was none.
        """
        if self._model is None:
            raise NotRunningError("the trainer has no model yet: call fit or test")
        return self._model

    @property
    def datamodule(self) -> DataModule:
        """The data module of the last call of `fit` or `test`.

        Raises:
            NotRunningError: if there was none.
        """
        if self._datamodule is None:
            raise NotRunningError("the trainer has no data module yet: call fit or test")
        return self._datamodule

    @property
    def queue(self) -> Any:
        """The queue from ranks to the calling process; `None` when the calling process trains."""
        return self._launcher.queue

    @property
    def rank(self) -> int:
        """The rank among all processes."""
        return get_dist_info().rank

    @property
    def local_rank(self) -> int:
        """The rank among the processes of this machine."""
        return get_dist_info().local_rank

    @property
    def gpu_ids(self) -> list[int]:
        """The GPUs on which the ranks of this machine train: that of a rank is `gpu_ids[local_rank]`; empty on the CPU.

        In the process that has called `fit` and trains in others, they are those of the others.
        """
        local_ranks = get_dist_info().local_world_size if is_using_torchrun() else self._options.world_size
        return self._options.gpus_of(local_ranks)

    @property
    def random_seed(self) -> int:
        """The seed from which every draw of a run derives."""
        return self._options.seed

    @property
    def strategy(self) -> str:
        """How several ranks train a network: "ddp", "fsdp", or the `name` of the strategy that was given."""
        return self._options.strategy.name

    @property
    def accumulation_steps(self) -> int:
        """Batches per optimizer step."""
        return self._options.accumulation_steps

    @property
    def train_exceptions(self) -> list[type[BaseException]]:
        """The types of exceptions that leave `fit` unlogged, because they are control flow."""
        return self._train_exceptions

    @property
    def test_exceptions(self) -> list[type[BaseException]]:
        """The types of exceptions that leave `test` unlogged, because they are control flow."""
        return self._test_exceptions

    def register_plugin(self, plugin: Plugin) -> None:
        """Add a plug-in; the same as `trainer.plugins[plugin.plug_id] = plugin`.

        Raises:
            DuplicateNameError: if the id is taken by another plug-in.
            PluginConflictError: if it claims what another plug-in holds.
        """
        self._plugins[getattr(plugin, "plug_id", repr(plugin))] = plugin

    def fit(self, model: Model, datamodule: DataModule) -> bool:
        """Train a model, from its newest checkpoint if it has one.

        Args:
            model: what to train.
            datamodule: where the data comes from.

        Returns:
            True when training ran to its end; false when a signal stopped it. Then a checkpoint has been written: call
            `fit` again to continue.

        Raises:
            HeliosError: if the arguments, the data or a checkpoint do not allow training, or another run in this
                process does not.
            Exception: whatever the model, a plug-in or the data module raises, after it was written to the log.
        """
        check_parts(model, datamodule)
        check_training(model, self._options)
        with self._exclusive(Phase.TRAINING, model):
            self._trained = None  # What a run that fails leaves behind is nothing to test.
            result = self._run(Phase.TRAINING, model, datamodule)
            self._trained = model, result.trained_state
            return result.is_finished

    def test(self, model: Model, datamodule: DataModule) -> bool:
        """Test a model as `fit` left it.

        A model that this trainer has just trained is tested as it is, what `on_training_end` has changed included; any
        other as its newest checkpoint has it, or without one after its `load_for_testing`.

        Args:
            model: what to test.
            datamodule: where the data comes from.

        Returns:
            True.

        Raises:
            HeliosError: if the arguments, the data or a checkpoint do not allow testing.
            Exception: whatever the model, a plug-in or the data module raises, after it was written to the log.
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
        """Return what a rank's trainer is made of: it launches nothing."""
        return {**vars(self), "_launcher": RankLauncher(), "_trained": None}
