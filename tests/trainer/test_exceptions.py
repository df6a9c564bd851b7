"""What is raised comes out of `fit` and `test`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from helios.core.logging import is_root_logger_active
from tests.trainer.parts import CountingModel, Failing, ListData, Pruned, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from pathlib import Path


def errors_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("method", ["fit", "test"])
@pytest.mark.parametrize("where", ["setup", "step"])
@pytest.mark.parametrize("kind", [ValueError, Pruned, KeyError])
def test_an_exception_is_logged_and_raised(
    caplog: pytest.LogCaptureFixture, method: str, where: str, kind: type[Exception]
) -> None:
    """An exception is written to the log with its traceback and raised as it is; nothing is swallowed."""
    error = kind("boom")
    trainer = make_trainer()
    with pytest.raises(kind) as caught:
        getattr(trainer, method)(Failing(where, error), ListData())
    assert caught.value is error
    (record,) = errors_in(caplog)
    assert record.getMessage() == ("training failed" if method == "fit" else "testing failed")
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert not is_root_logger_active()


@pytest.mark.parametrize(("method", "where"), [("fit", "setup"), ("fit", "step"), ("fit", "end"), ("test", "step")])
@pytest.mark.parametrize("when", ["before", "in setup"])
def test_a_registered_exception_is_control_flow(
    caplog: pytest.LogCaptureFixture, method: str, where: str, when: str
) -> None:
    """Registered types, and those derived from them, leave unlogged and unchanged, however late."""

    class Deeper(Pruned):
        pass

    class Registering(SimplePlugin):
        def setup(self) -> None:
            if when == "in setup":
                self.register()

        def register(self) -> None:
            append = self._append_train_exceptions if method == "fit" else self._append_test_exceptions
            append(Pruned, trainer)

    trainer, plugin = make_trainer(), Registering()
    trainer.register_plugin(plugin)
    if when == "before":
        plugin.register()
    error = Deeper("stop")
    with pytest.raises(Deeper) as caught:
        getattr(trainer, method)(Failing(where, error), ListData())
    assert caught.value is error
    assert errors_in(caplog) == []


def test_train_and_test_exceptions_are_apart(caplog: pytest.LogCaptureFixture) -> None:
    """A type registered for `fit` is logged by `test`, and the other way round."""
    for register, method in (("train_exceptions", "test"), ("test_exceptions", "fit")):
        trainer = make_trainer()
        getattr(trainer, register).append(Pruned)
        with pytest.raises(Pruned):
            getattr(trainer, method)(Failing("step", Pruned()), ListData())
        assert len(errors_in(caplog)) == 1
        caplog.clear()


class FailingData(ListData):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, list[str]()

    def _call(self, where: str) -> None:
        self.calls.append(where)
        if where == self.where:
            raise ValueError(where)

    def prepare_data(self) -> None:
        self._call("prepare_data")

    def setup(self) -> None:
        self._call("setup")

    def teardown(self) -> None:
        self._call("teardown")


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("prepare_data", ["prepare_data"]),
        ("setup", ["prepare_data", "setup", "teardown"]),
        ("teardown", ["prepare_data", "setup", "teardown"]),
    ],
)
def test_an_exception_in_the_data_module_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, calls: list[str]
) -> None:
    """An error of the data module is logged, in the file too, and what `setup` acquired is released."""
    data = FailingData(where)
    with pytest.raises(ValueError, match=where):
        make_trainer(enable_file_logging=True, log_path=tmp_path).fit(CountingModel(), data)
    assert data.calls == calls
    assert len(errors_in(caplog)) == 1
    assert f"ValueError: {where}" in (tmp_path / "helios.log").read_text()


def test_teardown_runs_however_training_ends() -> None:
    """`teardown` of the data module runs after success and after an exception in a step."""
    for model in (CountingModel(), Failing("step", Pruned())):
        data = FailingData("nowhere")
        try:
            make_trainer().fit(model, data)
        except Pruned:
            assert isinstance(model, Failing)
        assert data.calls == ["prepare_data", "setup", "teardown"]
