"""The working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from helios.core.paths import ChdirContext


def test_the_working_directory_changes_and_comes_back(tmp_path: Path) -> None:
    """Inside, the directory is the working directory; after the context, nested or failed, the one before is."""
    before = Path.cwd()
    (tmp_path / "inner").mkdir()
    with ChdirContext(tmp_path):
        assert Path.cwd() == tmp_path.resolve()
        with pytest.raises(ZeroDivisionError), ChdirContext("inner"):
            assert Path.cwd() == (tmp_path / "inner").resolve()
            raise ZeroDivisionError
        assert Path.cwd() == tmp_path.resolve()
    assert Path.cwd() == before


def test_one_context_nests_in_itself(tmp_path: Path) -> None:
    """Entered twice, it leaves twice."""
    before = Path.cwd()
    context = ChdirContext(tmp_path)
    with context:
        with context:
            assert Path.cwd() == tmp_path.resolve()
        assert Path.cwd() == tmp_path.resolve()
    assert Path.cwd() == before


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    """A directory that is not there is named, and the working directory stays."""
    before = Path.cwd()
    with pytest.raises(FileNotFoundError, match="nowhere"), ChdirContext(tmp_path / "nowhere"):
        pytest.fail("entered a directory that is not there")
    assert Path.cwd() == before
