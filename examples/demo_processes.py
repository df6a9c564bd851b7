"""Processes that the demo starts and kills."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from multiprocessing.sharedctypes import RawArray
from typing import TYPE_CHECKING, Any

import helios.plugins as hlp
import helios.plugins.optuna as hlpo

if TYPE_CHECKING:
    from collections.abc import Callable

    import helios.trainer as hlt

# Every process is forked from one that has loaded what takes seconds to load.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mlxtend.data", "sklearn.datasets", "helios.trainer", "helios.plugins.optuna"])

# Iterations that a process may go beyond the one to be killed after: few enough to stay in the same trial and epoch.
LEEWAY = 15


class Pulse(hlp.Plugin):
    """Tells another process how far training has come.

    Args:
        position: four numbers in shared memory: the trial and the iteration in it, and where to wait to be killed.
    """

    plugin_id = "pulse"

    def __init__(self, position: Any) -> None:
        super().__init__(self.plugin_id)
        self._position = position

    def setup(self) -> None:
        """Tell the number of the trial; it is 0 where there is none."""
        # The iteration goes first: a new trial with the iteration of the last one would look far advanced.
        self._position[1] = 0
        plugins = self.trainer.plugins
        self._position[0] = plugins[hlpo.OptunaPlugin].trial.number if hlpo.OptunaPlugin in plugins else 0

    def on_training_batch_end(self, state: hlt.TrainingState) -> None:
        """Tell the iteration, and on a busy machine wait for a kill that is late."""
        self._position[1] = state.current_iteration
        while self._position[:2] >= self._position[2:]:
            time.sleep(0.01)


def run_process(
    target: Callable[..., None], *arguments: Any, kill_at: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Run a function in a process of its own.

    Args:
        target: the function; its first argument is the position, for a `Pulse`.
        *arguments: its other arguments.
        kill_at: the trial, and the iteration in it, after which the process is killed; `None` to let it end.

    Returns:
        The last trial and iteration that the process has completed.

    Raises:
        RuntimeError: if it ended in another way than it should.
    """
    # Shared without a lock: a process that is killed could not give it back.
    position = RawArray("q", [0, 0, *((sys.maxsize, 0) if kill_at is None else (kill_at[0], kill_at[1] + LEEWAY))])
    process = _CONTEXT.Process(target=target, args=(position, *arguments))
    process.start()
    while kill_at is not None and (position[0], position[1]) < kill_at and process.is_alive():
        time.sleep(0.001)
    if kill_at is not None:
        process.kill()
    process.join()
    expected = 0 if kill_at is None else -signal.SIGKILL
    if process.exitcode != expected:
        raise RuntimeError(f"the process ended with exit code {process.exitcode}, not {expected}: see above")
    return position[0], position[1]


def say(text: str) -> None:
    """Print a headline, after whatever the bars of a run have left on the line."""
    print(f"\n=== {text}", flush=True)
