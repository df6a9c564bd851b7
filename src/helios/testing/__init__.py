"""For tests of what plugs into Helios: a tiny model, tiny data, and contracts that a plug-in can be run against."""

from helios.testing._contracts import PluginContract
from helios.testing._equality import are_equal
from helios.testing._tiny import TinyDataModule, TinyModel

__all__ = ["PluginContract", "TinyDataModule", "TinyModel", "are_equal"]
