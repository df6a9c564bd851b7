"""What a run says, and where."""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from helios.core.logging import get_root_logger, get_tensorboard_writer, is_root_logger_active
from helios.errors import ConfigurationError
from helios.trainer._progress import RichDisplay, open_display
from tests.trainer.parts import CountingModel, Failing, ListData, Pruned, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from pathlib import Path


def test_the_log_file_tells_the_run(tmp_path: Path) -> None:
    """With file logging the run is in `<log_path>/<run_name>.log`, records of the model and both calls too."""

    class Talking(CountingModel):
        def on_training_start(self) -> None:
            assert is_root_logger_active()
            get_root_logger().info("hello from the model")

    trainer = make_trainer(tmp_path / "c", run_name="run", enable_file_logging=True, log_path=tmp_path / "logs")
    for _ in range(2):
        trainer.fit(Talking(), ListData())
    text = (tmp_path / "logs" / "run.log").read_text()
    assert text.count("hello from the model") == 2
    assert text.count("6 iterations trained: all the steps asked for are done") == 2
    assert text.count("resumed from") == 1
    assert not is_root_logger_active()


def test_warnings_go_to_the_log_if_asked_for(tmp_path: Path) -> None:
    """With `capture_warnings` what the `warnings` module says is in the log."""

    class Worried(CountingModel):
        def on_training_start(self) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("careful", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        make_trainer(enable_file_logging=True, log_path=tmp_path).fit(Worried(), ListData())
        make_trainer(enable_file_logging=True, log_path=tmp_path / "b", capture_warnings=True).fit(
            Worried(), ListData()
        )
    assert len(caught) <= 1
    assert "careful" in (tmp_path / "b" / "helios.log").read_text()


def test_a_tensorboard_writer_is_there_during_fit(tmp_path: Path) -> None:
    """The TensorBoard writer writes below `<run_path>/<run_name>` during `fit`, and is a stand-in after."""
    pytest.importorskip("tensorboard")

    class Writing(CountingModel):
        def on_training_start(self) -> None:
            assert get_tensorboard_writer()
            get_tensorboard_writer().add_scalar("x", 1.0, 0)

    make_trainer(enable_tensorboard=True, run_path=tmp_path, run_name="run").fit(Writing(), ListData())
    assert len(list((tmp_path / "run" / "counting_0").glob("events*"))) == 1
    assert not get_tensorboard_writer()


def test_each_model_and_start_has_a_tensorboard_folder(tmp_path: Path) -> None:
    """A resumed run and a test continue in the folder of the start; other models and new starts have their own."""
    pytest.importorskip("tensorboard")

    def folders(root: Path | None, save_name: str, *, tests: bool = False) -> list[str]:
        trainer = make_trainer(root, enable_tensorboard=True, run_path=tmp_path / "runs", run_name="run")
        model = CountingModel(save_name)
        assert trainer.test(model, ListData()) if tests else trainer.fit(model, ListData())
        return sorted(path.name for path in (tmp_path / "runs" / "run").iterdir())

    assert folders(tmp_path, "m_trial-0") == ["m_trial-0_0"]
    assert folders(tmp_path, "m_trial-1") == ["m_trial-0_0", "m_trial-1_0"]
    assert folders(tmp_path, "m_trial-0") == ["m_trial-0_0", "m_trial-1_0"]
    assert folders(tmp_path, "m_trial-0", tests=True) == ["m_trial-0_0", "m_trial-1_0"]
    assert folders(None, "m_trial-0") == ["m_trial-0_0", "m_trial-0_1", "m_trial-1_0"]
    assert folders(tmp_path / "elsewhere", "m_trial-1")[-1] == "m_trial-1_1"


@pytest.mark.parametrize("name", ["chkpt_root", "log_path", "run_path"])
def test_a_file_in_place_of_a_folder_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """A path of the trainer that is a file is an error of the constructor."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=f"{name} is '.*file', which is a file: pass a folder"):
        make_trainer(**{name: tmp_path / "file"})


def test_the_places_of_logs_must_be_writable(tmp_path: Path) -> None:
    """A log or TensorBoard folder that cannot be made is an error before training; it says what to set."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "x"
    places: list[tuple[dict[str, Any], str]] = [
        ({"enable_file_logging": True, "log_path": place}, "log file .* cannot be opened .*: pass another log_path"),
        ({"enable_tensorboard": True, "run_path": place}, "cannot be written to .*: pass another run_path"),
    ]
    for options, message in places:
        model = CountingModel()
        with pytest.raises(ConfigurationError, match=message):
            make_trainer(**options).fit(model, ListData())
        assert model.seen == []


def test_progress_is_shown_in_the_unit_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bars of tqdm count epochs or iterations, from where the run is resumed, and batches of validation."""
    make_trainer(tmp_path, total_steps=1, enable_progress_bar=True, valid_frequency=1).fit(CountingModel(), ListData())
    shown = capsys.readouterr().err
    assert "Training:   0%|" in shown
    assert "| 1/1 [" in shown
    assert "epoch/s" in shown or "s/epoch" in shown
    assert "Validation:   0%|" in shown
    make_trainer(tmp_path, total_steps=3, enable_progress_bar=True).fit(CountingModel(), ListData())
    shown = capsys.readouterr().err
    assert "Training:  33%|" in shown
    assert "| 3/3 [" in shown
    make_trainer(total_steps=2, train_unit="iteration", enable_progress_bar=True).fit(CountingModel(), ListData())
    assert "| 2/2 [" in capsys.readouterr().err
    make_trainer(enable_progress_bar=True).test(CountingModel(), ListData())
    assert "Testing: 100%|" in capsys.readouterr().err


def test_a_terminal_gets_the_bars_of_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich is installed and the error stream is a terminal, rich draws all bars, also without an end."""
    pytest.importorskip("rich")
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    monkeypatch.setenv("TERM", "xterm")
    display = open_display()
    display.close()
    assert isinstance(display.inner, RichDisplay)
    make_trainer(enable_progress_bar=True, valid_frequency=1).fit(CountingModel(), ListData())
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("Training", "Validation", "2/2", "epoch"))
    endless = CountingModel()
    monkeypatch.setattr(endless, "should_training_stop", lambda: len(endless.seen) == 6)
    make_trainer(total_steps=math.inf, enable_progress_bar=True).fit(endless, ListData())
    assert "1/?" in capsys.readouterr().err


