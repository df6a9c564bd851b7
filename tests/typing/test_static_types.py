"""The types that a type checker sees in user code."""

from __future__ import annotations

from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]

SNIPPET = """
from typing import Any, assert_type

import torch

import helios.plugins as hlp
from helios import DataModule, Model, Plugin, Trainer, TrainingState


class MyPlugin(hlp.Plugin):
    threshold: int = 3

    def setup(self) -> None: ...

    def configure_trainer(self, trainer: Trainer) -> None:
        self._register_in_trainer(trainer)


class MyModel(Model):
    def setup(self, fast_init: bool = False) -> None:
        assert_type(self.trainer.plugins[MyPlugin], MyPlugin)
        assert_type(self.trainer.plugins[hlp.CUDAPlugin], hlp.CUDAPlugin)

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        assert_type(state.global_iteration, int)
        self._loss_items["loss"] = batch[0].sum()


def use(trainer: Trainer, model: MyModel, data: DataModule) -> None:
    assert_type(trainer.plugins[MyPlugin], MyPlugin)
    assert_type(trainer.plugins[MyPlugin].threshold, int)
    assert_type(trainer.plugins["my_plugin"], Plugin)
    assert_type(trainer.plugins[0], Plugin)
    assert_type(list(trainer.plugins), list[str])
    assert_type(trainer.fit(model, data), bool)
    assert_type(trainer.test(model, data), bool)
    assert_type(model.metrics, dict[str, Any])
    trainer.plugins["x"] = MyPlugin("x")
"""

WRONG = """
import helios.plugins as hlp
from helios import Trainer

def use(trainer: Trainer) -> None:
    trainer.plugins["x"] = "no plug-in"
    trainer.plugins[1.5]
    trainer.plugins[hlp.CUDAPlugin].nonsense
    trainer.fit(1, 2)
    Trainer(total_step=3)
"""


# torch and NumPy are taken for granted: to analyse them takes a minute, and this is about the types of Helios.
CONFIG = f"""
[mypy]
strict = true
mypy_path = {ROOT / "src"}
[mypy-helios.*]
follow_imports = silent
[mypy-torch.*,numpy.*,tqdm.*]
follow_imports = skip
"""


def check(source: str, tmp_path: Path) -> tuple[str, int]:
    """Run mypy as a user's project would, strictly, and return what it says and its status."""
    file, config = tmp_path / "snippet.py", tmp_path / "mypy.ini"
    file.write_text(source, encoding="utf-8")
    config.write_text(CONFIG, encoding="utf-8")
    out, err, status = api.run(["--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), str(file)])
    assert err == ""
    return out, status


def test_plugins_read_by_class_have_that_class(tmp_path: Path) -> None:
    """`plugins[MyPlugin]` is a `MyPlugin` to mypy, in a model too; ids and positions are a `Plugin`."""
    out, status = check(SNIPPET, tmp_path)
    assert status == 0, out


def test_mistakes_are_seen(tmp_path: Path) -> None:
    """What is no plug-in, a key of another type, or a foreign attribute, is an error to mypy."""
    out, status = check(WRONG, tmp_path)
    assert status == 1
    errors = [line for line in out.splitlines() if "error:" in line]
    for line in (6, 7, 8, 9, 10):
        assert any(f":{line}: error" in error for error in errors), out
