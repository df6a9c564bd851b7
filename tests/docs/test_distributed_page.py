"""The script of the page about several ranks runs as printed, started in each of the ways that the page names."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.snippets import ROOT, blocks

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("starter", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]])
def test_the_script_as_printed(starter: list[str], tmp_path: Path) -> None:
    """With Python's ordinary spawn, and under torchrun, the script prints what the page says, once."""
    script = tmp_path / "points.py"
    script.write_text(blocks(PAGE, "python")[0], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *starter, str(script)],
        cwd=tmp_path,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(blocks(PAGE, "text")[0])
    assert done.stdout.count("right: ") == 1
    assert "model    Classifier (points) on 2 ranks, cpu" in done.stdout
