"""The bridge with the oldest and newest Optuna that `pyproject.toml` allows and the package index has."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT: Final = Path(__file__).parents[3]


def _run(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository, with the packages in a folder in place of the installed ones."""
    folders = [*([] if path is None else [path]), ROOT / "src", ROOT]
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        timeout=170,
        check=False,
    )


def _find_releases() -> list[Version]:
    """Return the oldest and the newest admitted release of Optuna, which may be the same."""
    result = _run("-m", "pip", "index", "versions", "optuna", "--disable-pip-version-check")
    found = re.search(r"^Available versions: (.*)$", result.stdout, re.MULTILINE)
    if found is None:
        pytest.skip(f"needs a package index with Optuna: {result.stderr.strip()[-300:]}")
    requirements = map(Requirement, importlib.metadata.requires("helios-train") or [])
    admitted = next(requirement.specifier for requirement in requirements if requirement.name == "optuna")
    releases = sorted(admitted.filter(map(Version, found[1].split(", "))))
    assert releases, f"no release on the package index is {admitted}"
    return sorted({releases[0], releases[-1]})


@pytest.mark.timeout(600)  # Each release has its own limits in `_run`.
def test_the_bridge_runs_with_the_oldest_and_the_newest_optuna(tmp_path: Path) -> None:
    """With each, the private names exist, and a study is pruned, interrupted, resumed exactly and reported."""
    for release in _find_releases():
        folder = tmp_path / f"optuna-{release}"
        installed = _run("-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, f"optuna=={release}")
        assert installed.returncode == 0, installed.stderr
        (tmp_path / str(release)).mkdir()
        used = _run("-m", "tests.plugins.optuna.version_check", tmp_path / str(release), path=folder)
        assert used.returncode == 0, f"Optuna {release}:\n{used.stdout}{used.stderr}"
        assert used.stdout.split()[-2:] == [str(release), str(folder / "optuna" / "__init__.py")]
        internals = Path(__file__).with_name("test_optuna_internals.py")
        temporary = tmp_path / f"tests-{release}"
        tested = _run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", temporary, internals, path=folder)
        assert tested.returncode == 0, f"Optuna {release}:\n{tested.stdout}{tested.stderr}"
