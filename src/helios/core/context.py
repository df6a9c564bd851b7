"""What a run tells its parts, and the mixin that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import torch

from helios.errors import NotRunningError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

T = TypeVar("T")


class PluginLookup(Protocol):
    """The face of a plug-in table towards those who only read it."""

    @overload
    def __getitem__(self, key: type[T]) -> T: ...
    @overload
    def __getitem__(self, key: str | int) -> Any: ...
    def __contains__(self, key: object) -> bool:
        """Whether there is a plug-in of this id, or of this class."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids, in the order of registration."""
        ...

    def __len__(self) -> int:
        """Return the number of plug-ins."""
        ...


class RunContext(Protocol):
    """A trainer, as models, data modules and plug-ins see it."""

    @property
    def plugins(self) -> PluginLookup:
        """The plug-ins of the run."""
        ...

    @property
    def queue(self) -> Any:
        """The way home for results when training runs in other processes; `None` when it does not."""
        ...

    @property
    def model(self) -> Any:
        """The model in training or under test."""
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
        """The GPUs of this machine's ranks, that of a rank at `gpu_ids[local_rank]`; empty on the CPU."""
        ...

    @property
    def random_seed(self) -> int:
        """The seed from which every draw of the run derives."""
        ...

    @property
    def strategy(self) -> str:
        """How networks are trained by several ranks: "ddp" or "fsdp"."""
        ...

    @property
    def accumulation_steps(self) -> int:
        """Batches per optimizer step."""
        ...


class RunMember:
    """A part of a run: a model, a data module or a plug-in.

    A run sets these properties when it starts. They can also be set by hand, to use a part alone (in a test, say).
    """

    def __init__(self) -> None:
        """Start outside of any run: on the CPU, as the only process."""
        self._trainer: RunContext | None = None
        self._is_distributed = False
        self._device = torch.device("cpu")
        self._map_loc: str | dict[str, str] = "cpu"
        self._rank = 0

    @property
    def trainer(self) -> RunContext:
        """The trainer of the run.

        Raises:
            NotRunningError: outside of a run.
        """
        if self._trainer is None:
            name = type(self).__name__
            raise NotRunningError(f"{name}.trainer is only there in a run: call Trainer.fit or .test, or set it first")
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: RunContext | None) -> None:
        self._trainer = trainer

    @property
    def is_distributed(self) -> bool:
        """Whether more than one process trains."""
        return self._is_distributed

    @is_distributed.setter
    def is_distributed(self, is_distributed: bool) -> None:
        self._is_distributed = is_distributed

    @property
    def device(self) -> torch.device:
        """The device that the trainer assigned to this process."""
        return self._device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device

    @property
    def map_loc(self) -> str | dict[str, str]:
        """The `map_location` with which `torch.load` puts tensors on this process's device."""
        return self._map_loc

    @map_loc.setter
    def map_loc(self, map_loc: str | dict[str, str]) -> None:
        self._map_loc = map_loc

    @property
    def rank(self) -> int:
        """The rank among all processes."""
        return self._rank

    @rank.setter
    def rank(self, rank: int) -> None:
        self._rank = rank

    def passport(self) -> Mapping[str, Any]:
        """Return what must be the same when the run is resumed: names and plain values; nothing by default.

        It is asked once, after `setup`, and kept in every checkpoint. A run whose values differ is refused.
        """
        return {}

    def _join_run(self, trainer: RunContext, device: torch.device, *, is_distributed: bool) -> None:
        """Take over what the run has decided."""
        self.trainer = trainer
        self.device = device
        self.map_loc = str(device)
        self.rank = trainer.rank
        self.is_distributed = is_distributed
