"""What a trainer tells about itself, and what may be assigned to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helios.core.conversion import as_exception_types
from helios.core.distributed import get_dist_info, is_using_torchrun
from helios.errors import ArgumentTypeError, NotRunningError
from helios.plugins.table import PluginTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helios.data.datamodule import DataModule
    from helios.model.model import Model
    from helios.plugins.base import Plugin
    from helios.trainer._options import TrainerOptions
    from helios.trainer.launch.launcher import Launcher
    from helios.trainer.launch.rank import RankLauncher


class TrainerProperties:
    """The properties of a trainer. Those of its parts can be set, for tests of a model or a plug-in alone."""

    def __init__(self, options: TrainerOptions, launcher: Launcher | RankLauncher) -> None:
        """Start without parts.

        Args:
            options: the arguments of the trainer.
            launcher: what runs a task.
        """
        self._options = options
        self._launcher = launcher
        self._queue: Any = None
        self._plugins = PluginTable()
        self._model: Model | None = None
        self._datamodule: DataModule | None = None
        self._train_exceptions: list[type[BaseException]] = []
        self._test_exceptions: list[type[BaseException]] = []

    @property
    def plugins(self) -> PluginTable:
        """The plug-ins, by id, class or position."""
        return self._plugins

    @plugins.setter
    def plugins(self, plugins: Mapping[str, Plugin]) -> None:
        if not isinstance(plugins, Mapping):
            raise ArgumentTypeError(f"plugins is {plugins!r}, a {type(plugins).__name__}: pass a mapping of ids")
        table = PluginTable()
        table.update(plugins)
        self._plugins = table

    @property
    def model(self) -> Model:
        """The model of the last call of `fit` or `test`.

        Raises:
            NotRunningError: if there was none.
        """
        if self._model is None:
            raise NotRunningError("the trainer has no model yet: call fit or test")
        return self._model

    @model.setter
    def model(self, model: Model) -> None:
        self._model = model

    @property
    def datamodule(self) -> DataModule:
        """The data module of the last call of `fit` or `test`.

        Raises:
            NotRunningError: if there was none.
        """
        if self._datamodule is None:
            raise NotRunningError("the trainer has no data module yet: call fit or test")
        return self._datamodule

    @datamodule.setter
    def datamodule(self, datamodule: DataModule) -> None:
        self._datamodule = datamodule

    @property
    def queue(self) -> Any:
        """The queue from ranks to the calling process; `None` when the calling process trains."""
        return self._launcher.queue if self._queue is None else self._queue

    @queue.setter
    def queue(self, queue: Any) -> None:
        self._queue = queue

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

        In a process whose `fit` trains in other processes, they are the GPUs of these processes.
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
        """The types of exceptions that `fit` raises without logging them, because they are control flow."""
        return self._train_exceptions

    @train_exceptions.setter
    def train_exceptions(self, exceptions: Sequence[type[BaseException]]) -> None:
        self._train_exceptions = as_exception_types(exceptions)

    @property
    def test_exceptions(self) -> list[type[BaseException]]:
        """The types of exceptions that `test` raises without logging them, because they are control flow."""
        return self._test_exceptions

    @test_exceptions.setter
    def test_exceptions(self, exceptions: Sequence[type[BaseException]]) -> None:
        self._test_exceptions = as_exception_types(exceptions)
