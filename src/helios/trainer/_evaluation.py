"""Validation and testing: one loop, for both phases."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from helios.core.rng import SeedSequence
from helios.core.state import Phase
from helios.core.stateful import networks_of
from helios.model.model import Model
from helios.model.wrapping import quiet
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios.core.control import Control
    from helios.data.feed import BatchFeed
    from helios.plugins.table import PluginTable
    from helios.trainer._progress import ProgressBar, ProgressDisplay

    Hook = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Calls:
    """The methods of the model and the plug-ins that a phase calls, bound."""

    plugin_starts: list[Hook]
    model_start: Hook
    processes: list[Hook]
    step: Hook
    batch_start: Hook | None
    batch_end: Hook | None
    plugin_ends: list[Hook]
    model_end: Hook


def _bind(phase: Phase, model: Model, plugins: PluginTable) -> _Calls:
    def of_model(method: str) -> Hook | None:
        bound: Hook = getattr(model, method)
        return bound if overrides(model, method, Model) else None

    if phase is Phase.VALIDATION:
        return _Calls(
            plugins.bind("on_validation_start"),
            model.on_validation_start,
            plugins.bind("process_validation_batch"),
            model.valid_step,
            of_model("on_validation_batch_start"),
            of_model("on_validation_batch_end"),
            plugins.bind("on_validation_end"),
            model.on_validation_end,
        )
    return _Calls(
        plugins.bind("on_testing_start"),
        model.on_testing_start,
        plugins.bind("process_testing_batch"),
        model.test_step,
        of_model("on_testing_batch_start"),
        of_model("on_testing_batch_end"),
        plugins.bind("on_testing_end"),
        model.on_testing_end,
    )


class EvaluationLoop:
    """Runs a model over a data set without training it.

    Every draw on the way is a function of the seed, the rank, the cycle and the step; nothing of it reaches training.
    """

    def __init__(
        self,
        phase: Phase,
        *,
        model: Model,
        plugins: PluginTable,
        feed: BatchFeed,
        key: Callable[[int], None],
        seed: int,
        control: Control,
        display: ProgressDisplay | None,
    ) -> None:
        """Bind what is called.

        Args:
            phase: validation or testing.
            model: the model.
            plugins: the plug-ins.
            feed: the batches.
            key: sets the generators to the stream of a seed.
            seed: the seed of the run.
            control: what the ranks agree through.
            display: where to show a bar, if anywhere.
        """
        self._phase = phase
        self._model = model
        self._calls = _bind(phase, model, plugins)
        self._feed = feed
        self._key = key
        self._seed = seed
        self._rank = control.rank
        lengths = control.gather(feed.batches_per_epoch())
        # Nobody knows how long a stream is: that of one rank may end while others go on.
        self._is_uneven = None in lengths or len(set(lengths)) > 1
        self._display = display

    @torch.no_grad()
    def run(self, cycle: int = 1) -> None:
        """Evaluate once.

        Args:
            cycle: the number of the validation, from 1; the hooks of validation get it.
        """
        is_validation = self._phase is Phase.VALIDATION
        arguments = (cycle,) if is_validation else ()
        calls = self._calls
        seeds = SeedSequence(self._seed, self._phase.value, self._rank, cycle)
        scores = self._model._val_scores if is_validation else self._model._test_scores  # noqa: SLF001 - API.md names them.
        scores.clear()
        self._key(seeds[-1])
        for hook in (*calls.plugin_starts, calls.model_start):
            hook(*arguments)
        self._model.eval()
        with quiet(networks_of(self._model).values(), is_uneven=self._is_uneven):
            steps = self._run_batches(seeds)
        self._key(seeds[steps])
        for hook in (*calls.plugin_ends, calls.model_end):
            hook(*arguments)

    def _run_batches(self, seeds: SeedSequence) -> int:
        total = self._feed.batches_per_epoch()
        bar = None if self._display is None else self._display.open(self._phase.value.capitalize(), "batch", total, 0)
        with contextlib.nullcontext() if bar is None else contextlib.closing(bar):
            return self._run_steps(seeds, bar)

    def _run_steps(self, seeds: SeedSequence, bar: ProgressBar | None) -> int:
        calls, step = self._calls, 0
        # Always epoch 0: a validation sees the same samples, drawn alike, whenever it runs.
        for batch in self._feed.open(0):
            self._key(seeds[step])
            for process in calls.processes:
                batch = process(batch, step)  # noqa: PLW2901 - what a plug-in returns takes the batch's place.
            if calls.batch_start is not None:
                calls.batch_start(step)
            calls.step(batch, step)
            if calls.batch_end is not None:
                calls.batch_end(step)
            step += 1
            if bar is not None:
                bar.update(1)
        return step
