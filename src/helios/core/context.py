"""What models, data modules and plug-ins can read from the trainer of their run, and the mixin that stores it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import torch

from helios.errors import NotRunningError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

T = TypeVar("T")


class PluginLookup(Protocol):
    """A table of plug-ins, for code that only reads it."""

    @overload
    def __getitem__(self, key: type[T]) -> T: ...
    @overload
    def __getitem__(self, key: str | int) -> Any: ...
    def __contains__(self, key: object) -> bool:
        """Whether there is a plug-in with this id, or of this class."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids, in the order of registration."""
        ...

    def __len__(self) -> int:
        """Return the number of plug-ins."""
        ...


class RunContext(Protocol):
    """The members of a trainer that models, data modules and plug-ins use."""

    @property
    def plugins(self) -> PluginLookup:
        """The plug-ins of the run."""
        ...

    @property
    def queue(self) -> Any:
        """The queue by which other processes that train return results; `None` if training runs in this process."""
        ...

    @property
    def model(self) -> Any:
        """The model that is trained or tested."""
        ...

    @property
    def datamodule(self) -> Any:
        """The data module of the run."""
        ...

    @property
    def rank(self) -> int:
        """The rank among all processes."""
        ...

    @property
    def local_rank(self) -> int:
        """The rank among the processes of this machine."""
        ...

    @property
    def gpu_ids(self) -> list[int]:
        """The indices of the GPUs of this machine, `gpu_ids[local_rank]` for each rank; empty on the CPU."""
        ...

    @property
    def random_seed(self) -> int:
        """The seed from which the seeds of all random draws of the run are derived."""
        ...

    @property
    def strategy(self) -> str:
        """How several ranks train a network: "ddp", "fsdp", or the name of a strategy of the user's own."""
        ...

    @property
    def accumulation_steps(self) -> int:
        """Batches per optimizer step."""
        ...


class RunMember:
    """A part of a run: a model, a data module or a plug-in.

    A run sets these properties when it starts. To use a part without a run, in a test for example, set them directly.
    """

    def __init__(self) -> None:
        """Start outside of a run: on the CPU, as rank 0 of 1."""
        self._helios_trainer: RunContext | None = None
        self._helios_is_distributed = False
        self._helios_device = torch.device("cpu")
        self._helios_map_loc: str | dict[str, str] = "cpu"
        self._helios_rank = 0

    @property
    def trainer(self) -> RunContext:
        """The trainer of the run.

        Raises:
            NotRunningError: outside of a run.
        """
        if self._helios_trainer is None:
            name = type(self).__name__
            raise NotRunningError(f"{name}.trainer is only set in a run: call Trainer.fit or .test, or set it first")
        return self._helios_trainer

    @trainer.setter
    def trainer(self, trainer: RunContext | None) -> None:
        self._helios_trainer = trainer

    @property
    def is_distributed(self) -> bool:
        """Whether more than one process trains."""
        return self._helios_is_distributed

    @is_distributed.setter
    def is_distributed(self, is_distributed: bool) -> None:
        self._helios_is_distributed = is_distributed

    @property
    def device(self) -> torch.device:
        """The device that the trainer assigned to this process."""
        return self._helios_device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._helios_device = device

    @property
    def map_loc(self) -> str | dict[str, str]:
        """The `map_location` with which `torch.load` puts tensors on this process's device."""
        return self._helios_map_loc

    @map_loc.setter
    def map_loc(self, map_loc: str | dict[str, str]) -> None:
        self._helios_map_loc = map_loc

    @property
    def rank(self) -> int:
        """The rank among all processes."""
        return self._helios_rank

    @rank.setter
    def rank(self, rank: int) -> None:
        self._helios_rank = rank

    def passport(self) -> Mapping[str, Any]:
        """Return values that must be equal when the run is resumed, by name; empty by default.

        The values are plain data. The trainer calls this once, after `setup`, and saves the result in the passport of
        every checkpoint. Resuming with other values raises an error.
        """
        return {}

    def on_exception(self, error: BaseException) -> None:
        """Run when an exception leaves `fit` or `test` on this rank, before the run is torn down.

        It runs for exceptions that are control flow as well. The exception is raised in any case; one that this hook
        raises is written to the log.

        Args:
            error: the exception.
        """

    def _helios_join_run(self, trainer: RunContext, device: torch.device, *, is_distributed: bool) -> None:
        """Set the properties for a run."""
        self.trainer = trainer
        self.device = device
        self.map_loc = str(device)
        self.rank = trainer.rank
        self.is_distributed = is_distributed
