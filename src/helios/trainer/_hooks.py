"""The hooks of training, a plug-in's with the generators keyed for it alone: by its place and the plug-in's id.

What a plug-in draws then depends on no other plug-in. Nor does it reach the model: the model's hook is keyed after the
plug-ins', or, where it continues the stream of its step, finds the generators as the step has left them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from helios.core.rng import SeedSequence, derive_seed
from helios.model.model import Model
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios.core.state import TrainingState
    from helios.plugins.table import PluginTable
    from helios.trainer._stopping import StopVote

    Hook: TypeAlias = Callable[..., Any]
    KeyedHook: TypeAlias = tuple[Hook, SeedSequence | None]


class StepCalls(NamedTuple):
    """The calls of a step, in order; `None` for what nobody overrides."""

    process: Hook | None
    start: Hook | None
    model_start: Hook | None
    train_step: Hook
    end_batch: Hook
    step_end: Hook | None
    end: Hook | None
    model_end: Hook | None


class Hooks:
    """Binds and calls the hooks of a training, those of the plug-ins before the model's of the same name."""

    def __init__(
        self,
        model: Model,
        plugins: PluginTable,
        *,
        seed: int,
        rank: int,
        seed_fn: Callable[[int], None],
        save_rng_state: Callable[[], Callable[[], None]],
    ) -> None:
        """Take what keys are made of.

        Args:
            model: the model.
            plugins: the plug-ins.
            seed: the seed of the run.
            rank: this process's rank.
            seed_fn: sets the generators to the start of the stream of a seed.
            save_rng_state: saves the states of the generators, and returns a function that restores them.
        """
        self._model = model
        self._plugins = plugins
        self._seed = seed
        self._rank = rank
        self._seed_fn = seed_fn
        self._save_rng_state = save_rng_state

    def bind(self, method: str) -> list[KeyedHook]:
        """Return the hooks of this name, each with its seeds: one for each epoch or step, whichever the hook is of.

        There are none for a plug-in that draws nothing.
        """
        return [
            (hook, self._seeds_of(method, plug_id) if self._plugins[plug_id]._helios_draws() else None)  # noqa: SLF001 - the run's side of Plugin.
            for plug_id, hook in self._plugins.bind(method).items()
        ]

    def _seeds_of(self, method: str, plug_id: str) -> SeedSequence:
        return SeedSequence(self._seed, method, self._rank, plug_id)

    def bind_all(self, vote: StopVote) -> StepCalls:
        """Return what a step of training calls, in order.

        Args:
            vote: whether the model is asked after each batch whether training stops.
        """
        model_end, model_step_end = self._of_model("on_training_batch_end"), self._of_model("on_optimizer_step")
        # Where the model has something after the plug-ins, it continues in the stream of its step.
        continues = model_end is not None or vote.asks_model
        step_end = self.bind_step("on_optimizer_step", restores=continues or model_step_end is not None)
        return StepCalls(
            self.bind_processing(),
            self.bind_step("on_training_batch_start"),
            self._of_model("on_training_batch_start"),
            self._model.train_step,
            self._model._helios_end_batch,  # noqa: SLF001 - a part of the base class that no subclass may lose.
            _chain(step_end, model_step_end),
            self.bind_step("on_training_batch_end", restores=continues),
            model_end,
        )

    def _of_model(self, method: str) -> Hook | None:
        bound: Hook = getattr(self._model, method)
        return bound if overrides(self._model, method, Model) else None

    def bind_processing(self) -> Callable[[Any, TrainingState], Any] | None:
        """Return what lets the plug-ins process a training batch, or `None` if none does."""
        processes, seed_fn = self.bind("process_training_batch"), self._seed_fn

        def run(batch: Any, state: TrainingState) -> Any:
            for process, seeds in processes:
                if seeds is not None:
                    seed_fn(seeds[state.global_iteration - 1])
                batch = process(batch, state)
            return batch

        return run if processes else None

    def bind_step(self, method: str, *, restores: bool = False) -> Callable[[TrainingState], None] | None:
        """Return what runs the hooks of this name, which get the state, or `None` if there are none.

        Args:
            method: the name.
            restores: whether the model continues the stream of its step afterwards. To restore the states of the
                generators costs ten times what keying them does.
        """
        hooks, seed_fn, save_rng_state = self.bind(method), self._seed_fn, self._save_rng_state
        restores = restores and any(seeds is not None for _, seeds in hooks)

        def run(state: TrainingState) -> None:
            restore = save_rng_state() if restores else None
            for hook, seeds in hooks:
                if seeds is not None:
                    seed_fn(seeds[state.global_iteration - 1])
                hook(state)
            if restore is not None:
                restore()

        return run if hooks else None

    def call(self, where: str, method: str, *number: int) -> None:
        """Run a hook that is not part of a step, of the plug-ins and then of the model, each keyed by its place.

        Args:
            where: what the model's hook is keyed by, with the number.
            method: the name of the hook.
            *number: the number of the epoch, which the hook gets, if it is one of an epoch.
        """
        for hook, seeds in self.bind(method):
            if seeds is not None:
                self._seed_fn(seeds[number[0] if number else 0])
            hook(*number)
        self._seed_fn(derive_seed(self._seed, where, self._rank, *number))
        getattr(self._model, method)(*number)

    def notify(self, method: str, number: int, *arguments: Any) -> None:
        """Run a hook that may come between others, of the plug-ins and then of the model; the generators are unchanged.

        Args:
            method: the name of the hook.
            number: what it is keyed by, with its name and the plug-in's id.
            *arguments: what it gets.
        """
        hooks: list[KeyedHook] = self.bind(method)
        if overrides(self._model, method, Model):
            hooks.append((getattr(self._model, method), SeedSequence(self._seed, method, self._rank)))
        if not hooks:
            return
        restore = self._save_rng_state()
        for hook, seeds in hooks:
            if seeds is not None:
                self._seed_fn(seeds[number])
            hook(*arguments)
        restore()


def _chain(first: Hook | None, second: Hook | None) -> Hook | None:
    if first is None or second is None:
        return first or second
    return lambda state: (first(state), second(state))
