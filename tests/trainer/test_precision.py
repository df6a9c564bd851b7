"""Checkpoints that a model of another precision is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.errors import CheckpointMismatchError
from helios.testing import TinyDataModule, TinyModel
from tests.trainer.parts import make_trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class Precise(TinyModel):
    """Makes its parameters, and the one of its buffers that is no floating-point number, in chosen dtypes."""

    def __init__(self, dtype: torch.dtype, count: torch.dtype = torch.int64) -> None:
        super().__init__()
        self._dtypes = dtype, count

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        dtype, count = self._dtypes
        self.net.to(dtype)
        self.net.register_buffer("count", torch.zeros((), dtype=count))

    def _loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return super()._loss([tensor.to(self._dtypes[0]) for tensor in batch])


SINGLE, DOUBLE, BRAIN = torch.float32, torch.float64, torch.bfloat16


@pytest.mark.parametrize(("saved", "present"), [(SINGLE, DOUBLE), (DOUBLE, SINGLE), (SINGLE, BRAIN), (BRAIN, SINGLE)])
def test_weights_of_another_precision_are_refused(tmp_path: Path, saved: torch.dtype, present: torch.dtype) -> None:
    """A run is not resumed, nor its model tested, in another precision: both dtypes are named."""
    trainer, data = make_trainer(tmp_path, total_steps=1), TinyDataModule()
    trainer.fit(Precise(saved), data)
    for run in (make_trainer(tmp_path).fit, make_trainer(tmp_path).test):
        with pytest.raises(CheckpointMismatchError, match=rf"{saved}\b.*{present}\b"):
            run(Precise(present), data)
    assert trainer.fit(Precise(saved), data)


def test_buffers_of_another_dtype_are_refused(tmp_path: Path) -> None:
    """Buffers count as weights do, whatever their dtypes are."""
    make_trainer(tmp_path, total_steps=1).fit(Precise(SINGLE), TinyDataModule())
    with pytest.raises(CheckpointMismatchError, match=r"torch\.int64.*torch\.int32"):
        make_trainer(tmp_path).fit(Precise(SINGLE, torch.int32), TinyDataModule())


def test_a_state_of_ones_own_makes_no_difference(tmp_path: Path) -> None:
    """A model that loads its weights by itself is not resumed in another precision either."""

    class Copying(Precise):
        def state_dict(self) -> dict[str, Any]:
            return {"weight": self.net.state_dict()["1.weight"]}

        def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
            del fast_init
            self.net.state_dict()["1.weight"].copy_(state_dict["weight"])

    make_trainer(tmp_path, total_steps=1).fit(Copying(SINGLE), TinyDataModule())
    for run in (make_trainer(tmp_path).fit, make_trainer(tmp_path).test):
        with pytest.raises(
            CheckpointMismatchError, match=r"Copying\.net of torch\.float32, torch\.int64.*torch\.float64"
        ):
            run(Copying(DOUBLE), TinyDataModule())


def test_precisions_that_are_exchanged_between_weights_are_refused(tmp_path: Path) -> None:
    """A parameter is refused by its name where the network as a whole has the dtypes that it had."""

    class Mixed(Precise):
        def __init__(self, double: str) -> None:
            super().__init__(SINGLE)
            self.double = double

        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            part = dict(self.net.named_parameters())[self.double]
            part.data = part.data.to(DOUBLE)

        def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
            del batch, state
            self.optimizer.step()

    make_trainer(tmp_path, total_steps=1).fit(Mixed("1.weight"), TinyDataModule())
    with pytest.raises(
        CheckpointMismatchError, match=r"'1\.weight' of the Sequential .* torch\.float64.*torch\.float32"
    ):
        make_trainer(tmp_path).fit(Mixed("1.bias"), TinyDataModule())
