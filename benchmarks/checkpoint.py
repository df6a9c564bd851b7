"""Killing a process while it saves, and what saving costs; run with `python -m benchmarks.checkpoint`."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from benchmarks._table import Table
from benchmarks._timing import interleave, median_ratio, verdict
from helios import DataModule, Model, Trainer
from helios.checkpoint.archive import load_archive, save_archive

if TYPE_CHECKING:
    from helios import TrainingState

_KILLS: Final = 30
_FLOATS: Final = 50_000_000 // 4
_PATIENCE: Final = 60.0  # Seconds until a process that does nothing is taken for hung.


class _Counter(Model):
    """50 MB of weights, all equal to the number of steps that they were trained."""

    def setup(self, fast_init: bool = False) -> None:
        """Start at 0."""
        del fast_init
        self.network = nn.ParameterList([nn.Parameter(torch.zeros(_FLOATS), requires_grad=False)])
        self.steps = 0

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Check that everything is as the step before left it, and count on."""
        del batch
        weights = self.network[0]
        assert self.steps == state.global_iteration, "the checkpoint's parts are of different steps"
        assert bool((weights == self.steps).all()), "the weights are not those of the step before"
        weights += 1
        self.steps += 1


class _Batches(DataModule):
    """Many batches, and nothing in them."""

    def setup(self) -> None:
        """Make nothing."""

    def train_dataloader(self) -> Any:
        """Return batches that are ready."""
        return [0] * 1000, None


def _train(root: Path, steps: float) -> None:
    trainer = Trainer(
        train_unit="iteration",
        total_steps=steps,
        chkpt_frequency=1,
        chkpt_root=root,
        use_cpu=True,
        print_banner=False,
    )
    trainer.fit(_Counter("counter"), _Batches())


def _temporaries(folder: Path) -> list[Path]:
    return list(folder.glob(".*.pth.*.tmp"))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pth"), key=lambda path: path.stat().st_mtime_ns)


def _wait_until_saving(folder: Path, seen: set[Path], process: Any) -> None:
    """Wait until a process writes a checkpoint that it did not write before."""
    deadline = time.monotonic() + _PATIENCE
    while not any(path not in seen for path in _temporaries(folder)):
        assert process.is_alive(), f"the process ended with {process.exitcode}: it could not resume"
        assert time.monotonic() < deadline, "no checkpoint is being written"
        time.sleep(0.0005)


def _kill_while_saving(root: Path, delay: float) -> bool:
    """Resume a run in a process of its own, kill it while it saves, and return whether it left half a file."""
    folder = root / "counter"
    process = multiprocessing.get_context("fork").Process(target=_train, args=(root, float("inf")))
    process.start()
    assert process.pid is not None
    try:
        _wait_until_saving(folder, set(_temporaries(folder)), process)
        time.sleep(delay)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    left = bool(_temporaries(folder))
    for old in _checkpoints(folder)[:-2]:
        old.unlink()
    return left


def _steps_done(folder: Path) -> int:
    """Return how many steps the newest checkpoint counts."""
    data = load_archive(_checkpoints(folder)[-1])
    steps = data["training"]["state"]["global_iteration"]
    assert isinstance(steps, int)
    return steps


def run_kills() -> Table:
    """Kill a process while it saves 50 MB, many times, and resume each time."""
    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name), random.Random(0)
        begin = time.perf_counter()
        _train(root, 4)
        span = (time.perf_counter() - begin) / 4
        folder, torn, resumed = root / "counter", 0, 0
        for kill in range(_KILLS):
            before = _steps_done(folder)
            torn += _kill_while_saving(root, rng.uniform(0, span))
            resumed += kill > 0  # It got as far as saving, and so has found all that the last kill left in order.
            assert _steps_done(folder) >= before, "a checkpoint was lost"
        steps = _steps_done(folder)
        _train(root, steps + 1)
        resumed += _steps_done(folder) == steps + 1
    return Table(
        "SIGKILL while saving 50 MB",
        ("what", "measured", "target"),
        (
            ("kills", str(_KILLS), ""),
            ("  of these, with a file half written", str(torn), ""),
            ("clean resumes", str(resumed), verdict(_KILLS - resumed, 0, f"{_KILLS}")),
            ("steps trained meanwhile", str(steps), ""),
        ),
        (
            f"At random instants in the {span * 1e3:.0f} ms after a save has begun.",
            "Every step of a resumed run checks all weights.",
        ),
    )


def run_time() -> Table:
    """Measure a save and a load of 50 MB, beside torch's."""
    with tempfile.TemporaryDirectory() as name:
        path, theirs = Path(name) / "ours.pth", Path(name) / "theirs.pth"
        data = {"weights": torch.randn(_FLOATS)}

        def save_durably() -> None:
            with theirs.open("wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())

        seconds = interleave(
            {
                "torch.save": lambda: torch.save(data, theirs),
                "torch.save and fsync": save_durably,
                "helios saves": lambda: save_archive(path, data),
                "torch.load": lambda: torch.load(theirs, weights_only=True),
                "helios loads": lambda: load_archive(path),
            },
            rounds=9,
        )
    save = median_ratio(seconds["helios saves"], seconds["torch.save and fsync"])
    load = median_ratio(seconds["helios loads"], seconds["torch.load"])
    ratios = {"helios saves": f"{save:.2f}", "helios loads": f"{load:.2f}"}
    return Table(
        "Saving and loading 50 MB",
        ("what", "time", "times torch's"),
        tuple(
            (what, f"{statistics.median(values) * 1e3:.0f} ms", ratios.get(what, ""))
            for what, values in seconds.items()
        ),
        ("Helios' saves are forced to the disk and carry a SHA-256, which a load checks. Medians of 9 rounds.",),
    )


def run() -> list[Table]:
    """Kill and resume, then measure."""
    return [run_kills(), run_time()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*(table.render() for table in run()), sep="\n\n")
