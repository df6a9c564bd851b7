"""Habits of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from tests import house

if TYPE_CHECKING:
    import pytest

TESTS = Path(__file__).parent


def find_silent_tests(source: str) -> list[str]:
    """Return the names of the test functions that do not say what they prove."""
    body = ast.parse(source).body
    # A model's `test_step` in a helper class is no test.
    classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")]
    functions = [node for part in (body, *(node.body for node in classes)) for node in part]
    tests = [node for node in functions if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [node.name for node in tests if not ast.get_docstring(node)]


def test_every_test_says_what_it_proves() -> None:
    """Each test function of this tree has a docstring; the search finds one that has none."""
    source = (
        "class TestA:\n    def test_b(self): ...\nclass M:\n    def test_step(self): ...\ndef test_c():\n    'Text.'\n"
    )
    assert find_silent_tests(source) == ["test_b"]
    silent = {
        str(path.relative_to(TESTS)): names
        for path in sorted(TESTS.rglob("test_*.py"))
        if (names := find_silent_tests(path.read_text(encoding="utf-8")))
    }
    assert silent == {}


TREES = (
    *("src", "docs", "tests", "examples", "benchmarks"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml"),
)


def test_words_are_plain() -> None:
    """No file has a word or phrase that `house.WORDS` replaces; this file quotes some of them."""
    files = house.text_files(house.ROOT / tree for tree in TREES)
    assert house.find_words(file for file in files if file != Path(__file__)) == []


def test_files_are_short() -> None:
    """No file of the package is longer than 300 lines."""
    assert house.find_long_files(house.SOURCE.rglob("*.py")) == []


def test_functions_are_short() -> None:
    """No function of the package is longer than 40 lines."""
    assert house.find_long_functions([house.SOURCE]) == []


def test_long_files_and_functions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search finds a file of 301 lines with a function of 41, and nothing in one that is a line shorter."""
    monkeypatch.setattr(house, "ROOT", tmp_path)
    for extra in (0, 1):
        body = "    x = 1\n" * (40 + extra)
        text = "def f():\n    'Text.'\n" + body
        (tmp_path / "a.py").write_text(text + "\n" * (300 + extra - text.count("\n")))
        assert len(house.find_long_files([tmp_path])) == len(house.find_long_functions([tmp_path])) == extra


def test_words_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words to be replaced are found in names, in text and across lines; other words are not."""
    monkeypatch.setattr(house, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("A data set shall go\non.\n# It goes\n# on; keep_at_home, goes_on.\n")
    found = [entry.partition(" ")[2] for entry in house.find_words([tmp_path / "a.md"])]
    assert found == [
        "'data set': dataset",
        "'shall': must, should or will",
        "'go on': continue, resume",
        "'goes on': continue, resume",
        "'keep at home': register_proxy",
        "'goes on': continue, resume",
    ]
    (tmp_path / "a.md").write_text("A dataset, a marshaller and an attendant. Ongoing.\n")
    assert house.find_words([tmp_path / "a.md"]) == []


def test_private_names_of_other_libraries_have_reasons() -> None:
    """Files that read private names of other libraries are listed with a reason, and no other file is."""
    assert set(house.find_private_names()) == set(house.PRIVATE)