def test_bars_of_validations_do_not_pile_up() -> None:
    """Of the bars within another one, none is left when it is done; the outermost stays to be seen."""
    pytest.importorskip("rich")
    display = RichDisplay()
    outer = display.open("Training", "epoch", 3, 1)
    for _ in range(3):
        inner = display.open("Validation", "batch", None, 0)
        inner.update(1)
        inner.close()
    outer.update(1)
    outer.close()
    display.close()
    (task,) = display._progress.tasks
    assert (task.description, task.completed, task.total) == ("Training", 2, 3)


def test_no_bar_is_left_open_by_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    """Bars are closed when a step of training or of validation raises."""
    for where in ("step", "valid"):
        with pytest.raises(Pruned):
            make_trainer(enable_progress_bar=True, valid_frequency=1).fit(Failing(where, Pruned()), ListData())
        assert len(getattr(tqdm, "_instances", [])) == 0
    assert "Validation" in capsys.readouterr().err


def test_the_banner_is_printed_with_what_the_model_adds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The banner names model, length, seed, plug-ins and where the run is resumed; the model may add to it."""

    class Proud(CountingModel):
        def append_to_banner(self, banner: str) -> str:
            return banner + "\n  made by  hand"

    def run(epochs: float) -> str:
        trainer = make_trainer(tmp_path, total_steps=epochs, print_banner=True, run_name="r1", random_seed=5)
        trainer.register_plugin(SimplePlugin("plug"))
        trainer.fit(Proud(), ListData())
        return capsys.readouterr().out

    out = run(1)
    assert out.startswith("Helios ")
    for text in (
        ": r1\n",
        "Proud (counting) on cpu",
        "1 epochs from the start, seed 5",
        "plug-ins plug",
        "made by  hand",
    ):
        assert text in out
    assert "2 epochs from epoch 1" in run(2)
    make_trainer().fit(CountingModel(), ListData())
    assert capsys.readouterr().out == ""
