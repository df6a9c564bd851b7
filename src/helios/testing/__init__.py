"""For tests of models, data modules and plug-ins: a small model, small data, and tests that every plug-in must pass."""

from helios.testing._contracts import PluginContract
from helios.testing._equality import are_equal
from helios.testing._tiny import TinyDataModule, TinyModel

__all__ = ["PluginContract", "TinyDataModule", "TinyModel", "are_equal"]
