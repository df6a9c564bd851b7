"""What a training or evaluation loop needs of its data."""

from __future__ import annotations

import abc
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from helios.errors import CheckpointMismatchError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class BatchSource(abc.ABC):
    """The batches of one data loader, epoch by epoch.

    Attributes:
        description: the entries of the data in a checkpoint's passport; see `describe_loader`.
    """

    description: Mapping[str, Any] = MappingProxyType({})

    @abc.abstractmethod
    def batches_per_epoch(self) -> int | None:
        """Return the number of batches of a whole epoch on this rank, `None` if it is unknown."""

    @abc.abstractmethod
    def batches_at_end(self) -> int | None:
        """Return how many batches are done at the end of the epoch of the last `iterate`, `None` if it is unknown.

        This differs from `batches_per_epoch` in an epoch that was resumed with another number of ranks or another batch
        size: the batches before and after the resume then have different sizes.
        """

    def check_end(self, done: int, what: str) -> None:
        """Check, when there are no more batches, that the epoch is complete.

        Args:
            done: batches of it that are done.
            what: the name of the epoch in the message.

        Raises:
            TrainingError: if batches are missing.
        """
        end = self.batches_at_end()
        if end is not None and done < end:
            raise TrainingError(
                f"{what} has ended after {done} of {end} batches, though nothing has failed: either the sampler yields "
                "fewer indices than its __len__ says, or something that the data loader calls has raised "
                "StopIteration, which ends a loop without an error"
            )

    @abc.abstractmethod
    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return an iterator over the remaining batches of an epoch.

        Args:
            epoch: the epoch, from 0.
            start_batch: batches of it that are done: the first one to yield, from 0.
            position: what `position_state(start_batch)` returned in the run that is resumed; `None` or empty at the
                start of an epoch.

        Raises:
            CheckpointMismatchError: if the position belongs to other data.
        """

    @abc.abstractmethod
    def position_state(self, done: int) -> dict[str, Any]:
        """Return, as plain data, the position after `done` batches of the epoch; 0 between epochs."""


_KINDS: Final = {"list": "a list of batches", "sampler": "a map-style dataset", "stream": "an iterable dataset"}


def ensure_kind(position: Mapping[str, Any], kind: str) -> None:
    """Check that a position is one in data of this kind: "list", "sampler" or "stream".

    Raises:
        CheckpointMismatchError: if it is not.
    """
    if position["kind"] != kind:
        raise CheckpointMismatchError(
            f"the checkpoint is from the middle of an epoch over {_KINDS[position['kind']]}, but the data is "
            f"{_KINDS[kind]} now: resume with the same data, or from a checkpoint at the end of an epoch"
        )


def ensure_size(saved: int, size: int, unit: str) -> None:
    """Check that the data has the size that it had when a position was saved.

    Args:
        saved: the size then.
        size: the size now.
        unit: what the sizes count, in the plural.

    Raises:
        CheckpointMismatchError: if the two differ.
    """
    if saved != size:
        raise CheckpointMismatchError(
            f"the checkpoint is from the middle of an epoch over {saved} {unit}, but there are {size} now: resume with "
            "the same data, or from a checkpoint at the end of an epoch"
        )
