"""The files that docs/design.md lists for a batch and for a checkpoint are those that are executed."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios import DataModule, Model, Trainer
from helios.trainer._saving import Saver
from tests import house

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from helios import TrainingState

PAGE = (house.ROOT / "docs" / "design.md").read_text(encoding="utf-8")
STATE = "checkpoint/state/"  # The package that the page describes in a section of its own.


def listed(title: str) -> list[str]:
    """Return the files in the first column that has any, of the tables of a section."""
    (section,) = re.findall(rf"^## {title}\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"^\|(?: \w+ \|)? `([\w/]+\.py)` \|", section, re.MULTILINE)


class Files:
    """Records which files of the package are executed while `recording`, in the order in which each first is."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record until the context is left."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def start(self) -> None:
        """Begin to record."""
        sys.setprofile(self._note)

    def stop(self) -> None:
        """Stop recording."""
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(f"{house.SOURCE}/"):
            name = file.removeprefix(f"{house.SOURCE}/")
            if name not in self.found:
                self.found.append(name)


class Points(DataModule):
    """A `TensorDataset` in shuffled batches."""

    def setup(self) -> None:
        inputs = torch.rand(40, 3)
        data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
        self._train_dataset = self._create_dataset(data, {"batch_size": 4, "shuffle": True})


class Regression(Model):
    """A linear layer; records which files are executed from one `train_step` to the next."""

    def __init__(self, files: Files | None = None) -> None:
        super().__init__("regression")
        self.files = files

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.network = nn.Linear(3, 1).to(self.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)

    def train_step(self, batch: Any, state: TrainingState) -> None:
        if self.files is not None:
            self.files.stop()
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.network(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has not annotated it
        self.optimizer.step()
        self._loss_items["loss"] = loss.detach()
        if self.files is not None and state.global_iteration == 2:
            self.files.start()


def fit(model: Model, **options: Any) -> None:
    Trainer(train_unit="iteration", total_steps=6, use_cpu=True, print_banner=False, **options).fit(model, Points())


def test_the_files_of_a_batch() -> None:
    """From one `train_step` to the next, the listed files are executed, and no others; there are 12 at most."""
    files = Files()
    fit(Regression(files))
    assert sorted(files.found) == sorted(listed("The path of a batch"))
    assert len(files.found) <= 12


def test_the_files_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Saver.save` executes the listed files and those of `checkpoint/state`, and no others."""
    files, save = Files(), Saver.save

    def record(self: Saver, training: dict[str, Any], *, is_last: bool) -> Path:
        with files.recording():
            return save(self, training, is_last=is_last)

    monkeypatch.setattr(Saver, "save", record)
    fit(Regression(), chkpt_root=tmp_path, chkpt_frequency=2)
    others = [name for name in files.found if not name.startswith(STATE)]
    assert sorted(others) == sorted(listed("The path of a checkpoint"))
    assert len(others) < len(files.found)


@pytest.mark.parametrize("module", sorted(path.stem for path in (house.SOURCE / STATE).glob("[!_]*.py")))
def test_each_module_of_the_state_package_is_in_the_page(module: str) -> None:
    """The section about plain data names each module of `checkpoint/state`."""
    (section,) = re.findall(r"^## From an object to plain data.*?(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    assert f"`{module}`" in section
