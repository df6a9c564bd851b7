"""The working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helios.core.paths import ChdirContext, as_path, to_path
from helios.errors import ArgumentTypeError, ConfigurationError


def test_the_working_directory_changes_and_comes_back(tmp_path: Path) -> None:
    """The context returns the previous working directory, and restores it, also when nested and after an error."""
    before = Path.cwd()
    (tmp_path / "inner").mkdir()
    with ChdirContext(tmp_path) as previous:
        assert previous == before
        assert Path.cwd() == tmp_path.resolve()
        with pytest.raises(ZeroDivisionError), ChdirContext("inner") as outer:
            assert outer == tmp_path.resolve()
            assert Path.cwd() == (tmp_path / "inner").resolve()
            raise ZeroDivisionError
        assert Path.cwd() == tmp_path.resolve()
    assert Path.cwd() == before


def test_one_context_nests_in_itself(tmp_path: Path) -> None:
    """A context that is entered twice restores the working directory at each exit."""
    before = Path.cwd()
    context = ChdirContext(tmp_path)
    with context:
        with context:
            assert Path.cwd() == tmp_path.resolve()
        assert Path.cwd() == tmp_path.resolve()
    assert Path.cwd() == before


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    """The error for a missing directory names it, and the working directory is unchanged."""
    before = Path.cwd()
    with pytest.raises(FileNotFoundError, match="nowhere"), ChdirContext(tmp_path / "nowhere"):
        pytest.fail("entered a missing directory")
    assert Path.cwd() == before


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_a_directory_that_cannot_exist_is_refused(path: str) -> None:
    """A path that no directory can have is an error of Helios that shows the path."""
    with pytest.raises(ConfigurationError, match="path is 'a.*: remove what no path may have"), ChdirContext(path):
        pytest.fail("entered a directory that cannot exist")


def test_a_path_does_not_move_with_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is made absolute at the call; "~" is the home folder; `None` stays `None`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert as_path("a/b") == tmp_path / "a" / "b"
    assert as_path("~/x") == tmp_path / "home" / "x"
    assert as_path(None) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/x", "that user has no home folder here"),
        ("a\0b", "remove the NUL character"),
        ("a\ud800b", "no file system can hold"),
        (b"bytes", "a bytes: pass a path"),
        (3, "a int: pass a path"),
        (None, "a NoneType: pass a path"),
    ],
    ids=["user", "NUL", "surrogate", "bytes", "number", "None"],
)
def test_a_path_that_no_file_can_have_is_refused(path: Any, message: str) -> None:
    """An unknown user, a NUL, a lone surrogate and an object that is no path are errors that name the argument."""
    with pytest.raises((ArgumentTypeError, ConfigurationError), match=f"place is .*{message}"):
        to_path(path, "place")


def test_a_deleted_working_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a deleted folder, a relative path is refused with the remedy, and an absolute one is accepted."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigurationError, match="working folder cannot be found .* pass an absolute path"):
        to_path("a")
    assert to_path(tmp_path / "a") == tmp_path / "a"
