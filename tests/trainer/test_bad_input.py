"""Models and data that cannot be trained: known before the first batch wherever that is possible."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios import Model
from helios.errors import ArgumentTypeError, ConfigurationError, TrainingError
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


@pytest.mark.parametrize(
    ("method", "options", "phase"),
    [("train_step", {}, "training"), ("valid_step", {"valid_frequency": 1}, "validation")],
)
def test_a_missing_step_is_known_before_training(method: str, options: dict[str, Any], phase: str) -> None:
    """A model without the step that the trainer will call is refused before anything is set up."""
    model = without(method)
    with pytest.raises(ConfigurationError, match=f"Lacking has no {method}: override it, {phase} calls it"):
        make_trainer(**options).fit(model, ListData())
    assert "net" not in vars(model)


def test_steps_that_are_not_asked_for_may_be_missing() -> None:
    """Without validation no `valid_step` is needed; testing needs `test_step` and says so."""
    assert make_trainer().fit(without("valid_step"), ListData())
    with pytest.raises(ConfigurationError, match="Lacking has no test_step: override it, testing calls it"):
        make_trainer().test(without("test_step"), ListData())
    with pytest.raises(NotImplementedError, match="cannot train: override train_step"):
        without("train_step").train_step(torch.ones(1), None)  # type: ignore[arg-type]  # never looked at


class Idle(TinyModel):
    """Never steps its optimizer."""

    def is_optimizer_step(self, state: TrainingState) -> bool:
        del state
        return False


def test_a_model_that_never_steps_is_told_so() -> None:
    """A model whose optimizer never steps is stopped at the end of the first epoch, not of the last."""
    model = Idle()
    with pytest.raises(TrainingError, match=r"Idle has trained 3 iterations without a step .* call optimizer.step\(\)"):
        make_trainer(total_steps=100).fit(model, TinyDataModule())
    assert model.batches_seen == 3


class SteppingAt(Idle):
    """Steps its optimizer at every so many batches, whatever the trainer thinks."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every

    def is_optimizer_step(self, state: TrainingState) -> bool:
        return (state.global_iteration + 1) % self.every == 0

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Leave the scheduler alone, which belongs to an optimizer that may not step."""


def test_a_model_that_has_not_stepped_yet_is_told_after_the_first_batches(caplog: pytest.LogCaptureFixture) -> None:
    """A warning comes after the first batches, long before the end of an epoch; steps by hand are seen."""

    def warnings_of(model: TinyModel) -> list[str]:
        caplog.clear()
        fails = pytest.raises(TrainingError) if type(model) is Idle else contextlib.nullcontext()
        with fails:
            make_trainer(train_unit="iteration", total_steps=12).fit(model, TinyDataModule(samples=160))
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

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
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []

    other = tmp_path / "other"
    for total_steps, trained in ((4, 4), (7, 5)):
        with pytest.raises(TrainingError, match=f"Idle has trained {trained} iterations without a step"):
            make_trainer(other, total_steps=total_steps, **options).fit(Idle(), data)


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
