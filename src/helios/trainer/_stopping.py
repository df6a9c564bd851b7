"""Whether the model or a plug-in ends training: asked on every rank, and answered alike on all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios.errors import TrainingError
from helios.model.model import Model
from helios.plugins.plugin import Plugin
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios.core.state import TrainingState
    from helios.plugins.table import PluginTable
    from helios.ranks.host_group import HostGroup


class StopVote:
    """Asks everybody who may end training.

    What one rank wants, all do: at a boundary where there is something to ask, the ranks agree, in one message around
    their hosts. Where nobody can have changed his mind, and nothing else is due, there is none.
    """

    def __init__(self, model: Model, plugins: PluginTable, host_group: HostGroup) -> None:
        """Find out who may end training."""
        asked = [plugin for plugin in plugins.values() if overrides(plugin, "should_training_stop", Plugin)]
        self._host_group = host_group
        self._questions = [(plugin.should_training_stop, plugin._stops_for_good) for plugin in asked]  # noqa: SLF001 - the run's side of Plugin.
        self._news: list[Callable[[], bool]] = [plugin._has_stop_news for plugin in asked]  # noqa: SLF001 - as above.
        self.asks_model = overrides(model, "should_training_stop", Model)
        if self.asks_model:
            # First, so that it draws what it would draw without a plug-in.
            self._questions.insert(0, (model.should_training_stop, True))
            self._news.append(lambda: True)
        self.may_stop = bool(self._questions)

    def has_news(self) -> bool:
        """Whether an answer may have changed since the last vote."""
        answers = [has_news() for has_news in self._news]  # Every one is asked: it counts from there.
        return any(answers)

    def ask(self, state: TrainingState) -> tuple[bool, bool]:
        """Ask everybody, on all ranks.

        Returns:
            Whether training shall end for good, and whether it shall be given up for now.

        Raises:
            TrainingError: if the ranks are not at the same place.
        """
        answers = [for_good for question, for_good in self._questions if question()]
        # Between two batches there are two boundaries, if an epoch ends there.
        place = 2 * state.global_iteration + (not state.is_epoch_in_progress)
        for_good, for_now, last, first = self._host_group.all_reduce_max(any(answers), not all(answers), place, -place)
        if last != -first:
            raise TrainingError(
                f"one rank has trained {-first // 2} batches and another {last // 2}: all must be given equally many, "
                "and all must validate, save and report to a trial after the same ones"
            )
        return bool(for_good), bool(for_now)
