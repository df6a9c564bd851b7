"""Validation and testing: one loop, for both phases."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.state.details import kept_modes
from helios.checkpoint.state.parts import networks_of
from helios.core.rng import SeedSequence
from helios.core.state import Phase
from helios.model.model import Model
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios.data.sources import BatchSource
    from helios.parallel.strategy import Strategy
    from helios.plugins.table import PluginTable
    from helios.ranks.host_group import HostGroup
    from helios.trainer._progress import ProgressBar, ProgressDisplay

    Hook = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Calls:
    """The methods of the model and the plug-ins that a phase calls, bound; the plug-ins' by id."""

    plugin_starts: dict[str, Hook]
    model_start: Hook | None
    processes: dict[str, Hook]
    step: Hook
    plugin_batch_starts: dict[str, Hook]
    batch_start: Hook | None
    plugin_batch_ends: dict[str, Hook]
    batch_end: Hook | None
    plugin_ends: dict[str, Hook]
    model_end: Hook


def _bind(phase: Phase, model: Model, plugins: PluginTable) -> _Calls:
    def of_model(method: str) -> Hook | None:
        bound: Hook = getattr(model, method)
        return bound if overrides(model, method, Model) else None

    if phase is Phase.VALIDATION:
        return _Calls(
            plugins.bind("on_validation_start"),
            of_model("on_validation_start"),
            plugins.bind("process_validation_batch"),
            model.valid_step,
            plugins.bind("on_validation_batch_start"),
            of_model("on_validation_batch_start"),
            plugins.bind("on_validation_batch_end"),
            of_model("on_validation_batch_end"),
            plugins.bind("on_validation_end"),
            model.on_validation_end,
        )
    return _Calls(
        plugins.bind("on_testing_start"),
        of_model("on_testing_start"),
        plugins.bind("process_testing_batch"),
        model.test_step,
        plugins.bind("on_testing_batch_start"),
        of_model("on_testing_batch_start"),
        plugins.bind("on_testing_batch_end"),
        of_model("on_testing_batch_end"),
        plugins.bind("on_testing_end"),
        model.on_testing_end,
    )


@dataclasses.dataclass(frozen=True)
class _BatchHooks:
    """The plug-ins' hooks of each batch, in order, with their seeds."""

    processes: list[tuple[Hook, SeedSequence | None]]
    starts: list[tuple[Hook, SeedSequence | None]]
    ends: list[tuple[Hook, SeedSequence | None]]


