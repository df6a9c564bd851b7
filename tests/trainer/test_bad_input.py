"""Models and data that cannot be trained: known before the first batch wherever that is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios import Model
from helios.errors import ArgumentTypeError, ConfigurationError
from helios.testing import TinyDataModule, TinyModel
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helios import TrainingState


def without(method: str) -> CountingModel:
    """Return a model that has no step of this name, as if it had never been written."""
    kind = type("Lacking", (CountingModel,), {method: getattr(Model, method)})
    model: CountingModel = kind()
    return model


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that were logged."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_missing_train_step_is_known_before_training() -> None:
    """A model that cannot train is refused before anything is set up."""
    model = without("train_step")
    with pytest.raises(ConfigurationError, match="Lacking has no train_step: override it, training calls it"):
        make_trainer().fit(model, ListData())
    assert "net" not in vars(model)


def test_a_missing_step_of_an_evaluation_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Without `valid_step` or `test_step`, the hooks run all the same, and one warning names the method."""
    assert make_trainer(valid_frequency=1).fit(without("valid_step"), ListData())
    assert make_trainer().test(without("test_step"), ListData())
    valid, test = warnings_in(caplog)
    assert valid.startswith("Model.valid_step was called for Lacking and does nothing: override it")
    assert test.startswith("Model.test_step was called for Lacking and does nothing: override it")


