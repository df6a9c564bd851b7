"""The base class of all plug-ins and those that move batches to a device, under the path that users import."""

from helios.plugins.base import Plugin
from helios.plugins.claims import UniquePluginOverrides
from helios.plugins.device import CUDAPlugin, DevicePlugin
from helios.plugins.registry import PLUGIN_REGISTRY, create_plugin

__all__ = ["PLUGIN_REGISTRY", "CUDAPlugin", "DevicePlugin", "Plugin", "UniquePluginOverrides", "create_plugin"]
