"""One process's part of a run: its environment, its parts, and what is undone when it ends."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from helios.core.distributed import get_dist_info, is_dist_active
from helios.core.environment import kernel_choice
from helios.core.logging import get_root_logger, logging_session, tensorboard_session
from helios.core.registry import update_all_registries
from helios.core.rng import derive_seed, make_keyer, seed_rngs
from helios.core.state import Phase
from helios.data.feed import BatchFeed, StreamFeed, make_feed
from helios.errors import ConfigurationError
from helios.trainer._checks import check_step
from helios.trainer._evaluation import EvaluationLoop
from helios.trainer._progress import ProgressBar, ProgressDisplay, open_display

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator, Sequence
    from typing import Self

    from helios.core.context import RunContext
    from helios.data.datamodule import DataModule
    from helios.model.model import Model
    from helios.plugins.table import PluginTable
    from helios.trainer._options import TrainerOptions


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
        phase: what is going on.
        control_flow: the types that are no errors; looked at when something is raised, for they may be added late.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, tuple(control_flow)):
            get_root_logger().exception("%s failed", phase.value)
        raise


class Session(contextlib.ExitStack):
    """The run in this process. Entering it gets everything ready; leaving it undoes that, however the run ended."""

    def __init__(
        self,
        trainer: RunContext,
        options: TrainerOptions,
        *,
        model: Model,
        datamodule: DataModule,
        plugins: PluginTable,
        phase: Phase,
    ) -> None:
        """Take the parts.

        Args:
            trainer: what the parts see of the run.
            options: the arguments of the trainer.
            model: the model.
            datamodule: where the data comes from.
            plugins: the plug-ins.
            phase: training or testing.
        """
        super().__init__()
        self._trainer = trainer
        self.options = options
        self.model = model
        self.datamodule = datamodule
        self.plugins = plugins
        self._phase = phase
        self.device = options.device
        self.rank = get_dist_info().rank
        self.key = make_keyer(self.device)
        self.display: ProgressDisplay | None = None
        self.log = get_root_logger()

    def __enter__(self) -> Self:
        """Open the logs."""
        super().__enter__()
        self.enter_context(open_log(self.options, self.rank))
        return self

    def set_up(self) -> None:
        """Set up torch, the plug-ins, the data and the model, in this order."""
        options = self.options
        if options.src_root is not None:
            update_all_registries(options.src_root, import_prefix=options.import_prefix)
        if options.enable_tensorboard and options.run_path is not None:
            self.enter_context(tensorboard_session(options.run_path / options.run_name, self.rank))
        if options.enable_progress_bar and self.rank == 0:
            self.display = open_display()
            self.callback(self.display.close)
        self.enter_context(
            kernel_choice(deterministic=options.enable_deterministic, benchmark=options.enable_cudnn_benchmark)
        )
        seed_rngs(options.seed)
        for part in (*self.plugins.values(), self.datamodule, self.model):
            part._join_run(self._trainer, self.device, is_distributed=is_dist_active())  # noqa: SLF001 - the run's side of RunMember.
        for plugin in self.plugins.values():
            plugin.setup()
        self.plugins.ensure_no_conflict()  # Again: a flag may have been set since the plug-in was added.
        self.callback(self._tear_down)
        self.datamodule.setup()
        # Keyed alike on every rank, and by nothing that came before: other data or plug-ins leave the weights alone.
        self.key(derive_seed(options.seed, "setup"))
        self.model.setup(fast_init=self._phase is Phase.TESTING)
        self.model._attribute_states.mark()  # noqa: SLF001 - what changes from here on is state.

    def _tear_down(self) -> None:
        with report_errors(self._phase, ()):
            self.datamodule.teardown()

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

    def open_training_feed(self) -> BatchFeed:
        """Return the batches to train on.

        Raises:
            ConfigurationError: if there are none.
        """
        loader = self.datamodule.train_dataloader()
        if loader is None:
            raise ConfigurationError(
                f"{type(self.datamodule).__name__} has nothing to train on: set _train_dataset in setup"
            )
        feed = make_feed(*loader)
        if isinstance(feed, StreamFeed):
            feed.announce(self.log)
        return feed

    def open_evaluation(self, phase: Phase) -> EvaluationLoop:
        """Return what validates or tests.

        Raises:
            ConfigurationError: if the model has no step for it, or the data module no data.
        """
        check_step(self.model, phase)
        datamodule = self.datamodule
        loader = datamodule.valid_dataloader() if phase is Phase.VALIDATION else datamodule.test_dataloader()
        if loader is None:
            name = "_valid_dataset" if phase is Phase.VALIDATION else "_test_dataset"
            raise ConfigurationError(f"{type(datamodule).__name__} has no data for {phase.value}: set {name} in setup")
        return EvaluationLoop(
            phase,
            model=self.model,
            plugins=self.plugins,
            feed=make_feed(*loader),
            key=self.key,
            seed=self.options.seed,
            rank=self.rank,
            display=self.display,
        )
