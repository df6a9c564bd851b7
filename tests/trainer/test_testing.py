"""Which weights `test` tests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from helios.errors import NotRunningError
from helios.testing import TinyDataModule, TinyModel, are_equal
from tests.trainer.parts import CountingModel, ListData, Pruned, make_trainer

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from helios import Trainer, TrainingState


class Weighed(TinyModel):
    """Says where its weights for testing come from."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0

    def load_for_testing(self) -> None:
        self.loads += 1


def test_testing_uses_the_newest_checkpoint(tmp_path: Path) -> None:
    """`test` of a new model loads the networks of its newest checkpoint, and nothing else is set up."""
    trained, data = Weighed(), TinyDataModule()
    make_trainer(tmp_path).fit(trained, data)
    model = Weighed()
    assert make_trainer(tmp_path).test(model, data)
    assert are_equal(model.trained_state_dict(), trained.trained_state_dict())
    assert model.loads == 0
    assert "optimizer" not in vars(model)
    assert not model.net.training


def test_testing_after_training_uses_what_was_trained() -> None:
    """Without checkpoints, `test` after `fit` tests the trained weights, and again the second time."""
    model, data, trainer = Weighed(), TinyDataModule(), make_trainer()
    trainer.fit(model, data)
    weights = {name: state.clone() for name, state in model.net.state_dict().items()}
    for _ in range(2):
        assert trainer.test(model, data)
        assert are_equal(dict(model.net.state_dict()), weights)
    assert model.loads == 0


def test_testing_without_a_past_asks_the_model() -> None:
    """Where there is neither checkpoint nor training, or training failed, `load_for_testing` is called."""
    model, trainer = Weighed(), make_trainer()
    trainer.test(model, TinyDataModule())
    assert model.loads == 1

    class FailsLater(Weighed):
        fails = False

        def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
            if self.fails:
                raise Pruned
            super().train_step(batch, state)

    failing = FailsLater()
    trainer.fit(failing, TinyDataModule())
    failing.fails = True
    with pytest.raises(Pruned):
        trainer.fit(failing, TinyDataModule())
    trainer.test(failing, TinyDataModule())
    assert failing.loads == 1


def test_a_trainer_without_a_run_has_no_model() -> None:
    """`model` and `datamodule` before the first call say what to call."""
    trainer = make_trainer()
    for name in ("model", "datamodule"):
        with pytest.raises(NotRunningError, match="call fit or test"):
            getattr(trainer, name)


def test_fit_works_outside_of_the_main_thread(tmp_path: Path) -> None:
    """Training in another thread, where signals cannot be watched, runs all the same."""
    results: list[bool] = []
    trainer: Trainer = make_trainer(tmp_path)
    thread = threading.Thread(target=lambda: results.append(trainer.fit(CountingModel(), ListData())))
    thread.start()
    thread.join()
    assert results == [True]
