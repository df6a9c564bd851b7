"""Tests that every plug-in must pass."""

from __future__ import annotations

import abc
import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from helios.checkpoint.archive import load_archive
from helios.plugins.table import claims_of
from helios.testing._equality import are_equal
from helios.testing._tiny import TinyDataModule, TinyModel
from helios.trainer import Trainer, find_last_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from helios.data.datamodule import DataModule
    from helios.model.model import Model
    from helios.plugins.base import Plugin


class PluginContract(abc.ABC):
    """Tests for pytest that every plug-in must pass.

    Derive a class whose name begins with `Test`, and return the plug-in from `make_plugin`::

        class TestMyPlugin(PluginContract):
            def make_plugin(self) -> Plugin:
                return MyPlugin(threshold=3)

    For a plug-in that needs a certain model or certain data, override `make_model` and `make_datamodule`, too.
    """

    @abc.abstractmethod
    def make_plugin(self) -> Plugin:
        """Return a new plug-in, with the same arguments each time."""

    def make_model(self) -> Model:
        """Return a new model, in whose training the plug-in takes part."""
        return TinyModel("contract")

    def make_datamodule(self) -> DataModule:
        """Return the data to train, validate and test that model on."""
        return TinyDataModule()

    def test_it_is_registered_under_its_id(self) -> None:
        """`configure_trainer` registers the plug-in once, under its id, however often it is called."""
        plugin, trainer = self.make_plugin(), Trainer()
        plugin.configure_trainer(trainer)
        plugin.configure_trainer(trainer)
        _require(
            list(trainer.plugins) == [plugin.plug_id], f"the table of plug-ins has the ids {list(trainer.plugins)}"
        )
        _require(trainer.plugins[plugin.plug_id] is plugin, "the table has another plug-in under the id")

    def test_it_flags_what_it_claims(self) -> None:
        """Every unique method that the plug-in overrides is flagged in `unique_overrides`."""
        plugin = self.make_plugin()
        flagged = [name for name, value in dataclasses.asdict(plugin.unique_overrides).items() if value]
        missing = [name for name in claims_of(plugin) if name not in flagged]
        _require(not missing, f"it overrides, but does not flag, {missing}: set them in self.unique_overrides")

    def test_it_takes_part_in_all_three_phases(self) -> None:
        """Training, validation and testing run to their end with the plug-in."""
        model, datamodule = self.make_model(), self.make_datamodule()
        trainer = self._trainer(self.make_plugin(), None)
        _require(trainer.fit(model, datamodule), "fit did not end by itself")
        _require(trainer.test(model, datamodule), "test did not end by itself")

    def test_its_state_comes_back(self, tmp_path: Path) -> None:
        """`state_dict` returns plain data, and `load_state_dict` restores all of it in a new plug-in."""
        saved = self._train(tmp_path, 2)["plugins"]
        plugin = self.make_plugin()
        state = saved[plugin.plug_id]
        plugin.trainer = self._trainer(plugin, None)
        plugin.setup()
        plugin.load_state_dict(copy.deepcopy(state))
        _require(are_equal(plugin.state_dict(), state), f"{state} was saved, but {plugin.state_dict()} restored")

    def test_a_resumed_run_ends_alike(self, tmp_path: Path) -> None:
        """A run that stops after an epoch and continues with a new plug-in ends like an uninterrupted one."""
        whole = self._train(tmp_path / "whole", 3)
        self._train(tmp_path / "parts", 1)
        resumed = self._train(tmp_path / "parts", 3)
        for part in ("model", "plugins"):
            _require(are_equal(resumed[part], whole[part]), f"the state of {part} differs after a resume")

    def _trainer(self, plugin: Plugin, root: Path | None, epochs: int = 2) -> Trainer:
        trainer = Trainer(total_steps=epochs, valid_frequency=1, chkpt_root=root, print_banner=False)
        plugin.configure_trainer(trainer)
        return trainer

    def _train(self, root: Path, epochs: int) -> dict[str, Any]:
        """Train new objects up to `epochs` epochs in all, and return the last checkpoint."""
        plugin, model = self.make_plugin(), self.make_model()
        trainer = self._trainer(plugin, root, epochs)
        plugin.configure_model(model)
        trainer.fit(model, self.make_datamodule())
        path = find_last_checkpoint(root / model.save_name)
        if path is None:
            raise AssertionError(f"the run left no checkpoint in {root}")
        return load_archive(path)


def _require(condition: bool, message: str) -> None:
    """Fail the test with a message unless a condition holds; pytest adds messages to `assert` in test modules only."""
    if not condition:
        raise AssertionError(message)
