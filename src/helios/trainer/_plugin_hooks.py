"""The plug-ins' hooks of training, each with the generators keyed for it alone: by its place and the plug-in's id.

What a plug-in draws then depends on no other plug-in. Nor does it reach the model: the model's hook is keyed after the
plug-ins', or, where it goes on in the stream of its step, finds that stream where it left it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from helios.core.rng import SeedSequence

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios.core.state import TrainingState
    from helios.plugins.table import PluginTable

    KeyedHook: TypeAlias = tuple[Callable[..., Any], SeedSequence | None]


class PluginHooks:
    """Binds the hooks of a training's plug-ins."""

    def __init__(
        self,
        plugins: PluginTable,
        *,
        seed: int,
        rank: int,
        seed_fn: Callable[[int], None],
        save_rng_state: Callable[[], Callable[[], None]],
    ) -> None:
        """Take what keys are made of.

        Args:
            plugins: the plug-ins.
            seed: the seed of the run.
            rank: this process's rank.
            seed_fn: sets the generators to the stream of a seed.
            save_rng_state: notes where the generators are, and returns what puts them back there.
        """
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
            (hook, self._seeds_of(method, plug_id) if self._plugins[plug_id]._draws() else None)  # noqa: SLF001 - the run's side of Plugin.
            for plug_id, hook in self._plugins.bind(method).items()
        ]

    def _seeds_of(self, method: str, plug_id: str) -> SeedSequence:
        return SeedSequence(self._seed, method, self._rank, plug_id)

    def bind_batch_ends(self, *, is_last: bool) -> Callable[[TrainingState], None] | None:
        """Return what runs the hooks after a step, or `None` if there are none.

        Args:
            is_last: whether nothing of the model comes between them and the next key. Going back to where its step has
                left the generators costs ten times what keying does.
        """
        ends, seed_fn, save_rng_state = self.bind("on_training_batch_end"), self._seed_fn, self._save_rng_state
        is_quiet = is_last or all(seeds is None for _, seeds in ends)

        def run(state: TrainingState) -> None:
            restore = None if is_quiet else save_rng_state()
            for hook, seeds in ends:
                if seeds is not None:
                    seed_fn(seeds[state.global_iteration])
                hook(state)
            if restore is not None:
                restore()

        return run if ends else None