class EvaluationLoop:
    """Runs a model over a dataset without training it.

    Every draw on the way is a function of the seed, the rank, the cycle and the step, and in a plug-in of its id;
    nothing of it reaches training, and nothing that a plug-in draws reaches the model.
    """

    def __init__(
        self,
        phase: Phase,
        *,
        model: Model,
        plugins: PluginTable,
        source: BatchSource,
        seed_fn: Callable[[int], None],
        save_rng_state: Callable[[], Callable[[], None]],
        seed: int,
        host_group: HostGroup,
        strategy: Strategy,
        display: ProgressDisplay | None,
    ) -> None:
        """Bind what is called.

        Args:
            phase: validation or testing.
            model: the model.
            plugins: the plug-ins.
            source: the batches.
            seed_fn: sets the generators to the stream of a seed.
            save_rng_state: saves the states of the generators, and returns a function that restores them.
            seed: the seed of the run.
            host_group: what the ranks agree through.
            strategy: how the ranks train the networks.
            display: where to show a bar, if anywhere.
        """
        self._phase = phase
        self._model = model
        self._calls = _bind(phase, model, plugins)
        self._drawless = {plug_id for plug_id, plugin in plugins.items() if not plugin._helios_draws()}  # noqa: SLF001 - the run's side of Plugin.
        self._source = source
        self.data = source.description
        self._seed_fn = seed_fn
        self._save_rng_state = save_rng_state
        self._seed = seed
        self._rank = host_group.rank
        lengths = host_group.all_gather_object(source.batches_per_epoch())
        # The length of a stream is unknown: that of one rank may end while those of others continue.
        self._is_uneven = None in lengths or len(set(lengths)) > 1
        self._strategy = strategy
        self._display = display

    @torch.no_grad()
    def run(self, cycle: int = 0) -> None:
        """Evaluate once.

        Args:
            cycle: the number of the validation, from 0; the hooks of validation get it.
        """
        is_validation = self._phase is Phase.VALIDATION
        arguments = (cycle,) if is_validation else ()
        calls = self._calls
        place = self._seed, self._phase.value, self._rank, cycle
        seeds = SeedSequence(*place)
        scores = self._model._val_scores if is_validation else self._model._test_scores  # noqa: SLF001 - subclasses use them.
        scores.clear()
        hooks = _BatchHooks(
            processes=self._keyed(calls.processes, *place),
            starts=self._keyed(calls.plugin_batch_starts, *place, "start"),
            ends=self._keyed(calls.plugin_batch_ends, *place, "end"),
        )
        networks = networks_of(self._model).values()
        with kept_modes(networks) if is_validation else contextlib.nullcontext():
            self._model.eval()  # Before the hooks, which may put a part back into training mode.
            for plug_id, hook in calls.plugin_starts.items():
                self._seed_fn(SeedSequence(*place, plug_id)[-1])
                hook(*arguments)
            self._seed_fn(seeds[-1])
            if calls.model_start is not None:  # The base class's would clear what the plug-ins have put in.
                calls.model_start(*arguments)
            with self._strategy.local_forward(networks, is_uneven=self._is_uneven):
                steps = self._run_batches(seeds, hooks)
        if is_validation and overrides(self._model, "train", Model):
            self._model.train()
        for plug_id, hook in calls.plugin_ends.items():
            self._seed_fn(SeedSequence(*place, plug_id)[steps])
            hook(*arguments)
        self._seed_fn(seeds[steps])
        calls.model_end(*arguments)

    def _keyed(self, hooks: dict[str, Hook], *place: Any) -> list[tuple[Hook, SeedSequence | None]]:
        """Return hooks with their seeds; there are none for a plug-in that draws nothing."""
        return [
            (hook, None if plug_id in self._drawless else SeedSequence(*place, plug_id))
            for plug_id, hook in hooks.items()
        ]

    def _run_batches(self, seeds: SeedSequence, hooks: _BatchHooks) -> int:
        total = self._source.batches_per_epoch()
        bar = None if self._display is None else self._display.open(self._phase.value.capitalize(), "batch", total, 0)
        with contextlib.nullcontext() if bar is None else contextlib.closing(bar):
            return self._run_steps(seeds, hooks, bar)

    def _run_steps(self, seeds: SeedSequence, hooks: _BatchHooks, bar: ProgressBar | None) -> int:
        calls, step = self._calls, 0
        # Always epoch 0: a validation sees the same samples, drawn alike, whenever it runs.
        for batch in self._source.iterate(0):
            for process, own_seeds in hooks.processes:
                if own_seeds is not None:
                    self._seed_fn(own_seeds[step])
                batch = process(batch, step)  # noqa: PLW2901 - what a plug-in returns takes the batch's place.
            self._call(hooks.starts, step)
            self._seed_fn(seeds[step])
            if calls.batch_start is not None:
                calls.batch_start(step)
            calls.step(batch, step)
            if hooks.ends:
                # The model's own hook continues in the stream of its step.
                restore = self._save_rng_state()
                self._call(hooks.ends, step)
                restore()
            if calls.batch_end is not None:
                calls.batch_end(step)
            step += 1
            if bar is not None:
                bar.update(1)
        self._source.check_end(step, f"the {self._phase.value}")
        return step

    def _call(self, hooks: list[tuple[Hook, SeedSequence | None]], step: int) -> None:
        for hook, seeds in hooks:
            if seeds is not None:
                self._seed_fn(seeds[step])
            hook(step)
