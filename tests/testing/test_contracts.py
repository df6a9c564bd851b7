"""The contract tests for users: good plug-ins pass, and each broken one fails the test for its mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios import Plugin
from helios.plugins import DevicePlugin
from helios.testing import PluginContract

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class CountingPlugin(Plugin):
    """Counts batches and draws numbers, and saves both."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.count = 0
        self.noise = torch.zeros(2)

    def setup(self) -> None:
        self.count = 0

    def on_training_batch_end(self, state: TrainingState) -> None:
        self.count += 1
        self.noise = torch.rand(2) + state.global_iteration

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "noise": self.noise}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count, self.noise = state_dict["count"], state_dict["noise"]


class SilentPlugin(Plugin):
    """Does nothing: every hook is optional."""

    def __init__(self) -> None:
        super().__init__("silent")

    def setup(self) -> None:
        """Prepare nothing."""


class TestCountingPlugin(PluginContract):
    def make_plugin(self) -> Plugin:
        return CountingPlugin()


class TestSilentPlugin(PluginContract):
    def make_plugin(self) -> Plugin:
        return SilentPlugin()


class TestDevicePlugin(PluginContract):
    def make_plugin(self) -> Plugin:
        return DevicePlugin("cpu")


class Forgetful(CountingPlugin):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.noise = state_dict["noise"]


class Unflagged(SilentPlugin):
    def should_training_stop(self) -> bool:
        return False


class Shy(SilentPlugin):
    def configure_trainer(self, trainer: Any) -> None:
        """Register nothing."""


class Meddling(SilentPlugin):
    """Scales batches by a number that it does not save."""

    non_persistent_attributes = ("scale",)

    def __init__(self) -> None:
        super().__init__()
        self.unique_overrides.training_batch = True
        self.scale = 1.0

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        del state
        self.scale *= 0.9
        return [part * self.scale for part in batch]


class Raising(SilentPlugin):
    def on_testing_end(self) -> None:
        raise ValueError("boom")


def contract_of(plugin: type[Plugin]) -> PluginContract:
    class Contract(PluginContract):
        def make_plugin(self) -> Plugin:
            return plugin()  # type: ignore[call-arg]  # each passes its own id

    return Contract()


@pytest.mark.parametrize("plugin", [Forgetful, Meddling])
def test_a_plugin_that_forgets_is_found(tmp_path: Path, plugin: type[Plugin]) -> None:
    """A plug-in that does not save or does not restore a part of its state fails the test of resume."""
    with pytest.raises(AssertionError, match="differs after a resume"):
        contract_of(plugin).test_a_resumed_run_ends_alike(tmp_path)


def test_a_state_that_does_not_come_back_is_found(tmp_path: Path) -> None:
    """The failure for a `load_state_dict` that drops a part shows both states."""
    with pytest.raises(AssertionError, match="'count': 6.* was saved, but .*'count': 0.* restored"):
        contract_of(Forgetful).test_its_state_comes_back(tmp_path)


def test_a_plugin_that_breaks_other_clauses_is_found() -> None:
    """A missing flag, a missing registration and an exception in a hook each fail the test for it."""
    with pytest.raises(AssertionError, match="does not flag, \\['should_training_stop'\\]"):
        contract_of(Unflagged).test_it_flags_what_it_claims()
    with pytest.raises(AssertionError, match="the ids \\[\\]"):
        contract_of(Shy).test_it_is_registered_under_its_id()
    with pytest.raises(ValueError, match="boom"):
        contract_of(Raising).test_it_takes_part_in_all_three_phases()
