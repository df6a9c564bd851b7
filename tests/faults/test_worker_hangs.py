"""Data loaders' workers that hang or die: a warning that is repeated, a limit, and an error with the loader's name."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from helios import DataModule
from helios.data import create_dataloader, workers
from helios.data.sources import make_source
from helios.errors import TrainingError
from helios.testing import TinyModel
from tests.trainer.parts import make_trainer


@dataclasses.dataclass
class Samples(Dataset[torch.Tensor]):
    """Eight samples; the fifth does what it is told to."""

    fault: str = ""
    release: Path = Path()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 4:
            _misbehave(self.fault, self.release)
        return torch.full((4,), float(index))


@dataclasses.dataclass
class Stream(IterableDataset[torch.Tensor]):
    """The same as a stream."""

    fault: str

    def __iter__(self) -> Any:
        yield torch.zeros(4)
        _misbehave(self.fault, Path())


def _misbehave(fault: str, release: Path) -> None:
    if fault == "hang":
        time.sleep(3600)
    elif fault == "hang until released":
        while not release.exists():
            time.sleep(0.01)
    elif fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "exit":
        os._exit(3)
    elif fault == "raise":
        raise LookupError("sample 4")


class Data(DataModule):
    def __init__(self, train: Samples, valid: Samples | None = None, **params: Any) -> None:
        super().__init__()
        self._parts, self._params = (train, valid or Samples()), params

    def setup(self) -> None:
        train, valid = self._parts
        params = {"batch_size": 2, "num_workers": 2}
        # What has no fault has no limit either: a worker may need long to start.
        self._train_dataset = self._create_dataset(train, {**params, **(self._params if train.fault else {})})
        self._valid_dataset = self._create_dataset(valid, {**params, **(self._params if valid.fault else {})})


class Plain(TinyModel):
    def train_step(self, batch: Any, state: Any) -> None:
        """Train on nothing: what is fetched is what counts here."""

    def valid_step(self, batch: Any, step: int) -> None:
        """Validate nothing."""


def fit(data: Data) -> bool:
    return make_trainer(total_steps=1, valid_frequency=1).fit(Plain(), data)


@pytest.mark.parametrize("phase", ["training", "validation"])
def test_a_hanging_worker_is_given_up(phase: str) -> None:
    """A `__getitem__` that never returns ends the run at the timeout; the error names loader, dataset and processes."""
    parts = [Samples("hang"), Samples()]
    with pytest.raises(TrainingError) as caught:
        fit(Data(*(parts if phase == "training" else parts[::-1]), timeout=0.5))
    assert re.match(
        rf"the {phase} data loader of Samples gave no batch for 0\.5 s, which is its timeout: a worker hangs in "
        r"__getitem__ or in the collate function, or needs longer\. It has 2 workers, processes \d+, \d+\. Set",
        str(caught.value),
    )


def test_a_stream_that_hangs_is_given_up() -> None:
    """The same for an iterable dataset."""
    loader, sampler = create_dataloader(Stream("hang"), num_workers=2, timeout=0.5)
    with pytest.raises(TrainingError, match="the testing data loader of Stream gave no batch for 0.5 s"):
        list(make_source(loader, sampler, "testing").iterate(0))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_slow_worker_is_warned_of_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, persistent: bool
) -> None:
    """Without a timeout nothing ends, and the log says what is waited for; then all batches come."""
    monkeypatch.setattr(workers, "_STEP", 0.05)
    monkeypatch.setattr(workers, "_REPEAT", 0.1)
    release = tmp_path / "release"

    class Releasing(logging.Handler):
        warnings = 0

        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("no batch for"):
                self.warnings += 1
                if self.warnings == 3:
                    release.touch()

    handler = Releasing()
    logging.getLogger("helios").addHandler(handler)
    loader, sampler = create_dataloader(
        Samples("hang until released", release), batch_size=2, num_workers=2, persistent_workers=persistent
    )
    source = make_source(loader, sampler)
    for epoch in range(2):
        batches = list(source.iterate(epoch))
        assert torch.cat(batches)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert handler.warnings >= 3
    assert re.search(
        r"no batch for \d+ s from the training data loader of Samples\. It has 2 workers, processes \d+, \d+\. Set",
        caplog.text,
    )
    assert loader.timeout == 0


@pytest.mark.parametrize(
    ("fault", "told"), [("killed", "is killed by signal: Killed"), ("exit", "exited unexpectedly")]
)
def test_a_worker_that_dies_is_named(fault: str, told: str) -> None:
    """A worker that was killed, or has left, ends the run with the loader, the dataset and its process id."""
    with pytest.raises(TrainingError, match=rf"a worker of the training data loader of Samples died: .*pid.* {told}"):
        fit(Data(Samples(fault)))


def test_what_a_worker_raises_stays_as_it_is() -> None:
    """An exception of the dataset is the user's, and not ours."""
    with pytest.raises(LookupError, match="sample 4"):
        fit(Data(Samples("raise"), timeout=30))


def test_a_loader_without_workers_is_left_alone() -> None:
    """Where there are no workers, torch's own iterator is used: nothing is added to a step."""
    loader, _ = create_dataloader(TensorDataset(torch.arange(4)))
    assert type(workers.iterate(loader, "training")) is type(iter(loader))


def test_datasets_are_named_as_users_know_them() -> None:
    """Wrappers of ours are not in the name, and subsets say of what they are."""
    data = TensorDataset(torch.arange(4))
    for dataset, name in ((data, "TensorDataset"), (Subset(Samples(), [0]), "a Subset of Samples")):
        assert workers._name_of(create_dataloader(dataset)[0].dataset) == name
    assert workers._name_of(DataLoader(Samples()).dataset) == "Samples"
