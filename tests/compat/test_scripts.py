"""Scripts in the style of the tutorials of helios-ml 1.x: run as they are, killed, and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.house import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def start(script: str, root: Path) -> subprocess.Popen[str]:
    """Start a script that works below a folder."""
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"tests.compat.{script}", str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(script: str, root: Path) -> str:
    """Run a script to its end, and return what it prints but the banner."""
    process = start(script, root)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    _, _, told = output.partition("plug-ins halves\n")
    return told or output


@pytest.mark.parametrize("script", ["classifier_script", "study_script"])
def test_a_tutorial_runs_twice_and_survives_kills(script: str, tmp_path: Path) -> None:
    """The script prints the same result a second time, and after SIGKILLs in the middle of its training."""
    whole = finish(script, tmp_path / "whole")
    assert finish(script, tmp_path / "whole") == whole
    root = tmp_path / "killed"
    for checkpoints in (1, 2, 3):
        process = start(script, root)
        while len(list(root.glob("chkpt/*/*.pth"))) < checkpoints and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was not killed in its training"
    assert finish(script, root) == whole
