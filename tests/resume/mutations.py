"""Known ways to break exactness, each of which the kill campaign must notice.

A mutation is applied in the process that trains, and nowhere else.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from helios.core.state import TrainingState
from helios.data.sources import SamplerSource
from helios.model.model import Model
from helios.parallel import gradients
from helios.trainer import _saving
from helios.trainer._loop import TrainingLoop
from helios.trainer._schedule import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable


def _epoch_from_a_moved_counter() -> None:
    """The epoch's order is indexed by a counter that has moved on by the time of a resume."""
    TrainingState.completed_epochs = property(lambda state: state.global_epoch)  # type: ignore[assignment,method-assign]  # the point


def _saved_before_epoch_end() -> None:
    """The checkpoint at the end of an epoch is written before the hooks of the epoch's end."""
    original = TrainingLoop._end_epoch

    def save_first(self: Any) -> None:
        dataset_iter, self._state.dataset_iter = self._state.dataset_iter, 0
        self._write(self._save, is_last=False)
        self._state.dataset_iter = dataset_iter
        save, self._save = self._save, lambda *_, **__: None
        original(self)
        self._pending = save

    after = TrainingLoop._after_epoch

    def after_epoch(self: Any) -> Any:
        outcome = after(self)
        self._save = self._pending
        return outcome

    TrainingLoop._end_epoch = save_first  # type: ignore[method-assign]  # the point
    TrainingLoop._after_epoch = after_epoch  # type: ignore[method-assign]  # the point


def _position_kept() -> None:
    """The position of a resumed epoch is kept for the epochs after it."""
    original = SamplerSource.iterate
    kept: dict[str, Any] = {}

    def remember(self: Any, epoch: int, start_batch: int = 0, position: Any = None) -> Any:
        if position:
            kept.update(position)
        return original(self, epoch, start_batch, kept or None)

    SamplerSource.iterate = remember  # type: ignore[method-assign]  # the point


def _steps_not_keyed() -> None:
    """Draws in a training step come from wherever the generators happen to be."""
    original = TrainingLoop.__init__

    def without_keys(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "seed_fn": lambda _seed: None})

    TrainingLoop.__init__ = without_keys  # type: ignore[method-assign]  # the point


def _gradients_lost() -> None:
    """A checkpoint in the middle of an accumulation leaves the gradients out."""
    _saving.collect_gradients = lambda *_: {}  # type: ignore[attr-defined]  # the point
    assert gradients


def _gradients_by_the_trainers_count() -> None:
    """A checkpoint has gradients only in the middle of an accumulation that the trainer knows of."""
    original = _saving.Saver.collect

    def collect(self: Any, training: Any) -> dict[str, Any]:
        data = original(self, training)
        is_accumulating = self._state.global_iteration % self._session.options.accumulation_steps != 0
        return data if is_accumulating else {**data, "gradients": {}}

    _saving.Saver.collect = collect  # type: ignore[method-assign]  # the point


def _running_losses_lost() -> None:
    """The model's running losses start at nothing after a resume."""
    original = Model._helios_load_base_state

    def forget(self: Any, state: dict[str, Any]) -> None:
        original(self, {**state, "attributes": {**state["attributes"], "_running_losses": {}}})

    Model._helios_load_base_state = forget  # type: ignore[method-assign]  # the point


def _one_step_more() -> None:
    """A run that is complete trains one step more when it is resumed."""
    original = TrainingLoop._outcome
    calls = itertools.count()

    def late(self: Any, *, ask: bool = False) -> Any:
        is_first, outcome = next(calls) == 0, original(self, ask=ask)
        return Outcome.CONTINUE if is_first and outcome is Outcome.COMPLETE else outcome

    TrainingLoop._outcome = late  # type: ignore[method-assign]  # the point


MUTATIONS: dict[str, Callable[[], None]] = {
    "epoch from a moved counter": _epoch_from_a_moved_counter,
    "saved before epoch end": _saved_before_epoch_end,
    "position kept": _position_kept,
    "steps not keyed": _steps_not_keyed,
    "gradients lost": _gradients_lost,
    "gradients by the trainer's count": _gradients_by_the_trainers_count,
    "running losses lost": _running_losses_lost,
    "one step more": _one_step_more,
}


def apply_mutation(name: str) -> None:
    """Break the library in this process."""
    MUTATIONS[name]()
