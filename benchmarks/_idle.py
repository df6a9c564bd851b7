"""A model and data that do nothing, so that nothing hides what is done around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helios import DataModule, Model

if TYPE_CHECKING:
    from helios import TrainingState


class Idle(Model):
    """Does nothing in its step."""

    def setup(self, fast_init: bool = False) -> None:
        """Have nothing to train."""

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Do nothing."""


class Ready(DataModule):
    """Batches that are ready."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self._batches = batches

    def setup(self) -> None:
        """Make nothing."""

    def train_dataloader(self) -> Any:
        """Return the list."""
        return self._batches, None
