"""Module paths that code written for helios-ml 1.x imports from."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("package", ["core", "losses", "model", "nn", "optim", "scheduler"])
def test_utils_has_the_names_of_its_package(package: str) -> None:
    """`helios.<package>.utils` offers the public functions and tables of the package, and they are the same objects."""
    parent = importlib.import_module(f"helios.{package}")
    utils = importlib.import_module(f"helios.{package}.utils")
    names = [name for name in parent.__all__ if name not in ("Model", "swa_utils")]
    assert names == utils.__all__
    assert all(getattr(utils, name) is getattr(parent, name) for name in names)
