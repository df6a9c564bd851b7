"""The examples run as printed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.snippets import ROOT

if TYPE_CHECKING:
    from pathlib import Path

# What the extra `demo` installs.
pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")


def run_example(cwd: Path, script: str, *arguments: str, expected: int = 0) -> str:
    """Return what an example prints on both streams, neither of which is a terminal."""
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=170, check=False
    )
    assert done.returncode == expected, done.stdout
    return done.stdout


def test_the_classifier_trains_and_goes_on(tmp_path: Path) -> None:
    """Issue 2: `examples/classifier.py` trains and tests; given more iterations, it goes on, in the same epoch."""
    output = run_example(tmp_path, "classifier.py", "--iterations", "20")
    assert "training 20 iterations from the start" in output
    assert "test accuracy: " in output
    output = run_example(tmp_path, "classifier.py", "--iterations", "75", "--workers", "1")
    assert "training 75 iterations from iteration 20" in output
    assert "iteration 70: training loss" in output
    assert "validation 1: accuracy" in output
    assert "Warning" not in output


def test_the_demo_compares_and_judges(tmp_path: Path) -> None:
    """Issue 2: the demo kills and resumes a run that ends equal; one too short to be accurate ends with exit code 1."""
    output = run_example(tmp_path, "demo.py", "--iterations", "80", expected=1)
    assert "SIGKILL: the process is gone. It had trained " in output
    assert "classifier_epoch_1_iter_40.pth" in output
    lines = output.splitlines()
    (left_alone,) = [line for line in lines if line.startswith("uninterrupted ")]
    (resumed,) = [line for line in lines if line.startswith("killed and resumed ")]
    assert left_alone.split()[-3:] == resumed.split()[-3:]
    assert "weights, accuracy and the whole curve: EQUAL" in lines
    assert "the accuracy is not above 97%" in lines
    assert "leaked" not in output
    assert (tmp_path / "demo-output" / "curves.png").read_bytes().startswith(b"\x89PNG")
