"""How long a resumed run takes to its first step; run with `python -m benchmarks.resume`."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.data import Dataset

from benchmarks._table import Table
from benchmarks._timing import interleave, median_ratio, verdict
from helios import DataModule, Model, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios import TrainingState

_EARLY: Final = 100
_LATE: Final = 100_000
_BATCH: Final = 2
_ROUNDS: Final = 15


class _Reached(Exception):  # noqa: N818 - control flow: the first step has been reached.
    pass


class _Model(Model):
    """Does nothing in its steps; the first of a resumed run ends it, so that nothing is saved."""

    def __init__(self, save_name: str, leave_at: int | None = None) -> None:
        super().__init__(save_name)
        self._leave_at = leave_at

    def setup(self, fast_init: bool = False) -> None:
        """Have nothing to train."""

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Leave, at the batch that is to be timed."""
        del batch
        if state.global_iteration == self._leave_at:
            raise _Reached


class _Squares(Dataset[int]):
    """A million samples; counts how many were fetched."""

    fetched = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        self.fetched += 1
        return index * index


class _Data(DataModule):
    """A million samples, shuffled."""

    def setup(self) -> None:
        """Make the dataset."""
        self._train_dataset = self._create_dataset(_Squares(), {"batch_size": _BATCH, "shuffle": True})


def _train(root: Path, batches: int) -> None:
    """Leave a checkpoint after so many batches."""
    trainer = Trainer(train_unit="iteration", total_steps=batches, chkpt_root=root, use_cpu=True, print_banner=False)
    trainer.fit(_Model(f"at {batches}"), _Data())


def _make_resume(root: Path, batches: int) -> Callable[[], None]:
    """Return what resumes there, and ends in the first step."""

    def resume() -> None:
        trainer = Trainer(
            train_unit="iteration", total_steps=batches + 1, chkpt_root=root, use_cpu=True, print_banner=False
        )
        trainer.train_exceptions.append(_Reached)
        data = _Data()
        try:
            trainer.fit(_Model(f"at {batches}", leave_at=batches), data)
        except _Reached:
            assert isinstance(data.train_dataset, _Squares)
            assert data.train_dataset.fetched == _BATCH, "samples before the position were fetched"
        else:
            raise AssertionError("the run was not resumed")

    return resume


def run() -> Table:
    """Measure from the call of `fit` to the first step, at an early and a late batch of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for batches in (_EARLY, _LATE):
            _train(root, batches)
        seconds = interleave({"early": _make_resume(root, _EARLY), "late": _make_resume(root, _LATE)}, rounds=_ROUNDS)
    ratio = median_ratio(seconds["late"], seconds["early"])
    early, late = (statistics.median(seconds[name]) * 1e3 for name in ("early", "late"))
    return Table(
        "Resuming in the middle of an epoch",
        ("at", "time to the first step", "target"),
        (
            (f"batch {_EARLY:,}", f"{early:.1f} ms", ""),
            (f"batch {_LATE:,}", f"{late:.1f} ms", ""),
            ("ratio", f"{ratio:.2f}", verdict(ratio, 1.2, "at most 1.2")),
        ),
        (f"A million samples, shuffled; no sample of the batches before is fetched. Medians of {_ROUNDS} rounds.",),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(run().render())
