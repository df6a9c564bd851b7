"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import helios

# Private modules, too.
MODULES = sorted(module.name for module in pkgutil.walk_packages(helios.__path__, "helios."))


@pytest.mark.parametrize("name", MODULES)
def test_the_docstrings_of_a_module_run(name: str) -> None:
    """Every doctest of the package is executed."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_doctests() -> None:
    """The search finds examples, so that the test above cannot pass for want of them."""
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 5
