"""Train a classifier twice, kill one of the two on the way, resume it, and compare: `python examples/demo.py`.

Each run is a process of its own. One is left alone. The other is ended by SIGKILL in the middle of an epoch, which no
program can catch, and then started again. Both must end with the same weights, to the bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import multiprocessing
import shutil
import signal
import sys
import threading
import time
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import classifier
import helios
import helios.plugins as hlp
import helios.trainer as hlt
from helios.core import safe_torch_load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTPUT = Path("demo-output")
REQUIRED_ACCURACY = 0.97


class Pulse(hlp.Plugin):
    """Tells another process how far training has come.

    Args:
        iteration: a number in shared memory.
    """

    plugin_id = "pulse"

    def __init__(self, iteration: Any) -> None:
        super().__init__(self.plugin_id)
        self._iteration = iteration

    def setup(self) -> None:
        """There is nothing to get ready."""

    def on_training_batch_end(self, state: hlt.TrainingState) -> None:
        """Tell."""
        self._iteration.value = state.current_iteration


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        accuracy: on the test data, from 0 to 1.
        digest: SHA-256 of the weights.
        losses: of every training batch.
        accuracies: of every validation, each with its iteration.
    """

    accuracy: float
    digest: str
    losses: list[float]
    accuracies: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a run was killed, and where it went on: iterations."""

    at: int
    resumed_from: int


def train(root: Path, iterations: int, iteration: Any) -> None:
    """Train, from the newest checkpoint below `root` if there is one: what each process does."""
    torch.set_num_threads(1)  # A network this small gains nothing by more.
    tqdm.set_lock(threading.RLock())  # Its own lock outlives a process that is killed, and Python complains of that.
    trainer = classifier.make_trainer(root, iterations, enable_progress_bar=True)
    trainer.register_plugin(Pulse(iteration))
    trainer.fit(classifier.Classifier(iterations), classifier.DigitsData())


def run(root: Path, iterations: int, kill_at: int | None = None) -> int:
    """Train in a process of its own.

    Args:
        root: the folder of checkpoints.
        iterations: how long to train.
        kill_at: the iteration after which the process is killed; `None` to let it end.

    Returns:
        The last iteration that the process has completed.

    Raises:
        RuntimeError: if it ended in another way than it should.
    """
    # Shared without a lock: a process that is killed could not give it back.
    iteration = RawValue("q", 0)
    process = multiprocessing.get_context("spawn").Process(target=train, args=(root, iterations, iteration))
    process.start()
    while kill_at is not None and iteration.value < kill_at and process.is_alive():
        time.sleep(0.001)
    if kill_at is not None:
        process.kill()
    process.join()
    expected = 0 if kill_at is None else -signal.SIGKILL
    if process.exitcode != expected:
        raise RuntimeError(f"the training process ended with exit code {process.exitcode}, not {expected}: see above")
    return int(iteration.value)


def load_checkpoint(root: Path) -> dict[str, Any]:
    """Return what the newest checkpoint below a folder holds; it is plain data."""
    path = hlt.find_last_checkpoint(root / classifier.Classifier().save_name)
    if path is None:
        raise FileNotFoundError(f"there is no checkpoint below {root}")
    checkpoint: dict[str, Any] = safe_torch_load(path)
    return checkpoint


def hash_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def examine(root: Path) -> Result:
    """Test what a run has left, and read its curves."""
    model = classifier.Classifier()
    classifier.make_trainer(root).test(model, classifier.DigitsData())
    curve = load_checkpoint(root)["plugins"][classifier.Curve.plugin_id]
    return Result(
        accuracy=model.metrics["test_accuracy"],
        digest=hash_weights(model.network.state_dict()),
        losses=curve["losses"].tolist(),
        accuracies=curve["accuracies"],
    )


def smooth(values: list[float], window: int = 15) -> list[float]:
    """Return the mean of each value and those before it, at most `window` in all."""
    windows = (values[max(0, i - window) : i] for i in range(1, len(values) + 1))
    return [sum(part) / len(part) for part in windows]


def draw(left_alone: Result, resumed: Result, kill: Kill, path: Path) -> None:
    """Draw the losses and accuracies of both runs, and the moment of the kill."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - the processes that train do without it.

    red = "#c1121f"
    figure = Figure(figsize=(10, 6.5), dpi=130, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for result, label, style in (
        (left_alone, "uninterrupted", {"color": "#f4a259", "linewidth": 5}),
        (resumed, "killed and resumed", {"color": "#1b4965", "linewidth": 1.2}),
    ):
        upper.semilogy(range(1, len(result.losses) + 1), smooth(result.losses), label=label, **style)
        lower.plot(*zip(*result.accuracies, strict=True), label=label, marker="o", markersize=4, **style)
    for axes in (upper, lower):
        axes.axvspan(kill.resumed_from, kill.at, color=red, alpha=0.15, linewidth=0)
        axes.axvline(kill.at, color=red, linewidth=1.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    note = f"SIGKILL after iteration {kill.at};\nresumed at {kill.resumed_from}, the last checkpoint"
    where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
    upper.annotate(note, (kill.at, 0.97), (8, 0), color=red, **where)
    verdict = "equal to the bit" if left_alone == resumed else "NOT equal"
    upper.set(
        ylabel="training loss (mean of 15 batches)", title=f"One run left alone, one killed and resumed: {verdict}"
    )
    upper.legend(loc="lower left", frameon=False)
    lower.set(xlabel="iteration", ylabel="validation accuracy", xlim=(0, len(left_alone.losses) + 5))
    lower.yaxis.set_major_formatter("{x:.0%}")
    figure.savefig(path)


def report(left_alone: Result, resumed: Result) -> bool:
    """Print both results side by side, and return whether they are what they should be."""
    print(f"\n{'':20}{'test accuracy':16}SHA-256 of the weights")
    for label, result in (("uninterrupted", left_alone), ("killed and resumed", resumed)):
        print(f"{label:20}{f'{100 * result.accuracy:.2f} %':16}{result.digest}")
    is_equal = left_alone == resumed
    is_accurate = min(left_alone.accuracy, resumed.accuracy) > REQUIRED_ACCURACY
    print(f"\nweights, accuracy and the whole curve: {'EQUAL' if is_equal else 'NOT EQUAL'}")
    if not is_accurate:
        print(f"the accuracy is not above {REQUIRED_ACCURACY:.0%}")
    return is_equal and is_accurate


def say(text: str) -> None:
    """Print a headline, after whatever the bars of a run have left on the line."""
    print(f"\n=== {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit code: 0 if both runs are equal and accurate enough.
    """
    parser = argparse.ArgumentParser(description="Kill a training run, resume it, and compare it with one left alone.")
    parser.add_argument("--iterations", type=int, default=classifier.ITERATIONS, help="how long to train (%(default)s)")
    iterations: int = parser.parse_args(arguments).iterations
    began = time.monotonic()
    roots = {name: OUTPUT / "checkpoints" / name for name in ("uninterrupted", "interrupted")}
    for root in roots.values():
        shutil.rmtree(root, ignore_errors=True)  # Those of the last demo: this one shall not resume them.
    picture = OUTPUT / "curves.png"
    kill_at = iterations * 11 // 20  # Half-way, and then on to the middle of the sixth of ten epochs.

    print(f"Helios {helios.__version__}: the same training twice, and one of the two is killed on the way.")
    say("1 of 3: left alone")
    run(roots["uninterrupted"], iterations)
    say(f"2 of 3: from the start again, to be killed after iteration {kill_at}, in the middle of an epoch")
    killed_at = run(roots["interrupted"], iterations, kill_at)
    if sys.stderr.isatty():
        print("\x1b[?25h", file=sys.stderr)  # A bar that was killed had no time to bring the cursor back.
    kill = Kill(killed_at, load_checkpoint(roots["interrupted"])["training"]["state"]["current_iteration"])
    print(f"\nSIGKILL: the process is gone. It had trained {kill.at} iterations; {kill.resumed_from} are on disk.")
    say("3 of 3: started once more")
    run(roots["interrupted"], iterations)

    left_alone, resumed = (examine(root) for root in roots.values())
    is_good = report(left_alone, resumed)
    draw(left_alone, resumed, kill, picture)
    print(f"\npicture: {picture.absolute()}\n{time.monotonic() - began:.0f} seconds")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
