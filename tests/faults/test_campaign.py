"""Attacks on a run: whatever ends it, the next one ends with the bits of the run that nobody disturbed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that lets a disk fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def attack(shim: Path, root: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Return what came of each attack, after checking all of them."""
    environment = {**os.environ, "LD_PRELOAD": str(shim)}
    command = [sys.executable, "-m", "tests.faults.campaign", str(root), str(rounds), str(seed)]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *attacks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    expected = first["expected"]
    assert len(expected) == 64, expected
    assert [entry for entry in attacks if not is_well(entry, expected)] == []
    return attacks


def is_well(entry: dict[str, Any], expected: str) -> bool:
    """Whether the attacked run ended in a known way, and the next one equal to the bit, with nothing left behind."""
    ended, name = entry["ended"], entry["attack"]
    is_known = ended in (expected, "stopped", "interrupted", "damaged") or ended.startswith("refused: ")
    # A signal may also find the process before or after the run, where Ctrl-C ends it without a word ("signal 0").
    was_killed = ended.startswith("signal ") and ("SIG" in name or "kill" in name)
    return (is_known or was_killed) and entry["resumed"] == expected and entry["left"] == []


def test_an_attacked_run_is_resumed_to_the_bit(tmp_path: Path, shim: Path) -> None:
    """A disk full of debris, faults of the disk at some places, damaged bytes and signals: the resumed run is equal."""
    attacks = attack(shim, tmp_path, 8, 1)
    assert len(attacks) == 2 + 3 * 8
    assert len(attacks[0]["ended"]) == 64, "the debris was not swept before the disk was probed"
    assert len(attacks[1]["ended"]) == 64, "a run that was complete failed because of its lock"
    assert {entry["ended"].partition(":")[0] for entry in attacks} >= {"refused", "damaged", "signal -9"}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_is_attacked_everywhere(tmp_path: Path, shim: Path) -> None:
    """The disk fails, and the process is killed, at every call on a file; bytes are damaged and signals sent."""
    assert len(attack(shim, tmp_path, 0, 2)) > 600
