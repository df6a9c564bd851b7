"""An uninterrupted training run, and one that is killed and resumed: the first half of the demo."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import classifier
import helios.trainer as hlt
from demo_processes import Pulse, fork_ranks, run_process, say
from helios.core import safe_torch_load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REQUIRED_ACCURACY = 0.97


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
    """The iterations at which a run was killed and resumed."""

    at: int
    resumed_from: int


def train(position: Path, root: Path, iterations: int, ranks: int) -> None:
    """Train, from the newest checkpoint below `root` if there is one: what each process does."""
    fork_ranks()
    torch.set_num_threads(1)  # A network this small gains nothing by more.
    tqdm.set_lock(threading.RLock())  # Its own lock outlives a process that is killed, and Python complains of that.
    trainer = classifier.make_trainer(root, iterations, enable_progress_bar=True, num_processes=ranks)
    trainer.register_plugin(Pulse(position))
    trainer.fit(classifier.Classifier(iterations), classifier.DigitsData())


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


def compare_trainings(output: Path, iterations: int, ranks: int) -> bool:
    """Train twice, with one kill, and print and draw what came of it.

    Args:
        output: the folder for all that is written.
        iterations: how long to train.
        ranks: in how many processes.

    Returns:
        Whether both runs are equal and accurate enough.
    """
    roots = {name: output / "checkpoints" / name for name in ("uninterrupted", "interrupted")}
    for root in roots.values():
        shutil.rmtree(root, ignore_errors=True)  # Checkpoints of an earlier demo must not be resumed.
    kill_at = iterations * 11 // 20  # Half-way, and then on to the middle of the sixth of ten epochs.

    say(f"1 of 5: a training run{f' on {ranks} ranks' if ranks > 1 else ''}, left alone")
    run_process(train, roots["uninterrupted"], iterations, ranks)
    say(f"2 of 5: from the start again, to be killed after iteration {kill_at}, in the middle of an epoch")
    _, killed_at = run_process(train, roots["interrupted"], iterations, ranks, kill_at=(0, kill_at))
    if sys.stderr.isatty():
        print("\x1b[?25h", file=sys.stderr)  # A bar that was killed had no time to bring the cursor back.
    kill = Kill(killed_at, load_checkpoint(roots["interrupted"])["training"]["state"]["current_iteration"])
    print(f"\nSIGKILL: the process is gone. It had trained {kill.at} iterations; {kill.resumed_from} are on disk.")
    say("3 of 5: started once more")
    run_process(train, roots["interrupted"], iterations, ranks)

    left_alone, resumed = (examine(root) for root in roots.values())
    is_good = report(left_alone, resumed)
    picture = output / "curves.png"
    draw(left_alone, resumed, kill, picture)
    print(f"picture: {picture.absolute()}")
    return is_good
