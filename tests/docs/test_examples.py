"""The examples run as printed."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch

from tests.docs.snippets import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What the extra `demo` installs.
pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let examples be imported, and run in a folder of their own: to start an interpreter for each takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_example(name: str, *arguments: str) -> Any:
    """Run an example's `main` in this process."""
    return importlib.import_module(name).main(arguments)


@pytest.mark.usefixtures("examples")
def test_the_classifier_trains_and_continues(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """`examples/classifier.py` trains and tests; given more iterations, it continues in the same epoch."""
    caplog.set_level(logging.INFO, logger="helios")
    run_example("classifier", "--iterations", "20")
    printed = capsys.readouterr().out
    assert "training 20 iterations from the start" in printed
    assert "test accuracy: " in printed
    run_example("classifier", "--iterations", "71", "--workers", "1")
    assert "training 71 iterations from iteration 20" in capsys.readouterr().out
    assert "iteration 70: training loss" in caplog.text
    assert "validation 0: accuracy" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.usefixtures("examples")
def test_tuning_runs_to_its_number_of_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 3: `examples/tuning.py` runs as many trials as are missing, none if none is, and writes its report."""
    run_example("tuning", "--trials", "1")
    assert "best of 1 trials: number 0, accuracy " in capsys.readouterr().out
    for _ in range(2):
        run_example("tuning", "--trials", "2")
        assert "best of 2 trials: number " in capsys.readouterr().out
    folder = tmp_path / "demo-output" / "tuning"
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{folder / 'study.db'}")
    assert [len(trial.intermediate_values) for trial in study.trials] == [8, 8]
    for trial in study.trials:
        assert ("momentum" in trial.params) == (trial.params["optimizer"] == "sgd")
    assert (folder / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.usefixtures("examples")
def test_tuning_finds_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL is used, by the driver that the extra installs; without it, a SQLite file."""
    tuning = importlib.import_module("tuning")
    assert tuning.find_storage(tmp_path) == f"sqlite:///{tmp_path / 'study.db'}"
    for url, expected in [
        ("postgresql://me@there/db?host=/tmp", "postgresql+psycopg://me@there/db?host=/tmp"),
        ("postgres://there/db", "postgresql+psycopg://there/db"),
        ("postgresql+psycopg://there/db", "postgresql+psycopg://there/db"),
        ("sqlite:///other.db", "sqlite:///other.db"),
    ]:
        monkeypatch.setenv("DATABASE_URL", url)
        assert tuning.find_storage(tmp_path) == expected


def test_the_demo_compares_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issues 2 and 3: killed runs and studies end equal; training too short to be accurate ends with exit code 1."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--iterations", "80", "--trials", "3"]
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=170, check=False
    )
    output = done.stdout
    assert done.returncode == 1, output
    assert "SIGKILL: the process is gone. It had trained " in output
    assert "classifier_epoch_1_iter_40.pth" in output
    lines = output.splitlines()
    for names in (("uninterrupted ", "killed and resumed "), ("left alone ", "killed twice ")):
        left_alone, resumed = ([line for line in lines if line.startswith(name)] for name in names)
        assert len(left_alone) == len(resumed) == 1
        assert left_alone[0].split()[-3:] == resumed[0].split()[-3:]
    assert "weights, accuracy and the whole curve: EQUAL" in lines
    assert "parameters, values, states and the values on the way: EQUAL" in lines
    assert [int(trial) for trial in re.findall(r"SIGKILL in trial (\d+)", output)] == [1, 2]
    assert "the accuracy is not above 97%" in lines
    assert "leaked" not in output
    assert (tmp_path / "demo-output" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo-output" / "study.html").stat().st_size > 1_000_000
