"""One process's part of a run: its environment, its parts, and what is undone when it ends."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from helios.checkpoint.names import CheckpointName
from helios.checkpoint.store import CheckpointStore
from helios.core.discovery import update_all_registries
from helios.core.environment import deterministic_kernels
from helios.core.logging import get_root_logger, logging_session, tensorboard_session
from helios.core.rng import derive_seed, make_rng_state_saver, make_seed_fn, seed_rngs, training_on
from helios.core.state import Phase
from helios.data.sources import BatchSource, StreamSource, make_source
from helios.errors import ConfigurationError, RankFailedError
from helios.parallel.strategies import SingleProcessStrategy
from helios.trainer._evaluation import EvaluationLoop
from helios.trainer._progress import ProgressBar, ProgressDisplay, open_display
from helios.trainer._run_dir import choose_run_dir
from helios.trainer._states import PartStates

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from helios.ranks.host_group import HostGroup
    from helios.trainer._options import TrainerOptions
    from helios.trainer._task import Task


def open_log(options: TrainerOptions, rank: int) -> contextlib.AbstractContextManager[logging.Logger]:
    """Give the log its console and its file while the context lasts."""
    log_file = None
    if options.enable_file_logging and options.log_path is not None:
        log_file = options.log_path / f"{options.run_name or 'helios'}.log"
    return logging_session(log_file=log_file, capture_warnings=options.capture_warnings, rank=rank)


@contextlib.contextmanager
def report_errors(phase: Phase, control_flow: Sequence[type[BaseException]]) -> Iterator[None]:
    """Write an error to the log on its way out.

    Args:
        phase: what is in progress.
        control_flow: the types that are no errors; looked at when something is raised, for they may be added late.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RankFailedError):
            get_root_logger().error("%s failed: %s", phase.value, error)
        elif not isinstance(error, tuple(control_flow)):
            get_root_logger().exception("%s failed", phase.value)
        raise


