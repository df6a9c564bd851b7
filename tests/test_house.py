"""Habits of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

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
