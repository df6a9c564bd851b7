"""The working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helios.core.paths import ChdirContext, as_path, to_path
from helios.errors import ArgumentTypeError, ConfigurationError


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


def test_a_path_does_not_move_with_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is fixed when it is given; "~" is the home folder; `None` stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert as_path("a/b") == tmp_path / "a" / "b"
    assert as_path("~/x") == tmp_path / "home" / "x"
    assert as_path(None) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/x", "there is no home folder of that name here"),
        ("a\0b", "no path has a NUL character in it"),
        ("a\ud800b", "no file system can hold"),
        (b"bytes", "a bytes: pass a path"),
        (3, "a int: pass a path"),
        (None, "a NoneType: pass a path"),
    ],
    ids=["user", "NUL", "half a character", "bytes", "number", "None"],
)
def test_a_path_that_no_file_can_have_is_refused(path: Any, message: str) -> None:
    """An unknown user, a NUL, half a surrogate pair and what is no path: one error of ours that names the argument."""
    with pytest.raises((ArgumentTypeError, ConfigurationError), match=f"place is .*{message}"):
        to_path(path, "place")


def test_a_deleted_working_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is gone, a relative path is refused with the remedy, and an absolute one is taken."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigurationError, match="working folder cannot be found, .* pass an absolute path"):
        to_path("a")
    assert to_path(tmp_path / "a") == tmp_path / "a"