class Session(contextlib.ExitStack):
    """The run in this process. Entering it gets everything ready; leaving it undoes that, however the run ended."""

    def __init__(self, task: Task, host_group: HostGroup) -> None:
        """Take the parts.

        Args:
            task: what is run, with what.
            host_group: what the ranks agree through.
        """
        super().__init__()
        self._trainer = task.trainer
        self._phase = task.phase
        self.options = task.options
        self.model = task.model
        self.datamodule = task.datamodule
        self.plugins = task.plugins
        self.host_group = host_group
        self.device = task.options.device_of(host_group.info)
        self.rank = host_group.rank
        self.seed_fn, self.save_rng_state = make_seed_fn(self.device), make_rng_state_saver(self.device)
        self.strategy = task.options.strategy if host_group.world_size > 1 else SingleProcessStrategy()
        # The device mesh that sharded tensors of a checkpoint are loaded on; None to load them unsharded.
        self.mesh = self.strategy.make_mesh(self.device)
        self.states = PartStates(self.model, self.plugins, self.datamodule)
        self.display: ProgressDisplay | None = None
        self._store: CheckpointStore | None = None
        self._is_set_up = False
        self.log = get_root_logger()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Tell the other ranks of an error before anything is undone, which may take long, and undo it."""
        if error is not None:
            self.host_group.announce(error)
            self._tell_of(error)
        return super().__exit__(kind, error, traceback)

    def _tell_of(self, error: BaseException) -> None:
        """Run the hooks `on_exception`, if the parts have been set up; what they raise is logged."""
        for part in (*self.plugins.values(), self.datamodule, self.model) if self._is_set_up else ():
            try:
                part.on_exception(error)
            except Exception:  # The error that is being raised must not be hidden by this one.
                self.log.exception("%s.on_exception failed", type(part).__name__)

    def own_store(self) -> CheckpointStore | None:
        """Return the folder of the model's checkpoints, which the run owns from now on; `None` if it writes none.

        Called before anything is set up: a second run must not take the memory of the GPU that the first one is on.

        Raises:
            FolderInUseError: if another run owns it.
            CheckpointError: if nothing can be written there.
        """
        root, save_name = self.options.chkpt_root, self.model.save_name
        if root is not None and (self._store is None or self._store.folder != root / save_name):
            self._store = CheckpointStore(root, save_name)
            if self.rank == 0:
                self._store.check_name(CheckpointName(save_name, 0, 0))
                self.enter_context(self._store.owned())
        return self._store

    def _has_checkpoint(self) -> bool:
        return self._store is not None and self._store.has_any()

    def set_up(self) -> None:
        """Set up torch, the plug-ins, the data and the model, in this order."""
        options = self.options
        if options.src_root is not None:
            update_all_registries(options.src_root, import_prefix=options.import_prefix)
        if options.enable_tensorboard and options.run_path is not None:
            is_new = self._phase is Phase.TRAINING and not self._has_checkpoint()
            run_dir = choose_run_dir(options.run_path / options.run_name, self.model.save_name, is_new=is_new)
            self.enter_context(tensorboard_session(run_dir, self.rank))
        if options.enable_progress_bar and self.rank == 0:
            self.display = open_display()
            self.callback(self.display.close)
        self.enter_context(
            deterministic_kernels(deterministic=options.enable_deterministic, benchmark=options.enable_cudnn_benchmark)
        )
        self.enter_context(training_on(self.device))
        seed_rngs(options.seed)
        self.states.note_before_setup()
        for part in (*self.plugins.values(), self.datamodule, self.model):
            part._helios_join_run(self._trainer, self.device, is_distributed=self.host_group.world_size > 1)  # noqa: SLF001 - the run's side of RunMember.
        self.model._helios_strategy = self.strategy  # noqa: SLF001 - the run's side of Model.
        # Each part is keyed alike on every rank, and by nothing that came before: a plug-in that draws on a single rank
        # leaves the other plug-ins, how data are split, and the weights as they are.
        for plugin in self.plugins.values():
            self.seed_fn(derive_seed(options.seed, "setup", plugin.plug_id))
            plugin.setup()
        self.plugins.ensure_no_conflict()  # Again: a flag may have been set since the plug-in was added.
        self.callback(self.datamodule.teardown)
        seed_rngs(options.seed)
        self.datamodule.setup()
        self.seed_fn(derive_seed(options.seed, "setup"))
        self.model.setup(fast_init=self._phase is Phase.TESTING)
        self.states.mark(self.device)
        self.callback(self.states.leave)
        self._is_set_up = True

    @contextlib.contextmanager
    def open_bar(self, title: str, done: int) -> Iterator[ProgressBar | None]:
        """Show a bar in the unit of training, if bars are wanted."""
        options = self.options
        if self.display is None:
            yield None
            return
        bar = self.display.open(title, options.train_unit.value, options.total_steps, done)
        try:
            yield bar
        finally:
            bar.close()

    def open_training_source(self) -> BatchSource:
        """Return the batches to train on.

        Raises:
            ConfigurationError: if there are none.
        """
        loader = self.datamodule.train_dataloader()
        if loader is None:
            raise ConfigurationError(
                f"{type(self.datamodule).__name__} has nothing to train on: set _train_dataset in setup"
            )
        source = make_source(*loader, seed=self.options.seed)
        if isinstance(source, StreamSource):
            source.announce(self.log)
        return source

    def open_evaluation(self, phase: Phase) -> EvaluationLoop | None:
        """Return what validates or tests; `None`, with a warning, if there is no data to test on.

        Raises:
            ConfigurationError: if there is no data to validate on.
        """
        datamodule = self.datamodule
        loader = datamodule.valid_dataloader() if phase is Phase.VALIDATION else datamodule.test_dataloader()
        if loader is None:
            name = "_valid_dataset" if phase is Phase.VALIDATION else "_test_dataset"
            message = f"{type(datamodule).__name__} has no data for {phase.value}: set {name} in setup"
            if phase is Phase.VALIDATION:
                raise ConfigurationError(f"{message}, or leave out valid_frequency")
            self.log.warning("%s; nothing is tested", message)
            return None
        return EvaluationLoop(
            phase,
            model=self.model,
            plugins=self.plugins,
            source=make_source(*loader, phase.value, self.options.seed),
            seed_fn=self.seed_fn,
            save_rng_state=self.save_rng_state,
            seed=self.options.seed,
            host_group=self.host_group,
            strategy=self.strategy,
            display=self.display,
        )