def test_calling_the_step_of_the_base_class_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """`super().train_step()` and its like do nothing, and are warned of once."""

    class Calling(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            Model.train_step(self, batch, state)
            super().train_step(batch, state)

        def valid_step(self, batch: torch.Tensor, step: int) -> None:
            Model.valid_step(self, batch, step)

    assert make_trainer(valid_frequency=1).fit(Calling(), ListData())
    assert [text.split()[0] for text in warnings_in(caplog)] == ["Model.train_step", "Model.valid_step"]


def test_a_test_without_data_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """`test` without a dataset returns true, runs no hook, and warns once."""
    assert make_trainer().test(CountingModel(), Missing("test"))
    assert warnings_in(caplog) == [
        "Missing has no data for testing: set _test_dataset in setup; nothing is tested",
    ]


class Idle(TinyModel):
    """Never steps its optimizer."""

    def is_optimizer_step(self, state: TrainingState) -> bool:
        del state
        return False

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Leave the scheduler alone: torch warns of one that steps before its optimizer."""


def test_a_model_that_never_steps_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """A model whose optimizer never steps is warned once, at the end of the first epoch."""
    assert make_trainer(total_steps=3).fit(Idle(), TinyDataModule())
    (told,) = warnings_in(caplog)
    assert told.startswith("Idle has trained 3 iterations without a step of any of its optimizers")
    assert "call optimizer.step()" in told


class SteppingAt(Idle):
    """Steps its optimizer at every so many batches, whatever the trainer thinks."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def is_optimizer_step(self, state: TrainingState) -> bool:
        return state.global_iteration % self.every == 0


def test_a_model_that_has_not_stepped_yet_is_told_after_the_first_batches(caplog: pytest.LogCaptureFixture) -> None:
    """A warning comes after the first batches, long before the end of an epoch; steps by hand are seen."""

    def warnings_of(model: TinyModel) -> list[str]:
        caplog.clear()
        make_trainer(train_unit="iteration", total_steps=12).fit(model, TinyDataModule(samples=160))
        return warnings_in(caplog)

    (told,) = warnings_of(Idle())
    assert told.startswith("Idle has trained 10 iterations without a step of any of its optimizers")
    (told,) = warnings_of(SteppingAt(12))
    assert "SteppingAt has trained 10 iterations" in told
    assert warnings_of(SteppingAt(10)) == []

    class AtTheEnd(Idle):
        def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
            del should_log
            if state.global_iteration == 10:
                self.optimizer.step()

    class Anew(SteppingAt):
        def on_training_start(self) -> None:
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    class ByHand(SteppingAt):
        def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
            super().train_step(batch, state)
            with torch.no_grad():
                for parameter in self.net.parameters():
                    parameter.sub_(0.1)

    for model in (AtTheEnd(), Anew(1), ByHand(100)):
        assert warnings_of(model) == []


def test_a_resumed_model_that_has_stepped_before_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An epoch that is resumed shortly before its end raises no alarm when its steps came before."""
    options: dict[str, Any] = {"train_unit": "iteration", "chkpt_frequency": 1}
    data = TinyDataModule(samples=20)
    make_trainer(tmp_path, total_steps=4, **options).fit(SteppingAt(3), data)
    model = SteppingAt(8)
    assert make_trainer(tmp_path, total_steps=7, **options).fit(model, data)  # The first epoch ends after 5 batches.
    assert warnings_in(caplog) == []

    other = tmp_path / "other"
    for total_steps, trained in ((4, 4), (7, 5)):
        caplog.clear()
        assert make_trainer(other, total_steps=total_steps, **options).fit(Idle(), data)
        (told,) = warnings_in(caplog)
        assert told.startswith(f"Idle has trained {trained} iterations without a step")


def test_a_scheduler_that_steps_first_after_a_resume_is_left_alone(tmp_path: Path) -> None:
    """An optimizer without a state has stepped before the resume all the same: torch has nothing to warn of."""

    class Plain(TinyModel):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1)

    options: dict[str, Any] = {"train_unit": "iteration", "chkpt_frequency": 1}
    for total_steps in (3, 6):  # The first epoch ends after 3, before the resumed process has trained any.
        assert make_trainer(tmp_path, total_steps=total_steps, **options).fit(Plain(), TinyDataModule())


def test_hooks_on_the_optimizer_are_left_alone() -> None:
    """The watch for a first step does not disturb step hooks that are registered after it."""
    calls: list[str] = []

    class Hooked(TinyModel):
        def on_training_start(self) -> None:
            self.optimizer.register_step_post_hook(lambda *_: calls.append("step"))

    assert make_trainer(total_steps=2).fit(Hooked(), TinyDataModule())
    assert len(calls) == 6


@pytest.mark.parametrize("metrics", [None, [1], 0.5])
def test_metrics_must_be_a_dict(tmp_path: Path, metrics: Any) -> None:
    """`metrics` that is no dictionary is refused when assigned, or before training if overridden."""

    class Assigning(CountingModel):
        def on_training_start(self) -> None:
            self.metrics = metrics

    class Overriding(CountingModel):
        @property
        def metrics(self) -> dict[str, Any]:
            result: dict[str, Any] = metrics
            return result

        @metrics.setter
        def metrics(self, value: dict[str, Any]) -> None:
            """Take nothing."""

    for model in (Assigning(), Overriding()):
        with pytest.raises(ArgumentTypeError, match=r"\.metrics is .*: it must be a dict of scores by name"):
            make_trainer(tmp_path).fit(model, ListData())
        assert getattr(model, "seen", []) == []


class Empty(ListData):
    def __init__(self, what: str) -> None:
        super().__init__(*(0 if what == phase else 2 for phase in ("train", "valid", "test")))


class Missing(ListData):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def _batches(self, which: int, first: int) -> Any:
        return None if ("train", "valid", "test")[which] == self.what else super()._batches(which, first)


@pytest.mark.parametrize("what", ["train", "valid"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Empty, "0 batches"),
        (Missing, "Missing has (nothing to train on: set _train_dataset|no data for validation: set)"),
    ],
)
def test_missing_data_is_known_before_training(what: str, data: Callable[[str], ListData], message: str) -> None:
    """Without training data, or validation data that is going to be needed, nothing is trained."""
    model = CountingModel()
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(valid_frequency=1).fit(model, data(what))
    assert model.seen == []


def test_an_empty_dataset_is_refused() -> None:
    """A dataset of length 0 raises an error that names it, before training."""
    model = TinyModel()
    with pytest.raises(ConfigurationError, match="TensorDataset has 0 samples: a dataset must have at least one"):
        make_trainer().fit(model, TinyDataModule(samples=0))
    assert model.batches_seen == 0


@pytest.mark.parametrize("save_name", ["", " ", ".", "..", "a/b", "a\\b", "a\0b", None, 3])
def test_a_save_name_is_a_folder_name(save_name: Any) -> None:
    """A save name that cannot name a folder is refused, also when it is assigned."""
    with pytest.raises(ConfigurationError, match="cannot be a folder's name: use letters, digits"):
        CountingModel(save_name)
    with pytest.raises(ConfigurationError, match="cannot be a folder's name"):
        CountingModel().save_name = save_name
