"""Habits of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def find_silent_tests(source: str) -> list[str]:
    """Return the names of the test functions that do not say what they prove."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if node.name.startswith("test_") and not ast.get_docstring(node)]


def test_every_test_says_what_it_proves() -> None:
    """Each test function of this tree has a docstring; the search finds one that has none."""
    assert find_silent_tests("class TestA:\n    def test_b(self): ...\ndef test_c():\n    'Text.'\n") == ["test_b"]
    silent = {
        str(path.relative_to(TESTS)): names
        for path in sorted(TESTS.rglob("*.py"))
        if (names := find_silent_tests(path.read_text(encoding="utf-8")))
    }
    assert silent == {}
