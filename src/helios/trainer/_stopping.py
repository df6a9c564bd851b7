"""Whether the model or a plug-in stops training, decided by a vote of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios.core.logging import get_root_logger
from helios.errors import TrainingError
from helios.model.model import Model
from helios.plugins.base import Plugin
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helios.core.state import TrainingState
    from helios.plugins.claims import StopRequest
    from helios.plugins.table import PluginTable
    from helios.ranks.host_group import HostGroup


class StopVote:
    """Asks the model and the plug-ins whether training stops.

    If one rank wants to stop, all ranks stop: they agree in one collective over their hosts. If no answer can have
    changed since the last vote, and nothing else is due, there is no collective.

    Attributes:
        asks_model: whether the model overrides `should_training_stop`.
        may_stop: whether the model or a plug-in overrides it.
        requests: requests that stop training after the current batch. With several ranks it is always empty: the
            other ranks do not know of a request, so it waits for the next vote.
    """

    def __init__(
        self,
        model: Model,
        plugins: PluginTable,
        host_group: HostGroup,
        save_rng_state: Callable[[], Callable[[], None]],
    ) -> None:
        """Find out who may end training.

        Args:
            model: the model.
            plugins: the plug-ins, which are asked before it.
            host_group: what the ranks agree through.
            save_rng_state: saves the states of the generators, and returns a function that restores them.
        """
        asked = [plugin for plugin in plugins.values() if overrides(plugin, "should_training_stop", Plugin)]
        self._host_group = host_group
        self._questions = [(plugin.should_training_stop, plugin.stop_is_final) for plugin in asked]
        self._news: list[Callable[[], bool]] = [plugin.has_stop_news for plugin in asked]
        self.asks_model = overrides(model, "should_training_stop", Model)
        self._model = model
        # The model continues in the stream of its step, and draws what it would draw without a plug-in.
        restores = self.asks_model and any(plugin._helios_draws() for plugin in asked)  # noqa: SLF001 - the run's side of Plugin.
        self._save_rng_state = save_rng_state if restores else None
        if self.asks_model:
            self._news.append(lambda: True)
        self.may_stop = bool(self._news)
        self._requests: list[StopRequest] = []
        for plugin in plugins.values():
            self._requests += plugin._helios_stop_requests  # noqa: SLF001 - the run's side of Plugin: made in `setup`.
            plugin._helios_stop_requests = self._requests  # noqa: SLF001 - as above.
        self.requests: Sequence[StopRequest] = self._requests if host_group.world_size == 1 else ()

    def has_news(self) -> bool:
        """Return whether an answer may have changed since the last vote."""
        answers = [has_news() for has_news in self._news]  # All are called, because a plug-in may count the calls.
        return any(answers)

    def ask(self, state: TrainingState) -> tuple[bool, bool]:
        """Ask the plug-ins and then the model, on all ranks.

        Returns:
            Whether training stops for good, and whether it stops so that the next `fit` continues it.

        Raises:
            TrainingError: if the ranks are at different positions.
        """
        restore = None if self._save_rng_state is None else self._save_rng_state()
        answers = [is_final for question, is_final in self._questions if question()]
        if restore is not None:
            restore()
        if self.asks_model and self._model.should_training_stop():
            answers.append(True)
        for request in self._requests:
            get_root_logger().info("plug-in %r requests that training stops: %s", request.plug_id, request.reason)
            answers.append(request.is_final)
        self._requests.clear()
        # If an epoch ends between two batches, there are two positions.
        place = 2 * state.global_iteration + (not state.is_epoch_in_progress)
        final, for_now, last, first = self._host_group.all_reduce_max(any(answers), not all(answers), place, -place)
        if last != -first:
            raise TrainingError(
                f"one rank has trained {-first // 2} batches and another {last // 2}: all must be given equally many, "
                "and all must validate, save and report to a trial after the same ones"
            )
        return bool(final), bool(for_now)
