"""The description of the environment."""

from __future__ import annotations

import platform

import numpy as np
import torch

import helios
from helios.core import get_env_info_str


def test_the_environment_is_described() -> None:
    """The versions that decide about bit-equality are in the text, one a line."""
    lines = get_env_info_str().splitlines()
    assert f"Helios: {helios.__version__}" in lines
    assert f"Python: {platform.python_version()}" in lines
    assert f"torch: {torch.__version__}" in lines
    assert f"NumPy: {np.__version__}" in lines
    assert any(line.startswith("GPUs: ") for line in lines)
