"""Every module keeps its own mode: at the start, across validations, and after a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helios.testing import TinyDataModule, TinyModel
from helios.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class Teaching(TinyModel):
    """Has a frozen teacher, and parts that hooks switch."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.teacher = nn.Sequential(nn.Dropout(0.5)).eval()
        self.sampled = nn.Dropout(0.5)
        self.modes: list[Any] = []

    def _modes(self) -> tuple[bool, bool, bool]:
        return self.net.training, self.teacher[0].training, self.sampled.training

    def on_training_start(self) -> None:
        self.modes.append(("start", self._modes()))

    def train_step(self, batch: Any, state: TrainingState) -> None:
        super().train_step(batch, state)
        self.modes.append((state.global_iteration, self._modes()))
        if state.global_iteration == 4:
            self.net.eval()

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self.sampled.train()  # As Monte Carlo dropout does.

    def valid_step(self, batch: Any, step: int) -> None:
        super().valid_step(batch, step)
        self.modes.append(("valid", self._modes()))

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self.modes.append(("after", self._modes()))


def make_trainer(root: Path | None, epochs: int) -> Trainer:
    return Trainer(total_steps=epochs, valid_frequency=1, chkpt_root=root, use_cpu=True, print_banner=False)


def test_modules_keep_their_modes(tmp_path: Path) -> None:
    """A teacher stays in evaluation mode; hooks of a validation may switch a part; modes survive a resume."""
    whole = Teaching()
    make_trainer(None, 3).fit(whole, TinyDataModule())
    make_trainer(tmp_path, 2).fit(Teaching(), TinyDataModule())
    resumed = Teaching()
    make_trainer(tmp_path, 3).fit(resumed, TinyDataModule())
    start, valid, after = (
        [("start", (True, False, True))],
        ("valid", (False, False, True)),
        ("after", (True, False, True)),
    )
    epochs = [
        [(n + 1 + 3 * epoch, (epoch == 0 or (epoch == 1 and n == 0), False, True)) for n in range(3)]
        for epoch in range(3)
    ]
    after_2 = ("after", (False, False, True))
    expected = [
        *start,
        *epochs[0],
        *3 * [valid],
        after,
        *epochs[1],
        *3 * [valid],
        after_2,
        *epochs[2],
        *3 * [valid],
        after_2,
    ]
    assert whole.modes == expected
    assert [entry for entry in resumed.modes if entry[0] != "start"] == expected[1:]


class Switching(Teaching):
    """Says itself what training mode is."""

    calls = 0

    def train(self) -> None:
        Switching.calls += 1
        super().train()
        self.teacher.eval()


def test_an_overridden_train_is_called(tmp_path: Path) -> None:
    """A model that overrides `train` has it called when a run starts and after validations, not when it is resumed."""
    del tmp_path
    before = Switching.calls
    make_trainer(None, 2).fit(Switching(), TinyDataModule())
    assert Switching.calls == before + 3


class Pretrained(TinyModel):
    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net.eval()  # As libraries return pretrained networks.


def test_a_network_that_is_trained_in_evaluation_mode_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A network in evaluation mode whose parameters an optimizer has is named, with the remedy."""
    make_trainer(None, 1).fit(Pretrained(), TinyDataModule())
    messages = [record.getMessage() for record in caplog.records if "evaluation mode" in record.getMessage()]
    assert len(messages) == 1
    assert messages[0].startswith("Pretrained.net is in evaluation mode, and an optimizer has its parameters")
    assert "call train() on it in setup" in messages[0]


class Best(TinyModel):
    """Puts weights back when training ends."""

    def on_training_end(self) -> None:
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.fill_(0.25)
        self.threshold = 0.75

    def test_step(self, batch: Any, step: int) -> None:
        super().test_step(batch, step)
        self.tested = [parameter.detach().clone() for parameter in self.net.parameters()]


@pytest.mark.parametrize("has_root", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_test_has_what_fit_has_left(tmp_path: Path, *, has_root: bool, is_new: bool) -> None:
    """What `on_training_end` has changed is tested: with and without checkpoints, by this object and by a new one."""
    if is_new and not has_root:
        return  # There is nothing that a new object could find.
    model, root = Best(), tmp_path if has_root else None
    trainer = make_trainer(root, 2)
    assert trainer.fit(model, TinyDataModule())
    if is_new:
        model, trainer = Best(), make_trainer(root, 2)
    assert trainer.test(model, TinyDataModule())
    assert all(bool((parameter == 0.25).all()) for parameter in model.tested)
    assert model.threshold == 0.75


def test_more_steps_ignore_what_the_end_has_changed(tmp_path: Path) -> None:
    """A run that is given more steps continues from where it was before `on_training_end`, and records its end anew."""
    whole = Best("whole")
    make_trainer(tmp_path, 3).fit(whole, TinyDataModule())
    make_trainer(tmp_path, 2).fit(Best(), TinyDataModule())
    make_trainer(tmp_path, 2).fit(Best(), TinyDataModule())  # Ends once more, alike.
    longer = Best()
    make_trainer(tmp_path, 3).fit(longer, TinyDataModule())
    assert longer.metrics == whole.metrics
    tested = Best()
    make_trainer(tmp_path, 3).test(tested, TinyDataModule())
    assert tested.threshold == 0.75


class Reading(TinyModel):
    """Reads at its end what its last validation and its last batch have left."""

    def on_training_end(self) -> None:
        self.read = [dict(self._val_scores), dict(self._loss_items), dict(self._running_losses), dict(self.metrics)]


def test_the_end_reads_the_scores_that_it_would_have_read(tmp_path: Path) -> None:
    """Hooks that run again after a resume find the scores and losses of before."""
    first, again = Reading(), Reading()
    make_trainer(tmp_path, 2).fit(first, TinyDataModule())
    make_trainer(tmp_path, 2).fit(again, TinyDataModule())
    assert again.read == first.read
    assert set(again.read[0]) == {"loss"}
